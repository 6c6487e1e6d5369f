"""The rules of a session: rounds, time budget, and which frames may be asked for."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.api import BadInput
from harness.rules.robot import correct

MAX_ROUNDS = 16
MAX_SECONDS_PER_OBJECT = 600


@dataclass(frozen=True)
class Protocol:
    """How a sample is played and scored (DAVIS interactive challenge; Caelles et al. 2018).

    metric: what picks the worst frame and what the curve shows.
    rounds: per sample, at most 16; None or 0 for no limit.
    max_time: seconds per object and sample, at most 600; None or 0 for no limit.
    budget: what counts against `max_time`: the method's own seconds, or "official": those of the evaluation and
        the robot too, as the official session counts them.
    interaction: whether a round gives strokes or the true mask of the frame.
    first_frame: the frame of the first round; None takes the one the first scribble is on.
    keeps_frame_until: rounds after which the robot may move to another frame; None lets it move after every round.
    scored: every frame, or all "but_first_and_last" (the semi-supervised rule of DAVIS).
    threshold: the time, in seconds, at which the score is read off the curve.
    robot: arguments of `harness.rules.robot.correct`.
    engine: who asks and scores: "ours", or "official" for the installed davisinteractive.
    """

    name: str
    metric: Literal["J", "F", "J_AND_F"] = "J_AND_F"
    rounds: int | None = 8
    max_time: float | None = 240
    budget: Literal["method", "official"] = "method"
    interaction: Literal["strokes", "masks"] = "strokes"
    first_frame: int | None = None
    keeps_frame_until: Sequence[int] | None = None
    scored: Literal["all", "but_first_and_last"] = "all"
    threshold: float = 60.0
    robot: Mapping[str, Any] = field(default_factory=dict)
    engine: Literal["ours", "official"] = "ours"

    def __post_init__(self) -> None:
        for name, allowed in {
            "metric": ("J", "F", "J_AND_F"),
            "budget": ("method", "official"),
            "interaction": ("strokes", "masks"),
            "scored": ("all", "but_first_and_last"),
            "engine": ("ours", "official"),
        }.items():
            if getattr(self, name) not in allowed:
                raise BadInput(f"protocol.{name}={getattr(self, name)}: choose one of {', '.join(allowed)}")
        for name, least in {"rounds": 1, "max_time": 1e-3, "first_frame": 0}.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or value < least):
                raise BadInput(f"protocol.{name}={value}: wanted a number of at least {least:g}, or null")
        try:
            inspect.signature(correct).bind(None, None, None, **self.robot)
        except TypeError as error:
            raise BadInput(f"protocol.robot: {error}; wanted arguments of harness.rules.robot.correct") from error
        if not 0 <= self.robot.get("kernel_size", 0) < 1:
            raise BadInput(f"protocol.robot.kernel_size={self.robot['kernel_size']}: wanted 0 <= kernel_size < 1")
        if self.rounds is None and self.max_time is None:
            raise BadInput("protocol: set rounds or max_time, or a sample never ends")
        if self.scored != "all" and self.last_round > 1:
            raise BadInput("protocol.scored=but_first_and_last: the robot needs every frame scored; set rounds=1")

    @property
    def last_round(self) -> float:
        """Number of the last round, infinite without a limit."""
        return min(self.rounds, MAX_ROUNDS) if self.rounds else float("inf")

    @property
    def seconds_per_object(self) -> float | None:
        """Time budget per object; None without a limit."""
        return min(self.max_time, MAX_SECONDS_PER_OBJECT) if self.max_time else None

    def seconds(self, num_objects: int) -> float:
        """Time budget of a sample with `num_objects` objects, infinite without a limit."""
        return num_objects * self.seconds_per_object if self.seconds_per_object else float("inf")

    def candidates(self, round: int, frame: int, offered: Sequence[int] | None) -> Sequence[int] | None:
        """The frames the robot may choose from after `round` on `frame`; `offered` is the method's own wish."""
        if self.keeps_frame_until is None:
            return offered
        return None if round in self.keeps_frame_until else [frame]
