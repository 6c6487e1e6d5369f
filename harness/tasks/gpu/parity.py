"""The authors' recorded outputs, once more on the device."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from harness.api import BadInput
from harness.tasks.gpu.part import Part

ABOUT = (
    "Parity\n"
    "The networks with procedural weights beside recorded outputs of their authors' code, by tests/parity, in "
    "float32 with TF32 off. Off: the worst of all that was compared, of labels the part of the pixels; the "
    "limits are those a CPU has to keep."
)
ROOT = Path(__file__).parents[3]


def play(part: Part) -> None:
    """Run the tests of each network that have a recording carried in the tree; `at_once` networks side by side."""
    networks, at_once = part.settings["networks"], part.settings["at_once"]
    tests = {network: ROOT / "tests" / "parity" / f"test_{network}.py" for network in networks}
    if missing := [str(test) for test in tests.values() if not test.is_file()]:
        raise BadInput(f"{missing[0]}: missing, and with it what would be compared")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        files = {network: Path(folder, network) for network in networks}
        asked = {pool.submit(run, tests[network], files[network], part): network for network in networks}
        for done in as_completed(asked):
            network = asked[done]
            code, said = done.result()
            for row in rows(network, files[network]):
                part.report.line("off by", row)
            if code is None:
                part.report.note(network, "not compared, the time was up")
            elif code:
                named = re.findall(r"^(?:FAILED|ERROR) (.*)$", said, re.MULTILINE)
                part.report.trouble(f"{network}: {'; '.join(named) or ' '.join(said.split())[-300:]}")
    if any(done.result()[0] is None for done in asked):
        part.check(float("inf"))


def run(test: Path, deviations: Path, part: Part) -> tuple[int | None, str]:
    """Compare; deviations go to a file. Returns pytest's exit code, None if there was no time, and what it said."""
    if part.left < 1:
        return None, ""
    environment = os.environ | {
        "IVOSBENCH_DEVICE": part.device,
        "IVOSBENCH_DEVIATIONS": str(deviations),
        "IVOSBENCH_GOLDENS": str(ROOT / "tests" / "goldens"),
    }
    options = ["-k", "carried", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", str(test), *options]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            timeout=part.left,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def rows(network: str, deviations: Path) -> Sequence[dict[str, Any]]:
    """A row per kind of what was compared."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in deviations.read_text().splitlines() if deviations.exists() else ():
        told = json.loads(line)
        kinds[told["kind"]].append(told)
    return [
        {
            "network": network,
            "of": kind,
            "off": max(each["worst"] for each in told),
            "limit": max(each["limit"] for each in told),
            "compared": len(told),
            "beyond": sum(each["worst"] > each["limit"] for each in told),
        }
        for kind, told in kinds.items()
    ]
