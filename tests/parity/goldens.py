"""Where recorded outputs of the official code lie."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests" / "goldens"
FULL = Path(os.environ.get("IVOSBENCH_GOLDENS", ROOT.parent / "shared" / "goldens"))


if "IVOSBENCH_GOLDENS" in os.environ and not FULL.is_dir():
    raise FileNotFoundError(f"IVOSBENCH_GOLDENS={FULL}: no such folder")


def folders(name: str) -> list[Path]:
    """The folders `name` among the goldens carried here and the full set (IVOSBENCH_GOLDENS), where they exist."""
    return [top / name for top in (CARRIED, FULL) if (top / name).is_dir()]
