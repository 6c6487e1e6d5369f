"""The authors' weights, written once in our own format."""

import hashlib
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from harness.api import BadInput
from methods.blocks.weights import official_file, official_folder


def convert(method: DictConfig) -> Path:
    """Read a method's official files and write what it plays with as <folder>/<method>.safetensors. Prints the path.

    The folder is where the files lie (IVOSBENCH_WEIGHTS). Afterwards `weights=<that file> size=paper` plays without
    them. Any method can be converted whose config names `official` files and that keeps its module as `network`.
    Raises BadInput for a method without authors' weights, and what the method's constructor raises.
    """
    if not method.get("official"):
        raise BadInput(f"method={method.name} has no authors' weights to convert")
    files = [official_file(name, method.published[name]["from"]) for name in method.official.values()]
    arguments = OmegaConf.masked_copy(method, [str(key) for key in method if key not in ("name", "published")])
    player = instantiate(arguments, weights="official", _convert_="all")
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    about = {
        "method": method.name,
        "size": "paper",
        "training": f"the authors' {', '.join(digests)}",
        "sha256": ", ".join(digests.values()),
    }
    path = official_folder() / f"{method.name}.safetensors"
    unfinished = path.with_suffix(".unfinished")
    save_file(player.network.state_dict(), unfinished, about)
    unfinished.replace(path)
    print(path)
    return path
