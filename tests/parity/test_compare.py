"""The comparator sees what is off, and in which quantity."""

import numpy as np
import pytest
import torch

from tests.parity.compare import difference, limit_of
from tests.parity.replays import find

RECORDING = "stm_interactive.rounds_96x160.npz"


def off(name: str, ours: np.ndarray, golden: np.ndarray) -> bool:
    return not difference(RECORDING, name, ours, golden).allowed


def test_limits_are_those_of_the_quantity() -> None:
    values = np.full((8, 6, 10), 8, np.float32)
    assert not off("new_key_1", values + 3e-4, values)  # 5e-5 of the largest
    assert off("new_key_1", values + 5e-4, values)
    p = np.full((96, 160), 0.5, np.float32)
    assert not off("prob_1", p + 9e-5, p)
    assert off("prob_1", p + 2e-4, p)
    some = p.copy()
    some[0, :15] += 9e-4  # one pixel in a thousand
    assert not off("prob_1", some, p)
    some[0, 0] += 1e-3
    assert off("prob_1", some, p)
    masks = np.zeros((7, 96, 160), np.uint8)
    wrong = masks.copy()
    wrong[0, :5, :10] = 1  # 50 of 107520 pixels
    assert not off("masks_1", wrong, masks)
    wrong[1, :2, :2] = 1
    assert off("masks_1", wrong, masks)


def test_strokes_are_compared_to_the_pixel() -> None:
    planes = np.zeros((2, 96, 160), np.uint8)
    moved = planes.copy()
    moved[0, 0, 0] = 1
    assert off("planes_1", moved, planes)


@pytest.mark.parametrize("name", ["new_key_1", "prob_1"])
def test_a_number_that_is_none_is_off(name: str) -> None:
    values = np.zeros((8, 6, 10), np.float32)
    broken = values.copy()
    broken[0, 0, 0] = np.nan
    assert off(name, broken, values)


def test_a_thinned_recording_is_compared_where_it_was_thinned() -> None:
    full = torch.randn(512, 24, 40, generator=torch.Generator().manual_seed(0))
    golden = full[::16, ::3, ::3].numpy()
    ours = full.clone()
    ours[1] += 1  # not recorded
    assert not off("value_ch16_step3", ours.numpy(), golden)
    ours[16] += 1
    assert off("value_ch16_step3", ours.numpy(), golden)
    with pytest.raises(ValueError, match="value_ch8"):
        difference(RECORDING, "value_ch8", full, golden)


def test_an_output_that_nobody_plays_is_an_error() -> None:
    with pytest.raises(KeyError, match="read_T4"):
        find("read_T4_ch4", {"read_T3": np.zeros(1)})


def test_integers_without_a_limit_of_their_own_are_exact() -> None:
    assert limit_of("mivos_core.rounds2.npz", "fuse_round2_order", np.zeros(1, np.int64)).near == 0
    assert limit_of("stm.unit.npz", "pad", np.zeros(4, np.int64)).outside == 0
