"""Region similarity J and contour accuracy F (Perazzi et al. 2016), bit for bit as in davisinteractive 1.0.4."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit


def jaccard(truth: np.ndarray, masks: np.ndarray, num_objects: int) -> np.ndarray:
    """J: intersection over union, 1 where both are empty. uint8 T×H×W labels to float64 T×N; see `Scorer`."""
    return Scorer(truth, num_objects)(masks)[0]


def contour(truth: np.ndarray, masks: np.ndarray, num_objects: int, bound_th: float = 0.008) -> np.ndarray:
    """F: F-measure of boundary pixels, 1 where neither has any. uint8 T×H×W labels to float64 T×N; see `Scorer`."""
    return Scorer(truth, num_objects, bound_th)(masks)[1]


class Scorer:
    """J and F of the rounds of one sequence. Frames that are as in the round before are not scored again.

    truth: uint8 T×H×W; objects are labelled 1..num_objects. Any other label, void too, is just "not this object":
        officially a prediction there is wrong.
    bound_th: how far apart boundaries may be and still match, relative to the image diagonal; from 1 on, in pixels.
    """

    def __init__(self, truth: np.ndarray, num_objects: int, bound_th: float = 0.008) -> None:
        self.truth = np.ascontiguousarray(truth, np.uint8)
        self.num_objects = num_objects
        self.disk = disk_rows(bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(truth.shape[1:])))
        self.masks = np.empty((0, *truth.shape[1:]), np.uint8)
        with ThreadPoolExecutor() as threads:
            self.areas = list(threads.map(lambda frame: errors(frame, np.zeros_like(frame))[0], self.truth))
            self.boundaries = list(threads.map(lambda frame: boundary(frame, num_objects), self.truth))
        self.scores = np.empty((2, len(truth), num_objects))

    def __call__(self, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """J and F, float64 T×N each, of uint8 T×H×W label masks. Raises ValueError for another shape or type."""
        if masks.shape != self.truth.shape or masks.dtype != np.uint8:
            raise ValueError(f"masks are {masks.dtype} {masks.shape}, the truth is uint8 {self.truth.shape}")
        masks = np.ascontiguousarray(masks)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda t: self.score(t, masks[t]), range(len(masks))))
        self.masks = masks.copy()
        jaccard, contour = self.scores.copy()
        return jaccard, contour

    def score(self, t: int, mask: np.ndarray) -> None:
        """J and F of frame t, unless `mask` is that of the round before."""
        if len(self.masks) and np.array_equal(mask, self.masks[t]):
            return
        objects = slice(1, self.num_objects + 1)
        lacking, too_many = (labels[objects] for labels in errors(self.truth[t], mask))
        area = self.areas[t][objects]
        union = area + too_many
        self.scores[0, t] = np.where(union == 0, 1.0, (area - lacking) / np.maximum(union, 1))
        self.scores[1, t] = f_measures(
            *self.boundaries[t], *boundary(mask, self.num_objects), self.disk, mask.shape, self.num_objects
        )


def disk_rows(radius: float) -> np.ndarray:
    """The rows of a disk, int64 R×2 (row, greatest column), nearest first: most boundaries match right there."""
    rows = np.arange(-int(radius), int(radius) + 1)
    rows = rows[np.argsort(np.abs(rows))]
    return np.stack([rows, np.sqrt(int(radius) ** 2 - rows**2).astype(np.int64)], axis=1)


@njit(cache=True, nogil=True)
def errors(truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per label, the pixels of uint8 H×W `truth` that `mask` lacks and those that it has too many: int64 256 each."""
    lacking, too_many = np.zeros(256, np.int64), np.zeros(256, np.int64)
    true, given = truth.reshape(-1), mask.reshape(-1)
    whole = len(true) // 8
    true_words, given_words = true[: 8 * whole].view(np.uint64), given[: 8 * whole].view(np.uint64)
    for word in range(whole + 1):
        if word == whole or true_words[word] != given_words[word]:  # most pixels are right: pass them eight at a time
            for pixel in range(8 * word, min(8 * word + 8, len(true))):
                if true[pixel] != given[pixel]:
                    lacking[true[pixel]] += 1
                    too_many[given[pixel]] += 1
    return lacking, too_many


@njit(cache=True, nogil=True)
def boundary(labels: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Boundary pixels of the objects of a uint8 H×W label map: int64 P y * W + x, and uint8 P whose boundary it is.

    A pixel is on the boundary of an object if it, its right, lower and lower right neighbour are partly in the object
    (those within the image: its border makes no boundary).
    """
    height, width = labels.shape
    differ = np.zeros((width + 7) // 8 * 8, np.uint8)
    words = differ.view(np.uint64)
    mixed = np.empty(height * width, np.int64)
    num_mixed = 0
    for y in range(height):
        row, below = labels[y], labels[min(y + 1, height - 1)]
        for x in range(width - 1):
            differ[x] = (row[x] ^ row[x + 1]) | (row[x] ^ below[x]) | (row[x] ^ below[x + 1])
        differ[width - 1] = row[width - 1] ^ below[width - 1]
        for word in range(len(words)):
            if words[word]:
                for x in range(8 * word, 8 * word + 8):
                    if differ[x]:
                        mixed[num_mixed] = y * width + x
                        num_mixed += 1

    pixels, owners = np.empty(4 * num_mixed, np.int64), np.empty(4 * num_mixed, np.uint8)
    count = 0
    for pixel in mixed[:num_mixed]:
        y, x = divmod(pixel, width)
        lower, right = min(y + 1, height - 1), min(x + 1, width - 1)
        block = (labels[y, x], labels[y, right], labels[lower, x], labels[lower, right])
        for i in range(4):
            new = 1 <= block[i] <= num_objects
            for j in range(i):
                new &= block[j] != block[i]
            if new:
                pixels[count], owners[count] = pixel, block[i]
                count += 1
    return pixels[:count], owners[:count]


@njit(cache=True, nogil=True)
def f_measures(
    truth: np.ndarray,
    truth_owners: np.ndarray,
    mask: np.ndarray,
    mask_owners: np.ndarray,
    disk: np.ndarray,
    shape: tuple[int, int],
    num_objects: int,
) -> np.ndarray:
    """F of each object, float64 N, from the boundaries of truth and prediction in one frame."""
    scores = np.empty(num_objects)
    for k in range(num_objects):
        a, b = truth[truth_owners == k + 1], mask[mask_owners == k + 1]
        if len(a) == 0 or len(b) == 0:  # officially a mask that fills the frame counts as empty: it has no boundary
            scores[k] = len(a) == len(b)
            continue
        precision = count_near(b, a, disk, shape) / len(b)
        recall = count_near(a, b, disk, shape) / len(a)
        both = precision + recall
        scores[k] = 0 if both == 0 else 2 * precision * recall / both
    return scores


@njit(cache=True, nogil=True)
def count_near(pixels: np.ndarray, others: np.ndarray, disk: np.ndarray, shape: tuple[int, int]) -> int:
    """How many of `pixels` have one of `others` within the disk."""
    height, width = shape
    words = (width + 63) // 64
    bits = np.zeros((height, words), np.uint64)
    # Searching the disk around each pixel mostly ends at once; for many more pixels, draw it around the others instead.
    dot = np.zeros((1, 2), np.int64)
    drawn, searched = (disk, dot) if 4 * len(others) < len(pixels) else (dot, disk)
    for other in others:
        y, x = divmod(other, width)
        for i in range(len(drawn)):
            row, low, high = y + drawn[i, 0], max(x - drawn[i, 1], 0), min(x + drawn[i, 1], width - 1)
            if 0 <= row < height:
                for word in range(low // 64, high // 64 + 1):
                    bits[row, word] |= columns(word, low, high)
    count = 0
    for pixel in pixels:
        y, x = divmod(pixel, width)
        found = False
        for i in range(len(searched)):
            row, low, high = y + searched[i, 0], max(x - searched[i, 1], 0), min(x + searched[i, 1], width - 1)
            if 0 <= row < height:
                for word in range(low // 64, high // 64 + 1):
                    found |= bits[row, word] & columns(word, low, high) != 0
                if found:
                    count += 1
                    break
    return count


@njit(cache=True, nogil=True)
def columns(word: int, low: int, high: int) -> np.uint64:
    """The bits of columns low..high, both included, that lie in the given word of a row."""
    bits = np.uint64(0xFFFFFFFFFFFFFFFF)
    if word == low // 64:
        bits &= np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(low % 64)
    if word == high // 64:
        bits &= np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(63 - high % 64)
    return bits
