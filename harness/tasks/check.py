"""Does a method keep the contract of `harness.api`? Played on small clips, with a verdict for each point of it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from harness.api import BadInput, Clip, Interaction, Method, Scribbles
from harness.data import synthetic
from harness.data.sequence import VideoSequence, robot_scribbles
from harness.report.tables import show
from harness.rules import session
from harness.rules.clock import wall_clock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty, fuse
from harness.rules.session import Round
from harness.run.build import build
from harness.run.evaluate import build_method
from harness.run.guest import said
from harness.run.progress import bar
from harness.run.provenance import weights_of
from harness.run.source import source_digest

ROUNDS = 4  # MiVOS propagates in the third and may go on to another frame after it
FRAMES = 6
SIZE = (96, 160)
SWAP = np.arange(256, dtype=np.uint8)
SWAP[[1, 2]] = 2, 1


class Broken(Exception):
    """What a method does against the contract, in one line."""


class NotTested(Exception):
    """Why a point cannot be tested, in one line."""


@dataclass(frozen=True)
class Sample:
    """What is played: a clip, its truth (uint8 T×H×W) and the scribbles of the first round."""

    clip: Clip
    truth: np.ndarray
    scribbles: Scribbles

    @property
    def first(self) -> int:
        """The frame that is scribbled on."""
        return self.scribbles.annotated_frames[0]


@dataclass(frozen=True)
class Verdict:
    """What came of one point of the contract; `why` is empty where it is kept."""

    point: str
    verdict: Literal["ok", "FAILED", "not tested"]
    why: str = ""


def check(method: DictConfig, dataset: DictConfig, protocol: DictConfig) -> None:
    """Print a verdict per point of the contract. Raises BadInput if one is broken or the method refuses to play.

    dataset: one that lies in files lends its first clip, cut to a few frames, and is watched while that is played.
    protocol: of it count whether it gives strokes or masks, the rounds (up to 4) and the first frame.
    """
    rules: Protocol = build(protocol, name=protocol.name)
    if "name" not in method:
        raise BadInput(f"{method._target_}: its YAML file has no `name`; add one")
    source_digest(method._target_), weights_of(method)  # a record names them: BadInput where they cannot be found
    contract = Contract(lambda: build_method(method, rules), rules, from_files(dataset))
    verdicts = [contract.verdict(point) for point in bar(contract.points, method.name)]
    show(f"method={method.name}, protocol={rules.name}", pd.DataFrame(verdicts))
    if broken := [verdict.point for verdict in verdicts if verdict.verdict == "FAILED"]:
        raise BadInput(f"method={method.name}: {len(broken)} of {len(verdicts)} points broken: {'; '.join(broken)}")


class Contract:
    """The points of the contract, each tested by a method that returns, or raises `Broken` or `NotTested`.

    build: gives a fresh instance of the method. protocol: see `check`. files: (folder, sample) of a clip in files.
    """

    def __init__(
        self, build: Callable[[], Method], protocol: Protocol, files: tuple[Path, Sample] | None = None
    ) -> None:
        rounds = int(min(protocol.last_round, ROUNDS))
        self.protocol = replace(protocol, rounds=rounds, max_time=None, scored="all", engine="ours")
        self.build = build
        self.files = files
        self.sample = make(2)
        self.points: dict[str, Callable[[], None]] = {
            "answers every round": self.answers,
            "plays one object": lambda: self.plays(make(1)),
            "plays five objects": lambda: self.plays(make(5, size=(160, 288))),
            "plays frames of 97×131": lambda: self.plays(make(2, size=(97, 131))),
            "plays a clip of one frame": lambda: self.plays(cut(self.sample, self.sample.first)),
            "plays a round without strokes": self.plays_without_strokes,
            "is deterministic": self.is_deterministic,
            "forgets the last sample": self.forgets,
            "warms up without a trace": self.warms_up,
            "leaves the frames as they are": self.leaves_frames,
            "heeds whose stroke it is": self.heeds_objects,
            "heeds which frame is drawn on": self.heeds_frame,
            "heeds corrections": self.heeds_corrections,
            "goes by no name": self.goes_by_no_name,
            "opens no file of the dataset": self.opens_nothing,
        }

    def verdict(self, point: str) -> Verdict:
        """Test one point. A refusal, the method's own BadInput, is a limit and no failure."""
        try:
            self.points[point]()
        except NotTested as reason:
            return Verdict(point, "not tested", str(reason))
        except BadInput as refusal:
            if point == "answers every round":
                raise
            return Verdict(point, "not tested", f"refused: {refusal}")
        except (Broken, session.InvalidPrediction) as reason:
            return Verdict(point, "FAILED", str(reason))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a guest raises is its verdict, sys.exit() too
            return Verdict(point, "FAILED", raised(error))
        return Verdict(point, "ok")

    def play(self, method: Method, sample: Sample, protocol: Protocol | None = None) -> list[Round]:
        """The rounds of a sample, valid ones or InvalidPrediction. Frames are copied."""
        clip = replace(sample.clip, frames=sample.clip.frames.copy())
        rules = protocol or self.protocol
        return list(session.play(method, clip, sample.truth, sample.scribbles, rules, wall_clock("")))

    def first_round(self, sample: Sample) -> Round:
        """What a fresh instance makes of the strokes or mask on the frame that is scribbled on."""
        (round,) = self.play(self.build(), sample, replace(self.protocol, rounds=1, first_frame=sample.first))
        return round

    def answers(self) -> None:
        self.plays(self.sample)

    def plays(self, sample: Sample) -> None:
        self.play(self.build(), sample)

    def plays_without_strokes(self) -> None:
        if self.protocol.interaction == "masks":
            raise NotTested("every round of this protocol has a mask")
        method, clip, drawn = self.build(), self.sample.clip, self.sample.scribbles
        nothing = empty(clip.name, len(clip.frames))
        method.start(clip)
        method.interact(Interaction(self.sample.first, drawn, drawn))
        for frame in (self.sample.first, (self.sample.first + 1) % len(clip.frames)):
            session.check(method.interact(Interaction(frame, nothing, drawn)), clip)

    def is_deterministic(self) -> None:
        first, second = (self.play(self.build(), self.sample) for _ in range(2))
        same(first, second, "two fresh instances answer one sample differently")

    def forgets(self) -> None:
        method = self.build()
        first = self.play(method, self.sample)
        self.play(method, make(3, size=(112, 128)), replace(self.protocol, rounds=1))
        same(first, self.play(method, self.sample), "a sample is answered differently after another one")

    def warms_up(self) -> None:
        warm, cold = self.build(), self.build()
        if not hasattr(warm, "warm_up"):
            raise NotTested("has no warm_up, and needs none")
        warm.warm_up(replace(self.sample.clip, frames=self.sample.clip.frames[::-1].copy()))
        first = interaction(self.sample, self.protocol)
        warm.start(self.sample.clip)
        cold.start(self.sample.clip)
        if not np.array_equal(warm.interact(first).masks, cold.interact(first).masks):
            raise Broken("the first round is answered differently after warm_up")

    def leaves_frames(self) -> None:
        clip = replace(self.sample.clip, frames=self.sample.clip.frames.copy())
        method = self.build()
        method.start(clip)
        method.interact(interaction(self.sample, self.protocol))
        if not np.array_equal(clip.frames, self.sample.clip.frames):
            raise Broken("it writes into clip.frames; copy them")

    def heeds_objects(self) -> None:
        mine, swapped = self.first_round(self.sample), self.first_round(swap_objects(self.sample))
        if np.array_equal(mine.masks[mine.frame], swapped.masks[mine.frame]):
            raise Broken("objects 1 and 2 change places, and the masks do not")

    def heeds_frame(self) -> None:
        if self.protocol.rounds == 1:
            raise NotTested("this protocol has one round")
        first = interaction(self.sample, self.protocol)

        def second_answer(step: int) -> np.ndarray:
            method = self.build()
            method.start(self.sample.clip)
            method.interact(first)
            second = interaction(swap_objects(self.sample), self.protocol, (self.sample.first + step) % FRAMES)
            return method.interact(replace(second, all=fuse(first.all, second.new))).masks

        if np.array_equal(second_answer(2), second_answer(4)):
            raise Broken("the same strokes or mask on another frame make the same masks")

    def heeds_corrections(self) -> None:
        if self.protocol.rounds == 1:
            raise NotTested("this protocol has one round")
        rounds = self.play(self.build(), self.sample)
        pairs = list(pairwise(rounds))
        if self.protocol.interaction == "strokes":
            pairs = [(before, after) for before, after in pairs if after.new.frames[after.frame]]
        if not pairs:
            raise NotTested("the robot found nothing to correct")
        if all(np.array_equal(before.masks[after.frame], after.masks[after.frame]) for before, after in pairs):
            raise Broken("no correction changes the mask of its frame")

    def goes_by_no_name(self) -> None:
        sample = self.files[1] if self.files else self.sample
        renamed = replace(
            sample,
            clip=replace(sample.clip, name="elsewhere"),
            scribbles=replace(sample.scribbles, sequence="elsewhere"),
        )
        same(self.play(self.build(), sample), self.play(self.build(), renamed), "another clip.name makes other masks")

    def opens_nothing(self) -> None:
        if self.files is None:
            raise NotTested("these clips lie in no files; say dataset=folder dataset.root=... or another that does")
        folder, sample = self.files
        with opened_below(folder) as opened:
            self.plays(sample)
        if opened:
            raise Broken(f"it opens {opened[0]}")


def same(one: list[Round], other: list[Round], fault: str) -> None:
    """Raise `Broken`, saying where, unless two sessions have the same masks."""
    for first, second in zip(one, other, strict=True):
        if not np.array_equal(first.masks, second.masks):
            frames = np.flatnonzero((first.masks != second.masks).any((1, 2)))
            raise Broken(f"{fault}, from round {first.interaction} on (frame {frames[0]})")


def raised(error: BaseException) -> str:
    """An exception in one line, with the place it comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{' '.join(said(error).split())}{place}"


def make(num_objects: int, size: tuple[int, int] = SIZE) -> Sample:
    """A synthetic sample of a few frames."""
    return sample_of(synthetic.load_clip("val", 0, FRAMES, size, num_objects, seed=num_objects))


def sample_of(sequence: VideoSequence) -> Sample:
    """The first sample of a sequence."""
    clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
    return Sample(clip, sequence.read_annotations(), sequence.scribbles[min(sequence.scribbles)])


def from_files(dataset: DictConfig) -> tuple[Path, Sample] | None:
    """(folder, a few frames of the first clip) of a dataset that lies in files; None for one that does not."""
    if "root" not in dataset:
        return None
    sequences: list[VideoSequence] = build(dataset)
    sequence = sequences[0]
    frames, truth = sequence.read_frames(), sequence.read_annotations()
    areas = [np.count_nonzero((labels > 0) & (labels <= sequence.num_objects)) for labels in truth]
    start = min(int(np.argmax(areas)), max(0, len(truth) - FRAMES))
    kept = slice(start, start + FRAMES)
    drawn = robot_scribbles(sequence.name, len(truth[kept]), 0, truth[start], sequence.num_objects)
    sample = Sample(Clip(sequence.name, frames[kept], sequence.num_objects), truth[kept], drawn)
    return Path(dataset.root).expanduser(), sample


def cut(sample: Sample, frame: int) -> Sample:
    """One frame of a sample."""
    one = slice(frame, frame + 1)
    clip = replace(sample.clip, frames=sample.clip.frames[one])
    return Sample(clip, sample.truth[one], replace(sample.scribbles, frames=sample.scribbles.frames[one]))


def swap_objects(sample: Sample) -> Sample:
    """Objects 1 and 2 change places in truth and scribbles."""
    frames = tuple(
        tuple(replace(stroke, object_id=int(SWAP[stroke.object_id])) for stroke in strokes)
        for strokes in sample.scribbles.frames
    )
    return replace(sample, truth=SWAP[sample.truth], scribbles=replace(sample.scribbles, frames=frames))


def interaction(sample: Sample, protocol: Protocol, frame: int | None = None) -> Interaction:
    """The first round of a sample, its strokes or mask put on another frame if one is given."""
    here = sample.first if frame is None else frame
    if protocol.interaction == "masks":
        nothing = empty(sample.clip.name, len(sample.truth))
        return Interaction(here, nothing, nothing, sample.truth[sample.first].copy())
    drawn = session.on_frame(list(sample.scribbles.frames[sample.first]), here, sample.scribbles)
    return Interaction(here, drawn, drawn)


@contextmanager
def opened_below(folder: Path) -> Iterator[list[str]]:
    """The files below `folder` that Python opens within the `with` block; what a C library opens itself goes unseen."""
    opened: list[str] = []
    place, watching = folder.resolve(), True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = Path(os.fsdecode(arguments[0])).resolve()
            if path.is_relative_to(place):
                opened.append(str(path))

    sys.addaudithook(note)  # cannot be taken off again, so it goes to sleep
    try:
        yield opened
    finally:
        watching = False
