"""The contract between the house and its guests.

The harness plays a sample with a `Method`; a method knows this module, draws strokes with
`harness.rules.scribbles`, and needs nothing else of the project. Depends on numpy alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

VOID = 255


class BadInput(Exception):
    """What the user gave cannot be used. The message is one line: the file, the value, the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


@dataclass(frozen=True)
class Clip:
    """A video, as a method sees it.

    frames: uint8 T×H×W×3, RGB; read-only where a method is scored.
    num_objects: N; objects are labelled 1..N, background is 0.
    """

    name: str
    frames: np.ndarray
    num_objects: int


@dataclass(frozen=True)
class Stroke:
    """One line drawn on a frame.

    path: float64 P×2, columns x and y, normalised to [0, 1].
    object_id: 1..N, or 0 for background ("this is not an object").
    start_time, end_time: as the file has them (people: milliseconds); the robot draws in no time.
    """

    path: np.ndarray
    object_id: int
    start_time: float = 0.0
    end_time: float = 0.0


@dataclass(frozen=True)
class Scribbles:
    """Strokes on a clip: `frames[t]` holds those of frame t, in drawing order."""

    sequence: str
    frames: tuple[tuple[Stroke, ...], ...]

    @property
    def annotated_frames(self) -> list[int]:
        """Indices of the frames that have a stroke, ascending."""
        return [t for t, strokes in enumerate(self.frames) if strokes]


@dataclass(frozen=True)
class Interaction:
    """What the user does in one round.

    frame: the annotated frame.
    new: the strokes of this round (none when the robot found nothing to draw).
    all: the strokes of every round so far, this one included.
    mask: uint8 H×W label map of `frame`, under protocols that give masks instead of strokes.
    The paths of strokes are copies, and read-only.
    """

    frame: int
    new: Scribbles
    all: Scribbles
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """What a method answers.

    masks: uint8 T×H×W, labels 0..N, for every frame of the clip.
    candidates: frames it offers for the next correction; None leaves the choice to the robot.
    """

    masks: np.ndarray
    candidates: Sequence[int] | None = None


class Method(Protocol):
    """An interactive segmentation method: any class with `start` and `interact`. It may also have

    takes_masks: True if `interact` understands an `Interaction` with a mask.
    warm_up(clip): pays one-off costs (kernels, allocator) at the clip's size; never timed, must leave no state.
    """

    def start(self, clip: Clip) -> None:
        """Begin a sample and forget the last one. Timed: charged to the first round."""

    def interact(self, interaction: Interaction) -> Prediction:
        """Answer one round. Timed."""
        ...
