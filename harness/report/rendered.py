"""What the files of a board were made from, so that they are made again only if something of it has changed.

Beside them lies `.made`: a digest of all that they are made from, then a digest of each of them. A file that is deleted
or changed, a record that is new or played again, or another version of this code has them all made again. They are made
aside and moved in together, by one process at a time.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from importlib.metadata import version
from pathlib import Path

from harness.report.collect import canonical
from harness.report.leaderboard import Board, remarks
from harness.run.provenance import digest
from harness.run.records import STALE

log = logging.getLogger(__name__)

NOTE = ".made"
ASIDE = ".new-"
LOCK = ".lock"
HARNESS = Path(__file__).parents[1]
DRAWING = ("jinja2", "matplotlib", "numpy", "opencv-python", "pandas", "pillow", "plotly", "tabulate")


@contextmanager
def locked(reports: Path) -> Iterator[None]:
    """One process at a time: whoever reads records and writes reports within is not overtaken by older ones."""
    reports.mkdir(parents=True, exist_ok=True)
    with (reports / LOCK).open("a") as file:
        try:
            flock(file, LOCK_EX)
        except OSError as error:  # some network folders have no locks
            log.warning("%s: cannot be locked (%s); let one run end at a time", reports, error.strerror)
        yield


def inputs(board: Board, until: float | None) -> str:
    """Digest of what a board's files are made from: records, thumbnails, references, code, libraries."""
    records = [record for entry in board.entries for record in (*entry.records, *entry.failures)]
    thumbnails = {record.path.parents[1] / "frames" / f"{record.key.sample['manifest']}.parquet" for record in records}
    given = [entry for entry in board.entries if not entry.records and not entry.failures]
    code = [path for path in sorted(HARNESS.rglob("*")) if path.suffix in (".py", ".j2")]
    told = [
        [(entry.label, entry.summary) for entry in board.entries],
        [(record.path.name, record.written, record.path.stat().st_mtime_ns) for record in records],
        [(path.name, path.stat().st_mtime_ns) for path in sorted(thumbnails) if path.exists()],
        [entry.rounds.to_csv() for entry in given],
        [board.title, board.total, remarks(board)],
        [version(name) for name in DRAWING],
        until,
    ]
    return digest(canonical(told).encode(), *(path.read_bytes() for path in code))


def make(folder: Path, inputs: str, write: Callable[[Path], Iterable[Path]]) -> bool:
    """Have `write` make the files of a folder, unless they are there as made from `inputs`; whether it did.

    write: makes them in the folder it is given and returns them. What it made before and makes no more is deleted.
    """
    if is_from(inputs, folder):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{ASIDE}*"):
        if time.time() - left.stat().st_mtime > STALE:  # by who was killed
            shutil.rmtree(left)
    before = set(files_of(folder))
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder) as aside:
        files = [path.replace(folder / path.name) for path in list(write(Path(aside)))]
    for path in before - set(files):
        path.unlink(missing_ok=True)
    (folder / NOTE).write_text(content(inputs, files))
    return True


def is_from(inputs: str, folder: Path) -> bool:
    """Whether all files of a folder are as they were made from `inputs`."""
    files = files_of(folder)
    return all(file.is_file() for file in files) and told(folder) == content(inputs, files)


def files_of(folder: Path) -> list[Path]:
    """The files that were made in a folder, by its note."""
    return [folder / Path(line.partition("  ")[2]).name for line in told(folder).splitlines()[1:]]


def told(folder: Path) -> str:
    """The note of a folder; "" if it has none."""
    path = folder / NOTE
    return path.read_text(errors="replace") if path.is_file() else ""


def content(inputs: str, files: Iterable[Path]) -> str:
    """A digest and a name per line, the first of the inputs."""
    lines = [f"{inputs}  inputs", *(f"{digest(file.read_bytes())}  {file.name}" for file in files)]
    return "\n".join(lines) + "\n"
