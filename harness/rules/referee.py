"""The referee: the same sample played through the real davisinteractive 1.0.4.

`protocol.engine=official` takes this loop instead of `harness.rules.session`. It is slow. What depends on the order in
which libraries happened to give ties (numpy, scikit-image) and neighbours (scikit-learn, networkx) is ordered as in
April 2020, when the package was released: the same frames and strokes whatever is installed here, as in our own engine.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import networkx as nx
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import csr_array

from harness.api import BadInput, Clip, Interaction, Method, Scribbles
from harness.rules.clock import Clock, WallClock
from harness.rules.protocol import Protocol
from harness.rules.robot import breadth_first, introsort, kd_tree_order
from harness.rules.scribbles import empty, from_json, fuse, to_json
from harness.rules.session import Round, check, first_frame, read_only

# Gone since numpy 1.24 and 2.0.
GONE = {"bool": bool, "int": int, "float": float, "trapz": np.trapezoid}


class Scores(np.ndarray):
    """Breaks ties in sorting as numpy 1.18 did; later versions do by the CPU."""

    def argsort(self, *_: Any, **__: Any) -> Any:
        return np.array(introsort(self.tolist()))


class Permutation(np.random.Generator):
    """Breaks the ties of the medial axis as scikit-image 0.16 did; later versions draw them unseeded."""

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.random.RandomState(0).permutation(x)


def scores(measure: Callable[..., np.ndarray], *arguments: Any, **options: Any) -> np.ndarray:
    """What a measure of the package returns, as `Scores`."""
    return measure(*arguments, **options).view(Scores)


def neighbours(graph: Callable[..., Any], points: np.ndarray, *arguments: Any, **options: Any) -> csr_array:
    """scikit-learn's graph of near points, the neighbours of each in the order of 0.20: that of its kd-tree."""
    near = graph(points, *arguments, **options).tocoo()
    rank = np.array(kd_tree_order(points))
    order = np.lexsort((rank[near.col], near.row))
    ends = np.searchsorted(near.row[order], np.arange(len(points) + 1))
    return csr_array((near.data[order], near.col[order], ends), near.shape)


def connected_components(graph: nx.Graph) -> Iterator[set[int]]:
    """Nodes that hang together, in sets that iterate as those of networkx 2.4."""
    seen: set[int] = set()
    for node in graph:
        if node not in seen:
            part = set(breadth_first(graph, node))
            seen |= part
            yield part


def play(
    method: Method, clip: Clip, truth: np.ndarray, scribbles: Scribbles, protocol: Protocol, clock: Clock
) -> Iterator[Round]:
    """As `harness.rules.session.play`, asked, timed and scored by davisinteractive.

    Raises BadInput for what the package cannot do: masks as interactions, another clock, unscored frames.
    """
    if protocol.interaction != "strokes" or protocol.scored != "all" or not isinstance(clock, WallClock):
        raise BadInput(
            "protocol.engine=official: davisinteractive gives strokes, scores every frame and has a wall clock"
        )
    frame, new, drawn = first_frame(scribbles, protocol), scribbles, empty(clip.name, len(truth))
    if hasattr(method, "warm_up"):
        method.warm_up(clip)
    with session(clip, truth, scribbles, protocol) as official:
        number = 0
        while official.next():
            if number:
                frame = int(official.connector.service.storage.annotated_frames["frame"].iloc[-1])
            _, last, _ = official.get_scribbles(only_last=True)
            new = from_json(last)
            drawn = fuse(drawn, new)
            number += 1
            question = Interaction(frame, read_only(new), read_only(drawn))
            if number == 1:
                method.start(clip)
            prediction = method.interact(question)
            masks = check(prediction, clip)
            official.submit_masks(masks, protocol.candidates(number, frame, prediction.candidates))
            report = official.get_report()
            report = report[report["interaction"] == number]
            if report.empty:
                continue
            yield Round(
                number,
                frame,
                new,
                masks,
                report["jaccard"].to_numpy(float).reshape(len(truth), -1),
                report["contour"].to_numpy(float).reshape(len(truth), -1),
                float(report["timing"].iloc[0]),
            )


@contextmanager
def session(clip: Clip, truth: np.ndarray, scribbles: Scribbles, protocol: Protocol) -> Iterator[Any]:
    """A `DavisInteractiveSession` on one sample, laid out as a DAVIS dataset in a temporary folder."""
    height, width = truth.shape[1:]
    about = {
        "name": clip.name,
        "num_frames": len(truth),
        "num_objects": clip.num_objects,
        "num_scribbles": 1,
        "image_size": [width, height],
    }
    with revived(), TemporaryDirectory() as folder:
        from davisinteractive.dataset import Davis
        from davisinteractive.robot import InteractiveScribblesRobot
        from davisinteractive.session import DavisInteractiveSession

        root = Path(folder)
        annotations = root / "Annotations" / "480p" / clip.name
        annotations.mkdir(parents=True)
        for t, labels in enumerate(truth):
            Image.fromarray(labels).save(annotations / f"{t:05d}.png")
        path = root / "Scribbles" / clip.name / "001.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(to_json(scribbles)), encoding="utf-8")
        with (
            patch.dict(Davis.dataset, {clip.name: about}),
            patch.dict(Davis.sets, {"val": [clip.name]}),
            DavisInteractiveSession(
                davis_root=folder,
                max_time=protocol.max_time,
                max_nb_interactions=protocol.rounds,
                metric_to_optimize=protocol.metric,
                report_save_dir=folder,
            ) as official,
        ):
            if protocol.robot:
                official.connector.service.robot = InteractiveScribblesRobot(**protocol.robot)
            yield official


@contextmanager
def revived() -> Iterator[None]:
    """Make the package run on the libraries of today, and break ties as on those of its release, within the context."""
    gone = {name: value for name, value in GONE.items() if name not in vars(np)}
    for name, value in gone.items():
        setattr(np, name, value)
    try:
        from davisinteractive.evaluation import service
        from davisinteractive.robot import interactive_robot

        logging.getLogger("absl").setLevel(logging.WARNING)
        summarize_report = service.EvaluationService.summarize_report

        # pandas 2 no longer drops the text column, nor averages numbers held as objects
        def summarize(self: Any, report: pd.DataFrame) -> Mapping[str, Any]:
            numbers = report.drop(columns="session_id").infer_objects()
            return summarize_report(self, numbers.astype(dict.fromkeys(numbers.columns[-4:], float)))

        at_release = {
            (service.EvaluationService, "summarize_report"): summarize,
            (service, "batched_jaccard"): partial(scores, service.batched_jaccard),
            (service, "batched_f_measure"): partial(scores, service.batched_f_measure),
            (interactive_robot, "medial_axis"): partial(
                interactive_robot.medial_axis, rng=Permutation(np.random.PCG64())
            ),
            (interactive_robot, "radius_neighbors_graph"): partial(
                neighbours, interactive_robot.radius_neighbors_graph
            ),
            (interactive_robot, "nx"): SimpleNamespace(
                **vars(nx)
                | {
                    "from_scipy_sparse_matrix": nx.from_scipy_sparse_array,  # renamed in networkx 3.0
                    "connected_components": connected_components,
                }
            ),
        }
        with ExitStack() as patches:
            for (where, name), value in at_release.items():
                patches.enter_context(patch.object(where, name, value))
            yield
    finally:
        for name in gone:
            delattr(np, name)
