"""How the three networks of MiVOS learn, each by itself (Cheng et al., CVPR 2021, Sections 3.2 and 5, and code)."""

import numpy as np
import torch
from torch import Tensor, nn

from methods.blocks.aggregation import aggregate
from methods.blocks.host import to_host
from methods.blocks.memory import KeyValue
from methods.blocks.trunk import normalise
from methods.mivos.method import stroke_planes
from methods.mivos.network import MiNet, Query, align
from methods.training import losses, strokes
from methods.training.clips import Batch, one_hot
from methods.training.loop import Step


def interaction_to_mask(
    network: MiNet,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    from_nothing: float = 0.33,
    curves: float = 0.25,
    bootstrap: tuple[float, float] = (0.125, 0.375),
    jaccard: float = 0.0,
) -> Step:
    """Scribble-to-mask on single frames: a damaged mask, or none, and strokes that correct it.

    from_nothing: how often there is no mask yet. curves: how often the strokes are random curves, not the robot's.
    bootstrap: between which parts of the stage the loss narrows to the hardest pixels. jaccard: weight of that loss.
    """
    labels, num_objects = batch.labels[:, 0], batch.num_objects
    inputs = []
    for truth in to_host(labels):
        existing = np.zeros((num_objects, *truth.shape), np.uint8)
        if rng.random() >= from_nothing:
            existing = np.stack([strokes.damage(rng, (truth == m + 1).astype(np.uint8)) for m in range(num_objects)])
        guess = np.where(existing.any(0), existing.argmax(0) + 1, 0).astype(np.uint8)
        existing = np.stack([guess == m + 1 for m in range(num_objects)])
        drawn = strokes.curves(rng, guess, truth, num_objects) if rng.random() < curves else []
        drawn = drawn or strokes.robot(guess, truth, num_objects)
        inputs.append((existing, *stroke_planes(drawn, num_objects, *truth.shape)))
    images = normalise(batch.frames[:, 0].float() / 255)
    planes = (torch.from_numpy(np.concatenate(plane)).to(images) for plane in zip(*inputs, strict=True))
    logits = network.s2m(images.repeat_interleave(num_objects, 0), *planes)
    p = aggregate(logits.float().sigmoid().view(-1, num_objects, *labels.shape[1:]))
    loss = losses.cross_entropy(p, labels, losses.hardest(progress, *bootstrap))
    loss = loss + jaccard * losses.soft_jaccard(p, labels)
    return Step(loss, {"J": losses.jaccard(p.detach().argmax(dim=1), labels, num_objects)})


def propagation(
    network: MiNet,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    bootstrap: tuple[float, float] = (0.13, 0.47),
    jaccard: float = 0.0,
    correspondence: float = 0.0,
) -> Step:
    """The mask of the first frame carried on: each frame reads those before it, full softmax, its own mask included.

    bootstrap, jaccard: as above. correspondence: weight of that loss between the first frame and the others.
    """
    count, time = batch.labels.shape[:2]
    num_objects, net = batch.num_objects, network.propagation
    images = normalise(batch.frames.float() / 255)
    query = net.encode(images[:, 1:].flatten(0, 1))
    mask = one_hot(batch.labels[:, 0], num_objects)
    memory: list[KeyValue] = []
    loss, figures = images.new_zeros(()), {}
    for t in range(1, time):
        memory.append(net.memorize(images[:, t - 1], mask))
        now = at(query, t - 1, time - 1, num_objects)
        logits = net.segment(now, KeyValue(*(torch.stack(x, dim=2) for x in zip(*memory, strict=True))), top_k=None)
        p = aggregate(logits.float().sigmoid().view(count, num_objects, *batch.labels.shape[2:]))
        labels = batch.labels[:, t]
        loss = loss + losses.cross_entropy(p, labels, losses.hardest(progress, *bootstrap))
        loss = loss + jaccard * losses.soft_jaccard(p, labels)
        if correspondence:
            there, here = (x.repeat_interleave(num_objects, 0) for x in (batch.labels[:, 0], labels))
            loss = loss + correspondence * losses.correspondence(memory[0].key, now.key, there, here)
        mask = p[:, 1:]
        figures[f"J{t}"] = losses.jaccard(p.detach().argmax(dim=1), labels, num_objects)
    return Step(loss, figures)


def forget_fusion(network: MiNet, seed: int) -> None:
    """Begin with a fusion network that knows nothing, beside the two others as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in network.fusion.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()


def fusion(
    network: MiNet,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    bootstrap: tuple[float, float] | None = None,
    difference: bool = True,
) -> Step:
    """Two true masks, of the first frame and of the last, meet on a frame between them, as the trained propagation
    brings them; the difference is what the last frame's true mask changes there. The propagation does not change.

    bootstrap: as above; None counts all pixels all the time. difference: whether the network sees it; without, it is
    the "learnable fusion" of Table 5.
    """
    time, num_objects = batch.labels.shape[1], batch.num_objects
    images = normalise(batch.frames.float() / 255)
    fused = []
    middle = int(rng.integers(1, time - 1))
    for clip, labels in zip(images, batch.labels, strict=True):
        with torch.no_grad():
            first, last = (one_hot(labels[t], num_objects) for t in (0, time - 1))
            previous = carry(network, clip, first)
            current = carry(network, clip.flip(0)[: time - middle], last)[-1]
            change = last - previous[-1][1:]
            signed = torch.stack((change.relu(), (-change).relu()), dim=1)
            key = network.propagation.memorize(clip[-1], last).key
            aligned = align(signed, key, network.propagation.encode(clip[middle]))
            aligned = aligned if difference else torch.zeros_like(aligned)
        n_r, n_c = (time - 1 - middle) / (time - 1), middle / (time - 1)
        logits = network.fusion(clip[middle], previous[middle][1:], current[1:], aligned, n_c, n_r)
        fused.append(aggregate(logits.float().sigmoid()))
    p, labels = torch.stack(fused), batch.labels[:, middle]
    hardest = losses.hardest(progress, *bootstrap) if bootstrap else 1.0
    figures = {"J": losses.jaccard(p.detach().argmax(dim=1), labels, num_objects)}
    return Step(losses.cross_entropy(p, labels, hardest), figures)


def carry(network: MiNet, clip: Tensor, mask: Tensor) -> list[Tensor]:
    """The mask of the first image carried to all T, each (N+1)×H×W; only the first and the previous are remembered."""
    net = network.propagation
    masks = [aggregate(mask)]
    first = net.memorize(clip[0], mask)
    entries = [first]
    for image in clip[1:]:
        memory = KeyValue(*(torch.stack(x, dim=2) for x in zip(*entries, strict=True)))
        masks.append(aggregate(net.segment(net.encode(image), memory, top_k=50).float().sigmoid()))
        entries = [first, net.memorize(image, masks[-1][1:])]
    return masks


def at(query: Query, t: int, time: int, num_objects: int) -> Query:
    """Of B clips with T queries each those at t, each as often as there are objects."""
    return Query(*(x.view(-1, time, *x.shape[1:])[:, t].repeat_interleave(num_objects, 0) for x in query))
