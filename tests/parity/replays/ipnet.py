"""IPNet (Oh et al., CVPR 2019): networks and the authors' session."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.api import Clip
from harness.rules.scribbles import from_json
from methods.blocks.aggregation import aggregate
from methods.ipnet.method import OFFICIAL_FILES, IPNet, Options, bounds, stroke_planes, weight
from methods.ipnet.network import Output
from tests.parity.replays import procedural

NETWORKS = {"interaction": "ipnet_i", "propagation": "ipnet_p"}


def write(folder: Path) -> dict[str, Path]:
    """Files like the authors': their keys, prefix and old format, without batch counts."""
    paths = {part: folder / name for part, name in OFFICIAL_FILES.items()}
    for part, path in paths.items():
        state = {f"module.{k}": v for k, v in procedural(NETWORKS[part]).items() if "num_batches_tracked" not in k}
        torch.save(state, path, _use_new_zipfile_serialization=False)
    return paths


def build(device: str) -> IPNet:
    """Our method with the authors' files."""
    return IPNet(size="paper", weights="official", device=device)


def watched(network: nn.Module, *inputs: Any) -> tuple[Output, dict[str, Any]]:
    """Call a network: its output, and what it saw and said by the recordings' names."""
    grids: list[Tensor] = []
    windows: list[Tensor] = []
    maps: list[Any] = []
    grid_sample = F.grid_sample

    def noted(x: Tensor, grid: Tensor, **rest: Any) -> Tensor:
        grids.append(grid)
        windows.append(grid_sample(x, grid, **rest))
        return windows[-1]

    hook = network.get_submodule("encoder").register_forward_hook(lambda *call: maps.append(call[2]))
    with patch.object(F, "grid_sample", noted):
        output = network(*inputs)
    hook.remove()
    (forward, backward), window = grids, windows[0]
    first, last = forward[:, 0, 0], forward[:, -1, -1]
    seen = {
        "box_yxhw": output.box,
        "theta": torch.cat((torch.diag_embed((last - first) / 2), ((last + first) / 2)[..., None]), dim=2),
        "fw_grid": forward.movedim(-1, 1),
        "bw_grid": backward.movedim(-1, 1),
        "roi_rgb": window[:, :3],
        "roi_maps": window[:, 3:],
        "logits": output.logits[0],
        "em": output.p,
    }
    seen |= {f"side_p{n}": logits for n, logits in enumerate(output.logits[1:], 2)}
    return output, seen | dict(zip(("r5", "r4", "r3", "r2"), maps[0], strict=True))


def units(golden: dict[str, Any], method: IPNet) -> dict[str, Any]:
    """Both networks, one call each in a first and in a later round.

    Where as many frames are recorded as the scribbles have, the annotated one is that of the scribbles and goes to
    the next (from the last one to the one before); of two frames out of more, the first goes to the second.
    """
    interaction, propagation = method.network.interaction, method.network.propagation
    device = next(interaction.parameters()).device
    frames = torch.from_numpy(golden.pop("frames_u8")).to(device).movedim(-1, 1).float() / 255
    for name in list(golden):
        if "grid" in name:
            golden[name] = np.moveaxis(golden[name], -1, 1)
    mask = previous = torch.zeros(1, *frames.shape[-2:], device=device)
    ours: dict[str, Any] = {}
    references: list[Tensor] = []
    for turn in ("first", "later"):
        if f"scribbles_{turn}" not in golden:
            break
        scribbles = from_json(json.loads(golden.pop(f"scribbles_{turn}").item()))
        (annotated,) = scribbles.annotated_frames
        at = annotated if len(frames) == len(scribbles.frames) else 0
        to = at + 1 if at + 1 < len(frames) else at - 1
        image, neighbour = frames[at][None], frames[to][None]
        ours[f"pos_{turn}"], ours[f"neg_{turn}"] = planes = stroke_planes(scribbles.frames[annotated], *mask.shape)
        positive, negative = (torch.from_numpy(plane).to(mask) for plane in planes)
        if "I_half_em" in golden and turn == "first":
            _, seen = watched(interaction, image, torch.full_like(mask, 0.5), positive, negative)
            ours |= {f"I_half_{name}": value for name, value in seen.items()}
        output, seen = watched(interaction, image, mask, positive, negative)
        ours |= {f"I_{turn}_{name}": value for name, value in seen.items()} | {f"ref_{turn}": output.res5}
        references.append(output.res5)
        mask = output.p
        reference = propagation.refer(output.res5, references[0] if turn == "later" else None)
        passed, seen = watched(propagation, neighbour, previous, mask, reference)
        ours |= {f"P_{turn}_{name}": value for name, value in seen.items()}
        previous = passed.p
    if len(references) > 1:
        ours |= {"sefa_weights": propagation.aggregation.weights(*references[::-1])[0], "sefa_out": reference}
    return ours


def session(golden: dict[str, Any], method: IPNet) -> dict[str, Any]:
    """The authors' session: with fusion where its weights are recorded, else as released."""
    linear = any(name.startswith("weight_") for name in golden)
    chosen = Options("linear" if linear else "none", aggregation=True, cache="device")
    clip = Clip("synthetic", golden.pop("frames_u8"), num_objects=1)
    with patch.object(method, "options", chosen):
        method.start(clip)
    sample, load_images, forward = method.state, method.state.images, method.network.propagation.forward
    loaded: list[int] = []
    boxes: dict[int, Tensor] = {}

    def load(frames: list[int]) -> Tensor:
        loaded[:] = frames
        return load_images(frames)

    def settled(images: Tensor, previous: Tensor, neighbour: Tensor, reference: Tensor) -> Output:
        for p, t in zip(neighbour, loaded, strict=True):
            settle(p, masks[k][t - np.sign(t - target)])
        output = forward(images, previous, neighbour, reference)
        boxes.update(zip(loaded, output.box, strict=True))
        return output

    ours: dict[str, Any] = {}
    targets = golden.pop("rounds").tolist()
    masks = [golden[f"mask_{k}"] for k in range(len(targets))]
    with patch.object(sample, "images", load), patch.object(method.network.propagation, "forward", settled):
        for k, target in enumerate(targets):
            stops = sorted(
                (name for name in golden if name.startswith(f"scribbles_{k}_")), key=lambda name: int(name[-1:])
            )
            for name in stops:
                scribbles = from_json(json.loads(golden.pop(name).item()))
                sample.annotate(target, scribbles.frames[target])
                ours[name.replace("scribbles", "inter_em")] = sample.p[target, 0].clone()
            boxes.clear()
            sample.propagate(target)
            known = range(len(sample.p))
            # What was passed on is not in a fused mask, nor is which way its pixels at 0.5 went: one step is compared
            if k and linear:
                before, after = bounds(target, targets[:k])
                ours[f"weight_{k}"] = weights(target, targets[:k], len(sample.p))
                first, last = before or 0, len(sample.p) - 1 if after is None else after
                known = range(max(first, target - 1), min(last, target + 1) + 1) if k == 1 else range(0)
            elif linear:
                ours[f"weight_{k}"] = weights(target, [], len(sample.p))
            for name, value in ((f"all_E_{k}", sample.p[:, 0].clone()), (f"mask_{k}", sample.labels())):
                if known:
                    golden[name], ours[name] = golden[name][known], value[known]
                else:
                    del golden[name]
            if sample.older is not None:
                ours[f"a_ref_{k}"] = sample.older
            order = sorted(boxes, key=lambda t: (t < target, abs(t - target)))
            ours[f"prop_boxes_{k}"] = torch.stack([boxes[t] for t in order])
    return ours


def settle(p: Tensor, mask: np.ndarray) -> None:
    """Pixels as good as at 0.5 go where they went in the recording: as masks are rounded, a session amplifies them."""
    undecided = (p - 0.5).abs() < 1e-3
    p[undecided] = torch.from_numpy(mask).to(p)[undecided]


def weights(target: int, earlier: list[int], num_frames: int) -> np.ndarray:
    """What this round's masks weigh in each frame."""
    before, after = bounds(target, earlier)
    return np.array([weight(t, target, before if t < target else after) for t in range(num_frames)])


def merged(golden: dict[str, Any], _: IPNet) -> dict[str, Any]:
    """Objects merged, by the formula of the text."""
    probabilities = {name: golden.pop(name) for name in list(golden) if re.match(r"prob_\d", name)}
    return {name.replace("prob", "merged"): aggregate(torch.from_numpy(p)) for name, p in probabilities.items()}


REPLAYS = {"ipnet.unit": units, "ipnet.e2e": session, "ipnet.merge": merged}
