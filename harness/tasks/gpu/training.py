"""How fast the methods learn, and how large a batch may be."""

import json
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import open_dict

from harness.run.evaluate import status_of
from harness.tasks.bench.long_video import held
from harness.tasks.gpu.part import GIB, Part

ABOUT = (
    "Training\n"
    "The first stage of a recipe on clips made of the embedded photographs, in bfloat16, from random weights: "
    "`uv run run.py task=train` with a watch on its objective, for a minute or what there is time for. Steps "
    "are timed with the making of clips in them. Loss: the means of the first and the last quarter of the "
    "steps. Then the batch is given twice, four times, ... at once, two steps each, until memory is full."
)
LIMIT = 60.0  # seconds of steps


class Enough(Exception):
    """The watch has seen what it was to see."""


def play(part: Part) -> None:
    """Each recipe with each method."""
    runs = list(product(part.settings["recipes"], part.methods))
    for number, (recipe, method) in enumerate(runs):
        part.check()
        share = part.left / (len(runs) - number)  # the network has to be built in it, and larger batches tried
        with part.attempt(f"{method}, recipe={recipe}"), tempfile.TemporaryDirectory() as folder:
            told = one(part, method, recipe, min(LIMIT, 0.4 * share), time.time() + share, Path(folder))
            part.report.line("steps", {"method": method, "recipe": recipe, **told})


def one(part: Part, method: str, recipe: str, seconds: float, until: float, folder: Path) -> dict[str, Any]:
    """Train for so many seconds, then with larger batches `until` a time. Returns what was seen."""
    size = {"paper": part.settings["network"]}.get(recipe, "tiny")
    choices = [f"recipe={recipe}", f"size={size}", "weights=random", "precision=bfloat16"]
    places = [f"results={folder}", f"workers={part.settings['workers']}"]
    config = part.compose(method, "task=train", *choices, *places, f"save_every={10**9}")
    stage = next((stage for stage in config.recipe[method] if stage.name == "images"), config.recipe[method][0])
    seen = folder / "seen.jsonl"
    with open_dict(stage):
        stage.pop("start", None)  # the paper's begins with a file of ImageNet's, which is not here
        stage.update(part.settings["stage"])
        watch = {"seconds": seconds, "until": until, "times": part.settings["times"], "device": part.device}
        watch["file"] = str(seen)
        stage.objective = {"_target_": f"{__name__}.Watch", "objective": stage.objective, **watch}
    config.task.recipe[method] = [stage]
    full = False
    try:
        instantiate(config.task)()
    except Enough:
        pass
    except Exception as error:
        full = seen.exists() and status_of(error) == "oom"
        if not full:
            raise
    first, *larger = [json.loads(line) for line in seen.read_text().splitlines()]
    del first["times"]
    row = {"stage": stage.name, "size": "×".join(map(str, stage["size"])), "batch": stage.batch, **first}
    for each in larger:
        row |= {"larger batch": each["times"] * stage.batch, "its steps/s": each["steps/s"]}
        row |= {"its memory [GiB]": each["memory [GiB]"]}
    return row | ({"twice that": "does not fit" if full else "not tried"} if part.settings["times"] else {})


class Watch:
    """An objective that times the steps of another one, and ends the training when it has seen enough.

    What it saw goes to a file, a line of JSON for each size of the batch: as the recipe has it, for `seconds`; then so
    many `times` as large, for two steps each, unless they would not end before `until`, by `time.time`.
    """

    def __init__(
        self, objective: Callable[..., Any], seconds: float, until: float, times: list[int], device: str, file: str
    ) -> None:
        self.objective, self.seconds, self.until, self.device, self.file = objective, seconds, until, device, Path(file)
        self.sizes = iter(times)
        self.begin(1)

    def begin(self, times: int) -> None:
        """Nothing was seen of a batch so many times as large."""
        self.times, self.began = times, 0.0
        self.losses: list[Any] = []

    def __call__(self, network: Any, batch: Any, chance: Any, progress: float) -> Any:
        """A step. Raises Enough after the last one."""
        self.look()
        if self.times > 1:
            frames, labels = (x.repeat(self.times, *[1] * (x.ndim - 1)) for x in (batch.frames, batch.labels))
            batch = batch._replace(frames=frames, labels=labels)
        step = self.objective(network, batch, chance, progress)
        self.losses.append(step.loss.detach())
        return step

    def look(self) -> None:
        """The clock, once the steps before are done; the first two of a size do not count."""
        steps = len(self.losses) - 2
        if steps < 0:
            return
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        if steps == 0:
            self.began = now
            self.memory()
        elif (self.times == 1 and now - self.began >= self.seconds) or (self.times > 1 and steps == 2):
            step = (now - self.began) / steps
            self.tell(1 / step)
            times = next(self.sizes, None)
            if times is None or time.time() + 4 * step * times / self.times > self.until:
                raise Enough
            self.begin(times)

    def tell(self, rate: float) -> None:
        """A line of the file."""
        quarter = max(1, len(self.losses) // 4)
        first, last = (float(sum(losses) / quarter) for losses in (self.losses[:quarter], self.losses[-quarter:]))
        told = {
            "steps/s": rate,
            "steps": len(self.losses),
            "loss, first": first,
            "loss, last": last,
            "falls": last < first,
        }
        with self.file.open("a") as file:
            file.write(json.dumps({"times": self.times, **told, "memory [GiB]": self.memory()}) + "\n")

    def memory(self) -> float:
        """GiB: of the GPU what tensors held at most since this was asked last, else what this process holds."""
        if self.device == "cpu":
            return held()[0]
        import torch

        most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return most / GIB
