"""One progress bar, quiet where nobody looks."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def bar(items: Iterable[Item], name: str) -> Iterable[Item]:
    """`items`, with a bar on stderr while they last, if that is a terminal."""
    console = Console(stderr=True)
    return track(items, name, console=console, transient=True, disable=not console.is_terminal)
