"""How far a run is: a bar where somebody looks, a line now and then where nobody does."""

import logging
import multiprocessing
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
lines = logging.getLogger(f"{__name__}.lines")
Item = TypeVar("Item")

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[step]}"),
)
OFTEN = 0.25  # seconds between two looks at what is being done


class Pace:
    """When a line is due: after 2 seconds, then after twice as many, in the end once a minute."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.wait = 2.0
        self.next = self.began + self.wait

    def due(self) -> bool:
        """Whether it is time for a line; the next one then has to wait."""
        if time.monotonic() < self.next:
            return False
        self.wait = min(2 * self.wait, 60.0)
        self.next = time.monotonic() + self.wait
        return True

    def passed(self) -> str:
        """The time since the beginning, "1:05"."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        return f"{minutes}:{seconds:02d}"


@dataclass(eq=False)
class Doing(logging.Filter):
    """What is being done: how many of how many, and the step that `tell` said last.

    total: None if it is one thing. As a filter it takes what `tell` logs, here or in a child process.
    """

    name: str
    total: int | None
    done: int = 0
    step: str = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.step = record.getMessage()
        return False

    def line(self, passed: str) -> str:
        """All of it on a line, with the time that passed."""
        count = "" if self.total is None else f"{self.done} of {self.total} done"
        return f"{self.name}: {', '.join(filter(None, (count, self.step, passed)))}"


def tell(step: str) -> None:
    """Say what is being done, "bear, round 3 of 8", for what is shown. A child process tells its parent."""
    log.info("%s", step)


def bar(items: Collection[Item], name: str) -> Iterator[Item]:
    """`items`, while it is shown how far they are."""
    with showing(name, len(items)) as doing:
        for item in items:
            yield item
            doing.done += 1


@contextmanager
def showing(name: str, total: int | None = None) -> Iterator[Doing]:
    """Show on stderr what is being done while the block lasts, and what `tell` says of it.

    On a terminal it is a bar; elsewhere, and in a job beside others, a line when the pace has it.
    """
    doing = Doing(name, total)
    console = Console(stderr=True)
    live = console.is_terminal and multiprocessing.parent_process() is None
    ended = threading.Event()
    watch = threading.Thread(target=draw if live else write, args=(doing, ended, console), daemon=True)
    log.filters.insert(0, doing)  # before that of a block around this one
    watch.start()
    try:
        yield doing
    finally:
        log.removeFilter(doing)
        ended.set()
        watch.join()


def draw(doing: Doing, ended: threading.Event, console: Console) -> None:
    """A bar until the end."""
    with Progress(*COLUMNS, console=console, transient=True) as display:
        task = display.add_task(doing.name, total=doing.total, step="")
        while not ended.wait(OFTEN):
            display.update(task, completed=doing.done, step=doing.step)


def write(doing: Doing, ended: threading.Event, console: Console) -> None:
    """Lines until the end."""
    pace = Pace()
    while not ended.wait(OFTEN):
        if pace.due():
            lines.info(doing.line(pace.passed()))
