"""Tables and figures, made from records alone."""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from harness.api import BadInput
from harness.report import exchange, made
from harness.report.leaderboard import (
    READING,
    Board,
    boards,
    canonical,
    differences,
    intervals,
    notes,
    reference,
    table,
)
from harness.report.tables import latex, markdown, show
from harness.run import records
from harness.run.evaluate import noted
from harness.run.provenance import digest
from harness.run.records import Record

log = logging.getLogger(__name__)


class Leaderboard(Callback):
    """Ends a sweep with the leaderboard of the records its jobs noted. A refusal or a failed sample makes it exit 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        paths, troubles = noted(config)
        records.clear_stale(Path(config.results, "runs"))
        try:
            failed = render([records.read(path) for path in paths], Path(config.results), Path(config.reports))
        except BadInput as error:
            sys.exit(str(error))
        except Exception:  # Hydra would make a warning of it, and exit 0
            log.exception("the report failed; the records are safe, try `uv run run.py task=report`")
            sys.exit(1)
        if failed:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))
            troubles.append(
                f"{failed.total()} samples failed ({counts}); their records say why, the next run tries them again"
            )
        if troubles:
            sys.exit("\n".join(troubles))


def report(
    results: str, reports: str, references: list[str], csv: bool, masks: bool, until: float | None = None
) -> None:
    """Render every board that has records under `results`, from its newest code's records.

    references: reports (.csv) and summaries (.json) in the official formats, shown beside ours: a report is scored by
        each board's protocol, a summary goes to the boards of its metric.
    csv: also write each entry's official report; masks: also write its masks as palette PNGs, round by round.
    until: seconds to which tables have the AUC over time, beside the one to its official end.
    """
    paths = sorted(Path(results, "runs").glob("*/*-*.parquet"))
    paths = [path for path in paths if not is_replaced(path)]
    if not paths:
        raise BadInput(f"{results}/runs: no records; play some with `uv run run.py`")
    found = newest([records.read(path) for path in paths])
    render(found, Path(results), Path(reports), read_references(references), csv, masks, until)


def read_references(paths: Sequence[str]) -> dict[str, pd.DataFrame | dict[str, Any]]:
    """Reports (.csv) and summaries (.json) in the official formats, by folder and name: "atnet/summary_j"."""
    names = ["/".join(Path(path).with_suffix("").parts[-2:]) for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"references: two files called {twice[0]}; rename one")
    return {
        name: exchange.read_summary(path) if path.suffix == ".json" else exchange.read_csv(path)
        for name, path in zip(names, map(Path, paths), strict=True)
    }


def is_replaced(path: Path) -> bool:
    """Whether a failed record has a complete one beside it."""
    stem = path.name.removesuffix(".failed.parquet")
    return stem != path.name and path.with_name(f"{stem}.parquet").exists()


def newest(found: list[Record]) -> list[Record]:
    """Of records that differ only in the code that made them, those of the code that was used last."""
    sources: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        but_source = {key: value for key, value in record.key.row.items() if key != "source"}
        sources[canonical(but_source)][record.key.entry["source"]].append(record)
    kept = []
    for versions in sources.values():
        *older, last = sorted(versions.values(), key=lambda group: max(r.written for r in group))
        kept += last
        if older:
            log.info("%s: %d records of older code left out", last[0].path.parent.name, sum(map(len, older)))
    return kept


def render(
    found: Iterable[Record],
    results: Path,
    reports: Path,
    references: Mapping[str, pd.DataFrame | dict[str, Any]] = MappingProxyType({}),
    csv: bool = False,
    masks: bool = False,
    until: float | None = None,
) -> Counter[str]:
    """Print each board's table and write its folder below `reports`; returns how many samples failed, by status.

    A folder holds what `write` writes, and what `report` was asked for. What is there is not written again while
    nothing that it is made from has changed; see `harness.report.made`.
    """
    failed: Counter[str] = Counter()
    for name, board in named(boards(found)):
        failed.update(record.status for entry in board.entries for record in entry.failures)
        for label, given in references.items():
            entry = reference(label, given, board)
            if entry is None:
                log.info("%s is left out of %s: other samples or another metric", label, board.title)
            else:
                board.entries.append(entry)
        folder = reports / name
        scores = table(board, until)
        inputs = made.inputs(board, results / "runs", until)
        if made.is_from(inputs, folder):
            log.info("up to date: %s", folder)
        else:
            made.note(inputs, folder, write(board, scores, results / "runs", folder))
            log.info("written: %s", folder)
        for entry in (entry for entry in board.entries if entry.records and len(entry.rounds)):
            if csv:
                exchange.write_csv(entry, folder)
            if masks:
                exchange.write_masks(entry, folder)
        show(board.title, scores, optional=secondary(board, scores))
    return failed


def write(board: Board, scores: pd.DataFrame, runs: Path, folder: Path) -> list[Path]:
    """Write a board and its table `scores` into `folder`; returns the files.

    They are index.html, the table (.md, .csv, .tex), intervals.csv, differences.csv, curves (.png, .svg, .pdf) and a
    film strip per entry.
    """
    from harness.report import figures  # whoever finds all written need not wait for Matplotlib and Plotly
    from harness.report.page import write_page

    folder.mkdir(parents=True, exist_ok=True)
    frames = {"table": scores, "intervals": intervals(board), "differences": differences(board)}
    files = [folder / f"{name}.csv" for name in frames]
    for path, frame in zip(files, frames.values(), strict=True):
        frame.to_csv(path, index=False)
    curves = figures.curves(board, folder)
    played = [entry for entry in board.entries if entry.records and len(entry.rounds)]
    strips = [strip for entry in played if (strip := figures.film_strip(entry, runs, folder))]
    shown = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in (curves[0], *strips))
    told = "\n".join(f"- {note}" for note in (*READING, *notes(board)))
    texts = {
        "table.md": f"# {board.title}\n\n{markdown(scores)}\n\n{shown}\n\n{told}\n",
        "table.tex": latex(scores.drop(columns=secondary(board, scores), errors="ignore"), board.title),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    page = write_page(board, scores, runs, folder)
    return [*files, *curves, *strips, *(folder / name for name in texts), page]


def secondary(board: Board, scores: pd.DataFrame) -> list[str]:
    """The columns of a table that are left out where there is little room."""
    middle = [f"{board.metric} {i}" for i in range(2, len(scores.columns))]
    return [*middle, "round AUC, held", "90 % at [s]", "until [s]", "frames/s"]


def named(boards: list[Board]) -> list[tuple[str, Board]]:
    """Boards with a folder name each, and a digest in it where two would share one."""
    names = [board.slug for board in boards]
    rules = [digest(canonical([board.dataset, asdict(board.protocol)]).encode())[:6] for board in boards]
    return [
        (f"{name}-{rule}" if names.count(name) > 1 else name, board)
        for name, rule, board in zip(names, rules, boards, strict=True)
    ]
