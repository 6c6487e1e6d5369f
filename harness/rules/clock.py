"""The clocks: what a method and its evaluation take, in seconds."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from harness.api import BadInput, Clip

PARTS = ("round", "frame", "object")  # what a modelled round is made of


@dataclass
class Elapsed:
    """What a clock measured, known once its `with` block has ended."""

    seconds: float = 0.0


class Clock(Protocol):
    """Measures what a method and its evaluation take."""

    def method(self, clip: Clip) -> AbstractContextManager[Elapsed]: ...
    def evaluation(self) -> AbstractContextManager[Elapsed]: ...


class WallClock:
    """Seconds as they pass on this machine, GPU work included."""

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        wait_for_gpu()
        with self.evaluation() as elapsed:
            yield elapsed
            wait_for_gpu()

    @contextmanager
    def evaluation(self) -> Iterator[Elapsed]:
        elapsed = Elapsed()
        start = time.perf_counter()
        yield elapsed
        elapsed.seconds = time.perf_counter() - start


class ModelledClock:
    """Seconds from a table, the same on every machine.

    A round of a clip with T frames and N objects costs `round + T (frame + N object)` seconds; evaluation is free.

    method: whose row of `costs` to use.
    costs: by method name, {round, frame, object} in seconds.
    """

    def __init__(self, method: str, costs: Mapping[str, Mapping[str, float]]) -> None:
        if method not in costs:
            raise BadInput(
                f"clock=modelled: no costs for method {method}; "
                f"give them with '+clock.costs.{method}={{round: 0.1, frame: 0.01, object: 0.01}}' (seconds)"
            )
        cost = costs[method]
        if not isinstance(cost, Mapping) or cost.keys() != set(PARTS):
            raise BadInput(f"clock.costs.{method}={cost}: wanted seconds for {', '.join(PARTS)}, and nothing else")
        for part, seconds in cost.items():
            if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
                raise BadInput(f"clock.costs.{method}.{part}={seconds}: wanted seconds, at least 0")
        self.cost = cost

    def seconds(self, num_frames: int, num_objects: int) -> float:
        """What a round of a clip costs."""
        return self.cost["round"] + num_frames * (self.cost["frame"] + num_objects * self.cost["object"])

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        yield Elapsed(self.seconds(len(clip.frames), clip.num_objects))

    @contextmanager
    def evaluation(self) -> Iterator[Elapsed]:
        yield Elapsed()


def wall_clock(method: str) -> WallClock:
    """The wall clock is the same for every method."""
    return WallClock()


def wait_for_gpu() -> None:
    """Finish the queued GPU work, if the method uses torch on a GPU at all."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
