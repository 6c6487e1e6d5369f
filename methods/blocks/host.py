"""The way back from the device."""

import numpy as np
from torch import Tensor


def to_host(x: Tensor) -> np.ndarray:
    """A tensor's numbers as numpy has them. From a GPU they are waited for: as few times in a pass as can be."""
    return x.cpu().numpy()
