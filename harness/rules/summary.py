"""What a session comes to: the official curve of quality over time, its area, and its value at a given time.

The rules, and their oddities, are those of davisinteractive 1.0.4 (Caelles et al. 2018).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

report_columns = [
    "session_id",
    "sequence",
    "scribble_idx",
    "interaction",
    "object_id",
    "frame",
    "jaccard",
    "contour",
    "j_and_f",
    "timing",
]

Metric = Literal["J", "F", "J_AND_F"]
COLUMN = {"J": "jaccard", "F": "contour", "J_AND_F": "j_and_f"}


@dataclass(frozen=True)
class Played:
    """What the samples of one entry came to, incomplete rounds filled in as the official summary does.

    samples: (sequence, scribble_idx, num_objects) of each of S samples.
    quality: of each sample, float64 rounds×num_objects.
    seconds: float64 S×rounds; 0 for a round that was filled in.
    slowest: float64 S, its longest one in seconds.
    max_time: seconds per object, where the curve ends; None: where the slowest round would have led to.
    """

    samples: list[tuple[str, int, int]]
    quality: list[np.ndarray]
    seconds: np.ndarray
    slowest: np.ndarray
    max_time: float | None


def played(
    report: pd.DataFrame,
    samples: list[tuple[str, int, int]],
    *,
    max_time: float | None,
    max_interactions: int | None,
    metric: Metric = "J_AND_F",
) -> Played:
    """What `samples` came to in a report; arguments as for `summarize`."""
    keys = ["interaction", "sequence", "scribble_idx", "object_id"]
    grouped = report.groupby(keys)[[COLUMN[metric], "timing"]].mean()
    rounds = max_interactions or (int(report.interaction.max()) if len(report) else 1)
    wanted = [
        (interaction, sequence, scribble_idx, object_id)
        for sequence, scribble_idx, num_objects in samples
        for interaction in range(1, rounds + 1)
        for object_id in range(1, num_objects + 1)
    ]
    rows = grouped.reindex(pd.MultiIndex.from_tuples(wanted, names=keys)).to_numpy(np.float64)
    quality, seconds, end = [], [], 0
    for *_, num_objects in samples:
        start, end = end, end + rounds * num_objects
        filled = fill_in(rows[start:end].reshape(rounds, num_objects, 2))
        quality.append(filled[:, :, 0])
        seconds.append(filled[:, :, 1].mean(axis=1))

    slowest = grouped.timing.groupby(level=["sequence", "scribble_idx"]).max()
    asked = pd.MultiIndex.from_tuples([sample[:2] for sample in samples], names=slowest.index.names)
    # Officially a row of no sample counts, too: here as if every sample had it.
    other = slowest[~slowest.index.isin(asked)].max()
    slowest_asked = np.fmax(slowest.reindex(asked).to_numpy(np.float64), other)
    return Played(samples, quality, np.array(seconds), slowest_asked, max_time)


def summarize(
    report: pd.DataFrame,
    samples: list[tuple[str, int, int]],
    *,
    max_time: float | None,
    max_interactions: int | None,
    metric: Metric = "J_AND_F",
    threshold: float = 60.0,
) -> dict[str, Any]:
    """The official summary of a report; see `official`.

    report: rows of `report_columns` (session_id not needed), timing in seconds.
    samples: (sequence, scribble_idx, num_objects) of every sample that should have been played; a round that the
        report lacks repeats the sample's last complete one in no time, or counts as 0 if there is none.
    max_time: seconds per object; where the curve ends. None: where the slowest round would have led to.
    max_interactions: rounds; None for as many as the report has.
    """
    given = played(report, samples, max_time=max_time, max_interactions=max_interactions, metric=metric)
    return official(given, metric, threshold)


def official(given: Played, metric: Metric, threshold: float) -> dict[str, Any]:
    """The official summary of what was played.

    metric: what its quality is. threshold: in seconds.
    Returns {"auc", "metric_at_threshold": {"threshold", metric}, "curve": {"time", metric}}.
    """
    # A mean over objects, not samples: a sequence with five objects weighs five times as much in the quality.
    curve = np.concatenate(given.quality, axis=1).mean(axis=1)
    time = np.cumsum(given.seconds.mean(axis=0))
    if given.max_time:
        objects = {sequence: num_objects for sequence, _, num_objects in given.samples}
        end = given.max_time * sum(objects.values()) / len(objects)  # per sequence, however many scribbles it has
    else:
        end = len(curve) * np.fmax.reduce(given.slowest)
    # The end is not sorted in: where rounds took longer than that, the last trapezoid is negative.
    time = np.concatenate([[0.0], time, [end]])
    curve = np.concatenate([[0.0], curve, curve[-1:]])
    return {
        "auc": float(area(time, curve)),
        "metric_at_threshold": {"threshold": threshold, metric: float(np.interp(threshold, time, curve))},
        "curve": {"time": time.tolist(), metric: curve.tolist()},
    }


def area(time: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """AUC: the area under a curve of quality over seconds, divided by its longest time; 0 if no time passes.

    time, curve: float64 P, or ...×P for as many areas at once.
    """
    longest = np.asarray(time.max(axis=-1))
    return np.divide(np.trapezoid(curve, time), longest, out=np.zeros_like(longest), where=longest != 0)[()]


def cut(time: np.ndarray, curve: np.ndarray, until: float) -> tuple[np.ndarray, np.ndarray]:
    """An official curve that ends at `until` seconds instead: cut there, or its last value held as long.

    time, curve: float64 P, of which the last is the official end.
    """
    time, curve = time[:-1], curve[:-1]
    earlier = time < until
    return np.append(time[earlier], until), np.append(curve[earlier], np.interp(until, time, curve))


def fill_in(rounds: np.ndarray) -> np.ndarray:
    """Replace each incomplete round by the last complete one, in no time: float64 rounds×N×(quality, seconds)."""
    filled = np.zeros_like(rounds)
    for i, played in enumerate(rounds):
        if not np.isnan(played).any():
            filled[i] = played
        elif i:
            filled[i, :, 0] = filled[i - 1, :, 0]
    return filled
