"""Intervals and differences: what a table may call better, and what is within the noise."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.report.statistics import SCORES, auc, curves, difference, interval, score
from harness.rules.summary import Played, area, cut, played, summarize
from tests.parity.goldens import FULL

THRESHOLD = 5.0
RULES: list[dict[str, Any]] = [
    {"max_time": 20, "max_interactions": 4},
    {"max_time": 1, "max_interactions": 4},  # ends before the last round does
    {"max_time": None, "max_interactions": 4},
    {"max_time": 20, "max_interactions": None},
]


def report(samples: list[tuple[str, int, int]], random: np.random.Generator) -> pd.DataFrame:
    """Random rows of the official report, three frames each; some samples stop early, one object lacks a round."""
    rows = [
        (sequence, index, interaction, k, frame, *random.random(2), seconds)
        for sequence, index, num_objects in samples
        for interaction, seconds in enumerate(random.uniform(1, 3, random.integers(2, 5)), 1)
        for k in range(1, num_objects + 1)
        for frame in range(3)
        if (sequence, interaction, k) != (samples[0][0], 2, 1)
    ]
    keys = ["sequence", "scribble_idx", "interaction", "object_id", "frame"]
    frame = pd.DataFrame(rows, columns=[*keys, "jaccard", "contour", "timing"])
    return frame.assign(j_and_f=(frame.jaccard + frame.contour) / 2)


SAMPLES = [(name, i, n) for name, n in {"ape": 2, "bee": 1, "cat": 5, "dog": 3}.items() for i in (1, 2)][:-1]


def simulated(values: np.ndarray, scribbles: int = 1) -> Played:
    """One object and one round per sequence, of quality `values`, one second each."""
    samples = [(f"{i:03d}", k, 1) for i in range(len(values)) for k in range(1, scribbles + 1)]
    ones = np.ones(len(samples))
    quality = [np.array([[value]]) for value in np.repeat(values, scribbles)]
    return Played(samples, quality, ones[:, None], ones, None)


def shifted(given: Played, by: float) -> Played:
    return replace(given, quality=[quality + by for quality in given.quality])


@pytest.mark.parametrize("rules", RULES)
def test_a_replicate_is_the_official_summary_of_its_sequences(rules: dict[str, Any]) -> None:
    """Intervals would belong to another score than the one beside them."""
    random = np.random.default_rng(0)
    rows = report(SAMPLES, random)
    given = played(rows, SAMPLES, **rules)
    drawn = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 1, 0, 3]])
    found = curves(given, drawn)
    for i, weights in enumerate(drawn):
        copies: list[pd.DataFrame] = []
        samples: list[tuple[str, int, int]] = []
        for name, times in zip(("ape", "bee", "cat", "dog"), weights, strict=True):
            for copy in range(times):
                copies.append(rows[rows.sequence == name].assign(sequence=f"{name}{copy}"))
                samples += [(f"{name}{copy}", k, n) for sequence, k, n in SAMPLES if sequence == name]
        official = summarize(pd.concat(copies), samples, **rules, threshold=THRESHOLD)
        np.testing.assert_allclose(found.time[i], official["curve"]["time"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.quality[i], official["curve"]["J_AND_F"], rtol=0, atol=1e-12)
        scores = {name: SCORES[name](found, THRESHOLD)[i] for name in SCORES}
        assert scores["auc"] == pytest.approx(official["auc"], abs=1e-12)
        assert scores["at_threshold"] == pytest.approx(official["metric_at_threshold"]["J_AND_F"], abs=1e-12)
        if i == 0:
            assert scores == {name: pytest.approx(score(given, name, THRESHOLD), abs=1e-12) for name in SCORES}


def test_round_aucs_are_those_in_print() -> None:
    """A published curve (Yin et al., CVPR 2021, ATNet on DAVIS, "ours") gives the AUC published with it."""
    curve = [0.690892604553103, 0.7638078429337453, 0.792304136375052, 0.8042461826227446]
    curve += [0.8140569634002116, 0.8212922574816851, 0.8264190671526769, 0.8301320330511072]
    quality = [np.array(curve)[:, None]] * 2
    given = replace(simulated(np.zeros(2)), quality=quality, seconds=np.ones((2, 8)))
    assert score(given, "round_auc", THRESHOLD) == pytest.approx(0.7410106338805965, abs=1e-12)
    held = (8 * 0.7410106338805965 + curve[-1]) / 9
    assert score(given, "round_auc_held", THRESHOLD) == pytest.approx(held, abs=1e-12)


def test_an_interval_covers_the_truth_and_narrows_with_the_root_of_the_sequences() -> None:
    """95 % would be a word."""
    random = np.random.default_rng(0)
    hits, widths = 0, {25: 0.0, 100: 0.0}
    for _ in range(200):
        for n in widths:
            low, high = interval(simulated(random.beta(4, 2, n)), "final", THRESHOLD, replicates=400)
            widths[n] += high - low
            hits += low <= 4 / 6 <= high
    assert 0.88 < hits / 400 < 0.99
    assert widths[25] / widths[100] == pytest.approx(2, rel=0.1)


def test_more_scribbles_of_a_clip_are_no_more_clips() -> None:
    """Three scribbles of one clip, taken for three samples, would make every interval too narrow."""
    values = np.random.default_rng(0).random(20)
    once, thrice = (interval(simulated(values, scribbles), "final", THRESHOLD) for scribbles in (1, 3))
    assert thrice == pytest.approx(once, abs=1e-12)


@pytest.mark.parametrize("name", [*SCORES, "round 2"])
def test_a_method_is_not_better_than_itself(name: str) -> None:
    given = played(report(SAMPLES, np.random.default_rng(0)), SAMPLES, max_time=20, max_interactions=4)
    found = difference(given, given, name, THRESHOLD)
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, len(SAMPLES))
    assert found.noise


def test_what_is_better_everywhere_is_no_noise_however_much_the_clips_differ() -> None:
    """The clips' own spread, larger than any method's lead, must cancel; samples of one method alone do not count."""
    given = played(report(SAMPLES, np.random.default_rng(0)), SAMPLES, max_time=20, max_interactions=4)
    better = shifted(given, 0.1)
    found = difference(better, given, "final", THRESHOLD)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)
    assert not found.noise
    assert not difference(given, better, "final", THRESHOLD).noise
    fewer = played(report(SAMPLES, np.random.default_rng(0)), SAMPLES[2:], max_time=20, max_interactions=4)
    for found in (difference(better, fewer, "final", THRESHOLD), difference(fewer, better, "final", THRESHOLD)):
        assert abs(found.value) == pytest.approx(0.1, abs=1e-12)
        assert found.n == len(SAMPLES) - 2
    assert score(better, "final", THRESHOLD) - score(fewer, "final", THRESHOLD) != pytest.approx(0.1, abs=1e-3)


def test_one_clip_tells_nothing_of_others() -> None:
    """Two scribbles of one clip have no interval, and no difference on them is sure."""
    given = played(report(SAMPLES[:2], np.random.default_rng(0)), SAMPLES[:2], max_time=20, max_interactions=4)
    assert np.isnan(interval(given, "auc", THRESHOLD)).all()
    assert not difference(shifted(given, 0.1), given, "auc", THRESHOLD).noise
    assert difference(given, simulated(np.ones(3)), "auc", THRESHOLD).n == 0


def test_semi_supervised_scores_have_intervals() -> None:
    given = simulated(np.array([0.5, 0.7, 0.9]))
    assert score(given, "final", THRESHOLD) == score(given, "round 1", THRESHOLD) == pytest.approx(0.7)
    assert interval(given, "final", THRESHOLD) == interval(given, "round 1", THRESHOLD) == pytest.approx((0.5, 0.9))
    assert np.isnan(score(given, "round 2", THRESHOLD))


def test_time_to_90_is_read_off_the_curve() -> None:
    """The first time counts, though the curve sinks again; what never scores never gets there."""
    given = simulated(np.zeros(2))
    rounds = np.array([[0.4], [1.0], [0.2], [0.5]])
    given = replace(given, quality=[rounds, rounds], seconds=np.full((2, 4), 10.0))
    assert score(given, "time_to_90", THRESHOLD) == pytest.approx(10 + 10 * (0.45 - 0.4) / 0.6)
    assert np.isnan(score(shifted(simulated(np.ones(2)), -1), "time_to_90", THRESHOLD))


def test_an_end_of_ones_own_is_the_official_one_where_they_agree() -> None:
    given = played(report(SAMPLES, np.random.default_rng(0)), SAMPLES, max_time=20, max_interactions=4)
    end = 20 * (2 + 1 + 5 + 3) / 4
    assert auc(given, end) == pytest.approx(score(given, "auc", THRESHOLD), abs=1e-12)
    assert auc(given, 2 * end) > auc(given, end) > auc(given, 1)


def test_the_end_moves_the_auc_of_atnet() -> None:
    """The same curve is .815 at the official end, .778 at 120 s: an AUC without its end is no number."""
    path = FULL.parent / "published" / "atnet" / "summary_j_and_f.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    points = json.loads(path.read_text())["curve"]
    time, quality = np.array(points["time"]), np.array(points["J_AND_F"])
    assert area(time, quality) == pytest.approx(0.815, abs=5e-4)
    assert area(*cut(time, quality, 488)) == pytest.approx(area(time, quality), abs=1e-12)
    assert area(*cut(time, quality, 120)) == pytest.approx(0.778, abs=5e-4)
