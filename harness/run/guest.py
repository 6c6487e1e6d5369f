"""A method is a guest: what it does to the process it plays in, or leaves there, ends with it; what it raises is told.

That holds for slips, not for ill will: a process of its own, isolate=true, is what keeps a method from the rest.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from typing import NoReturn

READ_ONLY = "; what a method is given is read-only: it may change a copy"

seen_to = threading.Event()  # `end_with` ends this process
played = threading.Event()  # methods have played in it


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, which ends the run; a KeyboardInterrupt that a method raises does not."""


@dataclass(frozen=True)
class Host:
    """A process, by its id, that a method plays in."""

    process: int

    def end_copy(self) -> None:
        """End this process if it is another one: a method that forks may answer twice, and one of the two goes on."""
        if os.getpid() != self.process:
            os._exit(0)


@contextmanager
def hosted() -> Iterator[Host]:
    """A method plays within the block. Afterwards the process is in the folder it was in, and no other but the host
    comes out. Ctrl-C raises Interrupted.
    """
    host = Host(os.getpid())
    try:
        with chdir("."), interruptible():
            yield host
    finally:
        host.end_copy()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises Interrupted within the block, where it would raise KeyboardInterrupt."""

    def interrupt(*_: object) -> NoReturn:
        raise Interrupted

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def told(error: BaseException) -> str:
    """The traceback of what a method raised; why is on the last line."""
    why = said(error)
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:  # of an exception it came from
        trace = why
    return trace.rstrip() + (READ_ONLY if any(words in why for words in ("read-only", "readonly")) else "")


def said(error: BaseException) -> str:
    """Type and text of an exception, which may be a method's own and have no text that can be made."""
    try:
        return "".join(traceback.format_exception_only(error))
    except BaseException as fault:
        return f"{type(error).__name__}, whose text cannot be made: {type(fault).__name__}"


def end_with(main: Callable[[], object]) -> None:
    """Call `main` and let this process end as Python would, but wait for no thread of a method."""
    seen_to.set()
    error: BaseException | None = None
    try:
        main()
    except BaseException as end:
        if not left_behind():
            raise
        error = end
    if names := left_behind():
        print(f"still at work, and ended with the run: {', '.join(names)}", file=sys.stderr)
        leave(exit_code(error))


def job_done() -> None:
    """To be called after methods have played. Where a launcher's own process ends, it waits for no thread of theirs.

    Its exit code is then 0: a launcher hears of errors in other ways.
    """

    def leave_with_main_thread() -> None:
        threading.main_thread().join()
        leave(0)

    played.set()
    if left_behind() and not seen_to.is_set():
        threading.Thread(target=leave_with_main_thread, daemon=True).start()


def left_behind() -> list[str]:
    """The threads that Python would wait for, by name, if they can be a method's."""
    waited_for = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    return [each.name for each in waited_for] if played.is_set() else []


def exit_code(error: BaseException | None) -> int:
    """What a process ends with if `error` is raised in it; told on stderr as Python does."""
    if not isinstance(error, SystemExit):
        if error is not None:
            traceback.print_exception(error)
        return int(error is not None)
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def leave(code: int) -> None:
    """End this process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
