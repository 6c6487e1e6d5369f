"""The authors' weights (three files of github hkchengrex/MiVOS) under our names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from methods.blocks.weights import read_official, rename
from methods.mivos.network import MiNet

# Ours to theirs, by prefix, the longer ones first.
MODULES = {
    "s2m.trunk.res2": "backbone.layer1",
    "s2m.trunk.res3": "backbone.layer2",
    "s2m.trunk.res4": "backbone.layer3",
    "s2m.trunk": "backbone",
    "s2m.res5": "backbone.layer4",
    "s2m.aspp": "classifier.aspp",
    "s2m.low": "classifier.project",
    "s2m.predict": "classifier.classifier",
    "propagation.memory_encoder.res2": "mask_rgb_encoder.layer1",
    "propagation.memory_encoder.res3": "mask_rgb_encoder.layer2",
    "propagation.memory_encoder.res4": "mask_rgb_encoder.layer3",
    "propagation.memory_encoder": "mask_rgb_encoder",
    "propagation.query_encoder.res2": "rgb_encoder.res2",
    "propagation.query_encoder.res3": "rgb_encoder.layer2",
    "propagation.query_encoder.res4": "rgb_encoder.layer3",
    "propagation.query_encoder": "rgb_encoder",
    "propagation.memory_head.key": "kv_m_f16.key_proj",
    "propagation.memory_head.value": "kv_m_f16.val_proj",
    "propagation.query_head.key": "kv_q_f16.key_proj",
    "propagation.query_head.value": "kv_q_f16.val_proj",
    "propagation.decoder.compress.shortcut": "decoder.compress.downsample",
    "propagation.decoder.compress": "decoder.compress",
    "propagation.decoder.skip8.0": "decoder.up_16_8.skip_conv1",
    "propagation.decoder.skip8.1": "decoder.up_16_8.skip_conv2",
    "propagation.decoder.refine8.unit.shortcut": "decoder.up_16_8.out_conv.downsample",
    "propagation.decoder.refine8.unit": "decoder.up_16_8.out_conv",
    "propagation.decoder.skip4.0": "decoder.up_8_4.skip_conv1",
    "propagation.decoder.skip4.1": "decoder.up_8_4.skip_conv2",
    "propagation.decoder.refine4.unit": "decoder.up_8_4.out_conv",
    "propagation.decoder.predict": "decoder.pred",
    "fusion.widen": "conv1.0",
    "fusion.unit1": "conv2",
    "fusion.unit2": "conv3",
    "fusion.predict": "final_conv",
}


def load(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The authors' files as a state dict of `MiNet("paper")`. files: by the name of the network in it.

    Raises BadInput naming the first key that is missing, unknown or misshapen, or a file that is none.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in MiNet("paper").state_dict().items()}
    state: dict[str, Tensor] = {}
    for network, path in files.items():
        sources = {key: [source(key)] for key in shapes if key.startswith(f"{network}.")}
        state |= rename(read_official(path), sources, shapes, path)
    return state


def source(key: str) -> str:
    """The authors' key for one of ours."""
    ours = next(prefix for prefix in MODULES if key.startswith(f"{prefix}."))
    return MODULES[ours] + key.removeprefix(ours)
