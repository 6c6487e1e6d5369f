"""What people type: a mistake is told as itself, in one line with a remedy; what is printed as a command is one."""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import DictConfig

import run as door
from harness.api import BadInput
from harness.run.build import build
from harness.run.command_line import check, configuration, one_line
from harness.run.progress import bar, showing, tell
from harness.run.provenance import weights_of
from harness.tasks.doctor import dataset_state
from harness.tasks.regress import Guard
from tests.test_main_job import SMALL, command, recorded

ROOT = Path(__file__).parents[1]
assert door  # its resolvers are those of conf/


def told(line: str) -> str:
    """What the command line says to a wrong command, one line."""
    with pytest.raises(BadInput) as refusal:
        check(shlex.split(line))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def composed(line: str) -> DictConfig:
    """What a right command stands for."""
    config = configuration(shlex.split(line))
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("typed", "cause"),
    [
        ("method=stn", "method=stn: no such method; did you mean stm?"),
        ("method=grabcut,stn", "method=stn: no such method; did you mean stm?"),
        ("protocol=davis2021", "did you mean davis2020?"),
        ("method=grabcut,stm protocol=davis2021", "did you mean davis2020?"),
        ("task=table table=mivos_tabel5", "did you mean mivos_table5?"),
        ("task=tabel", "did you mean table?"),
        ("clock=model", "did you mean modelled?"),
        ("dataset=sintetic", "did you mean synthetic?"),
        ("task=train recipe=smal", "did you mean small?"),
        ("table=mivos_table5", "task=evaluate has no table; add task=table"),
        ("metod=stm", "task=evaluate has no metod; did you mean method?"),
        ("method=grabcut,stm dataset=davis2017 dataset.rooot=x", "davis2017 has no rooot; did you mean dataset.root?"),
        ("dataset.root=x", "dataset=synthetic has no root; choose dataset=davis2016 or davis2017 or folder"),
        ("protocol.robot.kernel=0.1", "protocol.robot has no kernel; did you mean protocol.robot.kernel_size?"),
        ("csv=true", "task=evaluate has no csv; add task=report"),
        ("task=bench rounds=9 frames=80", "task=bench has no rounds; did you mean protocol.rounds or bench.rounds?"),
        ("method=stm,mivos method.top_k=20", "method=stm has no top_k; choose method=mivos"),
        ("method.precision=bfloat16", "method=grabcut has no precision; choose method=stm,ipnet,atnet,mivos"),
        ("method=[grabcut,stm]", "as in method=grabcut,stm"),
        ("method=grabcut stm", "several have commas and no space between them: method=grabcut,stm"),
        ("method=grabcut, stm", "several have no space between them: method=grabcut,stm"),
        ("help", "did you mean --help?"),
        ("doctor", "did you mean task=doctor?"),
        ("--halp", "--halp: no such option"),
        ("task=train method=stm,mivos", "task=train takes one; add -m"),
        ("~method", "there has to be one"),
        ("task=score masks=a(b)", """quote it: 'masks="a(b)"'"""),
        ("hydra/launcher=process shard=0/2,1/2", "no such hydra/launcher; did you mean processes?"),
        ("weights=tinny", "did you mean tiny? choose one of tiny, official, random, or a .safetensors file"),
        ("hydra.searchpath=[file:///nowhere]", "/nowhere: no such folder"),
        ("results=README.md", "README.md is a file"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_as_itself(typed: str, cause: str) -> None:
    """Hydra says of most of these something long, and of a typo beside a comma: add --multirun."""
    assert cause in told(typed)


def test_a_launcher_whose_engine_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert told("hydra/launcher=slurm shard=0/2,1/2").startswith("hydra/launcher=slurm: no sbatch here")


@pytest.mark.parametrize(
    ("typed", "group", "cause"),
    [
        ("dataset.size=160", "dataset", "dataset.size=160: wanted a list of 2"),
        ("dataset.size=[160]", "dataset", r"dataset.size=\[160\]: wanted a list of 2.*, as in .*=\[160,288\]"),
        ("dataset.frames=ten", "dataset", "dataset.frames=ten: wanted a whole number, as in dataset.frames=20"),
        ("dataset.clips=true", "dataset", "dataset.clips=true: wanted a whole number"),
        ("dataset=folder", "dataset", "dataset.root: not given"),
        ("method=grabcut +method.flows=fast", "method", "no argument of .*GrabCut; did you mean method.flow?"),
        ("protocol.rounds=0", "protocol", "protocol.rounds=0: wanted a whole number from 1"),
        ("protocol.robot=5", "protocol", "protocol.robot=5: wanted keys with values"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_names_key_and_value(typed: str, group: str, cause: str) -> None:
    config = composed(typed)[group]
    with pytest.raises(BadInput, match=cause):
        build(config, f"{group}.", **({"name": "p"} if group == "protocol" else {}))


def test_a_root_that_is_not_the_dataset_is_suspected(tmp_path: Path) -> None:
    """Else one looks for a missing list in a folder that has nothing of DAVIS at all."""
    config = composed(f"dataset=davis2017 dataset.root={tmp_path}").dataset
    with pytest.raises(BadInput, match=f"dataset.root={tmp_path}: not DAVIS"):
        build(config, "dataset.")
    assert dataset_state("davis2017", config)[0].startswith("[red]no")
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        (tmp_path / "DAVIS" / part).mkdir(parents=True)
    with pytest.raises(BadInput, match=f"did you mean dataset.root={tmp_path}/DAVIS?"):
        build(config, "dataset.")
    config.root = f"{tmp_path}/DAVIS"
    assert dataset_state("davis2017", config)[0].startswith("[green]yes")


def test_a_guard_without_baseline_plays_nothing(tmp_path: Path) -> None:
    """Minutes later it would be refused, or, of a method that the baseline has not, pass."""
    config = composed("task=regress")
    Guard().on_multirun_start(config)
    config.hydra.overrides.task = ["task=regress", "method=stm,stm_video"]
    with pytest.raises(SystemExit, match="has no stm_video; leave out, or add with update=true"):
        Guard().on_multirun_start(config)
    config.baseline = f"{tmp_path}/none.json"
    with pytest.raises(SystemExit, match="no such baseline; make it with update=true"):
        Guard().on_multirun_start(config)
    config["update"] = True
    Guard().on_multirun_start(config)


def test_costs_of_a_guest_can_be_given_as_it_is_said(tmp_path: Path) -> None:
    place = plug_in(tmp_path, "mine")
    clock = composed(f"{place} task=regress method=mine").clock
    with pytest.raises(BadInput) as refusal:
        build(clock, "clock.", method="mine")
    (remedy,) = re.findall(r"'\+clock.*'", str(refusal.value))
    build(composed(f"{place} task=regress method=mine {remedy}").clock, "clock.", method="mine")


def test_weights_nobody_trained_yet_are_told_as_such() -> None:
    """The default of `method=stm_video`, which README lists; what it says instead is to be followed."""
    config = composed("method=stm_video protocol=semi_supervised").method
    config.weights = "methods/weights/nobody.safetensors"
    with pytest.raises(BadInput, match="no tiny weights of stm_video are kept; say weights=random") as refusal:
        weights_of(config)
    composed(str(refusal.value).partition("uv run run.py ")[2])


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "results=/proc/nowhere/here"])
    cause = r"results=/proc/nowhere/here: /proc/nowhere cannot be written .*; give another results="
    with pytest.raises(SystemExit, match=cause), one_line():
        Path("/proc/nowhere").mkdir()
    with pytest.raises(FileNotFoundError), one_line():  # a fault of ours is no matter of results=
        (tmp_path / "no" / "where").mkdir()


def test_stopped_and_unseen_it_says_how_far_it_is_and_what_is_kept(tmp_path: Path) -> None:
    """Who presses Ctrl-C, or looks at a log of a job, would else think that nothing was done."""
    play = (*SMALL, "method=grabcut", "method.iterations=30", "dataset.clips=60", "protocol.rounds=16", "clock=wall")
    victim = subprocess.Popen(command(tmp_path, *play), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert victim.stderr is not None
    how_far = re.compile(r"grabcut: [1-9]\d* of 60 done, val-\d\d, round \d+ of 16, \d:\d\d\n")
    assert any(how_far.fullmatch(line) for line in victim.stderr)
    victim.send_signal(signal.SIGINT)
    *_, said = victim.communicate()[1].splitlines()
    kept = f"samples kept in {tmp_path / 'results' / 'runs'}: {len(recorded(tmp_path))}"
    assert (victim.returncode, said) == (130, f"stopped; {kept}; the same command goes on from there")


def test_without_packages_it_says_how_to_get_them() -> None:
    done = subprocess.run([sys.executable, "-S", "run.py", "method=stm"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == (
        "hydra: not installed; `pip install uv`, then `uv run run.py method=stm` brings all it needs\n"
    )


def test_help_is_a_screen_and_names_every_task() -> None:
    done = subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, text=True, capture_output=True)
    lines = done.stdout.rstrip().splitlines()
    assert sum(max(1, -(-len(line) // 100)) for line in lines) <= 40
    for group in ("task", "method", "protocol", "table"):
        names = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert f"{group}: {', '.join(names)}" in lines
    told_of = re.findall(r"(?:^|\s{2}|task=)(\w+) ", done.stdout.partition("Choose one")[0])
    assert {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")} <= set(told_of)


def test_who_has_read_enough_of_it_sees_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} run.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, text=True, capture_output=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_lines_come_ever_less_often_and_tell_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A line per sample would fill a log; none for 13 minutes looks like a job that hangs."""
    caplog.set_level(logging.INFO)
    for item in bar(["bear", "camel"], "stm"):
        with showing("reading"):
            tell(f"{item}, round 1 of 8")
        tell(f"{item}, round 2 of 8")
        time.sleep(1.3)
    assert caplog.messages == ["stm: 1 of 2 done, camel, round 2 of 8, 0:02"]


def test_a_bench_leaves_the_kept_reports_alone() -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", "reports/bench/evaluation.md"], cwd=ROOT)
    if ignored.returncode == 128:
        pytest.skip("no git checkout")
    assert ignored.returncode == 0
    kept = re.findall(r"\]\(([^):#]+)", (ROOT / "README.md").read_text())
    assert "reports/readme/bench/evaluation.md" in kept
    assert [path for path in kept if not (ROOT / path).exists()] == []


# What stands in printed commands for something of the reader's, and what stands for it here
PLACEHOLDERS = {
    "<before or after>": "random",
    "method=<name>": "method=mine",
    "<name>": "x",
    "method=...": "method=stm",
    "=...": "=x",
    "file://$HOME/mine/conf": "file://PLUG_IN",
    "file://../official/conf": "file://PLUG_IN",
    "{name}": "davis2017",
    "{year}": "2017",
    "{root}": "/data/DAVIS",
    "{method['name']}": "stm_video",
}
PRINTS = ("*.md", "*.py", "*.yaml", "*.yml", "*.j2", "*.ipynb", ".ci/*")


def printed(what: str) -> list[tuple[str, str]]:
    """(file, what follows) wherever a file of the tree, but a test, says "uv run <what> ..."."""
    files = sorted({path for pattern in PRINTS for path in ROOT.rglob(pattern) if not hidden(path)})
    found = []
    for file in files:
        text = re.sub(r"\\\n\s*", " ", file.read_text())
        for match in re.finditer(f"(.?)uv run {what}", text):
            end = {"`": "`", "'": "'", '"': '"', "(": ")"}.get(match[1])
            rest = text[match.end() :].partition(end or "\n")[0]
            said = rest if end == "`" else re.split(r"\s#|\s{3}|;", rest)[0]
            found.append((str(file.relative_to(ROOT)), " ".join(said.split())))
    return found


def hidden(path: Path) -> bool:
    """Whether a file is a test, or none of the tree's own."""
    parts = path.relative_to(ROOT).parts
    dotted = any(part.startswith(".") and part not in (".ci", ".github") for part in parts)
    made = parts[0] in ("results", "reports") and parts[1] not in ("ablations", "baselines", "readme")
    return dotted or made or path.name.startswith("test_")


def plug_in(folder: Path, *names: str) -> str:
    """A folder of configs of methods from outside; gives the override that finds them."""
    (folder / "method").mkdir(parents=True)
    for name in names:
        (folder / "method" / f"{name}.yaml").write_text(f"name: {name}\n_target_: {name}.Method\n")
    return f"hydra.searchpath=[file://{folder}]"


def test_every_printed_command_can_be_typed(tmp_path: Path) -> None:
    """A command that is refused as printed costs the reader's trust in the others."""
    place = plug_in(tmp_path, "mine", "nearest")
    used: Counter[str] = Counter()
    wrong = []
    commands = printed("run.py")
    for file, line in commands:
        for placeholder, stands in PLACEHOLDERS.items():
            used[placeholder] += line.count(placeholder)
            line = line.replace(placeholder, stands)
        arguments = shlex.split(line.replace("PLUG_IN", str(tmp_path)))
        if {"method=mine", "method=nearest"} & set(arguments) and not any("searchpath" in each for each in arguments):
            arguments.append(place)
        try:
            configuration(arguments)
        except BadInput as refusal:
            wrong.append(f"{file}: uv run run.py {line}: {refusal}")
    assert wrong == []
    assert len(commands) >= 50
    assert [placeholder for placeholder in PLACEHOLDERS if not used[placeholder]] == []


def test_every_other_printed_command_names_what_is_there() -> None:
    others = [*printed("python -m"), *printed("pytest")]
    for file, line in others:
        for word in shlex.split(line):
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), (file, line)
            if re.fullmatch(r"[a-z_]+\.[a-z_.]+", word) and not word.endswith(".py"):
                assert find_spec(word), (file, line)
    assert len(others) >= 5
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
