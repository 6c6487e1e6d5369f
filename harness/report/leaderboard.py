"""From records to leaderboards: who is compared with whom, and what the table says."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from harness.api import BadInput
from harness.report import statistics
from harness.rules.protocol import Protocol
from harness.rules.summary import Metric, Played, official, played, report_columns
from harness.run.records import Record

TOLD = ("scribbles", "commit", "hardware", "python", "numpy", "opencv", "torch")  # of a record's provenance
NOISE = "≈"
TIMED = ("auc", "at_threshold", "time_to_90")  # the scores that are none if times were taken beside another job
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
    def shared(self) -> bool:
        """Whether a time of it was taken while another job was on the same device."""
        return any(record.provenance.get("shared") for record in self.records)

    @property
    def slug(self) -> str:
        """The label as a part of file names."""
        return "-".join(re.findall(r"[\w.]+", self.label))


@dataclass(frozen=True)
class Board:
    """Entries that may be compared: same dataset, protocol and clock.

    samples: (sequence, scribble_idx) of every sample that any entry has tried; total: how many there are to try.
    changes: what the command line changed of the named dataset, protocol and clock.
    provenance: what the records say of data, commit, hardware and versions, every value that occurs.
    """

    dataset: Mapping[str, Any]
    protocol: Protocol
    clock: str
    samples: list[tuple[str, int]]
    total: int
    changes: list[str]
    entries: list[Entry]
    provenance: Mapping[str, list[str]]

    @property
    def title(self) -> str:
        return ", ".join([self.dataset["name"], self.protocol.name, f"{self.clock} clock", *self.changes])

    @property
    def slug(self) -> str:
        """The title as the name of a folder."""
        changes = (re.sub(r"[^\w.=-]+", "_", change) for change in self.changes)
        return "-".join([self.dataset["name"], self.protocol.name, self.clock, *changes])

    @property
    def metric(self) -> str:
        """The protocol's metric as people write it."""
        return METRIC_NAMES[self.protocol.metric]


def boards(records: Iterable[Record]) -> list[Board]:
    """Sort records into boards; those of another dataset, protocol or clock never meet."""
    groups = defaultdict(list)
    for record in records:
        entry = record.key.entry
        groups[canonical([entry["dataset"], entry["protocol"], entry["clock"]["name"]])].append(record)
    return [board(group) for group in groups.values()]


def board(records: list[Record]) -> Board:
    """The board of records that share dataset, protocol and clock.

    Raises BadInput where one sequence has two contents, as two folders with equal names of clips have.
    """
    contents: dict[str, str] = {}
    for record in records:
        name, clip = record.key.sample["sequence"], record.key.clip
        if contents.setdefault(name, clip) != clip:
            raise BadInput(
                f"{record.path}: another clip {name} was played, too; give each dataset a results= of its own"
            )
    groups = defaultdict(list)
    for record in records:
        groups[canonical(record.key.row)].append(record)
    arguments = {key: value for key, value in records[0].key.entry["protocol"].items() if key != "_target_"}
    protocol = Protocol(**arguments)
    labels = label([group[0].key.entry for group in groups.values()])
    samples = sorted({(r.key.sample["sequence"], r.key.sample["scribble_idx"]) for r in records})
    return Board(
        records[0].key.entry["dataset"],
        protocol,
        records[0].key.entry["clock"]["name"],
        samples,
        max(len(samples), *(r.provenance["samples"] for r in records)),
        records[0].provenance["changes"],
        [entry(name, group, protocol) for name, group in zip(labels, groups.values(), strict=True)],
        {key: sorted({r.provenance[key] for r in records}) for key in TOLD},
    )


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


def samples_of(records: list[Record]) -> list[tuple[str, int, int]]:
    """(sequence, scribble_idx, num_objects) of each record."""
    return [(r.key.sample["sequence"], r.key.sample["scribble_idx"], r.clip["num_objects"]) for r in records]


AS_REPORTED = {"name": "", "digest": "", "training": "as reported"}


def reference(name: str, given: pd.DataFrame | dict[str, Any], board: Board) -> Entry | None:
    """The row of what somebody reported: an official report, scored by the board's protocol, or an official summary.

    None if it has samples that the board has not, or another metric. Who made a summary, and on what, nobody knows.
    """
    if isinstance(given, dict):
        known = board.protocol.metric in given["curve"]
        return Entry(name, name, AS_REPORTED, 0, 0, pd.DataFrame(), None, given) if known else None
    objects = given.groupby(["sequence", "scribble_idx"], as_index=False)["object_id"].max()
    samples = list(objects.itertuples(index=False, name=None))
    if not {sample[:2] for sample in samples} <= set(board.samples):
        return None
    came_to = outcome(given, samples, board.protocol)
    told = official(came_to, board.protocol.metric, board.protocol.threshold)
    return Entry(name, name, AS_REPORTED, len(samples), 0, given, came_to, told)


def outcome(
    rounds: pd.DataFrame, samples: list[tuple[str, int, int]], protocol: Protocol, metric: Metric | None = None
) -> Played:
    """What a report on samples (sequence, scribble_idx, num_objects) came to, by the protocol's metric or another."""
    return played(
        rounds[report_columns].dropna(subset="jaccard"),
        samples,
        max_time=protocol.seconds_per_object,
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
    return labels


def table(board: Board, until: float | None = None) -> pd.DataFrame:
    """The leaderboard: scores in 0..1, times in seconds, one row per entry, best AUC first.

    until: where a second AUC over time ends, in seconds.

    An entry that lacks samples comes last, unranked, with its scores over those it has; so does one whose times were
    taken on a shared device, without any score that depends on time. NOISE beside a rank: the paired
    difference of its AUC to that of the row above may be none.
    """
    ranked = sorted(board.entries, key=lambda entry: (entry.samples < board.total or entry.shared, -auc(entry)))
    rows = []
    for i, entry in enumerate(ranked):
        row: dict[str, Any] = {
            "rank": "-" if entry.samples < board.total or entry.shared else str(i + 1),
            "method": entry.label,
            "weights": entry.weights["training"],
            "samples": f"{entry.samples} of {board.total}" if entry.samples or entry.failed else "elsewhere",
            "failed": entry.failed,
        }
        if entry.summary:
            time, score = curve(entry, board)
            whole = statistics.Curves(np.array(time), np.array(score))
            row["AUC"] = entry.summary["auc"]
            if entry.played:
                low, high = statistics.interval(entry.played, "auc", board.protocol.threshold)
                row["95 %"] = "" if np.isnan(low) else f"{low:.3f}–{high:.3f}"
            row["until [s]"] = time[-1]
            if until and entry.played and not entry.shared:
                row[f"AUC to {until:g}s"] = statistics.auc(entry.played, until)
            for name, column in scores(board).items():
                row.setdefault(column, float(statistics.value(whole, name, board.protocol.threshold)))
            row |= speed(entry.rounds) if len(entry.rounds) else {}
        if entry.shared:
            untold = (*(scores(board)[name] for name in TIMED), "until [s]", "s/round", "frames/s")
            row |= dict.fromkeys(untold, np.nan) | {"95 %": ""}
        above = ranked[i - 1].played if i else None
        if row["rank"] != "-" and entry.played and above:
            lead = statistics.difference(entry.played, above, "auc", board.protocol.threshold)
            row["rank"] += f" {NOISE}" if lead.noise else ""
        rows.append(row)
    return pd.DataFrame(rows)


def auc(entry: Entry) -> float:
    """AUC over time, 0 for an entry without any round."""
    return float(entry.summary["auc"]) if entry.summary else 0.0


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
            if entry.played is None or (entry.shared and name in TIMED):
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
            if one.played is None or other.played is None or ((one.shared or other.shared) and name in TIMED):
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
        *(
            f"times shared: {e.label} ran beside another job on the same device; no AUC over time; "
            "for one, run it alone with recompute=true"
            for e in board.entries
            if e.shared
        ),
        *(f"weights of {e.label}: {', '.join(filter(None, e.weights.values()))}" for e in board.entries),
        *(f"{key}: {'; '.join(values)}" for key, values in board.provenance.items()),
    ]


READING = (
    "AUC: over time, up to `until`; round AUC: over rounds 0..R; held: over 0..R + 1, the last value held; "
    "90 % at: seconds to 90 % of the last round's score",
    "95 %: bootstrap interval of AUC over sequences, each with all its scribbles, too narrow for less than 15 of them; "
    "of every score: intervals.csv; of differences between methods: differences.csv",
    f"{NOISE}: AUC may not differ from that of the row above",
)


def canonical(value: Any) -> str:
    """Plain data as one line, the same for equal data."""
    return json.dumps(value, sort_keys=True)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
