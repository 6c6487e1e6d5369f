"""Both engines ask for the same rounds, frames and strokes as the official session did, and end at the same moment."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.api import Clip, Interaction, Prediction, Scribbles
from harness.data.scribble_files import read
from harness.rules import referee, session
from harness.rules.clock import Elapsed, WallClock
from harness.rules.protocol import Protocol
from harness.rules.session import Round
from harness.rules.summary import report_columns, summarize
from tests.parity.goldens import recorded

Sample = tuple[Clip, np.ndarray, Scribbles, Protocol]


class Replay:
    """Answers with recorded masks, and notes what it was asked."""

    def __init__(self, masks: dict[str, np.ndarray], candidates: list[list[int] | None]) -> None:
        self.masks, self.candidates = masks, candidates
        self.events: list[dict] = []

    def start(self, clip: Clip) -> None:
        self.round = 0

    def begin(self, sequence: str, scribble_idx: int) -> None:
        self.sample = (sequence, scribble_idx)

    def interact(self, interaction: Interaction) -> Prediction:
        self.round += 1
        sequence, index = self.sample
        everything = interaction.all
        lines = [[t, s.object_id, len(s.path)] for t, strokes in enumerate(everything.frames) for s in strokes]
        self.events.append(
            {
                "sequence": sequence,
                "scribble_idx": index,
                "round": self.round,
                "annotated_frames": everything.annotated_frames,
                "lines": lines,
            }
        )
        offered = self.candidates[(self.round - 1) % len(self.candidates)]
        return Prediction(self.masks[f"{sequence}_{index}_{min(self.round, 6)}"].astype(np.uint8), offered)


class Scripted:
    """Time passes as the recording says: `dt` by round while the method works, `eval_cost` per evaluation."""

    def __init__(self, dt: list[float], eval_cost: float) -> None:
        self.dt, self.eval_cost = dt, eval_cost
        self.round = 0

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        yield Elapsed(self.dt[self.round % len(self.dt)])
        self.round += 1

    @contextmanager
    def evaluation(self) -> Iterator[Elapsed]:
        yield Elapsed(self.eval_cost)


def ours(method: Replay, run: dict, sample: Sample) -> Iterator[Round]:
    return session.play(method, *sample, Scripted(run["dt"], run["eval_cost"]))


def theirs(method: Replay, run: dict, sample: Sample) -> Iterator[Round]:
    """The referee, its clock scripted, too."""
    now = 1.0  # to the package, 0 is no time
    dt = iter(run["dt"][n % len(run["dt"])] for n in count())

    def interact(interaction: Interaction) -> Prediction:
        nonlocal now
        now += next(dt)
        return Replay.interact(method, interaction)

    def correct(robot: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal now
        now += run["eval_cost"]
        return draw(robot, *arguments, **options)

    with referee.revived():
        from davisinteractive.robot import InteractiveScribblesRobot
        from davisinteractive.session import session as official

    draw = InteractiveScribblesRobot.interact
    with (
        patch.object(official, "time", SimpleNamespace(time=lambda: now)),
        patch.object(InteractiveScribblesRobot, "interact", correct),
        patch.object(method, "interact", interact),
    ):
        yield from referee.play(method, *sample, WallClock())


@pytest.mark.parametrize("engine", [ours, theirs])
@pytest.mark.parametrize("path", recorded("evaluation/session/[A-Z]_*.json"))
def test_session_equals_official(path: Path, engine: Callable[..., Iterator[Round]]) -> None:
    golden = json.loads(path.read_text())
    run = golden["run"]
    table = json.loads((path.parent / "meta.json").read_text())
    with np.load(path.parent / "preds.npz") as stored:
        method = Replay({key: stored[key] for key in stored.files}, run.get("candidates") or [None])
    protocol = Protocol(
        "golden",
        metric=run["metric"],
        rounds=run["max_nb_interactions"],
        max_time=run["max_time"],
        budget="official",
    )
    rows: list[dict] = []
    samples = []
    for name, about in table.items():
        pngs = sorted((path.parent / "DAVIS" / "Annotations" / "480p" / name).glob("*.png"))
        truth = np.stack([np.asarray(Image.open(png)) for png in pngs])
        for index in range(1, about["num_scribbles"] + 1):
            samples.append((name, index, about["num_objects"]))
            human = read(path.parent / "DAVIS" / "Scribbles" / name / f"{index:03d}.json", name, len(truth))
            clip = Clip(name, np.zeros((*truth.shape, 3), np.uint8), about["num_objects"])
            method.begin(name, index)
            for r in engine(method, run, (clip, truth, human, protocol)):
                rows += [
                    {
                        "session_id": "",
                        "sequence": name,
                        "scribble_idx": index,
                        "interaction": r.interaction,
                        "object_id": k + 1,
                        "frame": t,
                        "jaccard": r.jaccard[t, k],
                        "contour": r.contour[t, k],
                        "j_and_f": 0.5 * r.jaccard[t, k] + 0.5 * r.contour[t, k],
                        "timing": r.seconds,
                    }
                    for t, k in np.ndindex(r.jaccard.shape)
                ]

    assert method.events == [{key: event[key] for key in method.events[0]} for event in golden["events"]]
    report = pd.DataFrame(rows, columns=report_columns)
    official = pd.read_csv(path.with_name(f"{path.stem}_report.csv"), index_col=0)
    pd.testing.assert_frame_equal(
        report[official.columns], official, check_dtype=False, check_index_type=False, rtol=0, atol=1e-12
    )
    summary = summarize(
        report, samples, max_time=run["max_time"], max_interactions=run["max_nb_interactions"], metric=run["metric"]
    )
    expected = golden["summary"] or golden["expected_summary"]
    assert summary["auc"] == pytest.approx(expected["auc"], abs=1e-12)
    for key, values in expected["curve"].items():
        assert summary["curve"][key] == pytest.approx(values, abs=1e-9 if key == "time" else 1e-12)
