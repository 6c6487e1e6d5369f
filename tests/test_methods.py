"""What a method promises: an answer for every frame, the same one every time, better after a correction."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.api import BadInput, Clip, Interaction, Method, Prediction, Scribbles, Stroke
from harness.rules.scribbles import empty
from harness.run.provenance import weights_of
from methods.atnet.method import ATNet
from methods.blocks.aggregation import aggregate
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import crop, pad
from methods.grabcut.method import GrabCut
from methods.ipnet.method import IPNet
from methods.mivos.method import MiVOS
from methods.mivos.network import MiNet
from methods.stm.method import STM, Cache
from methods.stm.network import Size, STMInteractive


def stm(size: Size = "tiny", weights: str = "random", device: str = "cpu", seed: int = 0, batch_size: int = 2) -> STM:
    return STM(batch_size=batch_size, size=size, weights=weights, device=device, seed=seed)


def mivos(**options: Any) -> MiVOS:
    return MiVOS(**{"size": "tiny", "weights": "random", "device": "cpu", "schedule": "every_round", **options})


def atnet(**options: Any) -> ATNet:
    return ATNet(**{"size": "tiny", "weights": "random", "device": "cpu", **options})


def ipnet(**options: Any) -> IPNet:
    return IPNet(**{"size": "tiny", "weights": "random", "device": "cpu", **options})


METHODS = [
    pytest.param(stm, id="stm"),
    pytest.param(mivos, id="mivos"),
    pytest.param(atnet, id="atnet"),
    pytest.param(ipnet, id="ipnet"),
    pytest.param(GrabCut, id="grabcut"),
]


def moving_discs(num_objects: int = 2, frames: int = 6, size: tuple[int, int] = (75, 133)) -> tuple[Clip, np.ndarray]:
    """Spotted discs on a spotted ground, each 4 pixels further right per frame: the clip and its label maps."""
    spots = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 60, (*size, 3)), (0, 0), 1.5)
    truth = np.zeros((frames, *size), np.uint8)
    colours = np.array([(90, 110, 90), (200, 60, 50), (60, 70, 210)])
    images = np.empty((frames, *size, 3), np.uint8)
    for t in range(frames):
        for label in range(1, num_objects + 1):
            cv2.circle(truth[t], (20 + 40 * (label - 1) + 4 * t, size[0] // 2), 14, label, -1)
        texture = np.where(truth[t, ..., None] > 0, np.roll(spots, 4 * t, axis=1), spots)
        images[t] = np.clip(colours[truth[t]] + texture, 0, 255)
    images.setflags(write=False)
    return Clip("discs", images, num_objects), truth


def interaction(clip: Clip, frame: int, *lines: tuple[int, Sequence[tuple[int, int]]]) -> Interaction:
    """Lines in pixels, each with its label, on a frame."""
    height, width = clip.frames.shape[1:3]
    strokes = tuple(Stroke(np.array(points) / (width - 1, height - 1), label) for label, points in lines)
    frames = list(empty(clip.name, len(clip.frames)).frames)
    frames[frame] = strokes
    scribbles = Scribbles(clip.name, tuple(frames))
    return Interaction(frame, scribbles, scribbles)


def two_rounds(method: Method, clip: Clip) -> list[np.ndarray]:
    method.start(clip)
    marks = (1, [(12, 37), (28, 37)]), (clip.num_objects, [(55, 37), (66, 37)]), (0, [(5, 5), (90, 5)])
    first = interaction(clip, 0, *marks)
    second = interaction(clip, 4, (1, [(30, 30), (40, 45)]), (0, [(5, 70), (90, 70)]))
    return [method.interact(first).masks, method.interact(second).masks]


def jaccard(masks: np.ndarray, truth: np.ndarray, label: int = 1) -> float:
    ours, theirs = masks == label, truth == label
    return float((ours & theirs).sum() / (ours | theirs).sum())


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("num_objects", [1, 2])
def test_an_answer_for_every_frame(make: Callable[[], Method], num_objects: int) -> None:
    clip, _ = moving_discs(num_objects)
    for masks in two_rounds(make(), clip):
        assert masks.shape == clip.frames.shape[:3]
        assert masks.dtype == np.uint8
        assert masks.max() <= num_objects


@pytest.mark.parametrize("make", METHODS)
def test_the_same_answer_every_time_whatever_was_played_before(make: Callable[[], Method]) -> None:
    clip, _ = moving_discs()
    other, _ = moving_discs(num_objects=1, frames=3, size=(48, 80))
    fresh, used = make(), make()
    two_rounds(used, moving_discs(num_objects=1)[0])
    if hasattr(used, "warm_up"):
        used.warm_up(other)
    for ours, theirs in zip(two_rounds(fresh, clip), two_rounds(used, clip), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("make", METHODS)
def test_a_later_round_leaves_earlier_answers_alone(make: Callable[[], Method]) -> None:
    clip, _ = moving_discs()
    method = make()
    method.start(clip)
    first = method.interact(interaction(clip, 0, (1, [(12, 37), (28, 37)]))).masks
    kept = first.copy()
    method.interact(interaction(clip, 3, (0, [(12, 37), (28, 37)])))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("make", METHODS)
def test_a_round_without_strokes_is_answered(make: Callable[[], Method]) -> None:
    clip, _ = moving_discs()
    method = make()
    method.start(clip)
    assert isinstance(method.interact(interaction(clip, 2)), Prediction)


def test_stm_replaces_the_entry_of_a_frame_annotated_again() -> None:
    clip, _ = moving_discs(1)
    method = stm()
    method.start(clip)
    entries = []
    for frame, stroke in ((1, [(12, 37), (28, 37)]), (4, [(30, 30), (40, 45)]), (1, [(20, 30), (20, 45)])):
        method.interact(interaction(clip, frame, (1, stroke)))
        entries.append(dict(method.state.memory))
    assert list(entries[2]) == [1, 4]
    assert not torch.equal(entries[2][1].key, entries[1][1].key)
    assert torch.equal(entries[2][4].key, entries[1][4].key)


def test_stm_does_not_depend_on_the_batch() -> None:
    clip, _ = moving_discs()
    methods = [stm(batch_size=size) for size in (1, 4)]
    for method in methods:
        two_rounds(method, clip)
    assert torch.allclose(methods[0].state.p, methods[1].state.p, atol=1e-5)


@pytest.mark.parametrize("cache", ["cpu", "disk", "none"])
def test_stm_does_not_depend_on_the_cache(cache: Cache) -> None:
    clip, _ = moving_discs()
    other = STM(size="tiny", weights="random", device="cpu", batch_size=2, cache=cache)
    for ours, theirs in zip(two_rounds(stm(), clip), two_rounds(other, clip), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(other.state.queries.kept) == (3 if cache == "cpu" else 0)


def test_mivos_asks_for_a_frame_again_before_it_propagates() -> None:
    clip, _ = moving_discs()
    method = mivos(schedule="three_frames")
    method.start(clip)
    offered, propagated = [], []
    for number in range(1, 10):
        prediction = method.interact(interaction(clip, 2, (1, [(12, 37), (28, 37)])))
        offered.append(prediction.candidates)
        propagated.append(len(method.state.certain))
        if number < 3:
            assert not np.delete(prediction.masks, 2, axis=0).any()
    assert offered == [[2], [2], None, [2], [2], None, [2], None, None]
    assert propagated == [0, 0, 1, 1, 1, 2, 2, 3, 4]


def test_mivos_keeps_given_masks() -> None:
    clip, truth = moving_discs()
    method = mivos(schedule="three_frames")
    method.start(clip)
    for frame in (0, 5):
        given = Interaction(frame, empty("discs", 6), empty("discs", 6), truth[frame])
        prediction = method.interact(given)
        assert prediction.candidates is None
    np.testing.assert_array_equal(prediction.masks[[0, 5]], truth[[0, 5]])


def test_mivos_does_not_depend_on_the_cache() -> None:
    clip, _ = moving_discs()
    answers = [two_rounds(mivos(cache=cache), clip)[1] for cache in ("device", "cpu", "disk", "none")]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answers[0], answer)


def test_mivos_draws_strokes_where_they_are_or_as_the_authors() -> None:
    clip, _ = moving_discs(num_objects=2)
    strokes = interaction(clip, 0, (1, [(132, 74), (120, 74)]), (0, [(5, 5), (5, 9)])).new.frames[0]
    planes = {}
    assert mivos(strokes_at=True).options.strokes_at == "true"  # as method.strokes_at=true comes from the command line
    for place in ("true", "padded"):
        method = mivos(strokes_at=place)
        method.start(clip)
        planes[place] = [plane.numpy() for plane in method.state.stroke_planes(strokes)]
    for positive, negative in planes.values():
        assert positive.shape == negative.shape == (2, 80, 144)
        np.testing.assert_array_equal(positive[0] | negative[0], negative[1])
        assert not positive[1].any()
    assert np.argwhere(planes["true"][0][0]).max(axis=0).tolist() == [76, 137]  # 2 and 5 rows and columns of padding
    assert np.argwhere(planes["padded"][0][0]).max(axis=0).tolist() == [79, 143]


def test_mivos_switches_reach_the_answer() -> None:
    clip, truth = moving_discs(size=(48, 96))
    switches: list[dict[str, Any]] = [
        {},
        {"top_k": None},
        {"mem_every": 2},
        {"fusion": "learnable"},
        {"fusion": "linear"},
        {"fusion": "none"},
    ]
    answers = []
    for changes in switches:
        method = mivos(**changes)
        method.start(clip)
        for frame in (0, 5):
            method.interact(Interaction(frame, empty("discs", 6), empty("discs", 6), truth[frame]))
        answers.append(method.state.p)
    for i, ours in enumerate(answers):
        assert torch.equal(ours[[0, 5]], answers[0][[0, 5]])
        assert not any(torch.equal(ours, other) for other in answers[:i])


def test_weights_come_from_seed_or_file(tmp_path: Path) -> None:
    ours, other = stm(seed=1), stm(seed=2)
    assert not torch.equal(ours.network.query_head.key.weight, other.network.query_head.key.weight)
    save_file(ours.network.state_dict(), tmp_path / "ours.safetensors")
    again = stm(weights=str(tmp_path / "ours.safetensors"))
    assert torch.equal(ours.network.query_head.key.weight, again.network.query_head.key.weight)


def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    save_file({"key": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weights": "official"}, "e120.pth: missing; get it from github.com/seoungwugoh/STM-Interactive"),
        ({"weights": str(tmp_path / "none.safetensors")}, "none.safetensors: no such file"),
        ({"weights": str(tmp_path / "broken.safetensors")}, "broken.safetensors: not a safetensors file"),
        ({"weights": str(tmp_path / "foreign.safetensors")}, "foreign.safetensors: decoder.compress.0.bias is missing"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"size": "huge"}, "size=huge"),
    ]
    for changes, named in cases:
        with pytest.raises(BadInput, match=re.escape(named)) as raised:
            stm(**changes)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights": "official"}, "propagation_model.pth: missing; get it from github.com/hkchengrex/MiVOS"),
        ({"size": "huge"}, "size=huge"),
        ({"schedule": "now"}, "schedule=now: choose one of three_frames, every_round"),
        ({"fusion": "soft"}, "fusion=soft"),
        ({"strokes_at": "home"}, "strokes_at=home"),
        ({"cache": "tape"}, "cache=tape"),
        ({"mem_most": 0}, "mem_most=0"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_mivos_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match=re.escape(named)) as raised:
        mivos(**changes)
    assert "\n" not in str(raised.value)


def test_official_weights_of_a_guest_are_refused() -> None:
    """weights=official on the command line is for every method, and a user's own has no authors' files."""
    with pytest.raises(BadInput, match="weights=official: mine names no files under `official`"):
        weights_of({"name": "mine", "weights": "official"})


def test_grabcut_finds_and_follows_the_discs() -> None:
    clip, truth = moving_discs()
    method = GrabCut()
    method.start(clip)
    masks = method.interact(interaction(clip, 0, (1, [(12, 37), (28, 37)]), (2, [(52, 37), (68, 37)]))).masks
    assert jaccard(masks[:1], truth[:1], 1) > 0.95
    assert jaccard(masks, truth, 1) > 0.85  # nearly as light as the ground, which flow does not see
    assert jaccard(masks, truth, 2) > 0.9


def test_grabcut_is_better_after_a_correction() -> None:
    clip, truth = moving_discs()
    method = GrabCut()
    method.start(clip)
    first = method.interact(interaction(clip, 0, (1, [(12, 37), (28, 37)]), (1, [(52, 37), (68, 37)]))).masks
    second = method.interact(interaction(clip, 4, (2, [(68, 37), (84, 37)]))).masks
    assert jaccard(second[2:], truth[2:], 1) > jaccard(first[2:], truth[2:], 1) + 0.2
    np.testing.assert_array_equal(second[:2], first[:2])  # nearer to frame 0
    assert jaccard(second[2:], truth[2:], 2) > 0.9


def test_grabcut_changes_nothing_without_strokes() -> None:
    clip, _ = moving_discs()
    method = GrabCut()
    method.start(clip)
    assert not method.interact(interaction(clip, 3)).masks.any()
    before = method.interact(interaction(clip, 0, (1, [(12, 37), (28, 37)]))).masks
    assert not (before == 2).any()
    np.testing.assert_array_equal(method.interact(interaction(clip, 3)).masks, before)


def test_grabcut_takes_a_mask_as_it_is() -> None:
    clip, truth = moving_discs()
    method = GrabCut()
    method.start(clip)
    masks = method.interact(Interaction(2, empty("discs", 6), empty("discs", 6), truth[2])).masks
    np.testing.assert_array_equal(masks[2], truth[2])
    assert jaccard(masks, truth, 2) > 0.9


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize(("frames", "size"), [(1, (33, 47)), (2, (16, 16)), (3, (9, 20))])
def test_small_clips_are_answered(make: Callable[[], Method], frames: int, size: tuple[int, int]) -> None:
    clip = Clip("small", np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8), 1)
    method = make()
    method.start(clip)
    masks = method.interact(interaction(clip, 0, (1, [(3, 4), (5, 4)]))).masks
    assert masks.shape == (frames, *size)


def test_grabcut_survives_a_frame_of_one_side_only() -> None:
    clip, _ = moving_discs(1)
    method = GrabCut()
    method.start(clip)
    everything = Interaction(0, empty("discs", 6), empty("discs", 6), np.ones(clip.frames.shape[1:3], np.uint8))
    method.interact(everything)
    assert method.interact(interaction(clip, 0, (1, [(12, 37), (28, 37)]))).masks[0].all()


def test_memory_read_is_a_softmax_over_all_or_the_nearest_positions() -> None:
    draw = torch.Generator().manual_seed(0)
    memory = KeyValue(torch.randn(8, 2, 3, 4, generator=draw), torch.randn(5, 2, 3, 4, generator=draw))
    query = torch.randn(8, 3, 4, generator=draw)
    k_m, v_m, k_q = memory.key.reshape(8, -1), memory.value.reshape(5, -1), query.reshape(8, -1)
    f = torch.exp(k_q.T @ k_m / 8**0.5)
    expected = (f / f.sum(dim=1, keepdim=True)) @ v_m.T
    torch.testing.assert_close(read_memory(memory, query).reshape(5, -1).T, expected)
    torch.testing.assert_close(read_memory(memory, query, top_k=50), read_memory(memory, query))
    torch.testing.assert_close(read_memory(memory, query, top_k=1).reshape(5, -1), v_m[:, f.argmax(dim=1)])


def test_aggregation_is_equation_3() -> None:
    p = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    with_background = torch.cat(((1 - p).prod(dim=0, keepdim=True), p))
    odds = with_background / (1 - with_background)
    torch.testing.assert_close(aggregate(p), odds / odds.sum(dim=0))


@pytest.mark.parametrize("size", [(16, 32), (17, 31), (90, 150)])
def test_padding_comes_off_again(size: tuple[int, int]) -> None:
    x = torch.arange(size[0] * size[1]).reshape(1, *size)
    padded = pad(x)
    assert all(side % 16 == 0 for side in padded.shape[-2:])
    assert torch.equal(crop(padded, size), x)


def test_sizes_of_the_network() -> None:
    for network in (STMInteractive("tiny"), MiNet("tiny")):
        assert 1e6 < sum(p.numel() for p in network.parameters()) < 2e6
