"""What a protocol promises a method, and what a method must answer."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from harness.api import VOID, BadInput, Clip, Interaction, Prediction, Stroke
from harness.rules.clock import ModelledClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty, fuse, to_json
from harness.rules.session import InvalidPrediction, Round, first_frame, on_frame, play

FRAMES, HEIGHT, WIDTH = 9, 40, 60


class Recorder:
    """Notes what it is asked; answers with nothing, or with what it was given."""

    def __init__(self, answer: Prediction | None = None) -> None:
        self.asked: list[Interaction] = []
        self.answer = answer

    def start(self, clip: Clip) -> None:
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)

    def interact(self, interaction: Interaction) -> Prediction:
        self.asked.append(interaction)
        return self.answer or Prediction(self.masks)


SCRIBBLES = on_frame([Stroke(np.array([[0.2, 0.3], [0.4, 0.3]]), 1)], 4, empty("clip", FRAMES))


def rounds(method: Recorder, protocol: Protocol, cost: float = 1.0) -> list[Round]:
    truth = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for t, labels in enumerate(truth):
        labels[5 : 20 + t, 5 : 30 + t] = 1
        labels[:3] = VOID
    clip = Clip("clip", np.zeros((*truth.shape, 3), np.uint8), 1)
    clock = ModelledClock("recorder", {"recorder": {"round": cost, "frame": 0, "object": 0}})
    return list(play(method, clip, truth, SCRIBBLES, protocol, clock))


def test_strokes_pile_up_and_new_ones_lie_on_the_annotated_frame() -> None:
    method = Recorder()
    rounds(method, Protocol("p", rounds=3))
    for earlier, later in zip(method.asked, method.asked[1:], strict=False):
        assert later.new.annotated_frames == [later.frame]
        assert to_json(later.all) == to_json(fuse(earlier.all, later.new))


def test_three_frames_stays_for_three_rounds() -> None:
    method = Recorder()
    rounds(method, Protocol("p", new_frame_after=[3, 6]))
    frames = [interaction.frame for interaction in method.asked]
    assert frames[:3] == [4] * 3
    assert len(set(frames[3:6])) == len(set(frames[6:])) == 1
    assert len({frames[0], frames[3], frames[6]}) == 3


def test_masks_as_interactions_hold_no_void() -> None:
    method = Recorder()
    (only,) = rounds(method, Protocol("p", interaction="masks", first_frame=0, rounds=1))
    mask = method.asked[0].mask
    assert mask is not None
    assert set(np.unique(mask)) == {0, 1}
    assert only.frame == 0


def test_semi_supervised_leaves_first_and_last_frame_unscored() -> None:
    (only,) = rounds(Recorder(), Protocol("p", rounds=1, scored="but_first_and_last"))
    assert np.isnan(only.jaccard[:, 0]).tolist() == [True, *[False] * (FRAMES - 2), True]


def test_an_answer_after_the_deadline_counts_as_none() -> None:
    assert [r.interaction for r in rounds(Recorder(), Protocol("p", max_time=2.5), cost=1)] == [1, 2]
    assert rounds(Recorder(), Protocol("p", max_time=0.5), cost=1) == []


@pytest.mark.parametrize(
    ("shape", "dtype", "value", "candidates", "told"),
    [
        ((FRAMES, HEIGHT, WIDTH), np.int64, 0, None, "dtype"),
        ((FRAMES, HEIGHT, WIDTH), np.float32, np.nan, None, "NaN"),
        ((FRAMES - 1, HEIGHT, WIDTH), np.uint8, 0, None, "shape"),
        ((FRAMES, HEIGHT, WIDTH), np.uint8, 7, None, "label 7"),
        ((FRAMES, HEIGHT, WIDTH), np.uint8, 0, [FRAMES], f"frame {FRAMES}"),
    ],
)
def test_no_answer_of_another_kind_is_scored(
    shape: tuple[int, ...], dtype: type, value: float, candidates: Sequence[int] | None, told: str
) -> None:
    with pytest.raises(InvalidPrediction, match=told):
        rounds(Recorder(Prediction(np.full(shape, value, dtype), candidates)), Protocol("p"))


class Vandal(Recorder):
    """Writes into what it is asked, with force, and paints every answer into the one buffer it has."""

    def start(self, clip: Clip) -> None:
        self.buffer = np.zeros(clip.frames.shape[:3], np.uint8)

    def interact(self, interaction: Interaction) -> Prediction:
        self.asked.append(interaction)
        for stroke in interaction.all.frames[interaction.frame]:
            with pytest.raises(ValueError, match="read-only"):
                stroke.path[:] = 0
            stroke.path.flags.writeable = True
            stroke.path[:] = 0
        self.buffer[:] = len(self.asked) % 2
        return Prediction(self.buffer)


def test_what_a_method_does_to_its_strokes_and_masks_stays_with_it() -> None:
    """Else a method that scales strokes in place changes its record, its next rounds and the scores of all after it."""
    before = to_json(SCRIBBLES)
    vandal = Vandal()
    played = rounds(vandal, Protocol("p", rounds=3))
    assert to_json(SCRIBBLES) == before
    assert [masks.max() for masks in (r.masks for r in played)] == [1, 0, 1]
    drawn = [np.concatenate([s.path for s in r.new.frames[r.frame]]) for r in played]
    assert all(path.any() for path in drawn)
    assert sum(len(strokes) for strokes in vandal.asked[-1].all.frames) == sum(
        len(r.new.frames[r.frame]) for r in played
    )


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("rounds", 2.5, "a whole number from 1 to 16, or null"),
        ("rounds", 17, "a whole number from 1 to 16, or null"),
        ("rounds", 0, "a whole number from 1 to 16, or null"),
        ("rounds", True, "a whole number from 1 to 16, or null"),
        ("max_time", float("nan"), "seconds above 0"),
        ("max_time", -1, "seconds above 0"),
        ("max_time", 601, "at most 600"),
        ("threshold", float("nan"), "seconds above 0"),
        ("threshold", -5, "seconds above 0"),
        ("threshold", None, "seconds above 0"),
        ("first_frame", 1.5, "a frame from 0"),
        ("new_frame_after", [0], "rounds from 1"),
        ("new_frame_after", "3", "rounds from 1"),
        ("robot.nb_points", -3, "1 to 1000"),
        ("robot.min_nb_nodes", -1, "at least 0"),
        ("robot.max_kernel_radius", float("nan"), "at least 0"),
        ("robot.kernel_size", 2, "0 <= kernel_size < 1"),
    ],
)
def test_a_protocol_that_means_nothing_is_refused(key: str, value: Any, remedy: str) -> None:
    """Else it is played by rules that nobody asked for, and kept under the ones that were."""
    name, _, part = key.partition(".")
    given: dict[str, Any] = {name: {part: value} if part else value}
    with pytest.raises(BadInput, match=f"{re.escape(f'protocol.{key}={value}: wanted ')}.*{re.escape(remedy)}"):
        Protocol("p", **given)


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "much"])
def test_costs_that_are_none_are_refused(cost: Any) -> None:
    with pytest.raises(BadInput, match=re.escape(f"clock.costs.mine.frame={cost}: wanted seconds")):
        ModelledClock("mine", {"mine": {"round": 0, "frame": cost, "object": 0}})
    with pytest.raises(BadInput, match=re.escape("clock.costs.mine={'round': 1}: wanted seconds for round, frame")):
        ModelledClock("mine", {"mine": {"round": 1}})
    with pytest.raises(BadInput, match="no costs for method mine"):
        ModelledClock("mine", {})


def test_nobody_is_asked_about_a_frame_without_strokes() -> None:
    """Else the first round shows an empty frame and the score is that of a method that had no hint."""
    for frame in (3, FRAMES):
        with pytest.raises(BadInput, match=f"protocol.first_frame={frame}: "):
            rounds(Recorder(), Protocol("p", first_frame=frame))
    assert rounds(Recorder(), Protocol("p", first_frame=4, rounds=1))[0].frame == 4
    with pytest.raises(BadInput, match="no scribbles"):
        first_frame(empty("clip", FRAMES), Protocol("p", first_frame=3))


def test_a_sample_that_never_ends_is_refused() -> None:
    with pytest.raises(BadInput, match="never ends"):
        Protocol("p", max_time=None, rounds=None)
