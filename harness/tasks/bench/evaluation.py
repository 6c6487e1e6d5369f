"""Our evaluation beside davisinteractive's."""

import logging
import time
from typing import Any

import numpy as np
import pandas as pd

from harness.api import Clip, Stroke
from harness.data.synthetic import generate, photographs
from harness.rules import referee as official
from harness.rules.metrics import Scorer
from harness.rules.protocol import Protocol
from harness.rules.robot import correct, next_frame
from harness.rules.scribbles import empty
from harness.rules.session import on_frame
from harness.run.progress import bar
from harness.tasks.bench import keep

log = logging.getLogger(__name__)

SIZE = (480, 854)


def evaluation(reports: str, rounds: int, frames: int, objects: list[int]) -> None:
    """Time our round against davisinteractive's, for each count of objects, and keep the table."""
    table = pd.DataFrame([measure(count, frames, rounds) for count in bar(objects, "bench")])
    about = (
        f"One round of evaluation\nJ, F, choice of frame and robot on {frames} frames of {SIZE[1]}x{SIZE[0]}, "
        f"medians of {rounds} rounds, interleaved in one process."
    )
    log.info("written: %s", keep(reports, "evaluation", about, {"seconds of a round": table}, {}))


def measure(num_objects: int, num_frames: int, rounds: int) -> dict[str, float]:
    """Our round against davisinteractive's on the same masks; raises if J, F or the frame differ.

    Each round brings other masks, so that nothing can be remembered from the last one.
    """
    rng = np.random.default_rng(num_objects)
    _, truth = generate(rng, photographs("val"), num_frames, SIZE, num_objects)
    clip = Clip("bench", np.zeros((*truth.shape, 3), np.uint8), num_objects)
    scribbles = on_frame([Stroke(np.array([[0.4, 0.5], [0.6, 0.5]]), 1)], 0, empty(clip.name, num_frames))
    score = Scorer(truth, num_objects)
    used: set[int] = set()
    seconds, quality = [], []

    with official.session(clip, truth, scribbles, Protocol("bench", rounds=16, max_time=None)) as session:
        for _ in range(rounds):
            masks = damage(rng, truth, num_objects)
            start = time.perf_counter()
            jaccard, contour = score(masks)
            frame = next_frame(0.5 * jaccard + 0.5 * contour, used, num_frames, None)
            correct(masks[frame], truth[frame], num_objects)
            ours = time.perf_counter() - start

            session.next()
            session.get_scribbles()
            start = time.perf_counter()
            session.submit_masks(masks)
            seconds.append((ours, time.perf_counter() - start))

            used.add(frame)
            quality.append(jaccard.mean())
            compare(session, jaccard, contour, frame)
    ours, theirs = np.median(seconds, axis=0)
    return {
        "objects": num_objects,
        "mean J": float(np.mean(quality)),
        "ours [s]": ours,
        "official [s]": theirs,
        "ratio": theirs / ours,
    }


def damage(rng: np.random.Generator, truth: np.ndarray, num_objects: int) -> np.ndarray:
    """Masks as a fair method might give them: every frame shifted, with blocks of another label."""
    masks = np.stack([np.roll(labels, rng.integers(-6, 7, 2), (0, 1)) for labels in truth])
    height, width = truth.shape[1:]
    for labels in masks:
        for _ in range(4):
            y, x = rng.integers(height - 40), rng.integers(width - 40)
            labels[y : y + 40, x : x + 40] = rng.integers(num_objects + 1)
    return masks


def compare(session: Any, jaccard: np.ndarray, contour: np.ndarray, frame: int) -> None:
    """Raise AssertionError unless davisinteractive's last round gave the same J, F and frame."""
    report = session.get_report()
    report = report[report["interaction"] == report["interaction"].max()]
    np.testing.assert_array_equal(report["jaccard"].to_numpy(float).reshape(jaccard.shape), jaccard)
    np.testing.assert_array_equal(report["contour"].to_numpy(float).reshape(contour.shape), contour)
    assert session.connector.service.storage.annotated_frames["frame"].iloc[-1] == frame
