"""The rules of a session: rounds, time budget, and which frames may be asked for."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.api import BadInput
from harness.rules.robot import correct
from harness.rules.scribbles import MAX_BEZIER_POINTS

MAX_ROUNDS = 16
MAX_SECONDS_PER_OBJECT = 600


def whole(value: object, least: int, most: float = math.inf) -> bool:
    """Whether a value is a whole number, least..most."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def number(value: object) -> bool:
    """Whether a value is a number, not NaN and no infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a number of a protocol may be, and how a refusal says it.
WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rounds": (
        lambda rounds: rounds is None or whole(rounds, 1, MAX_ROUNDS),
        f"a whole number from 1 to {MAX_ROUNDS}, or null for no limit",
    ),
    "max_time": (
        lambda seconds: seconds is None or (number(seconds) and 0 < seconds <= MAX_SECONDS_PER_OBJECT),
        f"seconds above 0 and at most {MAX_SECONDS_PER_OBJECT}, or null for no limit",
    ),
    "first_frame": (lambda frame: frame is None or whole(frame, 0), "a frame from 0, or null for the scribble's"),
    "new_frame_after": (
        lambda rounds: rounds is None or (isinstance(rounds, list | tuple) and all(whole(each, 1) for each in rounds)),
        "rounds from 1, as in [3,6], or null",
    ),
    "threshold": (lambda seconds: number(seconds) and seconds > 0, "seconds above 0"),
    "robot.kernel_size": (lambda size: number(size) and 0 <= size < 1, "0 <= kernel_size < 1"),
    "robot.max_kernel_radius": (lambda pixels: number(pixels) and pixels >= 0, "pixels, at least 0"),
    "robot.min_nb_nodes": (lambda nodes: whole(nodes, 0), "a whole number of at least 0"),
    "robot.nb_points": (
        lambda points: whole(points, 1, MAX_BEZIER_POINTS),
        f"a whole number from 1 to {MAX_BEZIER_POINTS}",
    ),
}


@dataclass(frozen=True)
class Protocol:
    """How a sample is played and scored (DAVIS interactive challenge; Caelles et al. 2018).

    metric: what picks the worst frame and what the curve shows.
    rounds: per sample, 1 to 16; None for no limit.
    max_time: seconds per object and sample, above 0 and at most 600; None for no limit.
    budget: what counts against `max_time`: the method's own seconds, or "official": those of the evaluation and
        the robot too, as the official session counts them.
    interaction: whether a round gives strokes or the true mask of the frame.
    first_frame: the frame of the first round; None takes the one the first scribble is on.
    new_frame_after: rounds after which the robot may move to another frame; None lets it move after every round.
    scored: every frame, or all "but_first_and_last" (the semi-supervised rule of DAVIS).
    threshold: the time, in seconds, at which the score is read off the curve.
    robot: arguments of `harness.rules.robot.correct`.
    engine: who asks and scores: "ours", or "official" for the installed davisinteractive.
    Officially 0 rounds or seconds are no limit, too, and more than 16 or 600 count as so many; here they are refused.
    Raises BadInput for what cannot be played.
    """

    name: str
    metric: Literal["J", "F", "J_AND_F"] = "J_AND_F"
    rounds: int | None = 8
    max_time: float | None = 240
    budget: Literal["method", "official"] = "method"
    interaction: Literal["strokes", "masks"] = "strokes"
    first_frame: int | None = None
    new_frame_after: Sequence[int] | None = None
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
        try:
            inspect.signature(correct).bind(None, None, None, **self.robot)
        except TypeError as error:
            raise BadInput(f"protocol.robot: {error}; wanted arguments of harness.rules.robot.correct") from error
        for name, value in {**vars(self), **{f"robot.{key}": value for key, value in self.robot.items()}}.items():
            if name in WANTED and not WANTED[name][0](value):
                raise BadInput(f"protocol.{name}={value}: wanted {WANTED[name][1]}")
        if self.rounds is None and self.max_time is None:
            raise BadInput("protocol: set rounds or max_time, or a sample never ends")
        if self.scored != "all" and self.last_round > 1:
            raise BadInput("protocol.scored=but_first_and_last: the robot needs every frame scored; set rounds=1")

    @property
    def last_round(self) -> float:
        """Number of the last round, infinite without a limit."""
        return math.inf if self.rounds is None else self.rounds

    def seconds(self, num_objects: int) -> float:
        """Time budget of a sample with `num_objects` objects, infinite without a limit."""
        return math.inf if self.max_time is None else num_objects * self.max_time

    def candidates(self, round: int, frame: int, offered: Sequence[int] | None) -> Sequence[int] | None:
        """The frames the robot may choose from after `round` on `frame`; `offered` is the method's own wish."""
        if self.new_frame_after is None:
            return offered
        return None if round in self.new_frame_after else [frame]
