"""The authors' weights, converted once, play as they did."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from torch import Tensor

from harness.api import Clip, Interaction, Method
from harness.rules.scribbles import empty
from methods.convert import convert
from methods.stm.method import STM
from methods.stm.video import STMVideo
from tests.parity.goldens import CARRIED
from tests.proc_weights import fill

ROOT = Path(__file__).parents[1]
# Method: its network's name among the goldens, where the manifest lies, the authors' file.
AUTHORS = {
    "stm": ("stm_interactive", "stm_interactive", "e120.pth"),
    "stm_video": ("stm", "stm_mivos", "STM_weights.pth"),
}
CLASSES: dict[str, type[STM | STMVideo]] = {"stm": STM, "stm_video": STMVideo}


def config(method: str) -> DictConfig:
    """The method's config, as task=convert has it."""
    choices = {"size": "paper", "weights": "official", "device": "cpu", "seed": 0}
    return DictConfig(OmegaConf.merge(OmegaConf.load(ROOT / f"conf/method/{method}.yaml"), choices))


def theirs(method: str) -> dict[str, Tensor]:
    """A state dict like the authors', with procedural weights."""
    network, folder, _ = AUTHORS[method]
    keys = json.loads((CARRIED / "networks" / folder / f"{network}.manifest.json").read_text())["keys"]
    state = fill(network, {key: tuple(shape) for key, shape, _ in keys})
    return {key: torch.from_numpy(values) for key, values in state.items()}


def answer(method: Method) -> np.ndarray:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 8:24] = 1
    method.start(Clip("noise", frames, 1))
    none = empty("noise", 2)
    return method.interact(Interaction(0, none, none, mask)).masks


@pytest.mark.parametrize("method", AUTHORS)
def test_a_converted_file_plays_as_the_authors_did(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    file = tmp_path / AUTHORS[method][2]
    torch.save(theirs(method), file)
    path = convert(config(method))
    assert capsys.readouterr().out == f"{tmp_path / method}.safetensors\n"
    assert sorted(tmp_path.iterdir()) == sorted([file, path])
    with safe_open(path, "pt") as converted:
        about = converted.metadata()
    assert about["training"] == f"the authors' {file.name}"
    assert re.fullmatch(r"[0-9a-f]{64}", about["sha256"])
    official, ours = (CLASSES[method](weights=weights, device="cpu") for weights in ("official", str(path)))
    for key, value in official.network.state_dict().items():
        assert torch.equal(value, ours.network.state_dict()[key]), key
    np.testing.assert_array_equal(answer(official), answer(ours))


def test_a_file_that_lacks_a_key_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    state = theirs("stm_video")
    del state["module.KV_M_r4.Key.bias"]
    torch.save(state, tmp_path / "STM_weights.pth")
    with pytest.raises(InstantiationException, match=re.escape("STM_weights.pth: key KV_M_r4.Key.bias is missing")):
        convert(config("stm_video"))
    assert [path.name for path in tmp_path.iterdir()] == ["STM_weights.pth"]


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("stm_video", "STM_weights.pth: missing; get it from github.com/seoungwugoh/STM "),
        ("grabcut", "method=grabcut has no authors' weights to convert"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(
    method: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "run.py", "task=convert", f"method={method}"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
