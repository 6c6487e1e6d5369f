"""Where clips come from. Each module yields `Sequence`s; nothing else in the project reads data."""

import hashlib
import io
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from harness.api import VOID, BadInput, Scribbles

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # the marker each format closes with
MAX_BYTES = 2**28  # of a file; ten times what an uncompressed frame of DAVIS at full resolution has
MAX_PIXELS = 2**25  # of an image: 8K video
LONGEST_NAME = 100  # bytes: names of records have a digest and more behind it


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


def content(path: Path, most: int = MAX_BYTES) -> bytes:
    """What a file holds. Raises BadInput where it cannot be read, is a folder or a pipe, or has over `most` bytes."""
    try:
        if not path.is_file():
            raise BadInput(f"{path}: no such file; check the path")
        if (size := path.stat().st_size) > most:
            raise BadInput(f"{path}: {size} bytes, at most {most} are read; is it another file?")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}; check the path") from error


def inspect(
    frames: list[Path], annotations: list[Path], *, merge: bool = False
) -> tuple[tuple[int, int], int, list[str]]:
    """Check the files of a clip: ((H, W), number of objects, a digest line per file).

    Everything is decoded, JPEGs at an eighth of their size: that reads all of their code in an eighth of the time.
    merge: take every non-zero label for one object.
    Raises BadInput naming the first file that is unreadable, of another size or kind, and for a clip without objects.
    """
    paths = [*frames, *annotations]
    first = open_image(paths[0], content(paths[0]))
    width, height = first.size
    num_objects = 0
    digests = []
    for t, path in enumerate(paths):
        data = content(path)
        digests.append(f"{path.name} {hashlib.sha256(data).hexdigest()}")
        image = open_image(path, data)
        if image.size != first.size:
            found, wanted = ("{}x{}".format(*size) for size in (image.size, first.size))
            raise BadInput(f"{path}: {found} pixels, but {paths[0].name} has {wanted}; make them one size")
        if t < len(frames):
            image.draft("L", (1, 1))
            decode(path, image)
        else:
            labels = labels_of(path, image, merge)
            num_objects = max(num_objects, int(np.max(labels, where=labels != VOID, initial=0)))
    if not num_objects:
        raise BadInput(f"{annotations[0].parent}: no annotation has an object; paint them as 1, 2, ... (255 is void)")
    return (height, width), num_objects, digests


def open_image(path: Path, data: bytes) -> Image.Image:
    """A JPEG or PNG, its pixels not decoded yet. data: what the file holds.

    Raises BadInput for what is neither, or cut off, or claims over MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(ENDS))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: no readable image ({one_line(error)}); get the file again") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadInput(f"{path}: {image.width}x{image.height}, at most {MAX_PIXELS} pixels are read; make it smaller")
    if ENDS[str(image.format)] not in data[-64:]:
        raise BadInput(f"{path}: the image is cut off; get the file again")
    return image


def decode(path: Path, image: Image.Image, mode: str | None = None) -> np.ndarray:
    """The pixels of an opened image, converted to a Pillow `mode` if one is given. path: for the message."""
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{path}: damaged image ({one_line(error)}); get the file again") from error


def one_line(error: Exception) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_frames(paths: Iterable[Path]) -> np.ndarray:
    """Image files as uint8 T×H×W×3, RGB."""
    return np.stack([decode(path, open_image(path, content(path)), "RGB") for path in paths])


def read_annotations(paths: Iterable[Path], merge: bool = False) -> np.ndarray:
    """Annotation files as uint8 T×H×W labels; see `read_labels`."""
    return np.stack([read_labels(path, merge) for path in paths])


def read_labels(path: Path, merge: bool = False) -> np.ndarray:
    """One annotation file, palette or grey, as uint8 H×W labels; `merge` makes every non-zero one 1."""
    return labels_of(path, open_image(path, content(path)), merge)


def labels_of(path: Path, image: Image.Image, merge: bool) -> np.ndarray:
    """The labels of an opened annotation, as `read_labels` has them."""
    labels = decode(path, image)
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
