"""Space-time memory (STM: Oh et al., TPAMI 2020, Sections 3.1 and 3.2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def read_memory(memory: KeyValue, query_key: Tensor, top_k: int | None = None) -> Tensor:
    """Space-time memory read: the second half of y_i in STM's Equation 1.

        (1/Z) Σ_j f(k_i^Q, k_j^M) v_j^M    with    Z = Σ_j f(k_i^Q, k_j^M)        (1)
        f(k_i^Q, k_j^M) = exp(k_i^Q ∘ k_j^M / √D)                                 (2)

    √D, D being the channels of a key, is in the released code and in neither STM's nor MiVOS's paper.

    memory: key *×D×T×h×w, value *×V×T×h×w; query_key: *×D×h×w; leading axes broadcast. Returns *×V×h×w.
    top_k: only the k most similar j take part, or all if there are fewer (MiVOS: Cheng et al., CVPR 2021, Equation 2).
    """
    k_m, v_m, k_q = memory.key.flatten(-3), memory.value.flatten(-3), query_key.flatten(-2)
    affinity = k_q.transpose(-1, -2) @ k_m / math.sqrt(k_q.shape[-2])  # rows i, columns j
    if top_k is None:
        read = v_m @ affinity.softmax(dim=-1).transpose(-1, -2)  # softmax is f / Z
    else:
        kept = affinity.topk(min(top_k, affinity.shape[-1]), dim=-1)
        read = weighted_sum(v_m, kept.indices, kept.values.softmax(dim=-1))
    return read.unflatten(-1, query_key.shape[-2:])


def weighted_sum(values: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights_ik values_{positions_ik}, reading these positions only; leading axes of values broadcast.

    values: *×V×J; positions, weights: *×I×k. Returns *×V×I.
    """
    *leading, i, k = positions.shape
    v, j = values.shape[-2:]
    rows = values.transpose(-1, -2).expand(*leading, j, v).reshape(-1, v)
    first = torch.arange(0, len(rows), j, device=positions.device).view(*leading, 1, 1)
    bags = F.embedding_bag((positions + first).view(-1, k), rows, per_sample_weights=weights.view(-1, k), mode="sum")
    return bags.view(*leading, i, v).transpose(-1, -2)
