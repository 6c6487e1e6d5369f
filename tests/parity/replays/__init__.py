"""Recordings of the authors' networks and sessions, played again by ours, one module per network.

write: files like the authors', with the weights of the recordings. build: our method with them. REPLAYS: by the start
of a recording's file name, what plays it: takes the recording, and takes out of it what has no counterpart here;
returns our outputs by the recording's names, less out_ and the marks of thinning.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.goldens import CARRIED
from tests.proc_weights import fill, fingerprint

THINNED = re.compile(r"_(ch|step|s)(\d+)(?=_|$)|_s(?=_|$)")


def find(name: str, ours: Mapping[str, Any]) -> Any:
    """Our output of a recorded name: of that name, or of it without the marks of thinning."""
    if name in ours:
        return ours[name]
    plain = THINNED.sub("", name)
    return ours[plain] if plain in ours else ours[plain.removesuffix("_sum")]


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
