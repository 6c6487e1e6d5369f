"""The papers' tables: what was published is what the papers print, ours stands beside it, and nothing is mixed up."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hydra
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import run as resolvers  # noqa: F401
from harness.data import synthetic
from harness.report import papers
from harness.run.evaluate import sequences_of
from harness.tasks.table import choose, play, trained

ROOT = Path(__file__).parents[1]
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "table").glob("*.yaml")}
PUBLISHED = sorted((ROOT / "tests" / "published").glob("*.csv"))
LOST = ["Yuk Heo (Korea University)"]  # in STM's Table 4: the paper's text lacks its values
SMALL = ("dataset.clips=3", "dataset.frames=6", "dataset.size=[48,80]", "protocol.rounds=2", "clock=modelled")

MINE = """
name: mine
paper: Somebody, Nowhere 2026, Table 1
data: DAVIS-2017 val
about: GrabCut, twice and never.
settings: [protocol=davis2020]
against: full
columns:
  AUC: {score: auc, unit: 100}
  J: {score: round 1, metric: J, unit: 100}
  AUC by J: {score: auc, settings: [protocol.metric=J]}
rows:
  - {row: others, paper: [50.0, 60.5, null]}
  - {row: full, paper: [70.0, 80.0, 0.5], settings: [method=grabcut]}
  - {row: <quick>, paper: [65.0, 75.0, 0.4], settings: [method=grabcut, method.iterations=1]}
  - {row: bigger, paper: [90.0, 95.0, 0.9], needs: weights that nobody published}
  - {row: no weights, settings: [method=stm, weights=nowhere.safetensors]}
figures: [curves]
"""


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    places = (
        f"results={folder / 'results'}",
        f"reports={folder / 'reports'}",
        f"hydra.searchpath=[file://{folder}/conf]",
    )
    command = [sys.executable, str(ROOT / "run.py"), "task=table", *places, *overrides]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of ours, played and rendered."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "conf" / "table").mkdir(parents=True)
    (folder / "conf" / "table" / "mine.yaml").write_text(MINE)
    done = run(folder, "table=mine", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_columns_are_those_of_the_paper(path: Path) -> None:
    """A wrong digit here and every comparison with the paper is wrong."""
    printed = pd.read_csv(path, index_col="row")
    printed = printed.loc[:, ~printed.columns.str.endswith(" gain")].drop(index=LOST, errors="ignore")
    table = TABLES[path.stem]
    rows = {row["row"]: row.get("paper", [None] * len(table["columns"])) for row in table["rows"]}
    ours = pd.DataFrame.from_dict(rows, orient="index", columns=list(table["columns"]), dtype=float)
    pd.testing.assert_frame_equal(ours, printed.astype(float), check_names=False)


def test_every_table_says_where_it_is_printed() -> None:
    """A row of numbers without a source is hearsay."""
    for name, table in TABLES.items():
        if name != "all":
            assert table["name"] == name
            assert {"paper", "data", "about", "columns", "rows"} <= set(table)
            assert table.get("against", table["rows"][0]["row"]) in [row["row"] for row in table["rows"]], name


def test_ours_and_published_are_apart_and_what_is_missing_says_why(mine: Path) -> None:
    """Whose number is it, on what, and how sure? And why is there none?"""
    lines = pd.read_csv(mine / "reports/tables/mine/table.csv").set_index(["row", "column"])
    published, ours = lines["paper, DAVIS-2017 val"], lines["tiny, synthetic"]
    assert published["full", "AUC"] == 70.0
    assert ours.notna().groupby("row").any().to_dict() == {
        "others": False,
        "full": True,
        "<quick>": True,
        "bigger": False,
        "no weights": False,
    }
    assert lines["not played"]["bigger", "AUC"] == "weights that nobody published"
    assert "nowhere.safetensors" in lines["not played"]["no weights", "AUC"]
    assert lines["low"]["full", "AUC"] <= ours["full", "AUC"] <= lines["high"]["full", "AUC"]
    assert lines["samples"]["full", "AUC"] == "3 of 3"
    text = (mine / "reports/tables/mine/table.md").read_text()
    assert "paper, DAVIS-2017 val: AUC" in text
    assert "`uv run run.py hydra.searchpath=" in text
    tex = (mine / "reports/tables/mine/table.tex").read_text()
    assert r"\toprule" in tex
    assert "60.5" in tex
    assert {path.suffix for path in (mine / "reports/tables/mine").glob("curves.*")} == {".png", ".svg", ".pdf"}


def test_a_column_with_other_rules_has_records_of_its_own(mine: Path) -> None:
    """AUC-J is of sessions whose robot goes by J, never read off those that went by J&F."""
    records = list((mine / "results/runs/grabcut").glob("*.parquet"))
    assert len(records) == 2 * 2 * 3  # rows × protocols × clips


def test_tables_come_again_from_their_records(mine: Path) -> None:
    """Rendering again plays nothing and gives the same figures."""
    before = (mine / "reports/tables/mine/table.csv").read_bytes()
    done = run(mine, "table=mine", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "3 samples played" not in done.stdout + done.stderr
    assert (mine / "reports/tables/mine/table.csv").read_bytes() == before


def test_every_table_and_figure_renders(tmp_path: Path) -> None:
    """All that conf/table names is there: each row is played or says why not, each figure is drawn."""
    done = run(tmp_path, "table=all", "dataset.clips=2", *SMALL[1:])
    assert done.returncode == 0, done.stderr
    for name, table in TABLES.items():
        if name == "all":
            continue
        lines = pd.read_csv(tmp_path / "reports/tables" / name / "table.csv").set_index("row")
        for row in table["rows"]:
            mine = lines.loc[[row["row"]]]
            if "settings" in row:
                assert mine["samples"].notna().any() or mine["not played"].notna().any() or name == "mivos_table3"
        played = lines["samples"].notna().any()
        assert any((tmp_path / "reports/tables" / name).glob("*.png")) == (played and "figures" in table), name


def test_a_row_of_the_wrong_length_is_refused_in_one_line(tmp_path: Path) -> None:
    """A value in the wrong column must not pass for another one."""
    (tmp_path / "conf" / "table").mkdir(parents=True)
    (tmp_path / "conf" / "table" / "mine.yaml").write_text(MINE.replace("[50.0, 60.5, null]", "[50.0, 60.5]"))
    done = run(tmp_path, "table=mine", *SMALL)
    assert done.returncode == 1
    assert "table=mine: table row others: 2 published values for 3 columns" in done.stderr
    assert "Traceback" not in done.stderr


def test_trainings_of_a_variant_are_shown_as_their_mean_and_one_by_one(tmp_path: Path) -> None:
    """One seed is luck; and a table must not take the scores of one training for another's."""
    (tmp_path / "conf" / "table").mkdir(parents=True)
    row = "{row: full, paper: [70.0, 80.0, 0.5], trained: full, settings: [method=stm]}"
    (tmp_path / "conf" / "table" / "mine.yaml").write_text(
        MINE.replace("{row: full, paper: [70.0, 80.0, 0.5], settings: [method=grabcut]}", row)
    )
    weights = load_file(ROOT / "methods/weights/stm.safetensors")

    def keep(seed: int, *overrides: str) -> None:
        file = tmp_path / f"{seed}.safetensors"
        save_file({key: value * (1 - 0.1 * seed) for key, value in weights.items()}, file, {"training": "a test"})
        kept = ("variant=full", "method=stm", f"weights={file}", *SMALL, f"results={tmp_path / 'results'}")
        command = [sys.executable, str(ROOT / "run.py"), "task=keep", *kept, *overrides]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)

    for seed in (0, 1, 1):
        keep(seed)
    done = run(tmp_path, "table=mine", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = pd.read_csv(tmp_path / "reports/tables/mine/table.csv")
    cell = lines[(lines["row"] == "full") & (lines["column"] == "J")].iloc[0]
    each = [float(value) for value in cell["trainings"].split()]
    assert each[0] != each[1]
    assert cell["tiny, synthetic"] == pytest.approx(sum(each) / 2, abs=0.01)

    keep(2, "shard=0/2")
    run(tmp_path, "table=mine", *SMALL)
    told = (tmp_path / "reports/tables/mine/table.md").read_text()
    assert f"{tmp_path / 'results/ablations/full.parquet'}: its trainings have other samples" in told


FEWER = {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2", "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3"}


@pytest.mark.parametrize(
    ("table", "trained", "others"),
    [
        ("atnet_table3", 6, 0),
        ("atnet_table4", 3, 0),
        ("mivos_table5", 2, 4),
        ("stm_table5", 3, 0),
        ("stm_table6", 4, 0),
    ],
)
def test_trained_rows_are_filled_on_every_processor(tmp_path: Path, table: str, trained: int, others: int) -> None:
    """What was kept is found by what it means, whatever the bits of the clips are here."""
    places = (f"reports={tmp_path}", f"results={tmp_path}", "dataset.clips=2", "shard=0/2")  # one for those who play
    shutil.copytree(ROOT / "results/ablations", tmp_path / "ablations")
    command = [sys.executable, str(ROOT / "run.py"), "task=table", f"table={table}", *places]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | FEWER, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = pd.read_csv(tmp_path / "tables" / table / "table.csv")
    samples = lines[lines["samples"].notna()].groupby("row")["samples"].first().str.partition(",")[0]
    assert (samples == "2 of 2").sum() == trained, lines
    assert len(samples) == trained + others


def test_a_row_of_an_earlier_generator_s_clips_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """No score keeps an old label in silence, nor is it paired with one on other clips of the same names."""
    monkeypatch.setattr(synthetic, "GENERATOR", 99)
    for cached in (sequences_of, trained, choose):
        cached.cache_clear()
    rules = ("protocol=atnet", "protocol.metric=J", "clock=modelled", "dataset.clips=2", f"results={ROOT / 'results'}")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        row = OmegaConf.create({"row": "I", "trained": "atnet_off"})
        board = play(row, (*rules, "method=atnet", "method.local=off"))
    (entry, *trainings) = board.entries
    assert entry.label == "I, clips of generator 1"
    assert len(trainings) == 2
    assert papers.samples(papers.Row("I", [None], [board], [None])) == "2 of 2, clips of generator 1"
    keys = [replace(r.key, sample={**r.key.sample, "made_by": "generator 99: others"}) for r in entry.records]
    others = [replace(r, key=key) for r, key in zip(entry.records, keys, strict=True)]
    assert papers.of_same_clips(entry, trainings[0])
    assert not papers.of_same_clips(entry, replace(entry, records=others))
