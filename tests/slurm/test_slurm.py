"""A sweep on a real SLURM; wants root and Debian's packages: `uv run pytest -m slurm -s`."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_main_job import ROOT, command, recorded, run, table
from tests.test_sweep import said

HERE = Path(__file__).parent
SWEEP = ("method=grabcut,stm", "shard=0/2,1/2", "clock=modelled", "dataset.clips=4", "protocol.rounds=3")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1")

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SLURM on this machine, for as long as the test lasts."""
    start = ["sh", str(HERE / "start.sh")]
    said = subprocess.run(start, text=True, capture_output=True, check=True).stdout
    monkeypatch.setenv("SLURM_CONF", said.split("SLURM_CONF=")[1].split()[0])
    monkeypatch.setenv("PATH", f"{HERE / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True)
    subprocess.run([*start, "stop"], check=True)


def queue(*options: str) -> list[str]:
    """The queue, a line per job: id, state, node."""
    asked = ["squeue", "--noheader", "--array", "--format=%i %T %N", *options]
    return subprocess.run(asked, text=True, capture_output=True, check=True).stdout.splitlines()


def test_cancelled_job_is_resumed_by_the_same_command(tmp_path: Path, slurm: None) -> None:
    """A cancelled job must neither hang the sweep, nor spoil it, nor be played again from the start."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, *SWEEP).returncode == 0

    with (tmp_path / "log.txt").open("w") as log:
        sweep = subprocess.Popen(command(broken, *SWEEP, *SLURM), cwd=ROOT, stdout=log, stderr=log)
        while sweep.poll() is None and not (last := [line for line in queue("--states=RUNNING") if "_3 " in line]):
            time.sleep(0.2)
        print("the last job has begun:", *queue("--states=all"), sep="\n")
        victim = last[0].split()[0]
        subprocess.run(["scancel", victim], check=True)
        code = sweep.wait()
    survivors = set(recorded(broken))
    ended = queue("--states=all")
    print(f"scancel {victim}; the command ends with {code}, {len(survivors)} records:", *ended, sep="\n")
    assert code != 0
    assert any(line.startswith(f"{victim} CANCELLED") for line in ended)
    assert 0 < len(survivors) < len(recorded(whole))
    while queue():
        time.sleep(1)

    resumed = run(broken, *SWEEP, *SLURM)
    told = said(broken)
    print("the same command again:", *queue("--states=all"), *told, resumed.stdout, sep="\n")
    assert resumed.returncode == 0, resumed.stderr
    assert any("recorded before" in line and ", 0 recorded" not in line for line in told)
    assert set(recorded(broken)) == set(recorded(whole))
    assert table(broken) == table(whole)
