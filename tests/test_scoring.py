"""Metrics, robot and scribbles against their definitions, where a shortcut of ours could go wrong unseen."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import networkx as nx
import numpy as np
import pytest
from skimage.morphology import medial_axis

from harness.api import BadInput, Scribbles, Stroke
from harness.data import scribble_files
from harness.rules import robot, scribbles
from harness.rules.metrics import Scorer, contour, jaccard
from harness.rules.robot import correct, next_frame

random = np.random.default_rng(0)


def blobs(*shape: int, labels: int = 2, sigma: float = 3) -> np.ndarray:
    """uint8 label map of smooth random regions."""
    noise = np.stack([cv2.GaussianBlur(random.normal(size=shape), (0, 0), sigma) for _ in range(labels)])
    return noise.argmax(axis=0).astype(np.uint8)


def slow_jaccard(truth: np.ndarray, mask: np.ndarray) -> float:
    return (truth & mask).sum() / (truth | mask).sum() if (truth | mask).any() else 1.0


def slow_contour(truth: np.ndarray, mask: np.ndarray, radius: int) -> float:
    def boundary(m: np.ndarray) -> np.ndarray:
        m = np.pad(m, ((0, 1), (0, 1)), mode="edge")
        return (m[:-1, :-1] != m[:-1, 1:]) | (m[:-1, :-1] != m[1:, :-1]) | (m[:-1, :-1] != m[1:, 1:])

    def matched(these: np.ndarray, those: np.ndarray) -> float:
        distance = np.linalg.norm(np.argwhere(these)[:, None] - np.argwhere(those), axis=2).min(axis=1)
        return (distance <= radius).sum() / these.sum()

    a, b = boundary(truth), boundary(mask)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision, recall = matched(b, a), matched(a, b)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 1), (48, 64), (37, 53), (30, 131)])
@pytest.mark.parametrize("radius", [1, 5, 40])
def test_scores_are_those_of_the_definition_at_every_size(shape: tuple[int, int], radius: int) -> None:
    """Eight pixels are compared at once and boundaries are searched 64 at once: odd widths, wide disks, void."""
    truth = np.stack([blobs(*shape, labels=4), np.zeros(shape, np.uint8), blobs(*shape), np.ones(shape, np.uint8)])
    masks = np.stack([blobs(*shape, labels=3), blobs(*shape), blobs(*shape, labels=5), np.zeros(shape, np.uint8)])
    truth[0, 0] = 255
    for k in (1, 2):
        pairs = [(t == k, m == k) for t, m in zip(truth, masks, strict=True)]
        assert jaccard(truth, masks, 2)[:, k - 1].tolist() == [slow_jaccard(*pair) for pair in pairs]
        assert contour(truth, masks, 2, radius)[:, k - 1].tolist() == [slow_contour(*pair, radius) for pair in pairs]


def test_a_method_may_reuse_its_array_of_masks() -> None:
    """Unchanged frames are not scored again: what counts is what they hold, not whose memory it is."""
    truth = np.stack([blobs(48, 64) for _ in range(3)])
    score, masks = Scorer(truth, 1), np.zeros_like(truth)
    first, _ = score(masks)
    masks[1] = truth[1]
    second, _ = score(masks)
    assert second[1] == 1
    assert first[1] == 0
    assert np.array_equal(first[[0, 2]], second[[0, 2]])


def test_a_perfect_prediction_needs_no_stroke() -> None:
    truth = blobs(48, 64, labels=3)
    assert correct(truth, truth, 2) == []


def test_ties_are_broken_as_by_the_numpy_of_the_release() -> None:
    """Frames of an empty or a perfect prediction are all equally bad; today's numpy would ask for others."""
    equal = np.ones((25, 2))
    used: list[int] = []
    for _ in range(4):
        used.append(next_frame(equal, used, 25))
    assert used == [0, 22, 21, 20]
    values = random.permutation(200).astype(float)
    assert robot.introsort(values.tolist()) == np.argsort(values).tolist()


def test_frames_are_asked_for_again_only_when_all_have_been() -> None:
    scores = np.array([0.3, 0.1, 0.2])
    assert next_frame(scores, {1}, 3) == 2
    assert next_frame(scores, {1, 2}, 3, [1, 2]) == 1
    assert next_frame(scores, {0, 1, 2}, 3, [0, 2]) == 2


@pytest.mark.parametrize("shape", [(12, 17), (24, 31)])
def test_the_opening_is_that_of_the_whole_frame(shape: tuple[int, int]) -> None:
    """It is computed on a crop, by filters with another idea of the border than the official ones."""

    def rank(image: np.ndarray, kernel: np.ndarray, choose: Any) -> np.ndarray:
        offsets = np.argwhere(kernel) - len(kernel) // 2
        filtered = np.zeros_like(image)
        for y, x in np.ndindex(image.shape):
            under = [image[y + i, x + j] for i, j in offsets if 0 <= y + i < shape[0] and 0 <= x + j < shape[1]]
            filtered[y, x] = choose(under) if under else 0
        return filtered

    for kernel_size in (0.12, 0.2, 0.7):
        error = blobs(*shape, sigma=1.5).astype(bool)
        error[: shape[0] // 2, : shape[1] // 2] &= shape[0] > 12
        expected, radius = error, min(kernel_size * np.sqrt(error.sum()) / 2, 16)
        while radius > 1:
            axis = np.arange(-radius, radius + 1)
            kernel = axis[:, None] ** 2 + axis**2 <= radius**2
            expected = rank(rank(error, kernel, min), kernel, max)
            radius *= 0 if expected.any() else 0.9
        assert np.array_equal(robot.opening(error, kernel_size, 16), expected)


class ReleaseTimeTies(np.random.Generator):
    """Breaks ties of the medial axis as scikit-image 0.16 did."""

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.random.RandomState(0).permutation(x)


@pytest.mark.parametrize("sigma", [1, 4, 20])
def test_the_skeleton_is_that_of_scikit_image(sigma: float) -> None:
    mask = blobs(150, 233, sigma=sigma).astype(bool)
    expected = medial_axis(np.pad(mask, 1), rng=ReleaseTimeTies(np.random.PCG64()))[1:-1, 1:-1]
    assert np.array_equal(robot.medial_axis(mask), expected)


def test_cycles_are_broken_as_by_networkx() -> None:
    """One edge more or less sends the stroke along another branch; ours goes on where networkx starts anew."""
    for density in (0.2, 0.3, 0.4, 0.6):
        nodes = np.argwhere(random.random((15, 20)) < density)[:, ::-1]
        for part in robot.components(robot.skeleton_graph(nodes)):
            expected = nx.Graph()
            expected.add_nodes_from(part)
            expected.add_edges_from((u, v) for u, neighbours in part.items() for v in neighbours)
            lengths = {u: dict(neighbours) for u, neighbours in part.items()}
            while not nx.is_forest(expected):
                cycle = nx.find_cycle(expected)
                expected.remove_edge(*max(cycle, key=lambda edge: lengths[edge[0]][edge[1]]))
            robot.break_cycles(part)
            assert {u: list(neighbours) for u, neighbours in part.items()} == {u: list(expected[u]) for u in expected}


def test_lines_have_no_gaps() -> None:
    corners = random.integers(0, 50, (20, 2))
    line = scribbles.bresenham(corners)
    assert max(np.abs(b - a).max() for a, b in pairwise(line)) == 1
    assert line[0].tolist() == corners[0].tolist()
    assert line[-1].tolist() == corners[-1].tolist()


def test_a_file_gives_back_the_same_floats(tmp_path: Path) -> None:
    drawn = Scribbles("dog", ((), (Stroke(random.random((9, 2)), 3, 12.5, 99),)))
    scribble_files.write(tmp_path / "001.json", drawn)
    back = scribble_files.read(tmp_path / "001.json", "dog", 2)
    assert np.array_equal(back.frames[1][0].path, drawn.frames[1][0].path)
    assert scribbles.to_json(back) == scribbles.to_json(drawn)


STROKE = {"path": [[0.5, 0.5]], "object_id": 1, "start_time": 0, "end_time": 1}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ("[]", "list"),
        ({"sequence": "cat", "scribbles": [[], []]}, "'cat'"),
        ({"sequence": "dog"}, "scribbles"),
        ({"sequence": "dog", "scribbles": [[]]}, "1 frames"),
        ({"sequence": "dog", "scribbles": [[], {}]}, "list of lists"),
        ([{**STROKE, "path": [[0.5, 1.01]]}], "1.01"),
        ([{**STROKE, "path": [[float("nan"), 0.5]]}], "nan"),
        ([{**STROKE, "path": [["0.5", 0.5]]}], "'0.5'"),
        ([{**STROKE, "path": [[0.5]]}], "[0.5]"),
        ([{**STROKE, "path": []}], "empty"),
        ([{**STROKE, "object_id": -1}], "-1"),
        ([{**STROKE, "object_id": 1.5}], "1.5"),
        ([{**STROKE, "start_time": None}], "start_time"),
        ([{"path": [[0.5, 0.5]], "object_id": 1, "start_time": 0}], "end_time"),
        ([7], "int"),
    ],
)
def test_a_defect_file_is_refused_in_one_line(content: Any, named: str, tmp_path: Path) -> None:
    """Whoever draws scribbles by another tool must learn which file, which value and what to do."""
    file = tmp_path / "001.json"
    strokes = isinstance(content, list)
    data = {"sequence": "dog", "scribbles": [[], content]} if strokes else content
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(BadInput) as refusal:
        scribble_files.read(file, "dog", 2)
    message = str(refusal.value)
    assert message.startswith(f"{file}: ")
    assert named in message
    assert "\n" not in message


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"002\.json: no such file"):
        scribble_files.read(tmp_path / "002.json", "dog", 2)
