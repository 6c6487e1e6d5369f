"""Our ATNet gives what the authors' networks and session gave, from the same weights file."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.api import BadInput, Clip, Interaction, Stroke
from harness.rules.scribbles import empty, from_json, fuse
from methods.atnet.checkpoint import load
from methods.atnet.method import OFFICIAL_FILE, ATNet, Sample, crop, margins, stroke_plane, superpose
from methods.atnet.network import (
    THRESHOLD,
    Annotated,
    ATNetwork,
    Entry,
    Picture,
    Transferred,
    Variant,
    resize,
)
from methods.atnet.transfer import (
    global_match,
    global_transfer,
    global_transition,
    local_affinity,
    local_match,
    local_transfer,
    neighbours,
)
from methods.blocks.trunk import normalise
from tests.parity.goldens import DEVICE, folders, here, note, recorded, there
from tests.proc_weights import fill, fingerprint

NAME = "networks/atnet_ipnet"
LABELS = 5e-4  # part of the pixels that may differ
LIMITS = {"prob": 1e-4, "_sum": 1e-4}  # 1e-3 otherwise: features and logits


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((folders(NAME)[0] / "atnet.manifest.json").read_text())


@pytest.fixture(scope="module")
def authors_file(manifest: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the authors', with procedural weights."""
    state = fill("atnet", {key: tuple(shape) for key, shape, *_ in manifest["keys"]})
    assert fingerprint(state) == manifest["procedural_fingerprint"]
    path = tmp_path_factory.mktemp("weights") / OFFICIAL_FILE
    torch.save({key: torch.from_numpy(values) for key, values in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def method(authors_file: Path) -> Iterator[ATNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield ATNet(size="paper", weights="official", device=DEVICE)


def agrees(name: str, ours: Tensor | np.ndarray, golden: np.ndarray) -> None:
    """Assert that our map, or the mean, mean size and spread of it, is within the limits of its kind.

    Goldens may hold the first object(s) only, and every so many channels: their numbers tell.
    """
    ours = there(ours).astype(np.float64)
    if name.endswith("_sum"):
        ours = np.array([ours.mean(), abs(ours).mean(), ours.std()])
    elif ours.ndim == 4:
        ours = ours[: len(golden), :: -(-ours.shape[1] // golden.shape[1])]
    assert ours.shape == golden.shape, name
    difference = abs(ours - golden)
    if golden.dtype == np.uint8:
        note(name, "labels", (difference > 0).mean(), LABELS)
        assert (difference > 0).mean() <= LABELS, f"{name}: {(difference > 0).mean():.2g} of the pixels"
        return
    limit = next((limit for part, limit in LIMITS.items() if part in name), 1e-3)
    note(name, "probabilities" if "prob" in name else "features", difference.max(), limit)
    assert difference.max() <= limit, f"{name}: {difference.max():.2g}"


def labels(p: Tensor) -> Tensor:
    best, label = p.max(dim=0)
    return (label + 1) * (best > THRESHOLD)


def test_every_key_of_the_authors_is_taken(authors_file: Path, manifest: dict) -> None:
    network = ATNetwork("paper")
    network.load_state_dict(load(authors_file))
    assert len(network.state_dict()) == manifest["n_keys"]
    assert sum(p.numel() for p in network.parameters()) == manifest["parameters"]


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


@pytest.mark.parametrize("path", recorded(NAME, "atnet.unit_*.npz"))
@torch.inference_mode()
def test_units(path: Path, method: ATNet) -> None:
    golden = dict(np.load(path))
    a_net, t_net = method.network.a_net, method.network.t_net
    frames = here(golden["frames_u8"]).movedim(-1, 1).float() / 255
    images = dict(zip(golden["frame_ids"].tolist(), normalise(frames), strict=True))
    anno, previous, target = golden["anno"].tolist(), int(golden["prev"]), int(golden["targ"])
    res4: list[Tensor] = []
    hooks = [
        net.encoder.res4.register_forward_hook(lambda _module, _arguments, answer: res4.append(answer))
        for net in (a_net, t_net)
    ]
    ours: dict[str, Any] = {}
    memory, p_anno, objects = [], {}, []
    pictures = {t: t_net.encode(image) for t, image in images.items()}
    for n, t in enumerate(anno):
        planes = here(golden[f"maps_{n}"])
        maps = a_net.encoder(torch.cat((images[t].expand(len(planes), -1, -1, -1), planes), dim=1))
        answer = a_net(images[t], planes)
        objects.append(t_net.converter(answer))
        memory.append(t_net.remember(pictures[t], planes, answer))
        p_anno[t] = answer.logits.sigmoid()
        found = {"r5": maps.res5, "r4": res4[-1], "r3": maps.res3, "r2": maps.res2, "m2": answer.mid}
        found |= {"m2_s32": answer.mid, "indicator": objects[-1], "ind_s": objects[-1], "logit": answer.logits[:, None]}
        ours |= {f"anet{n}_{name}": value for name, value in found.items()}
    if previous not in anno:
        nearest = min(anno, key=lambda t: abs(t - previous))
        between = t_net(pictures[previous], pictures[nearest], p_anno[nearest], memory)
        ours["inter_logit"] = between.logits[:, None]
        p = between.logits.sigmoid()
    else:
        p = p_anno[previous]
    f_t, f_p = pictures[target], pictures[previous]
    assert f_t.local is not None
    assert f_p.local is not None
    maps = t_net.encoder(images[target][None])
    affinity = local_affinity(f_t.local, f_p.local)
    fused: list[Tensor] = []
    hooks.append(t_net.decoder.register_forward_pre_hook(lambda _module, arguments: fused.append(arguments[0])))
    mids: list[Tensor] = []
    hooks.append(t_net.decoder.register_forward_hook(lambda _module, _arguments, answer: mids.append(answer[1])))
    answer = t_net(f_t, f_p, p, memory)
    carried = [global_transfer(f_t.deep, pictures[t].deep, f_o) for t, f_o in zip(anno, objects, strict=True)]
    ours |= {
        "prev_prob": p[:, None],
        "tnet_r5": maps.res5,
        "tnet_r4": res4[-1],
        "tnet_r3": maps.res3,
        "tnet_r2": maps.res2,
        "global_affinity0": global_transition(f_t.deep, pictures[anno[0]].deep)[0],
        **{f"global_N{n}": torch.stack(carried[:n]).mean(dim=0) for n in range(1, len(anno) + 1)},
        "local_corr": affinity,
        "local_softmax_s": affinity.softmax(dim=2),
        "prev_prob_quarter": resize(p[:, None], affinity),
        "local_transfer": answer.q,
        "fused_r5_s": fused[0],
        "fused": fused[0],
        "tnet_logit": answer.logits[:, None],
        "tnet_m2_s": mids[0],
        "tnet_logit_N1": t_net(f_t, f_p, p, memory[:1]).logits[:, None],
        "merge_th0.8": labels(answer.logits.sigmoid()),
    }
    for hook in hooks:
        hook.remove()
    inputs = ("frames_u8", "frame_ids", "anno", "targ", "prev", "weights_fingerprint")
    for name, values in golden.items():
        if name not in inputs and not name.startswith("maps_"):
            agrees(name, ours[name.removesuffix("_sum")], values)


@pytest.mark.parametrize("path", recorded(NAME, "atnet.e2e_*.npz"))
def test_a_session(path: Path, method: ATNet) -> None:
    golden = dict(np.load(path))
    clip = Clip("clip", golden["frames_u8"], int(golden["n_objects"]))
    size = clip.frames.shape[1:3]
    (top, bottom), (left, right) = map(margins, size)
    if "pad" in golden:
        assert sorted(golden["pad"].ravel().tolist()) == sorted((top, bottom, left, right))
    planes: list[Tensor] = []
    answers: list[Tensor] = []

    def note_planes(_module: object, arguments: tuple[Tensor, Tensor]) -> None:
        planes.append(arguments[1])

    def note(_module: object, _arguments: object, answer: Annotated | Transferred) -> None:
        answers.append(answer.logits.sigmoid())

    networks = method.network.a_net, method.network.t_net
    hooks = [networks[0].register_forward_pre_hook(note_planes), *(net.register_forward_hook(note) for net in networks)]
    before = empty(clip.name, len(clip.frames))
    method.start(clip)
    for k, frame in enumerate(golden["rounds"].tolist()):
        planes.clear()
        answers.clear()
        scribbles = from_json(json.loads(golden[f"scribbles_{k}"].item()))
        prediction = method.interact(Interaction(frame, before, scribbles))
        p, order = method.sample.p, golden[f"order_{k}"]
        np.testing.assert_array_equal(there(planes[0]), golden[f"maps_{k}"])
        agrees("anet_prob", thinned(answers[0], golden[f"anet_prob_{k}"]), golden[f"anet_prob_{k}"])
        assert len(answers) == 1 + len(order)
        for ours, theirs in zip(answers[1:], golden[f"raw_tnet_prob_{k}"], strict=True):
            agrees("raw_tnet_prob", thinned(crop(ours, size), theirs), theirs)
        for ours, theirs in zip(p, golden[f"prob_{k}"], strict=True):
            agrees("prob", thinned(ours, theirs), theirs)
        agrees("masks", prediction.masks, golden[f"masks_{k}"])
    for hook in hooks:
        hook.remove()


def thinned(x: Tensor, like: np.ndarray) -> Tensor:
    """Every so many pixels of a map."""
    step = -(-x.shape[-1] // like.shape[-1])
    return x[..., ::step, ::step]


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


def tiny_sample(frames: int) -> Sample:
    network = ATNet(size="tiny", weights="random", device="cpu").network
    return Sample(network, Clip("c", np.zeros((frames, 20, 40, 3), np.uint8), 1), "none")


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


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_batch_of_clips_is_the_clips_one_by_one_and_gradients_reach_every_weight(variant: Variant) -> None:
    torch.manual_seed(0)
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
        answers.append(method.sample.p.clone())
    for answer in answers[1:]:
        torch.testing.assert_close(answers[0], answer, atol=0, rtol=0)


def test_what_is_not_offered_is_refused() -> None:
    with pytest.raises(BadInput, match="local=r3"):
        ATNet(size="tiny", weights="random", device="cpu", local="r3")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cache=tape"):
        ATNet(size="tiny", weights="random", device="cpu", cache="tape")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="size=huge"):
        ATNetwork("huge")  # type: ignore[arg-type]
