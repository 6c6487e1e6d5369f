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
from harness.report.collect import HIGHEST, canonical, incomplete, wrong_value
from harness.report.leaderboard import Entry
from harness.rules.summary import COLUMN, area, report_columns
from harness.run import records
from harness.run.provenance import digest


def write_csv(entry: Entry, folder: Path) -> Path:
    """An entry's complete samples as davisinteractive's report CSV of one session, `report-<label>.csv`."""
    path = folder / f"report-{entry.slug}.csv"
    session = digest(canonical(entry.rounds["session_id"].unique().tolist()).encode())
    rows = entry.rounds[report_columns].dropna(subset="jaccard").assign(session_id=session)
    rows.reset_index(drop=True).to_csv(path)
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Rows of a report in davisinteractive's CSV format, with its index column or without.

    Raises BadInput that names file and line of what is none, and for one of several sessions or of parts of rounds.
    """
    remedy = "give a report of davisinteractive"
    try:
        rows = pd.read_csv(io.BytesIO(content(path)), index_col=False, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise BadInput(f"{path}: not a readable CSV ({one_line(error)}); {remedy}") from error
    missing = [column for column in report_columns if column not in rows.columns]
    if missing:
        raise BadInput(f"{path}, line 1: no column {', '.join(missing)}; {remedy}")
    rows = rows[report_columns]
    if rows.empty:
        raise BadInput(f"{path}: no rows; give a report with at least one round")
    numbers = rows[report_columns[2:]].apply(pd.to_numeric, errors="coerce").astype(float)
    if wrong := wrong_value(numbers.fillna(-1)):
        value = reprlib.repr(rows[wrong.column].iloc[wrong.row]).strip("'")
        raise BadInput(f"{path}, line {wrong.row + 2}: {wrong.column}={value}, wanted {wrong.wanted}")
    rows = rows.assign(**{c: values.astype(int) if c in HIGHEST else values for c, values in numbers.items()})
    if len(sessions := rows["session_id"].unique()) > 1:
        raise BadInput(f"{path}: holds {len(sessions)} sessions; give each a file of its own")
    for name, sample in rows.groupby(["sequence", "scribble_idx"]):
        objects, frames = range(1, sample["object_id"].max() + 1), sample["frame"].unique().tolist()
        several = sample.groupby("interaction")["timing"].nunique() > 1
        lacking = f"round {several.idxmax()} has two timings" if several.any() else incomplete(sample, objects, frames)
        if lacking:
            raise BadInput(f"{path}: {'-'.join(map(str, name))}: {lacking}; give a report of one whole session")
    return rows


def read_summary(path: Path) -> dict[str, Any]:
    """A session's summary in davisinteractive's JSON format, AUC and score at the threshold computed from its curve.

    A curve without times is one of scores after rounds 0, 1, ..., as Yin et al. (CVPR 2021) published theirs: its auc
    is that over rounds, and times and what follows from them are NaN. Raises BadInput for what is none, or whose AUC
    is not that of its curve.
    """
    try:
        given = json.loads(content(path))
        (metric,) = set(given["curve"]) - {"time"}
        score = np.array(given["curve"][metric], float)
        auc = float(given["auc"])
        timed = "time" in given["curve"]
        time = np.array(given["curve"]["time"], float) if timed else np.arange(float(len(score)))
        threshold = float(given["metric_at_threshold"]["threshold"]) if timed else 0.0
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BadInput(f"{path}: not a summary ({reason}); give one that davisinteractive saved") from error
    if metric not in COLUMN or time.ndim != 1 or time.shape != score.shape or len(time) < 3 - (not timed):
        shapes = f"{time.shape} times and {score.shape} scores"
        raise BadInput(f"{path}: curve of {reprlib.repr(metric)} has {shapes}; give a whole summary")
    if not (np.isfinite(time).all() and (time >= 0).all() and (score >= 0).all() and (score <= 1).all()):
        raise BadInput(f"{path}: curve: wanted finite times from 0 on and scores in 0..1; give a whole summary")
    if not 0 <= threshold < np.inf:
        raise BadInput(f"{path}: threshold={threshold}, wanted seconds; give a whole summary")
    if not abs(area(time, score) - auc) <= 1e-9:
        raise BadInput(f"{path}: auc={auc}, but its curve has {area(time, score):.6f}; one of them was changed")
    if not timed:
        nothing, held = float("nan"), [*score.tolist(), float(score[-1])]
        return {
            "auc": nothing,
            "metric_at_threshold": {"threshold": nothing, metric: nothing},
            "curve": {"time": [nothing] * len(held), metric: held},
        }
    return {
        "auc": area(time, score),
        "metric_at_threshold": {"threshold": threshold, metric: float(np.interp(threshold, time, score))},
        "curve": {"time": time.tolist(), metric: score.tolist()},
    }


def write_masks(entry: Entry, folder: Path) -> Path:
    """An entry's masks as palette PNGs, `masks-<label>/<sequence>-<scribble>/round-<i>/<frame>.png`.

    Raises BadInput for records with damaged masks, after the others.
    """
    top = folder / f"masks-{entry.slug}"
    palette = davis_palette()
    damaged = []
    for record in entry.records:
        full = records.read(record.path, content=True)
        sample = top / plain(f"{record.key.sample['sequence']}-{record.key.sample['scribble_idx']}", str(record.path))
        for interaction in sorted(full.rows["interaction"].unique()):
            place = sample / f"round-{interaction}"
            place.mkdir(parents=True, exist_ok=True)
            try:
                masks = records.masks_of(full, interaction)
            except BadInput as error:
                damaged.append(str(error))
                continue
            for t, mask in enumerate(masks):
                image = Image.fromarray(mask, mode="P")
                image.putpalette(palette)
                image.save(place / f"{t:05d}.png")
    if damaged:
        raise BadInput("; ".join(damaged))
    return top


def davis_palette() -> list[int]:
    """The colours of PASCAL VOC's and DAVIS' label PNGs: bit b of a label's channel is bit 7-b of its colour."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (labels >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.ravel().tolist()
