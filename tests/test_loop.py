"""What a protocol promises a method, and what a method must answer."""

from collections.abc import Sequence

import numpy as np
import pytest

from harness.api import VOID, BadInput, Clip, Interaction, Prediction, Stroke
from harness.rules.clock import ModelledClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import InvalidPrediction, Round, on_frame, play

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


def rounds(method: Recorder, protocol: Protocol, cost: float = 1.0) -> list[Round]:
    truth = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for t, labels in enumerate(truth):
        labels[5 : 20 + t, 5 : 30 + t] = 1
        labels[:3] = VOID
    clip = Clip("clip", np.zeros((*truth.shape, 3), np.uint8), 1)
    scribbles = on_frame([Stroke(np.array([[0.2, 0.3], [0.4, 0.3]]), 1)], 4, empty("clip", FRAMES))
    clock = ModelledClock("recorder", {"recorder": {"round": cost, "frame": 0, "object": 0}})
    return list(play(method, clip, truth, scribbles, protocol, clock))


def test_strokes_pile_up_and_new_ones_lie_on_the_annotated_frame() -> None:
    method = Recorder()
    rounds(method, Protocol("p", rounds=3))
    for earlier, later in zip(method.asked, method.asked[1:], strict=False):
        assert later.new.annotated_frames == [later.frame]
        for t in range(FRAMES):
            assert later.all.frames[t] == earlier.all.frames[t] + later.new.frames[t]


def test_three_frames_stays_for_three_rounds() -> None:
    method = Recorder()
    rounds(method, Protocol("p", keeps_frame_until=[3, 6]))
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


def test_endless_protocols_and_unknown_costs_are_refused() -> None:
    with pytest.raises(BadInput, match="never ends"):
        Protocol("p", max_time=None, rounds=None)
    with pytest.raises(BadInput, match="rounds=0: wanted a number of at least 1"):
        Protocol("p", rounds=0)
    with pytest.raises(BadInput, match="no costs for method mine"):
        ModelledClock("mine", {})
