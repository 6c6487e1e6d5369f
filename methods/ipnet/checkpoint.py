"""The authors' weights (I_e290.pth and P_e290.pth of github seoungwugoh/ivs-demo) under our names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from methods.blocks.trunk import MEAN, STD
from methods.blocks.weights import read_official, rename, take_constants
from methods.ipnet.network import InteractionPropagation

# Ours to theirs, by prefix, the longer ones first.
MODULES = {
    "interaction.encoder.trunk": "Encoder",
    "interaction.encoder": "Encoder",
    "interaction.compress": "Decoder.ResFM",
    "propagation.encoder.trunk": "Encoder",
    "propagation.encoder": "Encoder",
    "propagation.aggregation": "SEFA",
    "propagation.joint": "Decoder.ResFM1",
    "propagation.compress": "Decoder.ResFM2",
}
DECODER = {
    "decoder.skip": "Decoder.RF{}.ResFS",
    "decoder.refine": "Decoder.RF{}.ResMM",
    "decoder.predict": "Decoder.pred{}",
}
# Their stems: a convolution per input, summed.
STEMS = {
    "interaction": ("conv1", "conv1_m", "conv1_p", "conv1_n"),
    "propagation": ("conv1", "conv1_m", "conv1_x"),
}
CONSTANTS = {"Encoder.mean": MEAN, "Encoder.std": STD}  # in their files; in ours, code


def load(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The authors' files as a state dict of `InteractionPropagation("paper")`. files: by the name of the network in it.

    Raises BadInput naming the first key that is missing, unknown or misshapen, or a file that is none.
    """
    with torch.device("meta"):
        network = InteractionPropagation("paper")
    state: dict[str, Tensor] = {}
    for name, path in files.items():
        theirs = read_official(path)
        take_constants(theirs, CONSTANTS, path)
        shapes = {f"{name}.{key}": value.shape for key, value in network.get_submodule(name).state_dict().items()}
        state |= rename(theirs, {key: sources(key) for key in shapes}, shapes, path)
    return state


def sources(key: str) -> list[str]:
    """The authors' keys for one of ours."""
    network, rest = key.split(".", 1)
    if rest == "encoder.trunk.conv1.weight":
        return [f"Encoder.{name}.weight" for name in STEMS[network]]
    if rest == "encoder.trunk.conv1.bias":
        return ["Encoder.conv1_m.bias"]
    for ours, theirs in DECODER.items():
        if rest.startswith(ours):
            level, rest = rest.removeprefix(ours).split(".", 1)
            return [f"{theirs.format(level)}.{rest.removeprefix('unit.').replace('shortcut', 'downsample')}"]
    ours = next(prefix for prefix in MODULES if key.startswith(f"{prefix}."))
    return [MODULES[ours] + key.removeprefix(ours).replace("shortcut", "downsample")]
