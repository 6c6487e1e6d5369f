"""The authors' weights under our names: e120.pth of github seoungwugoh/STM-Interactive, STM_weights.pth of .../STM."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from methods.blocks.trunk import MEAN, STD
from methods.blocks.weights import read_official, rename, take_constants
from methods.stm.network import SpaceTimeMemory, STMInteractive, STMSemiSupervised

# Ours to theirs, by prefix.
MODULES = {
    "memory_encoder": "Encoder_M",
    "query_encoder": "Encoder_Q",
    "memory_head.key": "{memory_head}.Key",
    "memory_head.value": "{memory_head}.Value",
    "query_head.key": "{query_head}.Key",
    "query_head.value": "{query_head}.Value",
    "decoder.compress.0": "Decoder.convFM",
    "decoder.compress.1": "Decoder.ResMM",
    "decoder.skip8.0": "Decoder.RF3.convFS",
    "decoder.skip8.1": "Decoder.RF3.ResFS",
    "decoder.refine8.unit": "Decoder.RF3.ResMM",
    "decoder.skip4.0": "Decoder.RF2.convFS",
    "decoder.skip4.1": "Decoder.RF2.ResFS",
    "decoder.refine4.unit": "Decoder.RF2.ResMM",
    "decoder.predict": "Decoder.pred2",
}


class Names(NamedTuple):
    """What their two files call differently.

    stem: the memory encoder's, a convolution per input, summed: the same as one over the planes side by side
    (Section 3.1.2), here in our order.
    """

    stem: tuple[str, ...]
    memory_head: str
    query_head: str


NAMES: dict[type[SpaceTimeMemory], Names] = {
    STMInteractive: Names(("conv1", "conv1_m", "conv1_p", "conv1_n", "conv1_om"), "KeyValue_M", "KeyValue_Q"),
    STMSemiSupervised: Names(("conv1", "conv1_m", "conv1_o"), "KV_M_r4", "KV_Q_r4"),
}

# In their file; in ours, code.
CONSTANTS = {"Encoder_M.mean": MEAN, "Encoder_M.std": STD, "Encoder_Q.mean": MEAN, "Encoder_Q.std": STD}


def load(path: Path, network: type[STMInteractive | STMSemiSupervised] = STMInteractive) -> dict[str, Tensor]:
    """The authors' file as a state dict of `network("paper")`.

    Raises BadInput naming the first key that is missing, unknown or misshapen, or a file that is none.
    """
    theirs = read_official(path)
    take_constants(theirs, CONSTANTS, path)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in network("paper").state_dict().items()}
    return rename(theirs, {key: sources(key, NAMES[network]) for key in shapes}, shapes, path)


def sources(key: str, names: Names) -> list[str]:
    """The authors' keys for one of ours."""
    if key == "memory_encoder.conv1.weight":
        return [f"Encoder_M.{name}.weight" for name in names.stem]
    ours = next(prefix for prefix in MODULES if key.startswith(f"{prefix}."))
    return [MODULES[ours].format(**names._asdict()) + key.removeprefix(ours)]
