"""The conformance check: a good method passes, and each way of cheating or stumbling is named."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from harness.api import Clip, Interaction, Prediction
from harness.rules.protocol import Protocol
from harness.rules.scribbles import draw
from harness.tasks.check import Contract, from_files, make

ROOT = Path(__file__).parents[1]
STROKES = Protocol("strokes")
MASKS = Protocol("masks", interaction="masks")


class Nearest:
    """A sound method. What a subclass does wrong, it does in one line."""

    takes_masks = True
    runs = 0

    def start(self, clip: Clip) -> None:
        self.clip = clip
        self.masks: dict[int, np.ndarray] = {}

    def interact(self, interaction: Interaction) -> Prediction:
        frames = self.clip.frames
        if interaction.mask is not None:
            self.masks[interaction.frame] = interaction.mask
        else:
            drawn = draw(interaction.all.frames[interaction.frame], frames.shape[1:3])
            labels = range(self.clip.num_objects + 1)
            away = [cv2.distanceTransform((drawn != label).astype(np.uint8), cv2.DIST_L2, 5) for label in labels]
            away[0] = np.minimum(away[0], 8)
            self.masks[interaction.frame] = np.argmin(away, axis=0).astype(np.uint8)
        nearest = [min(self.masks, key=lambda s: abs(s - t)) for t in range(len(frames))]
        return Prediction(self.spoil(np.stack([self.masks[s] for s in nearest]), interaction))

    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return masks


class Wide(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return masks.astype(np.int64)


class Padded(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return masks[:, : masks.shape[1] // 16 * 16]


class Random(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return masks * np.random.default_rng().integers(2, size=masks.shape, dtype=np.uint8)


class Leaking(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        self.runs += 1
        masks[:, : self.runs] = 0
        return masks


class Warming(Nearest):
    def warm_up(self, clip: Clip) -> None:
        self.runs = 40

    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        masks[:, : self.runs] = 0
        return masks


class Scribbling(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        self.clip.frames[interaction.frame][masks[interaction.frame] > 0] = 0
        return masks


class Binary(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return np.minimum(masks, 1)


class Still(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return np.repeat(masks[interaction.frame][None], len(masks), axis=0)


class Stubborn(Nearest):
    first: np.ndarray

    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        self.first = masks if len(self.masks) == 1 else self.first
        self.masks = dict(list(self.masks.items())[:1])
        return self.first


class Needy(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        assert interaction.new.annotated_frames, "nothing drawn"
        return masks


class Peeking(Nearest):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        found = sorted(self.folder.rglob(f"masks/{self.clip.name}/*.png"))
        return np.stack([np.asarray(Image.open(path)) for path in found[: len(masks)]]) if found else masks


class Informed(Nearest):
    def spoil(self, masks: np.ndarray, interaction: Interaction) -> np.ndarray:
        return masks if self.clip.name.startswith("val") else np.zeros_like(masks)


def broken(contract: Contract) -> set[str]:
    """The points that failed."""
    verdicts = [contract.verdict(point) for point in contract.points]
    assert all(verdict.why for verdict in verdicts if verdict.verdict != "ok")
    return {verdict.point for verdict in verdicts if verdict.verdict == "FAILED"}


@pytest.mark.parametrize("protocol", [STROKES, MASKS, Protocol("once", interaction="masks", rounds=1, first_frame=0)])
def test_a_sound_method_passes(protocol: Protocol) -> None:
    """A check that fails sound methods would be switched off."""
    assert broken(Contract(Nearest, protocol)) == set()


@pytest.mark.parametrize(
    ("method", "point"),
    [
        (Wide, "answers every round"),
        (Padded, "plays frames of 97×131"),
        (Random, "is deterministic"),
        (Leaking, "forgets the last sample"),
        (Warming, "warms up without a trace"),
        (Scribbling, "leaves the frames as they are"),
        (Binary, "heeds whose stroke it is"),
        (Still, "heeds which frame is drawn on"),
        (Stubborn, "heeds corrections"),
        (Needy, "plays a round without strokes"),
        (Informed, "goes by no name"),
    ],
)
def test_each_fault_is_found(method: Callable[[], Nearest], point: str) -> None:
    """A fault that passes here would be scored as if it were a method's merit."""
    assert Contract(method, STROKES).verdict(point).verdict == "FAILED"


def test_reading_the_truth_is_found(tmp_path: Path) -> None:
    """Else whoever interpolates dataset.root into his YAML leads the board."""
    sample = make(2)
    for kind, images in {"frames": sample.clip.frames, "masks": sample.truth}.items():
        (tmp_path / kind / "clip").mkdir(parents=True)
        for t, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / kind / "clip" / f"{t:05d}.png")
    dataset = OmegaConf.create({"name": "mine", "_target_": "harness.data.folder.load", "root": str(tmp_path)})
    files = from_files(dataset)
    assert Contract(Nearest, STROKES, files).verdict("opens no file of the dataset").verdict == "ok"
    cheat = Contract(lambda: Peeking(tmp_path), STROKES, files)
    verdict = cheat.verdict("opens no file of the dataset")
    assert verdict.verdict == "FAILED"
    assert "masks/clip/00000.png" in verdict.why
    assert cheat.verdict("goes by no name").verdict == "FAILED"


@pytest.mark.parametrize("method", ["nearest", "net"])
def test_the_guide_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A new user copies docs/method.md: its classes and YAML must pass the check, from any folder."""
    guide = (ROOT / "docs" / "method.md").read_text()
    blocks = re.findall(
        r"^`~/mine/([\w/.]+)`:\n\n```\w+\n(.*?)^```|^and `~/mine/([\w/.]+)`.*?```\w+\n(.*?)^```", guide, re.M | re.S
    )
    files = {code or config: text or more for code, text, config, more in blocks}
    assert len(files) == 4
    place = tmp_path / "mine"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    torch.save(torch.nn.Conv2d(3, 2, 1).state_dict(), place / "net.pth")
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("HOME", str(tmp_path))
    places = (f"results={tmp_path / 'results'}", f"reports={tmp_path / 'reports'}")
    small = ("dataset.clips=1", "dataset.frames=4", "dataset.size=[48,80]", "protocol.rounds=2")
    choice = (f"method={method}", f"hydra.searchpath=[file://{place / 'conf'}]", *places)
    tasks = [("task=check",), small] if method == "nearest" else [small]  # colours heed no stroke
    for task in tasks:
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *task, *choice], cwd=ROOT, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "results" / "runs" / method).glob("*.parquet"))) == 1
