"""ATNet's two networks, A-Net and T-Net: Heo, Koh, Kim, "Interactive Video Object Segmentation Using Global and Local
Transfer Modules", ECCV 2020; below, "Section", "Equation", "Table" and "Figure" are its. Where the text leaves a
choice, the released networks (github yuk6heo/IVOS-ATNet) made it.

H and W are the padded size everywhere, multiples of 32; h and w are H/16 and W/16; C is 32 times the width. An image
is float32 3×H×W RGB, normalised. P pictures and n objects go together where P is n, one object each, or 1, all of them.
Resizing is bilinear with the corners aligned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP

from harness.api import BadInput
from methods.atnet.transfer import (
    LocalSoftmax,
    carry,
    global_match,
    global_transfer,
    local_match,
    local_transfer,
    local_transition,
)
from methods.blocks.decoder import Compress, ResidualUnit, enlarge
from methods.blocks.options import one_of

Size = Literal["paper", "tiny"]
Local = Literal["off", "r2", "r5"]
Mode = Literal["transfer", "match"]
MatchRegion = Literal["prediction", "scribble"]
SE_REDUCTION = 16
THRESHOLD = 0.8  # Section 3.3: lower probabilities are no object


class Shape(NamedTuple):
    """width: channels of the stem; blocks: of the encoder's stages; decoder: channels of the decoder."""

    width: int
    blocks: tuple[int, int, int, int]
    decoder: int


SHAPES: dict[Size, Shape] = {"paper": Shape(64, (3, 4, 6, 3), 256), "tiny": Shape(8, (2, 2, 2, 2), 32)}


class Variant(NamedTuple):
    """What T-Net transfers, and how (Tables 3 and 4); as it stands, the proposed network. Each wants its own training.

    local: which features the local module compares: those of R2, of R5 ("rear TE"), or "off", no local module.
    local_softmax: "rows" normalises the affinities of an offset over the height of the picture, so the released code;
        "offsets" those of a pixel of I_p over its neighbourhood in I_t, so the text.
    global_mode, local_mode: "transfer", or "match": the largest similarity to a pixel of the object in its place.
    match_region: what the object's pixels in I_a are then: those A-Net predicts, or those with a positive scribble.
    """

    local: Local = "r2"
    local_softmax: LocalSoftmax = "rows"
    global_mode: Mode = "transfer"
    local_mode: Mode = "transfer"
    match_region: MatchRegion = "prediction"

    def check(self) -> None:
        """Raise BadInput naming the first field whose value is none of the above."""
        for (name, value), allowed in zip(
            self._asdict().items(), (Local, LocalSoftmax, Mode, Mode, MatchRegion), strict=True
        ):
            one_of(allowed, **{name: value})


PROPOSED = Variant()


class SEBottleneck(Bottleneck):
    """Bottleneck whose residual is gated per channel by squeeze and excitation (Hu et al., CVPR 2018)."""

    def __init__(self, planes: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        out = self.expansion * width
        changes = stride > 1 or planes != out
        shortcut = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        super().__init__(planes, width, stride, shortcut if changes else None, dilation=dilation)
        self.conv_down = nn.Conv2d(out, out // SE_REDUCTION, 1, bias=False)
        self.conv_up = nn.Conv2d(out // SE_REDUCTION, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: B×planes×h×w. Returns B×4·width×h×w, smaller by the stride."""
        u = self.bn1(self.conv1(x)).relu_()
        u = self.bn2(self.conv2(u)).relu_()
        u = self.bn3(self.conv3(u))
        gate = self.conv_up(self.conv_down(u.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return torch.addcmul(x if self.downsample is None else self.downsample(x), gate, u).relu_()


class Features(NamedTuple):
    """Maps of B inputs. res5: B×C×h×w, res3: B×C/4×H/8×W/8, res2: B×C/8×H/4×W/4."""

    res5: Tensor
    res3: Tensor
    res2: Tensor


class Encoder(nn.Module):
    """SE-ResNet-50 with dilation in place of the last stride (Figure 4a)."""

    def __init__(self, planes: int, shape: Shape) -> None:
        super().__init__()
        width, blocks = shape.width, shape.blocks
        self.conv1 = nn.Conv2d(planes, width, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.res2 = stage(width, width, [1] * blocks[0])
        self.res3 = stage(4 * width, 2 * width, [1] * blocks[1], stride=2)
        self.res4 = stage(8 * width, 4 * width, [1] * blocks[2], stride=2)
        self.res5 = stage(16 * width, 8 * width, [2 ** (i + 1) for i in range(blocks[3])])

    def forward(self, x: Tensor) -> Features:
        """x: B×planes×H×W."""
        res2 = self.res2(self.maxpool(self.bn1(self.conv1(x)).relu_()))
        res3 = self.res3(res2)
        return Features(self.res5(self.res4(res3)), res3, res2)


def stage(planes: int, width: int, dilations: Sequence[int], stride: int = 1) -> nn.Sequential:
    """A bottleneck per dilation, from `planes` to 4·width channels; the first has the stride."""
    first = SEBottleneck(planes, width, stride, dilations[0])
    return nn.Sequential(first, *(SEBottleneck(4 * width, width, dilation=dilation) for dilation in dilations[1:]))


class Decoder(nn.Module):
    """ASPP beside two refine modules, then three convolutions (Figure 4a); D is its width.

    skip8 and skip4 are the refine modules' own view of R3 and R2. Where the two are applied is left to the network.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, d = 32 * shape.width, shape.decoder
        self.aspp = ASPP(channels, (6, 12, 18), d)
        convolutions = (nn.Conv2d(planes, d, 3, padding=1) for planes in (channels, d, d))
        self.compress = nn.Sequential(*(layer for conv in convolutions for layer in (nn.ReLU(), conv)))
        self.skip8 = Compress(channels // 4, d)
        self.skip4 = Compress(channels // 8, d)
        self.refine8 = ResidualUnit(d)
        self.refine4 = ResidualUnit(d)
        self.predict = nn.Sequential(
            nn.Conv2d(2 * d, d, 3, padding=1, bias=False),
            nn.BatchNorm2d(d),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),  # a guess: the numbering of the released layers leaves room for something here
            nn.Conv2d(d, d, 3, padding=1, bias=False),
            nn.BatchNorm2d(d),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(d, 1, 1),
        )

    def forward(self, y: Tensor, skip8: Tensor, skip4: Tensor, q: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode n objects: y is n×C×h×w, the skips P×D×H/8×W/8 and P×D×H/4×W/4, q the local module's answer, n×1×_×_.

        Returns logits n×H×W and the mid-layer feature, n×2D×H/4×W/4.
        """
        m = self.refine8(enlarge(self.compress(y), 2, aligned=True).add_(skip8))
        if q is not None:
            m.add_(resize(q, m), alpha=0.5)  # the factor is the released code's
        m = self.refine4(enlarge(m, 2, aligned=True).add_(skip4))
        if q is not None:
            m.add_(resize(q, m), alpha=0.5)
        context = self.aspp(y)
        mid = torch.cat((m, enlarge(context, 4, aligned=True)), dim=1)
        first = cast(nn.Conv2d, self.predict[0])  # of `mid`; half of it is cheaper before the context is enlarged
        of_m, of_context = first.weight.chunk(2, dim=1)
        x = F.conv2d(m, of_m, first.bias, padding=1).add_(enlarged_convolution(context, of_context, 4))
        return enlarge(self.predict[1:](x), 4, aligned=True).squeeze(1), mid


class Annotated(NamedTuple):
    """A-Net's answer for n objects. logits: n×H×W; mid: n×2D×H/4×W/4, of the decoder; deep: n×C×h×w, R5."""

    logits: Tensor
    mid: Tensor
    deep: Tensor


class ANet(nn.Module):
    """Annotation network: the objects of an annotated frame by the user's scribbles (Section 3.1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(6, shape)
        self.decoder = Decoder(shape)

    def forward(self, image: Tensor, planes: Tensor) -> Annotated:
        """Segment n objects, each on its own, in one image or n: 3×H×W or n×3×H×W.

        planes: n×3×H×W in [0, 1]: the mask of the last round, 0.5 everywhere in the first; positive and negative
        scribbles, the latter 0 in the first.
        """
        maps = self.encoder(torch.cat((image.expand(len(planes), -1, -1, -1), planes), dim=1))
        logits, mid = self.decoder(maps.res5, self.decoder.skip8(maps.res3), self.decoder.skip4(maps.res2))
        return Annotated(logits, mid, maps.res5)


class Converter(nn.Module):
    """The object feature F_o, from A-Net's mid-layer feature and R5 (Section 3.1).

    The text has max-pooling, the released network strides.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.block1 = SEBottleneck(2 * shape.decoder, 4 * width, stride=2)
        self.block2 = SEBottleneck(16 * width, 8 * width, stride=2)
        self.halve = nn.Conv2d(64 * width, 32 * width, 1)

    def forward(self, annotated: Annotated) -> Tensor:
        """Returns n×C×h×w."""
        return self.halve(torch.cat((self.block2(self.block1(annotated.mid)), annotated.deep), dim=1))


class Picture(NamedTuple):
    """What T-Net needs of P pictures, whatever the objects and the round, so it is computed once.

    deep: F, P×C×h×w; local: F^L, P×C/8 at the size of R2 or R5, None without a local module; skip8, skip4: P×D×H/8×W/8
    and P×D×H/4×W/4, the decoder's own view of the shallow maps.
    """

    deep: Tensor
    local: Tensor | None
    skip8: Tensor
    skip4: Tensor

    def to(self, device: torch.device) -> "Picture":
        """The same on another device."""
        local = None if self.local is None else self.local.to(device)
        return Picture(self.deep.to(device), local, self.skip8.to(device), self.skip4.to(device))


class Entry(NamedTuple):
    """One annotation. deep: F_a, P×C×h×w. objects: F_o as the fusion takes it, n×C×h×w; for matching, n×1×h×w bool."""

    deep: Tensor
    objects: Tensor


@dataclass
class Kept:
    """What T-Net keeps of a target for later rounds, on a device: none of it will change.

    own: the picture's part of the fusion, P×C×h×w. total: the sum of A F_o, fused, over the first `count` annotations,
    n×C×h×w; for matching, the largest similarity to them, n×1×h×w. transitions: A^L, P×81 at the size of F^L, of the
    neighbour on each side.
    """

    device: torch.device
    own: Tensor | None = None
    total: Tensor | None = None
    count: int = 0
    transitions: dict[int, Tensor] = field(default_factory=dict)


class Transferred(NamedTuple):
    """T-Net's answer for n objects. logits: n×H×W; q: A^L p^L, n×1 at the size of F^L, None without a local module.

    q is what the auxiliary loss compares with the down-sampled ground truth. It is not bounded by 1.
    """

    logits: Tensor
    q: Tensor | None


class TNet(nn.Module):
    """Transfer network: the objects of a target frame by those of the annotated frames and the one before."""

    def __init__(self, shape: Shape, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        channels = 32 * shape.width
        self.encoder = Encoder(3, shape)
        self.decoder = Decoder(shape)
        if variant.global_mode == "transfer":
            self.converter = Converter(shape)
        if variant.local != "off":
            self.project = nn.Conv2d(channels // 8 if variant.local == "r2" else channels, channels // 8, 1)
        self.fuse = nn.Conv2d(channels + (channels if variant.global_mode == "transfer" else 1), channels, 1)

    def encode(self, image: Tensor) -> Picture:
        """Embed P pictures, P×3×H×W, or one, 3×H×W."""
        maps = self.encoder(image if image.dim() == 4 else image[None])
        source = {"off": None, "r2": maps.res2, "r5": maps.res5}[self.variant.local]
        local = None if source is None else self.project(source)
        return Picture(maps.res5, local, self.decoder.skip8(maps.res3), self.decoder.skip4(maps.res2))

    def remember(self, picture: Picture, planes: Tensor, annotated: Annotated) -> Entry:
        """What targets need of n objects in an annotated frame. planes, annotated: what A-Net was given and answered.

        The fusion is linear, so that its part in F_o is played here, once, and not after the transfer at each target.
        """
        if self.variant.global_mode == "transfer":
            return Entry(picture.deep, self.fuse_objects(self.converter(annotated)).contiguous())
        predicted = self.variant.match_region == "prediction"
        region = annotated.logits.sigmoid() > THRESHOLD if predicted else planes[:, 1] > 0.5
        return Entry(picture.deep, shrink(region.unsqueeze(1), picture.deep))

    def forward(
        self,
        target: Picture,
        previous: Picture,
        p: Tensor,
        memory: Sequence[Entry],
        kept: Kept | None = None,
        side: int = 0,
    ) -> Transferred:
        """Segment n objects of the target(s).

        previous, p: the frame next to it towards the annotated one and the objects' probabilities there, n×H×W.
        memory: of the N annotated frames. kept: what is known of the target, which this adds to; side: on which of its
        sides `previous` is.
        """
        with record_function("global_transfer"):
            y = self.fused_picture(target.deep, kept) + self.transferred_objects(target.deep, memory, kept)
        with record_function("local_transfer"):
            q = self.transferred_mask(target.local, previous.local, p.unsqueeze(1), kept, side)
        with record_function("decode"):
            logits, _ = self.decoder(y, target.skip8, target.skip4, q)
        return Transferred(logits, q)

    def fused_picture(self, f_t: Tensor, kept: Kept | None) -> Tensor:
        """The part of the fusion that is the target picture's, P×C×h×w."""
        if kept is not None and kept.own is not None:
            return kept.own.to(f_t.device)
        own = pointwise(f_t, self.fuse.weight[:, : f_t.shape[1]], self.fuse.bias)
        if kept is not None:
            kept.own = own.to(kept.device)
        return own

    def fuse_objects(self, f_g: Tensor) -> Tensor:
        """The part of the fusion that is not the target picture's: of F_g, n×_×h×w to n×C×h×w."""
        return pointwise(f_g, self.fuse.weight[:, len(self.fuse.weight) :])

    def transferred_objects(self, f_t: Tensor, memory: Sequence[Entry], kept: Kept | None) -> Tensor:
        """F_g of N annotated frames, fused: n×C×h×w.

        F_g = 1/N Σ_i A^(i) F_o^(i)        (3)
        """
        transfers = self.variant.global_mode == "transfer"
        one, join = (global_transfer, torch.add) if transfers else (global_match, torch.maximum)
        known = 0 if kept is None else kept.count
        parts = [one(f_t, *entry) for entry in memory[known:]]
        if kept is not None and kept.total is not None:
            parts.insert(0, kept.total.to(f_t.device))
        total = reduce(join, parts)
        if kept is not None:
            kept.total, kept.count = total.to(kept.device), len(memory)
        return total / len(memory) if transfers else self.fuse_objects(total)

    def transferred_mask(
        self, f_t: Tensor | None, f_p: Tensor | None, p: Tensor, kept: Kept | None, side: int
    ) -> Tensor | None:
        """A^L p^L, or what stands in its place. p: n×1×H×W. Returns n×1 at the size of F^L."""
        if f_t is None or f_p is None:
            return None
        if self.variant.local_mode == "match":
            return local_match(f_t, f_p, shrink(p > THRESHOLD, f_p))
        softmax, p = self.variant.local_softmax, resize(p, f_p)
        if kept is None:
            return local_transfer(f_t, f_p, p, softmax)
        if side not in kept.transitions:
            kept.transitions[side] = local_transition(f_t, f_p, softmax).to(kept.device)
        return carry(kept.transitions[side].to(p.device), p, softmax)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, corners aligned: B×C×_×_ to the height and width of another map."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def shrink(region: Tensor, like: Tensor) -> Tensor:
    """A region, bool n×1×_×_, at the size of another map: whatever it touches there."""
    return F.adaptive_max_pool2d(region.float(), like.shape[-2:]) > 0.5


def enlarged_convolution(x: Tensor, weight: Tensor, factor: int) -> Tensor:
    """F.conv2d(enlarge(x, factor, aligned=True), weight, padding=1), a fifth of the products: channels are mixed first.

    x: n×C×h×w; weight: D×C×3×3. Returns n×D×fh×fw.
    """
    (n, _, h, w), d = x.shape, len(weight)
    taps = pointwise(x, weight.permute(2, 3, 0, 1).reshape(9 * d, -1, 1, 1))
    taps = taps.unflatten(1, (3, 3, d)).permute(0, 1, 4, 2, 5, 3)  # n, tap of y, y, tap of x, x, channels
    y = enlarged_taps(taps, h, factor) @ taps.reshape(n, 3 * h, -1)
    return (enlarged_taps(taps, w, factor) @ y.view(n, factor * h, 3 * w, d)).permute(0, 3, 1, 2)


def enlarged_taps(like: Tensor, length: int, factor: int) -> Tensor:
    """What 3 taps at each place of an enlarged axis see of the axis: fL×3L, zeros beyond the borders."""
    ones = torch.eye(length, device=like.device).to(like)[None]
    weights = F.interpolate(ones, scale_factor=factor, mode="linear", align_corners=True).squeeze(0)
    seen = F.pad(weights, (1, 1)).unfold(1, factor * length, 1)  # L, 3, fL
    return seen.permute(2, 1, 0).flatten(1)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1×1 convolution. Its dilation means nothing, but on a CPU torch plays it twice as fast then (`lay_out`)."""
    return F.conv2d(x, weight, bias, dilation=2)


class ATNetwork(nn.Module):
    """The two, side by side (Figure 3): A-Net is trained first, T-Net on its answers.

    size: "paper" is the released network, 136 500 930 parameters; "tiny" is the same narrower, for a CPU.
    """

    def __init__(self, size: Size = "paper", variant: Variant = PROPOSED) -> None:
        super().__init__()
        if size not in SHAPES:
            raise BadInput(f"size={size}: not of ATNet; choose one of {', '.join(SHAPES)}")
        variant.check()
        self.a_net = ANet(SHAPES[size])
        self.t_net = TNet(SHAPES[size], variant)
