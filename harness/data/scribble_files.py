"""Scribble files in the official format of davisinteractive 1.0.4 (Caelles et al. 2018): read, check, write."""

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from harness.api import VOID, BadInput, Scribbles
from harness.data.images import content
from harness.rules.scribbles import from_json, to_json

MAX_BYTES = 2**22  # of a file; people's have ten thousand
MAX_POINTS = 10_000  # of a stroke; people's have hundreds


def read(path: Path, sequence: str, num_frames: int) -> Scribbles:
    """Read an official scribble file of a sequence with `num_frames` frames. Raises BadInput on any defect."""
    return parse(path, content(path, MAX_BYTES), sequence, num_frames)


def parse(path: Path, data: bytes, sequence: str, num_frames: int) -> Scribbles:
    """What `read` makes of a file that holds `data`."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({' '.join(str(error).split())}); get the file again") from error
    if reason := defect(given, sequence, num_frames):
        raise BadInput(f"{path}: {reason}")
    return from_json(given)


def defect(data: Any, sequence: str, num_frames: int) -> str | None:
    """What keeps `data` from being scribbles of `sequence`, with the remedy, in one line; None if nothing does."""
    if not isinstance(data, dict):
        return f"holds a {type(data).__name__}; wanted an object with the keys sequence and scribbles"
    for key in ("sequence", "scribbles"):
        if key not in data:
            return f"key {key} is missing; add it"
    if data["sequence"] != sequence:
        return f"sequence is {reprlib.repr(data['sequence'])}; wanted {sequence!r}, is it another sequence's file?"
    frames = data["scribbles"]
    if not isinstance(frames, list) or not all(isinstance(strokes, list) for strokes in frames):
        return "scribbles is not a list of lists; give one list of strokes per frame"
    if len(frames) != num_frames:
        return f"strokes for {len(frames)} frames; the sequence has {num_frames}, give one list per frame"
    for frame, strokes in enumerate(frames):
        for index, stroke in enumerate(strokes):
            if reason := stroke_defect(stroke):
                return f"frame {frame}, stroke {index}: {reason}"
    return None


def stroke_defect(stroke: Any) -> str | None:
    """What keeps `stroke` from being one, with the remedy; None if nothing does."""
    if not isinstance(stroke, dict):
        return f"is a {type(stroke).__name__}; wanted an object with path, object_id, start_time and end_time"
    for key in ("path", "object_id", "start_time", "end_time"):
        if key not in stroke:
            return f"key {key} is missing; add it"
    if type(stroke["object_id"]) is not int or not 0 <= stroke["object_id"] < VOID:
        return f"object_id is {reprlib.repr(stroke['object_id'])}; wanted 0 (background) or an object's number"
    for key in ("start_time", "end_time"):
        if not is_number(stroke[key]):
            return f"{key} is {reprlib.repr(stroke[key])}; wanted a finite number"
    if not isinstance(stroke["path"], list) or not stroke["path"]:
        return "path is empty or not a list; give at least one [x, y] or remove the stroke"
    if len(stroke["path"]) > MAX_POINTS:
        return f"path has {len(stroke['path'])} points; give at most {MAX_POINTS}"
    for point in stroke["path"]:
        if not isinstance(point, list) or len(point) != 2 or not all(map(is_number, point)):
            return f"point {reprlib.repr(point)}; wanted [x, y], two finite numbers"
        if not all(0 <= value <= 1 for value in point):
            return f"point {reprlib.repr(point)} is outside the frame; divide x by the width and y by the height"
    return None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def write(path: Path, scribbles: Scribbles) -> None:
    """Write an official scribble file. `read` gives back the same floats."""
    path.write_text(json.dumps(to_json(scribbles)), encoding="utf-8")
