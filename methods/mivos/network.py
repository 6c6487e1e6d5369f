"""The three networks of MiVOS: Cheng, Tai, Tang, "Modular Interactive Video Object Segmentation:
Interaction-to-Mask, Propagation and Difference-Aware Fusion", CVPR 2021; below, "Section" and "Equation" are its.
Where the text leaves a choice, the released networks (github hkchengrex/MiVOS) made it.

H and W are the padded size everywhere, multiples of 16; h and w are H/16 and W/16. An image is float32 3×H×W RGB,
normalised first and padded then, so that its border has the mean colour.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.models.segmentation.deeplabv3 import ASPP

from harness.api import BadInput
from methods.blocks.decoder import Compress, Refine, ResidualUnit, enlarge
from methods.blocks.memory import KeyValue, KeyValueHead, read_memory
from methods.blocks.trunk import Trunk, stage

Size = Literal["paper", "tiny"]


class Shape(NamedTuple):
    """width: of the trunks' stems; blocks: of their stages, the last in S2M only. Channels: decoder: of the decoder, at
    stride 16 and 4; aspp, low: of S2M's deep and shallow branch; fusion: of the fusion network.
    """

    width: int
    blocks: tuple[int, int, int, int]
    decoder: tuple[int, int]
    aspp: int
    low: int
    fusion: int


SHAPES: dict[Size, Shape] = {
    "paper": Shape(64, (3, 4, 6, 3), (512, 256), aspp=256, low=48, fusion=32),
    "tiny": Shape(12, (2, 2, 2, 2), (48, 32), aspp=32, low=12, fusion=16),
}


class S2M(nn.Module):
    """Scribble-to-Mask: DeepLabV3+ (Chen et al., ECCV 2018), output stride 16, six input planes (Section 3.2)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, aspp = shape.width, shape.aspp
        self.trunk = Trunk(6, width, shape.blocks[:3])
        self.res5 = stage(16 * width, 8 * width, blocks=shape.blocks[3], stride=1, dilation=2)
        self.aspp = ASPP(32 * width, (6, 12, 18), aspp)
        self.aspp.project[3] = nn.Dropout(0.1)  # torchvision has 0.5
        self.low = nn.Sequential(nn.Conv2d(4 * width, shape.low, 1, bias=False), nn.BatchNorm2d(shape.low), nn.ReLU())
        self.predict = nn.Sequential(
            nn.Conv2d(shape.low + aspp, aspp, 3, padding=1, bias=False),
            nn.BatchNorm2d(aspp),
            nn.ReLU(),
            nn.Conv2d(aspp, 1, 1),
        )

    def forward(self, image: Tensor, existing: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Segment n objects on one image, each on its own: its mask so far and strokes, each n×H×W in {0, 1}.

        Returns logits n×H×W.
        """
        planes = torch.stack((existing, positive, negative), dim=1)
        res4, _, res2 = self.trunk(torch.cat((image.expand(len(planes), -1, -1, -1), planes), dim=1))
        context = enlarge(self.aspp(self.res5(res4)), 4)
        return enlarge(self.predict(torch.cat((self.low(res2), context), dim=1)).float(), 4).squeeze(1)


class Query(NamedTuple):
    """What the propagation network needs of an image to segment any object in it.

    key: B×C/8×h×w, value: B×C/2×h×w. skip8, skip4: B×D×H/8×W/8 and B×D'×H/4×W/4, the decoder's own view of the
    shallow maps: it is the same for every object and round, so it is computed once. B is 1 but in training.
    """

    key: Tensor
    value: Tensor
    skip8: Tensor
    skip4: Tensor

    def to(self, device: torch.device) -> "Query":
        """The same on another device."""
        return Query(*(x.to(device) for x in self))


class Decoder(nn.Module):
    """[read, query value] to a map at stride 4."""

    def __init__(self, channels: int, deep: int, shallow: int) -> None:
        super().__init__()
        self.compress = ResidualUnit(channels, deep)
        self.skip8 = Compress(channels // 2, deep)
        self.skip4 = Compress(channels // 4, shallow)
        self.refine8 = Refine(deep, shallow)
        self.refine4 = Refine(shallow)
        self.predict = nn.Conv2d(shallow, 1, 3, padding=1)

    def forward(self, y: Tensor, skip8: Tensor, skip4: Tensor) -> Tensor:
        """y: n×C×h×w; skips as in `Query`, for all n objects. Returns n×1×4h×4w."""
        m = self.refine4(self.refine8(self.compress(y), skip8), skip4)
        return self.predict(m.relu())


class Propagation(nn.Module):
    """Masks from the memory of frames with masks, read with top-k filtering (Section 3.3)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels = 16 * shape.width
        self.memory_encoder = Trunk(5, shape.width, shape.blocks[:3], bias=True)
        self.memory_head = KeyValueHead(channels)
        self.query_encoder = Trunk(3, shape.width, shape.blocks[:3])
        self.query_head = KeyValueHead(channels)
        self.decoder = Decoder(channels, *shape.decoder)

    def memorize(self, image: Tensor, masks: Tensor) -> KeyValue:
        """Embed images *×3×H×W with their n objects each, masks *×n×H×W in [0, 1].

        Leading axes become one: returns (*·n)×C/8×h×w and (*·n)×C/2×h×w.
        """
        others = masks.sum(dim=-3, keepdim=True) - masks  # unlike STM's not clamped
        planes = torch.stack((masks, others), dim=-3)
        image = image.unsqueeze(-4).expand(*planes.shape[:-3], -1, -1, -1)
        return self.memory_head(self.memory_encoder(torch.cat((image, planes), dim=-3).flatten(0, -4)).res4)

    def encode(self, image: Tensor) -> Query:
        """Embed a query image, 3×H×W, or B of them."""
        res4, res3, res2 = self.query_encoder(image.view(-1, *image.shape[-3:]))
        key, value = self.query_head(res4)
        return Query(key, value, self.decoder.skip8(res3), self.decoder.skip4(res2))

    def segment(self, query: Query, memory: KeyValue, top_k: int | None) -> Tensor:
        """Segment n objects, each on its own, in one query image or each in its own.

        memory: n×C/8×T×h×w and n×C/2×T×h×w. Returns logits n×H×W.
        """
        with record_function("read"):
            m = read_memory(memory, query.key, top_k)  # Equations 1 to 3
        with record_function("decode"):
            y = torch.cat((m, query.value.expand(len(m), -1, -1, -1)), dim=1)
            return enlarge(self.decoder(y, query.skip8, query.skip4).float(), 4).squeeze(1)


def align(difference: Tensor, key: Tensor, query: Query) -> Tensor:
    """Carry a difference to another frame by the memory's correspondence (Equation 5).

        A⁺ = W D⁺    A⁻ = W D⁻        (5)

    difference: n×P×H×W, key: n×C/8×h×w, both of t^r; query: of the frame t_i. Returns n×P×H×W.
    """
    values = F.avg_pool2d(difference, 16)
    # W has every position of t^r, not the top k only: so the released code, while Section 3.4 refers to Equation 2
    return enlarge(read_memory(KeyValue(key.unsqueeze(2), values.unsqueeze(2)), query.key), 16)


class Fusion(nn.Module):
    """Masks of this round and of the last into one (Section 3.4). Six convolutions, where the text has five layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.fusion
        self.widen = nn.Conv2d(9, width, 3, padding=1)
        self.unit1 = self.unit(width)
        self.unit2 = self.unit(width)
        self.predict = nn.Conv2d(width, 1, 3, padding=1)

    @staticmethod
    def unit(width: int) -> nn.Sequential:
        """The residual of a unit."""
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(
        self, image: Tensor, previous: Tensor, current: Tensor, aligned: Tensor, n_c: float, n_r: float
    ) -> Tensor:
        """Fuse the masks of n objects on one frame, each on its own.

        previous, current: M^{r−1} and M^{r'}, n×H×W in [0, 1]; aligned: A⁺ and A⁻, n×2×H×W; n_c, n_r: Equation 6.
        Returns logits n×H×W.
        """
        n, *size = current.shape
        times = current.new_tensor((n_c, n_r)).view(1, 2, 1, 1).expand(n, 2, *size)
        # The order of the weights; the text has current before previous and n_r before n_c
        masks = torch.stack((previous, current), dim=1)
        x = self.widen(torch.cat((image.expand(n, -1, -1, -1), masks, aligned, times), dim=1)).relu()
        x = (x + self.unit1(x)).relu()
        x = (x + self.unit2(x)).relu()
        return self.predict(x).squeeze(1).float()


class MiNet(nn.Module):
    """The three, side by side (Figure 3): trained separately, kept in one file.

    size: "paper" is the released networks, 93 491 971 parameters; "tiny" is the same narrower, 1 909 031, for a CPU.
    """

    def __init__(self, size: Size = "paper") -> None:
        super().__init__()
        if size not in SHAPES:
            raise BadInput(f"size={size}: not of MiVOS; choose one of {', '.join(SHAPES)}")
        self.s2m = S2M(SHAPES[size])
        self.propagation = Propagation(SHAPES[size])
        self.fusion = Fusion(SHAPES[size])
