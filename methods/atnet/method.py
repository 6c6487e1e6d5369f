"""ATNet plays the rounds (Heo et al., ECCV 2020, Section 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from harness.api import Clip, Interaction, Method, Prediction, Stroke
from harness.rules.scribbles import bresenham
from methods.atnet.checkpoint import load
from methods.atnet.network import (
    THRESHOLD,
    ATNetwork,
    Entry,
    Kept,
    Local,
    MatchRegion,
    Mode,
    Picture,
    Size,
    Variant,
)
from methods.atnet.transfer import LocalSoftmax
from methods.blocks.frame_cache import Cache, FrameCache, volume
from methods.blocks.host import to_host
from methods.blocks.options import one_of
from methods.blocks.precision import Precision, inference
from methods.blocks.trunk import normalise
from methods.blocks.weights import lay_out, official_file, prepare

OFFICIAL_FILE = "ATNet-checkpoint.pth"
OFFICIAL_FILES = {"network": OFFICIAL_FILE}
PUBLISHED = "github.com/yuk6heo/IVOS-ATNet"
MULTIPLE = 32
ELLIPSE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


class ATNet(Method):
    """A-Net makes masks of the strokes on a frame, T-Net transfers them to both sides, up to other annotated frames.

    local, local_softmax, global_mode, local_mode, match_region: the network, see `methods.atnet.network.Variant`.
    size, weights, device, seed: see `methods.blocks.weights.prepare`. official: the authors' file of the network.
    cache: where encoded frames and probabilities wait for the next round, see `State`.
    precision: see `methods.blocks.precision.inference`.
    """

    takes_masks = False

    def __init__(
        self,
        local: Local = "r2",
        local_softmax: LocalSoftmax = "rows",
        global_mode: Mode = "transfer",
        local_mode: Mode = "transfer",
        match_region: MatchRegion = "prediction",
        cache: Cache = "device",
        precision: Precision = "float32",
        size: Size = "paper",
        weights: str = "official",
        official: Mapping[str, str] = OFFICIAL_FILES,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        one_of(Cache, cache=cache)
        one_of(Precision, precision=precision)
        variant = Variant(local, local_softmax, global_mode, local_mode, match_region)
        self.network = prepare(
            lambda: ATNetwork(size, variant),
            weights,
            lambda: load(official_file(official["network"], PUBLISHED)),
            device,
            seed,
        )
        self.cache: Cache = cache
        self.precision: Precision = precision

    def warm_up(self, clip: Clip) -> None:
        """Play two rounds without a stroke on three frames of the clip, on a sample that is thrown away."""
        with inference(self.network, self.precision):
            state = State(self.network, replace(clip, frames=clip.frames[:3]), self.cache)
            for frame in (0, len(state.frames) - 1):
                state.play(frame, ())

    def start(self, clip: Clip) -> None:
        """Begin a sample."""
        self.state = State(self.network, clip, self.cache)

    def interact(self, interaction: Interaction) -> Prediction:
        """One round: all strokes of the annotated frame so far make its masks anew, which are then transferred."""
        frame = interaction.frame
        with inference(self.network, self.precision):
            self.state.play(frame, interaction.all.frames[frame])
        return Prediction(self.state.labels.copy())


class State:
    """What ATNet knows of one sample.

    p: T×N×H×W, the objects' probabilities, superposed (Equation 6). labels: uint8 T×H×W, made of them.
    annotated, memory: the annotated frame of each round and its entry, of one annotated twice both.
    pictures: the encoded frames; kept: what else T-Net need not do again.

    At paper size and 480×854 a frame's picture takes 78 MB, what is kept beside it 14 MB, 14 MB per object and 9 MB for
    each side it was reached from, its probabilities 1.6 MB per object; where they wait, `blocks.frame_cache` says;
    "disk" keeps pictures only. With cache="none" a round needs the device, whatever the length of the clip, for the
    working memory of A-Net and T-Net, at most four pictures and the memory's 14 MB, and 14 MB more per object, of each
    round.
    """

    def __init__(self, network: ATNetwork, clip: Clip, cache: Cache) -> None:
        time, height, width, _ = clip.frames.shape
        self.network = lay_out(network)
        self.device = next(network.parameters()).device
        self.frames = clip.frames
        self.pictures: FrameCache[Picture] = FrameCache(cache, self.device)
        self.keeps = cache in ("device", "cpu")
        self.shelf = self.device if cache == "device" else torch.device("cpu")
        self.kept: dict[int, Kept] = {}
        self.annotated: list[int] = []
        self.memory: list[Entry] = []
        self.p = volume((time, clip.num_objects, height, width), cache, self.device)
        self.labels = np.zeros((time, height, width), np.uint8)

    def play(self, a: int, strokes: Sequence[Stroke]) -> None:
        """One round: strokes on frame a, all there have been on it."""
        last = self.labels[a] if self.memory else None
        with record_function("a_net"):
            planes = pad(torch.from_numpy(annotation_planes(strokes, last, self.p.shape[1], self.size)).to(self.device))
            annotated = self.network.a_net(self.image(a), planes)
        picture = self.pictures.get(a, partial(self.encode, a))
        self.annotated.append(a)
        with record_function("memorize"):
            self.memory.append(self.network.t_net.remember(picture, planes, annotated))
        p = annotated.logits.float().sigmoid()
        self.store(a, crop(p, self.size))
        for step in (-1, 1):
            self.transfer(a, step, picture, p)

    def transfer(self, a: int, step: int, picture: Picture, p: Tensor) -> None:
        """Go from frame a to one side; picture, p: its own, the latter N×H×W padded."""
        others = [step * (t - a) for t in self.annotated if step * (t - a) > 0]
        b = min(others, default=None)  # in frames from a, as is n
        n = (len(self.frames) - 1 - a if step > 0 else a) if b is None else int(0.99 * (b - 1) + 0.5)
        for distance in range(1, n + 1):
            t = a + step * distance
            with record_function("t_net"):
                target = self.pictures.get(t, partial(self.encode, t))
                kept = self.kept.setdefault(t, Kept(self.shelf)) if self.keeps else None
                p = self.network.t_net(target, picture, p, self.memory, kept, step).logits.float().sigmoid()
            picture = target
            self.store(t, superpose(crop(p, self.size), self.p[t].to(self.device), distance, b))

    def store(self, t: int, p: Tensor) -> None:
        """Take N×H×W probabilities as those of frame t."""
        self.p[t] = p
        best, label = p.max(dim=0)
        self.labels[t] = to_host((label + 1) * (best > THRESHOLD))

    @record_function("encode")
    def encode(self, t: int) -> Picture:
        """Embed a frame."""
        return self.network.t_net.encode(self.image(t))

    def image(self, t: int) -> Tensor:
        """The frame as the networks take it, 3×H×W padded."""
        return pad(normalise(torch.tensor(self.frames[t]).to(self.device).movedim(-1, 0).float() / 255))

    @property
    def size(self) -> tuple[int, int]:
        """H, W before padding."""
        return self.frames.shape[1], self.frames.shape[2]


def superpose(new: Tensor, old: Tensor, distance: int, bound: int | None) -> Tensor:
    """This round's probabilities and those of the round before.

        P̃_t^r = 1/2 (1 + (t − t_b) / (t_r − t_b)) P_t^r + (t_r − t) / (2 (t_r − t_b)) P_t^{r−1}        (6)

    distance, bound: |t_r − t| and |t_r − t_b|. P_t^{r−1} is superposed itself. Without a t_b the new ones stay.
    """
    if bound is None:
        return new
    weight = 0.5 + 0.5 * (bound - distance) / bound
    return weight * new + (1 - weight) * old


def annotation_planes(
    strokes: Sequence[Stroke], last: np.ndarray | None, num_objects: int, size: tuple[int, int]
) -> np.ndarray:
    """What A-Net is given with a frame, for each object: mask of the last round, positive and negative strokes.

    strokes: all on the frame, of every round so far. last: label map H×W of the last round, None in the first.
    Returns float32 N×3×H×W in [0, 1]. An object's negative strokes are all others, inside of its mask only.
    """
    planes = np.zeros((num_objects, 3, *size), np.float32)
    for m, (mask, positive, negative) in enumerate(planes, 1):
        mask[:] = 0.5 if last is None else last == m
        positive[:] = stroke_plane([stroke for stroke in strokes if stroke.object_id == m], size)
        if last is not None:
            negative[:] = mask * stroke_plane([stroke for stroke in strokes if stroke.object_id != m], size)
    return planes


def stroke_plane(strokes: Sequence[Stroke], size: tuple[int, int]) -> np.ndarray:
    """The strokes as the authors draw them, dilated and blurred: float64 H×W in [0, 1].

    Paths are scaled by the size, rounded, connected and moved by one pixel to the upper left: what leaves the picture
    there comes in again on the other side.
    """
    height, width = size
    plane = np.zeros(size)
    for stroke in strokes:
        x, y = bresenham(np.round(stroke.path * (width, height)).astype(np.int64)).T - 1
        plane[y, x] = 1
    return cv2.GaussianBlur(cv2.dilate(plane, ELLIPSE), (5, 5), 6)


def pad(x: Tensor) -> Tensor:
    """Reflect ...×H×W at its borders, up to the next larger multiples of 32, as the authors do."""
    rows, columns = (reflected(side, x.device) for side in x.shape[-2:])
    return x[..., rows.unsqueeze(1), columns]


def reflected(side: int, device: torch.device) -> Tensor:
    """Where the pixels of a padded axis lie on the one before, as often as it takes: int64."""
    before, after = margins(side)
    there = torch.arange(-before, side + after, device=device) % max(1, 2 * (side - 1))
    return side - 1 - (there - (side - 1)).abs()


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pad`: size is the one before."""
    (top, _), (left, _) = margins(size[0]), margins(size[1])
    return x[..., top : top + size[0], left : left + size[1]]


def margins(side: int) -> tuple[int, int]:
    """Pixels to add before and after."""
    more = MULTIPLE - side % MULTIPLE
    return more // 2, more - more // 2
