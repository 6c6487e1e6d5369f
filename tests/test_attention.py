"""The picture of STM's memory read shows what the network reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.api import BadInput, Clip, Scribbles
from harness.data.synthetic import load
from harness.rules.clock import WallClock
from harness.rules.protocol import Protocol
from harness.rules.session import play
from methods.blocks.memory import KeyValue, read_memory
from methods.stm.attention import attention, figure, innermost, inside, replay
from methods.stm.method import STM

WEIGHTS = "methods/weights/stm.safetensors"


@pytest.fixture(scope="module")
def player() -> STM:
    return STM(size="tiny", weights=WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def sample(player: STM) -> tuple[Clip, list[tuple[int, Scribbles]], np.ndarray]:
    """A clip, the rounds that were played on it, and its true labels."""
    sequence = load(split="val", clips=1, frames=6, size=(120, 200), max_objects=1, seed=0)[0]
    clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
    truth = sequence.read_annotations()
    rounds = play(player, clip, truth, sequence.scribbles[1], Protocol("three", rounds=3), WallClock())
    return clip, [(round.frame, round.new) for round in rounds], truth


def test_the_weights_are_those_of_the_read(player: STM, sample: tuple) -> None:
    """Otherwise the figure would explain another network than the one that plays."""
    clip, rounds, truth = sample
    replay(player, clip, rounds)
    where = innermost(truth[2] == 1)
    weights = attention(player, 2, 1, where)
    assert weights.shape == (len(player.state.memory), 8, 13)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)

    keys, values = (torch.stack(entries, dim=2)[0] for entries in zip(*player.state.memory.values(), strict=True))
    read = read_memory(KeyValue(keys, values), player.state.encode(slice(2, 3)).key[0])
    ours = values.flatten(1) @ torch.from_numpy(weights).flatten()
    torch.testing.assert_close(ours, read[:, torch.from_numpy(where)][:, 0], rtol=1e-4, atol=1e-5)


def test_the_weights_of_an_object_are_the_mean_of_its_positions(player: STM, sample: tuple) -> None:
    """The upper row of Figure 9 averages weights; weights of an averaged key would be another picture."""
    clip, rounds, truth = sample
    replay(player, clip, rounds)
    where = inside(truth[2] == 1)
    each = [
        attention(player, 2, 1, np.eye(where.size, dtype=bool)[n].reshape(where.shape))
        for n in where.flatten().nonzero()[0]
    ]
    assert len(each) > 1
    np.testing.assert_allclose(attention(player, 2, 1, where), np.mean(each, axis=0), atol=1e-6)


def test_in_half_the_bits_it_attends_alike(sample: tuple) -> None:
    """The figure of a player in bfloat16 is no traceback of a library without it."""
    clip, rounds, truth = sample
    half = STM(size="tiny", weights=WEIGHTS, device="cpu", precision="bfloat16")
    replay(half, clip, rounds)
    assert attention(half, 2, 1, innermost(truth[2] == 1)).sum() == pytest.approx(1, abs=1e-3)


def test_a_position_finds_itself(player: STM, sample: tuple) -> None:
    """Trained keys match a frame with itself: a transposed or shifted map would put the weight elsewhere."""
    clip, rounds, truth = sample
    first = rounds[0][0]
    replay(player, clip, rounds[:1])
    for y, x in np.argwhere(inside(truth[first] == 1)):
        where = np.zeros((8, 13), bool)
        where[y, x] = True
        (weights,) = attention(player, first, 1, where)
        assert weights[y - 1 : y + 2, x - 1 : x + 2].sum() > 0.5  # measured: 0.90 to 1.00; uniform: 0.09


def test_the_figure_says_which_round_wrote_what(player: STM, sample: tuple) -> None:
    """A reader tells the memory's frames, and their rounds, apart."""
    clip, rounds, _ = sample
    again = [*rounds, (rounds[0][0], rounds[0][1])]
    first = ", ".join(str(r) for r, (frame, _) in enumerate(again, 1) if frame == rounds[0][0])
    picture = figure(player, clip, again, 2)
    titles = [axis.get_title() for axis in picture.axes if axis.get_title()]
    assert titles[:2] == ["query: frame 2", f"memory: frame {rounds[0][0]}, rounds {first}"]
    assert len(titles) == 1 + len({frame for frame, _ in rounds})


def test_what_cannot_be_shown_is_said_in_one_line(player: STM, sample: tuple) -> None:
    """A frame beyond the clip, or one in which nothing was segmented, is no traceback of an array library."""
    clip, rounds, _ = sample
    with pytest.raises(BadInput, match=r"query=6: .* has frames 0\.\.5"):
        figure(player, clip, rounds, 6)
    with pytest.raises(BadInput, match="no round was played"):
        figure(player, clip, [], 2)
    black = replace(clip, frames=np.zeros_like(clip.frames))
    nothing = [(0, Scribbles(clip.name, ((),) * 6))]
    with pytest.raises(BadInput, match="sees no object"):
        figure(player, black, nothing, 2)
