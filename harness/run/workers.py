"""Work in child processes: what dies or hangs there does not take the run along."""

import faulthandler
import logging
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fcntl import F_GETFL, fcntl
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from queue import Empty, Queue
from typing import Any, TypeVar, cast

from harness.api import BadInput
from harness.run.guest import leave

Item = TypeVar("Item")
Result = TypeVar("Result")

# Children are forked from a server that has imported the harness and nothing else, no guest and no torch: each starts
# at once and clean.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["harness.run.evaluate"])
GRACE = 5  # seconds a child has to end by itself
LONGEST = 2**30  # bytes of a message; what claims more is none of ours
KEPT = 2**16  # bytes of what a child said last


class Died(Exception):
    """A child ended while it was at an item. The message: the last lines of its stderr and, below them, why.

    code: what it exited with, negative for a signal; None if it had to be stopped. late: for want of an answer.
    """

    def __init__(self, why: str, code: int | None, *, stderr: str, late: bool = False) -> None:
        lines = stderr.splitlines()[-30:]
        super().__init__("\n".join([*(line for line in lines if not line.startswith("Extension modules:")), why]))
        self.code = code
        self.late = late


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
    (ours, theirs), (heard, stderr) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=work, args=(play, items, theirs, stderr, memory, logging.root.level))
    child.start()
    theirs.close()
    stderr.close()
    answers, last_words = Answers(ours), LastWords(heard)
    died: Callable[..., Died] | None = None
    try:
        answers.next(child, math.inf)  # it is ready: that may take an import of the harness, no fault of its guest
        for _ in items:
            yield answers.next(child, timeout)
        child.join(GRACE)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.kill(cast(int, child.pid), signal.SIGABRT)  # faulthandler writes down where it hangs
        child.join(GRACE)
        died = partial(Died, f"no answer within {timeout:g} s", None, late=True)
    except EOFError:
        child.join(GRACE)
        died = partial(Died, cause(child.exitcode), child.exitcode)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(cast(int, child.pid), signal.SIGKILL)  # and whatever it started
        child.kill()
        child.join()
    if died:
        yield died(stderr=last_words.text())


class Answers(threading.Thread):
    """Reads what a child sends, whatever it is: a guest may write to any descriptor, and no reader of it may wait."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(daemon=True)
        self.pipe = pipe
        self.queue: Queue[Any] = Queue(maxsize=100)
        self.start()

    def run(self) -> None:
        with self.pipe:
            try:
                while True:
                    self.queue.put(pickle.loads(self.pipe.recv_bytes(LONGEST)))
            except Exception as error:  # the end, or bytes that are none of ours
                self.queue.put(EOFError(str(error)))

    def next(self, child: ForkServerProcess, timeout: float) -> Any:
        """The next message that is no log record. Raises EOFError if the child is gone, TimeoutError, its BadInput."""
        deadline = time.monotonic() + timeout
        gone = False
        while time.monotonic() < deadline:
            try:
                message = self.queue.get(timeout=0.5)
            except Empty:
                if gone:
                    raise EOFError from None
                gone = not child.is_alive()  # what it started may hold its pipe open
                continue
            if isinstance(message, BadInput | EOFError):
                raise message
            if not isinstance(message, logging.LogRecord):
                return message
            logging.getLogger(message.name).handle(message)
        raise TimeoutError


class LastWords(threading.Thread):
    """Reads a pipe to its end and keeps the last of it: who writes there fills neither a disk nor this process."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(daemon=True)
        self.pipe = pipe
        self.kept = b""
        self.start()

    def run(self) -> None:
        with self.pipe:
            while read := os.read(self.pipe.fileno(), KEPT):
                self.kept = (self.kept + read)[-KEPT:]

    def text(self) -> str:
        """What was said last, once nobody can say more."""
        self.join(GRACE)
        return self.kept.decode(errors="replace")


def cause(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "cut its pipe, or wrote there what is none of ours"
    if code >= 0:
        return f"exited with code {code}"
    memory = ", usually the kernel's for want of memory" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code} ({signal.strsignal(-code)}){memory}"


class Forward(logging.Handler):
    """Sends messages through a pipe, one at a time, and what is logged among them: threads of a guest log at any time.

    What a guest's own processes log goes to stderr.
    """

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe
        self.process = os.getpid()

    def send(self, message: Any) -> None:
        """Send a message."""
        self.acquire()
        try:
            self.pipe.send(message)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # arguments and traceback included: neither need be picklable
        if os.getpid() == self.process:
            self.send(logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None))
        else:
            print(text, file=sys.stderr)


def work(play: Any, items: list[Any], pipe: Connection, stderr: Connection, memory: float | None, level: int) -> None:
    """The life of a child: tells that it is ready, then sends each result, or the BadInput it met."""
    os.setsid()  # whatever it starts ends with it
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    close_ways_out(pipe.fileno())
    faulthandler.enable(all_threads=False)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30), resource.RLIM_INFINITY))
    forward = Forward(pipe)
    logging.root.setLevel(level)
    logging.root.addHandler(forward)
    forward.send("ready")
    try:
        for result in play(items):
            forward.send(result)
    except BadInput as refusal:
        forward.send(refusal)
    leave(0)  # at once: a guest's threads may never end


def close_ways_out(own: int) -> None:
    """Whatever is open for writing, `own` and the standard streams aside, leads nowhere: it is the house's, no guest's.

    A byte into the pipe of the server that forks children would end it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for file in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # gone: it was that of the list
            if file > 2 and file not in (own, nowhere) and fcntl(file, F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                os.dup2(nowhere, file, inheritable=False)
    os.close(nowhere)


def end_with_parent() -> None:
    """End this process when its parent has ended, however that came; and what it started, if it leads a group."""
    if parent := multiprocessing.parent_process():
        parent.join()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
