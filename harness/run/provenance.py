"""Where a score comes from: source, weights, machine."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
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


def weights_of(method: Mapping[str, Any]) -> dict[str, str]:
    """What the weights of a method's config are: {name, digest, training}.

    name is "none" for a method without weights, else the config's `weights`; training says whose it was.
    Raises BadInput when a file is missing.
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
                trained = f"uv run run.py task=train method={method['name']} recipe=ablation"
                raise BadInput(
                    f"{file}: no tiny weights of {method['name']} are kept; say weights=random, or {trained}"
                )
            raise BadInput(
                f"weights={weights}: no such file; say weights=tiny, official, random or a .safetensors file"
            )
    return {
        "name": str(weights),
        "digest": digest(*(file.read_bytes() for file in files)),
        "training": training or training_of(files[0]),
    }


def official_folder() -> Path:
    """Where the authors' weights are looked for: the folder IVOSBENCH_WEIGHTS names, "weights" by default."""
    return Path(os.environ.get("IVOSBENCH_WEIGHTS", "weights"))


def training_of(weights: Path) -> str:
    """Whose training a safetensors file says it holds."""
    return " ".join(metadata(weights).get("training", "the file does not say whose").split())


def metadata(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself: training, method, size, ..., as far as it does."""
    try:
        with safe_open(weights, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{weights}: not a safetensors file ({error}); give weights=random, official or one") from error


@cache
def source_digest(target: str) -> str:
    """Digest of the code a score depends on: `harness.api`, `harness.rules`, what `target`'s package imports of itself.

    target: dotted path of the method's class. None of its code is executed.
    """
    rules = Path(__file__).parents[1] / "rules"
    modules = {"harness.api", *(f"harness.rules.{file.stem}" for file in rules.glob("*.py"))}
    pending = [target.rpartition(".")[0]]
    while pending:
        module = pending.pop()
        if module not in modules:
            modules.add(module)
            pending += own_imports(module)
    return digest(*(file_of(module).read_bytes() for module in sorted(modules)))


def own_imports(module: str) -> Iterator[str]:
    """The modules of the same top-level package that `module` imports."""
    package = module.partition(".")[0]
    here = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file_of(module).read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] == package and find_file(name))


def find_file(module: str) -> Path | None:
    """The file of a module, found without importing anything; None when there is no such module."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not rest else None
    paths = [Path(folder, *rest) for folder in spec.submodule_search_locations]
    files = [file for path in paths for file in (path / "__init__.py", path.with_suffix(".py"))]
    return next((file for file in files if file.is_file()), None)


def file_of(module: str) -> Path:
    """The file of a module that must exist."""
    file = find_file(module)
    if file is None:
        raise BadInput(f"{module}: _target_ names this module, which cannot be found; is its folder on PYTHONPATH?")
    return file


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
