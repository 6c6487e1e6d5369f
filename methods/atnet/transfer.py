"""Global and local transfer, and the matching that they replace: Heo et al., ECCV 2020, Sections 3.1 and 4.3.

P pairs of pictures and n objects go together where P is n, one object each, or 1, all of them; h and w are those of the
feature maps. I_t is the target, I_a an annotated frame, I_p the frame before.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LocalSoftmax = Literal["rows", "offsets"]
RADIUS, STRIDE = 4, 2  # of the local region: d offsets of 2 to each side
SIDE = 2 * RADIUS + 1
BLOCK = 12  # columns of a phase that are compared at once; more waste products, fewer copies


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, P×I×K and P×K×J.

    On a CPU one alone is made a 1×1 convolution, rows being pixels: twice as fast.
    """
    if len(a) > 1 or a.device.type != "cpu":
        return a @ b
    pixels, kernels = a.unsqueeze(2).permute(0, 3, 1, 2), b[0].t()[..., None, None]
    return F.conv2d(pixels, kernels, dilation=2).squeeze(3).transpose(1, 2)  # the dilation: see `lay_out`


def global_transition(f_t: Tensor, f_a: Tensor) -> Tensor:
    """A of each pair of pictures, P×hw×hw.

        W = F_t F_aᵀ        (1)

    A is W after a softmax of each column, so over the target. Here j, the pixel of I_a, has the rows: Wᵀ, Aᵀ.
    """
    return product(f_t.flatten(2).transpose(1, 2), f_a.flatten(2)).softmax(dim=1).transpose(1, 2)


def global_transfer(f_t: Tensor, f_a: Tensor, f_o: Tensor) -> Tensor:
    """Carry object features to the target.

        F_a = A F_o        (2)

    f_t, f_a: P×C×h×w; f_o: n×_×h×w. Returns n×_×h×w.
    """
    objects = f_o.reshape(len(f_t), -1, f_a.shape[2] * f_a.shape[3])  # of one picture together
    carried = product(global_transition(f_t, f_a).transpose(1, 2), objects.transpose(1, 2))
    return carried.transpose(1, 2).reshape(*f_o.shape[:2], *f_t.shape[2:])


def similarity(squared: Tensor) -> Tensor:
    """2 / (1 + exp(d²)), in [0, 1]: 1 less FEELVOS's distance (Voigtlaender et al., CVPR 2019, Equation 1).

    A guess, as is that d² is the mean over the channels: what Table 4 was made with is in no text we have.
    """
    return 2 * (-squared).sigmoid()


def global_match(f_t: Tensor, f_a: Tensor, region: Tensor) -> Tensor:
    """The largest similarity of each pixel of I_t to one of the object in I_a, 0 without an object.

    f_t, f_a: P×C×h×w; region: bool n×1×h×w. Returns n×1×h×w.
    """
    t, a = f_t.flatten(2), f_a.flatten(2).transpose(1, 2)
    squared = a.square().mean(dim=2, keepdim=True) + t.square().mean(dim=1, keepdim=True) - 2 * (a @ t) / t.shape[1]
    nearest = squared.masked_fill(~region.flatten(2).transpose(1, 2), torch.inf).amin(dim=1, keepdim=True)
    return similarity(nearest).unflatten(2, f_t.shape[2:])


def neighbours(x: Tensor) -> Tensor:
    """The neighbourhood 𝒩 of each pixel, zeros outside of the picture: n×1×h×w to n×81×h×w, rows of offsets first."""
    return F.unfold(x, SIDE, dilation=STRIDE, padding=STRIDE * RADIUS).unflatten(2, x.shape[2:])


def local_affinity(f_t: Tensor, f_p: Tensor) -> Tensor:
    """W^L of each pair of pictures: inner products, divided by the channels in the released code only.

        W^L(i, j) = f_{t,i}ᵀ f_{p,j},  j ∈ 𝒩_i        (4)

    f_t, f_p: P×C×h×w, h and w even. Returns P×81×h×w, in the order of `neighbours` of I_p.
    """
    (pictures, channels, h, w), half = f_t.shape, f_t.shape[3] // STRIDE
    # Pixels that have offsets of 2 between them share a phase; in it the offsets are dense and rows can be multiplied
    t, p = (
        x.movedim(1, 3).unflatten(2, (half, STRIDE)).unflatten(1, (-1, STRIDE)).permute(1, 0, 2, 4, 3, 5)
        for x in (f_t, f_p)
    )
    rows, more = len(t), -half % BLOCK
    t = F.pad(t, (0, 0, 0, more)).contiguous().unflatten(4, (-1, BLOCK))
    p = F.pad(p, (0, 0, RADIUS, RADIUS + more, 0, 0, 0, 0, 0, 0, RADIUS, RADIUS))
    p = p.unfold(4, BLOCK + 2 * RADIUS, BLOCK).mT.contiguous().mT
    offsets = []
    for dy in range(SIDE):
        products = t @ p[dy : dy + rows]
        offsets += [products.diagonal(dx, -2, -1) for dx in range(SIDE)]
    affinity = (torch.stack(offsets) / channels).flatten(-2)[..., :half]
    # 81, rows, pictures, phase of y, phase of x, columns
    return affinity.permute(2, 0, 1, 3, 5, 4).reshape(pictures, SIDE**2, h, w)


def local_transition(f_t: Tensor, f_p: Tensor, softmax: LocalSoftmax) -> Tensor:
    """A^L of each pair of pictures, P×81×h×w, as `carry` takes it; softmax: as in `Variant`.

    f_t, f_p: P×C×h×w, h and w even.
    """
    if softmax == "rows":
        return local_affinity(f_t, f_p).softmax(dim=2)
    inside = neighbours(torch.ones_like(f_p[:1, :1])) > 0
    return local_affinity(f_p, f_t).masked_fill(~inside, -torch.inf).softmax(dim=1)


def carry(transition: Tensor, p: Tensor, softmax: LocalSoftmax) -> Tensor:
    """A^L p^L, the object's probabilities p in I_p carried to I_t, n×1×h×w, not bounded by 1.

    transition: P×81×h×w, over the neighbourhood in I_p of a pixel of I_t; with "offsets", that in I_t of one of I_p.
    """
    if softmax == "rows":
        return (transition * neighbours(p)).sum(dim=1, keepdim=True)
    return F.fold((transition * p).flatten(2), p.shape[2:], SIDE, dilation=STRIDE, padding=STRIDE * RADIUS)


def local_transfer(f_t: Tensor, f_p: Tensor, p: Tensor, softmax: LocalSoftmax) -> Tensor:
    """`carry` p by the `local_transition` from I_p to I_t."""
    return carry(local_transition(f_t, f_p, softmax), p, softmax)


def local_match(f_t: Tensor, f_p: Tensor, region: Tensor) -> Tensor:
    """The largest similarity of each pixel of I_t to one of the object near it in I_p, 0 without one.

    f_t, f_p: P×C×h×w, h and w even; region: bool n×1×h×w. Returns n×1×h×w.
    """
    t, p = (x.square().mean(dim=1, keepdim=True) for x in (f_t, f_p))
    squared = t + neighbours(p) - 2 * local_affinity(f_t, f_p)
    return similarity(squared.masked_fill(neighbours(region.float()) == 0, torch.inf).amin(dim=1, keepdim=True))
