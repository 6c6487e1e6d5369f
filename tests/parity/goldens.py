"""Where recorded outputs of the official code lie, and the weights they were recorded with."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.proc_weights import fill, fingerprint

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


def manifest(network: str) -> dict[str, Any]:
    """What is known of an authors' file: keys, shapes, counts."""
    (path,) = (CARRIED / "networks").glob(f"*/{network}.manifest.json")
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def procedural(network: str) -> dict[str, Tensor]:
    """A state dict with the authors' keys and the weights that recordings were made with, checked by fingerprint."""
    about = manifest(network)
    state = fill(network, {key: tuple(shape) for key, shape, *_ in about["keys"]})
    wanted = about.get("procedural_fingerprint") or about["proc_weights"]["fingerprint"]
    if fingerprint(state) != wanted:
        raise ValueError(f"{network}: procedural weights are {fingerprint(state)}, the recordings' {wanted}")
    return {key: torch.from_numpy(values) for key, values in state.items()}
