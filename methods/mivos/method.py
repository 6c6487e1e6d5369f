"""MiVOS plays the rounds (Cheng et al., CVPR 2021, Section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from harness.api import BadInput, Clip, Interaction, Method, Prediction, Stroke
from harness.rules.scribbles import draw
from methods.blocks.aggregation import aggregate
from methods.blocks.frame_cache import Cache, FrameCache, volume
from methods.blocks.host import to_host
from methods.blocks.memory import KeyValue, together
from methods.blocks.options import one_of
from methods.blocks.padding import crop, pad
from methods.blocks.precision import Precision, inference
from methods.blocks.trunk import normalise
from methods.blocks.weights import lay_out, official_file, prepare
from methods.mivos.checkpoint import load
from methods.mivos.network import MiNet, Query, Size, align

OFFICIAL_FILES = {"propagation": "propagation_model.pth", "s2m": "s2m.pth", "fusion": "fusion.pth"}
PUBLISHED = "github.com/hkchengrex/MiVOS"
Schedule = Literal["three_frames", "every_round"]
FusionRule = Literal["difference_aware", "learnable", "linear", "none"]
StrokesAt = Literal["padded", "true"]
SQUARE = np.ones((3, 3), np.uint8)


class Options(NamedTuple):
    """How a sample is played, see `MiVOS`."""

    top_k: int | None
    fusion: FusionRule
    mem_every: int
    mem_most: int | None
    strokes_at: StrokesAt
    cache: Cache


class MiVOS(Method):
    """Strokes make a mask of their frame, the mask is carried to both sides, what it meets there is fused with it.

    size, weights, device, seed: see `methods.blocks.weights.prepare`. official: the authors' file of each network.
    schedule: "three_frames" asks for each frame again and propagates in rounds 3, 6 and from 8 on (Section 6.1);
        "every_round" propagates in each. Masks instead of strokes are propagated in each.
    top_k: memory positions that take part in a read; None takes all of them.
    fusion: the masks of this round and the last, by the network, by the network without differences ("learnable"),
        by distance in time ("linear"), or not at all: this round's stay.
    mem_every: one in so many frames of a pass is memorized for the rest of it; mem_most: of these at most so many, the
        newest, or None for all. The authors have no such bound; a long clip wants one, or each frame takes longer.
    strokes_at: the size at which strokes are drawn, "padded" or "true". The authors draw them at the padded one, up to
        8 pixels off.
    cache: where encoded frames and probabilities wait for the next round, see `State`.
    precision: of convolutions and matrix products, see `methods.blocks.precision.inference`.
    """

    takes_masks = True

    def __init__(
        self,
        schedule: Schedule = "three_frames",
        top_k: int | None = 50,
        fusion: FusionRule = "difference_aware",
        mem_every: int = 5,
        mem_most: int | None = None,
        strokes_at: StrokesAt | Literal[True] = "padded",
        cache: Cache = "device",
        precision: Precision = "float32",
        size: Size = "paper",
        weights: str = "official",
        official: Mapping[str, str] = OFFICIAL_FILES,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        one_of(Schedule, schedule=schedule)
        one_of(FusionRule, fusion=fusion)
        place: StrokesAt = "true" if strokes_at is True else strokes_at  # YAML knows the word, too
        one_of(StrokesAt, strokes_at=place)
        one_of(Cache, cache=cache)
        one_of(Precision, precision=precision)
        if min(mem_every, mem_most or 1, top_k or 1) < 1 or 0 in (mem_most, top_k):
            told = f"mem_every={mem_every}, mem_most={mem_most}, top_k={top_k}"
            raise BadInput(f"{told}: wanted 1 or more (mem_most and top_k: or null)")
        self.network = prepare(lambda: MiNet(size), weights, lambda: read(official), device, seed)
        self.schedule: Schedule = schedule
        self.options = Options(top_k, fusion, mem_every, mem_most, place, cache)
        self.precision: Precision = precision

    def warm_up(self, clip: Clip) -> None:
        """Run every network once or more at the clip's size, on a sample that is thrown away."""
        with inference(self.network, self.precision):
            state = State(self.network, replace(clip, frames=clip.frames[:3]), self.options)
            for frame in (0, len(state.frames) - 1):
                state.propagate(frame, state.interaction_to_mask(frame, ()))

    def start(self, clip: Clip) -> None:
        """Begin a sample."""
        self.state = State(self.network, clip, self.options)
        self.round = 0

    def interact(self, interaction: Interaction) -> Prediction:
        """One round (Section 3.1): a mask of the annotated frame, and if it is time for it the masks of all frames."""
        self.round += 1
        frame, given = interaction.frame, interaction.mask
        with inference(self.network, self.precision):
            if given is not None:
                mask = self.state.take_mask(given)
            else:  # without a stroke on it the frame is kept; the authors, who see strokes only, go to the last frame
                mask = self.state.interaction_to_mask(frame, interaction.new.frames[frame])
            if given is not None or self.schedule == "every_round" or self.round in (3, 6) or self.round >= 8:
                self.state.propagate(frame, mask)
                return Prediction(self.state.answer())
            self.state.labels[frame] = mask.max(dim=0).indices
            return Prediction(self.state.answer(), candidates=[frame])


class State:
    """What MiVOS knows of one sample.

    p: T×(N+1)×H×W, M^{r−1} of all frames. labels: uint8 T×H×W. Both are at the padded size, like all maps here.
    certain: (t, entry) for each propagated mask, in their order, entries N×C/8×h×w and N×C/2×h×w.
    queries: the encoded frames.

    At paper size and 480×854 a frame's query takes 44 MB and its probabilities 1.7 MB per plane, see
    `methods.blocks.frame_cache`; its labels take 0.4 MB of the device. Of that a pass also needs, for
    each entry in its memory, one per `mem_every` frames, 8.2 MB per object: 3.3 GB after 1,000 frames with two objects
    (all estimated), or what `mem_most` allows.
    """

    def __init__(self, network: MiNet, clip: Clip, options: Options) -> None:
        self.network = lay_out(network)
        self.options = options
        self.device = next(network.parameters()).device
        self.frames = clip.frames
        self.num_objects = clip.num_objects
        self.size = clip.frames.shape[1:3]
        height, width = (side + -side % 16 for side in self.size)
        self.queries: FrameCache[Query] = FrameCache(options.cache, self.device)
        self.p = volume((len(clip.frames), clip.num_objects + 1, height, width), options.cache, self.device)
        self.p[:, 0] = 1e-7  # the authors' start: the background wins, sums are not 1
        self.labels = torch.zeros((len(clip.frames), height, width), dtype=torch.uint8, device=self.device)
        self.certain: list[tuple[int, KeyValue]] = []

    @record_function("s2m")
    def interaction_to_mask(self, frame: int, strokes: Sequence[Stroke]) -> Tensor:
        """The mask of a frame by strokes on its current mask (Section 3.2): (N+1)×H×W in {0, 1}, but for ties."""
        existing = self.labels[frame] == torch.arange(1, self.num_objects + 1, device=self.device)[:, None, None]
        planes = (existing, *self.stroke_planes(strokes))
        logits = self.network.s2m(self.image(frame), *(plane.to(self.device).float() for plane in planes))
        return aggregate(logits.sigmoid(), hard=True)

    def stroke_planes(self, strokes: Sequence[Stroke]) -> list[Tensor]:
        """`stroke_planes` at the padded size, drawn there or before."""
        padded = self.options.strokes_at == "padded"
        height, width = self.labels.shape[1:] if padded else self.size
        planes = map(torch.from_numpy, stroke_planes(strokes, self.num_objects, height, width))
        return list(planes if padded else map(pad, planes))

    def take_mask(self, mask: np.ndarray) -> Tensor:
        """A given label map of true size as planes (N+1)×H×W in {0, 1}: 0 in all of them where there is padding."""
        labels = torch.tensor(mask).to(self.device)
        return pad((labels == torch.arange(self.num_objects + 1, device=self.device)[:, None, None]).float())

    def propagate(self, t_r: int, mask: Tensor) -> None:
        """From the mask of frame t^r, (N+1)×H×W, to M^r of all frames (Section 3.3, "Propagation strategy")."""
        change = (mask - self.p[t_r].to(self.device))[1:]
        difference = torch.stack((change.relu(), (-change).relu()), dim=1)  # Equation 4: D⁺ and D⁻, N×2×H×W
        self.p[t_r] = mask
        before = max((t for t, _ in self.certain if t < t_r), default=None)
        after = min((t for t, _ in self.certain if t > t_r), default=None)
        self.certain.append((t_r, self.memorize(t_r, mask)))
        for step, t_c, end in ((1, after, len(self.frames)), (-1, before, -1)):
            frames = range(t_r + step, end if t_c is None else t_c, step)
            self.propagate_one_way(t_r, frames, t_c, difference)
        for t, p in enumerate(self.p):
            self.labels[t] = p.max(dim=0).indices  # argmax is 50 times slower on a CPU

    def propagate_one_way(self, t_r: int, frames: range, t_c: int | None, difference: Tensor) -> None:
        """One pass, away from t^r: the frames up to t^c, the next interacted one, or up to the end of the clip."""
        certain = [entry for _, entry in self.certain]
        passed: list[KeyValue] = []
        temporary: list[KeyValue] = []
        newest = slice(None) if self.options.mem_most is None else slice(-self.options.mem_most, None)
        for t in frames:
            with record_function("propagation"):
                query = self.queries.get(t, partial(self.encode, t))
                with record_function("segment"):
                    logits = self.network.propagation.segment(
                        query, together((*certain, *passed, *temporary)), self.options.top_k
                    )
                current = aggregate(logits.sigmoid())  # M^{r'}
                if t != frames[-1]:
                    entry = self.memorize(t, current)  # as propagated, not as fused
                    due = (t - t_r) % self.options.mem_every == 0
                    passed, temporary = ([*passed, entry][newest], []) if due else (passed, [entry])
            self.p[t] = current if t_c is None else self.fuse(t, t_r, t_c, current, difference, query)

    @record_function("fusion")
    def fuse(self, t_i: int, t_r: int, t_c: int, current: Tensor, difference: Tensor, query: Query) -> Tensor:
        """M^{r'} and M^{r−1} of a frame between t^r and t^c into M^r, all (N+1)×H×W (Section 3.4)."""
        rule = self.options.fusion
        previous = self.p[t_i].to(self.device)
        n_r, n_c = abs(t_i - t_r) / abs(t_c - t_r), abs(t_i - t_c) / abs(t_c - t_r)  # Equation 6
        if rule == "none":
            return current
        if rule == "linear":  # a guess: the weights are those of Oh et al., CVPR 2019, the text names the idea only
            return n_c * current + n_r * previous
        if rule == "difference_aware":
            aligned = align(difference, self.certain[-1][1].key, query)  # Equation 5: A⁺ and A⁻
        else:  # a guess: how the authors left the differences out is not said
            aligned = torch.zeros_like(difference)
        return aggregate(self.network.fusion(self.image(t_i), previous[1:], current[1:], aligned, n_c, n_r).sigmoid())

    @record_function("memorize")
    def memorize(self, t: int, mask: Tensor) -> KeyValue:
        """The memory entry of a frame with its mask, (N+1)×H×W."""
        return self.network.propagation.memorize(self.image(t), mask[1:])

    @record_function("encode")
    def encode(self, t: int) -> Query:
        """Embed a frame."""
        return self.network.propagation.encode(self.image(t))

    def image(self, t: int) -> Tensor:
        """The frame as the networks take it, float32 3×H×W on the device."""
        frame = torch.tensor(self.frames[t]).to(self.device).movedim(-1, 0).float() / 255
        return pad(normalise(frame))  # unlike STM's, whose border is black

    def answer(self) -> np.ndarray:
        """Labels of true size, uint8 T×H×W."""
        return to_host(crop(self.labels, self.size)).copy()


def stroke_planes(
    strokes: Sequence[Stroke], num_objects: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Strokes as planes per object, 1 pixel dilated: positive and negative, both uint8 N×H×W in {0, 1}.

    An object's negative strokes are those of the background and of every other object.
    """
    drawn = draw(strokes, (height, width), default=-1)
    own = drawn == np.arange(1, num_objects + 1)[:, None, None]
    planes = np.stack((own, (drawn >= 0) & ~own)).astype(np.uint8)
    positive, negative = np.stack([[cv2.dilate(plane, SQUARE) for plane in sign] for sign in planes])
    return positive, negative


def read(official: Mapping[str, str]) -> dict[str, Tensor]:
    """The authors' files as a state dict, or BadInput. official: the file of each network."""
    return load({network: official_file(name, PUBLISHED) for network, name in official.items()})
