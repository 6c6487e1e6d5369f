"""Our ATNet gives what the authors' networks and session gave, from the same weights file."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.api import BadInput, Clip, Interaction, Stroke
from harness.rules.scribbles import empty, fuse
from methods.atnet.checkpoint import load
from methods.atnet.method import ATNet, State, stroke_plane, superpose
from methods.atnet.network import ATNetwork, Entry, Picture, Transferred, Variant
from methods.atnet.transfer import (
    global_match,
    global_transfer,
    global_transition,
    local_affinity,
    local_match,
    local_transfer,
    neighbours,
)
from tests.parity.compare import check
from tests.parity.goldens import recorded
from tests.parity.replays import manifest
from tests.parity.replays.atnet import NETWORK, build, write


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights"))[NETWORK]


@pytest.fixture(scope="module")
def method(authors_file: Path) -> Iterator[ATNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield build("cpu")


def test_every_key_of_the_authors_is_taken(authors_file: Path) -> None:
    network = ATNetwork("paper")
    network.load_state_dict(load(authors_file))
    about = manifest(NETWORK)
    assert len(network.state_dict()) == about["n_keys"]
    assert sum(p.numel() for p in network.parameters()) == about["parameters"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prev_conv1x1.bias": None}, "prev_conv1x1.bias"),
        ({"decoder_iact.RF4.convFS1.bias": torch.zeros(256)}, "decoder_iact.RF4.convFS1.bias"),
        ({"encoder_6ch.conv0_6ch.weight": torch.zeros(64, 3, 7, 7)}, "encoder_6ch.conv0_6ch.weight"),
    ],
)
def test_a_foreign_file_is_refused_by_key(authors_file: Path, tmp_path: Path, change: dict, named: str) -> None:
    state = {**torch.load(authors_file), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=re.escape(named)):
        load(tmp_path / "other.pth")


@pytest.mark.parametrize("path", recorded("networks/*/atnet.*.npz"))
def test_what_was_recorded_is_played(path: Path, method: ATNet) -> None:
    check(path, method)


def random_maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("pictures", "objects"), [(1, 2), (3, 3)])
def test_the_local_region_is_what_a_loop_over_81_offsets_finds(pictures: int, objects: int) -> None:
    h, w = 20, 12
    f_t, f_p, p = (
        random_maps(pictures, 5, h, w),
        random_maps(pictures, 5, h, w),
        random_maps(objects, 1, h, w).sigmoid(),
    )
    offsets = [(dy, dx) for dy in range(-8, 9, 2) for dx in range(-8, 9, 2)]
    pixels = [(y, x) for y in range(h) for x in range(w)]
    affinity, squared = torch.zeros(pictures, 81, h, w), torch.full((objects, 81, h, w), torch.inf)
    near = torch.zeros(objects, 81, h, w)
    spread = torch.zeros(objects, 1, h, w)
    for y, x in pixels:
        inside = [(k, y + dy, x + dx) for k, (dy, dx) in enumerate(offsets) if 0 <= y + dy < h and 0 <= x + dx < w]
        for k, v, u in inside:
            affinity[:, k, y, x] = (f_t[:, :, y, x] * f_p[:, :, v, u]).mean(dim=1)
            near[:, k, y, x] = p[:, 0, v, u]
            distance = (f_t[:, :, y, x] - f_p[:, :, v, u]).square().mean(dim=1)
            squared[:, k, y, x] = torch.where(p[:, 0, v, u] > 0.5, distance, torch.inf)
        mass = torch.stack([(f_p[:, :, y, x] * f_t[:, :, v, u]).mean(dim=1) for _, v, u in inside]).softmax(dim=0)
        for (_, v, u), part in zip(inside, mass, strict=True):
            spread[:, 0, v, u] += part * p[:, 0, y, x]
    torch.testing.assert_close(local_affinity(f_t, f_p), affinity)
    torch.testing.assert_close(neighbours(p), near)
    rows = (affinity.softmax(dim=2) * near).sum(dim=1, keepdim=True)
    torch.testing.assert_close(local_transfer(f_t, f_p, p, "rows"), rows)
    torch.testing.assert_close(local_transfer(f_t, f_p, p, "offsets"), spread)
    nearest = squared.amin(dim=1, keepdim=True)
    torch.testing.assert_close(local_match(f_t, f_p, p > 0.5), 2 / (1 + nearest.exp()), atol=1e-5, rtol=1e-5)


def test_a_pixel_of_the_annotated_frame_spreads_a_mass_of_one_over_the_target() -> None:
    f_t, f_a, f_o = random_maps(1, 7, 4, 6), random_maps(1, 7, 4, 6), random_maps(2, 3, 4, 6)
    torch.testing.assert_close(global_transition(f_t, f_a).sum(dim=2), torch.ones(1, 24))
    total = global_transfer(f_t, f_a, f_o).sum(dim=(2, 3))
    torch.testing.assert_close(total, f_o.sum(dim=(2, 3)))


def test_matching_finds_a_frame_in_itself_and_nothing_without_an_object() -> None:
    f = random_maps(1, 7, 4, 6)
    region = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    region[0, 0, 1:3, 2:4] = True
    found = global_match(f, f, region)
    torch.testing.assert_close(found[region], torch.ones(4), atol=1e-5, rtol=0)
    assert found[0].max() <= 1 + 1e-5
    assert found[0][~region[0]].max() < 0.99
    assert not found[1].any()


@pytest.mark.parametrize(
    ("bound", "reached"), [(None, 160), (1, 0), (2, 1), (51, 50), (52, 50), (151, 149), (152, 149)]
)
def test_transfer_ends_before_the_next_annotated_frame(
    bound: int | None, reached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = tiny_sample(161)
    picture = Picture(torch.zeros(1), None, torch.zeros(1), torch.zeros(1))
    seen: list[int] = []
    monkeypatch.setattr(sample, "store", lambda t, p: seen.append(t))
    monkeypatch.setattr(sample, "encode", lambda t: picture)
    p = torch.zeros(1, 32, 64)
    monkeypatch.setattr(sample.network.t_net, "forward", lambda *_: Transferred(p, None))
    sample.annotated = [0] if bound is None else [0, bound]
    sample.transfer(0, 1, picture, p)
    assert seen == list(range(1, reached + 1))
    seen.clear()
    sample.annotated = [160] if bound is None else [160 - bound, 160]
    sample.transfer(160, -1, picture, p)
    assert seen == list(range(159, 159 - reached, -1))


def tiny_sample(frames: int) -> State:
    network = ATNet(size="tiny", weights="random", device="cpu").network
    return State(network, Clip("c", np.zeros((frames, 20, 40, 3), np.uint8), 1), "none")


def test_superposition_halves_at_the_annotated_frame_of_before() -> None:
    new, old = torch.ones(1), torch.zeros(1)
    assert [superpose(new, old, distance, 4).item() for distance in range(5)] == [1, 0.875, 0.75, 0.625, 0.5]
    assert superpose(new, old, 3, None) is new


def test_a_frame_annotated_twice_is_remembered_twice() -> None:
    sample = tiny_sample(3)
    with torch.inference_mode():
        for a in (1, 1):
            sample.play(a, [Stroke(np.array([[0.2, 0.5], [0.4, 0.5]]), 1)])
    assert sample.annotated == [1, 1]
    assert len(sample.memory) == 2


def test_strokes_at_the_upper_left_border_come_in_at_the_lower_right() -> None:
    plane = stroke_plane([Stroke(np.array([[0.0, 0.0]]), 1)], (20, 30))
    assert plane[-1, -1] > 0.5
    assert plane[0, 0] == 0


VARIANTS = [
    Variant(),
    Variant(local="off"),
    Variant(local="r5"),
    Variant(local_softmax="offsets"),
    Variant(global_mode="match", local_mode="match"),
    Variant(global_mode="match", local_mode="match", match_region="scribble"),
]


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_batch_of_clips_is_the_clips_one_by_one_and_gradients_reach_every_weight(variant: Variant) -> None:
    network = ATNetwork("tiny", variant).eval()
    images, planes = random_maps(2, 3, 3, 64, 96).unbind(dim=1), random_maps(2, 3, 64, 96).sigmoid()

    def play(rows: slice) -> Transferred:
        annotated = network.a_net(images[0][rows], planes[rows])
        first, second, third = (network.t_net.encode(image[rows]) for image in images)
        memory = [network.t_net.remember(first, planes[rows], annotated)]
        p = network.t_net(second, first, annotated.logits.sigmoid(), memory).logits.sigmoid()
        return network.t_net(third, second, p, memory)

    batch, ones = play(slice(0, 2)), [play(slice(n, n + 1)) for n in range(2)]
    torch.testing.assert_close(batch.logits, torch.cat([one.logits for one in ones]), atol=1e-4, rtol=1e-4)
    assert batch.logits.shape == (2, 64, 96)
    assert (batch.q is None) == (variant.local == "off")
    network.train()
    answer = play(slice(0, 2))
    loss = answer.logits.square().mean() + (0 if answer.q is None else answer.q.square().mean())
    (loss + network.a_net(images[0], planes).logits.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.usefixtures("seeded")
def test_several_objects_in_one_picture_are_each_on_their_own() -> None:
    network = ATNetwork("tiny").eval()
    image, planes = random_maps(3, 64, 96), random_maps(2, 3, 64, 96).sigmoid()
    with torch.inference_mode():
        picture = network.t_net.encode(image)
        answers = []
        for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
            annotated = network.a_net(image, planes[rows])
            entry: Entry = network.t_net.remember(picture, planes[rows], annotated)
            answers.append(network.t_net(picture, picture, annotated.logits.sigmoid(), [entry, entry]).logits)
    torch.testing.assert_close(answers[0], torch.cat(answers[1:]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_plays_the_same_whatever_is_kept(variant: Variant) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 50, 3), dtype=np.uint8)
    strokes = (Stroke(np.array([[0.2, 0.5], [0.4, 0.5]]), 1),), (Stroke(np.array([[0.7, 0.2], [0.8, 0.9]]), 2),)
    answers = []
    for cache in ("device", "cpu", "disk", "none"):
        method = ATNet(size="tiny", weights="random", device="cpu", cache=cache, **variant._asdict())
        clip = Clip("c", frames, 2)
        method.warm_up(clip)
        method.start(clip)
        scribbles = empty("c", 5)
        for frame, drawn in ((1, strokes[0] + strokes[1]), (4, strokes[1]), (4, ())):
            new = replace(empty("c", 5), frames=tuple(drawn if t == frame else () for t in range(5)))
            scribbles = fuse(scribbles, new)
            method.interact(Interaction(frame, new, scribbles))
        answers.append(method.state.p.clone())
    for answer in answers[1:]:
        torch.testing.assert_close(answers[0], answer, atol=0, rtol=0)


def test_what_is_not_offered_is_refused() -> None:
    with pytest.raises(BadInput, match="local=r3"):
        ATNet(size="tiny", weights="random", device="cpu", local="r3")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cache=tape"):
        ATNet(size="tiny", weights="random", device="cpu", cache="tape")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="size=huge"):
        ATNetwork("huge")  # type: ignore[arg-type]
