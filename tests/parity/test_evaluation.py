"""Our evaluation against recorded outputs of davisinteractive 1.0.4 on the libraries of its release.

What is recorded is in evaluation/README.md of the goldens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

from harness.api import Clip, Scribbles
from harness.rules import referee, scribbles
from harness.rules.metrics import Scorer
from harness.rules.protocol import Protocol
from harness.rules.robot import correct, longest_paths, medial_axis, next_frame, opening
from harness.rules.summary import summarize
from tests.parity.goldens import recorded


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def by_metric(jaccard: np.ndarray, contour: np.ndarray) -> dict[str, np.ndarray]:
    return {"J": jaccard, "F": contour, "J_AND_F": 0.5 * jaccard + 0.5 * contour}


LINE = {"path": [[0.5, 0.5]], "object_id": 1, "start_time": 0, "end_time": 0}
cases = pytest.mark.parametrize("path", recorded("evaluation/cases/*.json"))


@cases
def test_metrics_are_the_official_ones_to_the_last_bit(path: Path) -> None:
    case, masks = load(path), np.load(path.with_suffix(".npz"))
    jaccard, contour = Scorer(masks["gt"], int(masks["n"]))(masks["pred"])
    assert jaccard.tolist() == case["J"]
    assert contour.tolist() == case["F"]


@cases
@pytest.mark.parametrize("metric", ["J", "F", "J_AND_F"])
def test_the_robot_asks_for_the_official_frames(path: Path, metric: str) -> None:
    case = load(path)
    scores = by_metric(np.array(case["J"]), np.array(case["F"]))[metric]
    wanted = case["next_frame"][metric]

    def choose(candidates: list[list[int] | None]) -> list[int | str]:
        used: set[int] = set()
        chosen: list[int | str] = []
        for offered in candidates:
            try:
                frame = next_frame(scores, used, len(scores), offered)
            except IndexError:
                chosen.append("IndexError")
            else:
                used.add(frame)
                chosen.append(frame)
        return chosen

    assert choose([None] * len(wanted["no_candidates"])) == wanted["no_candidates"]
    assert choose(wanted["candidates_given"]) == wanted["with_candidates"]


@cases
@pytest.mark.parametrize("metric", ["J", "F", "J_AND_F"])
def test_the_referee_asks_for_the_official_frames(path: Path, metric: Literal["J", "F", "J_AND_F"]) -> None:
    case, masks = load(path), np.load(path.with_suffix(".npz"))
    wanted = case["next_frame"][metric]["no_candidates"]
    clip = Clip(path.stem, np.zeros((*masks["gt"].shape, 3), np.uint8), int(masks["n"]))
    first = scribbles.from_json({"sequence": path.stem, "scribbles": [[LINE], *([[]] * (len(masks["gt"]) - 1))]})
    with referee.revived():
        from davisinteractive.evaluation import service
        from davisinteractive.robot import InteractiveScribblesRobot

    # What is recorded are scores and frames: the measures, known to be ours, and the strokes need not be found again.
    nothing = {"sequence": path.stem, "scribbles": [[] for _ in masks["gt"]]}
    with (
        patch.object(service, "batched_jaccard", lambda *_, **__: np.array(case["J"])),
        patch.object(service, "batched_f_measure", lambda *_, **__: np.array(case["F"])),
        patch.object(InteractiveScribblesRobot, "interact", lambda *_, **__: nothing),
    ):
        protocol = Protocol("frames", metric=metric, rounds=len(wanted) + 1, max_time=None)
        with referee.session(clip, masks["gt"], first, protocol) as played:
            for _ in wanted:
                played.next()
                played.get_scribbles()
                played.submit_masks(masks["pred"])
            storage = played.connector.service.storage
            assert storage.annotated_frames["frame"].tolist() == wanted


@cases
def test_the_robot_draws_the_official_strokes(path: Path) -> None:
    case, masks = load(path), np.load(path.with_suffix(".npz"))
    drawn = np.load(path.with_name(f"{path.stem}_robot.npz"))
    for label, robot in case["robot"].items():
        for t, frame in robot["frames"].items():
            truth, mask = masks["gt"][int(t)], masks["pred"][int(t)]
            strokes = correct(mask, truth, int(masks["n"]), **robot["parameters"])
            wanted = frame["scribbles"]
            assert [(s.object_id, len(s.path)) for s in strokes] == [(w["object_id"], w["n_points"]) for w in wanted]
            for stroke, entry in zip(strokes, wanted, strict=True):
                np.testing.assert_allclose(stroke.path, drawn[entry["npz_key"]] / 1e6, rtol=0, atol=1e-6)
            if f"{label}_f{t}_s2m" in drawn:
                assert np.array_equal(scribbles.draw(strokes, truth.shape), drawn[f"{label}_f{t}_s2m"])


@cases
def test_the_referee_draws_the_official_strokes(path: Path) -> None:
    case, masks = load(path), np.load(path.with_suffix(".npz"))
    drawn = np.load(path.with_name(f"{path.stem}_robot.npz"))
    for robot in case["robot"].values():
        with referee.revived():
            from davisinteractive.robot import InteractiveScribblesRobot

            official = InteractiveScribblesRobot(**robot["parameters"])
            for t, frame in robot["frames"].items():
                answer = official.interact(path.stem, masks["pred"], masks["gt"], int(masks["n"]), int(t))
                strokes = scribbles.from_json(answer).frames[int(t)]
                assert [s.object_id for s in strokes] == [w["object_id"] for w in frame["scribbles"]]
                for stroke, entry in zip(strokes, frame["scribbles"], strict=True):
                    np.testing.assert_allclose(stroke.path, drawn[entry["npz_key"]] / 1e6, rtol=0, atol=1e-6)


@cases
def test_the_robot_finds_the_official_skeletons(path: Path) -> None:
    case, masks = load(path), np.load(path.with_suffix(".npz"))
    recorded = np.load(path.with_name(f"{path.stem}_robot.npz"))
    for label, robot in case["robot"].items():
        parameters = robot["parameters"]
        for t, frame in robot["frames"].items():
            for object_id, wanted in frame["objects"].items():
                truth, mask = masks["gt"][int(t)], masks["pred"][int(t)]
                error = (truth == int(object_id)) & (mask != int(object_id))
                assert error.sum() == wanted["error_pixels"]
                skeleton = medial_axis(opening(error, parameters["kernel_size"], parameters["max_kernel_radius"]))
                assert skeleton.sum() == wanted["skeleton_pixels"]
                name = f"{label}_f{t}_o{object_id}"
                if f"{name}_skel" in recorded:
                    assert np.array_equal(np.packbits(skeleton), recorded[f"{name}_skel"])
                paths = longest_paths(skeleton, parameters["min_nb_nodes"])
                assert [len(nodes) for nodes in paths] == wanted.get("longest_path_nodes", [])
                for i, nodes in enumerate(paths):
                    if f"{name}_nodes{i}" in recorded:
                        assert np.array_equal(nodes, recorded[f"{name}_nodes{i}"])


def assert_same_summary(summary: dict[str, Any], wanted: dict[str, Any], metric: str) -> None:
    assert summary["metric_at_threshold"]["threshold"] == wanted["metric_at_threshold"]["threshold"]
    for got, expected in (
        (summary["auc"], wanted["auc"]),
        (summary["metric_at_threshold"][metric], wanted["metric_at_threshold"][metric]),
        (summary["curve"]["time"], wanted["curve"]["time"]),
        (summary["curve"][metric], wanted["curve"][metric]),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def samples(sequences: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(name, i + 1, s["num_objects"]) for name, s in sequences.items() for i in range(s["num_scribbles"])]


@pytest.mark.parametrize("path", recorded("evaluation/summary/*.csv"))
def test_a_report_comes_to_the_official_summary(path: Path) -> None:
    case = next(case for case in load(path.with_name("cases.json")) if case["name"] == path.stem)
    parameters = case["parameters"]
    metric = parameters.get("metric_to_optimize", "J_AND_F")
    summary = summarize(
        pd.read_csv(path, index_col=0),
        samples(case["sequences"]),
        max_time=parameters["max_t"],
        max_interactions=parameters["max_i"],
        metric=metric,
        threshold=parameters.get("time_threshold", 60),
    )
    assert_same_summary(summary, load(path.with_suffix(".json")), metric)


@pytest.mark.parametrize("path", recorded("evaluation/utils/utils.json"))
def test_strokes_are_drawn_as_officially(path: Path) -> None:
    recorded, arrays = load(path), np.load(path.with_suffix(".npz"))
    for case in recorded["scribbles2mask"]:
        strokes = scribbles.from_json(recorded["scribble_sets"][case["set"]])
        options = {name: case[name] for name in ("bezier", "nb_points", "bresenham")} | {
            "default": case["default_value"]
        }
        if case["error"]:
            with pytest.raises({"IndexError": IndexError, "ValueError": ValueError}[case["error"]]):
                scribbles.draw_all(strokes, tuple(case["size"]), **options)
        else:
            assert np.array_equal(scribbles.draw_all(strokes, tuple(case["size"]), **options), arrays[case["key"]])


def bresenham(sets: dict[str, Scribbles], recorded: dict[str, Any]) -> None:
    for i, points in enumerate(recorded["bresenham_inputs"]):
        assert scribbles.bresenham(np.array(points)).tolist() == recorded["bresenham"][str(i)]


def bezier_7(sets: dict[str, Scribbles], recorded: dict[str, Any]) -> None:
    curve = scribbles.bezier(np.array(recorded["bezier_input"]), 7)
    np.testing.assert_allclose(curve, recorded["bezier_7"], rtol=0, atol=1e-12)


def bezier_more_points_than_samples(sets: dict[str, Scribbles], recorded: dict[str, Any]) -> None:
    points = scribbles.bezier(np.array(recorded["bezier_input"]), 3)
    assert points.tolist() == recorded["bezier_more_points_than_samples"]


def annotated(sets: dict[str, Scribbles], recorded: dict[str, Any]) -> None:
    assert {name: held.annotated_frames for name, held in sets.items()} == recorded["annotated"]


def fuse(sets: dict[str, Scribbles], recorded: dict[str, Any]) -> None:
    assert scribbles.to_json(scribbles.fuse(sets["overlap"], sets["single"])) == recorded["fuse"]


CHECKS: dict[str, Callable[[dict[str, Scribbles], dict[str, Any]], None]] = {
    check.__name__: check for check in (bresenham, bezier_7, bezier_more_points_than_samples, annotated, fuse)
}


@pytest.mark.parametrize("path", recorded("evaluation/utils/utils.json"))
@pytest.mark.parametrize(
    "part",
    [*CHECKS, "annotated_obj1", "is_empty", "points", "points_scaled", "nb_objects_none", "float_pred"],
)
def test_scribble_helpers_are_the_official_ones(path: Path, part: str) -> None:
    if part not in CHECKS:
        pytest.skip(f"{part}: there is no such function here")
    recorded = load(path)
    sets = {name: scribbles.from_json(data) for name, data in recorded["scribble_sets"].items()}
    CHECKS[part](sets, recorded["misc"])
