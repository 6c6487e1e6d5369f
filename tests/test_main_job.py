"""The command line, as a user has it: resume, failures, bad input, caching."""

import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
SMALL = ("dataset.clips=2", "dataset.frames=6", "dataset.size=[48,80]", "protocol.rounds=3", "clock=modelled")

GUESTS = """
import numpy as np
from harness.api import Prediction

class Guest:
    def __init__(self, does):
        self.does = does
        if does == "stillborn":
            raise RuntimeError("no memory left")
    def start(self, clip):
        self.clip = clip
    def interact(self, interaction):
        masks = np.zeros(self.clip.frames.shape[:3], np.uint8)
        if self.does == "raise" and self.clip.name.endswith("1"):
            raise ValueError("no second clip for me")
        if self.does == "label":
            masks += 7
        if self.does == "shape":
            masks = masks[1:]
        if self.does == "holes":
            masks = np.full(masks.shape, np.nan)
        return Prediction(masks)
"""


def command(folder: Path, *overrides: str) -> list[str]:
    places = (f"results={folder / 'results'}", f"reports={folder / 'reports'}")
    return [sys.executable, str(ROOT / "run.py"), *places, *overrides]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *overrides), cwd=ROOT, text=True, capture_output=True)


def guests(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> str:
    """Plug in methods from outside the tree; gives the override that finds them."""
    place = folder / "plugins"
    (place / "method").mkdir(parents=True)
    (place / "guests.py").write_text(GUESTS)
    for name in names:
        (place / "method" / f"{name}.yaml").write_text(f"name: {name}\n_target_: guests.Guest\ndoes: {name}\n")
    monkeypatch.setenv("PYTHONPATH", str(place))
    return f"hydra.searchpath=[file://{place}]"


def recorded(folder: Path) -> dict[str, bytes]:
    """The records, by name."""
    return {path.name: path.read_bytes() for path in (folder / "results" / "runs").glob("*/*-*.parquet")}


def played(folder: Path) -> dict[str, pa.Table]:
    """The rows of the records, by name."""
    return {path.name: pq.read_table(path) for path in (folder / "results" / "runs").glob("*/*-*.parquet")}


def imported(folder: Path, *overrides: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A run, and the top-level packages that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command(folder, *overrides)[1:]], cwd=ROOT, text=True, capture_output=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rpartition("|")[2].strip() for line in lines}


def but_progress(stderr: str) -> list[str]:
    """What a run said, but for the lines that tell on a slow machine how far it is."""
    return [line for line in stderr.splitlines() if not re.search(r"[:,] \d+:\d\d$", line)]


def table(folder: Path) -> str:
    """The CSV of the only board."""
    (path,) = (folder / "reports").glob("*/table.csv")
    return path.read_text()


def test_killed_run_resumes_to_the_same_records(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = (*SMALL, "method=grabcut,stm")
    assert run(whole, *options).returncode == 0
    expected = played(whole)
    assert len(expected) == 4

    victim = subprocess.Popen(command(broken, *options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not recorded(broken) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    survivors = recorded(broken)
    assert 0 < len(survivors) < 4

    resumed = run(broken, *options)
    assert resumed.returncode == 0, resumed.stderr
    assert played(broken) == expected
    assert table(whole) == table(broken)


def test_failures_are_counted_never_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nothing", "raise", "label", "shape", "holes", "stillborn")
    done = run(tmp_path, *SMALL, "clock=wall", guests(tmp_path, monkeypatch, *names), f"method={','.join(names)}")
    assert done.returncode == 1
    assert "9 samples failed" in done.stderr
    scores = pd.read_csv(io.StringIO(table(tmp_path))).set_index("method")
    assert scores["failed"].to_dict() == {"nothing": 0, "raise": 1, "label": 2, "shape": 2, "holes": 2, "stillborn": 2}
    assert scores.loc["raise", "samples"] == "1 of 2"
    assert scores.loc["raise", "rank"] == "-"
    assert scores.loc[["label", "shape", "holes", "stillborn"], "AUC"].isna().all()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dataset=davis2017 dataset.root=nowhere", "nowhere"),
        ("shard=4/4", "shard=4/4"),
        ("weights=gone.safetensors method=stm", "gone.safetensors"),
        ("protocol=perfect method=stm", "takes no masks"),
        ("protocol.robot.kernel_size=2", "kernel_size=2"),
        ("protocol.max_time=null protocol.rounds=null", "set rounds"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, override: str, told: str) -> None:
    done = run(tmp_path, "method=grabcut", *override.split())
    assert done.returncode == 1
    assert told in done.stderr
    assert len(but_progress(done.stderr)) == 1
    assert not recorded(tmp_path)


def test_a_refused_method_does_not_stop_the_others(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "method=stm,grabcut", "protocol=perfect")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("method=stm takes no masks")
    assert pd.read_csv(io.StringIO(table(tmp_path)))["method"].tolist() == ["grabcut"]


def test_second_run_only_skips_and_waits_for_no_import_it_does_not_need(tmp_path: Path) -> None:
    """Else a run that finds all recorded and rendered takes as long as one that does not."""
    options = (*SMALL, "clock=wall", "method=stm")
    first = run(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    before = recorded(tmp_path)
    second, packages = imported(tmp_path, *options)
    assert "0 samples played, 2 recorded before" in second.stderr
    assert recorded(tmp_path) == before
    assert "pandas" in packages
    assert packages.isdisjoint({"torch", "matplotlib", "plotly"})
    assert first.stdout == second.stdout


@pytest.mark.parametrize("options", [["--help"], ["task=doctor", "--help"], ["task=doctor"], ["--cfg", "job"]])
def test_help_and_doctor_answer_at_once(tmp_path: Path, options: list[str]) -> None:
    """Who asks what there is waits for no network library, and for no other heavy one."""
    done, packages = imported(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "hydra" in packages
    assert packages.isdisjoint({"torch", "pandas", "scipy", "numba", "matplotlib", "plotly"})
