"""Where recorded outputs of the official code lie."""

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests" / "goldens"
FULL = Path(os.environ.get("IVOSBENCH_GOLDENS", ROOT.parent / "shared" / "goldens"))


if "IVOSBENCH_GOLDENS" in os.environ and not FULL.is_dir():
    raise FileNotFoundError(f"IVOSBENCH_GOLDENS={FULL}: no such folder")


def recorded(pattern: str) -> list[Any]:
    """The recorded files of a pattern as test parameters: those carried, and the full set's or a skip."""
    import pytest  # only here: recordings are also compared where there is none

    carried, full = (sorted(top.glob(pattern)) for top in (CARRIED, FULL))
    found = [pytest.param(path, id=f"carried-{path.name}") for path in carried]
    if full:
        return found + [pytest.param(path, id=f"full-{path.name}") for path in full]
    reason = f"{FULL} has no {pattern}; IVOSBENCH_GOLDENS names the full set"
    return [*found, pytest.param(None, id="full", marks=pytest.mark.skip(reason=reason))]
