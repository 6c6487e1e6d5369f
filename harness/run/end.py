"""The end of a run."""

import os
import sys
import threading
from collections.abc import Callable
from traceback import print_exception


def end_with(main: Callable[[], object]) -> None:
    """Call `main` and let this process end as it does; threads that a method has left behind end with it."""
    error: BaseException | None = None
    try:
        main()
    except BaseException as end:
        if not left_behind():
            raise
        error = end
    if names := left_behind():
        print(f"still at work, and ended with the run: {', '.join(names)}", file=sys.stderr)
        code = exit_code(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def left_behind() -> list[str]:
    """The threads that Python would wait for, by name."""
    return [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]


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
