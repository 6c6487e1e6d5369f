"""The main job on the device, and whether the clock waits for it."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import Clip, Interaction, Method, Prediction
from harness.rules.clock import Clock, WallClock
from harness.run import records
from harness.run.evaluate import play_missing
from harness.tasks.gpu.part import GIB, Part, Scene, peak, scene, session
from harness.tasks.regress import measure

ABOUT = (
    "The main job\n"
    "Every method on embedded clips with its tiny weights, as `uv run run.py` plays it. J&F beside that of "
    "results/baselines/embedded.json, made on a CPU; seconds of a round, of all its clips the mean, beside "
    "those of this machine's CPU. Memory is what tensors hold on the GPU at most, on a CPU what the process "
    "holds that no file backs."
)
BASELINE = Path("results", "baselines", "embedded.json")
WORK = 0.5  # seconds, about, that `Queues` has the device work in a round


def play(part: Part) -> None:
    """The methods one after the other, then the clock, then the methods on the CPU."""
    kept = json.loads(BASELINE.read_text())["methods"]
    for method in part.settings["methods"]:
        part.check()
        with part.attempt(method):
            beside(part, method, kept[method]["scores"])
    if part.device == "cpu":
        part.report.note("the clock", "waits for GPUs alone, and there is none; what it does is in tests/test_gpu.py")
        return
    with part.attempt("the clock"):
        told = waits(Queues(part.device), scene(2, (48, 64), 1, 2))
        part.report.line("does the clock wait", told)
        if told["charged"] < 0.9 * told["worked"]:
            part.report.trouble(f"the clock charged {told['charged']:.3f} s of {told['worked']:.3f} s of queued work")
    for method in part.settings["methods"]:
        part.check()
        with part.attempt(f"{method} on the CPU"):
            part.report.line("seconds by round on the CPU", {"method": method, **numbered(one(part, method, "cpu")[1])})


def beside(part: Part, method: str, baseline: Sequence[float]) -> None:
    """Tell of a method on the device, and fail what fell farther than task=regress lets fall on another machine."""
    with peak(part.device) as memory:
        scores, seconds = one(part, method, part.device)
    differences = [score - was for score, was in zip(scores, baseline, strict=False)]
    part.report.line("J&F by round", {"method": method, **numbered(scores)})
    part.report.line("J&F minus that of the baseline", {"method": method, **numbered(differences)})
    told = {"method": method, **numbered(seconds), "memory [GiB]": memory.bytes / GIB}
    part.report.line(f"seconds by round on {part.device}", told)
    if (worst := min(differences)) < -part.settings["tolerance"]:
        fell = 1 + differences.index(worst)
        part.report.trouble(
            f"{method}: J&F fell by {-worst:.4f} in round {fell}; {part.settings['tolerance']} are allowed"
        )


def one(part: Part, method: str, device: str) -> tuple[list[float], list[float]]:
    """J&F and seconds by round, the means of the clips."""
    rounds, shard = part.settings["rounds"], part.settings["shard"]
    config = part.compose(method, "weights=tiny", f"device={device}", f"protocol.rounds={rounds}", "clock=wall")
    with tempfile.TemporaryDirectory() as folder:
        choices = config.method, config.dataset, config.protocol, config.clock
        played = [records.read(path) for path in play_missing(*choices, shard, Path(folder), recompute=True)]
    if failed := [record for record in played if record.status != "complete"]:
        raise RuntimeError(f"{failed[0].status}: {failed[0].error.strip().splitlines()[-1]}")
    timings = [record.rows.groupby("interaction")["timing"].first().to_numpy() for record in played]
    return measure(played)["methods"][method]["scores"], np.mean(timings, axis=0).tolist()


def numbered(values: Sequence[float]) -> dict[str, float]:
    """A value for each round, by its number."""
    return {str(number): value for number, value in enumerate(values, 1)}


class Queues(Method):
    """Has the device work, and answers at once.

    begin: begins work that takes about `WORK` seconds and returns; finish: waits for its end. Those of CUDA by default.
    """

    def __init__(
        self, device: str, begin: Callable[[], Any] | None = None, finish: Callable[[], Any] | None = None
    ) -> None:
        if begin is None or finish is None:
            import torch

            factor = torch.rand(4096, 4096, device=device)
            times = 1

            def multiply() -> None:
                for _ in range(times):
                    torch.mm(factor, factor)

            begin, finish = multiply, lambda: torch.cuda.synchronize(device)
            timed(multiply, finish)  # the first product pays for the library's start
            times = max(1, round(WORK * times / timed(multiply, finish)))
        self.begin, self.finish = begin, finish

    def start(self, clip: Clip) -> None:
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)

    def interact(self, interaction: Interaction) -> Prediction:
        self.begin()
        return Prediction(self.masks.copy())


def waits(method: Queues, scene: Scene, clock: Clock | None = None) -> dict[str, float]:
    """Seconds of a round's work if one waits for it, those after which the method answers, and those it is charged."""
    worked = timed(method.begin, method.finish)
    answered = timed(method.begin, lambda: None)
    method.finish()
    charged = min(seconds for seconds, _ in session(method, scene, 2, clock or WallClock()))
    return {"worked": worked, "answered after": answered, "charged": charged}


def timed(begin: Callable[[], Any], finish: Callable[[], Any]) -> float:
    """Seconds from the one to the end of the other."""
    start = time.perf_counter()
    begin()
    finish()
    return time.perf_counter() - start
