"""Inference, exact or in half the bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


@contextmanager
def inference(network: nn.Module, precision: Precision) -> Iterator[None]:
    """Inference mode; with "bfloat16", convolutions and matrix products are in it where the network is (autocast).

    What they return is bfloat16 then: logits want `.float()` before they become probabilities.
    """
    device = next(network.parameters()).device.type
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
