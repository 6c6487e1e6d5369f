"""The guard of continuous integration: scores beside those of a kept baseline."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from harness.api import BadInput
from harness.report.leaderboard import Board, Entry, boards, curve
from harness.report.tables import show
from harness.rules.protocol import Protocol
from harness.run import records
from harness.run.identity import rules_from_format_0
from harness.run.records import Record
from harness.run.task_keys import boolean
from harness.tasks.evaluate import begin_sweep, noted

log = logging.getLogger(__name__)

MACHINE = ("hardware", "python", "numpy", "opencv", "torch")  # of a record's provenance: what rounds a score


@dataclass(frozen=True)
class Comparison:
    """A round of a method beside its baseline.

    difference: score, in 0..1, minus the baseline's; NaN where there is no score.
    told: one line that names method and round.
    """

    method: str
    number: int
    difference: float
    verdict: Literal["kept", "fell", "rose", "failed"]
    told: str


class Guard(Callback):
    """Ends a sweep beside its baseline; it exits 1 unless every method and round that was asked for is as good."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse, before anything is played, what has no baseline."""
        begin_sweep()
        try:
            if boolean("update", config["update"]):  # .update is a method of every mapping
                return
            known = read(Path(config.baseline))["methods"]
        except BadInput as error:
            sys.exit(str(error))
        said = [each.partition("=")[2] for each in config.hydra.overrides.task if each.startswith("method=")]
        asked = (said or [config.hydra.sweeper.params.method])[-1].split(",")
        if missing := [name for name in asked if name not in known]:
            sys.exit(f"{config.baseline}: has no {', '.join(missing)}; leave out, or add with update=true")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        paths, troubles = noted(config)
        try:
            if not paths and troubles:
                sys.exit("\n".join(troubles))
            if not paths:
                raise BadInput("task=regress: nothing was played; shard= and dataset= leave no sample")
            now = measure([records.read(path) for path in paths])
            if boolean("update", config["update"]):
                update(Path(config.baseline), now)
            else:
                rounds = guard(Path(config.baseline), now, config.tolerance, Path(config.junit))
                troubles += [round.told for round in rounds if round.verdict in ("fell", "failed")]
                chosen = any(str(each).startswith("method=") for each in config.hydra.overrides.task)
                if not chosen and (dropped := sorted(read(Path(config.baseline))["methods"].keys() - now["methods"])):
                    troubles.append(f"{config.baseline}: {', '.join(dropped)} not played; give method= or update=true")
        except BadInput as error:
            troubles.append(str(error))
        except Exception:  # Hydra would make a warning of it, and exit 0
            log.exception("the comparison failed")
            sys.exit(1)
        if troubles:
            sys.exit("\n".join(troubles))


def measure(played: list[Record]) -> dict[str, Any]:
    """What a baseline keeps of a sweep: plain data.

    rules: {dataset, protocol, clock}, as configured. samples: digest of each one's clip and scribble.
    methods: by name, {scores, weights, machine}, scores in 0..1, one per round; or {error} where a sample failed.
    Raises BadInput for records that do not share their rules, and for two entries of one method.
    """
    board, *others = boards(played)
    if others:
        raise BadInput("task=regress: several datasets, protocols or clocks; give each a run and a baseline of its own")
    names = [entry.name for entry in board.entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"task=regress: {twice[0]} is played in several ways; a baseline keeps one of each method")
    about = played[0].key.entry
    keys = [record.key.sample for record in played]
    return {
        "rules": {"dataset": about["dataset"], "protocol": about["protocol"], "clock": about["clock"]["name"]},
        "samples": {f"{key['sequence']}-{key['scribble_idx']}": key["manifest"][:16] for key in keys},
        "methods": {entry.name: outcome(entry, board) for entry in board.entries},
    }


def outcome(entry: Entry, board: Board) -> dict[str, Any]:
    """What a baseline keeps of one method."""
    if entry.failures:
        first = entry.failures[0]
        return {"error": f"{len(entry.failures)} samples failed, the first with {first.error.strip().splitlines()[-1]}"}
    if missing := len(board.samples) - len(entry.records):
        return {"error": f"{missing} of {len(board.samples)} samples not played"}
    provenance = entry.records[0].provenance
    return {
        "scores": curve(entry, board)[1][1:-1],
        "weights": entry.weights["digest"],
        "machine": {name: provenance[name] for name in MACHINE},
    }


def guard(baseline: Path, now: Mapping[str, Any], tolerance: Mapping[str, float], junit: Path) -> list[Comparison]:
    """The rounds of what was measured `now` beside the baseline's, printed and written as JUnit XML.

    tolerance: {same, elsewhere}: how far a score may fall on the baseline's machine and versions, and on any other.
    What rose farther or was not played is told, and no trouble; what was played and cannot be compared has failed.
    Time is never compared. Raises BadInput if there is no baseline, or if it is of other rules, samples or clips.
    """
    kept = read(baseline)
    if kept["rules"] != now["rules"] or kept["samples"].keys() != now["samples"].keys():
        other = [key for key in now["rules"] if now["rules"][key] != kept["rules"].get(key)] or ["choice of samples"]
        raise BadInput(f"{baseline}: made with another {', '.join(other)}; play as it was, or name another baseline=")
    if changed := sorted(name for name, content in now["samples"].items() if kept["samples"][name] != content):
        raise BadInput(
            f"{baseline}: made with other frames, annotations or scribbles of {changed[0]}; update=true replaces it"
        )
    rounds = []
    rows = []
    for name in sorted(kept["methods"].keys() | now["methods"].keys()):
        before, after = kept["methods"].get(name), now["methods"].get(name)
        if after is None:
            log.info("%s: not played", name)
            continue
        before = before or {"scores": [], "machine": None, "weights": after.get("weights")}
        machine = "same" if before["machine"] == after.get("machine") else "elsewhere"
        mine = list(compare(name, before["scores"], after, tolerance[machine]))
        rounds += mine
        worst = [verdict for verdict in ("failed", "fell", "rose") if verdict in {round.verdict for round in mine}]
        rows.append({"method": name, "machine": machine, "may fall by": f"{tolerance[machine]:g}"})
        rows[-1] |= {f"round {round.number}": round.difference for round in mine} | {"": ", ".join(worst) or "kept"}
        if before["weights"] != after.get("weights", before["weights"]):
            log.info("%s: the weights are not the baseline's", name)
    metric = now["rules"]["protocol"].get("metric", Protocol.metric)
    show(f"{metric} minus that of {baseline}", pd.DataFrame(rows), digits=6)
    for round in rounds:
        if round.verdict == "rose":
            log.info("%s; update=true keeps it", round.told)
    write_junit(rounds, junit)
    log.info("written: %s", junit)
    return rounds


def compare(name: str, before: list[float], after: Mapping[str, Any], tolerance: float) -> Iterator[Comparison]:
    """A method's rounds beside the baseline's scores; those that only one of the two has failed."""
    scores = after["scores"] if "error" not in after else [None] * max(1, len(before))
    for number, (was, score) in enumerate(zip_longest(before, scores), 1):
        if was is None or score is None:
            why = after.get("error", "not played" if score is None else "not in the baseline; update=true adds it")
            yield Comparison(name, number, float("nan"), "failed", f"{name} round {number}: {why}")
            continue
        difference = score - was
        told = f"{name} round {number}: {score:.6f}, {difference:+.6f} from the baseline's; {tolerance:g} are allowed"
        yield Comparison(
            name,
            number,
            difference,
            "kept" if abs(difference) <= tolerance else "rose" if difference > tolerance else "fell",
            told,
        )


def write_junit(rounds: Iterable[Comparison], path: Path) -> None:
    """A test case per method and round."""
    from junitparser import Failure, JUnitXml, TestCase, TestSuite  # wanted here alone

    suite = TestSuite("regress")
    for round in rounds:
        case = TestCase(f"round {round.number}", classname=f"regress.{round.method}")
        if round.verdict in ("fell", "failed"):
            case.result = [Failure(round.told)]
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    xml.write(str(path), pretty=True)


def update(baseline: Path, now: Mapping[str, Any]) -> None:
    """Write the baseline anew. Methods that were not played stay as they are, if rules and samples do.

    Raises BadInput if a sample failed.
    """
    for name, method in now["methods"].items():
        if "error" in method:
            raise BadInput(f"{baseline}: left as it is; {name}: {method['error']}")
    others = {}
    if baseline.exists():
        kept = read(baseline)
        if all(kept[key] == now[key] for key in ("rules", "samples")):
            others = kept["methods"]
    baseline.parent.mkdir(parents=True, exist_ok=True)
    baseline.write_text(json.dumps({**now, "methods": others | now["methods"]}, indent=1, sort_keys=True) + "\n")
    log.info("written: %s", baseline)


def read(baseline: Path) -> dict[str, Any]:
    """A baseline, as `update` wrote it, in any version."""
    if not baseline.is_file():
        raise BadInput(f"{baseline}: no such baseline; make it with update=true")
    try:
        kept: dict[str, Any] = json.loads(baseline.read_text())
        for key in ("rules", "samples", "methods"):
            kept[key].keys()
        if "_target_" in kept["rules"]["protocol"]:
            kept["rules"] |= rules_from_format_0(kept["rules"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{baseline}: not a baseline of ours; make it again with update=true") from error
    return kept
