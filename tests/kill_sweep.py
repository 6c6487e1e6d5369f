"""A sweep survives SIGKILL: `uv run python -m tests.kill_sweep [kills] [seed]`, some minutes.

Kills one job of a 3-way parallel sweep, or all that belongs to it, at random moments and starts the same command
again, until it ends by itself; then begins anew in an empty folder, until `kills` (20) were dealt. Each sweep that
ended must leave the records and the table of one that nobody disturbed, and what the killed left half-written must go
with time.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.test_main_job import ROOT, command, table

SWEEP = ("method=grabcut,stm", "shard=0/3,1/3,2/3", "protocol.rounds=3", "clock=modelled")
CLIPS = ("dataset.clips=12", "dataset.frames=6", "dataset.size=[48,80]")
PARALLEL = ("hydra/launcher=processes", "hydra.launcher.n_jobs=3")


def play(folder: Path, *overrides: str, patience: float | None = None, rng: random.Random | None = None) -> bool:
    """Run the sweep; False if its patience (seconds) was over and one of its jobs was killed, or all it had started."""
    with (folder / "log.txt").open("a") as log:
        sweep = subprocess.Popen(
            command(folder, *SWEEP, *CLIPS, *overrides), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            sweep.wait(patience)
        except subprocess.TimeoutExpired:
            if (jobs := workers(sweep.pid)) and rng and rng.random() < 0.5:
                os.kill(rng.choice(jobs), signal.SIGKILL)
                sweep.wait()  # the launcher gives up, and the other jobs with it
            if sweep.poll() != 0:
                with suppress(ProcessLookupError):
                    os.killpg(sweep.pid, signal.SIGKILL)
                sweep.wait()
                return False
    if sweep.returncode:
        sys.exit(f"{folder / 'log.txt'}: the sweep failed\n{(folder / 'log.txt').read_text()[-2000:]}")
    return True


def workers(group: int) -> list[int]:
    """The processes of a sweep that play its jobs."""
    found = subprocess.run(["pgrep", "-g", str(group), "-f", "LokyProcess"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def scores(folder: Path) -> dict[str, pa.Table]:
    """The rows of every record, failed ones included, by file name."""
    return {path.name: pq.read_table(path) for path in (folder / "results" / "runs").glob("*/*-*.parquet")}


def left(folder: Path) -> list[Path]:
    """What was half-written when a job was killed."""
    return sorted((folder / "results" / "runs").glob("*/.*.tmp"))


def main(kills: int = 20, seed: int = 0) -> None:
    """Exit with 1 and a line at the first difference."""
    rng = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="kill_sweep-"))
    whole = base / "whole"
    whole.mkdir()
    start = time.monotonic()
    play(whole, *PARALLEL)
    length = time.monotonic() - start
    expected = scores(whole)
    print(f"undisturbed: {len(expected)} records in {length:.0f} s; seed {seed}, in {base}", flush=True)

    killed = sweeps = 0
    while killed < kills:
        sweeps += 1
        folder = base / str(sweeps)
        folder.mkdir()
        while not play(folder, *PARALLEL, patience=rng.uniform(0, length) if killed < kills else None, rng=rng):
            killed += 1
            print(f"kill {killed}: {len(scores(folder))} records, {len(left(folder))} half-written", flush=True)
        if scores(folder) != expected:
            sys.exit(f"{folder}: other records than {whole}")
        if table(folder) != table(whole):
            sys.exit(f"{folder}: another table than {whole}")
        for path in left(folder):
            os.utime(path, (0, 0))
        play(folder)
        if left(folder):
            sys.exit(f"{folder}: {left(folder)[0].name} stays for ever")
        print(f"sweep {sweeps} ended: the same {len(expected)} records, the same table", flush=True)
    print(f"{killed} kills, {sweeps} sweeps: every record once, every table the same")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
