"""Our IPNet gives what the authors' networks and session gave, from the same weights file."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import BadInput
from methods.ipnet.checkpoint import load
from methods.ipnet.method import IPNet, bounds
from methods.ipnet.network import InteractionPropagation, into_window, out_of_window, region
from tests.parity.compare import check
from tests.parity.goldens import recorded
from tests.parity.replays import manifest
from tests.parity.replays.ipnet import NETWORKS, build, weights, write


@pytest.fixture(scope="module")
def authors_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def method(authors_files: dict[str, Path]) -> Iterator[IPNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_files["interaction"].parent))
        yield build("cpu")


def test_every_key_of_the_authors_is_taken(authors_files: dict[str, Path]) -> None:
    network = InteractionPropagation("paper")
    network.load_state_dict(load(authors_files))
    for name, recorded_as in NETWORKS.items():
        about = manifest(recorded_as)
        assert sum(p.numel() for p in network.get_submodule(name).parameters()) == about["parameters"]


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("interaction", {"module.Decoder.pred5.bias": None}, "Decoder.pred5.bias"),
        ("interaction", {"module.Decoder.ResFM1.conv1.bias": torch.zeros(1024)}, "Decoder.ResFM1.conv1.bias"),
        ("interaction", {"module.Encoder.conv1_n.weight": torch.zeros(32, 1, 7, 7)}, "Encoder.conv1_n.weight"),
        ("interaction", {"module.Encoder.conv1_n.weight": None}, "Encoder.conv1_n.weight"),
        ("interaction", {"module.Encoder.std": torch.ones(1, 3, 1, 1)}, "Encoder.std"),
        ("propagation", {"module.SEFA.fc2.weight": torch.zeros(2048, 4096)}, "SEFA.fc2.weight"),
        ("propagation", {"module.Decoder.ResFM1.conv1.weight": None}, "Decoder.ResFM1.conv1.weight"),
        (
            "propagation",
            {"module.Decoder.ResFM1.downsample.weight": torch.zeros(1)},
            "Decoder.ResFM1.downsample.weight",
        ),
    ],
)
def test_a_foreign_file_is_refused_by_key(
    authors_files: dict[str, Path], tmp_path: Path, file: str, change: dict, named: str
) -> None:
    state = {**torch.load(authors_files[file]), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=re.escape(f"key {named}")):
        load({**authors_files, file: tmp_path / "other.pth"})


def test_the_networks_files_cannot_be_swapped(authors_files: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=re.escape("key Encoder.conv1_p.weight is missing")):
        load({"interaction": authors_files["propagation"], "propagation": authors_files["interaction"]})


def test_the_authors_warning_is_shown(
    authors_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(authors_files["interaction"].parent))
    with caplog.at_level(logging.WARNING, "methods.ipnet.method"):
        IPNet(size="paper", weights="official", device="cpu")
    assert "do not reproduce the paper's table" in caplog.text


@pytest.mark.parametrize("path", recorded("networks/*/ipnet.boxes*.npz"))
def test_boxes_and_windows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Tensor] = []
    monkeypatch.setattr(F, "grid_sample", lambda x, grid, **_: grids.append(grid))
    for row in np.load(path)["table"]:
        (height, width, y, x, h, w), box, (theta, corners) = row[:6].astype(int), row[6:10], np.split(row[10:], [6])
        plane = torch.zeros(1, 1, height, width)
        if y >= 0:
            plane[..., y : y + h, x : x + w] = 0.49
        ours = region(plane, minimum=128)
        np.testing.assert_array_equal(ours[0], box)
        into_window(plane, ours, 256)
        out_of_window(plane, ours, (height, width))
        forward, backward = (grid[0] for grid in grids[-2:])
        ends = torch.stack([grid[end, end] for grid in (forward, backward) for end in (0, -1)])
        np.testing.assert_allclose(ends.flatten(), corners, rtol=0, atol=1e-5)
        shift, scale = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        np.testing.assert_allclose(torch.column_stack((torch.diag(scale), shift)).flatten(), theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [p for p in recorded("networks/*/ipnet.*.npz") if "boxes" not in str(p.id)])
def test_what_was_recorded_is_played(path: Path, method: IPNet) -> None:
    check(path, method)


@pytest.mark.parametrize("path", recorded("networks/*/ipnet.fusion_weights*.json"))
def test_fusion_weights(path: Path) -> None:
    for case in json.loads(path.read_text()):
        target, earlier, num_frames = case["target"], case["previous"], case["num_frames"]
        np.testing.assert_allclose(weights(target, earlier, num_frames), case["weight"], rtol=0, atol=1e-12)
        before, after = bounds(target, earlier)
        assert (before or 0, num_frames - 1 if after is None else after) == (case["left"], case["right"])


def pictures(count: int) -> tuple[Tensor, ...]:
    """Noise, each with a square of its own as mask and strokes."""
    noise = torch.rand(count, 3, 90, 150, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(count, 90, 150)
    for n in range(count):
        mask[n, 20 : 40 + 10 * n, 30 + 20 * n : 70 + 20 * n] = 0.9
    return noise, mask, mask.round(), mask.flip(2).round()


@pytest.mark.usefixtures("seeded")
@torch.inference_mode()
def test_a_batch_is_its_pictures() -> None:
    network = InteractionPropagation("tiny").eval()
    frames, mask, positive, negative = pictures(3)
    both = network.interaction(frames, mask, positive, negative)
    reference = network.propagation.refer(both.res5, both.res5.flip(0))
    after = network.propagation(frames, mask, both.p, reference)
    for n in range(3):
        alone = network.interaction(*(x[n : n + 1] for x in (frames, mask, positive, negative)))
        torch.testing.assert_close(alone.p, both.p[n : n + 1])
        alone = network.propagation(*(x[n : n + 1] for x in (frames, mask, both.p, reference)))
        torch.testing.assert_close(alone.p, after.p[n : n + 1])
        torch.testing.assert_close(alone.logits[-1], after.logits[-1][n : n + 1])


@pytest.mark.usefixtures("seeded")
def test_every_parameter_learns() -> None:
    network = InteractionPropagation("tiny").train()
    frames, *planes = pictures(2)
    first = network.interaction(frames, *planes)
    reference = network.propagation.refer(first.res5, first.res5.flip(0))
    second = network.propagation(frames, planes[0], first.p, reference)
    torch.stack([logits.square().sum() for logits in (*first.logits, *second.logits)]).sum().backward()
    assert [logits.shape[-1] for logits in second.logits] == [128, 32, 16, 8, 4]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
