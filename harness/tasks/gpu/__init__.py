"""The whole benchmark on a GPU, most important things first, in minutes: what is known by then stands in files."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput
from harness.run.command_line import command_of
from harness.run.workers import cause
from harness.tasks.doctor import gpu as first_gpu
from harness.tasks.gpu.part import Part, TimeUp, device_of, machine_of
from harness.tasks.gpu.report import Report, State, read, remove

log = logging.getLogger(__name__)

# In the order they are played, each with its share of the time that is left for it and those after it.
SHARES = {"parity": 12, "job": 13, "speed": 30, "memory": 15, "training": 20, "long": 10}
GRACE = 10  # seconds a part may be late; it starts nothing new once its time is up


def gpu(
    reports: str,
    device: str,
    only: Sequence[str] | str,
    budget: float,
    methods: Sequence[str],
    forms: Mapping[str, DictConfig],
    commit: str | None,
    until: float | None,
) -> None:
    """Play the parts that `only` names and keep `<reports>/gpu/<part>.md` and `.json` of each. Exits 1 if one failed.

    Several are played in a process each, by this same command, so that none takes another one along; one alone here.
    device: "cpu" plays them in a small form, and keeps it below `<reports>/gpu/small`.
    budget: seconds for all. forms: what a part plays, by kind of device. commit: of this tree, where git cannot tell.
    until: when all has to be done, in seconds since 1970, instead of the budget: what a process is given that is one
    of several, whose start counts.
    """
    chosen = [only] if isinstance(only, str) else list(only)
    if unknown := sorted(set(chosen) - SHARES.keys()):
        raise BadInput(f"only={','.join(unknown)}: choose of {', '.join(SHARES)}")
    if not chosen or budget <= 0:
        raise BadInput(f"only={chosen}, budget={budget}: wanted a part or more, and seconds above 0")
    if device != "cpu" and first_gpu() is None:
        raise BadInput(f"device={device}: no GPU here; device=cpu plays the parts in a small form")
    parts = [part for part in SHARES if part in chosen]
    end = time.time() + budget if until is None else until
    folder = Path(reports, "gpu", "small") if device == "cpu" else Path(reports, "gpu")
    if len(parts) == 1:
        ended = {parts[0]: alone(parts[0], folder, device, end, methods, forms, commit)}
    else:
        ended = each(parts, folder, end)
    for part, report in ended.items():
        log.info("%s: %s, %s", part, report.state, folder / f"{part}.md")
    if failed := [part for part, report in ended.items() if report.state == "failed"]:
        sys.exit(f"task=gpu: failed: {', '.join(failed)}; their reports say why")


def each(parts: Sequence[str], folder: Path, end: float) -> dict[str, Report]:
    """Play parts in a process each, one after the other. Returns their reports."""
    ended = {}
    for number, part in enumerate(parts):
        now = time.time()
        limit = max(1.0, (end - now) * SHARES[part] / sum(SHARES[other] for other in parts[number:]))
        remove(folder, part)
        process = subprocess.Popen([sys.executable, sys.argv[0], *said(), f"only=[{part}]", f"until={now + limit:.0f}"])
        try:
            code = process.wait(limit + GRACE)
            why = cause(code)
        except subprocess.TimeoutExpired:
            code, why = None, f"no end within {limit + GRACE:.0f} s"
        finally:
            process.kill()
            process.wait()
        report = read(folder, part) or Report(folder, part, part, "", {})
        if report.state == "running":
            report.trouble(why)
            report.end("failed")
        ended[part] = report
    return ended


def alone(
    part: str,
    folder: Path,
    device: str,
    end: float,
    methods: Sequence[str],
    forms: Mapping[str, DictConfig],
    commit: str | None,
) -> Report:
    """Play a part in this process."""
    command = [each for each in said() if not each.startswith(("reports=", "results="))]
    report = Report(folder, part, part, command_of([*command, f"only=[{part}]"]), {})
    places = [each for each in command if each.startswith("hydra.searchpath")]
    state: State = "complete"
    try:
        module, where = import_module(f"harness.tasks.gpu.{part}"), device_of(device)
        report.about, report.machine = module.ABOUT, machine_of(where, commit)
        report.write()
        settings: Any = OmegaConf.to_container(forms[where.partition(":")[0]][part], resolve=True)
        module.play(Part(where, end, list(methods), settings, places, report))
    except TimeUp:
        state = "cut off"
    except BadInput as refusal:
        report.trouble(str(refusal))
    except Exception as error:
        log.exception("%s failed", part)
        report.trouble(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    report.end(state)
    return report


def said() -> list[str]:
    """The command line but for the choice of parts and their time."""
    overrides = HydraConfig.get().overrides
    given = [*(each for each in overrides.hydra if not each.startswith("hydra.mode")), *overrides.task]
    return [each for each in given if not each.startswith(("only=", "budget=", "until="))]
