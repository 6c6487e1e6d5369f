"""What a network starts from."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.api import BadInput
from methods.blocks.weights import read_official

RESNET = {"conv1": "conv1", "bn1": "bn1", "res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


@torch.no_grad()
def tie(network: nn.Module, part: str = "", gain: float = 3.0) -> None:
    """Begin with an affinity that tells places apart: alike places of two frames get alike keys at once.

    The memory encoder starts as the query encoder, the key heads as one with filters of mean zero, which leave out
    what all rectified features have in common. gain: over the usual scale, or the affinity is as good as uniform.
    part: of the network, with memory_encoder, query_encoder, memory_head, query_head. In no recipe of the papers.
    """
    memory_network: Any = network.get_submodule(part)
    query, memory = memory_network.query_encoder.state_dict(), memory_network.memory_encoder.state_dict()
    for key, value in query.items():
        (memory[key][:, : value.shape[1]] if value.ndim > 1 else memory[key]).copy_(value)
    key = memory_network.query_head.key
    key.weight.sub_(key.weight.mean(dim=(1, 2, 3), keepdim=True)).mul_(gain)
    key.bias.zero_()
    memory_network.memory_head.key.load_state_dict(key.state_dict())


@torch.no_grad()
def imagenet(network: nn.Module, file: str, part: str = "") -> None:
    """Begin with the features of a classifier, in every trunk: as all four papers do. Further planes and gates stay.

    file: torchvision's resnet50. part: of the network. Raises BadInput if the file is missing, none, or does not fit.
    """
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"{path}: missing; it is torchvision's resnet50, https://pytorch.org/vision (IMAGENET1K_V1)")
    weights = read_official(path)
    if missing := {f"layer{n}.0.conv1.weight" for n in (1, 2, 3, 4)} - weights.keys():
        raise BadInput(f"{path}: key {min(missing)} is missing; it wants torchvision's resnet50")
    for key, value in network.get_submodule(part).state_dict().items():
        place = re.search(r"(?:^|\.)(conv1|bn1|res[2-5])(\..+)$", key)
        theirs = weights.get(RESNET[place[1]] + place[2]) if place else None
        if theirs is not None:
            planes = value[:, : theirs.shape[1]] if value.ndim == 4 else value
            if planes.shape == theirs.shape:
                planes.copy_(theirs)
            elif place and place[1].startswith("res"):
                raise BadInput(f"{path}: does not fit {key}; it wants torchvision's resnet50 and size=paper")
