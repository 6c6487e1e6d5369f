"""The installed davisinteractive, playing the same masks, gives our scores, frames and strokes."""

import numpy as np
import pytest

from harness.api import Clip, Interaction, Prediction, Stroke
from harness.data import davis
from harness.rules import referee as official
from harness.rules import session
from harness.rules.clock import WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import Round, on_frame
from harness.rules.summary import summarize
from tests.parity.goldens import ROOT

REAL = ROOT.parent / "shared" / "davis"


class Damaged:
    """Answers with the truth, each frame shifted by an amount of its own, less from round to round."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth

    def start(self, clip: Clip) -> None:
        self.round = 0

    def interact(self, interaction: Interaction) -> Prediction:
        self.round += 1
        rng = np.random.default_rng(self.round)
        shifts = rng.permutation(len(self.truth)) // self.round + rng.integers(1, 3, len(self.truth))
        return Prediction(np.stack([np.roll(m, (s, s // 2), (0, 1)) for m, s in zip(self.truth, shifts, strict=True)]))


def disks() -> tuple[Clip, np.ndarray]:
    """Three wobbling, touching objects."""
    y, x = np.mgrid[:120, :200]
    truth = np.zeros((18, 120, 200), np.uint8)
    for t, labels in enumerate(truth):
        for k in range(3):
            angle = np.arctan2(y - 60, x - 50 - 50 * k)
            radius = 26 + 5 * np.sin((k + 3) * angle + 0.4 * t) + k + 0.37 * t
            labels[np.hypot(y - 60, x - 50 - 50 * k - t) < radius] = k + 1
    return Clip("disks", np.zeros((*truth.shape, 3), np.uint8), 3), truth


def real() -> tuple[Clip, np.ndarray]:
    """The first frames of a DAVIS clip."""
    if not REAL.is_dir():
        pytest.skip(f"no DAVIS clips in {REAL}")
    (sequence,) = davis.load(str(REAL), sequences=["car-shadow"])
    truth = sequence.read_annotations()
    return Clip(sequence.name, np.zeros((*truth.shape, 3), np.uint8), sequence.num_objects), truth


@pytest.mark.parametrize("material", [disks, real])
def test_engines_agree(material) -> None:  # type: ignore[no-untyped-def]
    clip, truth = material()
    protocol = Protocol("both", rounds=5, max_time=None)
    first = on_frame([Stroke(np.array([[0.3, 0.5], [0.35, 0.52]]), 1)], 2, empty(clip.name, len(truth)))
    ours, theirs = (
        list(engine.play(Damaged(truth), clip, truth, first, protocol, WallClock())) for engine in (session, official)
    )
    assert len(ours) == len(theirs) == 5
    lines = equal = 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.frame == other.frame
        np.testing.assert_array_equal(mine.jaccard, other.jaccard)
        np.testing.assert_array_equal(mine.contour, other.contour)
        drawn, expected = strokes(mine), strokes(other)
        lines += len(expected)
        equal += sum(any(same(a, b) for b in drawn) for a in expected)
    print(f"{equal} of {lines} lines equal")
    # today's libraries order neighbours otherwise, which may pick another of several longest paths
    assert equal >= 0.9 * lines


def test_summaries_agree() -> None:
    clip, truth = disks()
    method = Damaged(truth)
    method.start(clip)
    first = on_frame([Stroke(np.array([[0.3, 0.5], [0.35, 0.52]]), 1)], 2, empty(clip.name, len(truth)))
    protocol = Protocol("both", metric="F", rounds=4, max_time=20)
    with official.session(clip, truth, first, protocol) as played:
        while played.next():
            played.get_scribbles()
            played.submit_masks(method.interact(Interaction(2, first, first)).masks)
        report, expected = played.get_report().infer_objects(), played.get_global_summary()
    ours = summarize(report, [(clip.name, 1, 3)], max_time=20, max_interactions=4, metric="F")
    assert ours["auc"] == pytest.approx(expected["auc"], abs=1e-12)
    assert ours["curve"]["F"] == pytest.approx(expected["curve"]["F"], abs=1e-12)
    assert ours["curve"]["time"] == pytest.approx(expected["curve"]["time"], abs=1e-12)
    assert ours["metric_at_threshold"]["F"] == pytest.approx(expected["metric_at_threshold"]["F"], abs=1e-12)


def strokes(round: Round) -> tuple[Stroke, ...]:
    return round.new.frames[round.frame]


def same(a: Stroke, b: Stroke) -> bool:
    return a.object_id == b.object_id and a.path.shape == b.path.shape and bool(np.abs(a.path - b.path).max() < 1e-6)
