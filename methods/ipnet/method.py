"""IPNet plays the rounds (Oh et al., CVPR 2019; DAVIS Challenge 2018, Section 2, "Testing")."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from harness.api import Clip, Interaction, Method, Prediction, Stroke
from harness.rules.scribbles import draw
from methods.blocks.aggregation import aggregate
from methods.blocks.frame_cache import Cache, volume
from methods.blocks.host import to_host
from methods.blocks.options import one_of
from methods.blocks.precision import Precision, inference
from methods.blocks.weights import lay_out, official_file, prepare
from methods.ipnet.checkpoint import load
from methods.ipnet.network import InteractionPropagation, Size

OFFICIAL_FILES = {"interaction": "I_e290.pth", "propagation": "P_e290.pth"}
PUBLISHED = "github.com/seoungwugoh/ivs-demo"
FusionRule = Literal["linear", "none"]
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class Options(NamedTuple):
    """How a sample is played, see `IPNet`."""

    fusion: FusionRule
    aggregation: bool
    cache: Cache


class IPNet(Method):
    """Strokes make a mask of their frame, the mask goes from frame to frame to both sides, up to earlier annotations.

    size, weights, device, seed: see `methods.blocks.weights.prepare`. official: the authors' file of each network.
    fusion: masks of this round and the last weighted by the distance in time, or this round's only. "linear" is what
        the text says and the authors' session is written for; "none" what it does, up to and with the frames at which
        a pass ends: its two volumes are one.
    aggregation: references of earlier rounds take part in propagation, or that of this round alone.
    roi: the networks look at the region of interest, or always at the whole picture, in the same window.
    cache: where the probabilities wait for the next round, see `State`.
    precision: see `methods.blocks.precision.inference`.
    """

    takes_masks = False

    def __init__(
        self,
        fusion: FusionRule = "linear",
        aggregation: bool = True,
        roi: bool = True,
        cache: Cache = "device",
        precision: Precision = "float32",
        size: Size = "paper",
        weights: str = "official",
        official: Mapping[str, str] = OFFICIAL_FILES,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        one_of(FusionRule, fusion=fusion)
        one_of(Cache, cache=cache)
        one_of(Precision, precision=precision)
        self.network = prepare(lambda: InteractionPropagation(size, roi), weights, lambda: read(official), device, seed)
        self.options = Options(fusion, aggregation, cache)
        self.precision: Precision = precision

    def warm_up(self, clip: Clip) -> None:
        """Run both networks at the clip's size, on a sample that is thrown away."""
        with inference(self.network, self.precision):
            state = State(self.network, replace(clip, frames=clip.frames[:4]), self.options)
            target = len(state.frames) // 3  # of four frames, one side has one and the other two
            for _ in range(2):
                state.annotate(target, ())
                state.propagate(target)

    def start(self, clip: Clip) -> None:
        """Begin a sample."""
        self.state = State(self.network, clip, self.options)

    def interact(self, interaction: Interaction) -> Prediction:
        """One round: a mask of the annotated frame by this round's strokes on it, then the masks around it."""
        frame = interaction.frame
        with inference(self.network, self.precision):
            self.state.annotate(frame, interaction.new.frames[frame])
            self.state.propagate(frame)
            return Prediction(self.state.labels())


class State:
    """What IPNet knows of one sample.

    p: T×N×H×W, the objects' probabilities. targets: the frames propagated from. current: features of the last
    interaction; older: the reference of the last round, if it takes part; both N×32w×S/32×S/32 for width w.

    Windows follow the masks, so nothing of a frame is kept but p: at 480×854 1.6 MB per frame and object, see
    `methods.blocks.frame_cache.volume` for where. Of the device a step needs about 0.1 GB per object and side at
    paper size, whatever the length of the clip, and the weights 0.76 GB (estimated).
    """

    def __init__(self, network: InteractionPropagation, clip: Clip, options: Options) -> None:
        self.network = lay_out(network)
        self.options = options
        self.device = next(network.parameters()).device
        self.frames = clip.frames
        time, height, width, _ = clip.frames.shape
        self.p = volume((time, clip.num_objects, height, width), options.cache, self.device)
        self.targets: list[int] = []
        self.current: Tensor
        self.older: Tensor | None = None

    @record_function("interaction")
    def annotate(self, frame: int, strokes: Sequence[Stroke]) -> None:
        """Segment a frame by the strokes of this round on it and its probabilities so far, which are replaced.

        A guess, as nothing was released for several objects: each is segmented, with a stroke of its own or without.
        """
        mask = self.p[frame].to(self.device)
        positive, negative = (torch.from_numpy(planes).to(mask) for planes in stroke_planes(strokes, *mask.shape))
        output = self.network.interaction(self.images([frame]), mask, positive, negative)
        self.p[frame] = merge(output.p)
        self.current = output.res5

    def propagate(self, target: int) -> None:
        """Carry the masks of an annotated frame to both sides at once, up to earlier targets or an end of the clip."""
        before, after = bounds(target, self.targets)
        kept = self.options.fusion == "linear"  # a bound, where the weight is 0
        first = 0 if before is None else before + kept
        last = len(self.frames) - 1 if after is None else after - kept
        reference = self.network.propagation.refer(self.current, self.older)
        prepared = self.network.propagation.joint.refer(reference)
        newest = {side: self.p[target].to(self.device) for side in (-1, 1)}
        for distance in range(1, max(target - first, last - target) + 1):
            sides = [side for side in (-1, 1) if first <= target + side * distance <= last]
            frames = [target + side * distance for side in sides]
            previous = torch.stack([self.p[t] for t in frames]).to(self.device)
            neighbour = torch.cat([newest[side] for side in sides])
            with record_function("propagation"):
                images, references = self.images(frames), prepared.repeat(len(sides))
                p = self.network.propagation(images, previous.flatten(0, 1), neighbour, references).p
            for side, t, current, last_round in zip(sides, frames, merge(p.view_as(previous)), previous, strict=True):
                newest[side] = current  # as propagated, not as fused
                w = weight(t, target, before if side < 0 else after) if self.options.fusion == "linear" else 1.0
                self.p[t] = w * current + (1 - w) * last_round
        self.targets.append(target)
        self.older = reference if self.options.aggregation else None

    def images(self, frames: list[int]) -> Tensor:
        """Frames as the networks take them, float32 B×3×H×W on the device, each once per object."""
        rgb = torch.tensor(self.frames[frames]).to(self.device).movedim(-1, 1).float() / 255
        return rgb.repeat_interleave(self.p.shape[1], dim=0)

    def labels(self) -> np.ndarray:
        """The likeliest of background and objects, uint8 T×H×W: of one object those above 0.5."""
        labels = np.empty((len(self.p), *self.p.shape[2:]), np.uint8)
        for t, p in enumerate(self.p):
            planes = torch.cat((1 - p.sum(dim=0, keepdim=True), p))
            labels[t] = to_host(planes.max(dim=0).indices)  # argmax is 50 times slower on a CPU
        return labels


def bounds(target: int, earlier: Sequence[int]) -> tuple[int | None, int | None]:
    """The nearest earlier targets before and after this one, None on a side without."""
    before = max((t for t in earlier if t < target), default=None)
    after = min((t for t in earlier if t > target), default=None)
    return before, after


def weight(t: int, target: int, bound: int | None) -> float:
    """Of this round's mask in frame t, on the side of the bound: from 1 at the target down to 0 at the bound.

    The text has "inversely proportional to the propagated distance", the released session this.
    """
    return 1.0 if bound is None else max(0.0, 1 - abs(t - target) / abs(bound - target))


def merge(p: Tensor) -> Tensor:
    """Probabilities ...×N×H×W of objects segmented each on its own, merged by Equation 1.

    One object is left as it is, as in the released code, which knows no more. That of several the merged ones are what
    later steps and rounds take is a guess.
    """
    return aggregate(p)[..., 1:, :, :] if p.shape[-3] > 1 else p


def stroke_planes(strokes: Sequence[Stroke], num_objects: int, *size: int) -> tuple[np.ndarray, np.ndarray]:
    """Strokes of a frame, twice dilated, as planes per object: positive and negative, both bool N×H×W.

    Negative strokes of an object are those of the background and, a guess, of every other object; where both are,
    the positive win. size: H, W.
    """
    height, width = size
    drawn = draw(strokes, (height, width), default=-1)
    own = [drawn == m for m in range(1, num_objects + 1)]
    signs = own, [(drawn >= 0) & ~plane for plane in own]
    positive, negative = (
        np.stack([cv2.dilate(plane.astype(np.uint8), CROSS, iterations=2) > 0 for plane in sign]) for sign in signs
    )
    return positive, negative & ~positive


def read(official: Mapping[str, str]) -> dict[str, Tensor]:
    """The authors' files as a state dict, or BadInput. official: the file of each network."""
    state = load({network: official_file(name, PUBLISHED) for network, name in official.items()})
    logging.getLogger(__name__).warning(
        "IPNet's released weights were trained for real users; by their authors they do not reproduce the paper's table"
    )
    return state
