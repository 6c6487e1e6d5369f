"""Interactive STM (Oh et al., TPAMI 2020)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.api import Clip, Interaction, Scribbles
from harness.rules.scribbles import draw, from_json
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import margins
from methods.stm.method import OFFICIAL_FILE, STM, State, merge, stroke_planes
from methods.stm.network import Annotation
from tests.parity.replays import procedural

NETWORK = "stm_interactive"


def write(folder: Path) -> dict[str, Path]:
    """A file like the authors': their keys, prefix and old format."""
    path = folder / OFFICIAL_FILE
    torch.save(procedural(NETWORK), path, _use_new_zipfile_serialization=False)
    return {NETWORK: path}


def build(device: str) -> STM:
    """Our method with the authors' file."""
    return STM(size="paper", weights="official", device=device, batch_size=1)


def strokes(golden: dict[str, Any], _: STM) -> dict[str, Any]:
    """Strokes as planes."""
    ours: dict[str, Any] = {}
    for i, case in enumerate(json.loads(golden["in_cases_json"].item())):
        drawn = from_json(case["scribbles"]).frames[case["scribbles"]["annotated_frame"]]
        size, num_objects = (case["height"], case["width"]), case["num_objects"]
        positive, negative = stroke_planes(drawn, num_objects, *size)
        theirs = golden.pop(f"out_planes_{i}")
        golden[f"out_positive_planes_{i}"] = theirs[1:]
        golden[f"out_negative_planes_{i}"] = np.stack(
            [np.delete(theirs, m, axis=0).max(axis=0) for m in range(1, num_objects + 1)]
        )
        ours |= {
            f"labels_{i}": draw(drawn, size, default=-1),
            f"positive_planes_{i}": positive,
            f"negative_planes_{i}": negative,
        }
    return ours


def units(golden: dict[str, Any], method: STM) -> dict[str, Any]:
    """The networks, one call each."""
    network = method.network
    device = next(network.parameters()).device
    frames, masks, scribbles = (
        torch.from_numpy(golden[f"in_{name}"]).to(device) for name in ("frames", "mask_object", "scribs")
    )
    entries = [
        network.memorize(frame, Annotation(mask[None], drawn[1:2], drawn[0:1], torch.zeros_like(mask)[None]))
        for frame, mask, drawn in zip(frames[:-1], masks, scribbles, strict=True)
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
    return ours


def rounds(golden: dict[str, Any], method: STM) -> dict[str, Any]:
    """Memorize strokes, then segment all frames, some rounds."""
    clip = Clip("synthetic", golden["in_frames"], num_objects=1)
    method.batch_size = int(golden["in_batch_size"])
    method.warm_up(clip)
    method.start(clip)
    sample, size = method.state, clip.frames.shape[1:3]
    ours: dict[str, Any] = {}
    drawn = map(from_json, json.loads(golden["in_scribbles_json"].item()))
    for n, (scribbles, frame) in enumerate(zip(drawn, golden["in_annotated"].tolist(), strict=True), 1):
        masks = method.interact(Interaction(frame, scribbles, scribbles)).masks
        positive, negative = stroke_planes(scribbles.frames[frame], 1, *size)
        frames = golden.pop(f"out_prob_frames_{n}")
        ours |= {
            f"labels_{n}": draw(scribbles.frames[frame], size, default=-1),
            f"planes_{n}": np.concatenate((negative, positive)),
            f"memory_frames_{n}": np.array(list(sample.memory)),
            f"new_key_{n}": sample.memory[frame].key[0],
            f"masks_{n}": masks,
            f"prob_{n}": sample.p[frames, 0].clone(),
        }
    ours["final_keys"] = torch.stack([entry.key[0] for entry in sample.memory.values()], dim=1)
    ours["final_values"] = torch.stack([entry.value[0] for entry in sample.memory.values()], dim=1)
    return ours


def visits(golden: dict[str, Any], method: STM) -> dict[str, Any]:
    """A frame corrected several times before all are segmented."""
    del golden["out_others_untouched"]  # of a call of theirs on one frame, which a round never makes
    frame = int(golden["in_frame"])
    sample = State(method.network, Clip("synthetic", golden["in_frames"], num_objects=1), batch_size=1)
    drawn: list[Scribbles] = [from_json(scribbles) for scribbles in json.loads(golden["in_scribbles_json"].item())]
    ours: dict[str, Any] = {}
    for n, scribbles in enumerate(drawn, 1):
        sample.memorize(frame, scribbles.frames[frame])
        entry = sample.memory[frame]
        memory = KeyValue(entry.key[0].unsqueeze(1), entry.value[0].unsqueeze(1))
        planes = merge(method.network.segment(sample.encode(slice(frame, frame + 1)), memory).softmax(dim=1)[:, 1:])[0]
        sample.p[frame] = planes[1:]
        ours |= {f"prob_{n}": planes[1], f"mask_{n}": planes.argmax(0), f"key_{n}": entry.key[0]}
    ours["masks_all"] = sample.segment()
    ours["prob_all"] = sample.p[:, 0]
    return ours


REPLAYS = {
    f"{NETWORK}.{kind}": replay
    for kind, replay in {"strokes": strokes, "unit": units, "rounds": rounds, "gui": visits}.items()
}
