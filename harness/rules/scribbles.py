"""Scribbles: fuse, draw, and their official JSON form.

The file format and the drawing rules are those of davisinteractive 1.0.4 (Caelles et al. 2018), bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.api import Scribbles, Stroke

MAX_BEZIER_POINTS = 1000  # the official curve never has more, whatever is asked for


def empty(sequence: str, num_frames: int) -> Scribbles:
    """Scribbles of `sequence` without a stroke."""
    return Scribbles(sequence, ((),) * num_frames)


def fuse(a: Scribbles, b: Scribbles) -> Scribbles:
    """The strokes of `a`, then those of `b`, frame by frame.

    The official `fuse` also modifies `a` in place; scribbles are immutable here, so it cannot happen.
    Raises ValueError unless both are of the same sequence and number of frames.
    """
    if a.sequence != b.sequence:
        raise ValueError(f"scribbles of two sequences: {a.sequence} and {b.sequence}")
    if len(a.frames) != len(b.frames):
        raise ValueError(f"{a.sequence}: scribbles on {len(a.frames)} and {len(b.frames)} frames")
    return Scribbles(a.sequence, tuple(ours + theirs for ours, theirs in zip(a.frames, b.frames, strict=True)))


def to_json(scribbles: Scribbles) -> dict[str, Any]:
    """Scribbles in the official JSON form."""
    return {
        "sequence": scribbles.sequence,
        "scribbles": [
            [
                {
                    "path": stroke.path.tolist(),
                    "object_id": int(stroke.object_id),
                    "start_time": stroke.start_time,
                    "end_time": stroke.end_time,
                }
                for stroke in strokes
            ]
            for strokes in scribbles.frames
        ],
    }


def from_json(data: dict[str, Any]) -> Scribbles:
    """Scribbles out of their official JSON form, which is taken to be sound (`harness.data.scribble_files` checks)."""
    frames = (
        tuple(
            Stroke(np.asarray(s["path"], np.float64).reshape(-1, 2), s["object_id"], s["start_time"], s["end_time"])
            for s in strokes
        )
        for strokes in data["scribbles"]
    )
    return Scribbles(data["sequence"], tuple(frames))


def draw_all(
    scribbles: Scribbles,
    size: tuple[int, int],
    *,
    default: int = -1,
    bezier: bool = False,
    nb_points: int = 1000,
    bresenham: bool = True,
) -> np.ndarray:
    """Draw every frame: int64 T×H×W. Arguments and errors as in `draw`."""
    drawn = [
        draw(strokes, size, default=default, bezier=bezier, nb_points=nb_points, bresenham=bresenham)
        for strokes in scribbles.frames
    ]
    return np.stack(drawn) if drawn else np.empty((0, *size), np.int64)


def draw(
    strokes: Sequence[Stroke],
    size: tuple[int, int],
    *,
    default: int = -1,
    bezier: bool = False,
    nb_points: int = 1000,
    bresenham: bool = True,
) -> np.ndarray:
    """Draw the strokes of one frame: int64 H×W holding object ids, `default` where nothing is drawn.

    Later strokes go over earlier ones. x times W - 1 and y times H - 1 are truncated towards zero.
    bezier: draw each stroke's Bézier curve of `nb_points` points instead of its own points.
    bresenham: connect consecutive points.
    Raises IndexError for a point beyond the right or lower border (one beyond the left or upper border comes in
    again on the other side, as officially), ValueError for a stroke without points or a size below 1.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size {size}: wanted height and width of at least 1")
    drawn = np.full((height, width), int(default), np.int64)
    for stroke in strokes:
        x, y = pixels(stroke.path, width, height, nb_points if bezier else None, connect=bresenham).T
        drawn[y, x] = stroke.object_id
    return drawn


def pixels(path: np.ndarray, width: int, height: int, nb_points: int | None, connect: bool) -> np.ndarray:
    """The pixels of a path, int64 Q×2 (x, y); `nb_points` asks for its Bézier curve."""
    points = as_points(path) if nb_points is None else bezier(path, nb_points)
    corners = (points * (width - 1, height - 1)).astype(np.int64)
    return bresenham(corners) if connect else corners


def bresenham(points: np.ndarray) -> np.ndarray:
    """Connect pixels by Bresenham's lines: int P×2 (x, y) to int Q×2, Q >= P, inner points doubled."""
    points = np.asarray(points)
    if len(points) < 2:
        return points
    step = np.diff(points, axis=0)
    length = np.abs(step).max(axis=1)
    first = np.cumsum(length + 1) - (length + 1)
    segment = np.repeat(np.arange(len(step)), length + 1)
    k = np.arange(len(segment)) - first[segment]
    # The error term in closed form: after k of a steps the other axis has moved k b / a, halves rounded up.
    a = np.maximum(length, 1)[segment, None]
    moved = (2 * k[:, None] * np.abs(step)[segment] + a) // (2 * a)
    return points[segment] + np.sign(step)[segment] * moved


def bezier(points: np.ndarray, nb_points: int = 1000) -> np.ndarray:
    """The Bézier curve with all of `points` as control points: float P×2 to float64 nb_points×2, at most 1000.

    As officially, the curve runs from the last point to the first, and more points than `nb_points` come back as
    they are. Raises ValueError unless `points` is P×2 with P >= 1.
    """
    points = as_points(points)
    nb_points = min(nb_points, MAX_BEZIER_POINTS)
    degree = len(points) - 1
    if degree >= nb_points:
        return points
    t = np.linspace(0, 1, nb_points)
    k = np.arange(degree)
    binomial = np.cumprod(np.append(1.0, (degree - k) / (k + 1)))
    basis = powers(t, degree)[:, ::-1] * powers(1 - t, degree) * binomial
    curve: np.ndarray = basis @ points
    return curve


def powers(base: np.ndarray, highest: int) -> np.ndarray:
    """base**0 ... base**highest, float64 len(base)×(highest + 1), 0**0 being 1."""
    factors = np.repeat(base[:, None], highest + 1, axis=1)
    factors[:, 0] = 1
    return np.cumprod(factors, axis=1)


def as_points(points: np.ndarray) -> np.ndarray:
    """`points` as float64 P×2, P >= 1, or ValueError."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"a path of shape {points.shape}; wanted P×2 with P >= 1")
    return points
