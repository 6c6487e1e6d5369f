"""The CI guard: what fell is named and makes it exit 1; what may differ does not."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.api import BadInput
from harness.run import records
from harness.run.records import Key
from harness.tasks.regress import guard, measure, update
from tests.test_records import write

ROOT = Path(__file__).parents[1]
SMALL = ("method=stm", "dataset.clips=1", "dataset.frames=5", "dataset.size=[64,96]", "protocol.rounds=2")
TOLERANCE = {"same": 1e-6, "elsewhere": 0.02}
HERE = {"hardware": "here"}


def measured(**scores: list[float]) -> dict[str, Any]:
    """What a sweep came to, on this machine."""
    return {
        "rules": {"dataset": {"name": "d"}, "protocol": {"metric": "J_AND_F"}, "clock": "modelled"},
        "samples": {"clip-1": "0"},
        "methods": {name: {"scores": s, "weights": "w", "machine": HERE} for name, s in scores.items()},
    }


def run(folder: Path, *overrides: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    places = (f"results={folder / 'results'}", f"reports={folder}", f"baseline={folder / 'base.json'}")
    command = [sys.executable, str(ROOT / "run.py"), "task=regress", *places, *SMALL, *overrides]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)


def test_a_worse_weight_file_fails_and_names_method_and_round(tmp_path: Path) -> None:
    """Else a change that makes a method worse would be merged."""
    assert run(tmp_path, "update=true").returncode == 0
    same = run(tmp_path)
    assert same.returncode == 0, same.stderr

    rng = np.random.default_rng(0)
    state = load_file(ROOT / "methods" / "weights" / "stm.safetensors")
    for weights in (w for w in state.values() if w.dtype == np.float16):
        weights += 0.2 * np.abs(weights).mean() * rng.standard_normal(weights.shape)
    save_file({key: np.asarray(w) for key, w in state.items()}, tmp_path / "worse.safetensors")
    fallen = run(tmp_path, f"weights={tmp_path / 'worse.safetensors'}")
    assert fallen.returncode == 1
    assert re.search(r"^stm round 1: 0\.\d+, -0\.\d+ from the baseline's", fallen.stderr, re.M), fallen.stderr
    assert "stm: the weights are not the baseline's" in fallen.stderr
    cases = ET.parse(tmp_path / "regress.xml").findall(".//testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("regress.stm", "round 1"),
        ("regress.stm", "round 2"),
    ]
    assert cases[0].find("failure") is not None


def test_who_leaves_is_not_let_through(tmp_path: Path) -> None:
    """A method that calls sys.exit(0) or ends its process must not end the guard well, nor hide who plays beside it."""
    hostile = ROOT / "tests" / "hostile"
    cost = "{round: 0.1, frame: 0, object: 0}"
    place = (f"hydra.searchpath=[file://{hostile / 'conf'}]", f"+clock.costs={{leave: {cost}, exit: {cost}}}")
    environment = {**os.environ, "PYTHONPATH": str(hostile)}
    assert run(tmp_path, "method=grabcut", "update=true").returncode == 0
    baseline = json.loads((tmp_path / "base.json").read_text())
    baseline["methods"] |= dict.fromkeys(("leave", "exit"), baseline["methods"]["grabcut"])
    (tmp_path / "base.json").write_text(json.dumps(baseline))
    done = run(tmp_path, "method=leave,exit,grabcut", *place, env=environment)
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert "leave round 1: 1 samples failed, the first with SystemExit: 0" in told
    assert "exit round 1: 1 samples failed, the first with exited with code 3" in told
    cases = ET.parse(tmp_path / "regress.xml").findall(".//testcase")
    passed = {case.get("classname"): case.find("failure") is None for case in cases}
    assert passed == {"regress.leave": False, "regress.exit": False, "regress.grabcut": True}


def test_what_cannot_be_compared_has_failed(tmp_path: Path) -> None:
    """Else the guard passes for a method, a round or a sample that it was asked for and has not looked at."""
    baseline = tmp_path / "base.json"
    update(baseline, measured(a=[0.5, 0.6], b=[0.5]))
    now = measured(a=[0.5], b=[0.5, 0.6], new=[0.1], broken=[])
    now["methods"]["broken"] = {"error": "1 of 2 samples not played"}
    rounds = guard(baseline, now, TOLERANCE, tmp_path / "regress.xml")
    assert [(r.method, r.number, r.verdict) for r in rounds] == [
        ("a", 1, "kept"),
        ("a", 2, "failed"),
        ("b", 1, "kept"),
        ("b", 2, "failed"),
        ("broken", 1, "failed"),
        ("new", 1, "failed"),
    ]
    assert rounds[-1].told == "new round 1: not in the baseline; update=true adds it"


def test_a_sample_that_is_missing_is_no_score(tmp_path: Path) -> None:
    """A mean over fewer samples than the baseline's is another number, and may well be higher."""
    first, second = (records.read(write(tmp_path, index=i)) for i in (1, 2))
    of_another = Key(first.key.sample, {**first.key.entry, "method": {"name": "n", "_target_": "m.N"}})
    methods = measure([first, second, replace(first, key=of_another)])["methods"]
    assert "scores" in methods["m"]
    assert methods["n"] == {"error": "1 of 2 samples not played"}


def test_a_rise_and_another_machine_are_no_failures(tmp_path: Path) -> None:
    """Else the guard cries wolf; but on the baseline's own machine a millionth counts."""
    baseline = tmp_path / "base.json"
    update(baseline, measured(a=[0.5, 0.6], b=[0.5, 0.6]))
    now = measured(a=[0.499, 0.7], b=[0.499, 0.7])
    now["methods"]["b"]["machine"] = {"hardware": "elsewhere"}
    verdicts = [(r.method, r.verdict) for r in guard(baseline, now, TOLERANCE, tmp_path / "regress.xml")]
    assert verdicts == [("a", "fell"), ("a", "rose"), ("b", "kept"), ("b", "rose")]


def test_a_failed_sample_is_a_failure_and_never_a_baseline(tmp_path: Path) -> None:
    """Else a method that crashes would drop out of the comparison, or be kept as it is."""
    baseline = tmp_path / "base.json"
    update(baseline, measured(a=[0.5]))
    now = measured(a=[0.5])
    now["methods"]["a"] = {"error": "1 samples failed, the first with ValueError: no"}
    (round,) = guard(baseline, now, TOLERANCE, tmp_path / "regress.xml")
    assert round.verdict == "failed"
    assert "ValueError: no" in round.told
    before = baseline.read_text()
    with pytest.raises(BadInput, match="left as it is"):
        update(baseline, now)
    assert baseline.read_text() == before


def test_other_rules_are_refused_and_an_update_keeps_who_did_not_play(tmp_path: Path) -> None:
    """Else scores of different clips would be compared, or `method=a update=true` would forget b."""
    baseline = tmp_path / "base.json"
    with pytest.raises(BadInput, match="update=true"):
        guard(baseline, measured(a=[0.5]), TOLERANCE, tmp_path / "regress.xml")
    update(baseline, measured(a=[0.5], b=[0.6]))
    update(baseline, measured(a=[0.7]))
    kept = json.loads(baseline.read_text())["methods"]
    assert {name: method["scores"] for name, method in kept.items()} == {"a": [0.7], "b": [0.6]}
    changed = measured(a=[0.7]) | {"samples": {"clip-1": "1"}}
    with pytest.raises(BadInput, match="scribbles of clip-1"):
        guard(baseline, changed, TOLERANCE, tmp_path / "regress.xml")
    other = measured(a=[0.7]) | {"samples": {"clip-2": "0"}}
    with pytest.raises(BadInput, match="another choice of samples"):
        guard(baseline, other, TOLERANCE, tmp_path / "regress.xml")
