"""Space-Time Memory network with scribbles: Oh, Lee, Xu, Kim, "Space-Time Memory Networks for Video Object
Segmentation with User Guidance", TPAMI 2020; below, "Section" and "Equation" are its. Where the text leaves a choice,
the released interactive network (github seoungwugoh/STM-Interactive) made it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.api import BadInput
from methods.blocks.decoder import Compress, Refine, enlarge
from methods.blocks.memory import KeyValue, KeyValueHead, read_memory
from methods.blocks.padding import crop, pad
from methods.blocks.trunk import Trunk, normalise

Size = Literal["paper", "tiny"]


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


class Annotation(NamedTuple):
    """What is known of n objects on one frame, each plane n×H×W in [0, 1] (Section 3.1.2, 3.4 and 3.7).

    mask: the object's current probability, zeros before the first round. positive, negative: strokes on the object and
    off it. others: clamped sum of the other objects' probabilities.
    """

    mask: Tensor
    positive: Tensor
    negative: Tensor
    others: Tensor


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


class STMInteractive(nn.Module):
    """Memory of annotated frames, read by any frame. Sizes are true ones: padding stays inside.

    size: "paper" is the released network, 38 931 842 parameters; "tiny" is the same thing narrower, for a CPU.
    """

    def __init__(self, size: Size = "paper") -> None:
        super().__init__()
        if size not in SHAPES:
            raise BadInput(f"size={size}: not of STM; choose one of {', '.join(SHAPES)}")
        width, blocks, decoder = SHAPES[size]
        channels = 16 * width
        self.memory_encoder = Trunk(3 + len(Annotation._fields), width, blocks)
        self.memory_head = KeyValueHead(channels)
        self.query_encoder = Trunk(3, width, blocks)
        self.query_head = KeyValueHead(channels)
        self.decoder = Decoder(channels, decoder)

    def memorize(self, frame: Tensor, annotation: Annotation) -> KeyValue:
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
        """Segment one object in the B query frames, each on its own.

        memory: of the object, key C/8×T×h×w, value C/2×T×h×w. Returns logits B×2×H×W, background and object.
        """
        read = read_memory(memory, query.key)
        y = torch.cat((read, query.value), dim=1)  # Equation 1 has them in the other order, the weights in this one
        return crop(enlarge(self.decoder(y, query.skip8, query.skip4), 4), query.size)
