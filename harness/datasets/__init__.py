"""Where clips come from. Each module yields `Sequence`s; nothing else in the project reads data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from harness.api import Scribbles


@dataclass(frozen=True)
class Sequence:
    """A clip with its ground truth, checked when it was listed and read when it is played.

    size: (H, W).
    num_objects: N, objects are labelled 1..N.
    manifest: digest of the content: frames, annotations and scribbles.
    scribbles: first-round scribbles by index (1, 2, 3); empty where nobody drew any.
    scribbles_expected: how many the dataset's authors published ("n of 3").
    drawn_by: who drew them, "human" or "robot".
    read_frames: gives uint8 T×H×W×3, RGB.
    read_annotations: gives uint8 T×H×W labels, 0 background, 255 void.
    """

    name: str
    num_frames: int
    num_objects: int
    size: tuple[int, int]
    manifest: str
    scribbles: Mapping[int, Scribbles]
    read_frames: Callable[[], np.ndarray] = field(repr=False, compare=False)
    read_annotations: Callable[[], np.ndarray] = field(repr=False, compare=False)
    scribbles_expected: int = 1
    drawn_by: str = "human"
