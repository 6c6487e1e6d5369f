"""Procedural weights: a state dict made from its keys and shapes alone, the same bits on every machine.

The goldens of the authors' networks were recorded with them, so no trained file is needed to compare. Every number
is SplitMix64 (Steele et al. 2014) of a counter seeded by the key's CRC-32, made a float by a few IEEE operations.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Recipe(NamedTuple):
    """gains: (pattern of the key, gain over He's scale), first match wins, 1 otherwise. stem: further gain of a stem's
    planes beside RGB. constants: by key. scales: (pattern of the key, factor) for what has no gain.
    """

    gains: tuple[tuple[str, float], ...]
    stem: float
    constants: Mapping[str, float] = {}
    scales: tuple[tuple[str, float], ...] = ()


RECIPES = {
    "stm_interactive": Recipe(
        (
            (r"\.Key\.weight$", 1.8),
            (r"KeyValue_M\.Value\.weight$", 2.5),
            (r"\.conv1_(m|om|p|n)\.weight$", 1.5),
        ),
        stem=4.0,
    ),
    "stm": Recipe(((r"\.Key\.weight$", 1.2), (r"KV_M_r4\.Value\.weight$", 1.2), (r"pred2\.weight$", 0.5)), stem=2.0),
    "mivos_prop": Recipe(
        ((r"\.key_proj\.weight$", 1.2), (r"kv_m_f16\.val_proj\.weight$", 1.2), (r"\.pred\.weight$", 0.5)), stem=2.0
    ),
    "mivos_s2m": Recipe(
        ((r"classifier\.3\.weight$", 6.0),), stem=3.0, constants={"classifier.classifier.3.bias": -2.5}
    ),
    "mivos_fusion": Recipe(((r"^final_conv\.weight$", 1.5),), stem=1.0),
    "atnet": Recipe(
        (
            (r"^prev_conv1x1\.weight$", 3.0),
            (r"^conv1x1\.weight$", 2.5),
            (r"^indicator_encoder\.conv1x1\.weight$", 0.5),
            (r"\.lastconv\.8\.weight$", 2.0),
        ),
        stem=4.0,
        scales=((r"^encoder_3ch\.res5\.\d+\.(bn3|downsample\.1)\.(weight|bias)$", 0.25),),
    ),
    "ipnet_i": Recipe(((r"\.conv1_[mpn]\.weight$", 1.5),), stem=4.0),
    "ipnet_p": Recipe(((r"\.conv1_m\.weight$", 1.5), (r"SEFA\.fc2\.weight$", 2.5)), stem=4.0),
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SPREAD = math.sqrt(4 * (65536.0**2 - 1.0) / 12.0)  # of `bell`


def fill(network: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict for `network`, a key of RECIPES, out of key: shape."""
    return {key: tensor(key.removeprefix("module."), tuple(shape), RECIPES[network]) for key, shape in shapes.items()}


def tensor(key: str, shape: tuple[int, ...], recipe: Recipe) -> np.ndarray:
    """The values of one key."""
    size, leaf = math.prod(shape), key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in IMAGENET:
        values = np.array(IMAGENET[leaf])
    elif key in recipe.constants:
        values = np.full(size, recipe.constants[key])
    elif leaf == "running_var":
        values = 0.75 + 0.5 * uniform(key, size)
    elif leaf == "running_mean":
        values = bell(key, size) * (0.1 / SPREAD)
    elif leaf == "bias":
        values = bell(key, size) * (0.05 / SPREAD)
    elif len(shape) == 1:  # batch norm; weaker where it ends a residual branch, so that depth does not blow up
        values = (0.4 if key.endswith("bn3.weight") else 1.0) * (1.0 + bell(key, size) * (0.1 / SPREAD))
    else:
        gain = next((gain for pattern, gain in recipe.gains if re.search(pattern, key)), 1.0)
        values = convolution(key, shape, gain, recipe.stem)
    values = values * next((factor for pattern, factor in recipe.scales if re.search(pattern, key)), 1.0)
    return values.reshape(shape).astype(np.float32)


def convolution(key: str, shape: tuple[int, ...], gain: float, stem: float) -> np.ndarray:
    """He's scale times gain; filters of mean zero, or the level common to rectified inputs drowns the rest."""
    fan_in = math.prod(shape[1:])
    filters = bell(key, math.prod(shape)).reshape(shape[0], fan_in)
    means = filters.sum(axis=1, keepdims=True).astype(np.float64) / fan_in if fan_in > 1 else 0.0
    values = ((filters.astype(np.float64) - means) * (gain * math.sqrt(2.0 / fan_in) / SPREAD)).reshape(shape)
    if len(shape) == 4 and shape[2] == 7 and shape[1] > 3:
        values[:, 3:] *= stem
    return values


def bits(key: str, size: int) -> np.ndarray:
    """uint64: SplitMix64 of the counters that start at the key's checksum."""
    with np.errstate(over="ignore"):
        x = np.arange(size, dtype=np.uint64) + (np.uint64(zlib.crc32(key.encode())) << np.uint64(32))
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def bell(key: str, size: int) -> np.ndarray:
    """int64 of mean 0: sums of four 16-bit numbers, nearly Gaussian, exact."""
    x = bits(key, size)
    total = sum((x >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    return np.asarray(total).astype(np.int64) - 131070


def uniform(key: str, size: int) -> np.ndarray:
    """float64 in [0, 1)."""
    return (bits(key, size) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def fingerprint(state: Mapping[str, np.ndarray]) -> str:
    """16 hex digits over keys, types, shapes and values: what the manifests give."""
    sha = hashlib.sha256()
    for key, values in sorted((key.removeprefix("module."), values) for key, values in state.items()):
        values = np.atleast_1d(values)
        sha.update(f"{key}|{values.dtype}|{values.shape}|".encode())
        sha.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()[:16]
