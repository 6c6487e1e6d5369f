"""What a sample leaves behind: one Parquet file, found again by its key.

A record is complete or it is not there: it is written to a temporary file and linked to its name, so that jobs may be
killed, resumed and run side by side, and the first complete record wins. A sample that failed leaves a
`.failed.parquet` beside it, which is reported, never scored, and tried again by the next run.

Rows are (round, object, frame) with the columns of the official report, and
    annotated_frame    the frame the user marked in that round
    scribbles          official JSON of the round's new strokes, on the first row of the round
    mask               PNG of the frame's label map, on the row of the frame's first object
Unscored frames have null scores. Everything else is JSON in the file's own metadata: see `Record`, and
    format             1; records without are of format 0
    written            when, in UTC, which no copy changes
Whatever later versions add or leave out, a record of an earlier format is read for ever.
"""

import errno
import json
import logging
import os
import platform
import struct
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from harness.api import BadInput, Scribbles
from harness.rules.scribbles import from_json, to_json
from harness.rules.session import Round
from harness.rules.summary import report_columns
from harness.run.identity import from_format_0
from harness.run.provenance import digest

log = logging.getLogger(__name__)

FORMAT = 1
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
SCORES = [*report_columns, "annotated_frame"]
OPTIONAL = ("session_id", "annotated_frame", "scribbles", "mask")  # columns without which there are scores
EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)
PLACE = ("commit", "hardware", "python", "numpy", "opencv", "torch", "scribbles")
UNTOLD = {"samples": 0, "changes": [], "shared": False, **dict.fromkeys(PLACE, "unknown")}  # of a record's provenance


class Unwritable(BadInput):
    """The disk has no room for a file of ours, or takes none: the fault of no method, and the end of a run."""


@dataclass(frozen=True)
class Key:
    """Everything a sample's scores depend on, printable.

    sample: {sequence, scribble_idx, manifest}, and made_by for a clip that was generated.
    entry: what is the same for all samples of one leaderboard row: method, weights, dataset, protocol, clock, source.
    What is in them for information alone is not part of what they are; see `clip` and `row`.
    """

    sample: Mapping[str, Any]
    entry: Mapping[str, Any]

    @property
    def clip(self) -> str:
        """What the clip is: what generated it, whose bits may differ between processors, or the digest of its files."""
        return str(self.sample.get("made_by") or self.sample["manifest"])

    @property
    def row(self) -> dict[str, Any]:
        """What of the entry its scores depend on: of its weights the digest, neither name nor training."""
        return {**self.entry, "weights": self.entry.get("weights", {}).get("digest", "")}

    def __str__(self) -> str:
        told = {"sequence": self.sample["sequence"], "scribble_idx": self.sample["scribble_idx"], "clip": self.clip}
        return json.dumps({"sample": told, "entry": self.row}, sort_keys=True)

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the key."""
        return digest(str(self).encode())

    def path(self, folder: Path) -> Path:
        """Where the record lies below `folder`."""
        return folder / self.entry["method"]["name"] / f"{self.name}.parquet"

    @property
    def name(self) -> str:
        """What the record's file is called, but for its suffix."""
        return f"{self.sample['sequence']}-{self.sample['scribble_idx']}-{self.digest}"


@dataclass(frozen=True)
class Record:
    """A sample as it was played.

    status: "complete", or how it failed: "raised" an exception, gave an "invalid" prediction, "oom" (out of memory),
        "timeout", or "crashed" with its process.
    error: the traceback of a failed one, or the last lines of its process; why it ended is on the last line.
    clip: {num_frames, num_objects, size}.
    rows: without scribbles and masks unless they were asked for.
    written: when it was, in ns since 1970, as it says itself, 0 where it does not.
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
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
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


def archive(found: Iterable[Path], path: Path) -> None:
    """Keep the scores of records in one file, without strokes and masks, which are most of them; see `read_archive`.

    What it holds already stays, but for what differs from these in the code alone. One job at a time.
    """
    kept: dict[str, tuple[str, pa.Table]] = {}
    with readable(path):
        parts = archived_parts(path)
        for each in found:
            table, metadata = read_table(each, SCORES)
            parts.append((metadata[METADATA].decode(), table))
        for about, table in parts:
            key = record_of(path, json.loads(about), table).key
            kept[str(Key(key.sample, {**key.entry, "source": ""}))] = about, table
    whole = pa.concat_tables(
        [part for about, table in kept.values() for part in (pa.table({"about": [about]}), table)],
        promote_options="default",
    )
    with temporary_for(path) as temporary:
        pq.write_table(whole.replace_schema_metadata(), temporary, compression="zstd")
        temporary.replace(path)


def archived_parts(path: Path) -> list[tuple[str, pa.Table]]:
    """The records of a file that `archive` wrote, as JSON about each and its rows; none where there is no file."""
    if not path.exists():
        return []
    table, _ = read_table(path, ["about", *SCORES])
    abouts = table["about"].to_pylist()
    starts = [row for row, about in enumerate(abouts) if about is not None]
    ends = [*starts[1:], len(abouts)]
    return [(abouts[start], table.slice(start + 1, end - start - 1)) for start, end in zip(starts, ends, strict=True)]


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
    """Read a record of any format; `content` includes scribbles and masks.

    What it lacks of columns and provenance is empty or "unknown", what it has beyond them is left out.
    Raises BadInput for what is no record or not as it was written, and for one of a later format.
    """
    with readable(path):
        table, metadata = read_table(path, SCHEMA.names if content else SCORES)
        about = json.loads(metadata[METADATA])
        record = record_of(path, about, conform(table, SCHEMA.names if content else SCORES))
        if path.name.removesuffix(".parquet").removesuffix(".failed") != name_of(record, about):
            raise ValueError("not as it was written")
        return record


def read_archive(path: Path) -> list[Record]:
    """The records of a file that `archive` wrote: a row with JSON about each, then its own. Raises as `read` does."""
    with readable(path):
        return [record_of(path, json.loads(about), conform(table, SCORES)) for about, table in archived_parts(path)]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A refusal in one line where a file is none of ours."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: not a record of ours ({type(error).__name__}); delete it and run again") from error


def read_table(path: Path, wanted: Collection[str]) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Those of the wanted columns that a Parquet file has, and its own metadata."""
    with pq.ParquetFile(path) as file:
        columns = [name for name in wanted if name in file.schema_arrow.names]
        return file.read(columns), file.schema_arrow.metadata


def record_of(path: Path, about: Mapping[str, Any], rows: pa.Table) -> Record:
    """The record that JSON about it, in whatever format, and its rows make."""
    number = about.get("format", 0)
    if number > FORMAT:
        raise BadInput(f"{path}: a record of format {number}, this version reads up to {FORMAT}; update ivosbench")
    sample, entry = about["sample"], about["entry"]
    key = Key(sample, entry) if number else Key(*from_format_0(sample, entry))
    written = datetime.fromisoformat(about["written"]) if number else EPOCH
    told = about["status"], printable(about["error"]), about["clip"], UNTOLD | about["provenance"]
    return Record(path, key, *told, rows.to_pandas(), (written - EPOCH) // MICROSECOND * 1000)


def name_of(record: Record, about: Mapping[str, Any]) -> str:
    """What the file of a record is called, by its key as it was written."""
    key = record.key
    if about.get("format", 0):
        return key.name
    raw = json.dumps({"sample": about["sample"], "entry": about["entry"]}, sort_keys=True)
    return f"{key.sample['sequence']}-{key.sample['scribble_idx']}-{digest(raw.encode())}"


def conform(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """The wanted columns of `SCHEMA`; empty where they were not kept, KeyError for a score that is not there."""
    found = {name: table[name] for name in table.column_names}
    if "j_and_f" not in found:
        found["j_and_f"] = pc.add(pc.multiply(found["jaccard"], 0.5), pc.multiply(found["contour"], 0.5))
    for name in OPTIONAL:
        found.setdefault(name, pa.nulls(len(table)))
    schema = pa.schema([SCHEMA.field(name) for name in wanted])
    return pa.table([found[column.name].cast(column.type) for column in schema], schema=schema)


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
