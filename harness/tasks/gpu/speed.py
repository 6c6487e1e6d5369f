"""How fast the methods are at paper size, and what fewer bits gain and cost."""

import time
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from harness.rules.clock import WallClock
from harness.rules.metrics import Scorer
from harness.rules.robot import correct, next_frame
from harness.tasks.gpu.job import numbered
from harness.tasks.gpu.part import GIB, Part, Scene, davis_val, peak, scene, session
from harness.tasks.profile import Profiler

ABOUT = (
    "Speed\n"
    "Sessions with random weights on an embedded clip, on the same strokes for all, without evaluation; the "
    "first round has the start of the sample in it, warm-up is outside. Ratio: seconds of float32 over these. "
    "Changed: part of the pixels labelled unlike in float32, after the first and the last round; weights that "
    "were never trained decide close to nothing, so that trained ones change less. Memory is what tensors hold "
    "at most, weights included."
)
SCRIBBLES = 3  # of each sequence of DAVIS val


class Case(NamedTuple):
    """What is played."""

    objects: int
    precision: str
    method: str


class Played(NamedTuple):
    """What came of it. answers: the labels after the first and the last round."""

    seconds: list[float]
    answers: tuple[np.ndarray, np.ndarray]


def play(part: Part) -> None:
    """All methods with the fewest objects in float32 first, then with one thing more, and so on."""
    settings = part.settings
    counts, precisions = settings["objects"], settings["precisions"]
    if part.device == "cpu" and "tf32" in precisions:
        precisions = [precision for precision in precisions if precision != "tf32"]
        part.report.note("tf32", "is of GPUs alone")
    scenes: dict[int, Scene] = {}
    evaluations: dict[int, float] = {}
    played: dict[Case, Played] = {}
    longest = 0.0
    for objects, precision in sorted(
        product(counts, precisions), key=lambda p: counts.index(p[0]) + precisions.index(p[1])
    ):
        if objects not in scenes:
            scenes[objects] = scene(settings["frames"], settings["size"], objects, settings["rounds"])
            evaluations[objects] = evaluation(scenes[objects])
        for method in part.methods:
            part.check(longest)
            began, case = time.monotonic(), Case(objects, precision, method)
            with part.attempt(f"{method}, {precision}, {objects} objects"):
                played[case] = one(part, case, scenes[objects], played.get(Case(objects, precisions[0], method)))
                part.report.table("a leaderboard of DAVIS-2017 val, estimated", hours(played, scenes, evaluations))
            longest = max(longest, time.monotonic() - began)


def one(part: Part, case: Case, scene: Scene, exact: Played | None) -> Played:
    """Play a session and tell of it. exact: the same one in float32, None if this is it."""
    settings = part.settings
    player = part.build(
        case.method, "weights=random", f"size={settings['network']}", f"method.precision={case.precision}"
    )
    with peak(part.device) as memory:
        rounds = list(session(player, scene, settings["rounds"]))
    seconds = [each for each, _ in rounds]
    found = Played(seconds, (rounds[0][1].masks, rounds[-1][1].masks))
    named = {"method": case.method, "objects": case.objects, "precision": case.precision}
    row = {
        **named,
        "session [s]": sum(seconds),
        "frames/s": len(scene.truth) * len(rounds) / sum(seconds),
        "memory [GiB]": memory.bytes / GIB,
    }
    if exact is not None:
        first, last = (
            float((ours != theirs).mean()) for ours, theirs in zip(found.answers, exact.answers, strict=True)
        )
        row |= {"ratio": sum(exact.seconds) / sum(seconds), "changed, first": first, "changed, last": last}
    part.report.line("sessions", row)
    part.report.line("seconds by round", {**named, **numbered(seconds)})
    if exact is None and case.objects == settings["objects"][0]:
        watch = Profiler(WallClock())
        few = settings["profiled"]
        short = Scene(
            type(scene.clip)(scene.clip.name, scene.clip.frames[:few], case.objects), scene.truth[:few], [0, few - 1, 0]
        )
        for _ in session(player, short, 3, watch):
            pass
        scopes = watch.scopes()
        whole = scopes.loc[[scope for scope in scopes.index if "/" not in scope], "seconds"].sum()
        for scope, (took, calls) in scopes.iterrows():
            of_all = {"module": scope, "seconds": took, "calls": int(calls), "of what is in modules": took / whole}
            part.report.line(
                f"modules, three rounds of {few} frames, under a profiler", {"method": case.method, **of_all}
            )
    return found


def evaluation(scene: Scene) -> float:
    """Seconds of a round's J, F, choice of frame and robot, on the CPU."""
    score, last = Scorer(scene.truth, scene.clip.num_objects), 0.0
    for shift in (3, 5):  # the first call compiles
        start = time.perf_counter()
        masks = np.roll(scene.truth, shift, axis=2)
        jaccard, contour = score(masks)
        frame = next_frame(0.5 * jaccard + 0.5 * contour, (), len(masks), None)
        correct(masks[frame], scene.truth[frame], scene.clip.num_objects)
        last = time.perf_counter() - start
    return last


def hours(
    played: Mapping[Case, Played], scenes: Mapping[int, Scene], evaluations: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Hours of 30 sequences × 3 scribbles, by method: as if sessions grew with frames, pixels and objects alone."""
    rows = []
    for method, precision in dict.fromkeys((case.method, case.precision) for case in played):
        mine = {case.objects: sum(each.seconds) for case, each in played.items() if case[1:] == (precision, method)}
        rounds = len(next(each for case, each in played.items() if case[1:] == (precision, method)).seconds)
        evaluated = {objects: rounds * evaluations[objects] for objects in mine}
        told = [estimate(each, scenes) for each in (mine, evaluated)]
        row = {"method": method, "precision": precision, "method [h]": told[0], "evaluation [h]": told[1]}
        rows.append({**row, "measured with objects": ", ".join(map(str, mine))})
    return rows


def estimate(seconds: Mapping[int, float], scenes: Mapping[int, Scene]) -> float:
    """Hours of all sequences, out of the seconds of a session by its number of objects."""
    counts = sorted(seconds)
    each = [seconds[n] / per_frame(scenes[n]) for n in counts]
    slope, offset = np.polyfit(counts, each, 1) if len(counts) > 1 else (each[0] / counts[0], 0.0)
    total = sum(s.frames * s.pixels * max(0.0, offset + slope * s.objects) for s in davis_val())
    return float(SCRIBBLES * total / 3600)


def per_frame(scene: Scene) -> float:
    """Frames of 480×854 that a scene amounts to."""
    return scene.truth.size / (480 * 854)
