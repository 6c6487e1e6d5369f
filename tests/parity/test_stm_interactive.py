"""Our interactive STM gives what the authors' network and driver gave, from the same weights file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.api import BadInput, Clip, Interaction, Scribbles
from harness.rules.scribbles import draw, from_json
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import margins
from methods.stm.checkpoint import load
from methods.stm.method import OFFICIAL_FILE, STM, Sample, merge, stroke_planes
from methods.stm.network import Annotation, STMInteractive
from tests.parity.goldens import DEVICE, folders, here, note, recorded, there
from tests.proc_weights import fill, fingerprint

NAME = "stm_interactive"
FOLDERS = folders(f"networks/{NAME}")


def cases(kind: str) -> list:
    """The recorded files of a kind, carried and full."""
    return recorded(f"networks/{NAME}", f"{NAME}.{kind}*.npz")


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((FOLDERS[0] / f"{NAME}.manifest.json").read_text())


@pytest.fixture(scope="module")
def authors_file(manifest: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the authors': their keys, prefix and old format, with procedural weights."""
    state = fill(NAME, {key: tuple(shape) for key, shape, _ in manifest["keys"]})
    assert fingerprint(state) == manifest["proc_weights"]["fingerprint"]
    path = tmp_path_factory.mktemp("weights") / OFFICIAL_FILE
    tensors = {key: torch.from_numpy(values) for key, values in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def method(authors_file: Path) -> Iterator[STM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_file.parent))
        yield STM(size="paper", weights="official", device=DEVICE, batch_size=1)


def agrees(name: str, ours: np.ndarray, golden: np.ndarray) -> None:
    """Assert that `ours`, thinned as the name says (_chN channels, _stepN pixels), is within the limits of its kind."""
    for n in re.findall(r"_ch(\d+)", name):
        ours = ours[:: int(n)]
    for n in re.findall(r"_step(\d+)", name):
        ours = ours[..., :: int(n), :: int(n)]
    assert ours.shape == golden.shape, name
    difference = np.abs(ours.astype(np.float64) - golden)
    if golden.dtype != np.float32:
        limits = {"mask": (difference > 0).mean() <= 5e-4} if "mask" in name else {"exact": not difference.any()}
        note(name, "labels", (difference > 0).mean(), 5e-4 if "mask" in name else 0)
    elif "prob" in name:
        limits = {"most": (difference <= 1e-4).mean() >= 0.999, "all": difference.max() <= 1e-3}
        note(name, "probabilities", difference.max(), 1e-3)
    else:
        limits = {"all": difference.max() <= 2e-4}
        note(name, "features", difference.max(), 2e-4)
    assert all(limits.values()), f"{name}: {limits}, worst {difference.max():.2g}"


def check(ours: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    """Every output of a file, by its name without out_ and thinning."""
    for name, values in golden.items():
        if name.startswith("out_"):
            agrees(name, there(ours[re.sub(r"_(ch|step)\d+", "", name.removeprefix("out_"))]), values)


def test_every_key_of_the_authors_is_taken(authors_file: Path, manifest: dict) -> None:
    network = STMInteractive("paper")
    network.load_state_dict(load(authors_file))
    assert sum(p.numel() for p in network.parameters()) == manifest["n_parameters"]


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


@pytest.mark.parametrize("path", cases("strokes"))
def test_strokes(path: Path) -> None:
    golden = dict(np.load(path))
    for i, case in enumerate(json.loads(golden["in_cases_json"].item())):
        strokes = from_json(case["scribbles"]).frames[case["scribbles"]["annotated_frame"]]
        size, num_objects = (case["height"], case["width"]), case["num_objects"]
        positive, negative = stroke_planes(strokes, num_objects, *size)
        agrees("labels", draw(strokes, size, default=-1), golden[f"out_labels_{i}"])
        planes = golden[f"out_planes_{i}"]
        agrees("planes", positive, planes[1:])
        for m in range(1, num_objects + 1):
            agrees("planes", negative[m - 1], np.delete(planes, m, axis=0).max(axis=0))


@pytest.mark.parametrize("path", cases("unit"))
@torch.inference_mode()
def test_units(path: Path, method: STM) -> None:
    golden = dict(np.load(path))
    network = method.network
    frames = here(golden["in_frames"])
    masks, scribbles = here(golden["in_mask_object"]), here(golden["in_scribs"])
    entries = [
        network.memorize(frame, Annotation(mask[None], strokes[1:2], strokes[0:1], torch.zeros_like(mask)[None]))
        for frame, mask, strokes in zip(frames[:-1], masks, scribbles, strict=True)
    ]
    keys, values = (torch.cat(parts).movedim(0, 1) for parts in zip(*entries, strict=True))
    query = network.encode(frames[-1:])
    ours: dict[str, Any] = {
        "pad": np.array(margins(frames.shape[-2], frames.shape[-1], 16)),
        "key": keys,
        "value": values,
        "value_frame0": values[:, 0],
        "query_key": query.key[0],
        "query_value": query.value[0],
    }
    for t in range(1, len(entries) + 1):
        memory = KeyValue(keys[:, :t], values[:, :t])
        ours[f"read_T{t}"] = read_memory(memory, query.key)[0]
        ours[f"logit_T{t}"] = network.segment(query, memory)[0]
    check(ours, golden)


@pytest.mark.parametrize("path", cases("rounds"))
def test_rounds(path: Path, method: STM) -> None:
    golden = dict(np.load(path))
    clip = Clip("synthetic", golden["in_frames"], num_objects=1)
    method.batch_size = int(golden["in_batch_size"])
    method.warm_up(clip)
    method.start(clip)
    ours: dict[str, Any] = {}
    rounds = json.loads(golden["in_scribbles_json"].item())
    for n, (scribbles, frame) in enumerate(zip(map(from_json, rounds), golden["in_annotated"], strict=True), 1):
        masks = method.interact(Interaction(int(frame), scribbles, scribbles)).masks
        size = clip.frames.shape[1:3]
        positive, negative = stroke_planes(scribbles.frames[frame], 1, *size)
        sample = method.sample
        frames = golden[f"out_prob_frames_{n}"]
        ours |= {
            f"labels_{n}": draw(scribbles.frames[frame], size, default=-1),
            f"planes_{n}": np.concatenate((negative, positive)),
            f"memory_frames_{n}": np.array(list(sample.memory)),
            f"new_key_{n}": sample.memory[frame].key[0],
            f"masks_{n}": masks,
            f"prob_{n}": sample.p[frames, 0],
            f"prob_frames_{n}": frames,
        }
    ours["final_keys"] = torch.stack([entry.key[0] for entry in sample.memory.values()], dim=1)
    ours["final_values"] = torch.stack([entry.value[0] for entry in sample.memory.values()], dim=1)
    check(ours, golden)


@pytest.mark.parametrize("path", cases("gui"))
@torch.inference_mode()
def test_correcting_a_frame_twice_before_propagating(path: Path, method: STM) -> None:
    golden = dict(np.load(path))
    del golden["out_others_untouched"]  # of a call of theirs on one frame, which a round never makes
    frame = int(golden["in_frame"])
    sample = Sample(method.network, Clip("synthetic", golden["in_frames"], num_objects=1), batch_size=1)
    visits: list[Scribbles] = [from_json(scribbles) for scribbles in json.loads(golden["in_scribbles_json"].item())]
    ours: dict[str, Any] = {}
    for n, scribbles in enumerate(visits, 1):
        sample.memorize(frame, scribbles.frames[frame])
        entry = sample.memory[frame]
        memory = KeyValue(entry.key[0].unsqueeze(1), entry.value[0].unsqueeze(1))
        planes = merge(method.network.segment(sample.encode(slice(frame, frame + 1)), memory).softmax(dim=1)[:, 1:])[0]
        sample.p[frame] = planes[1:]
        ours |= {f"prob_{n}": planes[1], f"mask_{n}": planes.argmax(0), f"key_{n}": entry.key[0]}
    ours["masks_all"] = sample.segment()
    ours["prob_all"] = sample.p[:, 0]
    check(ours, golden)
