"""The installed davisinteractive gives our scores, frames and strokes, whatever it plays."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from harness.api import Clip, Interaction, Method, Prediction, Scribbles, Stroke
from harness.data import davis, synthetic
from harness.data.sequence import VideoSequence
from harness.rules import referee as official
from harness.rules import session
from harness.rules.clock import WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import draw_all, empty
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


def ties() -> tuple[Clip, np.ndarray]:
    """More frames than a short sort takes (16), of which several are equal."""
    clip, truth = disks()
    frames = np.arange(40) % 13
    return Clip("ties", clip.frames[frames], 3), truth[frames]


class Guess:
    """Answers with the truth on some frames, more from round to round, and nothing on the others: all scores tie."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth

    def start(self, clip: Clip) -> None:
        self.round = 0

    def interact(self, interaction: Interaction) -> Prediction:
        self.round += 1
        right = np.random.default_rng(self.round).random(len(self.truth)) < (self.round - 1) / 4
        return Prediction(np.where(right[:, None, None], self.truth, 0).astype(np.uint8))


class Nearest:
    """Gives each pixel of a frame the label of the nearest stroke in the frames annotated so far: what a score is
    depends on every stroke.
    """

    def start(self, clip: Clip) -> None:
        self.size = clip.frames.shape[:3]

    def interact(self, interaction: Interaction) -> Prediction:
        drawn = draw_all(interaction.all, self.size[1:])
        annotated = np.array(interaction.all.annotated_frames)
        labels = {}
        for t in annotated:
            _, where = distance_transform_edt(drawn[t] < 0, return_indices=True)
            labels[t] = drawn[t][tuple(where)]
        nearest = [annotated[abs(annotated - t).argmin()] for t in range(self.size[0])]
        return Prediction(np.stack([labels[t] for t in nearest]).astype(np.uint8))


def both(
    new_method: Callable[[], Method], clip: Clip, truth: np.ndarray, first: Scribbles, protocol: Protocol
) -> tuple[list[Round], list[Round]]:
    """Rounds by our engine and by the package."""
    ours, theirs = (
        list(engine.play(new_method(), clip, truth, first, protocol, WallClock())) for engine in (session, official)
    )
    return ours, theirs


def assert_same(ours: list[Round], theirs: list[Round]) -> None:
    """The same frames, strokes and scores in every round."""
    assert [mine.frame for mine in ours] == [other.frame for other in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        drawn, expected = strokes(mine), strokes(other)
        assert [s.object_id for s in drawn] == [s.object_id for s in expected]
        for a, b in zip(drawn, expected, strict=True):
            np.testing.assert_allclose(a.path, b.path, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(mine.jaccard, other.jaccard)
        np.testing.assert_array_equal(mine.contour, other.contour)


@pytest.mark.parametrize(("material", "method"), [(disks, Damaged), (real, Damaged), (ties, Guess)])
def test_engines_agree(material: Callable[[], tuple[Clip, np.ndarray]], method: type[Damaged | Guess]) -> None:
    clip, truth = material()
    protocol = Protocol("both", rounds=5, max_time=None)
    first = on_frame([Stroke(np.array([[0.3, 0.5], [0.35, 0.52]]), 1)], 2, empty(clip.name, len(truth)))
    ours, theirs = both(partial(method, truth), clip, truth, first, protocol)
    assert len(ours) == 5
    assert_same(ours, theirs)


@pytest.fixture(scope="module")
def embedded() -> list[VideoSequence]:
    return synthetic.load()


@pytest.mark.parametrize("index", range(8))
def test_engines_agree_on_the_embedded_clips(index: int, embedded: list[VideoSequence]) -> None:
    sequence = embedded[index]
    truth = sequence.read_annotations()
    clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
    protocol = Protocol("davis", rounds=8, max_time=None)
    ours, theirs = both(Nearest, clip, truth, sequence.scribbles[1], protocol)
    assert len(ours) == 8
    assert_same(ours, theirs)


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
