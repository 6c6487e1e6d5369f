"""Soft aggregation of objects that were segmented independently."""

import torch
from torch import Tensor


def aggregate(p: Tensor, hard: bool = False) -> Tensor:
    """Merge the objects' probabilities by their odds (STM, Section 3.4, Equation 3).

        p_m = σ(l(p̂_m)) = p̂_m/(1 − p̂_m) / Σ_{j=0..M} p̂_j/(1 − p̂_j)    with    p̂_0 = Π_{j=1..M} (1 − p̂_j)    (3)

    p: p̂_1..p̂_M, ...×M×H×W in [0, 1]. Returns p_0..p_M, ...×(M+1)×H×W, sums of 1.
    One object comes out with its odds squared: leave it as it is where its authors do.
    hard: the likeliest plane gets 1 and the others 0, but for ties (MiVOS, released code: odds to the power of 1000).
    """
    background = (1 - p).prod(dim=-3, keepdim=True)
    p = torch.cat((background, p), dim=-3).clamp(1e-7, 1 - 1e-7)
    return (p.logit() * (1000 if hard else 1)).softmax(dim=-3)
