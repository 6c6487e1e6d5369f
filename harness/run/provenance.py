"""Where a score comes from: source, weights, machine."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open

from harness.api import BadInput

TINY = Path(__file__).parents[2] / "methods" / "weights"


def digest(*parts: bytes) -> str:
    """16 hex digits of SHA-256."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def digest_of_files(files: Iterable[Path]) -> str:
    """16 hex digits of the SHA-256 of files, one after the other."""
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(2**20):
                sha.update(part)
    return sha.hexdigest()[:16]


def weights_of(method: Mapping[str, Any]) -> dict[str, str]:
    """What the weights of a method's config are: {name, digest, training}.

    name is "none" for a method without weights, "random", "official" or the name of the file; training says whose it
    was. What they are is the digest alone, of the content of their files. Raises BadInput when a file is missing.
    """
    weights = method.get("weights")
    if weights is None:
        return {"name": "none", "digest": "", "training": "none needed"}
    if weights == "random":
        return {"name": "random", "digest": f"seed {method.get('seed')}", "training": "untrained"}
    if weights == "official":
        if not method.get("official"):
            raise BadInput(f"weights=official: {method['name']} names no files under `official`; give a file")
        files = [official_folder() / name for name in method["official"].values()]
        training = f"the authors' {', '.join(file.name for file in files)}"
    else:
        files, training = [Path(weights)], ""
    for file in files:
        if not file.is_file():
            if weights == "official":
                publisher = method.get("published", {}).get(file.name, {}).get("from")
                remedy = f"its authors publish it: {publisher}" if publisher else "no file that `published` names"
                raise BadInput(f"{file}: no such weights file for {method['name']}; {remedy}")
            if file.resolve().parent == TINY:
                trained = f"uv run run.py task=train method={method['name']} recipe=small precision=bfloat16"
                remedy = f"say weights=random, or train them: {trained}"
                raise BadInput(f"{file}: no tiny weights of {method['name']} are kept; {remedy}")
            raise BadInput(
                f"weights={weights}: no such file; say weights=tiny, official, random or a .safetensors file"
            )
    return {
        "name": files[0].name if weights != "official" else weights,
        "digest": digest_of_files(files),
        "training": training or training_of(files[0]),
    }


def official_folder() -> Path:
    """Where the authors' weights are looked for: the folder IVOSBENCH_WEIGHTS names, "weights" by default."""
    return Path(os.environ.get("IVOSBENCH_WEIGHTS", "weights"))


def training_of(weights: Path) -> str:
    """Whose training a safetensors file says it holds; a method's own kind of file says nothing."""
    if weights.suffix != ".safetensors":
        return "the file does not say whose"
    return " ".join(metadata(weights).get("training", "the file does not say whose").split())


def metadata(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself: training, method, size, ..., as far as it does."""
    try:
        with safe_open(weights, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{weights}: not a safetensors file ({error}); give weights=random, official or one") from error


def machine() -> dict[str, str]:
    """Commit, hardware and versions; `hardware` names a GPU once a method has used it, `processors` all there are."""
    return {
        "commit": commit(),
        "hardware": gpu_name() or cpu_name(),
        "processors": processors(),
        "threads": threads(),
    } | versions()


@cache
def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "torch": importlib.metadata.version("torch"),
    }


@cache
def commit() -> str:
    """Commit of this checkout, marked when its code was changed since; "unknown" outside of git."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    code = ["status", "--porcelain", "--", "harness", "methods", "conf", "run.py"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, *code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


@cache
def cpu_name() -> str:
    """The processor's model name, the number of its cores and a digest of its instructions, which the name may hide."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = [line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))]
    instructions = f", instructions {digest(flags[0].encode())}" if flags else ""
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{instructions}"


@cache
def processors() -> str:
    """The processor and the GPUs of this machine, used or not."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
    return ", ".join([cpu_name(), *(line.partition(":")[2].strip() for line in lines)])


def threads() -> str:
    """What says how many threads compute: the cores that this process may use, and OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"of {cores} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}"


def device_used() -> str:
    """What computes for this process: the UUID of the GPU that it holds memory on, else "cpu"."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(device):
                return str(torch.cuda.get_device_properties(device).uuid)
    return "cpu"


def gpu_name() -> str:
    """The GPU's name, if a method has used one."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else ""
