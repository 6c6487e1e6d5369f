"""Where recorded outputs of the official code lie."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests" / "goldens"
FULL = Path(os.environ.get("IVOSBENCH_GOLDENS", ROOT.parent / "shared" / "goldens"))


if "IVOSBENCH_GOLDENS" in os.environ and not FULL.is_dir():
    raise FileNotFoundError(f"IVOSBENCH_GOLDENS={FULL}: no such folder")


def folders(name: str) -> list[Path]:
    """The folders `name` among the goldens carried here and the full set (IVOSBENCH_GOLDENS), where they exist."""
    return [top / name for top in (CARRIED, FULL) if (top / name).is_dir()]


def recorded(name: str, pattern: str) -> list:
    """The files of the folders `name`, carried and full, as test parameters, and a skip in place of the full ones."""
    files = [path for folder in folders(name) for path in sorted(folder.glob(pattern))]
    ids = [f"{'carried' if CARRIED in path.parents else 'full'}-{path.name}" for path in files]
    found = [pytest.param(path, id=name) for path, name in zip(files, ids, strict=True)]
    absent = pytest.mark.skip(reason=f"{FULL} is not here; IVOSBENCH_GOLDENS names the full set")
    return found if FULL.is_dir() else [*found, pytest.param(None, id="full", marks=absent)]
