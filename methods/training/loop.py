"""The loop of training: a recipe's stages one after the other, resumable at any step."""

import datetime
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from harness.api import BadInput
from harness.run.progress import Pace
from harness.run.provenance import machine, weights_of
from methods.training.clips import Batch, Batches, Source, source

log = logging.getLogger(__name__)


Precision = Literal["float32", "bfloat16"]
Norm = Literal["trained", "frozen"]


class Step(NamedTuple):
    """What an objective makes of a batch: the loss to minimise, and figures to watch, by name, all single numbers."""

    loss: Tensor
    figures: Mapping[str, Tensor]


Objective = Callable[[Any, Batch, np.random.Generator, float], Step]  # network, batch, chance, progress in [0, 1)


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    objective: the function of methods/<name>/training.py that is minimised.
    trains: the parts of the network that change; all of it if none is named.
    start: what is done to the network before the first step.
    source, frames, size, gap, objects, blended: of its clips, see `methods.training.clips`.
    batch: clips × objects of a step.
    decay: "one_cycle" (up within the first `warm_up` of the steps, then down along a cosine), or {progress: factor}:
        what the learning rate is multiplied by from there on.
    dropout: whether the network's dropout is on.
    norm: "frozen" leaves the statistics and scales of batch normalisation as they are, as most of the papers do.
    """

    name: str
    objective: Objective
    steps: int
    batch: int
    learning_rate: float
    size: Sequence[int]
    trains: Sequence[str] = ()
    start: Callable[[Any], None] | None = None
    source: Source = "video"
    frames: int = 3
    gap: Sequence[float] = (1, 1)
    objects: Sequence[int] = (1,)
    blended: bool = False
    decay: str | Mapping[float, float] = field(default_factory=dict)
    warm_up: float = 0.05
    weight_decay: float = 0.0
    clip_gradient: float | None = None
    dropout: bool = True
    norm: Norm = "frozen"

    def __post_init__(self) -> None:
        for name, allowed in {"source": get_args(Source), "norm": get_args(Norm)}.items():
            if getattr(self, name) not in allowed:
                raise BadInput(f"stage {self.name}: {name}={getattr(self, name)}; choose one of {', '.join(allowed)}")
        if isinstance(self.decay, str) and self.decay != "one_cycle":
            raise BadInput(f"stage {self.name}: decay={self.decay}; wanted one_cycle or {{progress: factor}}")
        if min(self.steps, self.batch, self.frames) < 1:
            raise BadInput(f"stage {self.name}: wanted steps, batch and frames of 1 or more")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        done = step / self.steps
        if isinstance(self.decay, Mapping):
            return self.learning_rate * float(np.prod([by for since, by in self.decay.items() if done >= since]))
        if done < self.warm_up:
            return self.learning_rate * (step + 1) / (self.warm_up * self.steps + 1)
        return self.learning_rate * 0.5 * float(1 + np.cos(np.pi * (done - self.warm_up) / (1 - self.warm_up)))


def train(
    method: DictConfig,
    dataset: DictConfig,
    recipe: DictConfig,
    stages: Sequence[str] | str | None,
    results: str,
    workers: int,
    precision: Precision,
    save_every: int,
) -> Path:
    """Train a method by its recipe in <results>/training/<method>-<size>-<recipe>; prints where its weights are.

    The folder holds checkpoint.pt, loss.csv and loss.png, written every `save_every` steps, and at the end
    weights.safetensors and their card, weights.json. The same command goes on from a checkpoint, on a CPU
    to the same bits.
    method: its `weights` are what training starts from. dataset: "synthetic" makes new clips of the training
    photographs for ever; of any other its sequences are used. stages: the names of those to do, None for all.
    workers: processes that make clips.
    Raises BadInput for a method the recipe lacks, data held out for evaluation, or a folder of another training.
    """
    if method.name not in recipe:
        methods = ", ".join(str(key) for key in recipe if key != "name")
        raise BadInput(f"recipe={recipe.name} has no stages for method={method.name}; it has some for {methods}")
    known = [stage.name for stage in recipe[method.name]]
    named = [stages] if isinstance(stages, str) else known if stages is None else list(stages)
    if unknown := [name for name in named if name not in known]:
        raise BadInput(f"stages: {', '.join(unknown)} not in recipe={recipe.name} for {method.name}; known: {known}")
    if precision not in get_args(Precision) or save_every < 1:
        raise BadInput(f"precision={precision}, save_every={save_every}: wanted float32 or bfloat16, and 1 or more")
    chosen = [stage for stage in recipe[method.name] if stage.name in named]
    plan = [Stage(**instantiate(stage, _convert_="all")) for stage in chosen]
    made = dataset.name == "synthetic"
    settings = {
        "method": OmegaConf.to_container(method, resolve=True),
        "dataset": {"name": "synthetic", "split": "train"} if made else OmegaConf.to_container(dataset, resolve=True),
        "stages": [OmegaConf.to_container(stage, resolve=True) for stage in chosen],
        "precision": precision,
    }
    player = instantiate(OmegaConf.masked_copy(method, [str(k) for k in method if k not in ("name", "published")]))
    arguments = OmegaConf.masked_copy(dataset, [str(k) for k in dataset if k not in ("name", "archives")])
    sequences = [] if made else instantiate(arguments, _convert_="all")
    name = "-".join((method.name, method.size, recipe.name, *(stages or ())))
    folder = Path(results, "training", name)
    training = Training(player.network.to(memory_format=torch.channels_last), settings, folder)
    training.resume()
    path = folder / "weights.safetensors"
    if path.exists() and (training.stage, training.step) == (len(plan) - 1, plan[-1].steps):
        log.info("%s: finished before", folder)
        print(path)
        return path
    for number, stage in enumerate(plan):
        if number >= training.stage:
            clip = stage.source, stage.frames, stage.size, stage.gap, stage.blended
            draw = source(dataset.name, sequences, *clip)
            batches = Batches(draw, stage.steps, stage.batch, stage.objects, (method.seed, number))
            training.run(stage, batches, workers, precision, save_every)
    about = {
        "training": f"ours, recipe {recipe.name} on {dataset.name}",
        "method": method.name,
        "size": method.size,
        "recipe": recipe.name,
        "steps": " + ".join(f"{stage.steps} {stage.name}" for stage in plan),
        "seed": str(method.seed),
        "start": ", ".join(filter(None, weights_of(method).values())),
    }
    path = training.finish(path, about)
    print(path)
    return path


class Training:
    """A network on its way: the stage and the step it is at, and the curve so far.

    settings: a training goes on from the checkpoint in `folder` only if they are the same.
    """

    def __init__(self, network: nn.Module, settings: Mapping[str, Any], folder: Path) -> None:
        self.network, self.settings, self.folder = network, settings, folder
        self.device = next(network.parameters()).device
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.optimiser_state: dict[str, Any] | None = None
        self.curve: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one. Raises BadInput if it is of other settings."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # the unpickler raises whatever a damaged file leads it to
            raise BadInput(f"{path}: damaged ({type(error).__name__}); delete {self.folder} and train again") from error
        theirs, ours = json.loads(state["settings"]), json.loads(json.dumps(self.settings))
        if other := [key for key in ours if theirs.get(key) != ours[key]]:
            what = ", ".join(other)
            raise BadInput(f"{path}: of a training with other {what}; delete {self.folder} or give another results=")
        self.network.load_state_dict(state["network"])
        self.optimiser_state = state["optimiser"]
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self.curve = state["curve"]
        log.info("%s: going on after step %d of stage %d", path, self.step, self.stage + 1)

    def save(self, optimiser: torch.optim.Optimizer) -> None:
        """Write the checkpoint, then what is made of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": json.dumps(self.settings),
            "network": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        unfinished = self.folder / "checkpoint.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self.folder / "checkpoint.pt")
        self.tell()

    def tell(self) -> None:
        """Write the curve as a table and as a picture."""
        table = pd.DataFrame(self.curve)
        table.to_csv(self.folder / "loss.csv", index=False)
        draw_curve(table, self.folder / "loss.png")

    def run(self, stage: Stage, batches: Batches, workers: int, precision: Precision, save_every: int) -> None:
        """The steps of a stage that are not done yet. Data and chance depend on the seed and the step alone."""
        if stage.start is not None and not self.step:
            stage.start(self.network)
        optimiser = optimiser_for(self.network, stage)
        if self.step and self.optimiser_state is not None:
            optimiser.load_state_dict(self.optimiser_state)
        loader = DataLoader(Subset(batches, range(self.step, stage.steps)), batch_size=None, num_workers=workers)
        began, before, first = time.monotonic(), self.seconds, self.step
        window: list[dict[str, float]] = []
        pace = Pace()
        for batch in loader:
            if isinstance(batch, BadInput):
                raise batch
            seed = [*batches.seed, self.step]
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            chance = np.random.default_rng([*seed, 1])
            step = descend(self.network, stage, optimiser, batch, self.step, chance, precision)
            self.step += 1
            window.append({name: float(value) for name, value in (("loss", step.loss), *step.figures.items())})
            self.seconds = before + time.monotonic() - began
            if self.step % save_every == 0 or self.step == stage.steps:
                figures = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
                window = []
                self.curve.append({"stage": stage.name, "step": self.step, "seconds": round(self.seconds, 1)} | figures)
                self.save(optimiser)
                told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
                left = (self.seconds - before) / (self.step - first) * (stage.steps - self.step)
                log.info(
                    "%s: step %d of %d, %s, %.0f min of it to go", stage.name, self.step, stage.steps, told, left / 60
                )
            elif pace.due():
                log.info("%s: step %d of %d, loss %.3f", stage.name, self.step, stage.steps, window[-1]["loss"])
        self.stage, self.step = self.stage + 1, 0

    def finish(self, path: Path, about: Mapping[str, str]) -> Path:
        """Write the weights, in float16, with `about` in their metadata, and a card beside them. Returns the path."""
        self.tell()
        halves = {
            key: value.half() if value.is_floating_point() else value.clone()
            for key, value in self.network.state_dict().items()
        }
        unfinished = path.with_suffix(".unfinished")
        save_file({key: value.contiguous() for key, value in halves.items()}, unfinished, dict(about))
        unfinished.replace(path)
        card = {
            **about,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "hours": round(self.seconds / 3600, 2),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "figures": list({row["stage"]: row for row in self.curve}.values()),
            "machine": machine(),
            "settings": self.settings,
        }
        path.with_suffix(".json").write_text(json.dumps(card, indent=1))
        return path


def optimiser_for(network: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """What moves the parts of a network that a stage trains; no other part of it learns from now on."""
    network.requires_grad_(False).eval()
    for name in stage.trains or [""]:
        network.get_submodule(name).requires_grad_(True).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and stage.norm == "frozen":
            layer.eval().requires_grad_(False)
        if isinstance(layer, nn.Dropout) and not stage.dropout:
            layer.eval()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, stage.learning_rate, weight_decay=stage.weight_decay)


def descend(
    network: nn.Module,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    number: int,
    chance: np.random.Generator,
    precision: Precision,
) -> Step:
    """One step of a stage, the `number`-th, wherever the network is. Returns what the objective made of the batch."""
    device = next(network.parameters()).device
    for group in optimiser.param_groups:
        group["lr"] = stage.rate(number)
    batch = Batch(batch.frames.to(device), batch.labels.to(device), int(batch.num_objects))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        step = stage.objective(network, batch, chance, number / stage.steps)
    optimiser.zero_grad(set_to_none=True)
    step.loss.backward()
    if stage.clip_gradient is not None:
        nn.utils.clip_grad_norm_(next(iter(optimiser.param_groups))["params"], stage.clip_gradient)
    optimiser.step()
    return Step(step.loss.detach(), step.figures)


def draw_curve(curve: pd.DataFrame, path: Path) -> None:
    """The loss and the figures of every stage over its steps, a panel each."""
    stages = list(curve.groupby("stage", sort=False))
    figure = Figure(figsize=(5 * len(stages), 3.2), layout="constrained")
    for axis, (name, rows) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        for column in rows.columns.difference(["stage", "step", "seconds"], sort=False):
            if rows[column].notna().any():
                axis.plot(rows["step"], rows[column], label=column)
        axis.set(title=name, xlabel="step")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
