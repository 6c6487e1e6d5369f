"""The authors' weights (ATNet-checkpoint.pth of github yuk6heo/IVOS-ATNet) under our names."""

from pathlib import Path

import torch
from torch import Tensor

from methods.atnet.network import ATNetwork
from methods.blocks.weights import read_official, rename

# Ours to theirs, by prefix, the longer ones first.
DECODER = {
    **{f"aspp.convs.{n}.0": f"aspp_decoder.aspp{n + 1}.atrous_conv" for n in range(4)},
    **{f"aspp.convs.{n}.1": f"aspp_decoder.aspp{n + 1}.bn" for n in range(4)},
    "aspp.convs.4": "aspp_decoder.global_avg_pool",
    "aspp.project.0": "aspp_decoder.conv1",
    "aspp.project.1": "aspp_decoder.bn1",
    "compress.1": "convG0",
    "compress.3": "convG1",
    "compress.5": "convG2",
    "skip8.0": "RF3.convFS1",
    "skip8.1.conv1": "RF3.convFS2",
    "skip8.1.conv2": "RF3.convFS3",
    "refine8.conv1": "RF3.convMM1",
    "refine8.conv2": "RF3.convMM2",
    "skip4.0": "RF2.convFS1",
    "skip4.1.conv1": "RF2.convFS2",
    "skip4.1.conv2": "RF2.convFS3",
    "refine4.conv1": "RF2.convMM1",
    "refine4.conv2": "RF2.convMM2",
    "predict": "lastconv",
}
MODULES = {
    "a_net.encoder.conv1": "encoder_6ch.conv0_6ch",
    "a_net.encoder": "encoder_6ch",
    **{f"a_net.decoder.{ours}": f"decoder_iact.{theirs}" for ours, theirs in DECODER.items()},
    "t_net.encoder.conv1": "encoder_3ch.conv0_3ch",
    "t_net.encoder": "encoder_3ch",
    **{f"t_net.decoder.{ours}": f"decoder_prop.{theirs}" for ours, theirs in DECODER.items()},
    "t_net.converter.halve": "indicator_encoder.conv1x1",
    "t_net.converter": "indicator_encoder",
    "t_net.project": "prev_conv1x1",
    "t_net.fuse": "conv1x1",
}


def load(path: Path) -> dict[str, Tensor]:
    """The authors' file as a state dict of `ATNetwork("paper")`.

    Raises BadInput naming the first key that is missing, unknown or misshapen, or a file that is none.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in ATNetwork("paper").state_dict().items()}
    sources = {}
    for key in shapes:
        ours = next(prefix for prefix in MODULES if key.startswith(f"{prefix}."))
        sources[key] = [MODULES[ours] + key.removeprefix(ours)]
    return rename(read_official(path), sources, shapes, path)
