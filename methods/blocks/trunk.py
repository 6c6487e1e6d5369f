"""The backbone: a bottleneck ResNet up to stride 16."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """Maps of one frame batch. res4: B×16w×h/16×w/16, res3: B×8w×h/8×w/8, res2: B×4w×h/4×w/4, for width w."""

    res4: Tensor
    res3: Tensor
    res2: Tensor


class Trunk(nn.Module):
    """ResNet (He et al. 2016) up to res4; with the default width and blocks, ResNet-50.

    planes: input channels. width: channels of the stem, 1/16 of those of res4. blocks: per stage.
    Extra input planes widen the first convolution, "implanting additional filter channels" (STM, Section 3.1.2).
    bias: whether its convolutions have one, as in the memory encoder of MiVOS.
    """

    def __init__(
        self, planes: int = 3, width: int = 64, blocks: tuple[int, int, int] = (3, 4, 6), bias: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.res2 = stage(width, width, blocks[0], stride=1)
        self.res3 = stage(4 * width, 2 * width, blocks[1], stride=2)
        self.res4 = stage(8 * width, 4 * width, blocks[2], stride=2)
        for conv in self.modules():
            if bias and isinstance(conv, nn.Conv2d):
                conv.bias = nn.Parameter(torch.zeros(conv.out_channels))

    def forward(self, x: Tensor) -> Features:
        """x: B×planes×H×W, H and W multiples of 16, RGB planes normalised."""
        res2 = self.res2(self.maxpool(self.bn1(self.conv1(x)).relu_()))
        res3 = self.res3(res2)
        return Features(self.res4(res3), res3, res2)


def stage(planes: int, width: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """`blocks` bottlenecks from `planes` to 4·width channels; the first has the stride and a projected shortcut.

    dilation: of all but the first, as torchvision has it where it trades a stride for dilation.
    """
    out = Bottleneck.expansion * width
    shortcut = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    rest = (Bottleneck(out, width, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(planes, width, stride, shortcut), *rest)


def normalise(frames: Tensor) -> Tensor:
    """RGB in [0, 1], B×3×H×W, to zero mean and unit variance over ImageNet."""
    mean, std = (torch.tensor(c, device=frames.device).view(3, 1, 1) for c in (MEAN, STD))
    return (frames - mean) / std
