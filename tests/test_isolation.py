"""isolate=true: guests that crash, hang or eat memory, and what is left of a run that had them."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from harness.api import BadInput
from harness.run import records
from harness.run.workers import in_children
from tests.test_main_job import but_progress

ROOT = Path(__file__).parents[1]
HOSTILE = ROOT / "tests" / "hostile"
SMALL = ("dataset.clips=2", "dataset.frames=6", "dataset.size=[48,80]", "protocol.rounds=2")
# How the sample ends at which a guest does its harm, and what its record says: anywhere, and in a child alone.
ENDS = {
    "raise": ("raised", "ValueError: not today"),
    "constructor": ("raised", "SystemExit: 0"),
    "start": ("raised", "SystemExit: 0"),
    "leave": ("raised", "SystemExit: 0"),
    "interrupt": ("raised", "KeyboardInterrupt"),
    "wordless": ("raised", "Wordless"),
    "surrogate": ("raised", "ValueError: caf\\udce9 \\x1b[2J"),
    "paint": ("raised", "read-only"),
    "holes": ("invalid", "NaN"),
    "shape": ("invalid", "shape"),
    "label": ("invalid", "label 7"),
    "scale": ("complete", ""),
    "wander": ("complete", ""),
    "fork": ("complete", ""),
    "thread": ("complete", ""),
    "chatter": ("complete", ""),
}
DEADLY = {
    "segfault": ("crashed", "signal 11"),
    "exit": ("crashed", "goodbye\nexited with code 3"),
    "kill": ("oom", "signal 9"),
    "eat": ("oom", "Unable to allocate"),
    "noise": ("crashed", "cut its pipe, or wrote there what is none of ours"),
    "close": ("crashed", "Bad file descriptor"),
    "flood": ("raised", "ValueError: drowned"),
}
LATE = {
    "hang": ("timeout", "hostile.py"),
    "garbage": ("timeout", "hostile.py"),
    "orphans": ("timeout", "hostile.py"),
}


def start(folder: Path, *overrides: str, largest_file: int | None = None) -> subprocess.Popen[str]:
    """Begin a run in `folder`. largest_file: bytes that it may write to one."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & ignores it, and so would all children
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "run.py"), f"hydra.searchpath=[file://{HOSTILE / 'conf'}]", *SMALL]
    environment = os.environ | {"PYTHONPATH": f"{HOSTILE}:{ROOT}", "OMP_NUM_THREADS": "1", "RUN_OF_TEST": str(folder)}
    out = subprocess.PIPE
    return subprocess.Popen(
        [*command, *overrides],
        cwd=folder,
        env=environment,
        text=True,
        stdout=out,
        stderr=out,
        start_new_session=True,
        preexec_fn=prepare,
    )


def recorded(folder: Path, method: str) -> dict[str, records.Record]:
    """A method's records by their clip."""
    found = [records.read(path, content=True) for path in (folder / "results" / "runs" / method).glob("*.parquet")]
    return {record.key.sample["sequence"]: record for record in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, records.Record]]:
    """What grabcut and stm do when nobody plays beside them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = start(folder, "method=grabcut,stm")
    told = run.communicate()[1]
    assert run.returncode == 0, told
    return {method: recorded(folder, method) for method in ("grabcut", "stm")}


@pytest.mark.parametrize(
    ("ends", "beside", "overrides"),
    [
        pytest.param(ENDS, "grabcut,stm", "", id="in one process"),
        pytest.param(ENDS | DEADLY, "grabcut,stm", "isolate=true timeout=120 memory=3", id="isolated"),
        pytest.param(LATE, "grabcut", "isolate=true timeout=8", id="late"),
    ],
)
@pytest.mark.timeout(900)
def test_hostile_guests_cost_only_their_own_samples(
    tmp_path: Path,
    undisturbed: dict[str, dict[str, records.Record]],
    ends: dict[str, tuple[str, str]],
    beside: str,
    overrides: str,
) -> None:
    """One bad method must not end a night's run, nor change what stands beside it; record and exit code say it all."""
    run = start(tmp_path, f"method={','.join(ends)},{beside}", *overrides.split())
    told = run.communicate()[1]
    assert run.returncode == 1, told
    for method, (status, why) in ends.items():
        found = recorded(tmp_path, method)
        failed = ["val-00", "val-01"] if method == "constructor" else ["val-00"] if status != "complete" else []
        statuses = {clip: status if clip in failed else "complete" for clip in ("val-00", "val-01")}
        assert {clip: record.status for clip, record in found.items()} == statuses, (method, told)
        for clip in failed:
            assert why in found[clip].error
            assert found[clip].path.name.endswith(".failed.parquet")
            assert f"{method} failed on {clip} ({status}): {found[clip].error.splitlines()[-1]}" in told.splitlines()
    for method in beside.split(","):
        wanted = undisturbed[method]
        found = recorded(tmp_path, method)
        assert found.keys() == wanted.keys()
        for clip, record in found.items():
            ours, other = (each.rows.drop(columns="timing") for each in (record, wanted[clip]))
            pd.testing.assert_frame_equal(ours, other, check_exact=True)
            assert record.key == wanted[clip].key
            assert not record.provenance["shared"]
    assert not alive(tmp_path)

    report = start(tmp_path, "task=report")
    assert report.wait() == 0, report.communicate()[1]
    scores = pd.read_csv(next((tmp_path / "reports").glob("*/table.csv"))).set_index("method")
    complete = [method for method, (status, _) in ends.items() if status == "complete"]
    assert set(scores.index) == {*ends, *beside.split(",")}
    assert set(scores.index[scores["rank"] != "-"]) == {*complete, *beside.split(",")}


def test_a_run_whose_guests_answer_ends_well(tmp_path: Path) -> None:
    """Threads that go on for ever and forks that answer twice are no failures, and keep nobody waiting."""
    good = [method for method, (status, _) in ENDS.items() if status == "complete"]
    run = start(tmp_path, f"method={','.join(good)}")
    _, told = run.communicate(timeout=240)
    assert run.returncode == 0, told
    assert "still at work, and ended with the run: Thread-" in told
    assert not alive(tmp_path)


@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_no_process_outlives_a_stopped_run(tmp_path: Path, end: str) -> None:
    """Who presses Ctrl-C, or whose job is killed, must not find the machine busy with what is left of it."""
    run = start(tmp_path, "method=hang", "isolate=true")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "results" / "runs" / "frames").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(tmp_path) > 1
    run.send_signal(signal.Signals[end])
    run.communicate()
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(tmp_path)


def alive(folder: Path) -> int:
    """How many processes of a run in `folder` still are there, whatever group or parent they have."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone since it was listed
            ours = f"RUN_OF_TEST={folder}\0".encode() in (process / "environ").read_bytes()
            count += ours and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
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
    (line,) = but_progress(stderr)
    assert line.startswith(told)
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


def work_loudly(items: list[int]) -> Iterator[int]:
    """Answers while a thread of its own logs."""

    def talk() -> None:
        while True:
            logging.getLogger("guest").info("bla " * 2**13)

    threading.Thread(target=talk, daemon=True).start()
    yield from items


def test_results_and_logs_of_threads_do_not_mix(caplog: pytest.LogCaptureFixture) -> None:
    """A worker thread that logs while a result is sent would make nonsense of both."""
    caplog.set_level(logging.INFO)
    assert list(in_children(work_loudly, range(500), timeout=60, memory=None)) == list(range(500))


def drown(items: list[int]) -> Iterator[int]:
    """Says much, and ends."""
    for _ in range(300):
        os.write(2, b"water " * 2**18)
    os.write(2, b"the last drop\n")
    os._exit(7)


def test_what_a_child_says_costs_neither_memory_nor_disk() -> None:
    """Guests have filled gigabytes with one warning; the last lines are what one reads."""
    tracemalloc.start()
    (died,) = in_children(drown, [1], timeout=60, memory=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(died).endswith("the last drop\nexited with code 7")
    assert peak < 2**24


@pytest.mark.parametrize("overrides", ["", "isolate=true"])
def test_a_full_disk_is_one_line_and_no_fault_of_the_method(tmp_path: Path, overrides: str) -> None:
    """What was recorded stays; nobody should look for the error in his own code."""
    before = start(tmp_path, "method=grabcut", "shard=0/2")
    assert before.wait() == 0, before.communicate()[1]
    found = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    full = start(tmp_path, "method=grabcut", *overrides.split(), largest_file=2**13)
    _, told = full.communicate()
    assert full.returncode == 1
    (line,) = but_progress(told)
    assert "cannot be written to (File too large); make room" in line
    assert {path: path.read_bytes() for path in (tmp_path / "results").glob("runs/*/*")} == found


def test_refusal_comes_out_of_the_child() -> None:
    """What the house refuses is not blamed on the guest."""
    with pytest.raises(BadInput, match="no"):
        list(in_children(work, ["a", "refuse"], timeout=60, memory=None))
