"""A clip with its ground truth, as every dataset lists it."""

import hashlib
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from harness.api import BadInput, Scribbles

LONGEST_NAME = 100  # bytes: names of records have a digest and more behind it


@dataclass(frozen=True)
class VideoSequence:
    """A clip with its ground truth, checked when it was listed and read when it is played.

    size: (H, W).
    num_objects: N, objects are labelled 1..N.
    manifest: digest of the content: frames, annotations and scribbles.
    made_by: what makes it anew, of a clip that is made: the generator's version and arguments; else empty.
    scribbles: first-round scribbles by index (1, 2, 3); empty where nobody drew any.
    scribbles_expected: how many the dataset's authors published ("n of 3").
    drawn_by: who drew them, "human" or "robot".
    read_frames: gives uint8 T×H×W×3, RGB.
    read_annotations: gives uint8 T×H×W labels, 0 background, 255 void.
    made_by: version and arguments of what generated the clip, "generator 1: split=val, ..."; empty for one in files.
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
    made_by: str = ""


def choose(known: Collection[str], wanted: Iterable[str] | str | None, where: Path) -> list[str]:
    """The sequences to play, in the order of `known`; all of them if `wanted` is None.

    where: what lists the known ones, for the message. Raises BadInput for a name that is not known, for none, and for
    a known one that is not `plain`.
    """
    for name in known:
        plain(name, f"{where}: sequence")
    if wanted is None:
        chosen = list(known)
    else:
        names = [str(name) for name in wanted] if isinstance(wanted, list | tuple) else [str(wanted)]
        if unknown := " ".join(", ".join(name for name in names if name not in known).split()):
            raise BadInput(f"dataset.sequences: {unknown} not in {where}; known: {', '.join(known)}")
        chosen = [name for name in known if name in names]
    if not chosen:
        raise BadInput(f"{where}: no sequence to play; check it and dataset.sequences (null takes all)")
    return chosen


def root_folder(root: str) -> Path:
    """The folder that `dataset.root` names, which need not be there; BadInput if its name cannot be printed."""
    if not str(root).isprintable():
        raise BadInput(f"dataset.root={reprlib.repr(root)}: has characters nobody can print; rename the folder")
    return Path(os.path.expanduser(str(root)))


def plain(name: str, what: str) -> str:
    """`name`, if a file or a folder can be called that wherever it is put.

    what: says whose name it is. Raises BadInput for one that leads to another folder, that has line ends or other
    characters nobody can print, or that is too long.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise BadInput(f"{what} {reprlib.repr(name)}: not the name of one file or folder; rename it")
    if len(name.encode()) > LONGEST_NAME:
        raise BadInput(f"{what} {reprlib.repr(name)}: longer than {LONGEST_NAME} bytes; rename it")
    return name


def digest_of(lines: Iterable[str]) -> str:
    """One digest of many lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def robot_scribbles(name: str, num_frames: int, frame: int, truth: np.ndarray, num_objects: int) -> Scribbles:
    """First scribbles for a clip nobody drew on: the robot corrects an empty mask of one frame.

    truth: uint8 H×W labels of `frame`. The background gets no stroke, as people give it none in the first round.
    Points are rounded to 1/65536: the robot's last bits differ by machine, and a clip's digest must not.
    """
    from harness.rules.robot import correct  # compiles on import, which whoever only reads clips need not wait for

    strokes = (
        replace(stroke, path=np.rint(stroke.path * 2**16) / 2**16)
        for stroke in correct(np.zeros_like(truth), truth, num_objects)
        if stroke.object_id > 0
    )
    frames = [()] * num_frames
    return Scribbles(name, (*frames[:frame], tuple(strokes), *frames[frame + 1 :]))
