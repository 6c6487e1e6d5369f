"""The pictures of a board: curves, and film strips of what the methods drew."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness import records
from harness.records import Record
from harness.report.leaderboard import Board, Entry, by_object_and_frame, curve
from harness.scribbles import draw

# Okabe and Ito's colours, told apart by colour-blind readers; a method keeps its own in every figure
COLOURS = {"stm": "#0072B2", "mivos": "#D55E00", "atnet": "#009E73", "ipnet": "#CC79A7", "grabcut": "#7F7F7F"}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")
OBJECTS = np.array([[0, 0, 0], [0, 158, 115], [213, 94, 0], [86, 180, 233], [240, 228, 66], [204, 121, 167]], np.uint8)
UNDATED: Any = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
    "svg.hashsalt": "ivosbench",
}


def curves(board: Board, folder: Path) -> list[Path]:
    """Score against time and against round, as `curves.png`, `.svg` and `.pdf`."""
    entries = [entry for entry in board.entries if entry.summary]
    with mpl.rc_context(STYLE):
        figure, (by_time, by_round) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
        last = max((curve(entry, board)[0][-2] for entry in entries if not entry.shared), default=0) or 1
        for entry, (colour, line) in zip(entries, styles(entries), strict=True):
            time, score = curve(entry, board)
            if not entry.shared:
                by_time.plot(time[:-1], score[:-1], line, color=colour, marker="o", markersize=3)
                by_time.plot([time[-2], 1.05 * last], [score[-2]] * 2, ":", color=colour, linewidth=1)
            by_round.plot(range(1, len(score) - 1), score[1:-1], line, color=colour, marker="o", markersize=3)
            told = "times shared" if entry.shared else f"AUC {(entry.summary or {})['auc']:.3f}"
            by_round.lines[-1].set_label(f"{entry.label}{untrained(entry)}: {told}")
        by_time.set(xlabel=f"time per sample [s], {board.clock} clock", xlim=(0, 1.05 * last))
        by_time.set(ylabel=board.metric, ylim=(0, 1))
        by_round.set(xlabel="round")
        by_round.xaxis.get_major_locator().set_params(integer=True)
        if entries:
            by_round.legend(loc="best", fontsize=8, frameon=False)
        figure.suptitle(board.title, fontsize=10)
        return save(figure, folder / "curves")


def percentiles(board: Board, folder: Path) -> list[Path]:
    """J of every object in every scored frame after the last round, sorted (Oh et al., TPAMI 2020, Figure 11)."""
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
        for entry, (colour, line) in zip(board.entries, styles(board.entries), strict=True):
            scores = np.sort(by_object_and_frame(entry))
            axis.plot(
                np.linspace(0, 100, len(scores)), scores, line, color=colour, label=entry.label + untrained(entry)
            )
        axis.set(xlabel="percentile of objects × frames", ylabel="J", xlim=(0, 100), ylim=(0, 1))
        axis.legend(fontsize=8, frameon=False)
        figure.suptitle(board.title, fontsize=10)
        return save(figure, folder / "percentiles")


def drop(board: Board, folder: Path) -> list[Path]:
    """J lost since the first propagated frame, by distance from it, its mean and quartiles over objects.

    Cheng et al., CVPR 2021, Figure 6; for protocols of one round that start from the first frame.
    """
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
        for entry, (colour, line) in zip(board.entries, styles(board.entries), strict=True):
            rows = entry.rounds.dropna(subset="jaccard")
            scores = rows.pivot_table(
                index=["sequence", "scribble_idx", "object_id"], columns="frame", values="jaccard"
            )
            lost = scores.sub(scores.iloc[:, 0], axis=0)
            low, high = lost.quantile(0.25), lost.quantile(0.75)
            axis.plot(lost.columns, lost.mean(), line, color=colour, label=entry.label + untrained(entry))
            axis.fill_between(lost.columns, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="frame", ylabel=f"J − J in frame {scores.columns[0]}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=8, frameon=False)
        figure.suptitle(board.title, fontsize=10)
        return save(figure, folder / "drop")


def film_strip(entry: Entry, runs: Path, folder: Path, columns: int = 6) -> Path | None:
    """What one entry drew on its sample of median final score: a row per round, a column per frame.

    Strokes of the round are green on objects and red on background. None if the clip's thumbnails were deleted.
    """
    record = records.read(median_sample(entry), content=True)
    frames = records.read_thumbnails(runs, record.key.sample["manifest"])
    if frames is None:
        return None
    rounds = sorted(record.rows["interaction"].unique())
    shown = [i for i in rounds if i in (1, 2, 4, rounds[-1])]
    marked = {i: records.scribbles_of(record, i) for i in shown}
    times = sorted({*np.linspace(0, len(frames) - 1, columns).round().astype(int), *(f for f, _ in marked.values())})
    score = record.rows.groupby(["interaction", "frame"])["j_and_f"].mean()
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        size = (1.7 * len(times), 1.15 * len(shown) + 0.3)
        figure, axes = plt.subplots(len(shown), len(times), figsize=size, squeeze=False, layout="constrained")
        for row, i in zip(axes, shown, strict=True):
            masks = records.masks_of(record, i)
            for axis, t in zip(row, times, strict=True):
                strokes = marked[i][1].frames[t]
                axis.imshow(overlay(frames[t], masks[t]))
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                axis.set_title(f"frame {t}  J&F {score[i, t]:.2f}", fontsize=6, pad=2)
                if strokes:
                    mark(axis, draw(strokes, frames.shape[1:3]))
            row[0].set_ylabel(f"round {i}", fontsize=7)
        figure.suptitle(f"{entry.label}{untrained(entry)} on {record.key.sample['sequence']}", fontsize=8)
        return save(figure, folder / f"strip-{entry.slug}", formats=("jpg",))[0]


def median_sample(entry: Entry) -> Path:
    """The record whose score after its last round is the median of the entry's."""

    def final(record: Record) -> float:
        rows: pd.DataFrame = record.rows
        return float(rows[rows["interaction"] == rows["interaction"].max()]["j_and_f"].mean())

    played = [record for record in entry.records if len(record.rows)]
    return sorted(played, key=final)[len(played) // 2].path


def overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGB frame with its label map (any size) tinted over it."""
    rows = np.arange(frame.shape[0]) * mask.shape[0] // frame.shape[0]
    columns = np.arange(frame.shape[1]) * mask.shape[1] // frame.shape[1]
    small = mask[np.ix_(rows, columns)]
    tint = OBJECTS[np.where(small, (small - 1) % 5 + 1, 0)]
    return np.where(small[..., None] > 0, (0.45 * frame + 0.55 * tint).astype(np.uint8), frame)


def mark(axis: Axes, drawn: np.ndarray) -> None:
    """Show drawn strokes (H×W, -1 where there is none)."""
    for there, colour in ((drawn > 0, "#00FF00"), (drawn == 0, "#FF0000")):
        y, x = np.nonzero(there)
        axis.scatter(x, y, s=0.6, c=colour, linewidths=0)


def styles(entries: list[Entry]) -> list[tuple[str, str]]:
    """(colour, line) of each entry: colour by method, line by its rank among its namesakes."""
    names = [entry.name for entry in entries]
    guests = [name for name in dict.fromkeys(names) if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(guests)}
    return [(colours[name], LINES[names[:i].count(name) % len(LINES)]) for i, name in enumerate(names)]


def untrained(entry: Entry) -> str:
    """A warning beside scores of random weights."""
    return " (untrained)" if entry.weights["training"] == "untrained" else ""


def save(figure: plt.Figure, stem: Path, formats: tuple[str, ...] = ("png", "svg", "pdf")) -> list[Path]:
    """Write and close a figure."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    for path in paths:
        figure.savefig(path, metadata=UNDATED.get(path.suffix))
    plt.close(figure)
    return paths
