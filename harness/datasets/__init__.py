"""Where clips come from. Each module yields `Sequence`s; nothing else in the project reads data."""

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from harness.api import VOID, BadInput, Scribbles

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # the marker each format closes with


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


def choose(known: Collection[str], wanted: Iterable[str] | str | None, where: Path) -> list[str]:
    """The sequences to play, in the order of `known`; all of them if `wanted` is None.

    where: what lists the known ones, for the message. Raises BadInput for a name that is not known, or for none.
    """
    if wanted is None:
        chosen = list(known)
    else:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        if unknown := [name for name in names if name not in known]:
            raise BadInput(f"dataset.sequences: {', '.join(unknown)} not in {where}; known: {', '.join(known)}")
        chosen = [name for name in known if name in names]
    if not chosen:
        raise BadInput(f"{where}: no sequence to play; check it and dataset.sequences (null takes all)")
    return chosen


def inspect(
    frames: list[Path], annotations: list[Path], *, merge: bool = False
) -> tuple[tuple[int, int], int, list[str]]:
    """Check the files of a clip: ((H, W), number of objects, a digest line per file).

    Annotations are decoded; of a frame only the header and the end are looked at, as decoding all would take long.
    merge: take every non-zero label for one object.
    Raises BadInput naming the first file that is unreadable, of another size or kind, and for a clip without objects.
    """
    paths = [*frames, *annotations]
    first = open_image(paths[0])
    width, height = first.size
    num_objects = 0
    digests = []
    for path in paths:
        data = path.read_bytes()
        digests.append(f"{path.name} {hashlib.sha256(data).hexdigest()}")
        image = open_image(path, data)
        if image.size != first.size:
            found, wanted = ("{}x{}".format(*size) for size in (image.size, first.size))
            raise BadInput(f"{path}: {found} pixels, but {paths[0].name} has {wanted}; make them one size")
    for path in annotations:
        labels = read_labels(path, merge)
        num_objects = max(num_objects, int(np.max(labels, where=labels != VOID, initial=0)))
    if not num_objects:
        raise BadInput(f"{annotations[0].parent}: no annotation has an object; paint them as 1, 2, ... (255 is void)")
    return (height, width), num_objects, digests


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """An image file, its pixels not decoded yet. `data` is its content if it was read before."""
    data = path.read_bytes() if data is None else data
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{path}: no readable image; get the file again") from error
    if ENDS.get(str(image.format), b"") not in data[-64:]:
        raise BadInput(f"{path}: the image is cut off; get the file again")
    return image


def decode(path: Path, mode: str | None = None) -> np.ndarray:
    """The pixels of an image file, converted to a Pillow `mode` if one is given."""
    image = open_image(path)
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{path}: damaged image ({error}); get the file again") from error


def read_frames(paths: Iterable[Path]) -> np.ndarray:
    """Image files as uint8 T×H×W×3, RGB."""
    return np.stack([decode(path, "RGB") for path in paths])


def read_annotations(paths: Iterable[Path], merge: bool = False) -> np.ndarray:
    """Annotation files as uint8 T×H×W labels; see `read_labels`."""
    return np.stack([read_labels(path, merge) for path in paths])


def read_labels(path: Path, merge: bool = False) -> np.ndarray:
    """One annotation file, palette or grey, as uint8 H×W labels; `merge` makes every non-zero one 1."""
    labels = decode(path)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise BadInput(f"{path}: neither a palette nor an 8-bit grey PNG; its pixels must be object ids")
    return (labels > 0).astype(np.uint8) if merge else labels


def digest_of(lines: Iterable[str]) -> str:
    """One digest of many lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def robot_scribbles(name: str, num_frames: int, frame: int, truth: np.ndarray, num_objects: int) -> Scribbles:
    """First scribbles for a clip nobody drew on: the robot corrects an empty mask of one frame.

    truth: uint8 H×W labels of `frame`. The background gets no stroke, as people give it none in the first round.
    """
    from harness.robot import correct  # compiles on import, which whoever only reads clips need not wait for

    strokes = (stroke for stroke in correct(np.zeros_like(truth), truth, num_objects) if stroke.object_id > 0)
    frames = [()] * num_frames
    return Scribbles(name, (*frames[:frame], tuple(strokes), *frames[frame + 1 :]))
