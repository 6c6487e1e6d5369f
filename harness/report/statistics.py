"""How sure a score is: bootstrap intervals over sequences, and paired differences between methods.

A replicate draws as many sequences as there are, with replacement, each with all of its scribbles (Davison and Hinkley,
Bootstrap Methods and Their Application, 1997, Sec. 3.8), and is scored by the official rules in `rules.summary`.
An interval knows only the clips it has seen: of 30 sequences, 95 % are 95 %; of 8, nearer 88 %; of 4, nearer 81 %
(means of skewed simulated scores).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from harness.rules.summary import Played, area, cut


@dataclass(frozen=True)
class Curves:
    """Official curves: of one resample of the sequences or, along leading axes, of many.

    time, quality: float64 ...×(rounds + 2): (0, 0), a point for each round, the end.
    """

    time: np.ndarray
    quality: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A score of one entry minus another's, with its interval, on the `n` samples that both have."""

    value: float
    low: float
    high: float
    n: int

    @property
    def noise(self) -> bool:
        """Whether there may be no difference at all; not so where there is no interval that could tell."""
        return self.low <= 0 <= self.high


def curves(played: Played, weights: np.ndarray) -> Curves:
    """The official curve, with each sequence as often as its weight says.

    weights: number ...×sequences, these in the order of the samples. Rounds are as many as the whole entry has.
    """
    objects = {sequence: num_objects for sequence, _, num_objects in played.samples}
    order = {sequence: i for i, sequence in enumerate(objects)}
    weight = weights[..., [order[sequence] for sequence, *_ in played.samples]]
    sums = np.array([quality.sum(axis=1) for quality in played.quality])
    counts = np.array([num_objects for *_, num_objects in played.samples])
    quality = (weight @ sums) / (weight @ counts)[..., None]
    time = np.cumsum(weight @ played.seconds / weight.sum(axis=-1, keepdims=True), axis=-1)
    if played.max_time:
        end = played.max_time * (weights @ np.array(list(objects.values()))) / weights.sum(axis=-1)
    else:
        end = quality.shape[-1] * np.fmax.reduce(np.where(weight > 0, played.slowest, np.nan), axis=-1)
    zero, end = np.zeros((*weight.shape[:-1], 1)), np.asarray(end)[..., None]
    return Curves(
        np.concatenate([zero, time, end], axis=-1),
        np.concatenate([zero, quality, quality[..., -1:]], axis=-1),
    )


def at_threshold(curves: Curves, threshold: float) -> np.ndarray:
    """Quality at `threshold` seconds, linear between points."""
    points = curves.time.shape[-1]
    pairs = zip(curves.time.reshape(-1, points), curves.quality.reshape(-1, points), strict=True)
    return np.reshape([np.interp(threshold, time, quality) for time, quality in pairs], curves.quality.shape[:-1])


def time_to_90(curves: Curves) -> np.ndarray:
    """Seconds until quality first is 90 % of the final one, linear between points from (0, 0); NaN if that is 0."""
    time, quality = curves.time[..., :-1], curves.quality[..., :-1]
    target = 0.9 * quality[..., -1:]
    after = np.argmax(quality >= target, axis=-1, keepdims=True)
    before = np.maximum(after - 1, 0)
    (t0, t1), (q0, q1) = ([np.take_along_axis(v, i, axis=-1) for i in (before, after)] for v in (time, quality))
    part = np.divide(target - q0, q1 - q0, out=np.full_like(target, np.nan), where=target > 0)
    return (t0 + part * (t1 - t0))[..., 0]


def round_auc(curves: Curves) -> np.ndarray:
    """Area over rounds 0..R, from (0, 0), by R: the AUC of Yin et al. (CVPR 2021); blind to time."""
    return np.trapezoid(curves.quality[..., :-1]) / (curves.quality.shape[-1] - 2)


def round_auc_held(curves: Curves) -> np.ndarray:
    """Area over rounds 0..R + 1, the last value held, by R + 1: R-AUC of Vujasinović et al. (ICIP 2022)."""
    return np.trapezoid(curves.quality) / (curves.quality.shape[-1] - 1)


SCORES: dict[str, Callable[[Curves, float], np.ndarray]] = {
    "auc": lambda curves, _: area(curves.time, curves.quality),
    "at_threshold": at_threshold,
    "round_auc": lambda curves, _: round_auc(curves),
    "round_auc_held": lambda curves, _: round_auc_held(curves),
    "final": lambda curves, _: curves.quality[..., -1],
    "time_to_90": lambda curves, _: time_to_90(curves),
}


def value(curves: Curves, name: str, threshold: float) -> np.ndarray:
    """A score of each curve: one of SCORES, or "round i"; NaN for a round beyond the last."""
    if name not in SCORES:
        number = int(name.removeprefix("round "))
        last = curves.quality.shape[-1] - 2
        return curves.quality[..., number] if 1 <= number <= last else np.full(curves.quality.shape[:-1], np.nan)
    return SCORES[name](curves, threshold)


def score(played: Played, name: str, threshold: float) -> float:
    """A score of an entry, as `harness.rules.summary.summarize` has it.

    name: one of SCORES, or "round i". "auc" is over time, up to the official end T: 488 s on DAVIS 2017 val.
    threshold: seconds, for "at_threshold".
    """
    return float(value(once(played), name, threshold))


def auc(played: Played, until: float) -> float:
    """Time AUC up to another end than the official one, in seconds."""
    curve = once(played)
    return float(area(*cut(curve.time, curve.quality, until)))


def interval(
    played: Played, name: str, threshold: float, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a score; NaN, NaN for fewer than two sequences."""
    return spread(lambda weights: value(curves(played, weights), name, threshold), played, level, replicates, seed)


def difference(
    a: Played, b: Played, name: str, threshold: float, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> Difference:
    """A score of `a` minus that of `b` on the samples both have; a replicate draws the same sequences for both.

    All NaN if they share none, the interval if they share fewer than two sequences.
    """
    shared = sorted(set(a.samples) & set(b.samples))
    if not shared:
        return Difference(np.nan, np.nan, np.nan, 0)
    a, b = only(a, shared), only(b, shared)
    low, high = spread(
        lambda weights: value(curves(a, weights), name, threshold) - value(curves(b, weights), name, threshold),
        a,
        level,
        replicates,
        seed,
    )
    return Difference(score(a, name, threshold) - score(b, name, threshold), low, high, len(shared))


def spread(
    statistic: Callable[[np.ndarray], np.ndarray], played: Played, level: float, replicates: int, seed: int
) -> tuple[float, float]:
    """Percentile interval (Efron and Tibshirani, 1993, Ch. 13) of a statistic of the weights of sequences.

    Not BCa: it is undefined where replicates agree, as those of equal methods do. Not scipy.stats: numpy draws weights
    at once, and a cached run need not wait for the import.
    """
    sequences = len({sequence for sequence, *_ in played.samples})
    if sequences < 2:
        return np.nan, np.nan
    weights = np.random.default_rng(seed).multinomial(sequences, np.full(sequences, 1 / sequences), replicates)
    low, high = np.quantile(statistic(weights), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def once(played: Played) -> Curves:
    """The curve of the samples as they are."""
    return curves(played, np.ones(len({sequence for sequence, *_ in played.samples})))


def only(played: Played, samples: list[tuple[str, int, int]]) -> Played:
    """What some of the samples came to, in the order given."""
    kept = [played.samples.index(sample) for sample in samples]
    quality = [played.quality[i] for i in kept]
    return replace(
        played,
        samples=samples,
        quality=quality,
        seconds=played.seconds[kept],
        slowest=played.slowest[kept],
    )
