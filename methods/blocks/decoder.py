"""Decoder pieces: residual units and refinement (STM, Section 3.3; Oh et al., CVPR 2018)."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualUnit(nn.Module):
    """Pre-activation residual unit without normalisation (He et al. 2016): x + conv(relu(conv(relu(x)))).

    The shortcut is a 3×3 convolution of x where the channels change. No non-linearity at the end.
    """

    def __init__(self, channels: int, out: int | None = None) -> None:
        super().__init__()
        out = out or channels
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B×channels×h×w. Returns B×out×h×w."""
        return self.conv2(self.conv1(x.relu()).relu_()).add_(self.shortcut(x))


class Compress(nn.Sequential):
    """A convolution and a residual unit: `channels` to `out` at the same size."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv2d(channels, out, 3, padding=1), ResidualUnit(out))


class Refine(nn.Module):
    """One stage of refinement: doubles the size of the coarse map and adds the skip connection.

    aligned: as in `enlarge`.
    """

    def __init__(self, channels: int, out: int | None = None, aligned: bool = False) -> None:
        super().__init__()
        self.unit = ResidualUnit(channels, out)
        self.aligned = aligned

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """coarse: B×channels×h×w; skip: B×channels×2h×2w. Returns B×out×2h×2w."""
        return self.unit(enlarge(coarse, 2, self.aligned).add_(skip))


def enlarge(x: Tensor, factor: int, aligned: bool = False) -> Tensor:
    """Bilinear: B×C×h×w to B×C×fh×fw. aligned: corners are, as in ATNet and IPNet, written for an old PyTorch."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=aligned)
