"""A paper's tables and figures: what was published, and beside it what was played here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.data import synthetic
from harness.report import figures
from harness.report.leaderboard import NOISE, TIMED, Board, Entry, by_object_and_frame, notes, outcome, speed
from harness.report.statistics import difference, interval, score
from harness.report.tables import latex, markdown, show
from harness.run.provenance import machine

INTERVALS = (
    "in brackets: 95 % bootstrap intervals over sequences, each with all its scribbles; too narrow for less than 15"
)
OF_ROWS = ("weights", "times shared", "times mixed")  # the notes that name a row


@dataclass(frozen=True)
class Column:
    """A column of a table.

    label: as printed; ours: what ours is, if that differs.
    unit: what the paper counts in, 100 for percent; digits: decimals.
    score: what fills ours: one of `harness.report.statistics`, "s/frame", "percentile <n>", or "" for nothing of ours.
    metric: of the score; None takes the protocol's.
    """

    label: str
    ours: str
    unit: float
    digits: int
    score: str = ""
    metric: Any = None


@dataclass(frozen=True)
class Cell:
    """One of our figures, in the paper's unit; `low`, `high`: its 95 % interval, NaN where there is none.

    noise: whether its paired difference to the row that the table compares with may be none.
    trainings: where it is the mean of several trainings, what each came to.
    why: where there is none, and the value is NaN, why.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    noise: bool = False
    trainings: Sequence[float] = ()
    why: str = ""

    def text(self, digits: int) -> str:
        if np.isnan(self.value):
            return self.why
        shown = f"{self.value:.{digits}f}"
        if np.isfinite(self.low):
            shown += f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{shown} {NOISE}" if self.noise else shown


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table.

    paper: what is printed, column by column, None for nothing.
    boards: for each column of ours the board that was played for it, None for none: its first entry is the row's, what
        follow are the trainings that this is the mean of.
    figures: for each column what is no score of an entry, None for none.
    needs: why there is nothing of ours, or less than could be, if somebody could have played it.
    whys: for each column why nothing of ours is there, "" where something is or nothing could be.
    how: the commands that would make what is missing.
    files: the authors' files that play it with weights=official: who publishes each, and what it is.
    """

    label: str
    paper: Sequence[float | None]
    boards: Sequence[Board | None]
    figures: Sequence[float | None]
    needs: str = ""
    whys: Sequence[str] = ()
    how: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def board(self) -> Board | None:
        """Of the first column that has one."""
        return next((board for board in self.boards if board), None)


@dataclass(frozen=True)
class Table:
    """A table of a paper: where it is printed, what on, what it shows, what ours are called, and its content.

    against: label of the row that differences are taken to; "" for none.
    remarks: what else is to be told below it.
    """

    name: str
    paper: str
    data: str
    about: str
    command: str
    ours: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    against: str = ""
    pictures: Sequence[Path] = field(default_factory=list)
    remarks: Sequence[str] = ()


def cells(table: Table) -> list[list[Cell | None]]:
    """What ours come to, row by row and column by column; None where nothing of ours could be."""
    return [[cell(table, row, i) for i in range(len(table.columns))] for row in table.rows]


def cell(table: Table, row: Row, i: int) -> Cell | None:
    """Row and column of a table; None where nothing of ours could be."""
    column, board, figure = table.columns[i], row.boards[i], row.figures[i]
    if figure is not None:
        return Cell(figure)
    if board is None:
        return Cell(np.nan, why="not played") if any(row.whys[i : i + 1]) else None
    if (entry := board.entries[0]).played is None:
        return Cell(np.nan, why="failed")
    if entry.untimed and column.score in (*TIMED, "s/frame"):
        return Cell(np.nan, why=f"times {entry.untimed}")
    if column.score == "s/frame":
        return Cell(1 / speed(entry.rounds)["frames/s"])
    if column.score.startswith("percentile "):
        scores = by_object_and_frame(entry)
        return Cell(column.unit * float(np.percentile(scores, float(column.score.removeprefix("percentile ")))))
    name, threshold = column.score, board.protocol.threshold
    mine = outcome(entry.rounds, entry.played.samples, board.protocol, column.metric)
    low, high = interval(mine, name, threshold)
    other = next((r.boards[i] for r in table.rows if r.label == table.against and r.label != row.label), None)
    noise = False
    against = other.entries[0] if other and other.protocol == board.protocol else None
    if against and against.played and of_same_clips(entry, against):
        theirs = outcome(against.rounds, against.played.samples, board.protocol, column.metric)
        noise = difference(mine, theirs, name, threshold).noise
    trainings = [
        column.unit * score(outcome(each.rounds, mine.samples, board.protocol, column.metric), name, threshold)
        for each in board.entries[1:]
    ]
    return Cell(column.unit * score(mine, name, threshold), column.unit * low, column.unit * high, noise, trainings)


def render(table: Table, folder: Path) -> None:
    """Print a table and write it as table.md, table.tex and table.csv into `folder`."""
    found = cells(table)
    shown = wide(table, found)
    folder.mkdir(parents=True, exist_ok=True)
    long(table, found).to_csv(folder / "table.csv", index=False)
    (folder / "table.tex").write_text(latex(shown, table.paper))
    flat = shown.set_axis([": ".join(filter(None, names)) for names in shown.columns], axis=1)
    pictures = "".join(f"![{path.stem}]({path.name})\n\n" for path in table.pictures if path.suffix == ".png")
    told = "\n".join(f"- {line}" for line in legend(table, found))
    text = f"# {table.paper}\n\n{table.about}\n\n{markdown(flat, numbers=False)}\n\n{pictures}{told}\n"
    (folder / "table.md").write_text(text)
    show(f"{table.paper} ({table.name})", flat)


def accuracy_by_speed(table: Table, folder: Path) -> list[Path]:
    """J&F against frames per second, printed and ours, of a table with columns J Mean, F Mean and Time(s).

    Oh et al., TPAMI 2020, Figure 5. Where print has one figure for both, it is in the column J&F Mean.
    """
    columns = [column.label for column in table.columns]
    j, f, seconds = (columns.index(label) for label in ("J Mean", "F Mean", "Time(s)"))
    both = columns.index("J&F Mean")
    printed: list[tuple[str, float, float]] = []
    ours: list[tuple[str, float, float]] = []
    for row, mine in zip(table.rows, cells(table), strict=True):
        values = [np.nan if value is None else float(value) for value in row.paper]
        accuracy = values[both] if np.isnan(values[j]) else (values[j] + values[f]) / 2
        printed.append((row.label, 1 / values[seconds], accuracy))
        if (score := mine[both]) and (time := mine[seconds]):
            ours.append((row.label, 1 / time.value, score.value))
    with mpl.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        for name, points, marker in ((f"paper, {table.data}", printed, "o"), (table.ours, ours, "*")):
            shown = [point for point in points if np.isfinite(point[1:]).all()]
            axis.plot([x for _, x, _ in shown], [y for *_, y in shown], marker, label=name if shown else None)
            for label, x, y in shown:
                axis.annotate(label, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6)
        axis.set(xscale="log", xlabel="frames per second", ylabel="J&F")
        axis.legend(fontsize=8, frameon=False)
        figure.suptitle(table.paper, fontsize=10)
        return figures.save(figure, folder / "accuracy_by_speed")


def write_index(tables: Sequence[Table], folder: Path) -> None:
    """List tables that were rendered below `folder` in its index.md: what each shows, and how much of it is ours."""
    lines = [
        {
            "": f"[{table.paper}]({table.name}/table.md)",
            "shows": table.about,
            "rows of ours": sum(bool(row.board) or any(each is not None for each in row.figures) for row in table.rows),
            "not played": sum(bool(row.needs) for row in table.rows),
        }
        for table in tables
    ]
    (folder / "index.md").write_text(f"# The papers' tables and figures\n\n{markdown(pd.DataFrame(lines))}\n")


def wide(table: Table, found: list[list[Cell | None]]) -> pd.DataFrame:
    """The table as it is printed: columns (whose, which), those of the paper first."""
    columns: dict[tuple[str, str], list[str]] = {("", ""): [row.label for row in table.rows]}
    for i, column in enumerate(table.columns):
        values = [row.paper[i] if row.paper else None for row in table.rows]
        if any(value is not None for value in values):
            columns[f"paper, {table.data}", column.label] = [as_printed(v, column.digits) for v in values]
    for i, column in enumerate(table.columns):
        if any(c and not np.isnan(c.value) for c in (row[i] for row in found)):
            columns[table.ours, column.ours] = [c.text(column.digits) if (c := row[i]) else "" for row in found]
    counted = [samples(row) for row in table.rows]
    if any(counted):
        columns[table.ours, "samples"] = counted
    if any(row.needs for row in table.rows):
        columns["", "not played"] = [row.needs for row in table.rows]
    return pd.DataFrame(columns)


def as_printed(value: float | None, digits: int) -> str:
    """A published value with the column's decimals, or with its own where it has more or is a whole number."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) and round(value, digits) == value else str(value)


def long(table: Table, found: list[list[Cell | None]]) -> pd.DataFrame:
    """The table with a line per row and column, for programs: the paper's value, ours, its interval and samples."""
    lines = []
    for row, mine in zip(table.rows, found, strict=True):
        for i, column in enumerate(table.columns):
            ours = mine[i]
            lines.append(
                {
                    "row": row.label,
                    "column": column.label,
                    "unit": column.unit,
                    f"paper, {table.data}": row.paper[i] if row.paper else None,
                    table.ours: ours.value if ours else None,
                    "low": ours.low if ours else None,
                    "high": ours.high if ours else None,
                    "noise": ours.noise if ours else None,
                    "trainings": " ".join(f"{value:.4g}" for value in ours.trainings) if ours else "",
                    "samples": samples(row) if ours else "",
                    "blank": ours.why if ours and np.isnan(ours.value) else "",
                    "not played": row.needs,
                    "files": ", ".join(row.files),
                }
            )
    return pd.DataFrame(lines)


def samples(row: Row) -> str:
    """How many samples are behind a row of ours, of how many, and which clips they are if not today's."""
    return labelled(f"{(entry := row.board.entries[0]).samples} of {row.board.total}", entry) if row.board else ""


def labelled(label: str, entry: Entry) -> str:
    """`label`, with the version of the generator that made an entry's clips where that is not today's."""
    makers = {record.key.clip.partition(":")[0] for record in entry.records if record.key.sample.get("made_by")}
    others = sorted(makers - {f"generator {synthetic.GENERATOR}"})
    return ", ".join([label, *(f"clips of {maker}" for maker in others)])


def of_same_clips(one: Entry, other: Entry) -> bool:
    """Whether two entries' samples of one name are of one clip: only then they may be paired."""
    clips = [{r.key.sample["sequence"]: r.key.clip for r in entry.records} for entry in (one, other)]
    return all(clips[1].get(name, clip) == clip for name, clip in clips[0].items())


def by_training(table: Table, row: Row, found: list[Cell | None]) -> str:
    """What each training of a row came to, where there are several; else nothing."""
    told = [
        f"{column.ours} {', '.join(f'{value:.{column.digits}f}' for value in cell.trainings)}"
        for column, cell in zip(table.columns, found, strict=True)
        if cell and cell.trainings
    ]
    return f"trainings of {row.label}, one by one: {'; '.join(told)}" if told else ""


def legend(table: Table, found: list[list[Cell | None]]) -> list[str]:
    """What a table's numbers are and where they come from, a line each."""
    told = [f"`{table.command}`"]
    flat = [c for row in found for c in row if c]
    if any(np.isfinite(c.low) for c in flat):
        told.append(INTERVALS)
    if any(c.why == "times shared" for c in flat):
        told.append("times shared: another job was on the same device; recompute=true plays the table's samples again")
    if any(c.noise for c in flat):
        told.append(f"{NOISE}: the paired difference to {table.against} has 0 in its 95 % interval")
    if several := [
        each for row, mine in zip(table.rows, found, strict=True) if (each := by_training(table, row, mine))
    ]:
        told += ["where there are several trainings: their mean, and an interval that knows clips alone", *several]
    played = {board.title: board for row in table.rows for board in row.boards if board}
    for row in table.rows:
        told += [line for board in filter(None, row.boards) for line in notes(board) if line.startswith(OF_ROWS)]
    clocks = {board.clock for board in played.values()}
    if "modelled" in clocks and any(column.score in (*TIMED, "s/frame") for column in table.columns):
        told.append(
            "time is modelled: the costs of tiny networks on two CPU cores (conf/clock/modelled.yaml), no measurement"
        )
    for title, board in played.items():
        about = [f"    - {line}" for line in notes(board) if not line.startswith(OF_ROWS)]
        told.append("\n".join([f"played on {title}", *about]))
    if any(figure is not None for row in table.rows for figure in row.figures):
        told.append(f"what has no interval was computed on this machine: {'; '.join(machine().values())}")
    known = {file: about for row in table.rows for file, about in row.files.items()}
    for file, source in known.items():
        of = "; ".join(row.label for row in table.rows if file in row.files)
        told.append(f"weights=official plays {of} with {file} ({source})")
    for row in table.rows:
        told += [f"for {row.label}: `{command}`" for command in dict.fromkeys(row.how)]
    told += table.remarks
    return list(dict.fromkeys(told))
