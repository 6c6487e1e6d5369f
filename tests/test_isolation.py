"""isolate=true: guests that crash, hang or eat memory, and what is left of a run that had them."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from harness.api import BadInput
from harness.run import records
from harness.run.workers import in_children

ROOT = Path(__file__).parents[1]
HOSTILE = ROOT / "tests" / "hostile"
SMALL = ("dataset.clips=2", "dataset.frames=6", "dataset.size=[48,80]", "protocol.rounds=2")
ENDS = {
    "raise": ("raised", "ValueError: not today"),
    "segfault": ("crashed", "signal 11"),
    "exit": ("crashed", "goodbye\nexited with code 3"),
    "kill": ("oom", "signal 9"),
    "eat": ("oom", "Unable to allocate"),
    "hang": ("timeout", "hostile.py"),
    "holes": ("invalid", "NaN"),
    "shape": ("invalid", "shape"),
    "label": ("invalid", "label 7"),
}


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    places = (f"results={folder / 'results'}", f"reports={folder / 'reports'}")
    command = [sys.executable, "run.py", *places, f"hydra.searchpath=[file://{HOSTILE / 'conf'}]", *SMALL, *overrides]
    environment = os.environ | {"PYTHONPATH": str(HOSTILE), "OMP_NUM_THREADS": "1"}
    out = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=out,
        stderr=out,
        start_new_session=True,
        preexec_fn=interruptible,
    )


def interruptible() -> None:
    """What a shell starts with & ignores Ctrl-C, and so would all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def recorded(folder: Path, method: str) -> dict[str, records.Record]:
    """A method's records by their clip."""
    found = [records.read(path, content=True) for path in (folder / "results" / "runs" / method).glob("*.parquet")]
    return {record.key.sample["sequence"]: record for record in found}


def test_hostile_guests_cost_only_their_own_samples(tmp_path: Path) -> None:
    """One bad method must not end a night's run, nor change what stands beside it; the record says what it did."""
    plain = start(tmp_path / "plain", "method=grabcut")
    isolated = start(tmp_path, f"method={','.join(ENDS)},grabcut", "isolate=true", "timeout=8", "memory=3")
    told, wanted = isolated.communicate()[1], plain.communicate()[1]
    assert plain.returncode == 0, wanted
    assert isolated.returncode == 1, told
    for method, (status, why) in ENDS.items():
        bad, good = (recorded(tmp_path, method)[clip] for clip in ("val-00", "val-01"))
        assert (bad.status, good.status) == (status, "complete"), bad.error
        assert why in bad.error
        assert bad.path.name.endswith(".failed.parquet")
        assert f"{method} failed on val-00 ({status}): {bad.error.splitlines()[-1]}" in told.splitlines()
    for clip, record in recorded(tmp_path / "plain", "grabcut").items():
        ours, other = (r.rows.drop(columns="timing") for r in (record, recorded(tmp_path, "grabcut")[clip]))
        pd.testing.assert_frame_equal(ours, other, check_exact=True)


@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_no_process_outlives_a_stopped_run(tmp_path: Path, end: str) -> None:
    """Who presses Ctrl-C, or whose job is killed, must not find the machine busy with what is left of it."""
    run = start(tmp_path, "method=hang", "isolate=true")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "results" / "runs" / "frames").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(run.pid) > 1
    run.send_signal(signal.Signals[end])
    run.communicate()
    while alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(run.pid)


def alive(group: int) -> int:
    """How many processes of a process group still run."""
    count = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone since it was listed
            state, _, its_group, *_ = file.read_text().rpartition(")")[2].split()
            count += int(its_group) == group and state != "Z"
    return count


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("timeout=5",), "timeout=5: only a process of its own can be held to it; add isolate=true"),
        (("isolate=true", "memory=-1"), "memory=-1: wanted a number of GiB above 0, or null"),
        (("isolate=true", "protocol=perfect"), "method=raise takes no masks"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, overrides: tuple[str, ...], told: str) -> None:
    """A refusal found in a child is the user's to mend: no record of a failure, no traceback."""
    run = start(tmp_path, "method=raise", *overrides)
    _, stderr = run.communicate()
    assert run.returncode == 1
    assert stderr.startswith(told)
    assert len(stderr.strip().splitlines()) == 1
    assert not recorded(tmp_path, "raise")


def work(items: list[str]) -> Iterator[str]:
    """Does what its items say."""
    for item in items:
        match item:
            case "die":
                os._exit(0)
            case "refuse":
                raise BadInput("no")
            case "chatter":
                while True:
                    logging.getLogger("guest").warning("still %s", "here")
                    time.sleep(0.1)
        yield item.upper()


def test_every_item_has_its_result_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Exit code 0 is no success, and who keeps logging is late all the same; what it logged is seen."""
    items = ["a", "die", "die", "b", "chatter", "c", "die"]
    results = list(in_children(work, items, timeout=5, memory=None))
    ends = [str(result).splitlines()[-1] if isinstance(result, Exception) else result for result in results]
    died, late = "exited with code 0", "no answer within 5 s"
    assert ends == ["A", died, died, "B", late, "C", died]
    assert ("guest", logging.WARNING, "still here") in caplog.record_tuples


def test_refusal_comes_out_of_the_child() -> None:
    """What the house refuses is not blamed on the guest."""
    with pytest.raises(BadInput, match="no"):
        list(in_children(work, ["a", "refuse"], timeout=60, memory=None))
