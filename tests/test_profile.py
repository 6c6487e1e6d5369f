"""The profile says where a method's time goes, and counts what it says it counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.profiler import record_function

from harness.api import BadInput, Clip, Interaction, Method, Prediction
from harness.rules.clock import WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.tasks.profile import milliseconds, profile

WEIGHTS = "methods/weights/mivos.safetensors"
MASKS = Protocol("masks", rounds=3, interaction="masks", first_frame=0)


class Toy(Method):
    """Enters "part" once per frame, and "inner" inside and outside of it."""

    takes_masks = True

    @record_function("warm")
    def warm_up(self, clip: Clip) -> None:
        self.compute()

    @record_function("begin")
    def start(self, clip: Clip) -> None:
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)

    def interact(self, interaction: Interaction) -> Prediction:
        self.compute()
        for _ in self.masks:
            with record_function("part"):
                self.compute()
        return Prediction(self.masks.copy())

    @record_function("inner")
    def compute(self) -> None:
        torch.ones(8).sum()


def test_scopes_are_told_apart_by_their_path_and_counted() -> None:
    """Milliseconds per frame are a quotient: a warm-up or a nested scope among the calls would falsify it."""
    clip = Clip("toy", np.zeros((4, 8, 8, 3), np.uint8), 2)
    truth = np.ones((4, 8, 8), np.uint8)
    scopes = profile(Toy(), clip, truth, empty("toy", 4), MASKS, WallClock())
    assert scopes["calls"].to_dict() == {"begin": 1, "inner": 3, "part": 12, "part/inner": 12}
    assert (scopes["objects"] == 2).all()
    assert (scopes["seconds"] > 0).all()
    assert scopes["seconds"]["part/inner"] < scopes["seconds"]["part"]


@pytest.fixture
def choices() -> tuple[DictConfig, DictConfig, DictConfig]:
    """MiVOS, one small clip, three rounds."""
    method = {"name": "mivos", "_target_": "methods.mivos.method.MiVOS", "schedule": "every_round"}
    clips = {
        "name": "synthetic",
        "_target_": "harness.data.synthetic.load",
        "split": "val",
        "clips": 1,
        "frames": 8,
    }
    rules = {"name": "three", "_target_": "harness.rules.protocol.Protocol", "rounds": 3}
    return (
        OmegaConf.create(method | {"size": "tiny", "weights": WEIGHTS, "device": "cpu"}),
        OmegaConf.create(clips | {"size": [64, 96], "max_objects": 1, "seed": 0}),
        OmegaConf.create(rules),
    )


def test_the_modules_of_mivos_are_timed_in_one_run(
    choices: tuple[DictConfig, DictConfig, DictConfig], tmp_path: Path
) -> None:
    """Table 3 has a row for each of them, of one run that is kept: rendered again they are the same."""
    costs = [milliseconds(*choices, module, str(tmp_path)) for module in ("s2m", "propagation", "fusion")]
    assert min(costs) > 0
    assert [milliseconds(*choices, module, str(tmp_path)) for module in ("s2m", "propagation", "fusion")] == costs
    assert len(list(tmp_path.glob("profiles/*"))) == 1


def test_a_module_that_was_not_entered_is_refused(
    choices: tuple[DictConfig, DictConfig, DictConfig], tmp_path: Path
) -> None:
    """A misspelt row must not read as free of cost."""
    with pytest.raises(BadInput, match=r"module=s3m: mivos did not enter it .* choose one of s2m, "):
        milliseconds(*choices, "s3m", str(tmp_path))
