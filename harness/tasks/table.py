"""A table or figure of a paper: what is missing is played, ours stands beside what was published."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip
from harness.report import figures, is_replaced, papers, read_references
from harness.report.leaderboard import Board, Entry, board, canonical, outcome, reference, samples_of
from harness.report.papers import Column, Row, Table
from harness.report.statistics import SCORES
from harness.rules.protocol import Protocol
from harness.rules.summary import official
from harness.run import records
from harness.run.build import build, unwrapped, without
from harness.run.evaluate import build_method, changes, play_missing, sequences_of
from harness.run.identity import entry_of, meaning, rules_of
from harness.run.progress import bar
from harness.run.records import Record

PRINTED = ("score", "metric", "unit", "digits", "ours", "settings")  # keys of a column that are no arguments of it
FIGURES = {"curves": figures.curves, "percentiles": figures.percentiles, "drop": figures.drop}


class Filled(NamedTuple):
    """A row, and the choices that play it; None if nothing of ours does."""

    row: Row
    config: DictConfig | None


def tables(name: str, reports: str, references: Sequence[str]) -> None:
    """Render the table that conf/table/<name>.yaml describes, or "all" of them, below <reports>/tables.

    references: official reports (.csv) and summaries (.json) that curves show beside ours.
    Every override of the command line holds for each row, unless the row sets the same key. A row that cannot be played
    says what it needs; samples that fail make the command exit 1, and so does a table that cannot be made.
    """
    known = GlobalHydra.instance().config_loader().get_group_options("table")
    overrides = HydraConfig.get().overrides
    places = [each for each in overrides.hydra if each.startswith("hydra.searchpath")]
    given = [str(each) for each in (*places, *overrides.task) if not each.startswith("table=")]
    others = read_references(references)
    chosen = [option for option in known if option != "all"] if name == "all" else [name]
    made, troubles = [], []
    for each in bar(chosen, "tables"):
        try:
            made.append(make(each, given, Path(reports, "tables", each), others))
        except BadInput as error:
            troubles.append(f"table={each}: {error}")
    if name == "all":
        papers.write_index(made, Path(reports, "tables"))
    rows = [row for table in made for row in table.rows]
    failed = {record.path for row in rows for board in row.boards if board for record in board.entries[0].failures}
    if failed:
        troubles.append(f"{len(failed)} samples failed; their records say why, the next run tries them again")
    refused = [row.needs for row in rows if row.needs]
    if refused and not any(row.board or any(row.figures) for row in rows):
        troubles.append(f"nothing was played; {refused[0]}")
    if troubles:
        sys.exit("\n".join(troubles))


def make(name: str, given: Sequence[str], folder: Path, references: Mapping[str, Any]) -> Table:
    """Play and render one table."""
    named = [*given, f"table={name}"]
    elsewhere = any(each.startswith("hydra.searchpath") for each in given)
    # A table of this tree can be composed by itself, which is much quicker; one on the search path cannot.
    about = (hydra.compose("config", named) if elsewhere else hydra.compose(f"table/{name}")).table
    filled = [fill(name, row, about.columns, [*about.get("settings", ()), *given]) for row in about.rows]
    rows = [row for row, _ in filled]
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(
        name,
        about.paper,
        about.data,
        about.about,
        " ".join(["uv run run.py", *(each for each in named if not each.startswith(("results=", "reports=")))]),
        called([config for row, config in filled if config and (row.board or any(row.figures))]),
        [column(label, choices) for label, choices in about.columns.items()],
        rows,
        about.get("against", ""),
        [picture for figure in about.get("figures", ()) for picture in draw(figure, filled, folder, references)],
    )
    papers.render(table, folder)
    return table


def column(label: str, choices: Mapping[str, Any]) -> Column:
    """A column as a table's YAML has it."""
    name = choices.get("score", "final")
    if name not in SCORES and not re.fullmatch(r"s/frame|(percentile|round) \d+", name):
        raise BadInput(f"column {label}: score={name}; choose {', '.join(SCORES)}, round 3, s/frame or percentile 10")
    unit = choices.get("unit", 1)
    digits = choices.get("digits", 1 if unit == 100 else 3)
    return Column(label, choices.get("ours", label), unit, digits, choices.get("score", ""), choices.get("metric"))


def fill(name: str, row: DictConfig, columns: DictConfig, overrides: Sequence[str]) -> Filled:
    """A row of the table `name` with what was played for it, or with the reason why nothing was."""
    printed = row.get("paper")
    paper = [None] * len(columns) if printed is None else list(printed)
    if len(paper) != len(columns):
        raise BadInput(f"table row {row.row}: {len(paper)} published values for {len(columns)} columns")
    nothing = Row(row.row, paper, [None] * len(columns), [None] * len(columns))
    if "settings" not in row:
        return Filled(replace(nothing, needs=row.get("needs", "")), None)
    boards: list[Board | None] = []
    numbers: list[float | None] = []
    refusals: list[str] = []
    for label, choices in columns.items():
        of_cell = (*overrides, *row.settings, *choices.get("settings", ()))
        board, number = None, None
        try:
            if "score" in choices:
                board = play(row, of_cell)
            elif "_target_" in choices:
                number = call(str(label), (*of_cell, f"table={name}"))
        except BadInput as refusal:
            refusals.append(str(refusal))
        boards.append(board)
        numbers.append(number)
    needs = "; ".join(dict.fromkeys(refusals))
    config = choose((*overrides, *row.settings))
    return Filled(replace(nothing, boards=boards, figures=numbers, needs=needs), config)


@cache
def choose(overrides: tuple[str, ...]) -> DictConfig:
    """What the command line would stand for with these overrides."""
    config = hydra.compose("config", list(overrides))
    for group in ("method", "dataset", "protocol", "clock"):
        OmegaConf.resolve(config[group])
    return config


def call(column: str, overrides: tuple[str, ...]) -> float:
    """What a column's function says of a row."""
    choices = choose(overrides).table.columns[column]
    OmegaConf.resolve(choices)
    with unwrapped():
        return float(instantiate(without(choices, PRINTED), _recursive_=False))


def play(row: DictConfig, overrides: tuple[str, ...]) -> Board:
    """The board of a row, with every sample played. Raises BadInput for what cannot be.

    Its first entry is the row's; where several trainings are kept of it that is their mean, and they follow.
    """
    weights = choose(overrides).weights
    if "trained" in row and weights == "tiny":
        found = trained(row.trained, overrides)
    elif "trained" in row and not row.get("official"):
        raise BadInput(f"its own training, which weights={weights} need not hold; weights=tiny has the one kept here")
    elif "needs" in row:
        raise BadInput(row.needs)
    else:
        found = recorded(overrides)
    if not found:
        raise BadInput(f"shard={choose(overrides).shard}: has no sample of this dataset")
    of_row = board(found)
    entries = sorted(of_row.entries, key=lambda entry: entry.weights["name"])
    if len({entry.weights["digest"] for entry in entries}) < len(entries):
        raise BadInput(f"{found[0].path}: holds several versions of one training; keep one")
    if len(entries) == 1:
        return replace(of_row, entries=[replace(entries[0], label=papers.labelled(row.row, entries[0]))])
    if len({canonical(entry.played.samples) for entry in entries if entry.played}) > 1:
        raise BadInput(f"{found[0].path}: its trainings have other samples; keep those that are missing")
    each = [replace(entry, label=f"{row.row}, training {i}") for i, entry in enumerate(entries, 1)]
    label = papers.labelled(row.row, entries[0])
    return replace(of_row, entries=[mean(label, each, of_row.protocol), *each])


def mean(label: str, trainings: Sequence[Entry], protocol: Protocol) -> Entry:
    """What several trainings of one variant come to: frame by frame their mean, on the same samples."""
    first = trainings[0]
    keys = ["sequence", "scribble_idx", "interaction", "object_id", "frame"]
    kinds = {"session_id": "first", "jaccard": "mean", "contour": "mean", "j_and_f": "mean", "timing": "mean"}
    rounds = pd.concat([each.rounds for each in trainings]).groupby(keys, as_index=False).agg(kinds)
    came_to = outcome(rounds, samples_of(first.records), protocol)
    return replace(
        first,
        label=label,
        weights={**first.weights, "name": f"the mean of {len(trainings)} trainings", "digest": ""},
        rounds=rounds,
        played=came_to,
        summary=official(came_to, protocol.metric, protocol.threshold),
        records=[record for each in trainings for record in each.records],
    )


@cache
def recorded(overrides: tuple[str, ...]) -> list[Record]:
    """The records of every sample, played where there is none."""
    config = choose(overrides)
    choices = (config.method, config.dataset, config.protocol, config.clock, config.shard)
    paths = play_missing(*choices, Path(config.results, "runs"), recompute=False, given=overrides)
    return [records.read(path) for path in paths]


@cache
def trained(variant: str, overrides: tuple[str, ...]) -> list[Record]:
    """The kept records of a trained variant, on the samples and by the rules that `overrides` stand for.

    Generated clips are known by the arguments that made them: they count as of the dataset of `overrides`, even if they
    were kept with more, and where none are of today's generator those of an earlier one do, which rows tell.
    Raises BadInput if there are none.
    """
    config = choose(overrides)
    place = Path(config.results, "ablations")
    untrained = OmegaConf.create({**config.method, "weights": "random"})
    wanted = entry_of(untrained, config.dataset, config.protocol, config.clock)
    theirs = rules(wanted, config)
    samples = {
        (sequence.name, index): sequence.made_by or sequence.manifest
        for sequence in sequences_of(OmegaConf.to_yaml(config.dataset, resolve=True))
        for index in sequence.scribbles
    }
    folder = [path for path in sorted((place / variant).glob("**/*-*.parquet")) if not is_replaced(path)]
    kept = [*records.read_kept(place / f"{variant}.parquet"), *(records.read(path) for path in folder)]
    found = []
    for record in kept:
        sample = record.key.sample["sequence"], record.key.sample["scribble_idx"]
        if (
            arguments(record.key.clip) == arguments(samples.get(sample, ""))
            and rules(record.key.entry, config) == theirs
        ):
            found.append(record)
    if not found:
        raise BadInput(f"its own training: {place / variant}.parquet has no records of it by these rules")
    todays = [record for record in found if record.key.clip in samples.values()]
    told = {"samples": len(samples), "changes": changes(overrides)}
    return [
        replace(
            record,
            key=replace(record.key, entry={**record.key.entry, "dataset": wanted["dataset"]}),
            provenance={**record.provenance, **told},
        )
        for record in todays or found
    ]


def arguments(clip: str) -> str:
    """What identifies a clip under any version of its generator: the arguments, or for one in files its digest."""
    return clip.partition(": ")[2] or clip


def rules(entry: Mapping[str, Any], config: DictConfig) -> str:
    """What of a record's entry must agree for it to be one of a variant's: all but weights, data and code.

    config: the choices whose defaults are today's.
    """
    method = {**entry["method"], "_target_": config.method._target_}
    protocol = {**entry["protocol"], "_target_": config.protocol._target_}
    return canonical([meaning(method, ("weights", "device", "seed")), rules_of(protocol), entry["clock"]])


def called(configs: Iterable[DictConfig]) -> str:
    """What ours are called: the weights and the dataset that the command line chose."""
    names = {f"{Path(str(config.weights)).stem}, {config.dataset.name}" for config in configs}
    return " / ".join(sorted(names)) or "ours"


def draw(figure: str | DictConfig, filled: Sequence[Filled], folder: Path, references: Mapping[str, Any]) -> list[Path]:
    """A figure of the rows that were played: one of `harness.report.figures`, or for each row what a method shows."""
    played = [(row.board, config) for row, config in filled if config and row.board and row.board.entries[0].summary]
    if not played:
        return []
    if not isinstance(figure, str):
        return [path for board, config in played for path in show(figure, board, config, folder)]
    first = played[0][0]
    if len({canonical([each.title, each.dataset]) for each, _ in played}) > 1:
        raise BadInput(f"figure {figure}: its rows have several datasets, protocols or clocks; give them one")
    if figure not in FIGURES:
        raise BadInput(f"figures: {figure}; choose {', '.join(FIGURES)}, or give a `_target_`")
    entries = [each.entries[0] for each, _ in played]
    if figure == "curves":
        others = [reference(label, given, first) for label, given in references.items()]
        entries += [other for other in others if other]
    return FIGURES[figure](replace(first, entries=entries), folder)


def show(figure: DictConfig, board: Board, config: DictConfig, folder: Path) -> list[Path]:
    """What a method shows of the sample of median final score, which it plays again from its record.

    The frame it shows is the one farthest from any that was annotated.
    """
    record = records.read(figures.median_sample(board.entries[0]), content=True)
    name = record.key.sample["sequence"]
    sequences = sequences_of(OmegaConf.to_yaml(config.dataset, resolve=True))
    sequence = next(each for each in sequences if each.name == name)
    clip = Clip(name, sequence.read_frames(), sequence.num_objects)
    rounds = [records.scribbles_of(record, i) for i in sorted(record.rows["interaction"].unique())]
    method = build_method(config.method, build(config.protocol, name=config.protocol.name))
    far = max(range(len(clip.frames)), key=lambda t: min(abs(t - frame) for frame, _ in rounds))
    return figures.save(instantiate(figure)(method, clip, rounds, far), folder / name)
