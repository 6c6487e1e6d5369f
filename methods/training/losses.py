"""What the recipes minimise. p are probabilities, labels uint8 0..N with 255 for void, which counts nowhere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import VOID
from methods.blocks.host import to_host


def cross_entropy(p: Tensor, labels: Tensor, hardest: float = 1.0) -> Tensor:
    """−log p of the true label, mean over pixels. p: B×(N+1)×H×W, sums of 1; labels: B×H×W.

    hardest: the part of the pixels that counts, those with the highest loss: "bootstrapped" in MiVOS' training code.
    """
    log_p, truth = p.float().clamp(min=1e-7).log(), labels.long()
    if hardest >= 1:
        return F.nll_loss(log_p, truth, ignore_index=VOID)
    known = int(to_host((labels != VOID).sum()))
    loss = F.nll_loss(log_p, truth, ignore_index=VOID, reduction="none").masked_fill(labels == VOID, -1)
    return loss.flatten().topk(max(1, int(hardest * known))).values.mean()


def hardest(progress: float, start: float, end: float, least: float = 0.15) -> float:
    """The part of the pixels that a bootstrapped loss keeps: 1 until `start` of the stage, `least` from `end` on."""
    return 1 - (1 - least) * min(1.0, max(0.0, (progress - start) / (end - start)))


def class_balanced(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in which object and background weigh the same (HED: Xie and Tu, ICCV 2015, Equation 2).

        −β Σ_{j∈Y+} log σ(a_j) − (1−β) Σ_{j∈Y−} log(1 − σ(a_j))    with    β = |Y−| / |Y|

    logits: n×H×W. mask: n×H×W, 1 object, 0 background, anything else void. Mean over pixels and maps.
    """
    positive, negative = (mask == 1).float(), (mask == 0).float()
    size = (positive + negative).sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    beta = negative.sum(dim=(-2, -1), keepdim=True) / size
    weight = beta * positive + (1 - beta) * negative
    loss = F.binary_cross_entropy_with_logits(logits.float(), positive, weight, reduction="none")
    return (loss / size).sum(dim=(-2, -1)).mean()


def soft_jaccard(p: Tensor, labels: Tensor) -> Tensor:
    """1 − intersection over union of each object, both summed over soft pixels. p: B×(N+1)×H×W; labels: B×H×W.

    In no recipe of the papers: networks that start from nothing take all pixels for background without it.
    """
    known = (labels != VOID).unsqueeze(1)
    objects = torch.arange(1, p.shape[1], device=labels.device).view(-1, 1, 1)
    truth = (labels.unsqueeze(1) == objects).float()
    guess = p[:, 1:].float() * known
    both = (guess * truth).sum(dim=(-2, -1))
    return (1 - (both + 1) / ((guess + truth).sum(dim=(-2, -1)) - both + 1)).mean()


def jaccard(guess: Tensor, labels: Tensor, num_objects: int) -> Tensor:
    """J, mean over objects and frames, of label maps ...×H×W. An object that is nowhere in both counts as 1.

    A number on the device, which nobody waits for here.
    """
    known = labels != VOID
    scores = []
    for m in range(1, num_objects + 1):
        mine, truth = (guess == m) & known, labels == m
        union = (mine | truth).sum(dim=(-2, -1))
        both = (mine & truth).sum(dim=(-2, -1))
        scores.append((both / union.clamp(min=1)).masked_fill(union == 0, 1).mean())
    return torch.stack(scores).mean()


def correspondence(memory_key: Tensor, query_key: Tensor, memory_labels: Tensor, query_labels: Tensor) -> Tensor:
    """−log of the affinity that each query position has to memory positions near it and of its label, on average.

    In no recipe of the papers, whose networks start from ImageNet's features: from nothing, an affinity that looks
    anywhere gives the other layers nothing to learn from.
    memory_key, query_key: n×D×h×w. Labels: uint8 n×H×W at stride 1; void has no counterpart.
    """
    h, w = query_key.shape[-2:]
    stride = memory_labels.shape[-1] // w
    middle = slice(stride // 2, None, stride)
    theirs, mine = (labels[:, middle, middle].flatten(1) for labels in (memory_labels, query_labels))
    rows, columns = (torch.arange(side, device=mine.device) for side in (h, w))
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
    near = (place[:, :, None] - place[:, None]).abs().amax(dim=0) <= 2
    match = near & (mine[:, :, None] == theirs[:, None]) & (mine != VOID)[:, :, None]
    found = match.any(dim=-1)
    match = match | ~found[..., None]  # of a position without a counterpart all, so that its gradient is a number
    with torch.autocast(query_key.device.type, enabled=False):
        affinity = query_key.float().flatten(2).transpose(1, 2) @ memory_key.float().flatten(2)
        log_f = (affinity / memory_key.shape[1] ** 0.5).log_softmax(dim=-1)
        each = -log_f.masked_fill(~match, -torch.inf).logsumexp(dim=-1)
        return (each * found).sum() / found.sum()
