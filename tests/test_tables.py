"""The papers' tables: what was published is what the papers print, ours stands beside it, and nothing is mixed up."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hydra
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import run as door  # noqa: F401  its resolvers
from harness.api import BadInput
from harness.data import synthetic
from harness.data.sequence import VideoSequence
from harness.report import papers
from harness.run import records
from harness.run.build import build
from harness.run.evaluate import sequences_of, starts
from harness.run.provenance import weights_of
from harness.tasks import table as tables
from harness.tasks.table import Asked, Never, choose, describe, overrides_of, play, quoted
from tests.parity.goldens import CARRIED
from tests.proc_weights import fill

ROOT = Path(__file__).parents[1]
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "table").glob("*.yaml")}
for name, about in TABLES.items():  # a figure of a table's numbers is made of the table
    TABLES[name] = {
        key: value for base in about.get("defaults", [])[:-1] for key, value in TABLES[base].items()
    } | about
PUBLISHED = sorted((ROOT / "tests" / "published").glob("*.csv"))
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
    (folder / "conf").mkdir(exist_ok=True)
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
    printed = printed.loc[:, ~printed.columns.str.endswith(" gain")]
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
    assert "`uv run run.py 'hydra.searchpath=" in text
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
    """Who has nothing but this tree gets each row that its weights can play, and of each other one the true reason."""
    done = run(tmp_path, "table=all", "dataset.clips=2", "dataset.frames=6", "dataset.size=[64,112]")
    assert done.returncode == 0, done.stderr
    for name, table in TABLES.items():
        if name == "all":
            continue
        lines = pd.read_csv(tmp_path / "reports/tables" / name / "table.csv", keep_default_na=False)
        here = lines.iloc[:, list(lines.columns).index("low") - 1]
        for row in table["rows"]:
            mine = lines["row"] == row["row"]
            reasons = set(lines["not played"][mine])
            if missing := missing_of(row):
                assert all(missing in reason for reason in reasons), (name, row["row"], reasons)
            elif "settings" in row and name != "mivos_table3":  # its times are none beside another job
                assert reasons == {""}, (name, row["row"], reasons)
                shown = [label for label, column in table["columns"].items() if {"score"} <= column.keys() - {"with"}]
                filled = here[mine & lines["column"].isin(shown) & (lines["blank"] != "times shared")]
                assert filled.map(bool).sum() >= len(shown) - ("with" in str(table["columns"])), (name, row["row"])
            elif "settings" not in row:
                assert not here[mine].map(bool).any()
        drawn = {path.stem for path in (tmp_path / "reports/tables" / name).glob("*.png")}
        can = [row for row in table["rows"] if "settings" in row and not missing_of(row)]
        assert bool(drawn) == ("figures" in table and (bool(can) or name == "stm_figure5")), name


def missing_of(row: dict) -> str:
    """What keeps a row from being played by this tree alone, on clips for which nothing is kept; "" for nothing."""
    method = next((each for each in row.get("settings", ()) if each.startswith("method=")), "method=grabcut")[7:]
    if "needs" in row or "tiny" in row:
        return row.get("needs", row.get("tiny", ""))
    if "trained" in row:
        return f"results/ablations/{row['trained']}.parquet has no records of "
    card = ROOT / "methods" / "weights" / f"{method}.safetensors"
    if method == "grabcut" or card.exists():
        return ""
    return f"train them: uv run run.py task=train method={method} recipe=small"


@pytest.fixture
def composed() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
    choose.cache_clear()


def test_kept_trainings_are_found_by_the_tables_that_name_them(composed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that no table finds any more are lost work, and nobody would notice."""
    asked = Asked(("task=table", "dataset.clips=32"), "tiny")
    found = set()
    for name in TABLES.keys() - {"all"}:
        about = describe(name, ())
        for row in about.rows:
            if not (folder := ROOT / "results/ablations" / row.get("trained", "none")).is_dir():
                continue
            # By name: the same clips may differ by a bit on another machine.
            clips = {record.key.sample["sequence"]: record.key.sample["manifest"] for record in tables.kept(folder)}
            listed = [replace(each, manifest=clips[each.name]) for each in sequences()]
            monkeypatch.setattr(tables, "sequences_of", lambda _, listed=listed: listed)
            for column in about.columns.values():
                if "score" in column:
                    assert tables.trained(row, overrides_of(row, column, about, asked)), (name, row.row)
                    found.add(row.trained)
    assert found == {path.name for path in (ROOT / "results/ablations").iterdir() if path.is_dir()}


def sequences() -> list[VideoSequence]:
    """The synthetic clips of which scores are kept."""
    return sequences_of(OmegaConf.to_yaml(choose(("dataset.clips=32",)).dataset))


# What weights=official plays each row with, where every file that the authors published is here.
STM, STM_VIDEO, IPNET, ATNET = "e120.pth", "STM_weights.pth", "I_e290.pth, P_e290.pth", "ATNet-checkpoint.pth"
S02, S012 = "propagation_s02.pth, s2m.pth, fusion.pth", "propagation_model.pth, s2m.pth, fusion.pth"
NOBODY = "its authors did not publish these"
MADE_WITH: dict[str, dict[str, str]] = {
    "atnet_figure5": {"ATNet": ATNET},
    "atnet_table1": {"Oh et al.": IPNET, "Proposed": ATNET},
    "atnet_table3": dict.fromkeys(("I", "II", "III", "IV", "V"), NOBODY) | {"VI (Proposed)": ATNET},
    "atnet_table4": {
        "Matching approach (predictions of A-Net)": NOBODY,
        "Matching approach (scribble annotations)": NOBODY,
        "Proposed probability transfer approach": ATNET,
    },
    "ipnet": {"IPNet": IPNET},
    "mivos_figure11": {"Ours": S012, "STM": STM, "ATNet": ATNET},
    "mivos_figure6": {"w/o top-k": S012, "w/ top-k": S012},
    "mivos_table1": {
        "STM": STM_VIDEO,
        "Ours (top-k no; BL30K no)": S02,
        "Ours (top-k no; BL30K yes)": S012,
        "Ours (top-k yes; BL30K no)": S02,
        "Ours (top-k yes; BL30K yes)": S012,
    },
    "mivos_table3": dict.fromkeys(
        ("Scribble-to-Mask (S2M)", "Propagation w/o top-k", "Propagation w/ top-k", "Fusion"), S012
    ),
    "mivos_table4": {"Oh et al.": IPNET, "ATNet": ATNET, "STM": STM, "Ours": S012},
    "mivos_table5": {
        "STM": STM,
        "Baseline": S02,
        "(+) Top-k": S02,
        "(+) BL30K pretraining": S012,
        "(+) Learnable fusion": NOBODY,
        "(+) Difference-aware (Full model)": S012,
        "Perfect interaction": S012,
    },
    "stm_figure11": dict.fromkeys(("First", "Previous", "First & Previous", "Every 5 frames"), STM_VIDEO),
    "stm_figure5": {"Ours (+YV)": STM_VIDEO},
    "stm_figure7": {"STM": STM, "IPNet": IPNET},
    "stm_figure9": {"STM": STM},
    "stm_table2": {"Ours (+YV)": STM_VIDEO},
    "stm_table3": {"Ours (+YV)": STM_VIDEO},
    "stm_table4": {"Ours": STM},
    "stm_table5": dict.fromkeys(("Pre-training only", "Main training only", "Full training"), NOBODY),
    "stm_table6": dict.fromkeys(("First", "Previous", "First & Previous", "+ Every 5 frames"), STM_VIDEO),
    "stm_table7": dict.fromkeys(("Late R2 R3 R4", "Late R3 R4", "Early R2", "Early R2 R3", "Early R2 R3 R4"), NOBODY)
    | {"No": STM_VIDEO},
}


def test_official_weights_play_exactly_the_rows_they_made(
    composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of the network that saw BL30K in the row of the one that did not would be published as a result."""
    files = {
        file for each in MADE_WITH.values() for names in each.values() if names != NOBODY for file in names.split(", ")
    }
    published = [
        yaml.safe_load(path.read_text()).get("published", {}) for path in (ROOT / "conf/method").glob("*.yaml")
    ]
    assert files == {file for each in published for file in each}
    for file in files:
        (tmp_path / file).write_text(file)
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    found: dict[str, dict[str, str]] = {}
    clocks = set()
    for name in TABLES.keys() - {"all"}:
        about = describe(name, ())
        for row in about.rows:
            if "settings" not in row or "needs" in row:
                continue
            asked = Asked(("task=table",), "official")
            try:
                config = choose(overrides_of(row, OmegaConf.create(), about, asked))
            except Never as refusal:
                found.setdefault(name, {})[row.row] = NOBODY if NOBODY in str(refusal) else str(refusal)
                continue
            clocks.add((config.clock.name, config.size))
            found.setdefault(name, {})[row.row] = weights_of(config.method)["training"].removeprefix("the authors' ")
    assert found == MADE_WITH
    assert sum(names != NOBODY for each in found.values() for names in each.values()) == 46
    assert clocks == {("wall", "paper")}  # costs of tiny networks on a CPU are no time of theirs

    (tmp_path / "propagation_s02.pth").unlink()
    about = describe("mivos_table1", ())
    choices = [choose(overrides_of(row, OmegaConf.create(), about, asked)) for row in about.rows if "official" in row]
    for config in choices:
        with pytest.raises(BadInput, match=r"propagation_s02.pth: no such .* github.com/hkchengrex/Mask-Propagation"):
            weights_of(config.method)


def test_published_curves_are_drawn_as_published_or_said_to_be_missing(
    composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATNet's own curve is .815 by its own clock; what may not be carried here is fetched by whom it interests."""
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    curves, remarks = tables.published(describe("mivos_figure11", ()))
    (name,) = curves
    assert name == "ATNet, published (DAVIS-2017 val)"
    assert curves[name]["auc"] == pytest.approx(0.8150, abs=5e-5)
    file = "STM_Interactive_summary_DAVIS17_val.json of github.com/seoungwugoh/STM-Interactive"
    assert f"STM's published curve: put {file} into {tmp_path}/" in remarks


def test_a_row_is_really_played_with_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names the file; that the network is filled from it is another matter."""
    files = {"propagation_model.pth": "mivos_prop", "s2m.pth": "mivos_s2m", "fusion.pth": "mivos_fusion"}
    for file, network in files.items():
        keys = json.loads((CARRIED / "networks/stm_mivos" / f"{network}.manifest.json").read_text())["keys"]
        state = {key: torch.from_numpy(each) for key, each in fill(network, {k: tuple(s) for k, s, _ in keys}).items()}
        torch.save(state, tmp_path / file)
        if network == "mivos_prop":
            state["decoder.pred.bias"] += 5
            torch.save(state, tmp_path / "propagation_s02.pth")
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(tmp_path))
    small = ("dataset.clips=1", "dataset.frames=3", "dataset.size=[48,80]", "device=cpu")
    done = run(tmp_path, "table=mivos_table1", "weights=official", *small)
    assert done.returncode == 0, done.stderr
    lines = pd.read_csv(tmp_path / "reports/tables/mivos_table1/table.csv").set_index("row")
    ours = lines["official, synthetic"]
    assert ours["Ours (top-k yes; BL30K no)"] != ours["Ours (top-k yes; BL30K yes)"]
    assert "STM_weights.pth: no such weights file" in lines["not played"]["STM"]
    assert ours.notna().sum() == 4
    told = (tmp_path / "reports/tables/mivos_table1/table.md").read_text()
    assert "the authors' propagation_s02.pth, s2m.pth, fusion.pth" in told
    assert "wall clock" in told


def test_rows_may_have_weights_of_their_own(tmp_path: Path) -> None:
    """Several trainings belong in one table, each in its row, none under another's name."""
    (tmp_path / "conf" / "table").mkdir(parents=True)
    two = MINE.replace("settings: [method=grabcut]}", "settings: [method=stm]}").replace(
        "settings: [method=grabcut, method.iterations=1]}", "settings: [method=stm]}"
    )
    (tmp_path / "conf" / "table" / "mine.yaml").write_text(two)
    weights = load_file(ROOT / "methods/weights/stm.safetensors")
    folder = tmp_path / "files"
    folder.mkdir()
    for name, scale in (("full", 1.0), ("quick", 0.9)):
        file = folder / f"{name}.safetensors"
        save_file({k: v * scale for k, v in weights.items()}, file, {"training": name, "method": "stm", "size": "tiny"})
    told = []
    for given, status in ((f"weights={folder}", 0), (f"weights={{full: {folder}/full.safetensors, nobody: tiny}}", 1)):
        done = run(tmp_path, "table=mine", given, *SMALL)
        assert done.returncode == status, done.stderr
        lines = pd.read_csv(tmp_path / "reports/tables/mine/table.csv").set_index(["row", "column"])
        told.append(lines)
    several, one = told
    ours = several["full, synthetic / quick, synthetic"]
    assert ours["full", "J"] != ours["<quick>", "J"]
    assert one["full, synthetic"]["full", "J"] == ours["full", "J"]
    assert one["not played"]["<quick>", "J"] == "weights: none given for it; quick: FILE gives it some"
    assert "weights: nobody: no row of table=mine" in done.stderr


def test_what_keeps_a_table_empty_is_what_can_be_helped(tmp_path: Path) -> None:
    """Of several reasons the first may be one that nobody can do anything about."""
    done = run(
        tmp_path, "table=stm_table3", "dataset=davis2017", f"dataset.root={tmp_path}/nowhere", "weights=official"
    )
    assert done.returncode == 1
    assert "nothing was played; " in done.stderr
    assert "which nobody published" not in done.stderr
    assert f"{tmp_path}/nowhere: no such folder" in done.stderr or "STM_weights.pth: no such" in done.stderr


def test_a_given_mask_is_played_once_for_each_sequence(composed: None) -> None:
    """DAVIS has three people's scribbles of a sequence: where none is shown, three plays are one."""
    config = choose(("protocol=semi_supervised",))
    sequence = sequences_of(OmegaConf.to_yaml(config.dataset))[0]
    three = replace(sequence, scribbles=dict.fromkeys((1, 2, 3), sequence.scribbles[1]))
    for name, indices in (("semi_supervised", [1]), ("perfect", [1, 2, 3]), ("davis2020", [1, 2, 3])):
        protocol = build(choose((f"protocol={name}",)).protocol, name=name)
        assert starts(three, protocol) == indices, name


def test_a_shared_time_is_blank_says_so_and_can_be_played_again(mine: Path, tmp_path: Path) -> None:
    """An empty cell without a reason is a puzzle; one that cannot be filled any more is a loss."""
    shutil.copytree(mine / "conf", tmp_path / "conf")
    shutil.copytree(mine / "results", tmp_path / "results")
    for path in (tmp_path / "results/runs/grabcut").glob("*.parquet"):
        found = pq.read_table(path)
        about = json.loads(found.schema.metadata[records.METADATA])
        about["provenance"]["shared"] = True
        pq.write_table(found.replace_schema_metadata({records.METADATA: json.dumps(about, sort_keys=True)}), path)
    for given, blank in (((), "times shared"), (("recompute=true",), "")):
        assert run(tmp_path, "table=mine", *SMALL, *given).returncode == 0
        lines = pd.read_csv(tmp_path / "reports/tables/mine/table.csv", keep_default_na=False)
        lines = lines.set_index(["row", "column"])
        assert lines["blank"]["full", "AUC"] == blank
        assert lines["blank"]["full", "J"] == ""


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
        command = [sys.executable, str(ROOT / "run.py"), "task=archive", *kept, *overrides]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)

    for seed in (0, 1, 1):
        keep(seed)
    done = run(tmp_path, "table=mine", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = pd.read_csv(tmp_path / "reports/tables/mine/table.csv")
    cell = lines[(lines["row"] == "full") & (lines["column"] == "J")].iloc[0]
    each = [float(value) for value in cell["trainings"].split()]
    assert each[0] != each[1]
    assert cell["tiny, synthetic / trained here at size=tiny, synthetic"] == pytest.approx(sum(each) / 2, abs=0.01)

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
    sequences_of.cache_clear()
    choose.cache_clear()
    rules = ("protocol=atnet", "protocol.metric=J", "clock=modelled", "dataset.clips=2", f"results={ROOT / 'results'}")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        row = OmegaConf.create({"row": "I", "trained": "atnet_off"})
        overrides = (*rules, "method=atnet", "method.local=off", f"weights={quoted('tiny')}")
        board = play(row, overrides, Asked(overrides, "tiny"))
    sequences_of.cache_clear()
    (entry, *trainings) = board.entries
    assert entry.label == "I, clips of generator 1"
    assert len(trainings) == 2
    assert papers.samples(papers.Row("I", [None], [board], [None])) == "2 of 2, clips of generator 1"
    keys = [replace(r.key, sample={**r.key.sample, "made_by": "generator 99: others"}) for r in entry.records]
    others = [replace(r, key=key) for r, key in zip(entry.records, keys, strict=True)]
    assert papers.of_same_clips(entry, trainings[0])
    assert not papers.of_same_clips(entry, replace(entry, records=others))
