"""How IPNet's two networks learn, jointly and over several rounds (Oh et al., CVPR 2019; Challenge 2018, Section 2)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.blocks.host import to_host
from methods.ipnet.method import merge, stroke_planes
from methods.ipnet.network import InteractionPropagation, Output, into_window
from methods.training import losses, strokes
from methods.training.clips import Batch, one_hot, wrong
from methods.training.loop import Step

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)  # weights of the five sizes of logits; a guess, the authors' are not known


def rounds(
    network: InteractionPropagation,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    rounds: int,
    jaccard: float = 0.0,
) -> Step:
    """Cross-entropy of every mask of every round, in the windows: of the annotated frame, then outwards of the others.

    The first annotated frame is a random one, each further one the worst by now, the same in all clips of a batch.
    References are passed on without gradient, as masks are. Void counts as background here.
    jaccard: weight of a soft Jaccard loss beside.
    """
    count, time, height, width = batch.labels.shape
    num_objects = batch.num_objects
    frames = (batch.frames.float() / 255).repeat_interleave(num_objects, 0)
    masks = one_hot(batch.labels, num_objects).transpose(1, 2).flatten(0, 1)  # B·N×T×H×W, as p
    truth = to_host(batch.labels)
    p = torch.zeros_like(masks)
    guess = np.zeros_like(truth)
    older: Tensor | None = None
    terms: list[Tensor] = []
    figures = {}

    def take(t: int, output: Output) -> Tensor:
        merged = merge(output.p.detach().float().unflatten(0, (count, num_objects)))
        p[:, t] = merged.flatten(0, 1)
        return p[:, t]

    for r in range(1, rounds + 1):
        target = int(rng.integers(time)) if r == 1 else int(wrong(guess, truth).mean(axis=0).argmax())
        drawn = [
            stroke_planes(strokes.robot(guess[b, target], truth[b, target], num_objects), num_objects, height, width)
            for b in range(count)
        ]
        strokes_on = [np.concatenate(planes) for planes in zip(*drawn, strict=True)]
        positive, negative = (torch.from_numpy(planes).to(p) for planes in strokes_on)
        output = network.interaction(frames[:, target], p[:, target].clone(), positive, negative)
        used = np.any(strokes_on, axis=(0, 2, 3)).astype(np.float32)
        terms.append(in_window(output, masks[:, target], used / (used.mean() + 0.001), jaccard))
        start = take(target, output).clone()
        reference = network.propagation.refer(output.res5.detach(), older)
        for side in (range(target + 1, time), range(target - 1, -1, -1)):
            neighbour = start
            for t in side:
                output = network.propagation(frames[:, t], p[:, t].clone(), neighbour, reference)
                terms.append(in_window(output, masks[:, t], np.ones_like(used), jaccard))
                neighbour = take(t, output).clone()
        older = reference.detach()
        planes = p.view(count, num_objects, time, height, width)
        best = torch.cat((1 - planes.sum(dim=1, keepdim=True), planes), dim=1).argmax(dim=1)
        figures[f"J{r}"] = losses.jaccard(best, batch.labels, num_objects)
        guess = to_host(best).astype(np.uint8)
    return Step(torch.stack(terms).mean(), figures)


def in_window(output: Output, mask: Tensor, weight: np.ndarray, jaccard: float) -> Tensor:
    """The loss of n objects at the five sizes, against the true masks n×H×W seen through the same windows.

    weight: float32 n, of the objects; the interaction network learns from those with strokes only (released code).
    """
    truth = into_window(mask.unsqueeze(1), output.box, output.logits[0].shape[-1]).round()
    loss = mask.new_zeros(len(mask))
    for share, logits in zip(LEVELS, output.logits, strict=True):
        labels = F.adaptive_avg_pool2d(truth, logits.shape[-1]).round().squeeze(1)
        loss = loss + share * F.cross_entropy(logits.float(), labels.long(), reduction="none").mean(dim=(1, 2))
    loss = (torch.from_numpy(weight).to(loss) * loss).mean()
    counts = np.flatnonzero(weight)
    if jaccard and len(counts):
        p = output.logits[0][counts].float().softmax(dim=1)
        loss = loss + jaccard * losses.soft_jaccard(p, truth[counts].squeeze(1))
    return loss
