"""What is here, and how to get what is missing."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from harness.run.provenance import machine, official_folder, versions

PARTS = {  # what the folder of a dataset has to have in it
    "harness.data.davis.load": ("JPEGImages", "Annotations", "ImageSets"),
    "harness.data.folder.load": ("frames", "masks"),
}


def doctor(dataset: DictConfig) -> None:
    """Print the machine, the datasets and the weights, with a remedy for each that is missing.

    dataset: the chosen one, looked for where its config says.
    """
    console = Console()
    here = Table("machine", "", title="ivosbench doctor")
    for what, value in (machine() | {"gpu": gpu() or "none; methods run on the CPU"}).items():
        here.add_row(what, value)
    console.print(here)

    datasets = Table("dataset", "here", "how to get it")
    for name, config in choices("dataset"):
        datasets.add_row(name, *dataset_state(name, dataset if name == dataset.name else config))
    console.print(datasets)

    folder = official_folder()
    where = f"who publishes them; put them into {folder}/ (IVOSBENCH_WEIGHTS)"
    weights = Table("method", "official weights", "here", "what they are", where)
    for name, config in choices("method"):
        for file, about in config.get("published", {}).items():
            weights.add_row(name, file, yes((folder / file).is_file()), about["is"], about["from"])
        if not config.get("published"):
            weights.add_row(name, "", yes(True), "needs none", "")
    console.print(weights)


def gpu() -> str:
    """Name of the first GPU that torch can use, "" if there is none.

    Torch would say so, too, after seconds of import; here NVIDIA's driver is asked, as torch does, by its API.
    """
    if versions()["torch"].endswith("+cpu"):
        return ""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def dataset_state(name: str, config: DictConfig) -> tuple[str, str]:
    """(is it here, how to get it) of one dataset."""
    if OmegaConf.is_missing(config, "root"):
        return "", f"yours: dataset={name} dataset.root=<folder>"
    if "root" not in config:
        return yes(True), "generated"
    remedy = f"or, if it lies elsewhere, dataset.root=<folder> (looked in {config.root}/)"
    if config.get("archives"):
        remedy = f"uv run run.py task=data dataset={name}; {remedy}"
    if missing := [part for part in PARTS.get(config._target_, ()) if not Path(config.root, part).is_dir()]:
        return f"{yes(False)}, no {missing[0]}/ in it" if Path(config.root).is_dir() else yes(False), remedy
    return yes(True), remedy


def choices(group: str) -> Iterator[tuple[str, DictConfig]]:
    """(name, config) of each file of a config group, on every folder of the Hydra search path."""
    for source in HydraConfig.get().runtime.config_sources:
        for path in sorted(Path(source.path, group).glob("*.yaml")) if source.schema == "file" else ():
            config = OmegaConf.load(path)
            assert isinstance(config, DictConfig)
            yield path.stem, config


def yes(found: bool) -> str:
    """Found or not, in colour."""
    return "[green]yes[/]" if found else "[red]no[/]"
