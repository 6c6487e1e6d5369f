"""Semi-supervised STM (Oh et al., ICCV 2019)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.api import Clip
from methods.blocks.aggregation import aggregate
from methods.blocks.decoder import enlarge
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import margins, pad
from methods.blocks.trunk import normalise
from methods.stm.network import Mask
from methods.stm.video import OFFICIAL_FILE, State, STMVideo
from tests.parity.replays import procedural

NETWORK = "stm"


def write(folder: Path) -> dict[str, Path]:
    """A file like the authors': their keys, prefix and old format."""
    path = folder / OFFICIAL_FILE
    torch.save(procedural(NETWORK), path, _use_new_zipfile_serialization=False)
    return {NETWORK: path}


def build(device: str) -> STMVideo:
    """Our method with the authors' file."""
    return STMVideo(size="paper", weights="official", device=device)


def units(golden: dict[str, Any], method: STMVideo) -> dict[str, Any]:
    """The networks, one call each."""
    network = method.network
    device = next(network.parameters()).device
    *memorized, last = torch.from_numpy(golden["in_frames"]).to(device).movedim(-1, 1).float() / 255
    masks = torch.from_numpy(golden["in_masks_soft"]).to(device).unbind(dim=1)
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
        if name.startswith("out_aggregated_logit_T"):  # less the background's; the last plane is an empty one
            golden[name] = (golden[name] - golden[name][:1])[: num_objects + 1]
    return ours


def overlap(golden: dict[str, Any], method: STMVideo) -> dict[str, Any]:
    """Masks that overlap are memorized: the others' sum is clamped."""
    frames, masks = golden["in_frames"], golden["in_masks"]
    sample = State(method.network, Clip("overlap", frames.reshape(1, *frames.shape[-3:]), len(masks)), "every", 5)
    return {"key": sample.memorize(0, torch.from_numpy(masks / np.float32(4)))[0]}


def clips(golden: dict[str, Any], method: STMVideo) -> dict[str, Any]:
    """A mask carried through a clip, with memories of several densities."""
    clip = Clip("synthetic", golden["in_frames"], int(golden["in_num_objects"]))
    first = golden["in_first_mask"]
    ours: dict[str, Any] = {}
    for mem_every in golden["in_mem_every"].ravel().tolist():
        sample = State(method.network, clip, "every", mem_every)
        sample.give(0, first)
        planes = torch.stack([p for _, p in sample.propagate(range(1, len(clip.frames)))], dim=1).cpu().numpy()
        of_all_frames = golden[f"out_prob_every{mem_every}"].ndim == 4
        ours[f"prob_every{mem_every}"] = planes if of_all_frames else planes[:, -1]
        ours[f"pred_every{mem_every}"] = np.concatenate((first[None], planes.argmax(axis=0)))
        for name in [name for name in golden if re.match(f"out_unused_plane_every{mem_every}_", name)]:
            ours[name.removeprefix("out_")] = np.zeros_like(golden[name])  # we have no planes but those of objects
    return ours


REPLAYS = {f"{NETWORK}.{kind}": replay for kind, replay in {"unit": units, "overlap": overlap, "clip": clips}.items()}
