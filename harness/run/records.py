"""What a sample leaves behind: one Parquet file, found again by its key.

A record is complete or it is not there: it is written to a temporary file and linked to its name, so that jobs may be
killed, resumed and run side by side, and the first complete record wins. A sample that failed leaves a
`.failed.parquet` beside it, which is reported, never scored, and tried again by the next run.

Rows are (round, object, frame) with the columns of the official report, and
    annotated_frame    the frame the user marked in that round
    scribbles          official JSON of the round's new strokes, on the first row of the round
    mask               PNG of the frame's label map, on the row of the frame's first object
Unscored frames have null scores. Everything else is JSON in the file's own metadata.
"""

import errno
import json
import logging
import os
import platform
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.api import BadInput, Scribbles
from harness.rules.scribbles import from_json, to_json
from harness.rules.session import Round
from harness.rules.summary import report_columns
from harness.run.provenance import digest

log = logging.getLogger(__name__)

METADATA = b"ivosbench"
DAMAGED = "damaged or gone; play it again with recompute=true"
STALE = 3600  # seconds after which a temporary file can only be that of a job that was killed
FLAT = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)  # label maps are smaller without, and done sooner
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("sequence", pa.string()),
        ("scribble_idx", pa.int32()),
        ("interaction", pa.int32()),
        ("object_id", pa.int32()),
        ("frame", pa.int32()),
        ("jaccard", pa.float64()),
        ("contour", pa.float64()),
        ("j_and_f", pa.float64()),
        ("timing", pa.float64()),
        ("annotated_frame", pa.int32()),
        ("scribbles", pa.string()),
        ("mask", pa.binary()),
    ]
)


class Unwritable(BadInput):
    """The disk has no room for a file of ours, or takes none: the fault of no method, and the end of a run."""


@dataclass(frozen=True)
class Key:
    """Everything a sample's scores depend on, printable.

    sample: {sequence, scribble_idx, manifest}.
    entry: what is the same for all samples of one leaderboard row: method, weights, protocol, clock, source.
    """

    sample: Mapping[str, Any]
    entry: Mapping[str, Any]

    def __str__(self) -> str:
        return json.dumps({"sample": self.sample, "entry": self.entry}, sort_keys=True)

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the key."""
        return digest(str(self).encode())

    def path(self, folder: Path) -> Path:
        """Where the record lies below `folder`."""
        sample = f"{self.sample['sequence']}-{self.sample['scribble_idx']}"
        return folder / self.entry["method"]["name"] / f"{sample}-{self.digest}.parquet"


@dataclass(frozen=True)
class Record:
    """A sample as it was played.

    status: "complete", or how it failed: "raised" an exception, gave an "invalid" prediction, "oom" (out of memory),
        "timeout", or "crashed" with its process.
    error: the traceback of a failed one, or the last lines of its process; why it ended is on the last line.
    clip: {num_frames, num_objects, size}.
    rows: without scribbles and masks unless they were asked for.
    written: when it was, in ns since the epoch, as it says itself (metadata `written`, ISO 8601); 0 if it does not.
    """

    path: Path
    key: Key
    status: str
    error: str
    clip: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: pd.DataFrame = field(repr=False)
    written: int


def write(
    folder: Path,
    key: Key,
    rows: list[dict[str, Any]],
    *,
    clip: Mapping[str, Any],
    provenance: Mapping[str, Any],
    status: str = "complete",
    error: str = "",
    replace: bool = False,
) -> Path:
    """Write one sample's record below `folder`, from the `rows_of` its rounds.

    status, error: as in `Record`; whatever is not "complete" is kept apart and never scored.
    replace: overwrite a complete record instead of keeping the first.
    Raises Unwritable; what was there stays, and nothing else.
    """
    path = key.path(folder)
    failed = path.with_suffix(".failed.parquet")
    about = {
        "sample": key.sample,
        "entry": key.entry,
        "status": status,
        "error": error,
        "clip": clip,
        "provenance": provenance,
    }
    metadata = {METADATA: json.dumps(about, sort_keys=True).encode()}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    with temporary_for(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        if status != "complete":
            return temporary.replace(failed)
        if replace:
            temporary.replace(path)
        else:
            link_first(temporary, path)
        failed.unlink(missing_ok=True)
    return path


@contextmanager
def temporary_for(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what still has it after the block is deleted. Raises Unwritable."""
    temporary = path.with_name(f".{path.stem}-{platform.node()}-{os.getpid()}.tmp")
    with writable(path.parent):
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A folder to write to, made if there is none. Raises Unwritable where that fails within the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # want of something else, which a method may have used up
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Unwritable(
            f"{folder}: cannot be written to ({reason}); make room or choose another folder, and start again: "
            "what is recorded stays"
        ) from error


def copy_scores(path: Path, folder: Path) -> Path:
    """Copy a record into `folder` without strokes and masks, which are most of it."""
    table = pq.read_table(path)
    for name in ("scribbles", "mask"):
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.nulls(len(table), field.type))
    with temporary_for(folder / path.name) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        return temporary.replace(folder / path.name)


def link_first(temporary: Path, path: Path) -> None:
    """Give the file its name unless another job was quicker.

    Where there are no hard links (exFAT, SMB, many a cloud drive) of two that end in the same instant the later wins.
    """
    try:
        os.link(temporary, path)
    except OSError:
        if not path.exists():
            temporary.rename(path)


def clear_stale(folder: Path) -> None:
    """Delete what killed jobs left half-written below `folder`."""
    for temporary in folder.glob("*/.*.tmp"):
        with suppress(FileNotFoundError):  # its job has ended, or another one clears too
            if time.time() - temporary.stat().st_mtime > STALE:
                temporary.unlink()


def rows_of(round: Round, key: Key) -> Iterator[dict[str, Any]]:
    """The rows of one round, frame by frame and object by object."""
    strokes: str | None = orjson.dumps(to_json(round.new)).decode()
    for t, label_map in enumerate(round.masks):
        mask: bytes | None = cv2.imencode(".png", label_map, FLAT)[1].tobytes()
        for k in range(round.jaccard.shape[1]):
            jaccard, contour = round.jaccard[t, k].item(), round.contour[t, k].item()
            scored = not np.isnan(jaccard)
            yield {
                "session_id": key.digest,
                "sequence": key.sample["sequence"],
                "scribble_idx": key.sample["scribble_idx"],
                "interaction": round.interaction,
                "object_id": k + 1,
                "frame": t,
                "jaccard": jaccard if scored else None,
                "contour": contour if scored else None,
                "j_and_f": 0.5 * jaccard + 0.5 * contour if scored else None,
                "timing": round.seconds,
                "annotated_frame": round.frame,
                "scribbles": strokes,
                "mask": mask,
            }
            strokes = mask = None


def read(path: Path, *, content: bool = False) -> Record:
    """Read a record; `content` includes scribbles and masks."""
    columns = None if content else [*report_columns, "annotated_frame"]
    try:
        schema = pq.read_schema(path)
        about = json.loads(schema.metadata[METADATA])
        key = Key(about["sample"], about["entry"])
        name = f"{key.sample['sequence']}-{key.sample['scribble_idx']}-{key.digest}"
        if not schema.equals(SCHEMA) or path.name.removesuffix(".parquet").removesuffix(".failed") != name:
            raise ValueError("not as it was written")
        told = about["status"], printable(about["error"]), about["clip"], about["provenance"]
        written = nanoseconds(about["written"]) if "written" in about else 0
        return Record(path, key, *told, pq.read_table(path, columns=columns).to_pandas(), written)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"{path}: not a record of ours ({type(error).__name__}); delete it and run again") from error


def nanoseconds(time: str) -> int:
    """An ISO 8601 time as ns since the epoch, exact to the microsecond."""
    return round(datetime.fromisoformat(time).timestamp() * 1e6) * 1000


def masks_of(record: Record, interaction: int) -> np.ndarray:
    """uint8 T×H×W label masks after round `interaction` of a record read with its content.

    Raises BadInput if they are damaged or gone.
    """
    rows = record.rows[(record.rows.interaction == interaction) & record.rows["mask"].notna()].sort_values("frame")
    try:
        masks = np.stack([decode(png) for png in rows["mask"]])
    except ValueError as error:
        raise BadInput(f"{record.path}: masks of round {interaction} are {DAMAGED}") from error
    if masks.shape != (record.clip["num_frames"], *record.clip["size"]):
        raise BadInput(f"{record.path}: masks of round {interaction} are {DAMAGED}")
    return masks


def scribbles_of(record: Record, interaction: int) -> tuple[int, Scribbles]:
    """(annotated frame, new strokes) of round `interaction` of a record read with its content.

    Raises BadInput if they are damaged or gone.
    """
    first = int(np.argmax(record.rows["interaction"].to_numpy() == interaction))
    frame, strokes = (record.rows[column].iloc[first] for column in ("annotated_frame", "scribbles"))
    try:
        drawn = from_json(orjson.loads(strokes))
        if not 0 <= frame < len(drawn.frames) == record.clip["num_frames"]:
            raise ValueError("of another clip")
        return int(frame), drawn
    except (ValueError, TypeError, KeyError, BadInput) as error:
        raise BadInput(f"{record.path}: strokes of round {interaction} are {DAMAGED}") from error


def write_thumbnails(folder: Path, manifest: str, frames: np.ndarray, height: int = 160) -> None:
    """Keep small JPEGs of a sequence's frames (T×H×W×3 RGB) below `folder`, once, for the film strips."""
    path = folder / "frames" / f"{manifest}.parquet"
    if path.exists():
        return
    size = (round(height * frames.shape[2] / frames.shape[1]), height)
    small = (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames)
    jpegs = [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes() for frame in small]
    with temporary_for(path) as temporary:
        pq.write_table(pa.table({"jpeg": jpegs}), temporary)
        temporary.replace(path)


def printable(text: str) -> str:
    """A text with escapes for what nobody can print or encode; line ends stay."""
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in text.splitlines())


def read_thumbnails(record: Record) -> np.ndarray | None:
    """uint8 T×h×w×3 RGB of a record's clip, as `write_thumbnails` left them; None if they are gone or damaged."""
    path = record.path.parents[1] / "frames" / f"{record.key.sample['manifest']}.parquet"
    if not path.exists():
        return None
    try:
        frames = np.stack([decode(jpeg) for jpeg in pq.read_table(path)["jpeg"].to_pylist()])
    except (OSError, ValueError, KeyError):
        frames = np.empty(0)
    if frames.ndim != 4 or len(frames) != record.clip["num_frames"]:
        remedy = "delete it and play a sample of its clip with recompute=true"
        log.warning("%s: damaged, so there are no film strips of its clip; %s", path, remedy)
        return None
    return frames


def decode(encoded: bytes) -> np.ndarray:
    """The pixels of a PNG or JPEG. Raises ValueError for one that is damaged."""
    try:
        return np.asarray(Image.open(BytesIO(encoded)))
    except (OSError, SyntaxError, TypeError, struct.error, zlib.error) as error:
        raise ValueError("not a whole picture") from error
