"""What a record is known by: its meaning, all of it and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from harness.api import BadInput
from harness.data import folder, synthetic
from harness.run import records
from harness.run.evaluate import play_missing
from harness.run.identity import entry_of
from harness.run.records import Key
from tests.test_main_job import SMALL, recorded

ROOT = Path(__file__).parents[1]
HISTORIC = ROOT / "tests/goldens/records/val-00-1-66b412b531c53744.parquet"
METHOD: dict[str, Any] = {"name": "grabcut", "_target_": "methods.grabcut.method.GrabCut"}
CHOICES: list[dict[str, Any]] = [
    {"name": "synthetic", "_target_": "harness.data.synthetic.load", "clips": 2, "seed": 0},
    {"name": "davis2020", "_target_": "harness.rules.protocol.Protocol", "robot": {"kernel_size": 0.2}},
    {"name": "wall", "_target_": "harness.rules.clock.wall_clock"},
]


def run(place: Path, *overrides: str, root: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line of a checkout, started in some folder; guests of <place>/guests are known."""
    guests = place / "guests"
    guests.mkdir(exist_ok=True)
    places = (f"results={place / 'results'}", f"reports={place / 'reports'}", f"hydra.searchpath=[file://{guests}]")
    command = [sys.executable, str(root / "run.py"), *places, *SMALL, *overrides]
    environment = os.environ | {"PYTHONPATH": str(guests)}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True)


def identity(method: dict[str, Any] = METHOD, *choices: dict[str, Any]) -> str:
    """The printed key of a sample that these choices play."""
    entry = entry_of(*(OmegaConf.create(each) for each in (method, *(choices or CHOICES))))
    return str(Key({"sequence": "clip", "scribble_idx": 1, "manifest": "m"}, entry))


def source_of(place: Path, target: str) -> str:
    """The source digest of a method of another checkout or from a folder of guests, by a process of its own."""
    program = f"from harness.run.source import source_digest; print(source_digest({target!r}))"
    home = place if (place / "harness").exists() else ROOT
    environment = os.environ | {"PYTHONPATH": f"{place}:{home}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=place, env=environment, text=True, capture_output=True)
    return done.stdout.strip() or done.stderr


def rewrite(path: Path, change: Any, columns: Any = lambda table: table) -> Path:
    """The historic record with other metadata and columns, below `path`."""
    table = pq.read_table(HISTORIC)
    about = change(json.loads(table.schema.metadata[records.METADATA]))
    path.mkdir()
    file = path / HISTORIC.name
    pq.write_table(columns(table).replace_schema_metadata({records.METADATA: json.dumps(about)}), file)
    return file


def test_kept_records_of_every_format_are_read() -> None:
    """What was kept years ago is still there, by today's names, and nobody takes its clips for today's."""
    kept = [record for path in (ROOT / "results/ablations").glob("*.parquet") for record in records.read_archive(path)]
    assert len({record.key.digest for record in kept}) == len(kept) >= 1024
    old = [record for record in kept if record.written == 0]
    assert {record.key.clip.partition(":")[0] for record in old} == {"generator 1"}
    assert {record.key.entry["protocol"]["name"] for record in old} == {"atnet", "davis2020", "semi_supervised"}
    one = records.read(HISTORIC)
    (same,) = (record for record in kept if record.key == one.key)
    assert same.rows.equals(one.rows)
    assert one.key.entry["method"] == {"name": "stm_video", "size": "tiny"}


def test_a_record_with_more_or_less_in_it_is_read(tmp_path: Path) -> None:
    """A version that adds or drops a column, or says less of the machine, does not lose the scores of another."""

    def without_torch(about: dict[str, Any]) -> dict[str, Any]:
        return {**about, "provenance": {"shared": False, "mood": "good"}, "weather": "fine"}

    def columns(table: pa.Table) -> pa.Table:
        return table.drop_columns(["mask", "j_and_f", "session_id"]).append_column("extra", pa.nulls(len(table)))

    whole, other = records.read(HISTORIC), records.read(rewrite(tmp_path / "a", without_torch, columns))
    assert other.provenance["torch"] == "unknown"
    assert other.provenance["samples"] == 0
    assert other.rows.columns.tolist() == whole.rows.columns.tolist()
    np.testing.assert_array_equal(other.rows["j_and_f"], whole.rows["j_and_f"])
    with pytest.raises(BadInput, match="not a record of ours"):
        records.read(rewrite(tmp_path / "b", dict, lambda table: table.drop_columns(["jaccard"])))
    with pytest.raises(BadInput, match=r"format 99, this version reads up to 1; update"):
        records.read(rewrite(tmp_path / "c", lambda about: {**about, "format": 99, "written": "tomorrow"}))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (0, {"iterations": 3}),
        (0, {"another": None}),
        (0, {"official": {"a.pth": "somewhere"}}),
        (1, {"frames": 20, "size": [160, 288]}),
        (1, {"root": "elsewhere", "sequences": None}),
        (2, {"rounds": 8, "threshold": 60, "another": None}),
        (2, {"robot": {"kernel_size": 0.2, "nb_points": 1000, "another": None}}),
        (3, {"another": None}),
    ],
)
def test_what_changes_nothing_is_not_in_the_key(part: int, change: dict[str, Any]) -> None:
    """An option at its default, a null that nobody reads, a place: none may have all played again."""
    choices = [METHOD, *CHOICES]
    choices[part] = {**choices[part], **change}
    assert identity(*choices) == identity()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (0, {"iterations": 5}),
        (0, {"another": 0}),
        (1, {"frames": 21}),
        (2, {"max_time": None}),
        (2, {"robot": {"kernel_size": 0.3}}),
        (3, {"name": "modelled"}),
    ],
)
def test_what_changes_scores_is_in_the_key(part: int, change: dict[str, Any]) -> None:
    """Else a score of other rules would be shown for these."""
    choices = [METHOD, *CHOICES]
    choices[part] = {**choices[part], **change}
    assert identity(*choices) != identity()


def test_files_are_known_by_their_content_and_never_by_their_path(tmp_path: Path) -> None:
    """Weights, and what a guest loads beside them, may lie anywhere; changed ones must not be taken for the same."""
    told = []
    for name, content in (("a", b"x"), ("b", b"x"), ("b", b"y")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "extra.pth").write_bytes(content)
        told.append(identity(METHOD | {"parts": [{"file": str(tmp_path / name / "extra.pth")}]}))
    assert told[0] == told[1] != told[2]
    assert str(tmp_path) not in told[0]
    for name in ("stm", "renamed"):
        shutil.copy(ROOT / "methods/weights/stm.safetensors", tmp_path / f"{name}.safetensors")
        told.append(identity(METHOD | {"weights": str(tmp_path / f"{name}.safetensors")}))
    assert told[-1] == told[-2] != identity()


def test_a_clip_is_what_made_it_or_what_it_holds() -> None:
    """A generator's bits may differ between processors, one's own files may not; another generator's are others."""
    entry = {"method": {"name": "m"}}
    generated = {"sequence": "val-00", "scribble_idx": 1, "made_by": "generator 1: clip=0"}
    one, same = (Key({**generated, "manifest": manifest}, entry).digest for manifest in "ab")
    assert one == same != Key({**generated, "manifest": "a", "made_by": "generator 2: clip=0"}, entry).digest
    own = {"sequence": "val-00", "scribble_idx": 1}
    assert Key({**own, "manifest": "a"}, entry).digest != Key({**own, "manifest": "b"}, entry).digest
    small = synthetic.load(clips=1, frames=3, size=(48, 80))[0]
    maker = f"generator {synthetic.GENERATOR}"
    assert small.made_by == f"{maker}: split=val, clip=0, frames=3, size=48x80, objects=1, seed=0"


def test_a_record_is_as_old_as_it_says_and_not_as_its_file(tmp_path: Path) -> None:
    """After a copy or a clone old scores must not be the newest."""
    keys = [Key({"sequence": "c", "scribble_idx": i, "manifest": "m"}, {"method": {"name": "m"}}) for i in (1, 2)]
    paths = [records.write(tmp_path, key, [], clip={}, provenance={}) for key in keys]
    os.utime(paths[0], (4e9, 4e9))
    first, second = (records.read(path).written for path in paths)
    assert 1.6e18 < first < second


GUEST = {
    "guest.py": '"""About."""\n\nimport helper\nfrom methods.blocks.padding import pad\n\n\n'
    'class Guest:\n    """Says."""\n\n    def __init__(self, a=1): ...\n\n\nclass Other(Guest):\n    b = 2\n',
    "helper.py": "from pack.deep import three\n\nX = 1  # one\nTEXT = '''a\n\nb # no comment'''\n",
    "pack/__init__.py": "",
    "pack/deep.py": "import numpy as np\n\nthree = np.float32(3)\n",
    "unrelated.py": "x = 1\n",
}


def plug_in(place: Path, **changes: tuple[str, str]) -> Path:
    """A guest with modules of its own beside it; changes: {module: (what, by what)}."""
    shutil.rmtree(place, ignore_errors=True)
    for name, text in GUEST.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text.replace(*changes.get(Path(name).stem, ("", ""))) if text else text)
    return place


def test_code_is_known_by_what_it_does(tmp_path: Path) -> None:
    """A helper that a guest has beside it counts like the guest itself; a comment, a blank line or a name does not."""
    place = tmp_path / "guests"
    before = source_of(plug_in(place), "guest.Guest")
    assert len(before) == 16, before
    for same in (
        {"helper": ("# one", "# the first\n\n# of all")},
        {"guest": ('    """Says."""\n', '    """Says more,\n\n    on lines."""\n')},
        {"guest": ("import helper\n", "\n\nimport helper  # beside it\n")},
        {"unrelated": ("x = 1", "x = 2")},
    ):
        assert source_of(plug_in(place, **same), "guest.Guest") == before, same
    for other in (
        {"helper": ("X = 1", "X = 2")},
        {"helper": ("a\n\nb", "a\nb")},
        {"helper": ("# no comment", "# no")},
        {"deep": ("3", "4")},
        {"deep": ("import numpy as np", "import torch as np")},
        {"guest": ("import pad", "import crop as pad")},
        {"guest": ("a=1", "a=2")},
    ):
        assert source_of(plug_in(place, **other), "guest.Guest") != before, other
    assert source_of(plug_in(place), "guest.Other") != before


def test_modules_may_move_and_all_records_are_found(tmp_path: Path) -> None:
    """Whoever tidies up the tree, or starts from another folder, does not play everything again."""
    house = tmp_path / "house"
    for part in ("harness", "methods", "conf"):
        shutil.copytree(ROOT / part, house / part)
    shutil.copy(ROOT / "run.py", house)
    options = ("method=grabcut,stm",)
    first = run(tmp_path, *options, root=house, cwd=house)
    assert first.returncode == 0, first.stderr
    before = recorded(tmp_path)
    assert len(before) == 4

    (house / "harness/rules/metrics.py").rename(house / "harness/rules/measures.py")
    (house / "methods/stm/network.py").rename(house / "methods/stm/net.py")
    for file in [*(house / "harness").rglob("*.py"), *(house / "methods").rglob("*.py")]:
        text = file.read_text().replace("harness.rules.metrics", "harness.rules.measures")
        file.write_text(text.replace("methods.stm.network", "methods.stm.net"))
    again = run(tmp_path, *options, "seed=7", root=house, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("0 samples played, 2 recorded before") == 2, again.stderr
    assert recorded(tmp_path) == before
    assert first.stdout == again.stdout

    with (house / "harness/rules/measures.py").open("a") as code:
        code.write("\nMORE = 1\n")
    changed = run(tmp_path, "method=grabcut", root=house, cwd=tmp_path)
    assert "2 samples played, 0 recorded before" in changed.stderr


def clips(place: Path) -> None:
    """Two clips of one's own."""
    for name in ("a", "b"):
        for kind, mode in (("frames", "RGB"), ("masks", "L")):
            (place / kind / name).mkdir(parents=True)
            for t in range(3):
                pixels = np.zeros((48, 64) if mode == "L" else (48, 64, 3), np.uint8)
                pixels[10:30, 10 + t : 40 + t] = 1 if mode == "L" else 200
                Image.fromarray(pixels).save(place / kind / name / f"{t:05d}.png")


@pytest.mark.parametrize("kind", ["frames", "masks"])
def test_data_edited_under_a_run_are_not_scored_as_what_they_were(tmp_path: Path, kind: str) -> None:
    """What was listed is what is played, or the run says which file is another one."""
    clips(tmp_path)
    dataset = {"name": "folder", "_target_": "harness.data.folder.load", "root": str(tmp_path)}
    protocol = {"name": "p", "_target_": "harness.rules.protocol.Protocol", "rounds": 1}
    method, data, rules, clock = (OmegaConf.create(each) for each in (METHOD, dataset, protocol, CHOICES[2]))
    played = play_missing(method, data, rules, clock, "0/1", tmp_path / "runs", False)
    assert records.read(next(played)).key.sample["sequence"] == "a"
    file = tmp_path / kind / "b" / "00001.png"
    shutil.copy(tmp_path / kind / "b" / "00002.png", file)
    with pytest.raises(BadInput, match="changed since the run began; run again") as refused:
        next(played)
    assert str(file) in str(refused.value)
    assert [path.name[0] for path in (tmp_path / "runs" / "grabcut").iterdir()] == ["a"]
    (clip, _) = folder.load(str(tmp_path))
    assert clip.read_frames().shape == (3, 48, 64, 3)


UNSTEADY = """
import os
from pathlib import Path

import numpy as np
from harness.api import Prediction

VALUE = 0

class Guest:
    def __init__(self, does, weights=None, extra=None):
        self.extra = extra
        {before}

    def start(self, clip):
        self.clip = clip
        {at_start}

    def interact(self, interaction):
        return Prediction(np.full(self.clip.frames.shape[:3], VALUE, np.uint8))
"""
EDIT = "Path(__file__).write_text(Path(__file__).read_text().replace('VALUE = ' + str(VALUE), 'VALUE = 1'))"


@pytest.mark.parametrize(
    ("before", "at_start", "isolate", "told"),
    [
        (
            f"Path(weights).write_bytes(Path('{ROOT}/methods/weights/ipnet.safetensors').read_bytes())",
            "",
            False,
            "weights",
        ),
        ("", "Path(self.extra).write_bytes(b'new')", False, "files"),
        (EDIT, "", False, "code"),
        ("", f"VALUE or ({EDIT}, os._exit(3))", True, "code"),
    ],
)
def test_what_was_digested_is_what_played(tmp_path: Path, before: str, at_start: str, isolate: bool, told: str) -> None:
    """Weights overwritten, or code edited, between digest and use leave no record under the old digest."""
    guests = tmp_path / "guests"
    (guests / "method").mkdir(parents=True)
    (guests / "unsteady.py").write_text(UNSTEADY.format(before=before or "pass", at_start=at_start or "pass"))
    (guests / "extra.pth").write_bytes(b"old")
    shutil.copy(ROOT / "methods/weights/stm.safetensors", guests / "own.safetensors")
    (guests / "method/unsteady.yaml").write_text(
        f"name: unsteady\n_target_: unsteady.Guest\ndoes: that\nweights: {guests / 'own.safetensors'}\n"
        f"extra: {guests / 'extra.pth'}\n"
    )
    done = run(tmp_path, "method=unsteady", "clock=wall", f"isolate={isolate}")
    assert done.returncode == 1
    wanted = f"unsteady: its {told} changed under the run; val-0{int(isolate)} is not kept, run again"
    assert wanted in done.stderr.splitlines(), done.stderr
    assert not [name for name in recorded(tmp_path) if ".failed." not in name]


@pytest.mark.parametrize("word", ["no", "off", "maybe", "1"])
def test_a_word_is_no_yes(tmp_path: Path, word: str) -> None:
    """`update=no` must not write the baseline, whatever Python makes of a string."""
    baseline = tmp_path / "base.json"
    done = run(tmp_path, "task=regress", "method=grabcut", f"baseline={baseline}", f"update={word}")
    assert done.returncode == 1
    assert not baseline.exists()
    wanted = f"{baseline}: no such baseline" if word in ("no", "off") else f"update={word}: wanted true or false"
    assert done.stderr.splitlines()[-1].startswith(wanted), done.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recompute=abc", "recompute=abc: wanted true or false"),
        ("isolate=maybe", "isolate=maybe: wanted true or false"),
        ("task=report csv=perhaps", "csv=perhaps: wanted true or false"),
        ("task=report until=soon", "until=soon: wanted a number, or null"),
    ],
)
def test_keys_of_tasks_are_what_they_say(tmp_path: Path, override: str, told: str) -> None:
    done = run(tmp_path, "method=grabcut", *override.split())
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [told]
    assert not recorded(tmp_path)
