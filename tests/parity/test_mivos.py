"""Our MiVOS gives what the authors' networks, session core and DAVIS driver gave, from the same weights files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.api import BadInput
from methods.mivos.checkpoint import load
from methods.mivos.method import MiVOS
from methods.mivos.network import MiNet
from tests.parity.compare import check
from tests.parity.goldens import recorded
from tests.parity.replays import manifest
from tests.parity.replays.mivos import NETWORKS, build, write


@pytest.fixture(scope="module")
def authors_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def method(authors_files: dict[str, Path]) -> Iterator[MiVOS]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_files["s2m"].parent))
        yield build("cpu")


def test_every_key_of_the_authors_is_taken(authors_files: dict[str, Path]) -> None:
    network = MiNet("paper")
    network.load_state_dict(load(authors_files))
    for name, recorded_as in NETWORKS.items():
        part, about = network.get_submodule(name), manifest(recorded_as)
        assert len(part.state_dict()) == about["n_keys"]
        assert sum(p.numel() for p in part.parameters()) == about["n_parameters"]


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("fusion", {"final_conv.bias": None}, "final_conv.bias"),
        ("fusion", {"conv4.0.bias": torch.zeros(32)}, "conv4.0.bias"),
        ("s2m", {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, "backbone.conv1.weight"),
        ("propagation", {"mask_rgb_encoder.layer1.0.conv1.bias": None}, "mask_rgb_encoder.layer1.0.conv1.bias"),
        ("propagation", {"decoder.pred.bias": torch.zeros(2)}, "decoder.pred.bias"),
    ],
)
def test_a_foreign_file_is_refused_by_key(
    authors_files: dict[str, Path], tmp_path: Path, file: str, change: dict, named: str
) -> None:
    state = {**torch.load(authors_files[file]), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=re.escape(named)):
        load({**authors_files, file: tmp_path / "other.pth"})


@pytest.mark.parametrize("path", recorded("networks/*/mivos_*.npz"))
def test_what_was_recorded_is_played(path: Path, method: MiVOS) -> None:
    check(path, method)
