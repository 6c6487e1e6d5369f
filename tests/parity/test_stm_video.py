"""Our semi-supervised STM gives what the authors' network and driver gave, from the same weights file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from harness.api import BadInput, Clip, Interaction
from harness.rules.scribbles import empty
from methods.blocks.aggregation import aggregate
from methods.blocks.decoder import enlarge
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import margins, pad
from methods.blocks.trunk import normalise
from methods.stm.checkpoint import load
from methods.stm.count import multiply_adds, parameters
from methods.stm.network import Mask, Sharing, STMSemiSupervised
from methods.stm.video import OFFICIAL_FILE, Memory, Sample, STMVideo
from tests.parity.goldens import DEVICE, folders, here, recorded, there
from tests.parity.test_stm_interactive import agrees
from tests.proc_weights import fill, fingerprint

FOLDERS = folders("networks/stm_mivos")


def cases(kind: str) -> list:
    """The recorded files of a kind, carried and full."""
    return recorded("networks/stm_mivos", f"stm.{kind}*.npz")


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((FOLDERS[0] / "stm.manifest.json").read_text())


@pytest.fixture(scope="module")
def authors_file(manifest: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the authors': their keys, prefix and old format, with procedural weights."""
    state = fill("stm", {key: tuple(shape) for key, shape, _ in manifest["keys"]})
    assert fingerprint(state) == manifest["proc_weights"]["fingerprint"]
    path = tmp_path_factory.mktemp("weights") / OFFICIAL_FILE
    tensors = {key: torch.from_numpy(values) for key, values in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def network(authors_file: Path) -> Iterator[STMSemiSupervised]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield STMVideo(size="paper", weights="official", device=DEVICE).network


def check(ours: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    """Every output of a file; out_NAME_chN and out_NAME_stepN hold every N-th channel and pixel of NAME."""
    for name, values in golden.items():
        if not name.startswith("out_"):
            continue
        plain = re.sub(r"_(ch|step)\d+", "", name.removeprefix("out_"))
        full = there(ours[plain])
        for n in re.findall(r"_ch(\d+)", name):
            full = full[..., :: int(n), :, :]
        for n in re.findall(r"_step(\d+)", name):
            full = full[..., :: int(n), :: int(n)]
        agrees(plain, full, values)


def test_every_key_of_the_authors_is_taken(authors_file: Path, manifest: dict) -> None:
    network = STMSemiSupervised("paper")
    network.load_state_dict(load(authors_file, STMSemiSupervised))
    assert sum(p.numel() for p in network.parameters()) == manifest["n_parameters"]


def test_the_other_network_refuses_the_file_by_key(authors_file: Path) -> None:
    with pytest.raises(BadInput, match=r"key Encoder_M\.conv1_p\.weight is missing"):
        load(authors_file)


@pytest.mark.parametrize("path", cases("unit"))
@torch.inference_mode()
def test_units(path: Path, network: STMSemiSupervised) -> None:
    golden = dict(np.load(path))
    *memorized, last = here(golden["in_frames"]).movedim(-1, 1).float() / 255
    masks = here(golden["in_masks_soft"]).unbind(dim=1)
    entries = [
        network.memorize(frame, Mask(p, (p.sum(0) - p).clamp(0, 1))) for frame, p in zip(memorized, masks, strict=True)
    ]
    memory = KeyValue(*(torch.stack(parts, dim=2) for parts in zip(*entries, strict=True)))
    query = network.encode(last[None])
    maps = network.query_encoder(normalise(pad(last[None])))
    num_objects, planes = int(golden["in_num_objects"]), int(golden["in_K"])
    ours: dict[str, Any] = {
        "pad": np.array(margins(last.shape[-2], last.shape[-1], 16)),
        "key_frame0": entries[0].key,
        "value_frame0": entries[0].value,
        "key_last": entries[-1].key,
        "value_last": entries[-1].value,
        "query_key": query.key[0],
        "query_value": query.value[0],
        "r4": maps.res4[0],
        "r3": maps.res3[0],
        "r2": maps.res2[0],
        "key_shape": np.array([1, planes, *memory.key.shape[1:]]),
    }
    for t in range(1, len(entries) + 1):
        some = KeyValue(memory.key[:, :, :t], memory.value[:, :, :t])
        read = read_memory(some, query.key)
        y = torch.cat((read, query.value.expand_as(read)), dim=1)
        logits = enlarge(network.decoder(y, query.skip8, query.skip4), 4)
        p = aggregate(network.segment(query, some).softmax(dim=1)[:, 1])
        ours |= {
            f"read_T{t}": read,
            f"decoder_logits_T{t}": logits,
            f"object_prob_T{t}_padded": logits.softmax(dim=1)[:, 1],
            f"aggregated_logit_T{t}": p.log() - p.log()[:1],
            f"prob_T{t}": p,
        }
        for name in golden:
            if name.startswith(f"out_aggregated_logit_T{t}"):  # less the background's; the last plane is an empty one
                golden[name] = (golden[name] - golden[name][:1])[: num_objects + 1]
    check(ours, golden)


@pytest.mark.parametrize("path", cases("overlap"))
@torch.inference_mode()
def test_others_are_clamped(path: Path, network: STMSemiSupervised) -> None:
    golden = dict(np.load(path))
    frames, masks = golden["in_frames"], golden["in_masks"]
    sample = Sample(network, Clip("overlap", frames.reshape(1, *frames.shape[-3:]), len(masks)), "every", 5)
    check({"key": sample.memorize(0, torch.from_numpy(masks / np.float32(4)))[0]}, golden)


@pytest.mark.parametrize("path", cases("clip"))
def test_clips(path: Path, network: STMSemiSupervised) -> None:
    golden = dict(np.load(path))
    clip = Clip("synthetic", golden["in_frames"], int(golden["in_num_objects"]))
    first = golden["in_first_mask"]
    for mem_every in sorted({int(n) for name in golden for n in re.findall(r"every(\d+)", name)}):
        sample = Sample(network, clip, "every", mem_every)
        sample.give(0, first)
        planes = torch.stack([p for _, p in sample.propagate(range(1, len(clip.frames)))], dim=1)
        prob, labels = golden[f"out_prob_every{mem_every}"], golden[f"out_pred_every{mem_every}"]
        agrees("prob", there(planes if prob.ndim == 4 else planes[:, -1]), prob)
        agrees("mask", np.concatenate((first[None], there(planes.argmax(dim=0)))), labels)
        assert golden[f"out_unused_plane_every{mem_every}_last"].max() < 1e-6  # what leaving them out costs


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
    assert {s for s in range(8) if method.sample.remembers(s, start=0, previous=7)} == read


def test_the_rules_of_memory_differ_in_what_they_read() -> None:
    clip, mask = clip_and_mask()
    planes = []
    for memory in ("first", "previous", "first_previous", "every"):
        sample = Sample(tiny().network, clip, memory, mem_every=3)
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
