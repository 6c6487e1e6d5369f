"""Which records count: those that are ours and whole, of one dataset, of the newest code and the newest content.

A record that cannot count is named or counted in a line, and never stands in the way of the others.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from harness.api import BadInput
from harness.data.sequence import plain
from harness.rules.protocol import Protocol
from harness.run import records
from harness.run.records import Record

HIGHEST = {"scribble_idx": 1000, "interaction": 1000, "object_id": 254, "frame": 10**6}  # more is no report
SCORES = ("jaccard", "contour", "j_and_f")
CELL = ["interaction", "object_id", "frame"]  # what tells the rows of a sample apart
ROUNDING = 2e-4  # how far the mean of J and F may be off: reports are printed with four decimals, too


def paths_of(results: Iterable[Path]) -> list[Path]:
    """The records below folders of results; a failed one that has a complete one beside it is none."""
    paths = [path for folder in results for path in sorted(Path(folder, "runs").glob("*/*-*.parquet"))]
    return [path for path in paths if not is_replaced(path)]


def is_replaced(path: Path) -> bool:
    """Whether a failed record has a complete one beside it."""
    stem = path.name.removesuffix(".failed.parquet")
    return stem != path.name and path.with_name(f"{stem}.parquet").exists()


def read(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """The records of `paths` that can be scored, and a line for each reason why others cannot."""
    found: list[Record] = []
    refused: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            record = records.read(path)
            reason = flaw(record)
        except BadInput as error:
            reason = str(error).removeprefix(f"{path}: ")
        if reason:
            refused[reason].append(path)
        else:
            found.append(replace(record, error=printable(record.error)))
    return found, [f"left out: {named(paths)}: {reason}" for reason, paths in refused.items()]


def named(paths: list[Path]) -> str:
    """The first of some files, and how many there are."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def beside(path: Path) -> tuple[str, str, str] | None:
    """Names of the dataset, protocol and clock of a record, read from its head alone; None for what has none."""
    try:
        entry = json.loads(pq.read_schema(path).metadata[records.METADATA])["entry"]
        return entry["dataset"]["name"], entry["protocol"]["name"], entry["clock"]["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def flaw(record: Record) -> str:
    """Why a record cannot be scored; nothing if it can."""
    try:
        entry, sample, clip = record.key.entry, record.key.sample, record.clip
        names = (entry["method"]["name"], entry["dataset"]["name"], entry["protocol"]["name"], entry["clock"]["name"])
        texts = (*names, *(entry["weights"][key] for key in ("name", "digest", "training")), entry["source"])
        if not all(isinstance(text, str) for text in (*texts, sample["manifest"], record.status, record.error)):
            return "its key is not one of this version; play it again"
        told = json.dumps([sample, entry, record.provenance], ensure_ascii=False)
        if printable(told) != told:
            return "its key has characters that no file takes; play it again with other names"
        plain(sample["sequence"], "sequence")
        protocol_of(canonical(entry["protocol"]))
        objects, frames, (height, width) = clip["num_objects"], clip["num_frames"], clip["size"]
        if not all(type(count) is int and count > 0 for count in (objects, frames, height, width)):
            return f"its clip has {objects} objects, {frames} frames; play it again"
        if record.status != "complete":
            return ""
        rows = record.rows
        if len(rows) and {(sample["sequence"], sample["scribble_idx"])} != samples_in(rows):
            return "its rows are of another sample; play it again"
        wrong = wrong_value(rows) or incomplete(rows, range(1, objects + 1), range(frames))
    except BadInput as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"not a record of this version ({type(error).__name__}: {error}); play it again"
    return f"{wrong}; play it again with recompute=true" if wrong else ""


@cache
def protocol_of(entry: str) -> Protocol:
    """The protocol of a key, given as JSON. Raises BadInput if scores by it cannot be told."""
    protocol = Protocol(**{key: value for key, value in json.loads(entry).items() if key != "_target_"})
    threshold: Any = protocol.threshold
    if not isinstance(threshold, int | float) or not isfinite(threshold) or threshold < 0:
        raise BadInput(f"protocol.threshold={threshold}: wanted seconds; play with a number")
    return protocol


def printable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no file takes, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def samples_in(rows: pd.DataFrame) -> set[tuple[str, int]]:
    """(sequence, scribble_idx) of the samples that rows are of."""
    return set(rows[["sequence", "scribble_idx"]].drop_duplicates().itertuples(index=False, name=None))


@dataclass(frozen=True)
class Wrong:
    """A value of a table that none can have: `row` counts from 0."""

    row: int
    column: str
    value: Any
    wanted: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.column}={self.value}, wanted {self.wanted}"


def wrong_value(rows: pd.DataFrame) -> Wrong | None:
    """The first wrong value in rows of the official report, column by column; scores may be missing together."""
    unscored = rows[list(SCORES)].isna().all(axis=1).to_numpy()
    for column in (*HIGHEST, *SCORES, "timing"):
        values = rows[column].to_numpy(float)
        lower, upper = int(column in ("scribble_idx", "interaction", "object_id")), HIGHEST.get(column, np.inf)
        wanted = f"{lower}..{upper}"
        if column in SCORES:
            upper, wanted = 1, "0..1"
        with np.errstate(invalid="ignore"):
            right = (values >= lower) & (values <= upper) & np.isfinite(values)
            right |= unscored if column in SCORES else False
            right &= values % 1 == 0 if column in HIGHEST else True
        if not right.all():
            row = int(np.argmin(right))
            return Wrong(row, column, rows[column].iloc[row], wanted)
    off = (rows["j_and_f"] - (rows["jaccard"] + rows["contour"]) / 2).abs().to_numpy(float) > ROUNDING
    if off.any():
        row = int(np.argmax(off))
        return Wrong(row, "j_and_f", rows["j_and_f"].iloc[row], "the mean of jaccard and contour")
    return None


def incomplete(rows: pd.DataFrame, objects: Collection[int], frames: Collection[int]) -> str:
    """What a sample's rows lack or hold twice of whole rounds from 1 on; nothing if it is all there."""
    if twice := rows.duplicated(CELL).to_numpy().nonzero()[0].tolist():
        return f"{cell(rows[CELL].iloc[twice[0]])} is there twice"
    rounds = range(1, int(rows["interaction"].max()) + 1) if len(rows) else ()
    wanted = pd.MultiIndex.from_product([rounds, objects, frames], names=CELL)
    there = pd.MultiIndex.from_frame(rows[CELL])
    if len(lacking := wanted.difference(there)):
        return f"lacks {cell(lacking[0])}"
    if len(more := there.difference(wanted)):
        return f"has {cell(more[0])}, which the clip has not"
    return ""


def cell(row: Iterable[Any]) -> str:
    """A row of a sample (its values of CELL), in words."""
    interaction, object_id, frame = row
    return f"round {interaction}, object {object_id}, frame {frame}"


def datasets(found: Iterable[Record]) -> list[list[Record]]:
    """Records of one dataset's name, sorted into datasets; those of one folder, corrected or grown, are one.

    A record tells the clips of the run that played it (provenance `clips`, {sequence: manifest}), if that run took the
    whole dataset. Two runs are of one dataset if they share a clip's content, or if one has all clips of the other by
    name and none of these differs in frames or size. Other records go where their clip is.
    """
    runs: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        runs[canonical(record.provenance.get("clips") or {})].append(record)
    others = runs.pop("{}", [])
    groups = [Group(set(json.loads(clips).items()), group) for clips, group in runs.items()]
    while pair := next(((a, b) for a, b in combinations(groups, 2) if a.is_of_one_dataset_with(b)), None):
        a, b = pair
        groups = [group for group in groups if group not in pair] + [Group(a.clips | b.clips, a.records + b.records)]
    apart: list[Record] = []
    for record in others:
        sequence, manifest = record.key.sample["sequence"], record.key.sample["manifest"]
        homes = [group for group in groups if (sequence, manifest) in group.clips]
        homes += [group for group in groups if sequence in group.names]
        (homes[0].records if homes else apart).append(record)
    return [group.records for group in groups] + ([apart] if apart else [])


@dataclass(eq=False)
class Group:
    """Runs over one dataset, as far as is known: the clips (sequence, manifest) they had, and their records."""

    clips: set[tuple[str, str]]
    records: list[Record]
    names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.clips |= {(record.key.sample["sequence"], record.key.sample["manifest"]) for record in self.records}
        self.names = {sequence for sequence, _ in self.clips}

    def is_of_one_dataset_with(self, other: "Group") -> bool:
        if self.clips & other.clips:
            return True
        nested = self.names <= other.names or other.names <= self.names
        mine, theirs = self.shapes(), other.shapes()
        return nested and all(mine[name] & theirs[name] for name in mine.keys() & theirs.keys())

    def shapes(self) -> dict[str, set[tuple[int, int, int]]]:
        """Of each clip what stays when its annotations are corrected: number of frames, height, width."""
        found: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
        for record in self.records:
            found[record.key.sample["sequence"]].add((record.clip["num_frames"], *record.clip["size"]))
        return found


def newest(found: Iterable[Record], run: Collection[Path] = ()) -> tuple[list[Record], list[str]]:
    """Of several versions of records the newest, and a line that counts the others, kind by kind.

    Versions are copies of one record, other code of an entry, other content of a clip. Which is newer, the records say;
    those of a `run` that has just ended are newer than any other.
    """
    copies: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        copies[record.key.digest].append(record)
    kept = [max(each, key=lambda r: (r.status == "complete", r.path in run, r.written)) for each in copies.values()]
    told = []
    for of, version, kind in (
        (but_source, lambda record: record.key.entry["source"], "older code"),
        (lambda record: record.key.sample["sequence"], content, "older content"),
    ):
        kept, older, unsure = last_versions(kept, of, version, run)
        if older:
            methods = listed(record.key.entry["method"]["name"] for record in older)
            clips = listed(record.key.sample["sequence"] for record in older)
            told.append(f"left out: records of {kind}: {len(older)} ({methods} on {clips})")
            if unsure:
                told[-1] += "; they do not tell which is newer, so of what there is most counts"
            if kind == "older content":
                told[-1] += "; if those clips are of another dataset, play it with a dataset.name= of its own"
    return kept, told


def last_versions(
    found: Iterable[Record], of: Callable[[Record], str], version: Callable[[Record], str], run: Collection[Path]
) -> tuple[list[Record], list[Record], bool]:
    """The records of the newest `version` of each thing that they are `of`, the others, and whether a tie was cut."""
    things: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        things[of(record)][version(record)].append(record)
    kept, older, unsure = [], [], False
    for versions in things.values():
        ages = {name: max((record.path in run, record.written) for record in group) for name, group in versions.items()}
        last = max(versions, key=lambda name: (ages[name], len(versions[name]), name))
        kept += versions.pop(last)
        older += [record for group in versions.values() for record in group]
        unsure |= any(ages[name] == ages[last] for name in versions)
    return kept, older, unsure


def content(record: Record) -> str:
    """What the clip is."""
    return record.key.clip


def but_source(record: Record) -> str:
    """What entry a record is of, whatever the code."""
    return canonical({key: value for key, value in record.key.row.items() if key != "source"})


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names, each once, the first few of them."""
    different = sorted(set(names))
    return ", ".join(different[:most]) + (f" and {len(different) - most} more" if len(different) > most else "")


def canonical(value: Any) -> str:
    """Plain data as one line, the same for equal data."""
    return json.dumps(value, sort_keys=True)
