"""A bench says who was faster only if both did the same work."""

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Interaction, Method, Prediction
from harness.tasks.bench.long_video import Long, one
from harness.tasks.bench.methods import Scene, race, summary, tables

HERE = __name__
SCENE = Scene(frames=6, size=(48, 64), objects=2, rounds=3)


class Square(Method):
    """Answers a square, `pixels` of another label on the last frame, and falls over in round `falls`."""

    def __init__(self, pixels: int = 0, falls: int | None = None) -> None:
        self.pixels, self.falls = pixels, falls

    def start(self, clip: Clip) -> None:
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)
        self.masks[:, 10:30, 10:30] = 1
        self.round = 0

    def interact(self, interaction: Interaction) -> Prediction:
        self.round += 1
        if self.round == self.falls:
            raise ArithmeticError("fell over")
        self.masks[-1].flat[: self.pixels] = 2
        return Prediction(self.masks.copy())


class Hoarder(Square):
    """Keeps 100 MB more in every round."""

    def interact(self, interaction: Interaction) -> Prediction:
        self.kept = [*getattr(self, "kept", ()), np.ones(100 * 2**20, np.uint8)]
        return super().interact(interaction)


def side(name: str, kind: str = "Square", **arguments: int) -> DictConfig:
    return OmegaConf.create({"name": name, "_target_": f"{HERE}.{kind}", **arguments})


def test_sides_play_the_same_session_and_are_compared() -> None:
    """Unequal answers under a ratio, or a round counted on one side only, would make the ratio a lie."""
    told = race([side("ours"), side("theirs", pixels=9)], SCENE, repeats=2)
    assert np.array(told["seconds"]).shape == (2, 3)
    assert told["different"] == pytest.approx([10_000 * 9 / (6 * 48 * 64)] * 3)
    row = summary(told)
    assert row["ratio"] == pytest.approx(sum(told["seconds"][1]) / sum(told["seconds"][0]))
    assert 0 < row["evaluation and records [%]"] < 100
    whole, rounds, different, modules = tables([told]).values()
    assert (len(whole), len(rounds), modules["module"].tolist()) == (1, 2, ["the rest"])
    assert different.iloc[0, 2:].tolist() == told["different"]


def test_a_side_that_falls_over_is_named() -> None:
    with pytest.raises(BadInput, match="method=theirs ended in interact"):
        race([side("ours"), side("theirs", falls=2)], SCENE, repeats=1)


def test_memory_that_grows_is_seen() -> None:
    """The plot of a long video would be flat whatever a method hoards."""
    flat, grown = (one(Long(dict(side(kind, kind)), 20, 6, (48, 64), 1, 8))["looks"] for kind in ("Square", "Hoarder"))
    most = [np.max([main for _, main, _ in looks]) for looks in (flat, grown)]
    assert most[1] - most[0] == pytest.approx(8 * 100 / 1024, rel=0.2)
