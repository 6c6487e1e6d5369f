"""`harness.evaluate`: the same scores from Python as from the command line."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import harness
from harness.api import BadInput, Clip, Interaction, Prediction
from harness.data.synthetic import load
from harness.rules.clock import ModelledClock
from harness.rules.protocol import Protocol
from harness.tasks import evaluate as module
from methods.grabcut.method import GrabCut

ROOT = Path(__file__).parents[1]
CLIPS = load(clips=2, frames=6, size=(48, 80))
COSTS = {"grabcut": {"round": 1.0, "frame": 0.1, "object": 0.1}}


class Blank:
    """Paints nothing, and leaves half-way where there are two objects."""

    def start(self, clip: Clip) -> None:
        self.clip, self.round = clip, 0

    def interact(self, interaction: Interaction) -> Prediction:
        self.round += 1
        if self.clip.num_objects == 2 and self.round == 2:
            raise RuntimeError("two are too many")
        return Prediction(np.zeros(self.clip.frames.shape[:3], np.uint8))


def test_python_scores_as_the_command_line_does(tmp_path: Path) -> None:
    """Else a curve in a notebook is another benchmark's."""
    from tests.test_main_job import run

    done = run(
        tmp_path, "dataset.clips=2", "dataset.frames=6", "dataset.size=[48,80]", "method=grabcut", "clock=modelled"
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "reports").glob("*/table.csv")
    theirs = pd.read_csv(file).iloc[0]
    ours = harness.evaluate({"grabcut": GrabCut}, CLIPS).table.iloc[0]
    assert ours["round AUC"] == pytest.approx(theirs["round AUC"], abs=1e-12)
    assert [ours[f"J&F {i}"] for i in range(1, 9)] == pytest.approx(
        [theirs[f"J&F {i}"] for i in range(1, 9)], abs=1e-12
    )


def test_methods_that_fail_are_counted_beside_those_that_do_not(tmp_path: Path) -> None:
    """Scores of half the samples must not look like scores."""
    protocol = Protocol("short", rounds=2)
    results = harness.evaluate({"grabcut": GrabCut, "blank": Blank}, CLIPS, protocol, ModelledClock("grabcut", COSTS))
    table = results.table.set_index("method")
    assert table["failed"].to_dict() == {"grabcut": 0, "blank": 1}
    assert table["rank"].to_dict() == {"grabcut": "1", "blank": "-"}
    assert set(results.rounds["method"]) == {"grabcut", "blank"}
    assert [path.suffix for path in results.curves(tmp_path)] == [".png", ".svg", ".pdf"]


def test_who_takes_no_masks_is_told() -> None:
    with pytest.raises(BadInput, match="method=blank takes no masks, which protocol=p gives"):
        harness.evaluate({"blank": Blank}, CLIPS, Protocol("p", rounds=1, interaction="masks", first_frame=0))


def test_the_example_is_true() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted


def test_the_notebook_runs(tmp_path: Path) -> None:
    """The first thing people copy must run as it stands: from an own method to its curve."""
    cells = json.loads((ROOT / "examples" / "own_method.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    said = "print(results.table[['method', 'samples']].to_string(index=False))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{said}"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    png, _, *rows = done.stdout.splitlines()
    assert Path(png).stat().st_size > 10_000
    assert sorted(" ".join(row.split()) for row in rows) == ["grabcut 2 of 2", "nearest 2 of 2"]
