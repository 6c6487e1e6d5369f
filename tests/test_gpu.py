"""task=gpu, as far as a CPU can show it: what it measures, and that no part takes another one along."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from harness.api import BadInput, Clip
from harness.rules.clock import Elapsed, WallClock
from harness.tasks import doctor
from harness.tasks.gpu import alone, each, gpu, memory, speed
from harness.tasks.gpu.job import Queues, waits
from harness.tasks.gpu.part import Part, davis_val, scene
from harness.tasks.gpu.report import Report, read
from harness.tasks.gpu.training import Enough, Watch
from methods.training.clips import Batch
from methods.training.loop import Step

ROOT = Path(__file__).parents[1]
TINY = ("task.methods=[stm]", "forms.cpu.job.methods=[stm]", "forms.cpu.parity.networks=[stm_interactive]")
# On a machine that has torch there are also NumPy, OpenCV, ...; these are not, but hydra, omegaconf, antlr4 and orjson.
ABSENT = ("davisinteractive", "hydra_plugins", "junitparser", "plotly", "pooch", "submitit")
REFUSING = """
import sys
from importlib.abc import MetaPathFinder

class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refusing())
"""
PARTS = """
import json, os, sys, time
(only,) = (each[6:-1] for each in sys.argv if each.startswith("only="))
found = {"part": only, "about": only, "command": "", "machine": {}, "tables": {"found": [{"a": 7}]}, "notes": {}}

def tell(state):
    with open(f"{os.path.dirname(sys.argv[0])}/{only}.json", "w") as file:
        json.dump(found | {"state": state, "troubles": []}, file)

if only == "job":
    sys.exit(3)
tell("running")
if only == "parity":
    time.sleep(600)
if only == "speed":
    os.abort()
tell("complete")
"""


def run(folder: Path, customs: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it, but for what `customs` makes of every Python process that it starts."""
    (folder / "sitecustomize.py").write_text(customs)
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run.py", "task=gpu", "device=cpu", f"reports={folder}", *overrides]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.mark.timeout(400)
def test_every_part_runs_where_there_is_little_more_than_torch(tmp_path: Path) -> None:
    """A GPU is lent for minutes: a package that is missing there, or a part that falls over, would cost them."""
    done = run(tmp_path, REFUSING.format(absent=set(ABSENT)), *TINY, "budget=240")
    told = {path.stem: read(path.parent, path.stem) for path in (tmp_path / "gpu" / "small").glob("*.json")}
    assert set(told) == {"parity", "job", "speed", "memory", "training", "long"}, done.stderr
    for part, report in told.items():
        assert report is not None
        assert report.state in ("complete", "cut off"), f"{part}: {report.troubles}\n{done.stderr[-3000:]}"
        assert {"gpu", "torch", "commit", "date"} <= report.machine.keys()
    assert done.returncode == 0
    found = told["parity"]
    assert found is not None
    assert all(row["off"] <= row["limit"] for row in found.tables.get("off by", []))


def test_no_part_takes_another_one_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was known when a part hung or crashed is kept, with why, and the next one is played."""
    script = tmp_path / "run.py"
    script.write_text(PARTS)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr("harness.tasks.gpu.said", list)
    monkeypatch.setattr("harness.tasks.gpu.GRACE", 5)
    Report(tmp_path, "job", "of another day", "", {}).write()
    ended = each(["parity", "job", "speed", "memory"], tmp_path, time.time() + 20)
    for part, state, why, rows in (
        ("parity", "failed", "no end within", 1),
        ("job", "failed", "exited with code 3", 0),
        ("speed", "failed", "killed by signal 6", 1),
        ("memory", "complete", "", 1),
    ):
        assert ended[part] == read(tmp_path, part)
        assert ended[part].state == state
        assert why in " ".join(ended[part].troubles)
        assert len(ended[part].tables.get("found", [])) == rows
        assert state == "complete" or why in (tmp_path / f"{part}.md").read_text()


def test_a_part_tells_what_failed_and_what_did_not_fit_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(part: Part) -> None:
        for error in (ArithmeticError("two and two"), torch.OutOfMemoryError("CUDA out of memory."), None):
            with part.attempt(f"a {type(error).__name__}"):
                if error:
                    raise error
            part.report.line("went on", {"after": str(error)})
        part.check(1e9)

    monkeypatch.setitem(sys.modules, "harness.tasks.gpu.speed", SimpleNamespace(ABOUT="Planted", play=play))
    monkeypatch.setattr("harness.tasks.gpu.said", list)
    alone("speed", tmp_path, "cpu", time.time() + 60, [], {"cpu": OmegaConf.create({"speed": {}})}, None)
    report = read(tmp_path, "speed")
    assert report is not None
    assert (report.state, report.troubles) == ("failed", ["a ArithmeticError: ArithmeticError: two and two"])
    assert [row["what"] for row in report.tables["what did not fit"]] == ["a OutOfMemoryError"]
    assert len(report.tables["went on"]) == 3


def test_what_cannot_be_played_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tasks.gpu.first_gpu", lambda: None)
    given: dict[str, Any] = {"reports": "", "device": "cpu", "only": ["job"], "budget": 1, "methods": [], "forms": {}}
    for changes, told in (
        ({"only": ["jobs"]}, "only=jobs: choose of parity, job"),
        ({"budget": 0}, "seconds above 0"),
        ({"device": "auto"}, "no GPU here; device=cpu"),
    ):
        with pytest.raises(BadInput, match=told):
            gpu(**{**given, **changes, "commit": None, "until": None})


class Late(WallClock):
    """A clock that stops when a method returns."""

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        with self.evaluation() as elapsed:
            yield elapsed


def test_the_clock_waits_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that queues its work and returns at once would be charged nothing."""
    busy: list[threading.Timer] = []

    def begin() -> None:
        busy.append(threading.Timer(0.5, lambda: None))
        busy[-1].start()

    def synchronize(device: int) -> None:
        if device == 1:
            for work in busy:
                work.join()

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    method, played = Queues("cuda:1", begin, lambda: synchronize(1)), scene(2, (48, 64), 1, 2)
    told, fooled = waits(method, played), waits(method, played, Late())
    assert told["answered after"] < 0.4 < 0.5 <= told["charged"]
    assert fooled["charged"] < 0.4


def test_hours_of_a_leaderboard_are_those_of_its_sequences() -> None:
    """A method that takes 0.1 s a frame and 0.2 s an object in it, of any session."""
    scenes: Any = {n: SimpleNamespace(truth=np.empty((10, 240, 427), np.uint8)) for n in (1, 2, 4)}
    amount = 10 * 240 * 427 / (480 * 854)
    seconds = {n: amount * (0.1 + 0.2 * n) for n in scenes}
    wanted = 3 * sum(s.frames * s.pixels * (0.1 + 0.2 * s.objects) for s in davis_val()) / 3600
    assert len(davis_val()) == 30
    assert speed.estimate(seconds, scenes) == pytest.approx(wanted)


def test_memory_that_grows_as_was_planted_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which sequences fit is read off these slopes, for sessions far longer than those measured."""
    truth = memory.Fit(0, 1e9, 2e8, 3e7, 4e7)
    settings = {"frames": [6, 18], "objects": [1, 3], "size": (240, 427), "rounds": 1}
    monkeypatch.setattr(memory, "most", lambda part, player, frames, objects: truth.needs(frames, objects, 0.25))
    monkeypatch.setattr(memory, "peak", nothing)
    part = Part("cuda:0", time.time() + 60, [], settings, [], Report(tmp_path, "memory", "", "", {}))
    player: Any = None
    found = memory.measure(part, player, pixels=0.25)
    assert found == pytest.approx(truth)
    needs = {each.name: truth.needs(each.frames, each.objects, each.pixels) for each in davis_val()}
    largest = max(needs, key=lambda name: needs[name])
    assert memory.fitting(found, needs[largest] * 1.001) == "30"
    assert memory.fitting(found, needs[largest] * 0.999) == f"29, not {largest}"
    assert memory.fitting(found, 1e9) == "0"


@contextmanager
def nothing(device: str) -> Iterator[Any]:
    yield SimpleNamespace(bytes=0)


def test_doctor_says_what_fits_on_the_gpu_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor.Gpu("Card 9", 11 * 10**9)
    asked = str(doctor.fitting(found, tmp_path))
    assert r"uv run run.py task=gpu only=\[memory]" in asked
    report = Report(tmp_path, "memory", "Memory", "", {"gpu": "Card 8"})
    for cache, frame in (("device", 200), ("cpu", 1)):
        fit = {"rest": 500, "session": 1000, "object": 100, "frame": frame, "object_in_frame": 0}
        row = {"method": "stm", "cache": cache, **{f"{name} [MiB]": float(value) for name, value in fit.items()}}
        report.line(memory.PLANES, {**row, "beside tensors [MiB]": 600.0})
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(doctor, "gpu", lambda: found)
    monkeypatch.setattr(doctor, "choices", lambda group: iter(()))
    (tmp_path / "gpu").mkdir()
    for file in tmp_path.glob("memory.*"):
        file.rename(tmp_path / "gpu" / file.name)
    doctor.doctor(OmegaConf.create({"name": "synthetic"}), str(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if "stm" in line]
    assert ("device" in lines[0], "not " in lines[0]) == (True, True)
    assert ("cpu" in lines[1], "all 30" in lines[1]) == (True, True)


def test_a_watched_objective_is_timed_and_then_given_larger_batches(tmp_path: Path) -> None:
    """Else steps per second would be of another batch than the one that is named, or the training would not end."""
    given: list[int] = []

    def objective(network: object, batch: Batch, chance: object, progress: float) -> Step:
        given.append(len(batch.frames))
        time.sleep(0.02)
        return Step(torch.tensor(10.0 - len(given)), {})

    until = time.time() + 100
    watch = Watch(objective, seconds=0.2, until=until, times=[2, 4, 10**6], device="cpu", file=str(tmp_path / "seen"))
    batch = Batch(torch.zeros(3, 1, 3, 8, 8), torch.zeros(3, 1, 8, 8), 1)
    with pytest.raises(Enough):
        deque((watch(None, batch, None, 0.0) for _ in range(1000)), maxlen=0)
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert [each["times"] for each in seen] == [1, 2, 4]
    first = given.count(3)
    assert seen[0]["steps"] == first
    assert given[first:] == [6] * 4 + [12] * 4
    assert seen[0]["steps/s"] <= 50
    assert seen[0]["falls"]
