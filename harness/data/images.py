"""Image files of a clip: opened, checked, read."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from harness.api import VOID, BadInput

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # the marker each format closes with
MAX_BYTES = 2**28  # of a file; ten times what an uncompressed frame of DAVIS at full resolution has
MAX_PIXELS = 2**25  # of an image: 8K video


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
        digests.append(digest_line(path, data))
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


def digest_line(path: Path, data: bytes) -> str:
    """A file's name and the digest of what it holds, a line of a manifest."""
    return f"{path.name} {hashlib.sha256(data).hexdigest()}"


def as_listed(path: Path, line: str) -> bytes:
    """What a file holds. Raises BadInput if that is not what its `digest_line` says, as when it was edited since."""
    data = content(path)
    if digest_line(path, data) != line:
        raise BadInput(f"{path}: changed since the run began; run again to play it as it is now")
    return data


def read_frames(paths: Iterable[Path], lines: Iterable[str]) -> np.ndarray:
    """Image files as uint8 T×H×W×3, RGB. lines: the `digest_line` of each, which it must still have."""
    images = ((path, open_image(path, as_listed(path, line))) for path, line in zip(paths, lines, strict=True))
    return np.stack([decode(path, image, "RGB") for path, image in images])


def read_annotations(paths: Iterable[Path], lines: Iterable[str], merge: bool = False) -> np.ndarray:
    """Annotation files as uint8 T×H×W labels; lines: as in `read_frames`, merge: as in `read_labels`."""
    images = ((path, open_image(path, as_listed(path, line))) for path, line in zip(paths, lines, strict=True))
    return np.stack([labels_of(path, image, merge) for path, image in images])


def read_labels(path: Path, merge: bool = False) -> np.ndarray:
    """One annotation file, palette or grey, as uint8 H×W labels; `merge` makes every non-zero one 1."""
    return labels_of(path, open_image(path, content(path)), merge)


def labels_of(path: Path, image: Image.Image, merge: bool) -> np.ndarray:
    """The labels of an opened annotation, as `read_labels` has them."""
    labels = decode(path, image)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise BadInput(f"{path}: neither a palette nor an 8-bit grey PNG; its pixels must be object ids")
    return (labels > 0).astype(np.uint8) if merge else labels
