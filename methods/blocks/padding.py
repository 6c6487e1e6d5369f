"""Padding to what a stride-16 network takes, and back."""

import torch.nn.functional as F
from torch import Tensor


def pad(x: Tensor, multiple: int = 16) -> Tensor:
    """Zeros around ...×H×W until both are multiples; of an odd number the larger half goes to the bottom or right."""
    left, right, top, bottom = margins(x.shape[-2], x.shape[-1], multiple)
    return F.pad(x, (left, right, top, bottom))


def crop(x: Tensor, size: tuple[int, int], multiple: int = 16) -> Tensor:
    """Undo `pad`: the ...×H×W inside of a padded map, size = (H, W)."""
    left, _, top, _ = margins(*size, multiple)
    return x[..., top : top + size[0], left : left + size[1]]


def margins(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Rows and columns to add: left, right, top, bottom."""
    rows, columns = -height % multiple, -width % multiple
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
