"""Work in child processes: what dies or hangs there does not take the run along."""

import faulthandler
import logging
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from harness.api import BadInput

Item = TypeVar("Item")
Result = TypeVar("Result")

# Children are forked from a server that has imported the harness and nothing else, no guest and no torch: each starts
# at once and clean.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["harness.run.evaluate"])
GRACE = 5  # seconds a child has to end by itself


class Died(Exception):
    """A child ended while it was at an item. The message: the last lines of its stderr and, below them, why.

    code: what it exited with, negative for a signal; None if it had to be stopped.
    """

    def __init__(self, stderr: Path, why: str, code: int | None) -> None:
        lines = stderr.read_text(errors="replace").splitlines()[-30:] if stderr.exists() else []
        super().__init__("\n".join([*(line for line in lines if not line.startswith("Extension modules:")), why]))
        self.code = code


def in_children(
    play: Callable[[list[Item]], Iterable[Result]], items: Iterable[Item], timeout: float, memory: float | None
) -> Iterator[Result | Died]:
    """What `play(items)` yields, one result for each item, in order, computed in a child process.

    The item at which a child dies gets a `Died`, and a new child goes on with the next one.
    What children log is logged here.
    play, items, results: can be pickled.
    timeout: seconds for one item. memory: GiB of data that a child may hold, as RLIMIT_DATA counts them.
    Raises the BadInput that `play` raises.
    """
    rest = list(items)
    while rest:
        for result in in_child(play, rest, timeout, memory):
            rest = rest[1:]
            yield result


def in_child(
    play: Callable[[list[Item]], Iterable[Result]], items: list[Item], timeout: float, memory: float | None
) -> Iterator[Result | Died]:
    """The results of one child; those of the last items are missing if it died."""
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own is no name a child knows
    ours, theirs = CONTEXT.Pipe(duplex=False)
    with ours, TemporaryDirectory() as folder:
        stderr = Path(folder, "stderr")
        child = CONTEXT.Process(target=work, args=(play, items, theirs, stderr, memory, logging.root.level))
        child.start()
        theirs.close()
        try:
            pid = receive(child, ours, math.inf)  # its start may import the harness, which is no fault of its guest
            for _ in items:
                yield receive(child, ours, timeout)
            child.join(GRACE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)  # faulthandler writes down where it hangs
            child.join(GRACE)
            yield Died(stderr, f"no answer within {timeout:g} s", None)
        except EOFError:
            child.join(GRACE)
            yield Died(stderr, cause(child.exitcode), child.exitcode)
        finally:
            child.kill()
            child.join()


def receive(child: ForkServerProcess, pipe: Connection, timeout: float) -> Any:
    """The next message of a child that is no log record. Raises EOFError if it is gone, TimeoutError, its BadInput."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if pipe in wait([pipe, child.sentinel], timeout=0.5):
            try:
                message = pipe.recv()
            except OSError as error:  # gone in the middle of a message
                raise EOFError from error
            if isinstance(message, BadInput):
                raise message
            if not isinstance(message, logging.LogRecord):
                return message
            logging.getLogger(message.name).handle(message)
        elif not child.is_alive():
            raise EOFError
    raise TimeoutError


def cause(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "cut its pipe and would not end"
    if code >= 0:
        return f"exited with code {code}"
    memory = ", usually the kernel's for want of memory" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code} ({signal.strsignal(-code)}){memory}"


class Forward(logging.Handler):
    """Sends what is logged through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # arguments and traceback included: neither need be picklable
        self.pipe.send(logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None))


def work(play: Any, items: list[Any], pipe: Connection, stderr: Path, memory: float | None, level: int) -> None:
    """The life of a child: sends its id when it is ready, then each result, or the BadInput it met."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    faulthandler.enable(all_threads=False)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30), resource.RLIM_INFINITY))
    logging.root.setLevel(level)
    logging.root.addHandler(Forward(pipe))
    pipe.send(os.getpid())
    try:
        for result in play(items):
            pipe.send(result)
    except BadInput as refusal:
        pipe.send(refusal)


def end_with_parent() -> None:
    """End this process when its parent has ended, however that came."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
