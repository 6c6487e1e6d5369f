"""What every part needs: its time, its device, the configs of methods, and a session whose strokes are known before."""

import datetime
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Interaction, Method, Prediction
from harness.data.davis import official_facts
from harness.data.synthetic import load_clip
from harness.rules.clock import Clock, WallClock
from harness.rules.robot import correct
from harness.rules.scribbles import empty, fuse
from harness.rules.session import check, on_frame
from harness.run.build import build
from harness.run.evaluate import status_of
from harness.run.provenance import commit, cpu_name, versions
from harness.tasks.bench.long_video import looking
from harness.tasks.gpu.report import Report

GIB = 2**30


class TimeUp(Exception):
    """There is no time for what comes next."""


@dataclass(frozen=True)
class Part:
    """What a part plays with.

    device: "cpu" or "cuda:N". end: when it has to be done, by `time.time`. methods: names of conf/method.
    settings: those of the part, for this kind of device. places: where the command line has configs searched.
    """

    device: str
    end: float
    methods: Sequence[str]
    settings: Mapping[str, Any]
    places: Sequence[str]
    report: Report

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.time()

    def check(self, seconds: float = 0.0) -> None:
        """Raise TimeUp if the next `seconds` are not there."""
        if self.left < seconds:
            raise TimeUp

    def compose(self, method: str, *overrides: str) -> DictConfig:
        """The config of a run on this device."""
        config = hydra.compose("config", [*self.places, f"method={method}", f"device={self.device}", *overrides])
        OmegaConf.resolve(config)
        return config

    def build(self, method: str, *overrides: str) -> Method:
        """A method on this device."""
        player: Method = build(self.compose(method, *overrides).method, "method.")
        return player

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails within the block is told, and the part goes on; a full device is no failure of the part."""
        try:
            yield
        except (BadInput, TimeUp):
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if status_of(error) == "oom":
                self.report.line("what did not fit", {"what": what, "told": told})
            else:
                self.report.trouble(f"{what}: {told}")


@dataclass(frozen=True)
class Scene:
    """A clip with the strokes of a user who draws on one frame after the other, whatever the answers are.

    strokes: on a frame, by its number. order: the frames.
    """

    clip: Clip
    truth: np.ndarray
    order: Sequence[int]

    def strokes(self, frame: int) -> list[Any]:
        """What the robot draws there if it sees no answer."""
        labels = self.truth[frame]
        return correct(np.zeros_like(labels), labels, self.clip.num_objects)


def scene(frames: int, size: Sequence[int], objects: int, rounds: int, period: int | None = None) -> Scene:
    """An embedded clip of so many frames, size (H, W). period: it is that long, and played to and fro."""
    height, width = size
    made = load_clip("val", 0, min(frames, period or frames), (height, width), objects, seed=0)
    there = range(made.num_frames)
    order = np.resize([*there, *there[-2:0:-1]], frames)
    clip = Clip(made.name, made.read_frames()[order], objects)
    first = made.scribbles[1].annotated_frames[0]
    steps = (first + round(0.382 * frames * number) for number in range(rounds))  # far from each other
    return Scene(clip, made.read_annotations()[order], [step % frames for step in steps])


def session(
    method: Method, scene: Scene, rounds: int, clock: Clock | None = None
) -> Iterator[tuple[float, Prediction]]:
    """Play a scene's rounds, without evaluation. Yields each one's seconds and answer.

    A method that offers frames for the next round (`Prediction.candidates`) gets the first of them.
    """
    clip, clock = scene.clip, clock or WallClock()
    if hasattr(method, "warm_up"):
        method.warm_up(clip)
    drawn, frame = empty(clip.name, len(clip.frames)), scene.order[0]
    for number in range(1, rounds + 1):
        new = on_frame(scene.strokes(frame), frame, drawn)
        drawn = fuse(drawn, new)
        with clock.method(clip) as elapsed:
            if number == 1:
                method.start(clip)
            prediction = method.interact(Interaction(frame, new, drawn))
        check(prediction, clip)
        yield elapsed.seconds, prediction
        frame = int(prediction.candidates[0]) if prediction.candidates else scene.order[number % len(scene.order)]


@dataclass
class Peak:
    """Bytes held at most, known once its `with` block has ended."""

    bytes: int = 0


@contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Watch the memory: of a GPU what torch's tensors hold, else what of main memory this process holds and no file."""
    most = Peak()
    if device == "cpu":
        with looking() as looks:
            yield most
        most.bytes = round(GIB * max(main for _, main, _ in looks))
    else:
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        yield most
        most.bytes = torch.cuda.max_memory_allocated(device)


def device_of(device: str) -> str:
    """The device as torch names it. Raises BadInput where it is not."""
    import torch

    if device == "auto":
        device = "cuda:0"
    if device != "cpu" and device not in [f"cuda:{n}" for n in range(torch.cuda.device_count())]:
        raise BadInput(f"device={device}: no such GPU here; device=cpu plays the parts in a small form")
    return device


def machine_of(device: str, known: str | None) -> dict[str, str]:
    """What the numbers were measured with, and when. known: the commit, where git cannot tell."""
    import torch

    told = {"gpu": "none", "cpu": cpu_name(), "system": platform.platform()}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        told["gpu"] = f"{properties.name}, {properties.total_memory / GIB:.1f} GiB"
        told |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    now = datetime.datetime.now(datetime.UTC)
    found = commit()
    return {
        **told,
        **versions(),
        "commit": known if found == "unknown" and known else found,
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
    }


class Sequence2017(NamedTuple):
    """A sequence of DAVIS-2017 val. pixels: of a frame, in those of 480×854."""

    name: str
    frames: int
    objects: int
    pixels: float


def davis_val() -> list[Sequence2017]:
    """The 30 sequences."""
    facts = official_facts("val").items()
    sizes = {name: [int(side) for side in each.size.split("x")] for name, each in facts}
    return [Sequence2017(name, f.frames, f.objects, sizes[name][0] * sizes[name][1] / (480 * 854)) for name, f in facts]
