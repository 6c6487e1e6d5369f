"""Space-time memory (STM: Oh et al., TPAMI 2020, Sections 3.1 and 3.2)."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AT_ONCE = 2**22  # similarities: 16 MB, which stay in a CPU's cache until they are used up


class KeyValue(NamedTuple):
    """An embedding. Of a frame: key B×C/8×h×w, value B×C/2×h×w; of a memory with T frames: the same with T before h."""

    key: Tensor
    value: Tensor


class KeyValueHead(nn.Module):
    """Two parallel 3×3 convolutions: C channels to a key of C/8 and a value of C/2, not rectified (Section 3.1.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, channels // 8, 3, padding=1)
        self.value = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> KeyValue:
        """x: B×C×h×w, the trunk's map at stride 16."""
        return KeyValue(self.key(x), self.value(x))


def together(entries: Iterable[KeyValue]) -> KeyValue:
    """T entries, *×C×h×w, as one memory, *×C×T×h×w. In storage channels are last: `read_memory` then copies nothing."""
    key, value = (
        torch.stack([x.movedim(-3, -1) for x in parts], dim=-4).movedim(-1, -4) for parts in zip(*entries, strict=True)
    )
    return KeyValue(key, value)


def read_memory(memory: KeyValue, query_key: Tensor, top_k: int | None = None) -> Tensor:
    """Space-time memory read: the second half of y_i in STM's Equation 1.

        (1/Z) Σ_j f(k_i^Q, k_j^M) v_j^M    with    Z = Σ_j f(k_i^Q, k_j^M)        (1)
        f(k_i^Q, k_j^M) = exp(k_i^Q ∘ k_j^M / √D)                                 (2)

    √D, D being the channels of a key, is in the released code and in neither STM's nor MiVOS's paper.

    memory: key *×D×T×h×w, value *×V×T×h×w; query_key: *×D×h×w; leading axes broadcast. Returns *×V×h×w.
    top_k: only the k most similar j take part, or all if there are fewer (MiVOS: Cheng et al., CVPR 2021, Equation 2).
    Positions i are read in blocks of `AT_ONCE` similarities: all of them take T·(hw)², 1 GB for 100 frames of 480×854.
    """
    k_m, v_m, k_q = memory.key.flatten(-3).mT, memory.value.flatten(-3).mT.contiguous(), query_key.flatten(-2).mT
    sets = torch.broadcast_shapes(k_m.shape[:-2], k_q.shape[:-2]).numel()
    reads = []
    for rows in (k_q / math.sqrt(k_q.shape[-1])).split(max(1, AT_ONCE // (sets * k_m.shape[-2])), dim=-2):
        affinity = rows @ k_m.mT
        if top_k is None:
            reads.append(affinity.softmax(dim=-1) @ v_m)  # softmax is f / Z
        else:
            kept = affinity.topk(min(top_k, affinity.shape[-1]), dim=-1, sorted=False)
            reads.append(weighted_sum(v_m, kept.indices, kept.values.softmax(dim=-1).to(v_m)))
    return torch.cat(reads, dim=-2).mT.unflatten(-1, query_key.shape[-2:])


def weighted_sum(values: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights_ik values_{positions_ik}, reading these positions only; leading axes of values broadcast.

    values: *×J×V; positions, weights: *×I×k. Returns *×I×V.
    """
    *leading, i, k = positions.shape
    j, v = values.shape[-2:]
    rows = values.expand(*leading, j, v).reshape(-1, v)
    first = torch.arange(0, len(rows), j, device=positions.device).view(*leading, 1, 1)
    bags = F.embedding_bag((positions + first).view(-1, k), rows, per_sample_weights=weights.view(-1, k), mode="sum")
    return bags.view(*leading, i, v)
