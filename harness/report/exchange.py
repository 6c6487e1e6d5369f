"""Scores and masks in the formats that others read: the official report's CSV, palette PNGs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from harness import records
from harness.api import BadInput
from harness.report.leaderboard import Entry
from harness.summary import COLUMN, area, report_columns


def write_csv(entry: Entry, folder: Path) -> Path:
    """An entry's complete samples as davisinteractive's report CSV, `report-<label>.csv`."""
    path = folder / f"report-{entry.slug}.csv"
    entry.rounds[report_columns].dropna(subset="jaccard").reset_index(drop=True).to_csv(path)
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a report in davisinteractive's CSV format. BadInput names the file and line of what is none."""
    try:
        rows = pd.read_csv(path, index_col=0)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: not a readable CSV ({reason}); give a report of davisinteractive") from error
    missing = [column for column in report_columns if column not in rows.columns]
    if missing:
        raise BadInput(f"{path}, line 1: no column {', '.join(missing)}; give a report of davisinteractive")
    for column in report_columns[2:]:
        numbers = pd.to_numeric(rows[column], errors="coerce")
        upper = 1 if column in ("jaccard", "contour", "j_and_f") else np.inf
        lower = 1 if column in ("scribble_idx", "interaction", "object_id") else 0
        wrong = ~(numbers.between(lower, upper) & np.isfinite(numbers))
        if wrong.any():
            line = int(np.argmax(wrong.to_numpy()))
            raise BadInput(f"{path}, line {line + 2}: {column}={rows[column].iloc[line]}, wanted {lower}..{upper}")
        rows[column] = numbers
    if rows.empty:
        raise BadInput(f"{path}: no rows; give a report with at least one round")
    return rows[report_columns]


def read_summary(path: Path) -> dict[str, Any]:
    """A session's summary in davisinteractive's JSON format, AUC and score at the threshold computed from its curve.

    Raises BadInput for what is none, or whose AUC is not that of its curve.
    """
    try:
        given = json.loads(path.read_text())
        (metric,) = set(given["curve"]) - {"time"}
        time, score = (np.array(given["curve"][key], float) for key in ("time", metric))
        threshold = float(given["metric_at_threshold"]["threshold"])
        auc = float(given["auc"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"{path}: not a summary ({reason}); give one that davisinteractive saved") from error
    if metric not in COLUMN or time.ndim != 1 or time.shape != score.shape or len(time) < 3:
        raise BadInput(
            f"{path}: curve of {metric} has {time.shape} times and {score.shape} scores; give a whole summary"
        )
    if not (np.isfinite(time).all() and (score >= 0).all() and (score <= 1).all()):
        raise BadInput(f"{path}: curve: wanted finite times and scores in 0..1")
    if abs(area(time, score) - auc) > 1e-9:
        raise BadInput(f"{path}: auc={auc}, but its curve has {area(time, score):.6f}; one of them was changed")
    return {
        "auc": area(time, score),
        "metric_at_threshold": {"threshold": threshold, metric: float(np.interp(threshold, time, score))},
        "curve": {"time": time.tolist(), metric: score.tolist()},
    }


def write_masks(entry: Entry, folder: Path) -> Path:
    """An entry's masks as palette PNGs, `masks-<label>/<sequence>-<scribble>/round-<i>/<frame>.png`."""
    top = folder / f"masks-{entry.slug}"
    palette = davis_palette()
    for record in entry.records:
        full = records.read(record.path, content=True)
        sample = top / f"{record.key.sample['sequence']}-{record.key.sample['scribble_idx']}"
        for interaction in sorted(full.rows["interaction"].unique()):
            place = sample / f"round-{interaction}"
            place.mkdir(parents=True, exist_ok=True)
            for t, mask in enumerate(records.masks_of(full, interaction)):
                image = Image.fromarray(mask, mode="P")
                image.putpalette(palette)
                image.save(place / f"{t:05d}.png")
    return top


def davis_palette() -> list[int]:
    """The colours of PASCAL VOC's and DAVIS' label PNGs: bit b of a label's channel is bit 7-b of its colour."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (labels >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.ravel().tolist()
