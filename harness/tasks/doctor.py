"""What is here, and how to get what is missing."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.run.provenance import machine, official_folder, versions

PARTS = {  # what the folder of a dataset has to have in it
    "harness.data.davis.load": ("JPEGImages", "Annotations", "ImageSets"),
    "harness.data.folder.load": ("frames", "masks"),
}


def doctor(dataset: DictConfig, reports: str) -> None:
    """Print the machine, the datasets and the weights, with a remedy for each that is missing.

    dataset: the chosen one, looked for where its config says. reports: where task=gpu measured what methods need.
    """
    console = Console()
    here = Table("machine", "", title="ivosbench doctor")
    found = gpu()
    told = f"{found.name}, {found.bytes / 2**30:.1f} GiB" if found else "none; methods run on the CPU"
    for what, value in (machine() | {"gpu": told}).items():
        here.add_row(what, value)
    console.print(here)
    if found:
        console.print(fitting(found, Path(reports, "gpu")))

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


class Gpu(NamedTuple):
    """A GPU, and the bytes of its memory."""

    name: str
    bytes: int


def fitting(found: Gpu, folder: Path) -> Table | str:
    """Of each method and cache how many sequences of DAVIS fit on a GPU, or what has to be measured before."""
    from harness.tasks.gpu import memory, report

    measured = report.read(folder, "memory")
    rows = measured.tables.get(memory.PLANES, []) if measured else []
    if not rows:
        return escape("which methods fit DAVIS on it: not measured yet; say `uv run run.py task=gpu only=[memory]`")
    title = f"what fits on {found.name}, as measured on {measured.machine['gpu'] if measured else ''}"
    fits = Table("method", "cache", "sequences of DAVIS-2017 val, at paper size", title=title)
    for method, cache, fit, beside in memory.fits_of(rows):
        told = memory.fitting(fit, found.bytes - beside)
        fits.add_row(method, cache, f"{yes(True)} all 30" if told == "30" else f"{yes(False)} {told} of 30")
    return fits


def gpu() -> Gpu | None:
    """The first GPU that torch can use, None if there is none.

    Torch would say so, too, after seconds of import; here NVIDIA's driver is asked, as torch does, by its API.
    """
    if versions()["torch"].endswith("+cpu"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return Gpu(name.value.decode(), size.value)


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
