"""Arithmetic with the same result to the bit on every machine: what the embedded clips are computed with.

Pictures are computed in integers. Everything else is float64 by +, -, ×, ÷, √ and rounding alone, each a NumPy call or
a Python operator of its own: IEEE 754 fixes the result of every one, and none is fused with the next. Left out is what
rounds by instruction set or version: float sums and matrix products, sin, exp and powers, NumPy's distributions, and
the filters, warps and polygons of OpenCV and Pillow. What OpenCV does here moves integers about or adds them up.
"""

import math

import cv2
import numpy as np
from numba import njit
from numpy.typing import ArrayLike

FRACTION = 12  # bits of the fixed point of ONE
ONE = 1 << FRACTION  # a pixel that is covered, a light that changes nothing, the sum of a filter's weights
GREY = 256  # a grey level, in the fixed point of a picture that is being made
PLACE = 24  # bits of a pixel's fraction in a pose
CORNER = 256  # a pixel, in the fixed point of a polygon's corners
LINES = 16  # per pixel, on which a polygon's coverage is measured


class Draws:
    """Random numbers made of the raw words of a bit generator, which NEP 19 keeps as they are.

    generator: on PCG64, whose words have 64 bits.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.words = generator.bit_generator.random_raw

    def uniform(self, low: float, high: float) -> float:
        """A number from [low, high)."""
        return low + (high - low) * ((self.words() >> 11) / 2**53)

    def uniforms(self, low: ArrayLike, high: ArrayLike, *shape: int) -> np.ndarray:
        """float64 of `shape`; low and high may differ along its last axes."""
        unit = (self.words(math.prod(shape)) >> np.uint64(11)).astype(np.float64) / 2**53
        return np.asarray(low) + np.subtract(high, low) * unit.reshape(shape)

    def chance(self, probability: float) -> bool:
        """Whether something of a probability happens."""
        return self.uniform(0, 1) < probability

    def below(self, number: int) -> int:
        """One of 0..number - 1."""
        return self.words() * number >> 64

    def permutation(self, number: int) -> list[int]:
        """0..number - 1 in any order (Fisher and Yates)."""
        order = list(range(number))
        for last in range(number - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def bell(self, *shape: int) -> np.ndarray:
        """Nearly normal, mean 0 and variance 1, never beyond 3.5: float64 of `shape`.

        A word's four numbers of 16 bits, added up.
        """
        words = self.words(math.prod(shape)).reshape(shape)
        pairs = (words & np.uint64(0xFFFF0000FFFF)) + (words >> np.uint64(16) & np.uint64(0xFFFF0000FFFF))
        total = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
        return (total.astype(np.float64) - 2 * 65535) / math.sqrt((65536**2 - 1) / 3)  # a variance of 1/12 each


def sine(angle: ArrayLike) -> np.ndarray:
    """sin of radians, within 1e-8 (Hastings 1955, sheet 16)."""
    turns = np.asarray(angle) / math.tau - 0.25
    x = 1 - 4 * np.abs(turns - np.rint(turns))
    square = x * x
    value = np.full_like(square, 0.00015148419)
    for coefficient in (-0.00467376557, 0.07968967928, -0.64596371106, 1.57079631847):
        value = value * square + coefficient
    return value * x


def cosine(angle: ArrayLike) -> np.ndarray:
    """cos of radians, within 1e-8."""
    return sine(np.asarray(angle) + math.pi / 2)


def exponential(x: ArrayLike) -> np.ndarray:
    """exp, within 1e-5 of its value for |x| up to 4: Taylor's series for an eighth of x."""
    eighth = np.asarray(x) / 8
    value = np.ones_like(eighth)
    for order in range(7, 0, -1):
        value = 1 + eighth / order * value
    for _ in range(3):
        value = value * value
    return value


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 H×W×3 to height×width×3; where that shrinks it, every pixel counts."""
    for size in (height, width):
        image = cv2.transpose(resample(np.ascontiguousarray(image), size))
    return image


@njit(cache=True, nogil=True)
def resample(image: np.ndarray, size: int) -> np.ndarray:
    """Scale uint8 H×W×3 to size×W×3 by a triangle filter, as wide as two of the larger pixels, of before or after."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    scaled = np.empty((size, width * channels), np.uint8)
    line = np.empty(width * channels, np.int32)
    half = 2 * max(height, size)  # of the triangle; lengths are in 1 / (2 size) of the image's pixels
    weights = np.empty(half // size + 2, np.int32)
    for i in range(size):
        centre = (2 * i + 1) * height - size
        first = (centre - half) // (2 * size) + 1
        total = 0
        for k in range(len(weights)):
            weights[k] = max(0, half - abs(2 * size * (first + k) - centre))
            total += weights[k]
        left = ONE
        for k in range(len(weights)):
            weights[k] = weights[k] * ONE // total
            left -= weights[k]
        weights[len(weights) // 2] += left  # by rounding
        line[:] = ONE // 2
        for k in range(len(weights)):
            row = rows[min(max(first + k, 0), height - 1)]
            weight = weights[k]
            for j in range(len(line)):
                line[j] += weight * row[j]
        for j in range(len(line)):
            scaled[i, j] = line[j] >> FRACTION
    return scaled.reshape(size, width, channels)


@njit(cache=True, nogil=True)
def mirror(i: int, size: int) -> int:
    """An index beyond a border, reflected at the outermost pixel."""
    if 0 <= i < size:
        return i
    if size == 1:
        return 0
    i %= 2 * size - 2
    return min(i, 2 * size - 2 - i)


@njit(cache=True, nogil=True)
def warp(image: np.ndarray, pose: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """An image where a similarity takes it, mirrored beyond its border: uint8 to int32 height×width×3, in 1/GREY.

    pose: int64 a, b, x, y in 1/2**PLACE: column c and row r show the image at a c - b r + x and b c + a r + y.
    top, left: the first row and column that are shown.
    """
    a, b, x, y = pose
    rows, columns, _ = image.shape
    shown = np.empty((height, width, 3), np.int32)
    for r in range(height):
        u = a * left - b * (top + r) + x
        v = b * left + a * (top + r) + y
        for c in range(width):
            column, row = u >> PLACE, v >> PLACE
            right, low = (u >> PLACE - 8) & 255, (v >> PLACE - 8) & 255
            if 0 <= column < columns - 1 and 0 <= row < rows - 1:
                next_column, next_row = column + 1, row + 1
            else:
                next_column, next_row = mirror(column + 1, columns), mirror(row + 1, rows)
                column, row = mirror(column, columns), mirror(row, rows)
            for k in range(3):
                above = image[row, column, k] * (256 - right) + image[row, next_column, k] * right
                below = image[next_row, column, k] * (256 - right) + image[next_row, next_column, k] * right
                shown[r, c, k] = (above * (256 - low) + below * low) >> 8
            u += a
            v += b
    return shown


@njit(cache=True, nogil=True)
def cover(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """How much of each pixel lies inside a simple polygon: int32 height×width, ONE for all of it.

    corners: int64 P×2, x and y in 1/CORNER pixels from the upper left corner of the first pixel.
    """
    covered = np.zeros((height, width), np.int32)
    step = CORNER // LINES
    for i in range(len(corners)):
        x0, y0 = corners[i - 1]
        x1, y1 = corners[i]
        sign = 1
        if y0 > y1:
            x0, y0, x1, y1, sign = x1, y1, x0, y0, -1
        first, end = max(0, (y0 + step // 2 - 1) // step), min(LINES * height, (y1 + step // 2 - 1) // step)
        for line in range(first, end):
            # What lies on the right of an edge is inside or outside from there on.
            x = x0 + (step * line + step // 2 - y0) * (x1 - x0) // (y1 - y0)
            row, column, part = line // LINES, x // CORNER, x % CORNER
            if column < 0:
                column, part = 0, 0
            if column < width:
                covered[row, column] += sign * (CORNER - part)
            if column + 1 < width:
                covered[row, column + 1] += sign * part
    for row in range(height):
        inside = 0
        for column in range(width):
            inside += covered[row, column]
            covered[row, column] = min(abs(inside) * ONE // (CORNER * LINES), ONE)
    return covered


def smear(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Motion blur: the mean of int32 H×W... along `motion` (x and y in pixels), which runs through each pixel's centre.

    It takes about one sample per pixel of the way; the picture is mirrored at its border.
    """
    length = np.abs(motion).max()
    if length < 1:
        return picture
    reach = int(np.ceil(length / 2))
    path = np.rint((np.arange(-reach, reach + 1) / (2 * reach))[:, None] * motion).astype(int)
    bordered = cv2.copyMakeBorder(picture, reach, reach, reach, reach, cv2.BORDER_REFLECT_101)
    height, width = picture.shape[:2]
    total = np.zeros_like(picture)
    for x, y in path.tolist():
        total += bordered[reach + y : reach + y + height, reach + x : reach + x + width]
    return total // np.int32(len(path))


def box(image: np.ndarray, side: int) -> np.ndarray:
    """The mean of int32 H×W over an odd square, mirrored at the border."""
    return cv2.boxFilter(image, cv2.CV_32S, (side, side), normalize=False) // np.int32(side * side)


@njit(cache=True, nogil=True)
def lay(picture: np.ndarray, surface: np.ndarray, alpha: np.ndarray, depth: np.ndarray) -> None:
    """Lay a surface over a picture, both int32 H×W×3, the one darker towards its outline, the other around it.

    alpha: int32 H×W in 1/ONE, how much of a pixel the surface covers. depth: the same of the pixel's neighbourhood.
    """
    for r in range(picture.shape[0]):
        for c in range(picture.shape[1]):
            for k in range(3):
                behind = picture[r, c, k] * (2 * ONE - depth[r, c]) >> FRACTION + 1
                front = surface[r, c, k] * (ONE + depth[r, c]) >> FRACTION + 1
                picture[r, c, k] = behind + (alpha[r, c] * (front - behind) >> FRACTION)


@njit(cache=True, nogil=True)
def develop(
    picture: np.ndarray, weights: np.ndarray, light: np.ndarray, grain: np.ndarray, top: int, left: int
) -> np.ndarray:
    """What a camera makes of a picture, int32 H×W×3 in 1/GREY: blurred, lit and with grain, uint8.

    weights: int32, of the pixel itself and of its neighbours on each side; over both sides they add up to ONE.
    light: int32 3, per channel in 1/ONE. grain: int32 in 1/GREY, larger than the picture; top, left: where to take it.
    """
    height, width, _ = picture.shape
    reach = len(weights) - 1
    rows, grains = picture.reshape(height, 3 * width), grain.reshape(len(grain), -1)[top:, 3 * left :]
    frame = np.empty((height, 3 * width), np.uint8)
    line = np.empty(3 * (width + 2 * reach), np.int32)
    inner = line[3 * reach : 3 * (reach + width)]
    total = np.empty(3 * width, np.int32)
    lights = np.empty(3 * width, np.int32)
    for i in range(3 * width):
        lights[i] = light[i % 3]
    for r in range(height):
        for i in range(3 * width):
            total[i] = weights[0] * rows[r, i] + ONE // 2
        for k in range(1, reach + 1):
            above, below = rows[mirror(r - k, height)], rows[mirror(r + k, height)]
            for i in range(3 * width):
                total[i] += weights[k] * (above[i] + below[i])
        for i in range(3 * width):
            inner[i] = total[i] >> FRACTION
        for k in range(reach):
            for c in range(3):
                line[3 * k + c] = inner[3 * mirror(k - reach, width) + c]
                line[3 * (reach + width + k) + c] = inner[3 * mirror(width + k, width) + c]
        for i in range(3 * width):
            total[i] = weights[0] * inner[i] + ONE // 2
        for k in range(1, reach + 1):
            before, after = line[3 * (reach - k) :], line[3 * (reach + k) :]
            for i in range(3 * width):
                total[i] += weights[k] * (before[i] + after[i])
        for i in range(3 * width):
            total[i] = ((total[i] >> FRACTION) * lights[i] >> FRACTION) + grains[r, i] + GREY // 2
        for i in range(3 * width):
            frame[r, i] = min(max(total[i] >> 8, 0), 255)
    return frame.reshape(picture.shape)


def gaussian(deviation: float) -> np.ndarray:
    """The weights of `develop` for a Gaussian blur; deviation in pixels, at least 0.4."""
    ratio = float(exponential(-1 / (2 * deviation * deviation)))
    side = []
    weight, step = 1.0, ratio
    for _ in range(int(3 * deviation) + 1):
        weight, step = weight * step, step * ratio * ratio
        side.append(weight)
    scale = ONE / (1 + 2 * math.fsum(side))
    rounded = [round(scale * weight) for weight in side]
    return np.array([ONE - 2 * sum(rounded), *rounded], np.int32)
