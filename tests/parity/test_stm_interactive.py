"""Our interactive STM gives what the authors' network and driver gave, from the same weights file."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.api import BadInput
from methods.stm.checkpoint import load
from methods.stm.method import STM
from methods.stm.network import STMInteractive
from tests.parity.compare import check
from tests.parity.goldens import recorded
from tests.parity.replays import manifest
from tests.parity.replays.stm_interactive import NETWORK, build, write


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights"))[NETWORK]


@pytest.fixture(scope="module")
def method(authors_file: Path) -> Iterator[STM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield build("cpu")


def test_every_key_of_the_authors_is_taken(authors_file: Path) -> None:
    network = STMInteractive("paper")
    network.load_state_dict(load(authors_file))
    assert sum(p.numel() for p in network.parameters()) == manifest(NETWORK)["n_parameters"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"module.Decoder.pred2.bias": None}, "Decoder.pred2.bias"),
        ({"module.Decoder.pred2.bias": torch.zeros(3)}, "Decoder.pred2.bias"),
        ({"module.Encoder_M.conv1_om.weight": None}, "Encoder_M.conv1_om.weight"),
        ({"module.Encoder_M.conv1_om.weight": torch.zeros(32, 1, 7, 7)}, "Encoder_M.conv1_om.weight"),
        ({"module.Encoder_M.conv1_om.weight": torch.zeros(64, 2, 7, 7)}, "Encoder_M.conv1.weight"),
        ({"module.Encoder_M.conv1_o.weight": torch.zeros(64, 1, 7, 7)}, "Encoder_M.conv1_o.weight"),
        ({"module.Encoder_Q.mean": torch.zeros(1, 3, 1, 1)}, "Encoder_Q.mean"),
    ],
)
def test_a_foreign_file_is_refused_by_key(authors_file: Path, tmp_path: Path, change: dict, named: str) -> None:
    state = {**torch.load(authors_file), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=re.escape(named)):
        load(tmp_path / "other.pth")


def test_batch_counts_may_be_missing(authors_file: Path, tmp_path: Path) -> None:
    state = {key: value for key, value in torch.load(authors_file).items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "old.pth")
    assert load(tmp_path / "old.pth").keys() == STMInteractive("paper").state_dict().keys()


@pytest.mark.parametrize("path", recorded("networks/*/stm_interactive.*.npz"))
def test_what_was_recorded_is_played(path: Path, method: STM) -> None:
    check(path, method)
