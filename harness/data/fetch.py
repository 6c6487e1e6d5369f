"""Fetch and unpack the official archives of a dataset: `uv run run.py task=data dataset=davis2017`."""

import logging
import lzma
import reprlib
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from harness.api import BadInput
from harness.data.images import one_line
from harness.data.sequence import root_folder

log = logging.getLogger(__name__)

TOP_FOLDER = "DAVIS"  # what the archives hold everything in; our root takes its place
CHUNK = 2**20
OFTEN = 10.0  # seconds between two lines of a download, or of the unpacking, where there is no terminal
# What zipfile makes of a damaged archive; RuntimeError: a member is encrypted or packed in a way it does not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
MAX_RATIO = 100  # of unpacked to packed; text packs to a tenth, pictures hardly


class Bar:
    """One line of a rich progress display, as pooch wants its progress bars."""

    def __init__(self, display: Progress, name: str) -> None:
        self.display, self.name = display, name
        self.fetched, self.next_line = 0, time.monotonic() + OFTEN
        self.task = display.add_task(name, total=None)

    @property
    def total(self) -> float | None:
        """Bytes to fetch; None before the server has said."""
        return self.display.tasks[self.task].total

    @total.setter
    def total(self, total: int) -> None:
        self.display.update(self.task, total=total)

    def update(self, count: int) -> None:
        """`count` bytes more; a line now and then where there is no terminal."""
        self.display.advance(self.task, count)
        self.fetched += count
        if self.display.disable and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + OFTEN
            total = f" of {self.total / 1e6:.0f}" if self.total else ""
            log.info("%s: %.0f%s MB fetched", self.name, self.fetched / 1e6, total)

    def reset(self) -> None:
        """Back to none."""
        self.display.reset(self.task)

    def close(self) -> None:
        """The display ends all its bars itself."""


def fetch(root: str | None, archives: Sequence[Mapping[str, str | None]]) -> None:
    """Fetch the zip archives of a dataset into `archives/` beside `root`, and unpack them into `root`.

    archives: {url, sha256} each; where sha256 is None the digest is logged instead of checked.
    What is there already is neither fetched nor unpacked again. Raises BadInput if an archive cannot be had, is not
    what its digest says, or has a member that would land outside `root`.
    """
    if root is None or not archives:
        raise BadInput("task=data: this dataset has no archives to fetch; choose dataset=davis2017 or davis2016")
    folder = root_folder(root)
    pooch.get_logger().setLevel(logging.WARNING)
    for archive in archives:
        path = download(str(archive["url"]), archive.get("sha256"), folder.parent / "archives")
        count = unpack(path, folder)
        log.info("%s: %d files unpacked into %s", path.name, count, folder)


def download(url: str, sha256: str | None, folder: Path) -> Path:
    """The archive behind `url`, from `folder` if it is there."""
    path = folder / PurePosixPath(url).name
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        downloader = pooch.HTTPDownloader(progressbar=Bar(display, path.name), chunk_size=CHUNK)
        try:
            pooch.retrieve(url, sha256 and f"sha256:{sha256}", fname=path.name, path=folder, downloader=downloader)
        except OSError as error:  # those of requests are OSErrors too, with what urllib3 says in them
            reason = " ".join(str(getattr(next(iter(error.args), None), "reason", error)).split())
            raise BadInput(f"{url}: cannot be fetched ({reason}); put it at {path} and run this again") from error
        except ValueError as error:
            raise BadInput(f"{url}: its sha256 is not {sha256}; try again, or correct dataset.archives") from error
    if sha256 is None:
        log.info("%s: sha256 %s (nothing to check it against)", path.name, pooch.file_hash(path))
    return path


def unpack(archive: Path, root: Path) -> int:
    """Unpack a zip into `root`, without its top folder; gives the number of files that were not there yet.

    Links in it become plain files. Raises BadInput, before anything is written, if a member would land outside `root`
    or all of them would take MAX_RATIO times the archive; and if a member is damaged.
    """
    count, next_line = 0, time.monotonic() + OFTEN
    try:
        with zipfile.ZipFile(archive) as source:
            members = [(member, destination(member, archive, root)) for member in source.infolist()]
            size = sum(member.file_size for member, _ in members)
            if size > MAX_RATIO * archive.stat().st_size:
                raise BadInput(f"{archive}: would unpack to {size} bytes, too many for its size; get it elsewhere")
            for member, path in members:
                if member.is_dir() or (path.is_file() and path.stat().st_size == member.file_size):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.part")
                with source.open(member) as packed, partial.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, CHUNK)
                partial.replace(path)
                count += 1
                if time.monotonic() >= next_line:
                    next_line = time.monotonic() + OFTEN
                    log.info("%s: %d files unpacked, of %d", archive.name, count, len(members))
    except DAMAGE as error:
        raise BadInput(f"{archive}: damaged ({one_line(error)}); delete it and run this again") from error
    except OSError as error:
        raise BadInput(f"{archive}: cannot be unpacked ({one_line(error)}); see to {root} and its disk") from error
    return count


def destination(member: zipfile.ZipInfo, archive: Path, root: Path) -> Path:
    """Where a member of an archive goes, or BadInput if that is not within `root`."""
    name = PurePosixPath(member.filename)
    path = root / (name.relative_to(TOP_FOLDER) if name.parts[:1] == (TOP_FOLDER,) else name)
    inside = path.resolve().is_relative_to(root.resolve()) and (path != root or member.filename.endswith("/"))
    if not inside or not member.filename.isprintable():
        raise BadInput(
            f"{archive}: member {reprlib.repr(member.filename)} would land outside {root}; get the archive elsewhere"
        )
    return path
