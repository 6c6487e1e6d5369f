"""`task=score` gives the numbers that the authors of STM published."""

import json
from pathlib import Path

import pytest
from PIL import Image

from harness.api import BadInput
from harness.data import davis
from harness.tasks import score
from tests.parity.goldens import FULL

SHARED = FULL.parent
STATISTICS = ("mean", "recall", "decay")


def test_published_scores_of_stm_on_davis_2017() -> None:
    masks = SHARED / "published" / "stm_davis17_masks"
    if not masks.is_dir():
        pytest.skip(f"no published masks in {masks}")
    published = json.loads((masks / "scores.json").read_text())["sequence"]
    for sequence in davis.load(str(SHARED / "davis"), playable=False):
        (ours,) = score.score_sequence(sequence, score.find(masks, sequence))
        for metric in "JF":
            for name in STATISTICS:
                (theirs,) = published[sequence.name][metric][name]
                assert ours[f"{metric} {name}"] == pytest.approx(theirs, abs=1e-9), (sequence.name, metric, name)


def test_published_row_of_stm_on_davis_2016() -> None:
    masks = SHARED / "published" / "stm_davis16_masks"
    if not masks.is_dir():
        pytest.skip(f"no published masks in {masks}")
    published = json.loads((masks / "scores.json").read_text())["dataset"]
    sequences = davis.load(str(SHARED / "davis16_val"), year=2016, playable=False)
    ours = [score.score_sequence(sequence, score.find(masks, sequence))[0] for sequence in sequences]
    assert len(ours) == 20
    for metric in "JF":
        for name in ("mean", "decay"):  # the published recall is 1.0 everywhere and does not follow the rule
            mean = sum(row[f"{metric} {name}"] for row in ours) / len(ours)
            assert mean == pytest.approx(published[metric][name], abs=1e-9)


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for kind in ("Annotations/480p", "masks"):
        (tmp_path / kind / "clip").mkdir(parents=True)
        for t in range(3):
            image = Image.new("P", (8, 6))
            image.putpixel((2, 2), 1)
            image.save(tmp_path / kind / "clip" / f"{t:05d}.png")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("clip\n")
    (sequence,) = davis.load(str(tmp_path), playable=False)
    files = score.find(tmp_path / "masks", sequence)
    (perfect,) = score.score_sequence(sequence, files)
    assert perfect["J mean"] == perfect["F mean"] == 1
    Image.new("P", (8, 7)).save(files[1])
    with pytest.raises(BadInput, match=r"00001\.png: 8x7, wanted 8x6"):
        score.score_sequence(sequence, files)
    files[1].unlink()
    with pytest.raises(BadInput, match=r"00001\.png: missing"):
        score.find(tmp_path / "masks", sequence)
