"""ATNet (Heo et al., ECCV 2020): networks and the authors' session."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from harness.api import Clip, Interaction
from harness.rules.scribbles import empty, from_json
from methods.atnet.method import OFFICIAL_FILE, ATNet, crop, margins
from methods.atnet.network import THRESHOLD, Annotated, Transferred, resize
from methods.atnet.transfer import global_transfer, global_transition, local_affinity
from methods.blocks.trunk import normalise
from tests.parity.replays import find, procedural

NETWORK = "atnet"


def write(folder: Path) -> dict[str, Path]:
    """A file like the authors'."""
    path = folder / OFFICIAL_FILE
    torch.save(procedural(NETWORK), path)
    return {NETWORK: path}


def build(device: str) -> ATNet:
    """Our method with the authors' file."""
    return ATNet(size="paper", weights="official", device=device)


def units(golden: dict[str, Any], method: ATNet) -> dict[str, Any]:
    """The networks, one call each."""
    a_net, t_net = method.network.a_net, method.network.t_net
    device = next(a_net.parameters()).device
    frames = torch.from_numpy(golden.pop("frames_u8")).to(device).movedim(-1, 1).float() / 255
    images = dict(zip(golden.pop("frame_ids").tolist(), normalise(frames), strict=True))
    anno, previous, target = golden.pop("anno").tolist(), int(golden.pop("prev")), int(golden.pop("targ"))
    res4: list[Tensor] = []
    hooks = [
        net.encoder.res4.register_forward_hook(lambda _module, _arguments, answer: res4.append(answer))
        for net in (a_net, t_net)
    ]
    ours: dict[str, Any] = {}
    memory, p_anno, objects = [], {}, []
    pictures = {t: t_net.encode(image) for t, image in images.items()}
    for n, t in enumerate(anno):
        planes = torch.from_numpy(golden.pop(f"maps_{n}")).to(device)
        maps = a_net.encoder(torch.cat((images[t].expand(len(planes), -1, -1, -1), planes), dim=1))
        answer = a_net(images[t], planes)
        objects.append(t_net.converter(answer))
        memory.append(t_net.remember(pictures[t], planes, answer))
        p_anno[t] = answer.logits.sigmoid()
        found = {"r5": maps.res5, "r4": res4[-1], "r3": maps.res3, "r2": maps.res2, "m2": answer.mid}
        found |= {"indicator": objects[-1], "ind": objects[-1], "logit": answer.logits[:, None]}
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
        "local_softmax": affinity.softmax(dim=2),
        "prev_prob_quarter": resize(p[:, None], affinity),
        "local_transfer": answer.q,
        "fused_r5": fused[0],
        "fused": fused[0],
        "tnet_logit": answer.logits[:, None],
        "tnet_m2": mids[0],
        **{f"tnet_logit_N{n}": t_net(f_t, f_p, p, memory[:n]).logits[:, None] for n in range(1, len(anno) + 1)},
        f"merge_th{THRESHOLD}": labels(answer.logits.sigmoid()),
    }
    for hook in hooks:
        hook.remove()
    whole = {f"{name}_sum": value for name, value in ours.items()}
    # Of some maps only the first objects were recorded, but the sums of all.
    return whole | ours | {name: find(name, ours)[: len(v)] for name, v in golden.items() if v.ndim == 4}


def labels(p: Tensor) -> Tensor:
    """The likeliest object where it is likely, uint8 H×W."""
    best, label = p.max(dim=0)
    return ((label + 1) * (best > THRESHOLD)).to(torch.uint8)


def session(golden: dict[str, Any], method: ATNet) -> dict[str, Any]:
    """The authors' session, whole."""
    clip = Clip("clip", golden.pop("frames_u8"), int(golden.pop("n_objects")))
    size = clip.frames.shape[1:3]
    ours: dict[str, Any] = {}
    if "pad" in golden:
        golden["pad"] = np.sort(golden["pad"].ravel())
        ours["pad"] = np.sort([*margins(size[0]), *margins(size[1])])
    planes: list[Tensor] = []
    answers: list[Tensor] = []
    stored: list[int] = []

    def note_planes(_module: object, arguments: tuple[Tensor, Tensor]) -> None:
        planes.append(arguments[1])

    def note(_module: object, _arguments: object, answer: Annotated | Transferred) -> None:
        answers.append(answer.logits.sigmoid())

    networks = method.network.a_net, method.network.t_net
    hooks = [networks[0].register_forward_pre_hook(note_planes), *(net.register_forward_hook(note) for net in networks)]
    before = empty(clip.name, len(clip.frames))
    method.start(clip)
    store = method.state.store

    def noted(t: int, p: Tensor) -> None:
        stored.append(t)
        store(t, p)

    with patch.object(method.state, "store", noted):
        for k, frame in enumerate(golden.pop("rounds").tolist()):
            planes.clear()
            answers.clear()
            stored.clear()
            scribbles = from_json(json.loads(golden.pop(f"scribbles_{k}").item()))
            prediction = method.interact(Interaction(frame, before, scribbles))
            ours |= {
                f"maps_{k}": planes[0],
                f"anet_prob_{k}": answers[0],
                f"order_{k}": np.array(stored[1:]),
                f"raw_tnet_prob_{k}": torch.stack([crop(answer, size) for answer in answers[1:]]),
                f"prob_{k}": method.state.p.clone(),
                f"masks_{k}": prediction.masks,
            }
    for hook in hooks:
        hook.remove()
    return ours


REPLAYS = {"atnet.unit": units, "atnet.e2e": session}
