"""How A-Net and then T-Net learn (Heo et al., ECCV 2020, Section 3.2)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import VOID
from methods.atnet.method import annotation_planes
from methods.atnet.network import THRESHOLD, ATNetwork, Picture, resize
from methods.blocks.host import to_host
from methods.blocks.trunk import normalise
from methods.blocks.weights import fill, read_safetensors
from methods.training import losses, strokes
from methods.training.clips import Batch, one_hot
from methods.training.loop import Step


def borrow_a_net(network: ATNetwork, file: str) -> None:
    """Begin with A-Net of another training: variants of T-Net are compared on the same one.

    file: safetensors of any variant, of the same size. Raises BadInput if it is missing or does not fit.
    """
    state, whose = read_safetensors(Path(file))
    a_net = {key.removeprefix("a_net."): value for key, value in state.items() if key.startswith("a_net.")}
    fill(network.a_net, a_net, f"{file}{whose}")


def annotate(
    network: ATNetwork,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    points: float,
    area: tuple[int, int] = (100, 3000),
    jaccard: float = 0.0,
) -> Step:
    """A-Net on single frames, half of them as in the first round, half with a deformed mask and strokes to correct it.

    points: how often a first round has points, one per `area` pixels of an object, and not the robot's strokes.
    jaccard: weight of a soft Jaccard loss beside.
    """
    labels, num_objects = batch.labels[:, 0], batch.num_objects
    planes = []
    for truth in to_host(labels):
        guess, first = np.zeros_like(truth), rng.random() < 0.5
        if not first:
            for m in rng.permutation(num_objects) + 1:
                guess[strokes.deform(rng, (truth == m).astype(np.uint8)) > 0] = m
        if first and rng.random() < points:
            drawn = strokes.points(rng, truth, num_objects, area)
        else:
            drawn = strokes.robot(guess, truth, num_objects)
        planes.append(annotation_planes(drawn, None if first else guess, num_objects, truth.shape))
    images = normalise(batch.frames[:, 0].float() / 255).repeat_interleave(num_objects, 0)
    annotated = network.a_net(images, torch.from_numpy(np.concatenate(planes)).to(images))
    masks = one_hot(labels, num_objects).masked_fill((labels == VOID).unsqueeze(1), VOID)
    return learn(annotated.logits, masks.flatten(0, 1), labels, num_objects, jaccard)


def transfer(
    network: ATNetwork,
    batch: Batch,
    rng: np.random.Generator,
    progress: float,
    *,
    auxiliary: float = 0.1,
    jaccard: float = 0.0,
) -> Step:
    """T-Net from an annotated frame, the first one, through the others; A-Net, which annotates it, does not change.

    auxiliary: λ, the weight of the mean squared error of the locally transferred mask. That of a neighbour is passed on
    without gradient, which is ours.
    """
    time, num_objects, net = batch.labels.shape[1], batch.num_objects, network.t_net
    images = normalise(batch.frames.float() / 255)
    planes = [
        annotation_planes(strokes.robot(np.zeros_like(truth), truth, num_objects), None, num_objects, truth.shape)
        for truth in to_host(batch.labels[:, 0])
    ]
    with torch.no_grad():
        planes_a = torch.from_numpy(np.concatenate(planes)).to(images)
        annotated = network.a_net(images[:, 0].repeat_interleave(num_objects, 0), planes_a)
    pictures = net.encode(images.flatten(0, 1))
    previous, p = at(pictures, 0, time, num_objects), annotated.logits.float().sigmoid()
    memory = [net.remember(previous, planes_a, annotated)]
    masks = one_hot(batch.labels, num_objects).transpose(1, 2).flatten(0, 1)
    void = (batch.labels == VOID).repeat_interleave(num_objects, 0)
    steps, extra = [], images.new_zeros(())
    for t in range(1, time):
        target = at(pictures, t, time, num_objects)
        transferred = net(target, previous, p, memory)
        steps.append(
            learn(
                transferred.logits, masks[:, t].masked_fill(void[:, t], VOID), batch.labels[:, t], num_objects, jaccard
            )
        )
        if transferred.q is not None:
            extra = extra + F.mse_loss(transferred.q.float(), resize(masks[:, t : t + 1], transferred.q))
        previous, p = target, transferred.logits.detach().float().sigmoid()
    loss = torch.stack([step.loss for step in steps]).mean() + auxiliary * extra / (time - 1)
    first, last = steps[0].figures["J"], steps[-1].figures["J"]
    return Step(loss, {"q": extra.detach() / (time - 1), "J1": first, f"J{time - 1}": last})


def learn(logits: Tensor, masks: Tensor, labels: Tensor, num_objects: int, jaccard: float) -> Step:
    """The loss of n objects, logits and masks n×H×W (void 255), and J of what they make of the clips' label maps."""
    p = logits.float().sigmoid()
    loss = losses.class_balanced(logits, masks)
    if jaccard:
        loss = loss + jaccard * losses.soft_jaccard(torch.stack((1 - p, p), dim=1), masks)
    best, label = p.detach().unflatten(0, (-1, num_objects)).max(dim=1)
    return Step(loss, {"J": losses.jaccard((label + 1) * (best > THRESHOLD), labels, num_objects)})


def at(pictures: Picture, t: int, time: int, num_objects: int) -> Picture:
    """Of B clips with T pictures each those at t, each as often as there are objects."""

    def pick(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, time))[:, t].repeat_interleave(num_objects, 0)

    local = None if pictures.local is None else pick(pictures.local)
    return Picture(pick(pictures.deep), local, pick(pictures.skip8), pick(pictures.skip4))
