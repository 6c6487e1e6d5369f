"""How STM learns to be corrected, and to carry a mask (Oh et al., TPAMI 2020, Sections 3.5 to 3.7)."""

import numpy as np
import torch
from torch import Tensor

from methods.blocks.aggregation import aggregate
from methods.blocks.host import to_host
from methods.blocks.memory import KeyValue
from methods.stm.method import merge, stroke_planes
from methods.stm.network import Annotation, Mask, Query, STMInteractive, STMSemiSupervised
from methods.training import losses, strokes
from methods.training.clips import Batch, one_hot, wrong
from methods.training.loop import Step


def rounds(
    network: STMInteractive,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    rounds: int,
    jaccard: float = 0.0,
    correspondence: float = 0.0,
) -> Step:
    """Cross-entropy of all frames after each round: one frame is annotated, all are segmented (Section 3.7.2).

    The first frame is a random one, each further one the worst by now. Ours: a frame annotated twice has two entries,
    and probabilities are passed on without gradient.
    jaccard, correspondence: weights of the losses of these names, beside.
    """
    count, time, height, width = batch.labels.shape
    num_objects = batch.num_objects
    frames = batch.frames.float() / 255
    truth = to_host(batch.labels)
    query = network.encode(frames.flatten(0, 1))
    key, value, skip8, skip4 = (x.repeat_interleave(num_objects, 0) for x in query[:4])
    query = Query(key, value, skip8, skip4, query.size)
    p = frames.new_zeros(count, time, num_objects, height, width)
    guess = np.zeros_like(truth)
    memory: list[KeyValue] = []
    loss, figures = frames.new_zeros(()), {}
    clips = np.arange(count)
    for r in range(1, rounds + 1):
        annotated = rng.integers(time, size=count) if r == 1 else wrong(guess, truth).argmax(1)
        drawn = [
            stroke_planes(strokes.robot(guess[b, t], truth[b, t], num_objects), num_objects, height, width)
            for b, t in enumerate(annotated)
        ]
        positive, negative = (torch.from_numpy(np.concatenate(planes)).to(p) for planes in zip(*drawn, strict=True))
        mask = p[clips, annotated]
        others = (mask.sum(dim=1, keepdim=True) - mask).clamp(0, 1)
        annotation = Annotation(mask.flatten(0, 1), positive, negative, others.flatten(0, 1))
        memory.append(network.memorize(frames[clips, annotated].repeat_interleave(num_objects, 0), annotation))
        spread = over_time(memory, count, time)
        logits = network.segment(query, spread)
        merged = merge(logits.float().softmax(dim=1)[:, 1].unflatten(0, (count * time, num_objects)))
        labels = batch.labels.flatten(0, 1)
        loss = loss + losses.cross_entropy(merged, labels) + jaccard * losses.soft_jaccard(merged, labels)
        if correspondence:
            there = batch.labels[clips, annotated].repeat_interleave(time * num_objects, 0)
            here = labels.repeat_interleave(num_objects, 0)
            loss = loss + correspondence * losses.correspondence(spread.key[:, :, -1], query.key, there, here)
        p = merged[:, 1:].detach().unflatten(0, (count, time))
        best = merged.detach().argmax(dim=1)
        figures[f"J{r}"] = losses.jaccard(best, labels, num_objects)
        guess = to_host(best.view(count, time, height, width)).astype(np.uint8)
    return Step(loss, figures)


def propagate(
    network: STMSemiSupervised,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    jaccard: float = 0.0,
    correspondence: float = 0.0,
) -> Step:
    """Cross-entropy of the frames after the first, whose mask is given: each reads all before it (Section 3.6.1).

    What is memorized of the others are their soft masks, with gradient, which the text does not rule out.
    jaccard, correspondence: weights of the losses of these names, the latter between the first frame and the others.
    """
    count, time, height, width = batch.labels.shape
    num_objects = batch.num_objects
    frames = batch.frames.float() / 255
    query = network.encode(frames[:, 1:].flatten(0, 1))
    p = one_hot(batch.labels[:, 0], num_objects)
    memory: list[KeyValue] = []
    loss, figures = frames.new_zeros(()), {}
    for t in range(1, time):
        others = (p.sum(dim=1, keepdim=True) - p).clamp(0, 1)
        annotation = Mask(p.flatten(0, 1), others.flatten(0, 1))
        memory.append(network.memorize(frames[:, t - 1].repeat_interleave(num_objects, 0), annotation))
        key, value, skip8, skip4 = (
            x.unflatten(0, (count, -1))[:, t - 1].repeat_interleave(num_objects, 0) for x in query[:4]
        )
        now = Query(key, value, skip8, skip4, query.size)
        logits = network.segment(now, KeyValue(*(torch.stack(x, dim=2) for x in zip(*memory, strict=True))))
        merged = aggregate(logits.float().softmax(dim=1)[:, 1].view(count, num_objects, height, width))
        labels = batch.labels[:, t]
        loss = loss + losses.cross_entropy(merged, labels) + jaccard * losses.soft_jaccard(merged, labels)
        if correspondence:
            there, here = (x.repeat_interleave(num_objects, 0) for x in (batch.labels[:, 0], labels))
            loss = loss + correspondence * losses.correspondence(memory[0].key, now.key, there, here)
        p = merged[:, 1:]
        figures[f"J{t}"] = losses.jaccard(merged.detach().argmax(dim=1), labels, num_objects)
    return Step(loss, figures)


def over_time(entries: list[KeyValue], count: int, time: int) -> KeyValue:
    """The memory for each frame: entries B·N×C×h×w of B clips with N objects to B·T·N×C×E×h×w."""

    def spread(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.stack(parts, dim=2).unflatten(0, (count, 1, -1)).expand(-1, time, -1, -1, -1, -1, -1).flatten(0, 2)

    return KeyValue(*(spread(parts) for parts in zip(*entries, strict=True)))
