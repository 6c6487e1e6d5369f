"""What is recorded comes back, is compared with its like alone, and leaves in the formats that others read."""

import errno
import json
import os
import re
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.api import BadInput, Stroke
from harness.report import exchange, render
from harness.report.leaderboard import TOLD, boards, differences, entry, intervals, reference, table
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import Round, on_frame
from harness.run import records
from harness.run.records import Key, Record
from tests.parity.goldens import FULL

SHAPE = (4, 12, 16)
NOISE = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), np.uint8)


def make_round(number: int, rng: np.random.Generator) -> Round:
    scribbles = on_frame([Stroke(rng.random((5, 2)), 2)], number, empty("clip", SHAPE[0]))
    jaccard, contour = rng.random((2, SHAPE[0], 2))
    masks = rng.integers(0, 3, SHAPE).astype(np.uint8)
    return Round(number, number, scribbles, masks, jaccard, contour, seconds=0.5 * number)


def write(
    folder: Path, *, index: int = 1, status: str = "complete", rounds: int = 2, manifest: str = "x", **changes: Any
) -> Path:
    """A record of some rounds; `changes` go into its protocol."""
    rng = np.random.default_rng(index)
    protocol = asdict(Protocol("p", rounds=2, **changes))
    entry = {
        "method": {"name": "m", "_target_": "m.M"},
        "dataset": {"name": "d"},
        "weights": {"name": "none", "digest": "", "training": "none needed"},
        "protocol": protocol,
        "clock": {"name": "wall"},
        "source": "s",
    }
    key = Key({"sequence": "clip", "scribble_idx": index, "manifest": manifest}, entry)
    rows = [row for n in range(1, rounds + 1) for row in records.rows_of(make_round(n, rng), key)]
    clip = {"num_frames": 4, "num_objects": 2, "size": SHAPE[1:]}
    about: dict[str, Any] = {"samples": 2 if index == 2 else 1, "changes": [], **dict.fromkeys(TOLD, "x")}
    return records.write(folder, key, rows, clip=clip, provenance=about, status=status)


@pytest.mark.parametrize("rounds", [0, 2])
def test_intervals_are_of_the_scores_that_the_table_has(tmp_path: Path, rounds: int) -> None:
    """A sample without a round in time counts as 0, here and there; where all are so nothing breaks."""
    found = [records.read(write(tmp_path, rounds=rounds)), records.read(write(tmp_path, index=2, rounds=0))]
    (board,) = boards(found)
    told = intervals(board).set_index("score")["value"]
    assert told["AUC"] == pytest.approx(table(board)["AUC"].iloc[0], abs=1e-12)
    assert differences(board).empty


def test_record_gives_back_what_was_played(tmp_path: Path) -> None:
    record = records.read(write(tmp_path), content=True)
    rng = np.random.default_rng(1)
    for number in (1, 2):
        played = make_round(number, rng)
        np.testing.assert_array_equal(records.masks_of(record, number), played.masks)
        frame, scribbles = records.scribbles_of(record, number)
        assert frame == played.frame
        np.testing.assert_array_equal(scribbles.frames[frame][0].path, played.new.frames[frame][0].path)
        rows = record.rows[record.rows.interaction == number]
        np.testing.assert_array_equal(rows.jaccard.to_numpy().reshape(SHAPE[0], 2), played.jaccard)


def test_first_complete_record_wins_and_failures_give_way(tmp_path: Path) -> None:
    failed = write(tmp_path, status="raised")
    assert failed.name.endswith(".failed.parquet")
    assert records.read(failed).status == "raised"
    path = write(tmp_path)
    first = path.stat().st_ino
    assert not failed.exists()
    assert write(tmp_path) == path
    assert path.stat().st_ino == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_hard_links_keeps_the_first_record_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """exFAT, SMB and the drives of notebooks have none: what was just played must not be lost there."""

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = write(tmp_path)
    first = path.stat().st_ino
    assert write(tmp_path) == path
    assert path.stat().st_ino == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "keep",
    [
        lambda folder, path: write(folder, index=2),
        lambda folder, path: write(folder, index=2, status="raised"),
        lambda folder, path: records.archive([path], folder / "kept.parquet"),
        lambda folder, path: records.write_thumbnails(folder, "x", NOISE),
    ],
    ids=["record", "failure", "kept", "thumbnails"],
)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, keep: Callable[[Path, Path], object]
) -> None:
    """Half a record would stop every report after it."""
    path = write(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(records.Unwritable, match=r"cannot be written to \(File too large\); make room"):
            keep(tmp_path, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_other_protocols_never_share_a_board(tmp_path: Path) -> None:
    found = [records.read(write(tmp_path, **change)) for change in ({}, {"metric": "J"}, {"max_time": 10})]
    assert [len(board.samples) for board in boards(found)] == [1, 1, 1]
    found.append(records.read(write(tmp_path, index=2)))
    assert sorted(table(board)["samples"].item() for board in boards(found)) == ["1 of 1", "1 of 1", "2 of 2"]


def test_files_are_made_again_only_if_what_they_show_has_changed(tmp_path: Path) -> None:
    """Else a cached run draws every figure anew, or a page shows scores that are no longer those of the records."""
    paths = [write(tmp_path / "runs", index=i) for i in (1, 2)]

    def made(count: int = 2, until: float | None = None) -> dict[str, int]:
        render([records.read(path) for path in paths[:count]], tmp_path / "reports", until=until)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "reports" / "d-p-wall").iterdir()}

    first = made()
    assert {"index.html", "table.md", "table.tex", "curves.png", "curves.svg", "curves.pdf"} < first.keys()
    assert made() == first
    page = tmp_path / "reports" / "d-p-wall" / "index.html"
    assert "clip-2" in page.read_text()

    page.unlink()
    second = made()
    assert second.keys() == first.keys()
    page.write_text("changed")
    third = made()
    fourth = made(until=1)
    fifth = made(count=1)
    assert "clip-2" not in page.read_text()
    times = [each["index.html"] for each in (first, second, third, fourth, fifth)]
    assert times == sorted(set(times))
    paths[0].unlink()
    write(tmp_path / "runs", index=1)
    assert made(count=1)["index.html"] > times[-1]


def test_official_csv_round_trip_keeps_the_score(tmp_path: Path) -> None:
    (board,) = boards([records.read(write(tmp_path, index=i)) for i in (1, 2)])
    (ours,) = board.entries
    path = exchange.write_csv(ours, tmp_path)
    assert pd.read_csv(path, index_col=0).columns.tolist() == records.SCHEMA.names[:10]
    theirs = reference("theirs", exchange.read_csv(path), board)
    assert theirs is not None
    assert theirs.summary == ours.summary


def test_report_on_other_clips_is_no_competitor(tmp_path: Path) -> None:
    (board,) = boards([records.read(write(tmp_path))])
    path = exchange.write_csv(board.entries[0], tmp_path)
    path.write_text(path.read_text().replace(",clip,", ",another,"))
    assert reference("theirs", exchange.read_csv(path), board) is None


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text.replace("jaccard", "iou"), "line 1: no column jaccard"),
        (lambda text: text.replace(",clip,1,1,", ",clip,0,1,", 1), "line 2: scribble_idx=0"),
        (lambda text: text.splitlines()[0] + "\n", "no rows"),
        (lambda text: "", "not a readable CSV"),
    ],
)
def test_csv_that_is_none_is_refused(tmp_path: Path, spoil: Any, told: str) -> None:
    path = exchange.write_csv(entry("m", [records.read(write(tmp_path))], Protocol("p", rounds=2)), tmp_path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(BadInput, match=told) as caught:
        exchange.read_csv(path)
    assert str(path) in str(caught.value)


SUMMARY = {"auc": 0.5, "metric_at_threshold": {"threshold": 60}, "curve": {"time": [0, 1, 2], "J": [0, 0.5, 1.0]}}


def test_published_summary_is_recomputed_from_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(SUMMARY))
    assert exchange.read_summary(path)["metric_at_threshold"]["J"] == 1.0
    changes: list[dict[str, Any]] = [
        {"auc": 0.6},
        {"curve": {"time": [0, 1], "J": [0, 0.5, 1.0]}},
        {"curve": {}},
        {"auc": None},
    ]
    for change in changes:
        path.write_text(json.dumps(SUMMARY | change))
        with pytest.raises(BadInput, match=re.escape(str(path))):
            exchange.read_summary(path)


@pytest.mark.parametrize("path", sorted((FULL.parent / "published" / "atnet").glob("summary_*.json")), ids=str)
def test_real_summary(path: Path) -> None:
    theirs = json.loads(path.read_text())
    ours = exchange.read_summary(path)
    assert ours["auc"] == pytest.approx(theirs["auc"], abs=1e-12)
    assert ours["metric_at_threshold"] == pytest.approx(theirs["metric_at_threshold"], abs=1e-12)


def test_masks_leave_as_davis_pngs(tmp_path: Path) -> None:
    record: Record = records.read(write(tmp_path))
    folder = exchange.write_masks(entry("m", [record], Protocol("p", rounds=2)), tmp_path)
    png = Image.open(folder / "clip-1" / "round-2" / "00003.png")
    assert png.mode == "P"
    assert png.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
    np.testing.assert_array_equal(np.asarray(png), records.masks_of(records.read(record.path, content=True), 2)[3])
