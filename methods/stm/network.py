"""Space-Time Memory networks, with masks or scribbles: Oh, Lee, Xu, Kim, "Space-Time Memory Networks for Video Object
Segmentation with User Guidance", TPAMI 2020; below, "Section", "Equation" and "Table" are its. Where the text leaves a
choice, the released networks (github seoungwugoh/STM and seoungwugoh/STM-Interactive) made it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from harness.api import BadInput
from methods.blocks.decoder import Compress, Refine, enlarge
from methods.blocks.memory import KeyValue, KeyValueHead, read_memory
from methods.blocks.padding import crop, pad
from methods.blocks.trunk import Features, Trunk, normalise

Size = Literal["paper", "tiny"]
Sharing = Literal["none", "late", "early"]
STAGES = ("res2", "res3", "res4")


class Shape(NamedTuple):
    """width: of the trunk's stem; blocks: of its stages; decoder: channels of the decoder."""

    width: int
    blocks: tuple[int, int, int]
    decoder: int


SHAPES: dict[Size, Shape] = {"paper": Shape(64, (3, 4, 6), 256), "tiny": Shape(16, (2, 2, 2), 64)}


class Query(NamedTuple):
    """What the network needs of B frames to segment any object in them.

    key: B×C/8×h×w, value: B×C/2×h×w. skip8, skip4: B×D×H/8×W/8 and B×D×H/4×W/4, the decoder's own view of the
    shallow maps: it is the same for every object and round, so it is computed once. size: (H, W) before padding.
    """

    key: Tensor
    value: Tensor
    skip8: Tensor
    skip4: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device) -> "Query":
        """The same on another device."""
        key, value, skip8, skip4 = (x.to(device) for x in self[:4])
        return Query(key, value, skip8, skip4, self.size)


class Annotation(NamedTuple):
    """What is known of n objects on one frame, each plane n×H×W in [0, 1] (Section 3.1.2, 3.4 and 3.7).

    mask: the object's current probability, zeros before the first round. positive, negative: strokes on the object and
    off it. others: clamped sum of the other objects' probabilities.
    """

    mask: Tensor
    positive: Tensor
    negative: Tensor
    others: Tensor


class Mask(NamedTuple):
    """`Annotation` without strokes, of the semi-supervised network (Section 3.4 and 3.6)."""

    mask: Tensor
    others: Tensor


class EarlySharing(Trunk):
    """A memory encoder whose first stages are the query encoder's: the annotation joins after them (Section 5.3).

    It is added, as in Figure 12. How it gets there is not said; here by one convolution, each output of which sees two
    strides of the planes. stages: how many of res2, res3, res4 are shared, beside the stem.
    """

    def __init__(self, query_encoder: Trunk, stages: int, planes: int, shape: Shape) -> None:
        super().__init__(3, shape.width, shape.blocks)
        for name in ("conv1", "bn1", *STAGES[:stages]):
            setattr(self, name, getattr(query_encoder, name))
        self.last_shared = STAGES[stages - 1]
        stride, channels = 2 ** (stages + 1), 2 ** (stages + 1) * shape.width
        self.annotation = nn.Conv2d(planes, channels, 2 * stride, stride, padding=stride // 2)

    def forward(self, x: Tensor) -> Features:
        """x: B×(3+planes)×H×W, as `Trunk` has it."""
        features, planes = self.maxpool(self.bn1(self.conv1(x[:, :3])).relu()), x[:, 3:]
        maps = []
        for name in STAGES:
            features = getattr(self, name)(features)
            if name == self.last_shared:
                features = features + self.annotation(planes)
            maps.append(features)
        return Features(*reversed(maps))


class Decoder(nn.Module):
    """[read, query value] to two maps at stride 4, background and object (Section 3.3)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.compress = Compress(channels, width)
        self.skip8 = Compress(channels // 2, width)
        self.skip4 = Compress(channels // 4, width)
        self.refine8 = Refine(width)
        self.refine4 = Refine(width)
        self.predict = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, y: Tensor, skip8: Tensor, skip4: Tensor) -> Tensor:
        """y: B×C×h×w; skips as in `Query`. Returns B×2×4h×4w."""
        m = self.refine4(self.refine8(self.compress(y), skip8), skip4)
        return self.predict(m.relu())


class SpaceTimeMemory(nn.Module):
    """Memory of annotated frames, read by any frame. Sizes are true ones: padding stays inside.

    planes: of an annotation. size: "paper", or "tiny", the same thing narrower, for a CPU.
    sharing, stages: Section 5.3; how many of res2, res3, res4 the two encoders have in common, counted from res4 down
    ("late") or from res2 up, the stem included ("early"). Shared modules are one module in two places.
    """

    def __init__(self, planes: int, size: Size = "paper", sharing: Sharing = "none", stages: int = 0) -> None:
        super().__init__()
        if size not in SHAPES:
            raise BadInput(f"size={size}: not of STM; choose one of {', '.join(SHAPES)}")
        if (sharing, stages) not in (("none", 0), *((s, n) for s in ("late", "early") for n in (1, 2, 3))):
            raise BadInput(f"sharing={sharing}, stages={stages}: choose none with 0, late or early with 1 to 3")
        self.sharing, self.stages = sharing, stages
        width, blocks, decoder = SHAPES[size]
        channels = 16 * width
        self.query_encoder = Trunk(3, width, blocks)
        self.memory_encoder = (
            EarlySharing(self.query_encoder, stages, planes, SHAPES[size])
            if sharing == "early"
            else Trunk(3 + planes, width, blocks)
        )
        for name in STAGES[3 - stages :] if sharing == "late" else ():
            setattr(self.memory_encoder, name, getattr(self.query_encoder, name))
        self.memory_head = KeyValueHead(channels)
        self.query_head = KeyValueHead(channels)
        self.decoder = Decoder(channels, decoder)

    def memorize(self, frame: Tensor, annotation: Annotation | Mask) -> KeyValue:
        """Embed an annotated frame once per object (Section 3.1.2).

        frame: 3×H×W RGB in [0, 1]; annotation of n objects. Returns n×C/8×h×w and n×C/2×h×w.
        """
        planes = pad(torch.stack(annotation, dim=1))
        rgb = normalise(pad(frame)).expand(len(planes), -1, -1, -1)  # padded first: the border is black, not mean grey
        return self.memory_head(self.memory_encoder(torch.cat((rgb, planes), dim=1)).res4)

    def encode(self, frames: Tensor) -> Query:
        """Embed query frames (Section 3.1.1): B×3×H×W RGB in [0, 1]."""
        res4, res3, res2 = self.query_encoder(normalise(pad(frames)))
        height, width = frames.shape[-2:]
        key, value = self.query_head(res4)
        return Query(key, value, self.decoder.skip8(res3), self.decoder.skip4(res2), (height, width))

    def segment(self, query: Query, memory: KeyValue) -> Tensor:
        """Segment one object in B query frames, each on its own, or n objects in one.

        memory: of the object(s), key (n×)C/8×T×h×w, value (n×)C/2×T×h×w. Returns logits B×2×H×W or n×2×H×W, background
        and object.
        """
        with record_function("read"):
            read = read_memory(memory, query.key)
        with record_function("decode"):
            # Equation 1 has the value first, the weights do not
            y = torch.cat((read, query.value.expand_as(read)), dim=1)
            return crop(enlarge(self.decoder(y, query.skip8, query.skip4).float(), 4), query.size)


class STMInteractive(SpaceTimeMemory):
    """Of `Annotation`s: masks and scribbles. At paper size the released network, 38 931 842 parameters."""

    def __init__(self, size: Size = "paper") -> None:
        super().__init__(len(Annotation._fields), size)


class STMSemiSupervised(SpaceTimeMemory):
    """Of `Mask`s. At paper size without sharing the released network, 38 925 570 parameters."""

    def __init__(self, size: Size = "paper", sharing: Sharing = "none", stages: int = 0) -> None:
        super().__init__(len(Mask._fields), size, sharing, stages)
