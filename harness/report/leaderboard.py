"""From records to leaderboards: who is compared with whom, and what the table says."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.api import BadInput
from harness.report import statistics
from harness.report.collect import canonical, datasets, incomplete, listed, newest, protocol_of, samples_in
from harness.rules.protocol import Protocol
from harness.rules.summary import Metric, Played, official, played, report_columns
from harness.run.provenance import digest
from harness.run.records import Record

MACHINE = ("processors", "instructions", "threads", "numpy", "opencv", "torch")  # of a record's provenance: what times
TOLD = ("scribbles", "commit", "hardware", "python", *MACHINE)
UNTOLD = ("", "unknown")
NOISE = "≈"
TIMED = ("auc", "at_threshold", "time_to_90")  # the scores that depend on time
LONGEST = 120  # bytes of a file's name, before what is put around it
METRIC_NAMES = {"J": "J", "F": "F", "J_AND_F": "J&F"}


@dataclass(frozen=True)
class Entry:
    """One row: one method, configured one way, on the samples of its board.

    weights: {name, digest, training}.
    samples: how many are complete; failed: how many are not; failures: the records of these.
    rounds: the official report's rows of the complete ones.
    played: what these came to by the board's protocol; None if there are none, as for a summary that was read.
    summary: the official one of these, if there are any.
    records: the complete ones; none for scores that were read from a report.
    """

    label: str
    name: str
    weights: Mapping[str, str]
    samples: int
    failed: int
    rounds: pd.DataFrame = field(repr=False)
    played: Played | None = field(repr=False)
    summary: dict[str, Any] | None = field(repr=False)
    records: list[Record] = field(repr=False, default_factory=list)
    failures: list[Record] = field(repr=False, default_factory=list)

    @property
    def untimed(self) -> str:
        """Why it has no score that depends on time, in a word; "" if it has.

        "shared": a time was taken beside another job on the same device; "mixed": on several machines; "by round":
        whoever reported it told rounds alone.
        """
        if any(record.provenance.get("shared") for record in self.records):
            return "shared"
        if self.measured and len(self.machines) > 1:
            return "mixed"
        return "by round" if self.summary and np.isnan(self.summary["auc"]) else ""

    @property
    def machines(self) -> list[str]:
        """The machines that played it; of records that do not tell their processors, by the one that was used."""
        told = all(record.provenance.get("processors", "") not in UNTOLD for record in self.records)
        return machines(self.records, MACHINE if told else ("hardware", *MACHINE))

    @property
    def measured(self) -> bool:
        """Whether its times are those of a watch, and so of a machine."""
        return any(record.key.entry["clock"]["name"] != "modelled" for record in self.records)

    @property
    def slug(self) -> str:
        """The label as a part of file names, another for every label."""
        name = file_name(re.sub(r"[\[\], ]+", "-", self.label).strip("-"))
        return name if name == self.label else f"{name}-{digest(self.label.encode())[:6]}"


@dataclass(frozen=True)
class Board:
    """Entries that may be compared: same dataset, protocol and clock.

    samples: (sequence, scribble_idx) of every sample that any entry has tried; total: how many there are to try.
    changes: what the command line changed of the named dataset, protocol and clock.
    provenance: what the records say of data, commit, hardware and versions, every value that occurs.
    left_out: a line for each kind of records that belong here and do not count.
    since: when the first of its records was written, in ns since the epoch; 0 if that is not known.
    """

    dataset: Mapping[str, Any]
    protocol: Protocol
    clock: str
    samples: list[tuple[str, int]]
    total: int
    changes: list[str]
    entries: list[Entry]
    provenance: Mapping[str, list[str]]
    left_out: list[str] = field(default_factory=list)
    since: int = 0

    @property
    def title(self) -> str:
        return ", ".join([self.dataset["name"], self.protocol.name, f"{self.clock} clock", *self.changes])

    @property
    def slug(self) -> str:
        """The title as the name of a folder; boards of one title share it."""
        return file_name("-".join([self.dataset["name"], self.protocol.name, self.clock, *self.changes]))

    @property
    def metric(self) -> str:
        """The protocol's metric as people write it."""
        return METRIC_NAMES[self.protocol.metric]


def boards(records: Iterable[Record], run: Collection[Path] = ()) -> list[Board]:
    """Sort records into boards, the oldest first; those of another dataset, protocol or clock never meet.

    Of several versions of a sample the newest counts; that of the records of `run`, if it has just ended.
    """
    groups = defaultdict(list)
    for record in records:
        entry = record.key.entry
        groups[canonical([entry["dataset"], entry["protocol"], entry["clock"]["name"]])].append(record)
    made = []
    for group in groups.values():
        several = datasets(group)
        for one in several:
            kept, left_out = newest(one, run)
            if len(several) > 1:
                name = one[0].key.entry["dataset"]["name"]
                left_out.append(
                    f"left out: records of another dataset called {name}: {len(group) - len(one)}, which "
                    "have a report of their own; play it with a dataset.name= of its own"
                )
            made.append(replace(board(kept), left_out=left_out, since=min(record.written for record in one)))
    return sorted(made, key=lambda board: (board.since, board.samples))


def board(records: list[Record]) -> Board:
    """The board of records that share dataset, protocol and clock, and have one version of each sample."""
    groups = defaultdict(list)
    for record in records:
        groups[canonical(record.key.row)].append(record)
    protocol = protocol_of(canonical(records[0].key.entry["protocol"]))
    labels = label([group[0].key.entry for group in groups.values()])
    samples = sorted({(r.key.sample["sequence"], r.key.sample["scribble_idx"]) for r in records})
    return Board(
        records[0].key.entry["dataset"],
        protocol,
        records[0].key.entry["clock"]["name"],
        samples,
        max(len(samples), *(r.provenance.get("samples", 0) for r in records)),
        min((r.provenance.get("changes", []) for r in records), key=lambda changes: (len(changes), changes)),
        [entry(name, group, protocol) for name, group in zip(labels, groups.values(), strict=True)],
        {key: sorted({str(r.provenance[key]) for r in records if r.provenance.get(key)}) for key in TOLD},
    )


def only(board: Board, samples: Collection[tuple[str, int]]) -> Board:
    """Some samples of a board: every entry that has one, whole on these."""
    entries = []
    for each in board.entries:
        theirs = [r for r in (*each.records, *each.failures) if sample_of(r) in samples]
        if theirs:
            entries.append(entry(each.label, theirs, board.protocol))
    return replace(board, samples=sorted(samples), total=len(samples), entries=entries)


def entry(name: str, records: list[Record], protocol: Protocol) -> Entry:
    """The row of records that share everything but the sample."""
    complete = sorted((r for r in records if r.status == "complete"), key=lambda r: r.path.name)
    rounds = pd.concat([r.rows for r in complete], ignore_index=True) if complete else pd.DataFrame()
    came_to = outcome(rounds, samples_of(complete), protocol) if complete else None
    about = records[0].key.entry
    return Entry(
        name,
        about["method"]["name"],
        about["weights"],
        len(complete),
        len(records) - len(complete),
        rounds,
        came_to,
        official(came_to, protocol.metric, protocol.threshold) if came_to else None,
        complete,
        [r for r in records if r.status != "complete"],
    )


def sample_of(record: Record) -> tuple[str, int]:
    """(sequence, scribble_idx) of a record."""
    return record.key.sample["sequence"], record.key.sample["scribble_idx"]


def samples_of(records: list[Record]) -> list[tuple[str, int, int]]:
    """(sequence, scribble_idx, num_objects) of each record."""
    return [(r.key.sample["sequence"], r.key.sample["scribble_idx"], r.clip["num_objects"]) for r in records]


AS_REPORTED = {"name": "", "digest": "", "training": "as reported"}


def reference(name: str, given: pd.DataFrame | dict[str, Any], board: Board) -> Entry | None:
    """The row of what somebody reported: an official report, scored by the board's protocol, or an official summary.

    None if it has samples that the board has not, or another metric. Who made a summary, and on what, nobody knows.
    Raises BadInput for a report that has not all of its samples.
    """
    if isinstance(given, dict):
        known = board.protocol.metric in given["curve"]
        return Entry(name, name, AS_REPORTED, 0, 0, pd.DataFrame(), None, given) if known else None
    known_clips = {sample_of(r): r.clip for e in board.entries for r in (*e.records, *e.failures)}
    samples = []
    for sequence, index in sorted(samples_in(given)):
        if (clip := known_clips.get((sequence, index))) is None:
            return None
        rows = given[(given["sequence"] == sequence) & (given["scribble_idx"] == index)]
        if wrong := lacking(rows, clip, board.protocol):
            raise BadInput(f"{name}.csv: {sequence}-{index}: {wrong}; give a report of whole sessions")
        samples.append((sequence, index, clip["num_objects"]))
    came_to = outcome(given, samples, board.protocol)
    told = official(came_to, board.protocol.metric, board.protocol.threshold)
    return Entry(name, name, AS_REPORTED, len(samples), 0, given, came_to, told)


def lacking(rows: pd.DataFrame, clip: Mapping[str, Any], protocol: Protocol) -> str:
    """What a reported sample has not of the clip's objects, scored frames and rounds; nothing if it is whole.

    Without its last rounds it is whole only if another one, as long as its longest, had come too late.
    """
    frames = range(clip["num_frames"]) if protocol.scored == "all" else range(1, clip["num_frames"] - 1)
    if wrong := incomplete(rows, range(1, clip["num_objects"] + 1), frames):
        return wrong
    seconds = rows.groupby("interaction")["timing"].first()
    if len(seconds) < protocol.last_round and seconds.sum() + seconds.max() <= protocol.seconds(clip["num_objects"]):
        last = "" if protocol.last_round == float("inf") else f" of {int(protocol.last_round)}"
        return f"ends after round {len(seconds)}{last}, {seconds.sum():.1f} s, with time left"
    return ""


def outcome(
    rounds: pd.DataFrame, samples: list[tuple[str, int, int]], protocol: Protocol, metric: Metric | None = None
) -> Played:
    """What a report on samples (sequence, scribble_idx, num_objects) came to, by the protocol's metric or another."""
    return played(
        rounds[report_columns].dropna(subset="jaccard"),
        samples,
        max_time=protocol.max_time,
        max_interactions=None if protocol.last_round == float("inf") else int(protocol.last_round),
        metric=metric or protocol.metric,
    )


def by_object_and_frame(entry: Entry) -> np.ndarray:
    """J of every object in every scored frame after the last round."""
    last = entry.rounds.groupby(["sequence", "scribble_idx"])["interaction"].transform("max")
    scores: np.ndarray = entry.rounds[entry.rounds["interaction"] == last]["jaccard"].dropna().to_numpy()
    return scores


def label(entries: list[Mapping[str, Any]]) -> list[str]:
    """A name for each entry: its method's, and in brackets what sets it apart from its namesakes."""
    settings = [
        flatten({**e["method"], "weights": e["weights"], "clock": e["clock"], "source": e["source"]}) for e in entries
    ]
    labels = []
    for mine in settings:
        namesakes = [other for other in settings if other["name"] == mine["name"]]
        apart = [key for key in mine if any(other.get(key) != mine[key] for other in namesakes)]
        labels.append(mine["name"] + (f" [{', '.join(f'{key}={mine[key]}' for key in apart)}]" if apart else ""))
    return [
        f"{text} #{digest(canonical(entry).encode())[:6]}" if labels.count(text) > 1 else text
        for text, entry in zip(labels, entries, strict=True)
    ]


def table(board: Board, until: float | None = None) -> pd.DataFrame:
    """The leaderboard: scores in 0..1, times in seconds, one row per entry in the order of `ranked`.

    until: where a second AUC over time ends, in seconds.

    An entry that lacks a sample which another has is not ranked; its scores are over those it has. NOISE beside a rank:
    the paired difference to the row above, of the score that ranks, may be none. `words` says why a value is NaN.
    """
    by, _ = ranking(board)
    entries = ranked(board)
    rows = []
    for i, entry in enumerate(entries):
        row: dict[str, Any] = {
            "rank": str(i + 1) if is_ranked(entry, board) else "-",
            "method": entry.label,
            "weights": entry.weights["training"],
            "samples": f"{entry.samples} of {board.total}" if entry.samples or entry.failed else "elsewhere",
            "failed": entry.failed,
        }
        if entry.summary:
            time, score = curve(entry, board)
            whole = statistics.Curves(np.array(time), np.array(score))
            row["AUC"] = entry.summary["auc"]
            row["95 %"] = ""
            if entry.played and not entry.untimed:
                low, high = statistics.interval(entry.played, "auc", board.protocol.threshold)
                row["95 %"] = "" if np.isnan(low) else f"{low:.3f}–{high:.3f}"
            row["until [s]"] = time[-1]
            if until and entry.played and not entry.untimed:
                row[f"AUC to {until:g}s"] = statistics.auc(entry.played, until)
            for name, column in scores(board).items():
                row.setdefault(column, float(statistics.value(whole, name, board.protocol.threshold)))
            row |= speed(entry.rounds) if len(entry.rounds) else {}
        if entry.untimed:
            row |= dict.fromkeys((*(scores(board)[name] for name in TIMED), *TIMES), np.nan)
        above = entries[i - 1].played if i else None
        if is_ranked(entry, board) and entry.played and above:
            lead = statistics.difference(entry.played, above, by, board.protocol.threshold)
            row["rank"] += f" {NOISE}" if lead.noise else ""
        rows.append(row)
    return pd.DataFrame(rows)


TIMES = ("until [s]", "s/round", "frames/s")  # columns that are times, or made of them


def words(board: Board, shown: pd.DataFrame) -> pd.DataFrame:
    """A table as text: numbers with three decimals, and where there is none a word that says why; see READING."""
    rows = []
    for entry, (_, row) in zip(ranked(board), shown.iterrows(), strict=True):
        rows.append({column: word(entry, str(column), value) for column, value in row.items()})
    return pd.DataFrame(rows, columns=shown.columns)


def word(entry: Entry, column: str, value: Any) -> str:
    """A value of an entry's row as text."""
    if isinstance(value, float) and not np.isnan(value):
        return f"{value:.3f}"
    if value and not pd.isna(value):
        return str(value)
    if isinstance(value, int | np.integer):
        return str(value)
    if not entry.summary:
        return "failed"
    timed = column in (*TIMES, "95 %", "90 % at [s]") or column.startswith("AUC") or "@" in column
    if timed and entry.untimed:
        return entry.untimed
    if entry.played is None:
        return "not told"
    if column == "95 %":
        return "one clip"
    return {"90 % at [s]": "never", "frames/s": "no time"}.get(column, "ended")


def is_ranked(entry: Entry, board: Board) -> bool:
    """Whether it has every sample that any entry has tried: only equals are compared."""
    return 0 < len(board.samples) == entry.samples


def ranking(board: Board) -> tuple[str, str]:
    """The score that ranks, as `statistics` calls it, and why that is not AUC over time ("" if it is).

    Times of several machines, or taken beside other jobs, are not compared: then quality after each round is.
    """
    entries = [entry for entry in board.entries if is_ranked(entry, board)]
    if untimed := [entry for entry in entries if entry.untimed]:
        return "round_auc", f"no times to compare of {listed(entry.label for entry in untimed)}"
    if reported := [entry for entry in entries if not entry.records]:
        return "round_auc", f"times of {listed(entry.label for entry in reported)} are of a machine nobody knows"
    measured = [record for entry in entries if entry.measured for record in entry.records]
    if len(found := machines(measured)) > 1:
        return "round_auc", f"times are of {len(found)} machines ({' / '.join(found)})"
    return "auc", ""


def ranked(board: Board) -> list[Entry]:
    """The entries as a table has them: those with a rank, the best first, then the others."""
    by, _ = ranking(board)

    def order(entry: Entry) -> tuple[bool, float]:
        if not entry.summary:
            return True, 0.0
        whole = statistics.Curves(*map(np.array, curve(entry, board)))
        score = entry.summary["auc"] if by == "auc" else float(statistics.value(whole, by, board.protocol.threshold))
        return not is_ranked(entry, board), -np.nan_to_num(score)

    return sorted(board.entries, key=order)


def machines(records: Iterable[Record], keys: Collection[str] = MACHINE) -> list[str]:
    """The machines that played records, told apart by those `keys` of provenance that all of the records tell."""
    told = [record.provenance for record in records]
    keys = [key for key in keys if all(each.get(key, "") not in UNTOLD for each in told)]
    values = sorted({tuple(str(each[key]) for key in keys) for each in told})
    differ = [i for i in range(len(keys)) if len({value[i] for value in values}) > 1] or range(min(1, len(keys)))
    return [", ".join(f"{keys[i]} {value[i]}" for i in differ) for value in values]


def scores(board: Board) -> dict[str, str]:
    """The scores of a board: their names in `harness.report.statistics`, and what its table calls them."""
    last = max((len(curve(entry, board)[1]) - 2 for entry in board.entries if entry.summary), default=0)
    return {
        "auc": "AUC",
        "at_threshold": f"{board.metric}@{board.protocol.threshold:g}s",
        "round_auc": "round AUC",
        "round_auc_held": "round AUC, held",
        "time_to_90": "90 % at [s]",
        **{f"round {i}": f"{board.metric} {i}" for i in range(1, last + 1)},
    }


def intervals(board: Board) -> pd.DataFrame:
    """Every score of every entry with its 95 % bootstrap interval over sequences, a line each."""
    lines = []
    for entry in board.entries:
        for name, column in scores(board).items():
            if entry.played is None or (entry.untimed and name in TIMED):
                continue
            value = statistics.score(entry.played, name, board.protocol.threshold)
            low, high = statistics.interval(entry.played, name, board.protocol.threshold)
            lines.append({"method": entry.label, "score": column, "value": value, "low": low, "high": high})
    return pd.DataFrame(lines)


def differences(board: Board) -> pd.DataFrame:
    """How any two entries differ on the samples that both have, with the difference's 95 % interval."""
    lines = []
    for one, other in combinations(board.entries, 2):
        for name in ("auc", "at_threshold", "round_auc"):
            if one.played is None or other.played is None or ((one.untimed or other.untimed) and name in TIMED):
                continue
            found = statistics.difference(one.played, other.played, name, board.protocol.threshold)
            lines.append(
                {"method": one.label, "minus": other.label, "score": scores(board)[name], **asdict(found)}
                | {"noise": found.noise}
            )
    return pd.DataFrame(lines)


def curve(entry: Entry, board: Board) -> tuple[list[float], list[float]]:
    """(seconds, score) of the official curve: (0, 0), one point per round, and the end of the time axis."""
    points = (entry.summary or {})["curve"]
    return points["time"], points[board.protocol.metric]


def speed(rounds: pd.DataFrame) -> dict[str, float]:
    """Seconds per round and frames per second, over all rounds played."""
    played = rounds.groupby(["sequence", "scribble_idx", "interaction"])
    seconds, frames = played["timing"].first(), played["frame"].nunique()
    return {"s/round": seconds.mean(), "frames/s": frames.sum() / seconds.sum() if seconds.any() else float("nan")}


def notes(board: Board) -> list[str]:
    """Where the scores come from, a line each."""
    protocol = {field.name: getattr(board.protocol, field.name) for field in fields(board.protocol)}
    clips = sorted({sequence for sequence, _ in board.samples})
    return [
        f"clips: {', '.join(clips)}; {len(board.samples)} of {board.total} samples",
        f"dataset: {canonical(board.dataset)}",
        f"protocol: {canonical(protocol)}",
        f"clock: {board.clock}",
        *(why for e in board.entries if (why := no_times(e))),
        *(f"weights of {e.label}: {', '.join(filter(None, e.weights.values()))}" for e in board.entries),
        *(f"{key}: {'; '.join(values)}" for key, values in board.provenance.items() if values),
    ]


def no_times(entry: Entry) -> str:
    """Why an entry has no AUC over time, and how to get one, in a line; "" if it has."""
    remedy = "no AUC over time; for one, play it alone on one machine with recompute=true"
    played_on = entry.machines
    return {
        "": "",
        "shared": f"times shared: {entry.label} ran beside another job on the same device; {remedy}",
        "mixed": f"times mixed: {entry.label} ran on {len(played_on)} machines ({' / '.join(played_on)}); {remedy}",
        "by round": f"times by round: {entry.label} tells scores after each round and no times",
    }[entry.untimed]


def remarks(board: Board) -> list[str]:
    """What must be known before a table is read, a line each: what ranks if that is not AUC, what does not count."""
    by, why = ranking(board)
    return [*([f"ranked by {scores(board)[by]}: {why}"] if why else []), *board.left_out]


READING = (
    "AUC: over time, up to `until`; round AUC: over rounds 0..R; held: over 0..R + 1, the last value held; "
    "90 % at: seconds to 90 % of the last round's score",
    "95 %: bootstrap interval of AUC over sequences, each with all its scribbles, too narrow for less than 15 of them; "
    "of every score: intervals.csv; of differences between methods: differences.csv",
    f"{NOISE}: the score that ranks may not differ from that of the row above",
    "no number: shared, mixed, by round: see times; failed: no sample is complete; not told: by whoever reported it; "
    "one clip: too few for an interval; never: nothing was scored; no time: none passed; ended: it had fewer rounds",
)


def file_name(text: str) -> str:
    """Text as the name of one file or folder; where it is cut a digest tells it from others."""
    name = re.sub(r"[^\w.=-]+", "_", text)
    name = re.sub(r"^\.", "_", name)
    if len(name.encode()) <= LONGEST:
        return name
    return name.encode()[:LONGEST].decode(errors="ignore") + f"-{digest(text.encode())[:6]}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
