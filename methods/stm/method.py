"""STM plays the rounds (Oh et al., TPAMI 2020, Section 3.7)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from harness.api import Clip, Interaction, Method, Prediction, Stroke
from harness.rules.scribbles import draw
from methods.blocks.aggregation import aggregate
from methods.blocks.frame_cache import Cache, FrameCache, volume
from methods.blocks.host import to_host
from methods.blocks.memory import KeyValue, together
from methods.blocks.options import one_of
from methods.blocks.precision import Precision, inference
from methods.blocks.weights import lay_out, official_file, prepare
from methods.stm.checkpoint import load
from methods.stm.network import Annotation, Query, Size, STMInteractive

OFFICIAL_FILE = "e120.pth"
OFFICIAL_FILES = {"network": OFFICIAL_FILE}
PUBLISHED = "github.com/seoungwugoh/STM-Interactive"
DIAMOND = (np.add.outer(abs(np.arange(-2, 3)), abs(np.arange(-2, 3))) <= 2).astype(np.uint8)


class STM(Method):
    """Annotated frames are written onto a memory; all frames are segmented by reading it. Nothing is propagated.

    size, weights, device, seed: see `methods.blocks.weights.prepare`. official: the authors' file of the network.
    batch_size: frames segmented at a time. None is 4, but 1 at paper size: a CPU takes 15 % longer for a frame among
        several there, as maps beyond 32 MB are not taken from memory in use but paged in anew.
    cache: where the encoded frames and the probabilities of a sample wait for the next round, see `State`.
    precision: of convolutions and matrix products, see `methods.blocks.precision.inference`.
    """

    takes_masks = False

    def __init__(
        self,
        batch_size: int | None = None,
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
        self.network = prepare(
            lambda: STMInteractive(size),
            weights,
            lambda: load(official_file(official["network"], PUBLISHED)),
            device,
            seed,
        )
        self.batch_size = {"paper": 1, "tiny": 4}[size] if batch_size is None else batch_size
        self.cache: Cache = cache
        self.precision: Precision = precision

    def warm_up(self, clip: Clip) -> None:
        """Memorize a frame and segment a batch of the clip's size, on a sample that is thrown away."""
        with inference(self.network, self.precision):
            state = self.new_state(replace(clip, frames=clip.frames[: self.batch_size]))
            state.memorize(0, ())
            state.segment()

    def start(self, clip: Clip) -> None:
        """Begin a sample."""
        self.state = self.new_state(clip)

    def interact(self, interaction: Interaction) -> Prediction:
        """Memorize the annotated frame with this round's strokes on it, then segment all frames."""
        frame = interaction.frame
        with inference(self.network, self.precision):
            self.state.memorize(frame, interaction.new.frames[frame])
            return Prediction(self.state.segment())

    def new_state(self, clip: Clip) -> "State":
        """Nothing known yet."""
        return State(self.network, clip, self.batch_size, self.cache)


class State:
    """What STM knows of one sample.

    queries: the encoded frames, one `Query` per batch.
    p: T×N×H×W, the objects' probabilities. memory: annotated frames, each with its entry, N×C/8×h×w and N×C/2×h×w.

    At paper size and 480×854 a frame's query takes 37 MB and its probabilities 1.6 MB per object, see
    `methods.blocks.frame_cache`. With cache="none" a round needs the device for one batch at a time and
    main memory for the labels, whatever the length of the clip.
    """

    def __init__(self, network: STMInteractive, clip: Clip, batch_size: int, cache: Cache = "device") -> None:
        self.network = lay_out(network)
        self.device = next(network.parameters()).device
        self.frames = clip.frames
        self.batches = [slice(t, t + batch_size) for t in range(0, len(clip.frames), batch_size)]
        self.queries: FrameCache[Query] = FrameCache(cache, self.device)
        time, height, width, _ = clip.frames.shape
        self.p = volume((time, clip.num_objects, height, width), cache, self.device)
        self.memory: dict[int, KeyValue] = {}

    @record_function("encode")
    def encode(self, batch: slice) -> Query:
        """Embed the frames of a batch."""
        return self.network.encode(images(self.frames[batch], self.device))

    @record_function("memorize")
    def memorize(self, frame: int, strokes: Sequence[Stroke]) -> None:
        """Write `frame` onto the memory with its current probabilities and the strokes; an old entry of it is replaced.

        The old strokes of the frame live on in its probabilities only, and other entries stay as they were written.
        """
        p = self.p[frame].to(self.device)
        positive, negative = (torch.from_numpy(planes).to(p) for planes in stroke_planes(strokes, *p.shape))
        # A guess, as nothing was released for several objects: Section 3.4, clamped as in the authors' other STM.
        others = (p.sum(dim=0) - p).clamp(0, 1)
        annotation = Annotation(p, positive, negative, others)
        self.memory[frame] = self.network.memorize(images(self.frames[frame], self.device), annotation)

    @record_function("segment")
    def segment(self) -> np.ndarray:
        """Segment all frames by the memory: updates p, returns labels, uint8 T×H×W."""
        memories = [KeyValue(key, value) for key, value in zip(*together(self.memory.values()), strict=True)]
        labels = []
        for n, batch in enumerate(self.batches):
            query = self.queries.get(n, partial(self.encode, batch))
            p = torch.stack([self.network.segment(query, memory).softmax(dim=1)[:, 1] for memory in memories], dim=1)
            merged = merge(p)
            self.p[batch] = merged[:, 1:]
            labels.append(merged.max(dim=1).indices.to(torch.uint8))  # argmax is 50 times slower on a CPU
        return to_host(torch.cat(labels))


def images(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 ...×H×W×3 to float32 ...×3×H×W in [0, 1], on the device."""
    return torch.tensor(frames).to(device).movedim(-1, -3).float() / 255


def merge(p: Tensor) -> Tensor:
    """Objects' probabilities B×N×H×W to all planes B×(N+1)×H×W, background first.

    One object is left as it is, as in the released code; several are aggregated (Equation 3).
    """
    return aggregate(p) if p.shape[1] > 1 else torch.cat((1 - p, p), dim=1)


def stroke_planes(
    strokes: Sequence[Stroke], num_objects: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Strokes of a frame, 2 pixels dilated, as planes per object: positive and negative, both uint8 N×H×W in {0, 1}.

    An object's negative strokes are those of the background and of every other object.
    """
    labels = draw(strokes, (height, width), default=-1)
    planes = np.stack([cv2.dilate((labels == label).astype(np.uint8), DIAMOND) for label in range(num_objects + 1)])
    negative = np.stack([np.delete(planes, m, axis=0).max(axis=0) for m in range(1, num_objects + 1)])
    return planes[1:], negative
