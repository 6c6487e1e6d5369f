"""Where a method's time goes: its own named parts, timed by torch's profiler while it plays."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Method, Scribbles
from harness.rules.clock import Clock, Elapsed, WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import play
from harness.run.build import build
from harness.run.contention import occupy
from harness.run.evaluate import build_method, sequences_of
from harness.run.identity import entry_of
from harness.run.provenance import cpu_name, device_used, digest, versions

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells of its start and its end otherwise


def milliseconds(method: DictConfig, dataset: DictConfig, protocol: DictConfig, module: str, results: str) -> float:
    """Milliseconds one part of a method takes per frame and object, on the first sample of a dataset (MiVOS, Table 3).

    module: a scope of `profile` that is entered once for each frame it handles, as all of MiVOS are: "s2m",
    "propagation", "fusion". What a pass does on some frames only, as to memorize, is shared by all of its frames.
    results: where profiles are kept, below `profiles`: the same choices are profiled once per machine.
    Raises BadInput for a scope that was not entered.
    """
    choices = entry_of(method, dataset, protocol, OmegaConf.create({"name": "wall"}))
    key = digest(json.dumps([choices, cpu_name(), versions()], sort_keys=True).encode())
    kept = Path(results, "profiles", f"{method.name}-{key}.parquet")
    if not kept.exists():
        found = first_sample(*(OmegaConf.to_yaml(config, resolve=True) for config in (method, dataset, protocol)))
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        found.to_parquet(temporary)
        temporary.replace(kept)
    scopes = pd.read_parquet(kept)
    if module not in scopes.index:
        known = f"choose one of {', '.join(scopes.index)}" if len(scopes) else "it marks no parts of itself"
        raise BadInput(f"module={module}: {method.name} did not enter it in the first sample; {known}")
    costs: pd.Series[float] = 1000 * scopes["seconds"] / (scopes["calls"] * scopes["objects"])
    return float(costs[module])


def first_sample(method: str, dataset: str, protocol: str) -> pd.DataFrame:
    """The `profile` of the first sample of a dataset; the arguments are choices as resolved YAML."""
    player, rules = (DictConfig(OmegaConf.create(choice)) for choice in (method, protocol))
    game: Protocol = build(rules, name=rules.name)
    sequence = sequences_of(dataset)[0]
    if game.first_frame is None and not sequence.scribbles:
        raise BadInput(f"{sequence.name}: no scribbles, which protocol={rules.name} starts from; leave it out")
    first = sequence.scribbles.get(min(sequence.scribbles, default=1), empty(sequence.name, sequence.num_frames))
    clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
    guest = build_method(player, game)
    with occupy(device_used()) as here:
        found = profile(guest, clip, sequence.read_annotations(), first, game, WallClock())
    if here.shared:
        raise BadInput("times beside another job on the same device say nothing; run it alone")
    return found


def profile(
    player: Method, clip: Clip, truth: np.ndarray, scribbles: Scribbles, protocol: Protocol, clock: Clock
) -> pd.DataFrame:
    """Play one sample, as `rules.session.play` has it, and time what the method marks with torch's `record_function`.

    Returns a row per scope, in order of their first calls. Its index is the path of names: "propagation",
    "propagation/encode", ... seconds: of all calls with what is nested in them: on a GPU those of kernels and copies,
    elsewhere those that pass, the profiler's own few microseconds per operation among them. calls: how often it was
    entered. objects: of the clip; a scope that is entered once per frame handles all of them, calls × objects in all.
    Counted is what the clock would count: `start` and `interact`, no warm-up, no evaluation.
    """
    watch = Profiler(clock)
    for _ in play(player, clip, truth, scribbles, protocol, watch):
        pass
    return watch.scopes().assign(objects=clip.num_objects)


class Profiler(Clock):
    """A clock that also notes what the method does in its turns.

    calls: for each scope that was entered its path, and the microseconds that passed and those the GPU worked.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[tuple[str, float, float]] = []

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        import torch

        with torch.profiler.profile() as profiler, self.clock.method(clip) as elapsed:
            yield elapsed
        for event in profiler.events() or ():
            if event.is_user_annotation and event.device_type == torch.autograd.DeviceType.CPU:
                self.calls.append((path(event), event.cpu_time_total, device_time(event)))

    def evaluation(self) -> AbstractContextManager[Elapsed]:
        return self.clock.evaluation()

    def scopes(self) -> pd.DataFrame:
        """Seconds and calls by scope, in order of their first calls."""
        calls = pd.DataFrame(self.calls, columns=["scope", "elapsed", "device"])
        scopes = calls.groupby("scope", sort=False)
        seconds = scopes["device" if calls.device.any() else "elapsed"].sum() / 1e6
        return pd.DataFrame({"seconds": seconds, "calls": scopes.size()})


def path(event: Any) -> str:
    """The names of the scopes that an event of torch's profiler lies in, its own last: "propagation/encode"."""
    names = [event.name]
    while event := event.cpu_parent:
        if event.is_user_annotation:
            names.insert(0, event.name)
    return "/".join(names)


def device_time(event: Any) -> float:
    """Microseconds of the kernels and copies that an event of torch's profiler started.

    torch's own sum has a scope's span on the GPU among its kernels, which would count them twice.
    """
    own = sum(kernel.duration for kernel in event.kernels if kernel.name != event.name)
    return own + sum(device_time(child) for child in event.cpu_children)
