"""What a part found, in two files that are whole after every line of it."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.report.tables import markdown

log = logging.getLogger(__name__)

State = Literal["running", "complete", "cut off", "failed"]
TOLD: dict[State, str] = {
    "running": "It was stopped: what stands here was known by then.",
    "complete": "",
    "cut off": "Its time was up: what stands here was known by then.",
    "failed": "It failed:",
}


@dataclass
class Report:
    """One part's `<part>.md` and `<part>.json`, written anew with every line.

    about: first line the title, then what is measured. tables: rows by caption. troubles: what failed, a line each.
    """

    folder: Path
    part: str
    about: str
    command: str
    machine: Mapping[str, str]
    state: State = "running"
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def line(self, caption: str, row: Mapping[str, Any]) -> None:
        """One more row of a table."""
        self.tables.setdefault(caption, []).append(dict(row))
        self.write()
        log.info("%s, %s: %s", self.part, caption, ", ".join(f"{name} {told(value)}" for name, value in row.items()))

    def table(self, caption: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows of a table, instead of those it had."""
        self.tables[caption] = [dict(row) for row in rows]
        self.write()

    def note(self, name: str, text: str) -> None:
        """What else is to be said."""
        self.notes[name] = text
        self.write()

    def trouble(self, told: str) -> None:
        """Something failed; what comes after it may still be told."""
        self.troubles.append(told)
        self.write()
        log.error("%s: %s", self.part, told)

    def end(self, state: State) -> None:
        """The last word: "failed" if anything did."""
        self.state = "failed" if self.troubles else state
        self.write()

    def write(self) -> None:
        """Both files, each in one step: who is killed leaves those before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {name: value for name, value in asdict(self).items() if name != "folder"}
        put(self.folder / f"{self.part}.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
        put(self.folder / f"{self.part}.md", self.text())

    def text(self) -> str:
        """The report for people."""
        title, _, about = self.about.partition("\n")
        ended = [TOLD[self.state], *(f"- {trouble}" for trouble in self.troubles)]
        parts = [f"# {title}", about.strip(), f"`{self.command}`", "\n".join(ended).strip()]
        for caption, rows in self.tables.items():
            shown = pd.DataFrame([{name: told(value) for name, value in row.items()} for row in rows])
            parts += [f"{caption[0].upper()}{caption[1:]}:", markdown(shown, numbers=False)]
        parts.append("\n".join(f"- {name}: {value}" for name, value in {**self.notes, **self.machine}.items()))
        return "\n\n".join(filter(None, parts)) + "\n"


def told(value: Any) -> str:
    """A value of a row, in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read(folder: Path, part: str) -> Report | None:
    """A part's report as it was written; None if there is none."""
    try:
        return Report(folder, **json.loads((folder / f"{part}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remove(folder: Path, part: str) -> None:
    """A part's report is no more."""
    for suffix in ("md", "json"):
        (folder / f"{part}.{suffix}").unlink(missing_ok=True)


def put(path: Path, text: str) -> None:
    """Write a file that is the old one until it is the new one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
