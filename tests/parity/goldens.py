"""Where recorded outputs of the official code lie, and on which device ours are compared with them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests" / "goldens"
FULL = Path(os.environ.get("IVOSBENCH_GOLDENS", ROOT.parent / "shared" / "goldens"))
DEVICE = os.environ.get("IVOSBENCH_DEVICE", "cpu")


if "IVOSBENCH_GOLDENS" in os.environ and not FULL.is_dir():
    raise FileNotFoundError(f"IVOSBENCH_GOLDENS={FULL}: no such folder")


def folders(name: str) -> list[Path]:
    """The folders `name` among the goldens carried here and the full set (IVOSBENCH_GOLDENS), where they exist."""
    return [top / name for top in dict.fromkeys((CARRIED, FULL)) if (top / name).is_dir()]


def recorded(name: str, pattern: str) -> list:
    """The files of the folders `name`, carried and full, as test parameters, and a skip in place of the full ones."""
    files = [path for folder in folders(name) for path in sorted(folder.glob(pattern))]
    ids = [f"{'carried' if CARRIED in path.parents else 'full'}-{path.name}" for path in files]
    found = [pytest.param(path, id=name) for path, name in zip(files, ids, strict=True)]
    absent = pytest.mark.skip(reason=f"{FULL} is not here; IVOSBENCH_GOLDENS names the full set")
    return found if FULL.is_dir() else [*found, pytest.param(None, id="full", marks=absent)]


def here(values: np.ndarray) -> Tensor:
    """An array where the networks are."""
    return torch.from_numpy(values).to(DEVICE)


def there(x: Any) -> np.ndarray:
    """What ours is, as an array in main memory."""
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def note(name: str, kind: str, worst: float, limit: float) -> None:
    """Write down how far ours was off: a line of JSON in the file IVOSBENCH_DEVIATIONS names, if it names one."""
    if file := os.environ.get("IVOSBENCH_DEVIATIONS"):
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        line = {"test": test, "name": name, "kind": kind, "worst": float(worst), "limit": limit}
        with Path(file).open("a") as lines:
            lines.write(json.dumps(line) + "\n")
