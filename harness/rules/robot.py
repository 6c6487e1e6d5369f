"""The stand-in for the user: where would a person correct this result, and with which strokes?

The robot of davisinteractive 1.0.4 (Caelles et al. 2018), stroke for stroke as on the libraries of its release
(April 2020: numpy 1.18, scikit-image 0.16, scikit-learn 0.20.3, networkx 2.4), whatever is installed here.
"""

from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise

import cv2
import numpy as np
from numba import njit
from scipy.ndimage import label

from harness.api import Stroke
from harness.rules.scribbles import bezier

# Node -> neighbour -> squared length. The order of the keys decides which of several longest paths is drawn.
Graph = dict[int, dict[int, int]]


def next_frame(
    scores: np.ndarray, used: Collection[int], num_frames: int, candidates: Sequence[int] | None = None
) -> int:
    """The worst frame that may be asked for and has not been yet.

    scores: float64 T×N, or their mean over objects T.
    used: the frames this robot chose before, through `candidates` too; not the one the first scribble is on.
    candidates: the frames to choose from; None or none at all for every frame.
    Raises IndexError if no candidate is a frame.
    """
    mean = scores.mean(axis=1) if scores.ndim == 2 else scores
    if len(set(used)) >= num_frames:  # officially nothing counts as used any more, for ever after
        used = ()
    allowed = set(candidates or range(num_frames))
    allowed = allowed.difference(used) or allowed
    for frame in introsort(mean.tolist()):
        if frame in allowed:
            return frame
    raise IndexError(f"no candidate in {sorted(allowed)} is one of {num_frames} frames")


def introsort(values: Sequence[float]) -> list[int]:
    """argsort as in numpy 1.18 (Musser 1997, without its fallback to heapsort, which such short lists never need).

    Perfect frames tie, the order of ties is the sort's own, and later numpy sorts otherwise, even by CPU.
    """
    order = list(range(len(values)))

    def sort_pair(low: int, high: int) -> None:
        if values[order[high]] < values[order[low]]:
            order[low], order[high] = order[high], order[low]

    parts = [(0, len(order) - 1)]
    while parts:
        low, high = parts.pop()
        while high - low > 15:
            middle = low + (high - low) // 2
            sort_pair(low, middle)
            sort_pair(middle, high)
            sort_pair(low, middle)
            pivot = values[order[middle]]
            order[middle], order[high - 1] = order[high - 1], order[middle]
            i, j = low + 1, high - 2
            while True:
                while values[order[i]] < pivot:
                    i += 1
                while pivot < values[order[j]]:
                    j -= 1
                if i >= j:
                    break
                order[i], order[j] = order[j], order[i]
                i, j = i + 1, j - 1
            order[i], order[high - 1] = order[high - 1], order[i]
            if i - low < high - i:
                parts.append((i + 1, high))
                high = i - 1
            else:
                parts.append((low, i - 1))
                low = i + 1
        order[low : high + 1] = sorted(order[low : high + 1], key=values.__getitem__)
    return order


def correct(
    masks_frame: np.ndarray,
    truth_frame: np.ndarray,
    num_objects: int,
    *,
    kernel_size: float = 0.2,
    max_kernel_radius: float = 16,
    min_nb_nodes: int = 4,
    nb_points: int = 1000,
) -> list[Stroke]:
    """The strokes a person would draw on one frame to correct it.

    A stroke follows the medial axis of a region that the prediction misses, of the background too; labels above
    `num_objects` (void among them) get none.
    masks_frame, truth_frame: uint8 H×W labels.
    kernel_size: in [0, 1), width of regions too small to correct, relative to the root of the whole error's area.
    max_kernel_radius: in pixels, its upper bound.
    min_nb_nodes: in pixels, the shortest medial axis worth a stroke.
    nb_points: points per stroke.
    Raises ValueError for a `kernel_size` outside [0, 1).
    """
    if not 0 <= kernel_size < 1:
        raise ValueError(f"kernel_size {kernel_size}: wanted 0 <= kernel_size < 1")
    height, width = truth_frame.shape
    wrong = truth_frame != masks_frame
    strokes = []
    for object_id in range(num_objects + 1):
        error = wrong & (truth_frame == object_id)
        skeleton = medial_axis(opening(error, kernel_size, max_kernel_radius))
        for path in longest_paths(skeleton, min_nb_nodes):
            # Divided by W and H but drawn with W - 1 and H - 1: officially a stroke is up to a pixel off.
            strokes.append(Stroke(bezier(path, nb_points) / (width, height), object_id))
    return strokes


def opening(error: np.ndarray, kernel_size: float, max_kernel_radius: float) -> np.ndarray:
    """Remove small regions: bool H×W to bool H×W.

    The kernel grows with the root of the error's area and shrinks until something is left. If nothing ever is, the
    result is empty, unless the first kernel already was of one pixel.
    """
    radius = min(kernel_size * np.sqrt(np.count_nonzero(error)) / 2, max_kernel_radius)
    if radius <= 1:
        return error
    opened = np.zeros_like(error)
    region = bounding_box(error, margin=int(2 * radius + 2))
    while radius > 1:
        # For a fractional radius the official kernel is neither centred nor symmetric, and may lack its own centre.
        axis = np.arange(-radius, radius + 1)
        kernel = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.uint8)
        centre = len(kernel) // 2
        eroded = cv2.erode(error[region].astype(np.uint8), kernel, anchor=(centre, centre))
        if not kernel[centre:, centre:].any():
            eroded[0, 0] = 0  # no pixel under the kernel there: officially 0, to OpenCV 255
        opened[region] = cv2.dilate(eroded, kernel, anchor=(centre, centre))
        if opened.any():
            break
        radius *= 0.9
    return opened


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold a set pixel and `margin` more on every side, within the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0), slice(0)
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin),
        slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin),
    )


def medial_axis(mask: np.ndarray) -> np.ndarray:
    """The skeleton of a mask: bool H×W to bool H×W (Blum 1967, as in scikit-image 0.16).

    Pixels are peeled off by their distance to the background, then corners first, then in the order of a fixed
    permutation (later scikit-image draws one that differs from run to run).
    """
    region = bounding_box(mask, margin=0)
    padded = np.pad(mask[region].astype(np.uint8), 1)
    inside = np.flatnonzero(padded)
    skeleton = np.zeros_like(mask)
    if not len(inside):
        return skeleton
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).ravel()[inside]
    squared = np.rint(distance.astype(np.float64) ** 2).astype(np.int64)
    neighbours = cv2.boxFilter(padded, -1, (3, 3), normalize=False).ravel()[inside]
    permutation = np.random.RandomState(0).permutation(len(inside))
    order = np.argsort((squared * 10 + 9 - neighbours) * len(inside) + permutation)
    peel(padded.ravel(), inside[order], padded.shape[1], removable())
    skeleton[region] = padded[1:-1, 1:-1]
    return skeleton


@njit(cache=True, nogil=True)
def peel(mask: np.ndarray, order: np.ndarray, width: int, removable: np.ndarray) -> None:
    """Clear, in `order`, the pixels of a flat mask whose neighbourhood, as it is by then, is `removable`."""
    for pixel in order:
        pattern = 0
        for row in range(3):
            for column in range(3):
                pattern |= mask[pixel + (row - 1) * width + column - 1] << (3 * row + column)
        mask[pixel] = not removable[pattern]


@cache
def removable() -> np.ndarray:
    """bool 512, by 3×3 pattern: the centre neither joins 8-connected parts nor ends a line."""
    patterns = (np.arange(512)[:, None] >> np.arange(9) & 1).reshape(-1, 3, 3)
    without = patterns.copy()
    without[:, 1, 1] = 0
    parts, parts_without = (np.array([label(p, np.ones((3, 3)))[1] for p in kind]) for kind in (patterns, without))
    return (parts == parts_without) & (patterns.sum(axis=(1, 2)) >= 3)


def longest_paths(skeleton: np.ndarray, min_nb_nodes: int) -> list[np.ndarray]:
    """The longest path, in pixels, of each part of a skeleton: int64 P×2 (x, y) each.

    Parts of fewer than `min_nb_nodes` pixels are left out.
    """
    nodes = np.stack(np.divmod(np.flatnonzero(skeleton), skeleton.shape[1])[::-1], axis=1)
    paths = []
    for part in components(skeleton_graph(nodes)):
        if len(part) >= min_nb_nodes:
            break_cycles(part)
            end = farthest_path(part, next(iter(part)))[-1]
            paths.append(nodes[farthest_path(part, end)])
    return paths


def skeleton_graph(nodes: np.ndarray) -> Graph:
    """The graph of 8-connected pixels, int P×2 (x, y) in raster order, its edges in the official order."""
    rank = kd_tree_order(nodes)
    index = {point: node for node, point in enumerate(map(tuple, nodes.tolist()))}
    graph: Graph = {node: {} for node in index.values()}
    around = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy]
    for (x, y), node in index.items():
        near = [
            (rank[other], other, dx * dx + dy * dy)
            for dx, dy in around
            if (other := index.get((x + dx, y + dy))) is not None
        ]
        for _, other, length in sorted(near):
            graph[node][other] = graph[other][node] = length
    return graph


def kd_tree_order(nodes: np.ndarray, leaf_size: int = 30) -> list[int]:
    """The place of each node in scikit-learn's kd-tree, in whose order the official neighbours come."""
    count = len(nodes)
    order = np.arange(count)
    levels = int(np.log2(max(1, (count - 1) / leaf_size)) + 1)
    parts = [(0, count)]
    for _ in range(levels - 1):
        halves = []
        for start, end in parts:
            spread = np.ptp(nodes[order[start:end]], axis=0)
            middle = start + (end - start) // 2
            quickselect(nodes[:, int(spread[1] > spread[0])], order, start, end - 1, middle)
            halves += [(start, middle), (middle, end)]
        parts = halves
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return rank.tolist()


@njit(cache=True, nogil=True)
def quickselect(values: np.ndarray, order: np.ndarray, left: int, right: int, middle: int) -> None:
    """Partition order[left..right] so that order[middle] is in its sorted place (Lomuto's scheme)."""
    while True:
        split = left
        for i in range(left, right):
            if values[order[i]] < values[order[right]]:
                order[i], order[split] = order[split], order[i]
                split += 1
        order[split], order[right] = order[right], order[split]
        if split == middle:
            return
        if split < middle:
            left = split + 1
        else:
            right = split - 1


def components(graph: Graph) -> list[Graph]:
    """The connected parts of a graph, by their smallest node, with nodes and edges in networkx 2.4's order.

    That order is the one in which CPython iterates over sets of ints built in this very way.
    """
    parts = []
    seen: set[int] = set()
    for node in graph:
        if node not in seen:
            part = set(breadth_first(graph, node))
            seen |= part
            copied = set(iter(part))
            parts.append(subgraph(graph, copied if 2 * len(copied) < len(graph) else sorted(copied)))
    return parts


def breadth_first(graph: Graph, start: int) -> list[int]:
    """The nodes connected to `start`, level by level, each level in the order of a set."""
    seen: dict[int, None] = {}
    level = {start}
    while level:
        following: set[int] = set()
        for node in level:
            if node not in seen:
                seen[node] = None
                following.update(iter(graph[node]))
        level = following
    return list(seen)


def subgraph(graph: Graph, nodes: Collection[int]) -> Graph:
    """A whole part of a graph, its edges inserted anew in the order of `nodes`."""
    copy: Graph = {node: {} for node in nodes}
    for node in nodes:
        for other, length in graph[node].items():
            copy[node][other] = copy[other][node] = length
    return copy


def break_cycles(graph: Graph) -> None:
    """Make a connected graph a tree: as long as depth-first search finds a cycle, delete its first longest edge."""
    root = next(iter(graph))
    path, found, ahead = [root], [root], {root: iter(tuple(graph[root]))}
    while path:
        node = path[-1]
        for other in ahead[node]:
            if other in graph[node] and path[-2:-1] != [other]:
                break
        else:
            path.pop()
            continue
        if other not in ahead:
            path.append(other)
            found.append(other)
            ahead[other] = iter(tuple(graph[other]))
            continue
        cycle = [*path[path.index(other) :], other]
        tail, head = max(pairwise(cycle), key=lambda edge: graph[edge[0]][edge[1]])
        del graph[tail][head], graph[head][tail]
        if head != other:  # a new search would get as far as `tail` in the same way: go on from there
            del path[path.index(head) :]
            for forgotten in found[found.index(head) :]:
                del ahead[forgotten]
            del found[found.index(head) :]


def farthest_path(tree: Graph, start: int) -> list[int]:
    """The path from `start` to the first of the nodes, in breadth-first order, that most edges part from it."""
    previous = {start: start}
    level = [start]
    while level:
        end = level[0]
        following = []
        for node in level:
            for other in tree[node]:
                if other not in previous:
                    previous[other] = node
                    following.append(other)
        level = following
    path = [end]
    while path[-1] != start:
        path.append(previous[path[-1]])
    return path[::-1]
