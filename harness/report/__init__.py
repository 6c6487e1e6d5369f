"""Tables and figures, made from records alone."""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from harness import records
from harness.api import BadInput
from harness.evaluate import NOTES
from harness.provenance import digest
from harness.records import Record
from harness.report import exchange, figures
from harness.report.leaderboard import Board, boards, canonical, notes, published, reference, table
from harness.report.tables import markdown, show

log = logging.getLogger(__name__)


class Leaderboard(Callback):
    """Ends a sweep with the leaderboard of the records its jobs noted; a failed sample makes the exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        noted = sorted(Path(config.hydra.sweep.dir).glob(f"*/{NOTES}"))
        paths = dict.fromkeys(Path(line) for file in noted for line in file.read_text().splitlines())
        failed = render([records.read(path) for path in paths], Path(config.results), Path(config.reports))
        if failed:
            sys.exit(f"{failed} samples failed; their records hold the tracebacks, the next run tries them again")


def report(results: str, reports: str, references: list[str], csv: bool, masks: bool) -> None:
    """Render every board that has records under `results`, from its newest code's records.

    references: reports (.csv) and summaries (.json) in the official formats, shown beside ours: a report is scored by
        each board's protocol, a summary goes to the boards of its metric.
    csv: also write each entry's official report; masks: also write its masks as palette PNGs, round by round.
    """
    paths = sorted(Path(results, "runs").glob("*/*-*.parquet"))
    if not paths:
        raise BadInput(f"{results}/runs: no records; play some with `uv run run.py`")
    others = {
        path.stem: exchange.read_summary(path) if path.suffix == ".json" else exchange.read_csv(path)
        for path in map(Path, references)
    }
    render(newest([records.read(path) for path in paths]), Path(results), Path(reports), others, csv, masks)


def newest(found: list[Record]) -> list[Record]:
    """Of records that differ only in the code that made them, those of the code that was used last."""
    sources: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        but_source = {key: value for key, value in record.key.entry.items() if key != "source"}
        sources[canonical([record.provenance["dataset"], but_source])][record.key.entry["source"]].append(record)
    kept = []
    for versions in sources.values():
        *older, last = sorted(versions.values(), key=lambda group: max(r.path.stat().st_mtime for r in group))
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
) -> int:
    """Print each board's table and write its folder below `reports`; returns how many samples failed.

    A folder holds table.md, table.csv, curves.png, curves.svg, a film strip per entry, and what `report` was asked for.
    """
    failed = 0
    for name, board in named(boards(found)):
        failed += sum(entry.failed for entry in board.entries)
        for label, given in references.items():
            if isinstance(given, pd.DataFrame):
                board.entries.append(reference(label, given, board.protocol))
            elif board.protocol.metric in given["curve"]:
                board.entries.append(published(label, given))
        folder = reports / name
        folder.mkdir(parents=True, exist_ok=True)
        scores = table(board)
        scores.to_csv(folder / "table.csv", index=False)
        pictures = figures.curves(board, folder)[:1]
        for entry in (entry for entry in board.entries if entry.records and len(entry.rounds)):
            pictures.append(figures.film_strip(entry, results / "runs", folder))
            if csv:
                exchange.write_csv(entry, folder)
            if masks:
                exchange.write_masks(entry, folder)
        shown = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
        told = "\n".join(f"- {note}" for note in notes(board))
        (folder / "table.md").write_text(f"# {board.title}\n\n{markdown(scores)}\n\n{shown}\n\n{told}\n")
        show(board.title, scores)
        log.info("written: %s", folder)
    return failed


def named(boards: list[Board]) -> list[tuple[str, Board]]:
    """Boards with a folder name each: dataset, protocol and clock, and a digest where that is not enough."""
    names = [f"{board.dataset['name']}-{board.protocol.name}-{board.clock}" for board in boards]
    rules = [digest(canonical([board.dataset, asdict(board.protocol)]).encode())[:6] for board in boards]
    return [
        (f"{name}-{rule}" if names.count(name) > 1 else name, board)
        for name, rule, board in zip(names, rules, boards, strict=True)
    ]
