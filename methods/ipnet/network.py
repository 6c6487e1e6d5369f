"""Interaction and propagation networks: Oh, Lee, Xu, Kim, "Fast User-Guided Video Object Segmentation by
Interaction-and-Propagation Networks", CVPR 2019; below, "Section", "Figure" and "Equation" are those of its short form,
"Fast User-Guided Video Object Segmentation by Deep Networks", DAVIS Challenge 2018. Where the text leaves a choice, the
released networks (github seoungwugoh/ivs-demo) made it.

Both networks see a picture through a square window of S pixels a side on the region of interest. B pictures are taken
at a time, of any size H×W, one object in each: float32 B×3×H×W RGB in [0, 1] with planes B×H×W in [0, 1].
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from harness.api import BadInput
from methods.blocks.decoder import Refine, ResidualUnit, enlarge
from methods.blocks.trunk import Trunk, normalise, stage

Size = Literal["paper", "tiny"]


class Shape(NamedTuple):
    """width: of the trunks' stems; blocks: of their stages. Channels: decoder: of the decoder; joint: where reference
    and picture meet. window: S, a multiple of 32.
    """

    width: int
    blocks: tuple[int, int, int, int]
    decoder: int
    joint: int
    window: int


SHAPES: dict[Size, Shape] = {
    "paper": Shape(64, (3, 4, 6, 3), decoder=256, joint=1024, window=256),
    "tiny": Shape(8, (2, 2, 2, 2), decoder=32, joint=64, window=128),
}


def region(planes: Tensor, minimum: int) -> Tensor:
    """The region of interest of each picture: what is 0.49 or more in any of its planes, with a margin around.

    planes: B×P×H×W. minimum: pixels to which a shorter side grows before it is scaled by 1.5. Where nothing is marked,
    the whole picture is. Returns B×4: y, x of the centre, height, width; up to 5 pixels beyond the border.
    """
    marked = (planes >= 0.49).any(dim=1)
    y, height = interval(marked.any(dim=2), minimum)
    x, width = interval(marked.any(dim=1), minimum)
    return torch.stack((y, x, height, width), dim=1)


def interval(marked: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    """`region` along one axis. marked: bool B×L. Returns centres and extents, both B."""
    length = marked.shape[1]
    at = torch.arange(length, device=marked.device)
    some = marked.any(dim=1)
    first = torch.where(marked, at, length).amin(dim=1) * some
    last = torch.where(marked, at, 0).amax(dim=1) + length * ~some  # one too far: so the released code
    missing = (minimum - (last - first)).clamp(min=0) // 2
    first, last = first - missing, last + missing
    margin = 0.25 * (last - first + 1)
    low, high = (first - margin).clamp(-5, length + 5), (last + margin).clamp(-5, length + 5)
    return (low + high) / 2, high - low + 1


def into_window(x: Tensor, box: Tensor, window: int) -> Tensor:
    """What a square window sees of a box, bilinear, 0 beyond the border. x: B×C×H×W, box: B×4 as of `region`.

    Returns B×C×S×S.
    """
    centre, extent = box.split(2, dim=1)
    last = box.new_tensor(x.shape[-2:]) - 1
    return sample(x, extent / last, (2 * centre - last) / last, (window, window))


def out_of_window(x: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The window put back into its picture, bilinear, 0 outside of the box. x: B×C×S×S, size: (H, W).

    Not the exact inverse of `into_window`: so the released code. Returns B×C×H×W.
    """
    centre, extent = box.split(2, dim=1)
    length = box.new_tensor(size)
    return sample(x, length * extent.reciprocal(), (length - 1 - 2 * centre) / extent, size)


def sample(x: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """x, B×C×h×w, at scale·u + shift for the u of a map of this size; both run from −1 to 1, corner to corner.

    scale, shift: B×2, of y and x. Returns B×C×size.
    """
    theta = torch.cat((torch.diag_embed(scale.flip(1)), shift.flip(1).unsqueeze(2)), dim=2)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would be half a pixel off
        grid = F.affine_grid(theta.float(), [len(x), 1, *size], align_corners=True)
        return F.grid_sample(x.float(), grid, align_corners=True)


class Maps(NamedTuple):
    """What the encoder sees in a window. For width w, res5: B×32w×S/32×S/32, res4: B×16w×S/16×S/16, res3:
    B×8w×S/8×S/8, res2: B×4w×S/4×S/4.
    """

    res5: Tensor
    res4: Tensor
    res3: Tensor
    res2: Tensor


class Stem(nn.Conv2d):
    """The first convolution, additional filters implanted for the planes beside RGB (Section 2, "Network structure").

    Each input has its own and they are summed, as by the authors: one over all is the same but for rounding, which a
    session amplifies, for each neighbour's mask is rounded to 0 or 1.
    """

    def __init__(self, planes: int, out: int) -> None:
        super().__init__(3 + planes, out, 7, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """x: B×(3+planes)×S×S. Returns B×out×S/2×S/2."""
        inputs = [3] + [1] * (self.in_channels - 3)
        biases = [None, self.bias] + [None] * (self.in_channels - 4)  # that of the first plane, the mask
        parts = zip(x.split(inputs, dim=1), self.weight.split(inputs, dim=1), biases, strict=True)
        rgb, *planes = (F.conv2d(part, weight, bias, stride=2, padding=3) for part, weight, bias in parts)
        return sum(planes, start=rgb)


class Encoder(nn.Module):
    """ResNet up to res5."""

    def __init__(self, planes: int, shape: Shape) -> None:
        super().__init__()
        self.trunk = Trunk(3 + planes, shape.width, shape.blocks[:3])
        self.trunk.conv1 = Stem(planes, shape.width)
        self.res5 = stage(16 * shape.width, 8 * shape.width, blocks=shape.blocks[3], stride=2)

    def forward(self, x: Tensor) -> Maps:
        """x: windows B×(3+planes)×S×S, RGB in [0, 1] first."""
        rgb, planes = x[:, :3], x[:, 3:]  # normalised after the window: beyond the border it is black, not mean grey
        res4, res3, res2 = self.trunk(torch.cat((normalise(rgb), planes), dim=1))
        return Maps(self.res5(res4), res4, res3, res2)


class Decoder(nn.Module):
    """A feature pyramid of residual units, with a prediction at each of its levels (Figure 1 d and e)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, channels = shape.width, shape.decoder
        self.skip4 = ResidualUnit(16 * width, channels)
        self.skip3 = ResidualUnit(8 * width, channels)
        self.skip2 = ResidualUnit(4 * width, channels)
        self.refine4 = Refine(channels, aligned=True)
        self.refine3 = Refine(channels, aligned=True)
        self.refine2 = Refine(channels, aligned=True)
        self.predict5 = nn.Conv2d(channels, 2, 3, padding=1)
        self.predict4 = nn.Conv2d(channels, 2, 3, padding=1)
        self.predict3 = nn.Conv2d(channels, 2, 3, padding=1)
        self.predict2 = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, m5: Tensor, maps: Maps) -> tuple[Tensor, ...]:
        """m5: B×D×S/32×S/32. Returns five maps of logits, background and object: B×2 of S, S/4, S/8, S/16, S/32."""
        m4 = self.refine4(m5, self.skip4(maps.res4))
        m3 = self.refine3(m4, self.skip3(maps.res3))
        m2 = self.refine2(m3, self.skip2(maps.res2))
        finest = self.predict2(m2.relu())
        coarser = self.predict3(m3.relu()), self.predict4(m4.relu()), self.predict5(m5.relu())
        return enlarge(finest, 4, aligned=True), finest, *coarser


class Output(NamedTuple):
    """What a network says. p: the object's probability, B×H×W, 0 outside of the box. logits: in the window, as of
    `Decoder`; all but the first are for the training loss. res5: as of `Maps`. box: B×4, as of `region`.
    """

    p: Tensor
    logits: tuple[Tensor, ...]
    res5: Tensor
    box: Tensor


class InteractionNet(nn.Module):
    """A mask from strokes and the mask so far (Figure 1 a). roi: see `InteractionPropagation`."""

    def __init__(self, shape: Shape, roi: bool) -> None:
        super().__init__()
        self.window, self.roi = shape.window, roi
        self.encoder = Encoder(3, shape)
        self.compress = ResidualUnit(32 * shape.width, shape.decoder)
        self.decoder = Decoder(shape)

    def forward(self, frames: Tensor, mask: Tensor, positive: Tensor, negative: Tensor) -> Output:
        """frames: B×3×H×W; mask: the probability so far, positive and negative: strokes in {0, 1}, all B×H×W."""
        planes = torch.stack((mask, positive, negative), dim=1)
        box = region(planes * self.roi, self.window // 2)
        window = into_window(torch.cat((frames, planes), dim=1), box, self.window)
        with record_function("encode"):
            maps = self.encoder(window)
        with record_function("decode"):
            logits = self.decoder(self.compress(maps.res5), maps)
        return Output(probability(logits[0], box, mask.shape[1:]), logits, maps.res5, box)


class Reference(NamedTuple):
    """What the reference of a round is to `Joint`, the same for all frames.

    within, beside: its part in the first convolution and in the shortcut, B×J×S/32×S/32. weights: of the picture's
    part of the two, J×C×3×3 in one piece.
    """

    within: Tensor
    beside: Tensor
    weights: tuple[Tensor, Tensor]

    def repeat(self, times: int) -> "Reference":
        """The same for more frames, all objects of a frame together."""
        return Reference(self.within.repeat(times, 1, 1, 1), self.beside.repeat(times, 1, 1, 1), self.weights)


class Joint(nn.Module):
    """Where reference and picture meet: a `ResidualUnit` of the two, one after the other.

    Convolutions are linear, so that the reference's half of the first two is done once per round.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(2 * channels, out, 3, padding=1)

    def refer(self, reference: Tensor) -> Reference:
        """The half of a reference, B×C×S/32×S/32."""
        parts, weights = [], []
        for x, layer in ((reference.relu(), self.conv1), (reference, self.shortcut)):
            own, others = layer.weight.chunk(2, dim=1)
            parts.append(F.conv2d(x, own, layer.bias, padding=1))
            weights.append(others.contiguous(memory_format=torch.channels_last))
        return Reference(parts[0], parts[1], (weights[0], weights[1]))

    def forward(self, reference: Reference, x: Tensor) -> Tensor:
        """x: B×C×S/32×S/32, the picture's. Returns B×J×S/32×S/32."""
        first, second = reference.weights
        u = (reference.within + convolution(x.relu(), first)).relu_()
        return reference.beside + convolution(x, second) + convolution(u, self.conv2.weight, self.conv2.bias)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) for kernels 3×3, on a CPU for few pixels and many weights.

    There oneDNN would first lay the weights out anew, which takes longer than to use them: now they are the pixels.
    """
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, padding=1)
    seen = F.pad(x, (1, 1, 1, 1)).movedim(1, 3).unfold(1, 3, 1).unfold(2, 3, 1).movedim(3, 5)  # B, h, w, 3, 3, C
    kernels = seen.reshape(-1, weight[0].numel(), 1, 1)
    pixels = weight.movedim(1, 3).flatten(1)[None, :, None].movedim(3, 1)
    y = F.conv2d(pixels, kernels, dilation=2).view(*seen.shape[:3], -1).movedim(3, 1)  # the dilation: see `lay_out`
    return y if bias is None else y + bias[:, None, None]


class FeatureAggregation(nn.Module):
    """Features of the annotated frames of this round and of those before, weighted per channel (Figure 1 c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * channels, channels)
        self.fc2 = nn.Linear(channels, 2 * channels)

    def weights(self, current: Tensor, older: Tensor) -> Tensor:
        """Both: B×C×h×w. Returns B×C×2, sums of 1."""
        x = torch.cat((current, older), dim=1).mean(dim=(2, 3))
        return self.fc2(self.fc1(x).relu()).unflatten(1, (-1, 2)).softmax(dim=2)

    def forward(self, current: Tensor, older: Tensor) -> Tensor:
        """Both: B×C×h×w, like what is returned."""
        first, second = self.weights(current, older)[..., None, None].unbind(dim=2)
        return first * current + second * older


class PropagationNet(nn.Module):
    """A mask from a neighbour's, the last round's and the reference (Figure 1 b). roi: see `InteractionPropagation`."""

    def __init__(self, shape: Shape, roi: bool) -> None:
        super().__init__()
        self.window, self.roi = shape.window, roi
        self.encoder = Encoder(2, shape)
        self.aggregation = FeatureAggregation(32 * shape.width)
        self.joint = Joint(32 * shape.width, shape.joint)
        self.compress = ResidualUnit(shape.joint, shape.decoder)
        self.decoder = Decoder(shape)

    def refer(self, current: Tensor, older: Tensor | None = None) -> Tensor:
        """The reference of a round, the same for all of its frames: B×32w×S/32×S/32.

        current: the interaction network's res5; older: the reference of the last round, if there was one.
        """
        return current if older is None else self.aggregation(current, older)

    def forward(self, frames: Tensor, previous: Tensor, neighbour: Tensor, reference: Tensor | Reference) -> Output:
        """frames: B×3×H×W; previous: their probability after the last round; neighbour: the probability in the frame
        next to them, both B×H×W; reference: of the round, as it is or as `Joint` prepared it.
        """
        if isinstance(reference, Tensor):
            reference = self.joint.refer(reference)
        planes = torch.stack((previous, neighbour.round()), dim=1)  # only the neighbour's is made a hard mask
        box = region(planes * self.roi, self.window // 2)
        window = into_window(torch.cat((frames, planes), dim=1), box, self.window)
        with record_function("encode"):
            maps = self.encoder(window)
        with record_function("decode"):
            logits = self.decoder(self.compress(self.joint(reference, maps.res5)), maps)
        return Output(probability(logits[0], box, previous.shape[1:]), logits, maps.res5, box)


def probability(logits: Tensor, box: Tensor, size: torch.Size) -> Tensor:
    """The object's probability in its picture, B×H×W. logits: B×2×S×S, box: B×4, size: (H, W)."""
    height, width = size
    return out_of_window(logits.float().softmax(dim=1)[:, 1:], box, (height, width)).squeeze(1)


class InteractionPropagation(nn.Module):
    """The two networks, trained jointly, kept in one file.

    size: "paper" is the released networks, 190 086 224 parameters; "tiny" is the same narrower, 1 950 360, for CPUs.
    roi: the window is on the region of interest, or on the whole picture.
    """

    def __init__(self, size: Size = "paper", roi: bool = True) -> None:
        super().__init__()
        if size not in SHAPES:
            raise BadInput(f"size={size}: not of IPNet; choose one of {', '.join(SHAPES)}")
        self.interaction = InteractionNet(SHAPES[size], roi)
        self.propagation = PropagationNet(SHAPES[size], roi)
