"""DAVIS 2016 and 2017 with the human scribbles of the interactive challenge, in the official layout.

Perazzi et al. 2016; Pont-Tuset et al. 2017; Caelles et al. 2018; https://davischallenge.org
"""

import csv
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from harness.api import BadInput, Scribbles
from harness.data import scribble_files
from harness.data.images import content, digest_line, inspect, read_annotations, read_frames
from harness.data.sequence import VideoSequence, choose, digest_of, plain, root_folder

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("davis_sequences.csv")
PARTS = ("JPEGImages", "Annotations", "ImageSets")  # the folders of its root
SCRIBBLES_PER_SEQUENCE = 3


@dataclass(frozen=True)
class Facts:
    """What is known of a sequence; compared with the official table."""

    frames: int
    objects: int
    size: str

    def __str__(self) -> str:
        return f"{self.frames} frames, {self.objects} objects, {self.size}"


def load(
    root: str,
    year: Literal[2016, 2017] = 2017,
    subset: str = "val",
    sequences: Iterable[str] | None = None,
    without_scribbles: Literal["skip", "refuse", "keep"] = "skip",
    resolution: str = "480p",
    playable: bool = True,
) -> list[VideoSequence]:
    """The sequences of a DAVIS subset, every file checked, none kept in memory.

    root: holds JPEGImages, Annotations, Scribbles and ImageSets.
    year: 2017 labels objects apart, 2016 takes whatever is annotated for one object.
    subset: train, val, trainval (train, then val), or another list in ImageSets.
    sequences: the names to take of it; None takes all.
    without_scribbles: what becomes of a sequence without scribble files. "keep" is for protocols that need none.
    playable: False asks for annotations only, which is all that scoring masks from elsewhere needs.
    Frames and objects come from the files and must be the official ones; sequences DAVIS does not have are welcome.
    Raises BadInput for anything that would keep a sequence from being played and scored.
    """
    folder = root_folder(root)
    subset, resolution = plain(str(subset), "dataset.subset"), plain(str(resolution), "dataset.resolution")
    if year not in (2016, 2017):
        raise BadInput(f"dataset.year={year!r}: choose 2016 (one object) or 2017 (several)")
    if without_scribbles not in ("skip", "refuse", "keep"):
        raise BadInput(f"dataset.without_scribbles={without_scribbles!r}: choose skip, refuse or keep")
    if not folder.is_dir():
        raise BadInput(
            f"{root}: no such folder; get it with 'uv run run.py task=data dataset=davis{year} dataset.root={root}' "
            "or point dataset.root at your copy"
        )
    wanted = PARTS if playable else PARTS[1:]
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        inside = [path for path in (folder / "DAVIS", folder.parent) if all((path / part).is_dir() for part in wanted)]
        remedy = f"did you mean dataset.root={inside[0]}?" if inside else "point it at the folder that has them"
        raise BadInput(f"dataset.root={root}: not DAVIS, which has {'/, '.join(missing)}/ there; {remedy}")
    names = listed(folder, year, subset, resolution)
    chosen = choose(names, sequences, folder / "ImageSets" / f"{year} {subset}")
    with ThreadPoolExecutor() as pool:
        loaded = list(pool.map(partial(load_sequence, folder, year, resolution, playable), chosen))
    return with_scribbles(loaded, folder / "Scribbles", without_scribbles) if playable else loaded


def listed(root: Path, year: int, subset: str, resolution: str) -> list[str]:
    """The names in a subset: one per line or, as DAVIS-2016 came, a line of paths per frame."""
    if subset == "trainval":
        return listed(root, year, "train", resolution) + listed(root, year, "val", resolution)
    path = root / "ImageSets" / str(year) / f"{subset}.txt"
    by_frame = root / "ImageSets" / resolution / f"{subset}.txt"
    if year == 2016 and not path.is_file() and by_frame.is_file():
        path = by_frame
    if not path.is_file():
        raise BadInput(f"{path}: missing; choose another dataset.subset or list the sequences there, one per line")
    entries = [line.split()[0] for line in content(path).decode(errors="replace").splitlines() if line.strip()]
    return list(dict.fromkeys(Path(entry).parent.name if "/" in entry else entry for entry in entries))


def load_sequence(root: Path, year: int, resolution: str, playable: bool, name: str) -> VideoSequence:
    """One sequence, its files checked."""
    merge = year == 2016
    frames, annotations = numbered_files(root, resolution, name, playable)
    size, num_objects, digests = inspect(frames, annotations, merge=merge)
    check_official(name, year, resolution, Facts(len(annotations), num_objects, f"{size[1]}x{size[0]}"))
    paths = sorted((root / "Scribbles" / name).glob("[0-9][0-9][0-9].json"))
    given = {path: content(path, scribble_files.MAX_BYTES) for path in paths}
    lines = [digest_line(path, data) for path, data in given.items()]
    return VideoSequence(
        name=name,
        num_frames=len(annotations),
        num_objects=num_objects,
        size=size,
        manifest=digest_of([f"objects {'merged' if merge else 'apart'}", *digests, *lines]),
        scribbles={
            int(path.stem): read_scribbles(path, data, name, len(annotations), num_objects, merge)
            for path, data in given.items()
        },
        read_frames=partial(read_frames, frames, digests[: len(frames)]),
        read_annotations=partial(read_annotations, annotations, digests[len(frames) :], merge),
        scribbles_expected=SCRIBBLES_PER_SEQUENCE,
    )


def numbered_files(root: Path, resolution: str, name: str, playable: bool) -> tuple[list[Path], list[Path]]:
    """Frames and annotations 00000, 00001, ... of a sequence, or BadInput naming the first that is missing.

    No frames are wanted, nor given, unless it is to be playable.
    """
    images, masks = (root / kind / resolution / name for kind in ("JPEGImages", "Annotations"))
    frames, annotations = sorted(images.glob("*.jpg")) if playable else [], sorted(masks.glob("*.png"))
    if not playable and not annotations:
        raise BadInput(f"{masks}: no annotations; get the sequence again or leave {name} out of dataset.sequences")
    if playable and not frames:
        raise BadInput(f"{images}: no frames; get the sequence again or leave {name} out of dataset.sequences")
    if len(frames) > 1 and [path.stem for path in annotations] == ["00000"]:
        raise BadInput(
            f"{masks}: ground truth of frame 0 alone, {name} cannot be scored here; choose dataset.subset=val"
        )
    num_frames = max(len(frames), len(annotations))
    for t in range(num_frames):
        for wanted, found in ((images / f"{t:05d}.jpg", frames), (masks / f"{t:05d}.png", annotations)):
            if (playable or found is annotations) and (t >= len(found) or found[t] != wanted):
                raise BadInput(f"{wanted}: missing ({num_frames} frames, numbered from 00000); get the sequence again")
    return frames, annotations


def check_official(name: str, year: int, resolution: str, found: Facts) -> None:
    """BadInput unless what the files have is what the official table says, if it knows the sequence."""
    official = official_facts().get(name)
    if official is None:
        return
    if year == 2016:
        official = replace(official, objects=1)
    if resolution != "480p":
        official = replace(official, size=found.size)
    if found != official:
        remedy = "dataset.year=2016 takes merged masks; else get the sequence again"
        raise BadInput(f"{name}: the files have {found}; officially {official}; {remedy}")


@cache
def official_facts(subset: str | None = None) -> dict[str, Facts]:
    """The table of the official sequences, or of the train or val ones of 2017, by name."""
    with TABLE.open(newline="") as file:
        return {
            row["sequence"]: Facts(int(row["frames"]), int(row["objects"]), f"{row['width']}x{row['height']}")
            for row in csv.DictReader(file)
            if subset in (None, row["set"])
        }


def read_scribbles(path: Path, data: bytes, name: str, num_frames: int, num_objects: int, merge: bool) -> Scribbles:
    """The scribbles of a file that holds `data`, checked; `merge` gives all objects' strokes to object 1."""
    read = scribble_files.parse(path, data, name, num_frames)
    if merge:
        read = Scribbles(
            name,
            tuple(tuple(replace(s, object_id=min(s.object_id, 1)) for s in strokes) for strokes in read.frames),
        )
    if not read.annotated_frames:
        raise BadInput(f"{path}: no stroke; get the file again or remove it")
    highest = max(stroke.object_id for strokes in read.frames for stroke in strokes)
    if highest > num_objects:
        raise BadInput(
            f"{path}: a stroke of object {highest}, but annotations have 1..{num_objects}; get the file again"
        )
    return read


def with_scribbles(sequences: list[VideoSequence], folder: Path, without: str) -> list[VideoSequence]:
    """The sequences that can be played, as `without_scribbles` of `load` has it."""
    bare = [sequence.name for sequence in sequences if not sequence.scribbles]
    if without == "keep" or not bare:
        return sequences
    remedy = f"put 001.json ... into {folder}/<sequence>"
    if without == "refuse":
        raise BadInput(f"no scribbles for {', '.join(bare)}: {remedy}, or set dataset.without_scribbles=skip")
    if len(bare) == len(sequences):
        raise BadInput(f"no sequence has scribbles: {remedy}, or set dataset.without_scribbles=keep if none are needed")
    log.warning("no scribbles for %s: left out", ", ".join(bare))
    return [sequence for sequence in sequences if sequence.scribbles]
