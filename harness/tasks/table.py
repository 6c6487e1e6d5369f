"""A table or figure of a paper: what is missing is played, ours stands beside what was published."""

import logging
import re
import shlex
import sys
from collections import Counter
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
from harness.report import figures, papers, read_references
from harness.report.collect import canonical, is_replaced
from harness.report.exchange import read_summary
from harness.report.leaderboard import Board, Entry, board, outcome, reference, samples_of
from harness.report.papers import Column, Row, Table
from harness.report.statistics import SCORES
from harness.rules.protocol import Protocol
from harness.rules.summary import official
from harness.run import records
from harness.run.build import build, unwrapped, without
from harness.run.command_line import command_of, compose
from harness.run.evaluate import build_method, changes, play_missing, sequences_of, starts
from harness.run.identity import entry_of, meaning, rules_of
from harness.run.progress import bar
from harness.run.provenance import metadata, official_folder
from harness.run.records import Record

log = logging.getLogger(__name__)

PRINTED = ("score", "metric", "unit", "digits", "ours", "settings", "with")  # keys of a column, no arguments of it
FIGURES = {"curves": figures.curves, "percentiles": figures.percentiles, "drop": figures.drop}
CARRIED = Path(__file__).parents[2] / "results" / "published"  # what authors published of their own results
GROUPS = ("method", "dataset", "protocol", "clock")
Weights = str | Mapping[str, str]  # of all rows, or by row


class Never(BadInput):
    """Why a cell is empty that no choice of the user's can fill."""


class NotKept(BadInput):
    """Why nothing is kept of a variant; commands: what trains it, and keeps its scores."""

    def __init__(self, reason: str, commands: Sequence[str]) -> None:
        super().__init__(reason)
        self.commands = commands


class Asked(NamedTuple):
    """What the command line asks of every row.

    overrides: all but the weights. weights: tiny, official, random, a file, a folder with a file per row, or those of
    each row. recompute: play also what has a record.
    """

    overrides: tuple[str, ...]
    weights: Weights
    recompute: bool = False


class Filled(NamedTuple):
    """A row; the choices that play it, None if nothing of ours does; what ours are called; what keeps it from being
    played and can be helped.
    """

    row: Row
    config: DictConfig | None = None
    ours: str = ""
    remedies: Sequence[str] = ()


def tables(
    name: str,
    reports: str,
    references: Sequence[str],
    weights: Weights | DictConfig = "tiny",
    recompute: bool = False,
) -> None:
    """Render the table that conf/table/<name>.yaml describes, or "all" of them, below <reports>/tables.

    references: official reports (.csv) and summaries (.json) that curves show beside ours.
    weights, recompute: see `Asked`. A row is named by its label or by its `slug`.
    Every override of the command line holds for each row, unless the row sets the same key. A row that cannot be played
    says what it needs; samples that fail make the command exit 1, and so does a table that cannot be made.
    """
    known = GlobalHydra.instance().config_loader().get_group_options("table")
    overrides = HydraConfig.get().overrides
    places = [each for each in overrides.hydra if each.startswith("hydra.searchpath")]
    given = (
        *map(str, places),
        *(str(e) for e in overrides.task if not e.startswith(("table=", "weights=", "recompute="))),
    )
    by_row: Weights = weights if isinstance(weights, str) else {str(key): str(file) for key, file in weights.items()}
    others = read_references(references)
    chosen = [option for option in known if option != "all"] if name == "all" else [name]
    made, troubles, remedies = [], [], []
    for each in bar(chosen, "tables"):
        try:
            table, helped = make(each, Asked(given, by_row, recompute), Path(reports, "tables", each), others)
            made.append(table)
            remedies += helped
        except BadInput as error:
            troubles.append(f"table={each}: {error}")
    if name == "all":
        papers.write_index(made, Path(reports, "tables"))
    rows = [row for table in made for row in table.rows]
    if not isinstance(by_row, str) and (
        lost := by_row.keys() - {key for row in rows for key in (row.label, slug(row.label))}
    ):
        known_rows = ", ".join(slug(row.label) for row in rows if row.files or row.board)
        troubles.append(f"weights: {', '.join(sorted(lost))}: no row of table={name}; it has {known_rows}")
    failed = {record.path for row in rows for board in row.boards if board for record in board.entries[0].failures}
    if failed:
        troubles.append(f"{len(failed)} samples failed; their records say why, the next run tries them again")
    refused = [row.needs for row in rows if row.needs]
    if refused and not any(row.board or any(row.figures) for row in rows):
        reason = Counter(remedies).most_common(1)[0][0] if remedies else refused[0]
        troubles.append(f"nothing was played; {reason}")
    if troubles:
        sys.exit("\n".join(troubles))


def make(name: str, asked: Asked, folder: Path, references: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """Play and render one table. Returns it, and what keeps rows from being played and can be helped."""
    about = describe(name, asked.overrides)
    filled = [fill(name, row, about, asked) for row in about.rows]
    rows = [each.row for each in filled]
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(
        name,
        about.paper,
        about.data,
        about.about,
        command(name, asked),
        " / ".join(sorted({each.ours for each in filled if each.row.board or any(each.row.figures)})) or "ours",
        [column(label, choices) for label, choices in about.columns.items()],
        rows,
        about.get("against", ""),
    )
    theirs, remarks = published(about)
    drawn = [
        path
        for figure in about.get("figures", ())
        for path in draw(figure, table, filled, folder, {**theirs, **references})
    ]
    table = replace(table, pictures=drawn, remarks=remarks)
    papers.render(table, folder)
    log.info("written: %s", folder)
    return table, [remedy for each in filled for remedy in each.remedies]


def describe(name: str, given: Sequence[str]) -> DictConfig:
    """A table as its YAML has it."""
    # A table of this tree can be composed by itself, which is much quicker; one on the search path cannot.
    elsewhere = any(each.startswith("hydra.searchpath") for each in given)
    composed = compose([*given, f"table={name}"]) if elsewhere else hydra.compose(f"table/{name}")
    about: DictConfig = composed.table
    return about


def command(name: str, asked: Asked) -> str:
    """The command that makes a table, but for where things lie."""
    shown = [each for each in asked.overrides if not each.startswith(("results=", "reports="))]
    weights = asked.weights
    if not isinstance(weights, str):
        weights = "{" + ", ".join(f"{slug(row)}: {file}" for row, file in weights.items()) + "}"
    chosen = [] if weights == "tiny" else [f"weights={weights}"]
    return command_of([*shown, *chosen, f"table={name}"])


def slug(row: str) -> str:
    """A row's label as the name of a file."""
    return "-".join(re.findall(r"[\w.]+", row))


def column(label: str, choices: Mapping[str, Any]) -> Column:
    """A column as a table's YAML has it."""
    name = choices.get("score", "final")
    if name not in SCORES and not re.fullmatch(r"s/frame|(percentile|round) \d+", name):
        raise BadInput(f"column {label}: score={name}; choose {', '.join(SCORES)}, round 3, s/frame or percentile 10")
    unit = choices.get("unit", 1)
    digits = choices.get("digits", 1 if unit == 100 else 3)
    return Column(label, choices.get("ours", label), unit, digits, choices.get("score", ""), choices.get("metric"))


def fill(name: str, row: DictConfig, about: DictConfig, asked: Asked) -> Filled:
    """A row of the table `name` with what was played for it, or with the reason why nothing was."""
    columns, printed = about.columns, row.get("paper")
    paper = [None] * len(columns) if printed is None else list(printed)
    if len(paper) != len(columns):
        raise BadInput(f"table row {row.row}: {len(paper)} published values for {len(columns)} columns")
    nothing = Row(row.row, paper, [None] * len(columns), [None] * len(columns), needs=row.get("needs", ""))
    if "settings" not in row or "needs" in row:
        return Filled(nothing)
    boards: list[Board | None] = []
    numbers: list[float | None] = []
    refusals: dict[str, BadInput] = {}
    for label, choices in columns.items():
        board, number = None, None
        try:
            if not is_ours(row, choices, about, asked):
                pass
            elif "score" in choices:
                board = play(row, overrides_of(row, choices, about, asked), asked)
            else:
                number = call(str(label), (*overrides_of(row, choices, about, asked), f"table={name}"))
        except BadInput as refusal:
            refusals[str(label)] = refusal
        boards.append(board)
        numbers.append(number)
    whys = [str(refusals.get(str(label), "")) for label in columns]
    played = any(board or number is not None for board, number in zip(boards, numbers, strict=True))
    columns_of = {
        why: ", ".join(str(each) for each, its in zip(columns, whys, strict=True) if its == why) for why in whys
    }
    needs = "; ".join(f"{labels}: {why}" if played else why for why, labels in columns_of.items() if why)
    remedies = [str(refusal) for refusal in refusals.values() if not isinstance(refusal, Never)]
    how = [each for refusal in refusals.values() if isinstance(refusal, NotKept) for each in refusal.commands]
    filled = replace(
        nothing, boards=boards, figures=numbers, needs=needs, whys=whys, how=how, files=files_of(row, about, asked)
    )
    if not played:
        return Filled(filled, remedies=remedies)
    overrides = overrides_of(row, OmegaConf.create(), about, asked)
    return Filled(filled, choose(overrides), called(row, overrides), remedies)


def is_ours(row: DictConfig, choices: DictConfig, about: DictConfig, asked: Asked) -> bool:
    """Whether a column shows something of ours in a row: not if it is of a dataset that was not asked for."""
    chosen = said((*about.get("settings", ()), *asked.overrides, *row.settings), "dataset")
    return ("score" in choices or "_target_" in choices) and choices.get("with", chosen) == chosen


def said(overrides: Iterable[str], key: str) -> str | None:
    """The last value that overrides give a key, None if they give it none."""
    return next((each.partition("=")[2] for each in reversed(list(overrides)) if each.startswith(f"{key}=")), None)


def overrides_of(row: DictConfig, choices: DictConfig, about: DictConfig, asked: Asked) -> tuple[str, ...]:
    """What a cell is played by, as overrides of the command line. Raises BadInput if nothing plays it."""
    last = [*row.settings, *choices.get("settings", ())]
    overrides = [*about.get("settings", ()), *asked.overrides, *last]
    weights = said(last, "weights") or weights_for(row, asked.weights)
    if weights == "tiny" and "tiny" in row:
        raise Never(f"weights=tiny: {row.tiny}")
    files = row.get("official", {})
    if weights == "official" and files == "unpublished":
        raise Never(
            f"weights=official: its authors did not publish these; weights={{{slug(row.row)}: FILE}} plays your own"
        )
    if weights == "official":
        overrides += [f"method.official.{network}={file}" for network, file in files.items()]
    size = (
        said(overrides, "size")
        or {"official": "paper", "tiny": "tiny", "random": "tiny"}.get(weights)
        or size_of(weights)
    )
    if said(overrides, "clock") is None:
        overrides.append(f"clock={'wall' if size == 'paper' else 'modelled'}")
    elif said(overrides, "clock") == "modelled" and size == "paper" and not any("clock.costs" in e for e in overrides):
        raise BadInput("clock=modelled has the costs of tiny networks on two CPU cores; at size=paper give clock=wall")
    overrides += [f"weights={quoted(weights)}", f"size={size}"]
    # In one order, as rows of several tables that are played alike are looked up once.
    return tuple(sorted({each.partition("=")[0]: each for each in overrides}.values()))


def weights_for(row: DictConfig, asked: Weights) -> str:
    """The weights that the command line gives a row. Raises BadInput if it gives none."""
    if not isinstance(asked, str):
        if (file := asked.get(row.row, asked.get(slug(row.row)))) is None:
            raise Never(f"weights: none given for it; {slug(row.row)}: FILE gives it some")
        return file
    if asked in ("tiny", "official", "random"):
        return asked
    if Path(asked).is_dir():
        return str(Path(asked, f"{slug(row.row)}.safetensors"))
    if row.get("official") == "unpublished":
        raise Never(
            f"its own training, which {asked} need not hold; weights={{{slug(row.row)}: {asked}}} says that it does"
        )
    return asked


def size_of(weights: str) -> str:
    """The size of the network that a weights file says it is of, "tiny" if it does not say."""
    file = Path(weights)
    return (
        metadata(file).get("size", "tiny") if file.is_file() else "tiny"
    )  # that there is none is said where it is read


def quoted(value: str) -> str:
    """A string as Hydra's grammar takes any."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def files_of(row: DictConfig, about: DictConfig, asked: Asked) -> dict[str, str]:
    """The authors' files that weights=official plays a row with: who publishes each, and what it is."""
    if row.get("official") == "unpublished":
        return {}
    places = [each for each in asked.overrides if each.startswith("hydra.searchpath")]
    method = choose((*places, f"method={said(row.settings, 'method')}")).method
    names = {**method.get("official", {}), **row.get("official", {})}.values()
    return {file: f"{method.published[file]['from']}: {method.published[file]['is']}" for file in names}


@cache
def choose(overrides: tuple[str, ...]) -> DictConfig:
    """What the command line would stand for with these overrides."""
    config = compose(overrides)
    for group in GROUPS:
        OmegaConf.resolve(config[group])
    return config


def call(column: str, overrides: tuple[str, ...]) -> float:
    """What a column's function says of a row."""
    choices = choose(overrides).table.columns[column]
    OmegaConf.resolve(choices)
    with unwrapped():
        return float(instantiate(without(choices, PRINTED), _recursive_=False))


def play(row: DictConfig, overrides: tuple[str, ...], asked: Asked) -> Board:
    """The board of a row, with every sample played. Raises BadInput for what cannot be.

    Its first entry is the row's; where several trainings are kept of it that is their mean, and they follow.
    """
    found = trained(row, overrides) if is_trained(row, overrides) else recorded(overrides, asked.recompute)
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


def is_trained(row: DictConfig, overrides: Iterable[str]) -> bool:
    """Whether a row is what was kept of trainings of its own."""
    return "trained" in row and said(overrides, "weights") == quoted("tiny")


def called(row: DictConfig, overrides: tuple[str, ...]) -> str:
    """What ours are called: the weights, and the dataset they are played on."""
    config = choose(overrides)
    weights = f"trained here at size={config.size}" if is_trained(row, overrides) else Path(str(config.weights)).stem
    return f"{weights}, {config.dataset.name}"


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
def recorded(overrides: tuple[str, ...], recompute: bool) -> list[Record]:
    """The records of every sample, played where there is none."""
    config = choose(overrides)
    choices = [OmegaConf.to_yaml(config[group]) for group in GROUPS]
    return played(*choices, config.shard, config.results, recompute, tuple(changes(overrides)))


@cache
def played(
    method: str,
    dataset: str,
    protocol: str,
    clock: str,
    shard: str,
    results: str,
    recompute: bool,
    told: tuple[str, ...],
) -> list[Record]:
    """The records of these choices, as YAML, once per process: rows that share them are not played again."""
    player, clips, rules, watch = (
        DictConfig(OmegaConf.create(choice)) for choice in (method, dataset, protocol, clock)
    )
    paths = play_missing(player, clips, rules, watch, shard, Path(results, "runs"), recompute, told)
    return [records.read(path) for path in paths]


@cache
def kept(place: Path) -> list[Record]:
    """The records that are kept of a variant: in the file that `task=archive` writes, and in a folder."""
    folder = [path for path in sorted(place.glob("**/*-*.parquet")) if not is_replaced(path)]
    return [*records.read_archive(place.with_name(f"{place.name}.parquet")), *(records.read(path) for path in folder)]


def trained(row: DictConfig, overrides: tuple[str, ...]) -> list[Record]:
    """The kept records of a trained variant, on the samples and by the rules that `overrides` stand for.

    Generated clips are known by the arguments that made them: they count as of the dataset of `overrides`, even if they
    were kept with more, and where none are of today's generator those of an earlier one do, which rows tell.
    Raises BadInput if there are none, with the commands that make some.
    """
    config = choose(overrides)
    place = Path(config.results, "ablations", row.trained)
    untrained = OmegaConf.create({**config.method, "weights": "random"})
    wanted = entry_of(untrained, config.dataset, config.protocol, config.clock)
    theirs = rules(wanted, config)
    protocol: Protocol = build(config.protocol, name=config.protocol.name)
    samples = {
        (sequence.name, index): sequence.made_by or sequence.manifest
        for sequence in sequences_of(OmegaConf.to_yaml(config.dataset, resolve=True))
        for index in starts(sequence, protocol)
    }
    of_variant = [record for record in kept(place) if rules(record.key.entry, config) == theirs]
    found = []
    for record in of_variant:
        sample = record.key.sample["sequence"], record.key.sample["scribble_idx"]
        if arguments(record.key.clip) == arguments(samples.get(sample, "")):
            found.append(record)
    if not found:
        where = "of these clips" if of_variant else "of it by these rules"
        raise NotKept(f"its own training, and {place}.parquet has no records {where}", commands(row, overrides))
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


def commands(row: DictConfig, overrides: Iterable[str]) -> tuple[str, str]:
    """The command that trains a variant, and the one that plays it and keeps its scores."""
    place = f"results/training/{row.trained}"
    method = [str(each) for each in row.settings]
    recipe = [str(each) for each in row.get("recipe", ())]
    begin = ("uv", "run", "run.py")
    train = ("task=train", "recipe=ablation", "precision=bfloat16", "workers=0", f"results={place}", *method, *recipe)
    stages = (said(recipe, "stages") or "").strip("[]").replace(",", "-")
    folder = "-".join(filter(None, (said(method, "method"), "tiny", "ablation", stages)))
    weights = f"weights={place}/training/{folder}/weights.safetensors"
    left_out = ("task=", "weights=", "size=", "reports=", "references=")
    rest = [each for each in overrides if not each.startswith(left_out) and each not in method]
    keep = ("task=archive", f"variant={row.trained}", *method, weights, *rest)
    return shlex.join((*begin, *train)), shlex.join((*begin, *keep))


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


def published(about: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """The curves that authors published for a table, by what they are called, and a line on each, here or not."""
    curves, remarks = {}, []
    for label, told in about.get("published", {}).items():
        found = [path for path in (CARRIED / told.file, official_folder() / told.file) if path.is_file()]
        if found:
            curves[f"{label}, published ({about.data})"] = read_summary(found[0])
            remarks.append(f"{label}'s published curve: {told.file} of {told['from']}, on its authors' clock")
        else:
            remarks.append(f"{label}'s published curve: put {told.file} of {told['from']} into {official_folder()}/")
    return curves, remarks


def draw(
    figure: str | DictConfig, table: Table, filled: Sequence[Filled], folder: Path, references: Mapping[str, Any]
) -> list[Path]:
    """A figure of the rows that were played: one of `harness.report.figures`, or for each row what a method shows."""
    if figure == "accuracy_by_speed":
        return papers.accuracy_by_speed(table, folder)
    played = [
        (each.row.board, each.config)
        for each in filled
        if each.config and each.row.board and each.row.board.entries[0].summary
    ]
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
