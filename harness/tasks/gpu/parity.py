"""The authors' recorded outputs, once more on the device."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from harness.api import BadInput
from harness.tasks.gpu.part import Part

ABOUT = (
    "Parity\n"
    "The networks with procedural weights beside recorded outputs of their authors' code, by tests/parity, in "
    "float32 with TF32 off. Off: the worst of all that was compared, of labels the part of the pixels; the "
    "limits are those a CPU has to keep."
)
ROOT = Path(__file__).parents[3]


class Compared(NamedTuple):
    """A network beside its recordings. code: what the comparison ended with, None if there was no time for its end."""

    lines: list[dict[str, Any]]
    code: int | None
    errors: str


def play(part: Part) -> None:
    """Compare each network with the recordings of it that the tree carries; `at_once` networks side by side."""
    networks, at_once = part.settings["networks"], part.settings["at_once"]
    if not (ROOT / "tests" / "parity" / "compare.py").is_file():
        raise BadInput(f"{ROOT}/tests/parity/compare.py: missing, and with it what would be compared")
    with ThreadPoolExecutor(at_once) as pool:
        asked = {pool.submit(compare, network, part): network for network in networks}
        for done in as_completed(asked):
            network, compared = asked[done], done.result()
            for row in rows(network, compared.lines):
                part.report.line("off by", row)
            if compared.code is None:
                part.report.note(network, "not compared to the end, the time was up")
            elif compared.code:
                beyond = [f"{line['recording']} {line['kind']}" for line in compared.lines if line["beyond"]]
                told = "; ".join(beyond) or " ".join(compared.errors.split())[-300:]
                part.report.trouble(f"{network}: {told}")
            elif not compared.lines:
                part.report.trouble(f"{network}: tests/goldens has no recording of it")
    if any(done.result().code is None for done in asked):
        part.check(float("inf"))


def compare(network: str, part: Part) -> Compared:
    """Compare a network in a process of its own."""
    if part.left < 1:
        return Compared([], None, "")
    options = ["--device", part.device, "--networks", network, "--carried", "--json"]
    command = [sys.executable, "-m", "tests.parity.compare", *options]
    try:
        done = subprocess.run(command, cwd=ROOT, text=True, timeout=part.left, capture_output=True)
    except subprocess.TimeoutExpired as cut:
        said = cut.stdout.decode() if isinstance(cut.stdout, bytes) else cut.stdout or ""
        return Compared([json.loads(line) for line in said.splitlines()[:-1]], None, "")
    return Compared([json.loads(line) for line in done.stdout.splitlines()], done.returncode, done.stderr)


def rows(network: str, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row per kind of what was compared."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        kinds[line["kind"]].append(line)
    for kind, each in kinds.items():
        yield {
            "network": network,
            "of": kind,
            "off": max(line["off"] for line in each),
            "limit": max(line["limit"] for line in each),
            "compared": sum(line["compared"] for line in each),
            "beyond": sum(line["beyond"] for line in each),
        }
