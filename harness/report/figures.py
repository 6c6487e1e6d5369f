"""The pictures of a board: curves, and film strips of what the methods drew."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.report.leaderboard import Board, Entry, by_object_and_frame, curve
from harness.rules.scribbles import draw
from harness.run import records
from harness.run.records import Record

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
    "savefig.dpi": 150,
    "svg.hashsalt": "ivosbench",
    "text.parse_math": False,  # a name may have a $ in it
}


def curves(board: Board, folder: Path) -> list[Path]:
    """Score against time and against round, as `curves.png`, `.svg` and `.pdf`."""
    entries = [entry for entry in board.entries if entry.summary]
    with mpl.rc_context(STYLE):
        figure, (by_time, by_round) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
        timed = [entry for entry in entries if not entry.untimed]
        last = max((curve(entry, board)[0][-2] for entry in timed), default=0) or 1
        for entry, (colour, line) in zip(entries, styles(entries), strict=True):
            time, score = curve(entry, board)
            if not entry.untimed:
                by_time.plot(time[:-1], score[:-1], line, color=colour, marker="o", markersize=3)
                by_time.plot([time[-2], 1.05 * last], [score[-2]] * 2, ":", color=colour, linewidth=1)
            by_round.plot(range(1, len(score) - 1), score[1:-1], line, color=colour, marker="o", markersize=3)
            told = f"no times ({entry.untimed})" if entry.untimed else f"AUC {(entry.summary or {})['auc']:.3f}"
            by_round.lines[-1].set_label(f"{short(entry)}: {told}")
        if entries and not timed:
            told = "no times to compare: " + ", ".join(sorted({entry.untimed for entry in entries}))
            by_time.text(0.5, 0.5, told, transform=by_time.transAxes, ha="center", va="center")
        by_time.set(xlabel=f"time per sample [s], {board.clock} clock", xlim=(0, 1.05 * last))
        by_time.set(ylabel=board.metric, ylim=(0, 1))
        by_round.set(xlabel="round")
        by_round.xaxis.get_major_locator().set_params(integer=True)
        if entries:
            by_round.legend(loc="best", fontsize=8, frameon=False)
        figure.suptitle(textwrap.fill(board.title, 110), fontsize=10)
        return save(figure, folder / "curves")


def percentiles(board: Board, folder: Path) -> list[Path]:
    """J of every object in every scored frame after the last round, sorted (Oh et al., TPAMI 2020, Figure 11)."""
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
        for entry, (colour, line) in zip(board.entries, styles(board.entries), strict=True):
            scores = np.sort(by_object_and_frame(entry))
            axis.plot(np.linspace(0, 100, len(scores)), scores, line, color=colour, label=short(entry))
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
            axis.plot(lost.columns, lost.mean(), line, color=colour, label=short(entry))
            axis.fill_between(lost.columns, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="frame", ylabel=f"J − J in frame {scores.columns[0]}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=8, frameon=False)
        figure.suptitle(board.title, fontsize=10)
        return save(figure, folder / "drop")


def film_strip(entry: Entry, folder: Path, columns: int = 6) -> Path | None:
    """What one entry drew on its sample of median final score: a row per round, a column per frame.

    Strokes of the round are green on objects and red on background. None if the clip's thumbnails are gone or damaged.
    Raises BadInput if masks or strokes are.
    """
    record = records.read(median_sample(entry), content=True)
    frames = records.read_thumbnails(record)
    if frames is None:
        return None
    rounds = sorted(record.rows["interaction"].unique())
    shown = [i for i in rounds if i in (1, 2, 4, rounds[-1])]
    marked = {i: records.scribbles_of(record, i) for i in shown}
    drawn = {i: records.masks_of(record, i) for i in shown}
    times = sorted({*np.linspace(0, len(frames) - 1, columns).round().astype(int), *(f for f, _ in marked.values())})
    score = record.rows.groupby(["interaction", "frame"])["j_and_f"].mean()
    height, width = frames.shape[1:3]
    above, beside = round(0.1 * width), round(0.02 * width)  # room for a title, and between two pictures
    whole = np.full((len(shown) * (height + above), len(times) * (width + beside), 3), 255, np.uint8)
    inches = 1.65 / width
    size = (inches * whole.shape[1] + 0.2, inches * whole.shape[0] + 0.2)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = plt.figure(figsize=size)
        # One axis for all pictures: to lay out one for each takes longer than everything else.
        axis = figure.add_axes((0.2 / size[0], 0, 1 - 0.2 / size[0], 1 - 0.2 / size[1]))
        for row, i in enumerate(shown):
            masks = drawn[i]
            y = row * (height + above) + above
            axis.text(-beside, y + height / 2, f"round {i}", rotation=90, ha="right", va="center", fontsize=7)
            for column, t in enumerate(times):
                x = column * (width + beside)
                whole[y : y + height, x : x + width] = overlay(frames[t], masks[t])
                title = f"frame {t}  J&F {score[i, t]:.2f}"
                axis.text(x + width / 2, y - 0.02 * width, title, ha="center", va="bottom", fontsize=6)
                if strokes := marked[i][1].frames[t]:
                    mark(axis, draw(strokes, (height, width)), x, y)
        axis.imshow(whole)
        axis.set_axis_off()
        title = f"{short(entry)} on {record.key.sample['sequence']}"
        figure.text(0.5, 1 - 0.05 / size[1], title, ha="center", va="top", fontsize=8)
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


def mark(axis: Axes, drawn: np.ndarray, left: int, top: int) -> None:
    """Show drawn strokes (H×W, -1 where there is none) on the picture whose first pixel is at `left`, `top`."""
    for there, colour in ((drawn > 0, "#00FF00"), (drawn == 0, "#FF0000")):
        y, x = np.nonzero(there)
        axis.scatter(x + left, y + top, s=0.6, c=colour, linewidths=0)


def styles(entries: list[Entry]) -> list[tuple[str, str]]:
    """(colour, line) of each entry: colour by method, line by its rank among its namesakes."""
    names = [entry.name for entry in entries]
    guests = [name for name in dict.fromkeys(names) if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(guests)}
    return [(colours[name], LINES[names[:i].count(name) % len(LINES)]) for i, name in enumerate(names)]


def short(entry: Entry) -> str:
    """The label as far as a legend has room for it, and the warning beside random weights."""
    return textwrap.shorten(entry.label, 60, placeholder=" …") + untrained(entry)


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
