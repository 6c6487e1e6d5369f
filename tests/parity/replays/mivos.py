"""MiVOS (Cheng et al., CVPR 2021): networks, session core and DAVIS driver."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from harness.api import Clip, Interaction, Stroke
from harness.rules.scribbles import empty, from_json
from methods.blocks.aggregation import aggregate
from methods.blocks.memory import KeyValue, read_memory
from methods.blocks.padding import margins, pad
from methods.mivos.method import OFFICIAL_FILES, MiVOS, Options, State
from methods.mivos.network import align
from tests.parity.replays import procedural

NETWORKS = {"propagation": "mivos_prop", "s2m": "mivos_s2m", "fusion": "mivos_fusion"}


def write(folder: Path) -> dict[str, Path]:
    """Files like the authors'."""
    paths = {part: folder / name for part, name in OFFICIAL_FILES.items()}
    for part, path in paths.items():
        torch.save(procedural(NETWORKS[part]), path)
    return paths


def build(device: str) -> MiVOS:
    """Our method with the authors' files."""
    return MiVOS(size="paper", weights="official", device=device)


def options(golden: dict[str, Any], method: MiVOS) -> Options:
    """The method's, but for how often the recording memorizes a frame."""
    return method.options._replace(mem_every=int(golden.get("in_mem_freq", method.options.mem_every)))


def sample_of(method: MiVOS, frames: np.ndarray, num_objects: int) -> State:
    return State(method.network, Clip("synthetic", frames, num_objects), method.options)


def numbers(pattern: str, golden: dict[str, Any]) -> list[int]:
    """The numbers in the recording's names, ascending."""
    return sorted({int(n) for name in golden for n in re.findall(pattern, name)})


def halved(golden: dict[str, Any], *starts: str) -> None:
    """Take masks, one-hot but for ties, as what they say of each plane."""
    golden |= {name: values > 0.5 for name, values in golden.items() if name.startswith(starts)}


def s2m(golden: dict[str, Any], method: MiVOS) -> dict[str, Any]:
    """Scribble-to-mask, one call."""
    network, sample = method.network.s2m, sample_of(method, golden["in_frame"][None], 1)
    image, planes = sample.image(0), pad(torch.from_numpy(golden["in_planes"]).to(sample.device).float())
    res4, _, res2 = network.trunk(torch.cat((image, planes))[None])
    res5 = network.res5(res4)
    return {
        "pad": np.array(margins(golden["in_frame"].shape[0], golden["in_frame"].shape[1], 16)),
        "layer1": res2[0],
        "layer4": res5[0],
        "aspp": network.aspp(res5)[0],
        "logit": network(image, *planes[:, None])[0],
    }


def units(golden: dict[str, Any], method: MiVOS) -> dict[str, Any]:
    """Propagation and fusion, one call each."""
    golden.pop("out_agg_sbg_step2", None)  # of the authors' GUI: a background of 0.5
    halved(golden, "out_agg_wbg_hard")
    frames = golden["in_frames"]
    last = len(frames) - 1
    sample = sample_of(method, frames, len(golden["in_masks_soft"]))
    masks, before, previous = (
        torch.from_numpy(golden[f"in_{name}"]).to(sample.device)
        for name in ("masks_soft", "fusion_prev_mask0", "fusion_prev_mask_target")
    )
    masks = pad(masks)
    net = method.network.propagation
    entries = [net.memorize(sample.image(t), masks[:, t]) for t in range(last)]
    query, image = net.encode(sample.image(last)), sample.image(last)
    f16, f8, f4 = net.query_encoder(image[None])
    ours: dict[str, Any] = {
        "pad": np.array(margins(frames.shape[1], frames.shape[2], 16)),
        "key_frame0": entries[0].key,
        "value_frame0": entries[0].value,
        "key_last": entries[-1].key,
        "value_last": entries[-1].value,
        "query_key": query.key[0],
        "query_value": query.value[0],
        "f16": f16[0],
        "f8": f8[0],
        "f4": f4[0],
    }
    (top_k,) = numbers(r"_top(\d+)", golden)
    for t in sorted({*numbers(r"_T(\d+)", golden), last}):
        memory = KeyValue(*(torch.stack(parts, dim=2) for parts in zip(*entries[:t], strict=True)))
        logits = net.segment(query, memory, top_k=top_k)
        ours |= {
            f"read_top{top_k}_T{t}": read_memory(memory, query.key, top_k=top_k),
            f"read_softmax_T{t}": read_memory(memory, query.key),
            f"decoder_logit_T{t}": logits,
            f"prob_T{t}": logits.sigmoid(),
        }
    h, w = query.key.shape[-2:]
    change = masks[:, 0] - before
    aligned = align(torch.stack((change.clamp(min=0), -change.clamp(max=0)), dim=1), entries[0].key, query)
    n_c = float(golden["in_nc"])
    fused = method.network.fusion(image, previous, logits.sigmoid(), aligned, n_c, 1 - n_c)
    positions = torch.eye(h * w, device=sample.device).view(h * w, 1, h, w)
    for m in numbers(r"attention_weights_obj(\d+)", golden):
        memory = KeyValue(entries[0].key[m - 1][:, None], positions)
        ours[f"attention_weights_obj{m}"] = read_memory(memory, query.key).view(h * w, -1)
    return ours | {
        "agg_wbg": aggregate(logits.sigmoid()),
        "agg_wbg_hard": aggregate(logits.sigmoid(), hard=True) > 0.5,
        "attention_map": aligned,
        "fusion_logit": fused,
        "fused_prob": aggregate(fused.sigmoid()),
    }


def overlap(golden: dict[str, Any], method: MiVOS) -> dict[str, Any]:
    """Masks that overlap are memorized: the others' sum is not clamped."""
    sample = sample_of(method, golden["in_frames"], len(golden["in_masks"]))
    masks = pad(torch.from_numpy(golden["in_masks"]).to(sample.device).float() / 4)
    return {"key": method.network.propagation.memorize(sample.image(0), masks).key}


def core(golden: dict[str, Any], method: MiVOS) -> dict[str, Any]:
    """Masks given in some rounds, propagated and fused."""
    clip = Clip("synthetic", golden["in_frames"], int(golden["in_num_objects"]))
    with patch.object(method, "options", options(golden, method)):
        method.start(clip)
    sample, fuse = method.state, method.state.fuse
    fused: dict[int, tuple[Tensor, ...]] = {}

    def watched(t_i: int, t_r: int, t_c: int, current: Tensor, *rest: Any) -> Tensor:
        result = fuse(t_i, t_r, t_c, current, *rest)
        fused[t_i] = torch.tensor((t_c, t_r, t_i)), current, result
        return result

    ours: dict[str, Any] = {}
    none = empty(clip.name, len(clip.frames))
    with patch.object(sample, "fuse", watched):
        for n, (frame, mask) in enumerate(zip(golden["in_interacted"], golden["in_masks"], strict=True), 1):
            fused.clear()
            prediction = method.interact(Interaction(int(frame), none, none, mask))
            frames = golden.pop(f"out_prob_round{n}_frames")
            ours[f"labels_round{n}"] = prediction.masks
            ours[f"prob_round{n}"] = sample.p[frames].movedim(0, 1).clone()
            ours[f"fuse_round{n}_order"] = np.array(list(fused))
            if f"out_fuse_round{n}_tc_tr_ti" in golden:
                times, current, result = fused[int(golden[f"out_fuse_round{n}_tc_tr_ti"][2])]
                ours |= {
                    f"fuse_round{n}_tc_tr_ti": times,
                    f"fuse_round{n}_unfused_current": current,
                    f"fuse_round{n}_result": result,
                }
    ours["memory_frames_certain"] = np.array(torch.stack([entry.key for _, entry in sample.certain], dim=2).shape)
    return ours


def davis(golden: dict[str, Any], method: MiVOS) -> dict[str, Any]:
    """Calls of the DAVIS driver, each from the recorded state: random weights have no stable chain of calls."""
    clip = Clip("synthetic", golden["in_frames"], int(golden["in_num_objects"]))
    with patch.object(method, "options", options(golden, method)):
        method.start(clip)
    sample, interaction_to_mask = method.state, method.state.interaction_to_mask
    masks = {n: golden[f"out_mask_{n}"] for n in numbers(r"^out_mask_(\d+)", golden)}
    halved(golden, "out_mask_")
    ours: dict[str, Any] = {}

    def recorded(frame: int, strokes: Sequence[Stroke]) -> Tensor:
        ours[f"mask_{n}"] = interaction_to_mask(frame, strokes) > 0.5
        return torch.from_numpy(masks[n]).to(sample.device)

    def note_logits(_module: object, _arguments: object, logits: Tensor) -> None:
        ours[f"s2m_logit_{n}"] = logits

    hook = method.network.s2m.register_forward_hook(note_logits)
    for n, scribbles in enumerate(map(from_json, json.loads(golden["in_scribbles_json"].item())), 1):
        frame = (scribbles.annotated_frames or [len(clip.frames) - 1])[-1]  # without a stroke the authors take the last
        sample.labels[frame] = torch.from_numpy(golden.pop(f"out_state_label_{n}"))

        with patch.object(sample, "interaction_to_mask", recorded):
            prediction = method.interact(Interaction(frame, scribbles, scribbles))
        (following,) = prediction.candidates or (-1,)
        ours |= {f"labels_{n}": prediction.masks, f"next_{n}": np.array(following)}
    hook.remove()
    return ours | {"prob_final_first_frame": sample.p[0], "prob_final_last_frame": sample.p[-1]}


REPLAYS = {
    f"mivos_{kind}": replay
    for kind, replay in {
        "s2m.": s2m,
        "prop.unit": units,
        "prop.overlap": overlap,
        "core.": core,
        "davis.": davis,
    }.items()
}
