"""Where what a method keeps of every frame waits for the next round."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Cache = Literal["device", "cpu", "disk", "none"]
Item = TypeVar("Item", bound=Any)


class FrameCache(Generic[Item]):
    """Encodings. They never change, so that each is made once where it can be kept.

    cache: where they are kept: on the "device", in main memory ("cpu") or in temporary files ("disk"); "none" makes
    them anew each time.
    """

    def __init__(self, cache: Cache, device: torch.device) -> None:
        self.cache, self.device = cache, device
        self.kept: dict[int, Item] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="ivosbench-") if cache == "disk" else None

    def get(self, n: int, encode: Callable[[], Item]) -> Item:
        """The n-th one, on the device: a tuple of tensors that has `to(device)`, made by `encode` if it is not here."""
        if n in self.kept:
            return self.kept[n].to(self.device)
        path = Path(self.folder.name, str(n)) if self.folder else None
        if path and path.exists():
            return torch.load(path, map_location=self.device, weights_only=False)
        item = encode()
        if path:
            torch.save(item, path)
        elif self.cache != "none":
            self.kept[n] = item.to(self.device if self.cache == "device" else torch.device("cpu"))
        return item


def volume(shape: tuple[int, ...], cache: Cache, device: torch.device) -> Tensor:
    """Zeros, float32, for the probabilities of all frames: they are kept whatever `cache` is.

    On the device, in main memory ("cpu") or in a temporary file, of which main memory holds what was used last.
    """
    if cache in ("device", "cpu"):
        return torch.zeros(shape, device=device if cache == "device" else torch.device("cpu"))
    with tempfile.TemporaryFile(prefix="ivosbench-") as file:
        return torch.from_numpy(np.memmap(file, np.float32, shape=shape))
