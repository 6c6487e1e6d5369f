"""Simulated users for training: how people point at, paint on and correct a frame."""

from collections.abc import Sequence

import cv2
import numpy as np

from harness.api import Stroke
from harness.rules.robot import correct
from harness.rules.scribbles import bezier
from methods.training.clips import jolt


def robot(guess: np.ndarray, truth: np.ndarray, num_objects: int) -> list[Stroke]:
    """The robot's strokes on one frame, uint8 H×W labels each; on an empty guess it draws none on the background."""
    strokes = correct(guess, truth, num_objects)
    return strokes if guess.any() else [stroke for stroke in strokes if stroke.object_id]


def points(rng: np.random.Generator, truth: np.ndarray, num_objects: int, area: tuple[int, int]) -> list[Stroke]:
    """One point per u pixels of each object, u random between the two areas (ATNet, Section 3.2: 100 and 3000).

    truth: uint8 H×W labels. At least one point per object in sight.
    """
    strokes = []
    for object_id in range(1, num_objects + 1):
        inside = np.argwhere(truth == object_id)
        count = max(1, round(len(inside) / rng.uniform(*area))) if len(inside) else 0
        strokes += [stroke([pixel[::-1]], truth.shape, object_id) for pixel in rng.permutation(inside)[:count]]
    return strokes


def curves(rng: np.random.Generator, guess: np.ndarray, truth: np.ndarray, num_objects: int) -> list[Stroke]:
    """Random quadratic Bézier curves through each wrong region, on the label it should have (MiVOS, Section 3.2).

    What of a curve leaves the region is cut off. guess, truth: uint8 H×W labels; an empty guess means the first round.
    """
    strokes = []
    for object_id in range(num_objects + 1) if guess.any() else range(1, num_objects + 1):
        region = (truth == object_id) & (guess != truth)
        inside = np.argwhere(region)
        if len(inside) < 10:
            continue
        for _ in range(rng.integers(1, 3)):
            corners = inside[rng.integers(len(inside), size=3), ::-1]
            path = np.rint(bezier(corners.astype(float), 60)).astype(int)
            path = path[region[path[:, 1], path[:, 0]]]
            if len(path) > 1:
                strokes.append(stroke(path, truth.shape, object_id))
    return strokes


def stroke(pixels: Sequence[np.ndarray] | np.ndarray, size: Sequence[int], object_id: int) -> Stroke:
    """Pixels (x, y) of an H×W frame as a stroke that draws them again."""
    path = (np.asarray(pixels) + 0.25) / (size[1] - 1, size[0] - 1)  # a quarter: truncation leads back to the pixel
    return Stroke(np.minimum(path, 1), object_id)


def damage(rng: np.random.Generator, mask: np.ndarray, least: float = 0.4, most: float = 0.95) -> np.ndarray:
    """A mask after random local erosions and dilations, until its J with the true one falls below a random bound.

    mask: uint8 H×W in {0, 1}. least, most: of that bound (MiVOS, released training code of its Scribble-to-Mask).
    """
    bound, damaged = rng.uniform(least, most), mask.copy()
    for _ in range(250):
        if not mask.any() or (damaged & mask).sum() < bound * (damaged | mask).sum():
            break
        side = int(rng.integers(mask.shape[0] // 10, mask.shape[0] // 3))
        edge = np.argwhere(cv2.morphologyEx(damaged, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))
        y, x = edge[rng.integers(len(edge))] if len(edge) else rng.integers(mask.shape)
        part = np.s_[max(0, y - side // 2) : y + side // 2 + 1, max(0, x - side // 2) : x + side // 2 + 1]
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(rng.integers(3, 10)),) * 2)
        damaged[part] = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(damaged[part], kernel)
    return damaged


def deform(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask through a random affine map: uint8 H×W (ATNet, Section 3.2)."""
    return cv2.warpAffine(mask, jolt(rng, mask.shape), mask.shape[::-1], flags=cv2.INTER_NEAREST)
