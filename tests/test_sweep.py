"""Sweeps: jobs side by side on one results folder, and on one device."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Barrier, Thread

import pytest

from harness.run.contention import Occupancy, occupy
from tests.test_main_job import SMALL, recorded, run, table
from tests.test_records import write


def said(folder: Path) -> list[str]:
    """What the jobs of the last submitit sweep said."""
    sweep = max((folder / "results" / "jobs").iterdir())
    return [line for log in sorted(sweep.glob("submitit/*/*.err")) for line in log.read_text().splitlines()]


def test_jobs_in_other_processes_resume_and_end_with_the_same_table(tmp_path: Path) -> None:
    """A sharded submitit sweep that finds half of its records plays the other half and ends like one plain job."""
    options = (*SMALL, "method=grabcut")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *options).returncode == 0
    assert run(parts, *options, "shard=0/2").returncode == 0
    found = recorded(parts)
    assert len(found) == 1

    swept = run(parts, *options, "shard=0/2,1/2", "hydra/launcher=submitit")
    assert swept.returncode == 0, swept.stderr
    assert sorted(line for line in said(parts) if "played" in line) == [
        "grabcut on synthetic: 0 samples played, 1 recorded before",
        "grabcut on synthetic: 1 samples played, 0 recorded before",
    ]
    assert recorded(parts).keys() == recorded(whole).keys()
    assert found.items() <= recorded(parts).items()
    assert table(parts) == table(whole)


def test_a_sweep_ends_with_what_its_own_jobs_noted(tmp_path: Path) -> None:
    """Else, in a folder of one's own, an old refusal fails every run after it and old methods join the board."""
    places = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=of/${hydra.job.num}")
    before = run(tmp_path, *SMALL, *places, "method=stm,grabcut", "protocol=perfect")
    assert before.returncode == 1
    assert "takes no masks" in before.stderr
    assert len(table(tmp_path).splitlines()) == 2
    after = run(tmp_path, *SMALL, *places, "method=grabcut", "protocol=perfect", "method.iterations=1")
    assert after.returncode == 0, after.stderr
    assert "stm" not in table(tmp_path)
    assert len(table(tmp_path).splitlines()) == 3  # the board has all that is recorded of it


def test_of_jobs_that_write_one_record_at_once_one_wins(tmp_path: Path) -> None:
    """Processes that end the same sample at the same moment leave one whole record and nothing else."""
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(3)

    def write_all() -> None:
        for index in range(1, 9):
            together.wait()
            write(tmp_path, index=index)

    writers = [fork.Process(target=write_all) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    left = sorted((tmp_path / "m").iterdir())
    before = [path.stat().st_ino for path in left]
    assert left == sorted(write(tmp_path, index=index) for index in range(1, 9))
    assert before == [path.stat().st_ino for path in left]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of which no other job knows."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return "cpu"


@pytest.mark.parametrize("order", ["A+ A- B+ B-", "A+ B+ A- B-", "A+ B+ B- A-"])
def test_whoever_overlaps_is_marked(device: str, order: str) -> None:
    """Times taken beside another job must be marked on both, also when the other came and went in between."""
    stays = {"A": occupy(device), "B": occupy(device)}
    told = {}
    for event in order.split():
        name = event[0]
        if event.endswith("+"):
            told[name] = stays[name].__enter__()
        else:
            stays[name].__exit__(None, None, None)
    overlap = order != "A+ A- B+ B-"
    assert [told["A"].shared, told["B"].shared] == [overlap, overlap]


def test_what_a_method_forks_holds_no_device(device: str, tmp_path: Path) -> None:
    """Else a process that a killed job's method left behind spoils the times of all that come after it."""
    program = (
        "import os, time; from harness.run.contention import occupy\n"
        "here = occupy('cpu'); here.__enter__(); pid = os.fork()\n"
        "if not pid: time.sleep(600)\n"
        "print(pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": tempfile.gettempdir()}
    killed = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    orphan = int(killed.stdout.readline())
    killed.wait()
    try:
        with occupy(device) as mine:
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert not mine.shared


def test_other_devices_and_the_killed_do_not_count(device: str) -> None:
    """A job that was killed must not spoil the times of all that come after it."""
    program = (
        "import os; from harness.run.contention import occupy; here = occupy('cpu'); here.__enter__(); "
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": tempfile.gettempdir()})
    assert killed.returncode == -9
    with occupy("cuda") as other, occupy(device) as mine:
        pass
    assert not other.shared
    assert not mine.shared


def test_of_those_who_start_together_none_is_alone(device: str) -> None:
    """Two jobs that begin at the same moment are both marked, whoever is first."""
    for _ in range(50):
        began = Barrier(2)
        told: list[Occupancy] = []

        def job(began: Barrier = began, told: list[Occupancy] = told) -> None:
            began.wait()
            with occupy(device) as mine:
                began.wait()
            told.append(mine)

        jobs = [Thread(target=job) for _ in range(2)]
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join()
        assert [mine.shared for mine in told] == [True, True]
