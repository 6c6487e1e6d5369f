"""What the files of a board were made from, so that they are made again only if something of it has changed.

Beside them lies `.made`: a digest of all that they are made from, then a digest of each of them. A file that is deleted
or changed, a record that is new or played again, or another version of this code has them all made again.
"""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from harness.report.leaderboard import Board, canonical
from harness.run.provenance import digest

NOTE = ".made"
HARNESS = Path(__file__).parents[1]
DRAWING = ("jinja2", "matplotlib", "numpy", "opencv-python", "pandas", "pillow", "plotly", "tabulate")


def inputs(board: Board, runs: Path, until: float | None) -> str:
    """Digest of what a board's files are made from: records, thumbnails below `runs`, references, code, libraries."""
    records = [record for entry in board.entries for record in (*entry.records, *entry.failures)]
    manifests = {record.key.sample["manifest"] for record in records}
    given = [entry for entry in board.entries if not entry.records and not entry.failures]
    code = [path for path in sorted(HARNESS.rglob("*")) if path.suffix in (".py", ".j2")]
    told = [
        [(record.path.name, record.written) for record in records],
        [(each, (runs / "frames" / f"{each}.parquet").exists()) for each in sorted(manifests)],
        [(entry.label, entry.summary, entry.rounds.to_csv()) for entry in given],
        [version(name) for name in DRAWING],
        until,
    ]
    return digest(canonical(told).encode(), *(path.read_bytes() for path in code))


def is_from(inputs: str, folder: Path) -> bool:
    """Whether all files of a folder are as they were made from `inputs`."""
    path = folder / NOTE
    if not path.is_file():
        return False
    told = path.read_text(errors="replace")
    files = [folder / line.partition("  ")[2] for line in told.splitlines()[1:]]
    return all(file.is_file() for file in files) and told == content(inputs, files)


def note(inputs: str, folder: Path, files: Iterable[Path]) -> None:
    """Keep what the files of a folder were made from."""
    (folder / NOTE).write_text(content(inputs, files))


def content(inputs: str, files: Iterable[Path]) -> str:
    """A digest and a name per line, the first of the inputs."""
    lines = [f"{inputs}  inputs", *(f"{digest(file.read_bytes())}  {file.name}" for file in files)]
    return "\n".join(lines) + "\n"
