"""Scores and masks in the formats that others read: the official report's CSV, palette PNGs."""

import io
import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from harness.api import BadInput
from harness.data.images import content, one_line
from harness.data.sequence import plain
from harness.report.leaderboard import Entry
from harness.rules.summary import COLUMN, area, report_columns
from harness.run import records

HIGHEST = {"scribble_idx": 1000, "interaction": 1000, "object_id": 254, "frame": 10**6}  # more is no report
SCORES = ("jaccard", "contour", "j_and_f")


def write_csv(entry: Entry, folder: Path) -> Path:
    """An entry's complete samples as davisinteractive's report CSV, `report-<label>.csv`."""
    path = folder / f"report-{entry.slug}.csv"
    entry.rounds[report_columns].dropna(subset="jaccard").reset_index(drop=True).to_csv(path)
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a report in davisinteractive's CSV format. BadInput names the file and line of what is none."""
    try:
        rows = pd.read_csv(io.BytesIO(content(path)), index_col=0, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise BadInput(f"{path}: not a readable CSV ({one_line(error)}); give a report of davisinteractive") from error
    missing = [column for column in report_columns if column not in rows.columns]
    if missing:
        raise BadInput(f"{path}, line 1: no column {', '.join(missing)}; give a report of davisinteractive")
    for column in report_columns[2:]:
        numbers = pd.to_numeric(rows[column], errors="coerce").astype(float)
        upper = 1 if column in SCORES else HIGHEST.get(column, np.inf)
        lower = 1 if column in ("scribble_idx", "interaction", "object_id") else 0
        right = numbers.between(lower, upper) & np.isfinite(numbers)
        if column in HIGHEST:
            right &= numbers % 1 == 0
        if not right.all():
            line = int(np.argmin(right.to_numpy()))
            value = reprlib.repr(str(rows[column].iloc[line])).strip("'")
            raise BadInput(f"{path}, line {line + 2}: {column}={value}, wanted {lower}..{upper}")
        rows[column] = numbers.astype(int) if column in HIGHEST else numbers
    if rows.empty:
        raise BadInput(f"{path}: no rows; give a report with at least one round")
    return rows[report_columns]


def read_summary(path: Path) -> dict[str, Any]:
    """A session's summary in davisinteractive's JSON format, AUC and score at the threshold computed from its curve.

    Raises BadInput for what is none, or whose AUC is not that of its curve.
    """
    try:
        given = json.loads(content(path))
        (metric,) = set(given["curve"]) - {"time"}
        time, score = (np.array(given["curve"][key], float) for key in ("time", metric))
        threshold = float(given["metric_at_threshold"]["threshold"])
        auc = float(given["auc"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BadInput(f"{path}: not a summary ({reason}); give one that davisinteractive saved") from error
    if metric not in COLUMN or time.ndim != 1 or time.shape != score.shape or len(time) < 3:
        shapes = f"{time.shape} times and {score.shape} scores"
        raise BadInput(f"{path}: curve of {reprlib.repr(metric)} has {shapes}; give a whole summary")
    if not (np.isfinite(time).all() and (time >= 0).all() and (score >= 0).all() and (score <= 1).all()):
        raise BadInput(f"{path}: curve: wanted finite times from 0 on and scores in 0..1; give a whole summary")
    if not 0 <= threshold < np.inf:
        raise BadInput(f"{path}: threshold={threshold}, wanted seconds; give a whole summary")
    if not abs(area(time, score) - auc) <= 1e-9:
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
        sample = top / plain(f"{record.key.sample['sequence']}-{record.key.sample['scribble_idx']}", str(record.path))
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
