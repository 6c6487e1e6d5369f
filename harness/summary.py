"""What a session comes to: the official curve of quality over time, its area, and its value at a given time.

The rules, and their oddities, are those of davisinteractive 1.0.4 (Caelles et al. 2018).
"""

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


def summarize(
    report: pd.DataFrame,
    samples: list[tuple[str, int, int]],
    *,
    max_time: float | None,
    max_interactions: int | None,
    metric: Metric = "J_AND_F",
    threshold: float = 60.0,
) -> dict[str, Any]:
    """The official summary of a report.

    report: rows of `report_columns` (session_id not needed), timing in seconds.
    samples: (sequence, scribble_idx, num_objects) of every sample that should have been played; a round that the
        report lacks repeats the sample's last complete one in no time, or counts as 0 if there is none.
    max_time: seconds per object; where the curve ends. None: where the slowest round would have led to.
    max_interactions: rounds; None for as many as the report has.
    threshold: in seconds.
    Returns {"auc", "metric_at_threshold": {"threshold", metric}, "curve": {"time", metric}}.
    """
    keys = ["interaction", "sequence", "scribble_idx", "object_id"]
    grouped = report.groupby(keys)[[COLUMN[metric], "timing"]].mean()
    rounds = max_interactions or (int(report.interaction.max()) if len(report) else 1)
    quality, seconds = [], []
    for sequence, scribble_idx, num_objects in samples:
        wanted = [
            (interaction, sequence, scribble_idx, object_id)
            for interaction in range(1, rounds + 1)
            for object_id in range(1, num_objects + 1)
        ]
        rows = grouped.reindex(pd.MultiIndex.from_tuples(wanted, names=keys)).to_numpy(np.float64)
        played = fill_in(rows.reshape(rounds, num_objects, 2))
        quality.append(played[:, :, 0])
        seconds.append(played[:, :, 1].mean(axis=1))

    # A mean over objects, not samples: a sequence with five objects weighs five times as much in the quality.
    curve = np.concatenate(quality, axis=1).mean(axis=1)
    time = np.cumsum(np.mean(seconds, axis=0))
    if max_time:
        objects = {sequence: num_objects for sequence, _, num_objects in samples}
        end = max_time * sum(objects.values()) / len(objects)  # per sequence, however many scribbles it has
    else:
        end = rounds * grouped.timing.max()
    # The end is not sorted in: where rounds took longer than that, the last trapezoid is negative.
    time = np.concatenate([[0.0], time, [end]])
    curve = np.concatenate([[0.0], curve, curve[-1:]])
    return {
        "auc": area(time, curve),
        "metric_at_threshold": {"threshold": threshold, metric: float(np.interp(threshold, time, curve))},
        "curve": {"time": time.tolist(), metric: curve.tolist()},
    }


def area(time: np.ndarray, curve: np.ndarray) -> float:
    """AUC: the area under a curve of quality over seconds, divided by its longest time; 0 if no time passes."""
    longest = time.max()
    return float(np.trapezoid(curve, time) / longest) if longest else 0.0


def fill_in(rounds: np.ndarray) -> np.ndarray:
    """Replace each incomplete round by the last complete one, in no time: float64 rounds×N×(quality, seconds)."""
    filled = np.zeros_like(rounds)
    for i, played in enumerate(rounds):
        if not np.isnan(played).any():
            filled[i] = played
        elif i:
            filled[i, :, 0] = filled[i - 1, :, 0]
    return filled
