"""Whether a sample had its device to itself while it was timed.

Jobs of one user on one machine see each other through two files per device in the temporary folder: every holder keeps
a shared lock on `.held`, which the system takes back however a job ends, and every start adds a byte to `.starts`.
A sample was alone if nobody held the device when it began and nobody has begun since.
Jobs with temporary folders of their own (containers, some clusters) cannot see each other, nor can other users' jobs.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from pathlib import Path

from harness.run.records import writable

HELD: set[int] = set()


def let_go() -> None:
    """What is forked holds nothing of what its parent holds."""
    for file in HELD:
        os.close(file)
    HELD.clear()


os.register_at_fork(after_in_child=let_go)


@dataclass
class Occupancy:
    """Whether another job was on the device at any moment; known once its `with` block has ended."""

    shared: bool = False


@contextmanager
def occupy(device: str) -> Iterator[Occupancy]:
    """Hold a device for the length of the block, beside whoever else does.

    device: a name that jobs on the same device have in common: "cpu", a GPU's UUID.
    Raises Unwritable.
    """
    place = Path(tempfile.gettempdir(), f"ivosbench-{os.getuid()}-{device}")
    mine = Occupancy()
    with ExitStack() as opened:
        with writable(place.parent):
            held, starts = (opened.enter_context(open_append(place, suffix)) for suffix in (".held", ".starts"))
            HELD.add(held)
            with exclusive(starts):
                alone = try_exclusive(held)
                flock(held, LOCK_SH)
                os.write(starts, b".")
                before = os.fstat(starts).st_size
        try:
            yield mine
        finally:
            with exclusive(starts):
                mine.shared = not alone or os.fstat(starts).st_size != before
                flock(held, LOCK_UN)
                HELD.discard(held)


@contextmanager
def open_append(place: Path, suffix: str) -> Iterator[int]:
    """A file for locks and appended bytes, made if there is none."""
    file = os.open(place.with_name(place.name + suffix), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def exclusive(file: int) -> Iterator[None]:
    """One at a time: starts and ends happen in an order."""
    flock(file, LOCK_EX)
    try:
        yield
    finally:
        flock(file, LOCK_UN)


def try_exclusive(file: int) -> bool:
    """Whether nobody else holds the file; if so, it is held alone."""
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
