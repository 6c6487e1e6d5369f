"""The embedded clips: what a user's numbers rest on when nothing is downloaded."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from harness.api import BadInput
from harness.data import synthetic

ROOT = Path(__file__).parents[1]
DIGESTS = Path(__file__).parent / "goldens" / "synthetic.json"


def instructions() -> dict[str, list[str]]:
    """What NumPy and OpenCV use on this processor beyond the oldest of its family."""
    opencv = [name[1:] for name in cv2.getCPUFeaturesLine().split() if name[0] == "*" and name[-1] != "?"]
    return {"numpy": np.show_config(mode="dicts")["SIMD Extensions"].get("found", []), "opencv": opencv}


SWITCHED_OFF = {
    "numpy": {"NPY_DISABLE_CPU_FEATURES": " ".join(instructions()["numpy"])},
    "opencv": {"OPENCV_CPU_DISABLE": ",".join(instructions()["opencv"]), "OPENCV_IPP": "disabled"},
    "others": {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
        "JSIMD_FORCENONE": "1",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}

small = partial(synthetic.load, clips=3, frames=6, size=(48, 80))


def digests() -> dict[str, str]:
    """Of every embedded clip with its frames, truth and first scribbles; other sizes round otherwise."""
    clips = [
        *synthetic.load("val"),
        *synthetic.load("train"),
        *synthetic.load(clips=3, frames=4, size=(97, 131), seed=7),
    ]
    return {clip.made_by: clip.manifest for clip in clips}


def test_clips_are_the_kept_ones() -> None:
    """Else scores change, or are another machine's, under the old label.

    A change that is meant: count synthetic.GENERATOR up, then `uv run python -m tests.test_synthetic`.
    """
    assert digests() == json.loads(DIGESTS.read_text())


@pytest.mark.parametrize("library", SWITCHED_OFF)
def test_clips_are_the_same_without_newer_instructions(library: str) -> None:
    """Else every processor has clips, and so scores, of its own."""
    code = (
        "import json; from tests.test_synthetic import digests, instructions; "
        "print(json.dumps([instructions(), digests()]))"
    )
    environment = os.environ | SWITCHED_OFF[library]
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    used, theirs = json.loads(child.stdout)
    assert not used.get(library)
    assert theirs == json.loads(DIGESTS.read_text())


def test_another_photograph_under_the_name_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages may exchange a photograph, and Pillow decode one otherwise: clips would differ without a word."""
    monkeypatch.setattr(synthetic, "PHOTOGRAPHS", {"val": {"skimage": {"chelsea.png": "0" * 16}}})
    with pytest.raises(BadInput, match=r"chelsea\.png: its pixels have digest 416b729128bfb2c3"):
        synthetic.photographs.__wrapped__("val")


def test_same_arguments_same_clips() -> None:
    """Else two people's numbers are not comparable."""
    first, again = small("val"), small("val")
    assert [clip.manifest for clip in first] == [clip.manifest for clip in again]
    np.testing.assert_array_equal(first[2].read_frames(), again[2].read_frames())
    others = [*small("val", seed=1), *small("train")]
    assert not {clip.manifest for clip in first} & {clip.manifest for clip in others}


def test_more_clips_leave_the_first_ones_alone() -> None:
    """A larger evaluation set must reuse what was played before."""
    few, many = small("val"), small("val", clips=5)
    assert [clip.manifest for clip in few] == [clip.manifest for clip in many[:3]]


def test_training_never_sees_an_evaluation_photograph() -> None:
    files = [{file for names in synthetic.PHOTOGRAPHS[split].values() for file in names} for split in synthetic.SPLITS]
    assert not files[0] & files[1]
    both_eyes = {"motorcycle_left.png", "motorcycle_right.png"}
    assert both_eyes <= files[0] or not both_eyes & files[0]
    contents = [{photograph.tobytes() for photograph in synthetic.photographs(split)} for split in synthetic.SPLITS]
    assert not contents[0] & contents[1]


def test_default_clips_can_be_played() -> None:
    """Every object is drawn on, large enough there, and in sight on most frames."""
    clips = synthetic.load()
    assert [clip.name for clip in clips] == [f"val-{index:02d}" for index in range(8)]
    assert {clip.num_objects for clip in clips} == {1, 2, 3}
    for clip in clips:
        frames, annotations = clip.read_frames(), clip.read_annotations()
        assert frames.shape == (20, 160, 288, 3)
        assert frames.dtype == annotations.dtype == np.uint8
        objects = range(1, clip.num_objects + 1)
        areas = np.array([[(labels == k).mean() for k in objects] for labels in annotations])
        assert ((areas > 0.01).mean(0) > 0.5).all()
        scribbles = clip.scribbles[1]
        (frame,) = scribbles.annotated_frames
        assert (areas[frame] > 0.01).all()
        assert {stroke.object_id for stroke in scribbles.frames[frame]} == set(objects)


def test_annotations_follow_the_drawn_edges() -> None:
    """Frames change across an annotated outline far more than elsewhere, and most right at it."""
    contrast = np.zeros(5)
    for clip in synthetic.load():
        grey = clip.read_frames().mean(-1)
        labels = clip.read_annotations()
        steps = np.abs(np.diff(grey, axis=2))
        edges = labels[:, :, 1:] != labels[:, :, :-1]
        contrast += [np.roll(steps, shift, axis=2)[edges].mean() for shift in (-4, -1, 0, 1, 4)]
    assert contrast.argmax() == 2
    assert contrast[2] > 1.5 * max(contrast[0], contrast[4])


def test_a_guest_cannot_spoil_the_clip_of_the_next() -> None:
    (clip,) = synthetic.load(clips=1, frames=2, size=(48, 80))
    clip.read_frames()[:] = 0
    assert clip.read_frames().any()


def test_clips_need_no_heavy_import() -> None:
    """Photographs are read out of packages that take seconds to import."""
    code = (
        "import sys; from harness.data import synthetic; synthetic.photographs('val'); "
        "sys.exit(str({'skimage', 'sklearn', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"clips": 0}, {"frames": 0}, {"size": (8, 8)}])
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        synthetic.load(**wrong)


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(digests(), indent=1) + "\n")
