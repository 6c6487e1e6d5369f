"""A folder of one's own clips: `frames/<clip>/*.jpg|png` and `masks/<clip>/*.png`, matched by name."""

import json
import re
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from harness.api import BadInput
from harness.data.images import inspect, read_annotations, read_frames, read_labels
from harness.data.sequence import VideoSequence, choose, digest_of, robot_scribbles, root_folder
from harness.rules.scribbles import to_json

SUFFIXES = (".jpg", ".jpeg", ".png")


def load(
    root: str, sequences: Iterable[str] | None = None, first_frame: int | str = 0, seed: int = 0
) -> list[VideoSequence]:
    """The clips of a folder; the robot draws the first scribble of each from its ground truth.

    root: holds frames/ and masks/; the pixels of a mask are object ids, 0 background, 255 void.
    sequences: the clips to take; None takes all.
    first_frame: where the first scribble goes: an index, "first", "middle", or "random", which `seed` decides.
    Raises BadInput for anything that would keep a clip from being played and scored.
    """
    folder = root_folder(root)
    if type(seed) is not int or seed < 0:
        raise BadInput(f"dataset.seed={seed!r}: wanted 0 or more")
    for part in (folder / "frames", folder / "masks"):
        if not part.is_dir():
            raise BadInput(f"{part}: no such folder; dataset.root wants frames/<clip>/*.jpg and masks/<clip>/*.png")
    names = choose(sorted(path.name for path in (folder / "frames").iterdir() if path.is_dir()), sequences, folder)
    return [load_clip(folder, name, first_frame, seed) for name in names]


def load_clip(root: Path, name: str, first_frame: int | str, seed: int) -> VideoSequence:
    """One clip, its files checked."""
    folder = root / "frames" / name
    frames = by_number(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    masks = by_number((root / "masks" / name).glob("*.png"))
    if not frames:
        raise BadInput(f"{folder}: no .jpg or .png; put the clip's frames there")
    stems = [path.stem for path in frames]
    if len(set(stems)) < len(stems):
        raise BadInput(f"{folder}: two frames of one name; keep one of the .jpg and .png")
    if unmatched := sorted(set(stems) ^ {path.stem for path in masks}):
        side = "mask" if unmatched[0] in stems else "frame"
        raise BadInput(f"{name}: no {side} for {unmatched[0]}; give every frame a mask of its name")
    size, num_objects, digests = inspect(frames, masks)
    frame = index_of(name, first_frame, len(frames), seed)
    scribbles = robot_scribbles(name, len(frames), frame, read_labels(masks[frame]), num_objects)
    if not scribbles.annotated_frames:
        raise BadInput(f"{masks[frame]}: nothing on frame {frame} to scribble on; choose another dataset.first_frame")
    return VideoSequence(
        name=name,
        num_frames=len(frames),
        num_objects=num_objects,
        size=size,
        manifest=digest_of([*digests, json.dumps(to_json(scribbles))]),
        scribbles={1: scribbles},
        read_frames=partial(read_frames, frames, digests[: len(frames)]),
        read_annotations=partial(read_annotations, masks, digests[len(frames) :]),
        drawn_by="robot",
    )


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Sorted by name, numbers by value: frame2 before frame10; 01 before 1."""

    def key(path: Path) -> tuple[list[int | str], str]:
        parts = re.split(r"([0-9]+)", path.stem)  # the odd ones are the numbers
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.stem

    return sorted(paths, key=key)


def index_of(name: str, first_frame: int | str, num_frames: int, seed: int) -> int:
    """The frame that `first_frame` means in a clip."""
    if first_frame == "random":
        return int(np.random.default_rng([seed, zlib.crc32(name.encode())]).integers(num_frames))
    frame = {"first": 0, "middle": num_frames // 2}.get(str(first_frame), first_frame)
    if not isinstance(frame, int) or not 0 <= frame < num_frames:
        raise BadInput(
            f"{name}: dataset.first_frame={first_frame!r}; choose 0..{num_frames - 1}, first, middle or random"
        )
    return frame
