"""The end of a process that methods have played in: the threads they leave behind end with it."""

import os
import sys
import threading
from collections.abc import Callable
from traceback import print_exception

seen_to = threading.Event()  # `end_with` ends this process
played = threading.Event()  # methods have played in it


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
            print_exception(error)
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
