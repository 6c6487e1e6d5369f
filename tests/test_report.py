"""Reports over folders as they come: corrected data, foreign and damaged records, two datasets, runs side by side."""

import json
import logging
import multiprocessing
import os
import re
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import report as reporting
from harness.api import BadInput, Stroke
from harness.report import exchange, rendered
from harness.report.leaderboard import boards
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import Round, on_frame
from harness.run import records
from harness.run.records import Key

PLACE = "d-p-wall"
MACHINE = {"hardware": "A, 2 cores", "numpy": "2", "opencv": "5", "torch": "2"}


def play(
    results: Path,
    method: str = "m",
    sequence: str = "clip",
    *,
    quality: float = 0.5,
    seconds: float = 1.0,
    written: int = 1,
    manifest: str = "x",
    source: str = "s",
    options: dict[str, Any] | None = None,
    dataset: str = "d",
    protocol: dict[str, Any] | None = None,
    clock: str = "wall",
    rounds: int = 2,
    frames: int = 4,
    clips: dict[str, str] | None = None,
    status: str = "complete",
    error: str = "",
    **provenance: Any,
) -> Path:
    """A record below `results`: two objects, `rounds` rounds of one `quality`, said to be `written` then (in hours)."""
    entry = {
        "method": {"name": method, **(options or {})},
        "dataset": {"name": dataset},
        "weights": {"name": "none", "digest": "", "training": "none needed"},
        "protocol": asdict(Protocol("p", rounds=2)) | (protocol or {}),
        "clock": {"name": clock},
        "source": source,
    }
    key = Key({"sequence": sequence, "scribble_idx": 1, "manifest": manifest}, entry)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        scribbles = on_frame([Stroke(rng.random((5, 2)), 2)], number, empty(sequence, frames))
        masks = rng.integers(0, 3, (frames, 12, 16)).astype(np.uint8)
        scores = np.full((frames, 2), quality)
        rows += records.rows_of(Round(number, number, scribbles, masks, scores, scores, seconds), key)
    about: dict[str, Any] = {"samples": 1, "changes": [], "scribbles": "x", "commit": "x", "python": "3", **MACHINE}
    about |= {"clips": clips} if clips else {}
    clip = {"num_frames": frames, "num_objects": 2, "size": [12, 16]}
    path = records.write(
        results / "runs", key, rows, clip=clip, provenance=about | provenance, status=status, error=error
    )
    told(path, written=f"2026-01-01T{written:02d}:00:00+00:00")
    records.write_thumbnails(results / "runs", manifest, np.zeros((frames, 12, 16, 3), np.uint8))
    return path


def told(path: Path, **changes: Any) -> None:
    """Change what a record's metadata say."""
    spoil(path, lambda rows: rows, **changes)


def spoil(path: Path, change: Any, **changes: Any) -> None:
    """Change a record's rows, and what its metadata say."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[records.METADATA]) | changes
    rows = pa.Table.from_pandas(change(table.to_pandas()), schema=records.SCHEMA, preserve_index=False)
    pq.write_table(rows.replace_schema_metadata({records.METADATA: json.dumps(about).encode()}), path)


def report(folder: Path, *references: Path, results: Any = None, **options: Any) -> Any:
    """The table of the only board, by method, after `task=report`."""
    places = results or str(folder / "results"), str(folder / "reports")
    reporting.report(*places, list(map(str, references)), **{"csv": False, "masks": False, **options})
    (table,) = (folder / "reports").glob("*/table.csv")
    return pd.read_csv(table).set_index("method")


def notes(folder: Path) -> str:
    return (folder / "reports" / PLACE / "table.md").read_text()


def test_of_a_corrected_clip_the_newest_content_counts(tmp_path: Path) -> None:
    """One mask corrected and played again would refuse every report, or average two truths."""
    results = tmp_path / "results"
    for name in "abc":
        play(results, sequence=name, quality=0.2)
    new = play(results, sequence="b", manifest="corrected", quality=0.8, written=2)
    os.utime(new, (0, 0))  # as after cp -r: the time of the file says nothing
    play(results, "other", "b", quality=0.9)
    for name in "ac":
        play(results, "other", name, quality=0.9)
    scores = report(tmp_path)
    assert scores.loc["m", "samples"] == "3 of 3"
    assert scores.loc["m", "J&F 2"] == pytest.approx((0.2 + 0.8 + 0.2) / 3)
    assert scores.loc["other", ["samples", "rank"]].tolist() == ["2 of 3", "-"]
    assert "left out: records of older content: 2 (m, other on b)" in notes(tmp_path)


def test_the_newest_code_is_told_by_the_records(tmp_path: Path) -> None:
    """After `git clone` all files have one time, and the scores of old code could come back."""
    results = tmp_path / "results"
    for source, written, quality in (("old", 1, 0.9), ("new", 2, 0.3)):
        path = play(results, source=source, written=written, quality=quality)
        os.utime(path, (10 - written, 10 - written))
    assert report(tmp_path).loc["m", "J&F 2"] == pytest.approx(0.3)
    assert "left out: records of older code: 1 (m on clip)" in notes(tmp_path)


def test_what_cannot_be_told_apart_by_age_is_said(tmp_path: Path) -> None:
    """Records of one moment, or of before they told any: the choice must be the same everywhere, and no secret."""
    results = tmp_path / "results"
    for source, quality in (("a", 0.9), ("b", 0.3)):
        path = play(results, source=source, quality=quality)
        os.utime(path, (quality, quality))
    assert report(tmp_path).loc["m", "J&F 2"] == pytest.approx(0.3)
    assert "they do not tell which is newer" in notes(tmp_path)


def column(name: str, value: Any) -> Any:
    """Gives the first row of a record another value."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[0, name] = value
        return rows

    return change


SPOILT: dict[str, Any] = {
    "another format": lambda path: pq.write_table(pa.table({"x": [1]}), path),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "another version": lambda path: told(path, clip={"frames": 4}),
    "j_and_f": lambda path: spoil(path, column("j_and_f", 7.5)),
    "no mean": lambda path: spoil(path, column("j_and_f", 1.0)),
    "names": lambda path: told(path, provenance={"changes": ["\udc80"]}),
    "jaccard": lambda path: spoil(path, column("jaccard", -0.1)),
    "round 0": lambda path: spoil(path, column("interaction", 0)),
    "timing": lambda path: spoil(path, column("timing", np.nan)),
    "fewer frames": lambda path: spoil(path, lambda rows: rows[rows.frame < 3]),
    "an object less": lambda path: spoil(path, lambda rows: rows[(rows.object_id < 2) | (rows.interaction < 2)]),
    "rows twice": lambda path: spoil(path, lambda rows: pd.concat([rows, rows])),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_bad_record_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    """One bad record would refuse the report of a whole folder, or be ranked first."""
    results = tmp_path / "results"
    play(results, "good")
    bad = play(results, "bad")
    SPOILT[fault](bad)
    with caplog.at_level(logging.WARNING):
        assert report(tmp_path).index.tolist() == ["good"]
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert str(bad) in line
    assert "\n" not in line


def test_rules_that_cannot_be_scored_stop_no_other_board(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`protocol.threshold=null` once, and no report of this folder ever again."""
    results = tmp_path / "results"
    play(results)
    for name in "ab":
        play(results, sequence=name, protocol={"threshold": None})
    play(results, protocol={"rhythm": 3})
    with caplog.at_level(logging.WARNING):
        assert report(tmp_path)["samples"].tolist() == ["1 of 1"]
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert sorted(bool(re.search("and 1 more.*threshold=None", line)) for line in lines) == [False, True]


def test_an_error_that_no_file_takes_is_shown(tmp_path: Path) -> None:
    """Half a surrogate pair in a guest's exception would end every later report."""
    play(tmp_path / "results", "good")
    play(tmp_path / "results", status="raised", error="ValueError: \udc80 here")
    assert report(tmp_path).loc["m", "failed"] == 1
    assert r"ValueError: \udc80 here" in (tmp_path / "reports" / PLACE / "index.html").read_text()


@pytest.mark.parametrize("name", ["costs $5", r"$\frac$", "a^b_{c}", "50% & more#~"])
def test_names_are_no_mathematics(tmp_path: Path, name: str) -> None:
    """Matplotlib and LaTeX read `$` as the start of a formula, and may refuse it."""
    play(tmp_path / "results", name)
    play(tmp_path / "results", name, options={"note": name})
    assert len(report(tmp_path)) == 2
    tex = (tmp_path / "reports" / PLACE / "table.tex").read_text()
    assert not re.search(r"(?<!\\)[$%#]", re.sub(r"\\approx|\$\\approx\$|^%.*$", "", tex, flags=re.MULTILINE))


def test_nothing_is_written_outside_the_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A record from elsewhere could overwrite whatever its names lead to."""
    folder = tmp_path / "a" / "b" / "c"
    play(folder / "results", dataset="../../../x")
    path = play(folder / "results", dataset="../../../x", sequence="y")
    entry = records.read(path).key.entry
    key = Key({"sequence": "../../../y", "scribble_idx": 1, "manifest": "x"}, entry)
    bad = path.with_name(f"z-{key.digest}.parquet")
    path.rename(bad)
    told(bad, sample=key.sample)
    report(folder, csv=True, masks=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name for path in folder.iterdir()} == {"results", "reports"}


def test_every_label_has_files_of_its_own_that_the_system_takes(tmp_path: Path) -> None:
    """`x=-1` and `x=1` shared a CSV, a strip and a folder of masks; eleven overrides made names too long."""
    results = tmp_path / "results"
    for i, options in enumerate(({"x": -1}, {"x": 1}, {f"a_long_option_{i}": i for i in range(11)})):
        play(
            results,
            options=options,
            quality=0.1 * (i + 1),
            changes=[f"protocol.key{j}=value{j}" * 3 for j in range(11)],
        )
    report(tmp_path, csv=True, masks=True)
    (folder,) = (path for path in (tmp_path / "reports").iterdir() if path.is_dir())
    for pattern in ("report-*.csv", "strip-*.jpg", "masks-*"):
        assert len(list(folder.glob(pattern))) == 3
    assert sorted(pd.read_csv(path)["jaccard"].iloc[0] for path in folder.glob("report-*.csv")) == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def titles(folder: Path) -> list[tuple[str, str]]:
    """Folder of each board's report, its clips as its notes say."""
    pages = sorted((folder / "reports").glob("*/table.md"))
    return [(page.parent.name, re.findall("clips: (.*);", page.read_text())[0]) for page in pages]


def test_two_datasets_of_ones_own_are_two_boards(tmp_path: Path) -> None:
    """The clips of another folder, or others of the same names, would be averaged with the first ones."""
    results = tmp_path / "results"
    first, second, third = {"a": "1", "b": "2"}, {"x": "3", "y": "4"}, {"a": "5", "b": "6"}
    for written, (clips, frames) in enumerate(((first, 4), (second, 4), (third, 5)), 1):
        for name, manifest in clips.items():
            play(results, sequence=name, manifest=manifest, clips=clips, written=written, frames=frames)
    with suppress(ValueError):  # several boards
        report(tmp_path)
    assert [clips for _, clips in titles(tmp_path)] == ["a, b", "a, b", "x, y"] or len(titles(tmp_path)) == 3
    assert titles(tmp_path)[0] == (PLACE, "a, b")  # the first keeps its name
    assert "another dataset called d" in notes(tmp_path)


def test_one_dataset_corrected_grown_or_played_in_parts_is_one_board(tmp_path: Path) -> None:
    results = tmp_path / "results"
    play(results, sequence="a", manifest="1", clips={"a": "1", "b": "2"})
    play(results, sequence="b", manifest="2", clips={"a": "1", "b": "2"})
    play(results, sequence="b", manifest="3", clips={"a": "1", "b": "3", "c": "4"}, written=2)
    play(results, sequence="c", manifest="4", clips={"a": "1", "b": "3", "c": "4"}, written=2)
    play(results, "other", sequence="c", manifest="4")  # a chosen sequence
    assert report(tmp_path)["samples"].to_dict() == {"m": "3 of 3", "other": "1 of 3"}
    for name, manifest in (("a", "5"), ("b", "6"), ("c", "7")):  # as a second scribble of each changes them all
        play(results, sequence=name, manifest=manifest, clips={"a": "5", "b": "6", "c": "7"}, written=3, quality=0.7)
    assert report(tmp_path).loc["m", ["samples", "J&F 2"]].tolist() == ["3 of 3", pytest.approx(0.7)]


def test_chosen_sequences_played_one_by_one_are_one_board(tmp_path: Path) -> None:
    for name in "ab":
        play(tmp_path / "results", sequence=name)
    assert report(tmp_path).loc["m", "samples"] == "2 of 2"


def test_a_run_of_one_method_keeps_the_report_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five methods' finished report was overwritten by a run of one, or of one sequence, which had no ranks either."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    paths = [play(results, method, name, samples=2) for method in ("one", "two") for name in "ab"]
    assert reporting.after(paths, results, reports) == []
    table = (reports / PLACE / "table.csv").read_text()
    capsys.readouterr()
    run = [play(results, "three", "b", samples=1), paths[1], paths[3]]
    assert reporting.after(run, results, reports) == []
    printed = capsys.readouterr().out
    assert "1 of 2 samples" in printed
    assert re.findall(r"│\s+(\d)[ ≈]+│ ([a-z]+)", printed) == [("1", "one"), ("2", "two"), ("3", "three")]
    found = pd.read_csv(reports / PLACE / "table.csv").set_index("method")
    assert found["samples"].to_dict() == {"one": "2 of 2", "two": "2 of 2", "three": "1 of 2"}
    assert found.loc["three", "rank"] == "-"
    (results / "runs" / "three").rename(tmp_path / "away")
    assert reporting.after(paths[:2], results, reports) == []
    assert (reports / PLACE / "table.csv").read_text() == table


def test_a_run_shows_what_it_played_though_newer_code_did_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who checks out an older commit wants its scores, all of which are recorded."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    old = play(results, source="old", quality=0.25)
    play(results, source="new", quality=0.75, written=2)
    assert reporting.after([old], results, reports) == []
    printed = capsys.readouterr().out
    assert "0.250" in printed
    assert "0.750" not in printed


def test_a_bad_record_of_another_method_is_no_fault_of_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every later run would exit 1 for a record that it has nothing to do with; one of its own is a fault."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    good, bad = play(results, "good"), play(results, "bad")
    spoil(bad, column("jaccard", 2))
    with caplog.at_level(logging.WARNING):
        assert reporting.after([good], results, reports) == []
    assert str(bad) in caplog.text
    assert [str(bad) in line for line in reporting.after([good, bad], results, reports)] == [True]


def test_a_run_without_records_touches_no_report(tmp_path: Path) -> None:
    """A refused run left an empty report where a finished one was."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    reporting.after([play(results)], results, reports)
    before = {path: path.stat().st_mtime_ns for path in reports.rglob("*") if path.is_file()}
    reporting.after([], results, reports)
    assert before == {path: path.stat().st_mtime_ns for path in reports.rglob("*") if path.is_file()}


def test_ranks_compare_equals_whoever_counted_first(tmp_path: Path) -> None:
    """A killed full run said 8, then both methods played the same chosen sequence: they can be compared."""
    for method, quality in (("m", 0.4), ("other", 0.6)):
        play(tmp_path / "results", method, quality=quality, samples=8 if method == "m" else 1)
    found = report(tmp_path)
    assert found["rank"].astype(str).str[0].to_dict() == {"other": "1", "m": "2"}
    assert found["samples"].tolist() == ["1 of 8", "1 of 8"]


def test_a_report_of_two_folders(tmp_path: Path) -> None:
    """Runs of two machines were a traceback; a sample in both counts once."""
    a, b = tmp_path / "a", tmp_path / "b"
    play(a, "one")
    play(a, "two", quality=0.2)
    play(b, "two", quality=0.7, written=2)
    found = report(tmp_path, results=[str(a), str(b)])
    assert found["J&F 2"].to_dict() == {"one": pytest.approx(0.5), "two": pytest.approx(0.7)}
    assert (tmp_path / "reports" / PLACE / "strip-one.jpg").is_file()


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """An official CSV of two samples, beside the records that it is of."""
    for name in "ab":
        play(tmp_path / "results", sequence=name, seconds=100)
    (board,) = boards(records.read(path) for path in sorted((tmp_path / "results").glob("runs/*/*-*.parquet")))
    (tmp_path / "theirs").mkdir()
    return exchange.write_csv(board.entries[0], tmp_path / "theirs")


LACKING: dict[str, tuple[Any, str]] = {
    "an object": (lambda rows: rows[rows.object_id < 2], "a-1: lacks round 1, object 2, frame 0"),
    "an object of a round": (
        lambda rows: rows[(rows.object_id < 2) | (rows.interaction < 2)],
        "lacks round 2, object 2",
    ),
    "last frames": (lambda rows: rows[rows.frame < 3], "a-1: lacks round 1, object 1, frame 3"),
    "the first round": (lambda rows: rows[rows.interaction > 1], "a-1: lacks round 1"),
    "the last round": (
        lambda rows: rows[(rows.interaction < 2) | (rows.sequence == "a")],
        "b-1: ends after round 1 of 2",
    ),
    "one session": (lambda rows: pd.concat([rows, rows.assign(session_id="2")]), "holds 2 sessions"),
    "a session's end": (
        lambda rows: rows.assign(session_id=rows.session_id.where(rows.sequence == "a", "2")),
        "holds 2 sessions",
    ),
    "one of each row": (lambda rows: pd.concat([rows, rows]), "is there twice"),
    "the mean": (lambda rows: rows.assign(j_and_f=1.0), "line 2: j_and_f=1.0, wanted the mean of jaccard and contour"),
    "one time": (lambda rows: rows.assign(timing=np.arange(len(rows))), "a-1: round 1 has two timings"),
    "its clips": (lambda rows: rows.assign(sequence=rows.sequence + "z"), "no board has all of its samples"),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_reported_csv_that_lacks_something_is_refused(tmp_path: Path, official: Path, what: str) -> None:
    """Whoever reports the good half of a session came first, with up to 1.000."""
    change, told = LACKING[what]
    change(pd.read_csv(official, index_col=0)).to_csv(official)
    with pytest.raises((BadInput, SystemExit)) as caught:
        report(tmp_path, official)
    (line,) = str(caught.value).splitlines()
    assert told in line
    assert official.name in line or official.stem in line
    written = list((tmp_path / "reports").glob("*/table.csv"))
    assert all(pd.read_csv(path)["method"].tolist() == ["m"] for path in written)


def test_a_csv_without_its_index_column_is_read(tmp_path: Path, official: Path) -> None:
    pd.read_csv(official, index_col=0).to_csv(official, index=False)
    found = report(tmp_path, official)
    assert found.loc[f"theirs/{official.stem}", "J&F 2"] == found.loc["m", "J&F 2"]


def test_a_report_whose_samples_ran_out_of_time_is_whole(tmp_path: Path, official: Path) -> None:
    """Two objects have 480 s: after a round of 400 s another one would have come too late."""
    rows = pd.read_csv(official, index_col=0).query("interaction == 1").assign(timing=400.0)
    rows.to_csv(official)
    assert report(tmp_path, official).loc[f"theirs/{official.stem}", "samples"] == "2 of 2"


YIN = [0.0, 0.690892604553103, 0.7612468153747917, 0.7913073083883853, 0.8049989071796116]  # Yin et al., CVPR 2021
YIN += [0.8142452618375862, 0.8195715197433278, 0.8248950096289238, 0.8295022108997391]


def test_a_published_curve_over_rounds_is_shown(tmp_path: Path) -> None:
    """The 36 summaries of IVOS-W have no times; their AUC is ours over rounds."""
    play(tmp_path / "results")
    path = tmp_path / "ours" / "summary.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"auc": 0.7402385665194499, "curve": {"J_AND_F": YIN}}))
    row = report(tmp_path, path).loc["ours/summary"]
    assert row["round AUC"] == pytest.approx(0.7402385665194499, abs=1e-12)
    assert row["J&F 8"] == YIN[-1]
    assert np.isnan(row["AUC"])
    path.write_text(json.dumps({"auc": 0.75, "curve": {"J_AND_F": YIN}}))
    with pytest.raises(BadInput, match=r"summary\.json: auc=0\.75"):
        report(tmp_path, path)


def test_times_of_two_machines_are_not_averaged(tmp_path: Path) -> None:
    """A row played half on another GPU, or with other threads, had an AUC over time of no machine."""
    results = tmp_path / "results"
    play(results, "m", "a", quality=0.9)
    play(results, "m", "b", quality=0.9, hardware="B, 64 cores")
    for name in "ab":
        play(results, "other", name, quality=0.4)
    found = report(tmp_path)
    assert found["rank"].astype(str).str[0].tolist() == ["1", "2"]
    assert found.index.tolist() == ["m", "other"]
    assert found["AUC"].isna().tolist() == [True, False]
    told = notes(tmp_path)
    assert "ranked by round AUC: no times to compare of m" in told
    assert "times mixed: m ran on 2 machines (hardware A, 2 cores / hardware B, 64 cores)" in told


def test_rows_of_two_machines_are_not_ranked_by_time(tmp_path: Path) -> None:
    """The slower method won where it had the faster machine; one that uses the GPU beside one that does not is fair."""
    play(tmp_path / "results", "slow", quality=0.51, seconds=200, torch="1")
    play(tmp_path / "results", "fast", quality=0.5, seconds=1, hardware="a GPU of it")
    found = report(tmp_path)
    assert found.index.tolist() == ["slow", "fast"]
    assert found.loc["fast", "AUC"] > found.loc["slow", "AUC"]
    assert "ranked by round AUC: times are of 2 machines (torch 1 / torch 2)" in notes(tmp_path)


def test_modelled_times_are_the_same_on_every_machine(tmp_path: Path) -> None:
    play(tmp_path / "results", "m", "a", clock="modelled")
    play(tmp_path / "results", "m", "b", clock="modelled", hardware="B, 64 cores")
    assert report(tmp_path)["AUC"].notna().all()


def test_shared_times_rank_by_round_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside other jobs a board had no rank, an empty plot and `nan` in its table."""
    for method, quality in (("m", 0.4), ("other", 0.6)):
        for name in "ab":
            play(tmp_path / "results", method, name, quality=quality, shared=True)
    play(tmp_path / "results", "failing", "a", status="raised", error="ValueError: no")
    found = report(tmp_path)
    assert found["rank"].tolist() == ["1", "2", "-"]
    assert found.index.tolist() == ["other", "m", "failing"]
    for told in (notes(tmp_path), capsys.readouterr().out):
        assert "ranked by round AUC: no times to compare of" in told
        assert "nan" not in told
    rows = [line.split("|") for line in notes(tmp_path).splitlines() if line.startswith("|")]
    at = [cell.strip() for cell in rows[0]].index("AUC")
    assert [row[at].strip() for row in rows[2:]] == ["shared", "shared", "failed"]
    assert "no times to compare: shared" in (tmp_path / "reports" / PLACE / "curves.svg").read_text()


@pytest.mark.parametrize("fault", ["cut off", "fewer", "a cut-off picture"])
def test_damaged_thumbnails_cost_no_more_than_the_strips(tmp_path: Path, fault: str) -> None:
    play(tmp_path / "results")
    (path,) = (tmp_path / "results" / "runs" / "frames").iterdir()
    pictures = pq.read_table(path)["jpeg"].to_pylist()
    if fault == "cut off":
        path.write_bytes(path.read_bytes()[:50])
    elif fault == "fewer":
        pq.write_table(pa.table({"jpeg": pictures[:2]}), path)
    else:
        pq.write_table(pa.table({"jpeg": [pictures[0][:-60], *pictures[1:]]}), path)
    assert report(tmp_path).loc["m", "samples"] == "1 of 1"
    assert "deleted or are damaged" in (tmp_path / "reports" / PLACE / "index.html").read_text()


@pytest.mark.parametrize("content", [b"no picture", None])
def test_damaged_masks_cost_no_more_than_the_strip(tmp_path: Path, content: bytes | None) -> None:
    """The scores are there; an export says what it could not write."""
    good = play(tmp_path / "results", "good")
    bad = play(tmp_path / "results")
    spoil(bad, column("mask", content))
    assert report(tmp_path).index.tolist() == ["good", "m"]
    folder = tmp_path / "reports" / PLACE
    assert (folder / "strip-good.jpg").is_file()
    assert not (folder / "strip-m.jpg").exists()
    with pytest.raises(SystemExit) as caught:
        report(tmp_path, masks=True)
    assert str(bad) in str(caught.value)
    assert str(good) not in str(caught.value)
    assert (folder / "masks-m" / "clip-1" / "round-2" / "00003.png").is_file()


def test_of_two_reports_that_end_at_once_one_is_there_whole(tmp_path: Path) -> None:
    """In 6 of 10 trials the files were of both, and each was called up to date."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    fork = multiprocessing.get_context("fork")
    for trial in range(3):
        runs = [[play(results, method, f"clip{trial}")] for method in ("one", "two")]
        together = fork.Barrier(2)

        def job(run: list[Path], together: Any = together) -> None:
            together.wait()
            reporting.after(run, results, reports)

        jobs = [fork.Process(target=job, args=(run,)) for run in runs]
        for each in jobs:
            each.start()
        for each in jobs:
            each.join()
        assert [each.exitcode for each in jobs] == [0, 0]
        folder = reports / PLACE
        (board,) = boards(records.read(path) for path in sorted((results / "runs").glob("*/*-*.parquet")))
        assert rendered.is_from(rendered.inputs(board, None), folder)
        for name in ("table.csv", "table.md", "index.html", "curves.svg", "differences.csv"):
            assert re.search(r"\bone\b", (folder / name).read_text())
            assert re.search(r"\btwo\b", (folder / name).read_text())
        assert not list(folder.glob(f"{rendered.ASIDE}*"))


def test_a_narrow_terminal_has_whole_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns the table said `meth` `od`, and numbers went over three lines."""
    for method in ("grabcut", "mivos"):
        for top_k in (20, 50):
            play(tmp_path / "results", method, options={"top_k": top_k}, protocol={"rounds": 8}, rounds=8, frames=9)
    play(tmp_path / "results", "broken", protocol={"rounds": 8}, status="raised", error="ValueError: no")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    report(tmp_path)
    printed = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= 80
    for word in ("method", "rank", "samples", "J&F@60s", "none", "needed", "grabcut", "[top_k=20]", "broken", "0.500"):
        assert len(re.findall(rf"(?<![\w.]){re.escape(word)}(?![\w.])", printed)) >= 1, word
    cells = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    numbers = [cell.strip() for row in cells for cell in row if re.match(r"\s*\d*\.\d", cell)]
    assert len(numbers) >= 12
    assert all(re.fullmatch(r"\d\.\d{3}", number) for number in numbers)
    assert "no room for" in printed
