"""Tables and figures, made from records alone."""

import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.api import BadInput
from harness.report import collect, exchange, rendered
from harness.report.collect import canonical
from harness.report.leaderboard import (
    READING,
    Board,
    boards,
    differences,
    intervals,
    notes,
    only,
    ranking,
    reference,
    remarks,
    sample_of,
    table,
    words,
)
from harness.report.tables import latex, markdown, show
from harness.run.provenance import digest
from harness.run.records import Record

log = logging.getLogger(__name__)


def after(run: list[Path], results: Path, reports: Path) -> list[str]:
    """Render the boards that the records of a `run` belong to, with all that is recorded of them, and print what it has
    of their samples; returns what went wrong.
    """
    names = {collect.beside(path) for path in run}
    with rendered.locked(reports):
        recorded = (path for path in collect.paths_of([results]) if collect.beside(path) in names)
        paths = {path.resolve(): path for path in (*run, *recorded)}
        mine = {paths[path.resolve()] for path in run}
        played, troubles = collect.read(sorted(mine))
        before, left_out = collect.read(sorted({*paths.values()} - mine))
        for line in left_out:
            log.warning("%s", line)
        troubles += render(sorted([*played, *before], key=lambda record: record.path), reports, run=mine)
    failed = Counter(record.status for record in played if record.status != "complete")
    if failed:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))
        troubles.append(
            f"{failed.total()} samples failed ({counts}); their records say why, the next run tries them again"
        )
    return troubles


def report(
    results: str | Sequence[str],
    reports: str,
    references: list[str],
    csv: bool,
    masks: bool,
    until: float | None = None,
) -> None:
    """Render every board that has records under `results`, a folder or several, from the newest version of each sample.

    references: reports (.csv) and summaries (.json) in the official formats, shown beside ours: a report is scored by
        each board's protocol, a summary goes to the boards of its metric.
    csv: also write each entry's official report; masks: also write its masks as palette PNGs, round by round.
    until: seconds to which tables have the AUC over time, beside the one to its official end.
    Records that cannot be scored are named and left out; a reference that cannot be shown makes the command exit 1.
    """
    folders = [results] if isinstance(results, str) else [str(folder) for folder in results]
    given = read_references(references)
    with rendered.locked(Path(reports)):
        paths = collect.paths_of(map(Path, folders))
        if not paths:
            raise BadInput(f"{', '.join(folders)}: no records in runs/; play some with `uv run run.py`")
        found, left_out = collect.read(paths)
        for line in left_out:
            log.warning("%s", line)
        if not found:
            raise BadInput(f"{', '.join(folders)}: none of {len(paths)} records can be scored; {left_out[0]}")
        troubles = render(found, Path(reports), given, csv, masks, until)
    if troubles:
        sys.exit("\n".join(troubles))


def read_references(paths: Sequence[str]) -> dict[str, pd.DataFrame | dict[str, Any]]:
    """Reports (.csv) and summaries (.json) in the official formats, by folder and name: "atnet/summary_j"."""
    names = ["/".join(Path(path).with_suffix("").parts[-2:]) for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"references: two files called {twice[0]}; rename one")
    return {
        name: exchange.read_summary(path) if path.suffix == ".json" else exchange.read_csv(path)
        for name, path in zip(names, map(Path, paths), strict=True)
    }


def render(
    found: Iterable[Record],
    reports: Path,
    references: Mapping[str, pd.DataFrame | dict[str, Any]] = MappingProxyType({}),
    csv: bool = False,
    masks: bool = False,
    until: float | None = None,
    run: Collection[Path] = (),
) -> list[str]:
    """Print each board's table and write its folder below `reports`; returns what could not be shown, a line each.

    run: records of a run that has just ended: only its boards are rendered, and what is printed is of its samples.
    A folder holds what `write` writes, and what `report` was asked for. What is there is not written again while
    nothing that it is made from has changed; see `harness.report.rendered`.
    """
    troubles: list[str] = []
    unshown = dict.fromkeys(references, "no board has all of its samples, and its metric")
    shown = set()
    for name, board in named(boards(found, run)):
        mine = {sample_of(r) for e in board.entries for r in (*e.records, *e.failures) if r.path in run}
        if run and not mine:
            continue
        for label, given in references.items():
            try:
                entry = reference(label, given, board)
            except BadInput as error:
                unshown[label] = str(error)
                continue
            if entry is None:
                log.info("%s is left out of %s: other samples or another metric", label, board.title)
            else:
                board.entries.append(entry)
                shown.add(label)
        folder = reports / name
        if rendered.make(folder, rendered.inputs(board, until), partial(write, board, until)):
            log.info("written: %s", folder)
        else:
            log.info("up to date: %s", folder)
        for entry in (entry for entry in board.entries if entry.records and len(entry.rounds)):
            if csv:
                exchange.write_csv(entry, folder)
            if masks:
                try:
                    exchange.write_masks(entry, folder)
                except BadInput as error:
                    troubles.append(str(error))
        part = board
        if run and mine < set(board.samples):
            part = only(board, mine)
        print_table(part, board, until)
    return troubles + [f"{label}: not shown: {why}" for label, why in unshown.items() if label not in shown]


def print_table(board: Board, whole: Board, until: float | None) -> None:
    """Print the table of a board, or of some samples of the `whole` one."""
    scores = table(board, until)
    title = board.title
    if len(board.samples) < len(whole.samples):
        title += f", {len(board.samples)} of {len(whole.samples)} samples"
    at_threshold = f"{board.metric}@{board.protocol.threshold:g}s"
    least = [*secondary(board, scores), "95 %", "s/round", f"{board.metric} 1", at_threshold, "failed"]
    least += ["AUC" if ranking(board)[0] == "round_auc" else "round AUC"]
    told = [*remarks(board), *(note for note in notes(board) if note.startswith("times"))]
    show(title, words(board, scores), optional=least, told=told)


def write(board: Board, until: float | None, folder: Path) -> list[Path]:
    """Write a board into `folder`; returns the files.

    They are index.html, the table (.md, .csv, .tex), intervals.csv, differences.csv, curves (.png, .svg, .pdf) and a
    film strip per entry.
    """
    from harness.report import figures  # whoever finds all written need not wait for Matplotlib and Plotly
    from harness.report.page import write_page

    scores = table(board, until)
    frames = {"table": scores, "intervals": intervals(board), "differences": differences(board)}
    files = [folder / f"{name}.csv" for name in frames]
    for path, frame in zip(files, frames.values(), strict=True):
        frame.to_csv(path, index=False)
    curves = figures.curves(board, folder)
    strips = []
    for entry in (entry for entry in board.entries if entry.records and len(entry.rounds)):
        try:
            strips += [strip] if (strip := figures.film_strip(entry, folder)) else []
        except BadInput as error:
            log.warning("no film strip of %s: %s", entry.label, error)
    shown = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in (curves[0], *strips))
    told = "\n".join(f"- {note}" for note in (*remarks(board), *READING, *notes(board)))
    worded = words(board, scores)
    texts = {
        "table.md": f"# {board.title}\n\n{markdown(worded)}\n\n{shown}\n\n{told}\n",
        "table.tex": latex(worded.drop(columns=secondary(board, scores), errors="ignore"), board.title),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    page = write_page(board, scores, folder)
    return [*files, *curves, *strips, *(folder / name for name in texts), page]


def secondary(board: Board, scores: pd.DataFrame) -> list[str]:
    """The columns of a table that are left out where there is little room, the least important first."""
    middle = [f"{board.metric} {i}" for i in range(2, len(scores.columns)) if f"{board.metric} {i + 1}" in scores]
    return ["frames/s", "until [s]", "round AUC, held", "90 % at [s]", *middle]


def named(boards: Sequence[Board]) -> list[tuple[str, Board]]:
    """Boards with a folder name each: where several would share one, the first keeps it and others have a digest."""
    taken: set[str] = set()
    pairs = []
    for board in boards:
        about = [board.dataset, asdict(board.protocol), sorted({sequence for sequence, _ in board.samples})]
        name = board.slug
        if name.casefold() in taken:
            name += f"-{digest(canonical(about).encode())[:6]}"
        taken.add(name.casefold())
        pairs.append((name, board))
    return pairs
