"""Inference, exact or in fewer bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from harness.api import BadInput

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def inference(network: nn.Module, precision: Precision) -> Iterator[None]:
    """Inference mode; "tf32" and "bfloat16" round what convolutions and matrix products multiply.

    "tf32": to 10 bits behind the point, in the GPU's units for it; sums and results are float32.
    "bfloat16": to 7 bits where the network is (autocast); results, too: logits want `.float()` before they become
    probabilities.
    Raises BadInput for "tf32" on a CPU, which has no such units.
    """
    device = next(network.parameters()).device.type
    if precision == "tf32" and device != "cuda":
        raise BadInput("precision=tf32: only a GPU has it; choose float32 or bfloat16")
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        if precision != "tf32":
            yield
            return
        with tensor_float():
            yield


@contextmanager
def tensor_float() -> Iterator[None]:
    """TF32 is allowed within the block, which `methods.blocks.weights.prepare` switched off for the process."""
    places: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
