"""Score masks that somebody else computed, by the semi-supervised rules of DAVIS."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from harness.api import BadInput
from harness.data.images import read_labels
from harness.data.sequence import VideoSequence
from harness.report.tables import show
from harness.rules.metrics import Scorer
from harness.run.build import build
from harness.run.progress import bar

log = logging.getLogger(__name__)

COLUMNS = [f"{metric} {statistic}" for metric in "JF" for statistic in ("mean", "recall", "decay")]


def score(masks: str | None, dataset: DictConfig, reports: str) -> None:
    """Print and write the scores of `masks/<sequence>/<frame>.png` on a dataset's sequences.

    The first and the last frame are not scored. Objects weigh alike, as in the DAVIS 2017 table; `all` is their mean.
    Raises BadInput, before anything is scored, if a sequence or frame is missing.
    """
    if masks is None:
        raise BadInput("task=score: masks not given; say masks=<folder> with <sequence>/00000.png, ... in it")
    only_masks = {"playable": False} if dataset._target_ == "harness.data.davis.load" else {}
    sequences: list[VideoSequence] = build(dataset, "dataset.", **only_masks)
    files = {sequence.name: find(Path(masks), sequence) for sequence in sequences}
    rows = [
        {"sequence": sequence.name, "object": k + 1, **statistics}
        for sequence in bar(sequences, "score")
        for k, statistics in enumerate(score_sequence(sequence, files[sequence.name]))
    ]
    objects = pd.DataFrame(rows)
    table = objects.groupby("sequence", sort=False)[COLUMNS].mean()
    table.loc["all"] = objects[COLUMNS].mean()
    table.insert(0, "J&F", (table["J mean"] + table["F mean"]) / 2)

    folder = Path(reports) / f"score-{dataset.name}"
    folder.mkdir(parents=True, exist_ok=True)
    objects.to_csv(folder / "objects.csv", index=False)
    table.to_csv(folder / "table.csv")
    show(f"{dataset.name}, {len(sequences)} sequences, first and last frame not scored", table.reset_index(), digits=6)
    log.info("written: %s", folder)


def score_sequence(sequence: VideoSequence, files: list[Path]) -> list[dict[str, float]]:
    """The statistics of each object of a sequence."""
    truth = sequence.read_annotations()
    masks = np.stack([read_mask(file, sequence) for file in files])
    jaccard, contour = Scorer(truth, sequence.num_objects)(masks)
    return [
        {f"{metric} {name}": value for metric, values in both.items() for name, value in statistics(values).items()}
        for both in ({"J": jaccard[1:-1, k], "F": contour[1:-1, k]} for k in range(sequence.num_objects))
    ]


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, recall and decay of one object's scores over the scored frames (Perazzi et al. 2016, section 5).

    Recall is the share of frames above 0.5. Decay is the mean of the first quarter minus that of the last, with the
    quarters of the official evaluation: neighbours share a frame.
    """
    ends = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: ends[1] + 1], values[ends[3] :]
    return {"mean": values.mean(), "recall": (values > 0.5).mean(), "decay": first.mean() - last.mean()}


def find(masks: Path, sequence: VideoSequence) -> list[Path]:
    """The mask file of every frame, in order; they are numbered as in DAVIS, from 00000.png."""
    if sequence.num_frames < 3:
        raise BadInput(f"{sequence.name}: {sequence.num_frames} frames, of which none is scored; leave it out")
    files = [masks / sequence.name / f"{t:05d}.png" for t in range(sequence.num_frames)]
    if missing := [file for file in files if not file.is_file()]:
        raise BadInput(f"{missing[0]}: missing; masks=<folder> wants <sequence>/00000.png to {files[-1].name}")
    return files


def read_mask(file: Path, sequence: VideoSequence) -> np.ndarray:
    """uint8 H×W labels of a palette or grey PNG, those of DAVIS 2016 results (0 and 255) as 0 and 1."""
    labels = read_labels(file)
    if labels.shape != sequence.size:
        found, wanted = (f"{width}x{height}" for height, width in (labels.shape, sequence.size))
        raise BadInput(f"{file}: {found}, wanted {wanted}; give masks of the annotations' size")
    if sequence.num_objects == 1 and set(np.unique(labels)) <= {0, 255}:
        return (labels > 0).astype(np.uint8)
    if labels.max() > sequence.num_objects:
        raise BadInput(f"{file}: label {labels.max()}, wanted 0..{sequence.num_objects}; is it of another sequence?")
    return labels
