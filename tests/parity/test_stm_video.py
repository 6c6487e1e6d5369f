"""Our semi-supervised STM gives what the authors' network and driver gave, from the same weights file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from harness.api import BadInput, Clip, Interaction
from harness.rules.scribbles import empty
from methods.stm.checkpoint import load
from methods.stm.count import multiply_adds, parameters
from methods.stm.network import Sharing, STMSemiSupervised
from methods.stm.video import Memory, State, STMVideo
from tests.parity.compare import check
from tests.parity.goldens import recorded
from tests.parity.replays import manifest
from tests.parity.replays.stm_video import NETWORK, build, write


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights"))[NETWORK]


@pytest.fixture(scope="module")
def method(authors_file: Path) -> Iterator[STMVideo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield build("cpu")


def test_every_key_of_the_authors_is_taken(authors_file: Path) -> None:
    network = STMSemiSupervised("paper")
    network.load_state_dict(load(authors_file, STMSemiSupervised))
    assert sum(p.numel() for p in network.parameters()) == manifest(NETWORK)["n_parameters"]


def test_the_other_network_refuses_the_file_by_key(authors_file: Path) -> None:
    with pytest.raises(BadInput, match=r"key Encoder_M\.conv1_p\.weight is missing"):
        load(authors_file)


@pytest.mark.parametrize("path", recorded("networks/*/stm.*.npz"))
def test_what_was_recorded_is_played(path: Path, method: STMVideo) -> None:
    check(path, method)


def tiny(memory: Memory = "every", sharing: Sharing = "none", stages: int = 0) -> STMVideo:
    return STMVideo(
        size="tiny", weights="random", device="cpu", memory=memory, mem_every=3, sharing=sharing, stages=stages
    )


def clip_and_mask(frames: int = 9) -> tuple[Clip, np.ndarray]:
    noise = np.random.default_rng(0)
    mask = np.zeros((33, 47), np.uint8)
    mask[5:20, 5:20], mask[10:25, 25:40], mask[0] = 1, 2, 255
    return Clip("noise", noise.integers(0, 256, (frames, 33, 47, 3), np.uint8), 2), mask


def give(method: STMVideo, clip: Clip, frame: int, mask: np.ndarray | None) -> np.ndarray:
    none = empty(clip.name, len(clip.frames))
    return method.interact(Interaction(frame, none, none, mask)).masks


@pytest.mark.parametrize(
    ("memory", "read"),
    [("first", {0}), ("previous", {7}), ("first_previous", {0, 7}), ("every", {0, 3, 6, 7})],
)
def test_frames_that_are_read(memory: Memory, read: set[int]) -> None:
    clip, mask = clip_and_mask()
    method = tiny(memory)
    method.warm_up(clip)
    method.start(clip)
    masks = give(method, clip, 0, mask)
    np.testing.assert_array_equal(masks[0], np.where(mask == 255, 0, mask))
    assert {s for s in range(8) if method.state.remembers(s, start=0, previous=7)} == read


def test_the_rules_of_memory_differ_in_what_they_read() -> None:
    clip, mask = clip_and_mask()
    planes = []
    for memory in ("first", "previous", "first_previous", "every"):
        sample = State(tiny().network, clip, memory, mem_every=3)
        sample.give(0, mask)
        planes.append(torch.stack([p for _, p in sample.propagate(range(1, 9))]))
    for one in range(4):
        assert torch.equal(planes[one][0], planes[0][0])  # of the second frame all know the first
        for other in range(one):
            assert not torch.equal(planes[one][-1], planes[other][-1])


def test_a_pass_backwards_is_one_forwards_through_the_mirrored_clip() -> None:
    clip, mask = clip_and_mask(5)
    method = tiny()
    method.start(clip)
    forwards = give(method, clip, 0, mask)
    mirrored = Clip(clip.name, clip.frames[::-1].copy(), 2)
    method.start(mirrored)
    np.testing.assert_array_equal(give(method, mirrored, 4, mask)[::-1], forwards)


def test_given_masks_stay_and_bound_the_next_pass() -> None:
    clip, mask = clip_and_mask()
    method = tiny()
    method.start(clip)
    first = give(method, clip, 4, mask)
    second = give(method, clip, 7, np.roll(mask, 5, axis=1))
    np.testing.assert_array_equal(second[:5], first[:5])
    np.testing.assert_array_equal(second[7], np.where(np.roll(mask, 5, axis=1) == 255, 0, np.roll(mask, 5, axis=1)))


@pytest.mark.parametrize(("frames", "size"), [(1, (33, 47)), (2, (16, 16)), (3, (9, 20))])
def test_small_clips_are_answered(frames: int, size: tuple[int, int]) -> None:
    clip = Clip("small", np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8), 1)
    method = tiny()
    method.warm_up(clip)
    method.start(clip)
    assert give(method, clip, frames - 1, np.eye(*size, dtype=np.uint8)).shape == (frames, *size)


def test_what_it_does_not_play_is_said_in_one_line() -> None:
    clip, _ = clip_and_mask()
    method = tiny()
    method.start(clip)
    with pytest.raises(BadInput, match="protocol=semi_supervised"):
        give(method, clip, 0, None)
    wrong: list[dict[str, Any]] = [{"memory": "last"}, {"mem_every": 0}, {"sharing": "late"}, {"stages": 2}]
    for changes in wrong:
        with pytest.raises(BadInput, match=next(iter(changes))):
            STMVideo(**{"size": "tiny", "weights": "random", "device": "cpu", **changes})


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sharing", ["late", "early"])
def test_encoders_with_shared_weights_play(sharing: Sharing, stages: int) -> None:
    clip, mask = clip_and_mask(3)
    method = tiny("every", sharing, stages)
    method.start(clip)
    assert give(method, clip, 0, mask).shape == clip.frames.shape[:3]


@pytest.mark.parametrize(
    ("sharing", "stages", "millions", "gflops"),
    [("late", 3, 8.56, 19.67), ("late", 2, 8.77, 19.67), ("early", 1, 16.90, 17.53), ("none", 0, 17.09, 19.67)],
)
def test_counts_of_table_7(sharing: Sharing, stages: int, millions: float, gflops: float) -> None:
    method = OmegaConf.create({"name": "stm_video", "sharing": sharing, "stages": stages})
    assert abs(parameters(method) - millions) < 0.011
    assert 0.98 < multiply_adds(method) / gflops < 1  # of convolutions alone


def test_only_stm_video_is_counted() -> None:
    with pytest.raises(BadInput, match="method=stm:"):
        parameters(OmegaConf.create({"name": "stm"}))
