"""STM carries masks through a video (Oh et al., TPAMI 2020, Section 3.6; first at ICCV 2019)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from harness.api import VOID, BadInput, Clip, Interaction, Method, Prediction
from methods.blocks.aggregation import aggregate
from methods.blocks.host import to_host
from methods.blocks.memory import KeyValue, together
from methods.blocks.options import one_of
from methods.blocks.precision import Precision, inference
from methods.blocks.weights import lay_out, official_file, prepare
from methods.stm.checkpoint import load
from methods.stm.method import images
from methods.stm.network import Mask, Sharing, Size, STMSemiSupervised

OFFICIAL_FILE = "STM_weights.pth"
OFFICIAL_FILES = {"network": OFFICIAL_FILE}
PUBLISHED = "github.com/seoungwugoh/STM"
Memory = Literal["first", "previous", "first_previous", "every"]


class STMVideo(Method):
    """Frame after frame is segmented by reading a memory of those before it. Takes masks; strokes are refused.

    The pass starts at the newest mask, forwards and backwards, and ends at the next frame that was given a mask: those
    keep it. In the semi-supervised setting, one mask on the first frame, that is the paper's only pass.

    size, weights, device, seed: see `methods.blocks.weights.prepare`. official: the authors' file of the network.
    memory, mem_every: see `State.remembers`.
    sharing, stages: see `methods.stm.network.SpaceTimeMemory`. precision: `methods.blocks.precision.inference`.
    """

    takes_masks = True

    def __init__(
        self,
        memory: Memory = "every",
        mem_every: int = 5,
        sharing: Sharing = "none",
        stages: int = 0,
        precision: Precision = "float32",
        size: Size = "paper",
        weights: str = "official",
        official: Mapping[str, str] = OFFICIAL_FILES,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        one_of(Memory, memory=memory)
        one_of(Precision, precision=precision)
        if mem_every < 1:
            raise BadInput(f"mem_every={mem_every}: wanted 1 or more frames")
        self.network = prepare(
            lambda: STMSemiSupervised(size, sharing, stages),
            weights,
            lambda: load(official_file(official["network"], PUBLISHED), STMSemiSupervised),
            device,
            seed,
        )
        self.memory: Memory = memory
        self.mem_every = mem_every
        self.precision: Precision = precision

    def warm_up(self, clip: Clip) -> None:
        """Carry an empty mask through three frames of the clip, on a sample that is thrown away."""
        with inference(self.network, self.precision):
            sample = self.new_state(replace(clip, frames=clip.frames[:3]))
            sample.answer(0, np.zeros(clip.frames.shape[1:3], np.uint8))

    def start(self, clip: Clip) -> None:
        """Begin a sample."""
        self.state = self.new_state(clip)

    def interact(self, interaction: Interaction) -> Prediction:
        """Keep the mask and carry it to both sides."""
        if interaction.mask is None:
            raise BadInput("stm_video takes masks, not strokes; play it with protocol=semi_supervised or perfect")
        with inference(self.network, self.precision):
            return Prediction(self.state.answer(interaction.frame, interaction.mask))

    def new_state(self, clip: Clip) -> "State":
        """Nothing known yet."""
        return State(self.network, clip, self.memory, self.mem_every)


class State:
    """What STM knows of one sample.

    labels: uint8 T×H×W, the answer so far. given: the frames whose mask was given, each with its memory entry,
    N×C/8×h×w and N×C/2×h×w: 4.1 MB per object at paper size and 480×854.
    """

    def __init__(self, network: STMSemiSupervised, clip: Clip, memory: Memory, mem_every: int) -> None:
        self.network = lay_out(network)
        self.device = next(network.parameters()).device
        self.clip = clip
        self.rule = memory
        self.mem_every = mem_every
        self.labels = np.zeros(clip.frames.shape[:3], np.uint8)
        self.given: dict[int, KeyValue] = {}

    def answer(self, frame: int, mask: np.ndarray) -> np.ndarray:
        """Keep `mask`, uint8 H×W, for `frame` and segment from there to the next given frames. Returns all labels."""
        self.give(frame, mask)
        before = max((s for s in self.given if s < frame), default=-1)
        after = min((s for s in self.given if s > frame), default=len(self.labels))
        for frames in (range(frame + 1, after), range(frame - 1, before, -1)):
            for t, p in self.propagate(frames):
                self.labels[t] = to_host(p.max(dim=0).indices)
        return self.labels.copy()

    def give(self, frame: int, mask: np.ndarray) -> None:
        """Keep the mask of a frame, void as background, and memorize it, one-hot."""
        self.labels[frame] = np.where(mask == VOID, 0, mask)
        objects = np.arange(1, self.clip.num_objects + 1)[:, None, None]
        self.given[frame] = self.memorize(frame, torch.from_numpy(self.labels[frame] == objects).float())

    def propagate(self, frames: range) -> Iterator[tuple[int, Tensor]]:
        """Segment `frames` in their order, the first of them beside a given one. Yields t and p_0..p_N, (N+1)×H×W.

        What is memorized are probabilities, not labels, "to model the uncertainty of the estimation" (Section 3.6.1).
        """
        start = frames.start - frames.step
        memory = dict(self.given)
        for t in frames:
            memory = {s: entry for s, entry in memory.items() if self.remembers(s, start, t - frames.step)}
            with record_function("encode"):
                query = self.network.encode(images(self.clip.frames[t : t + 1], self.device))
            with record_function("segment"):
                # The authors aggregate 11 planes; an empty one weighs e^-16 = 1e-7, below every limit, and is left out.
                p = aggregate(self.network.segment(query, together(memory.values())).softmax(dim=1)[:, 1])
            yield t, p
            if self.rule != "first" and t != frames[-1]:
                memory[t] = self.memorize(t, p[1:])

    def remembers(self, s: int, start: int, previous: int) -> bool:
        """Whether frame s is read for the frame after `previous`, in a pass from `start` (Section 3.6.2, Table 6).

        "first": frames with a given mask. "previous": the frame before. "first_previous": both. "every": also each
        `mem_every`-th frame of the pass. Each frame that is read takes 8 MB per object at paper size and 480×854,
        for its entry and a copy beside the others: a long clip wants a larger mem_every, or "first_previous".
        """
        return (
            (self.rule != "previous" and s in self.given)
            or (self.rule != "first" and s == previous)
            or (self.rule == "every" and (s - start) % self.mem_every == 0)
        )

    @record_function("memorize")
    def memorize(self, frame: int, p: Tensor) -> KeyValue:
        """The memory entry of a frame and its objects' probabilities, N×H×W."""
        p = p.to(self.device)
        others = (p.sum(dim=0) - p).clamp(0, 1)  # clamped by the authors, not in Section 3.4
        return self.network.memorize(images(self.clip.frames[frame], self.device), Mask(p, others))
