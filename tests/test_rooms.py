"""Who may know whom, as CONTRIBUTING.md has it: one import against the arrows, and no room can be read by itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("api", "rules", "data", "run", "report", "tasks")  # each may import itself and those before it
GUESTS = {"harness.api", "harness.rules.scribbles"}  # all that a method needs to know of the harness
TRAINERS = GUESTS | {"harness.rules.robot", "harness.data", "harness.run.provenance", "harness.run.progress"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Dotted names of the project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("harness", "methods"))


def room(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("file", modules("harness"), ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_run_one_way(file: Path) -> None:
    mine = file.relative_to(ROOT / "harness").parts[0].removesuffix(".py")
    if mine == "__init__":
        return
    known = ROOMS[: ROOMS.index(mine) + 1]
    wrong = [name for name in imported(file) if name.startswith("methods") or room(name) not in known]
    assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}; {mine} may know {', '.join(known)}"


@pytest.mark.parametrize("file", modules("methods"), ids=lambda file: str(file.relative_to(ROOT)))
def test_methods_know_the_contract_alone(file: Path) -> None:
    known = TRAINERS if file.name == "training.py" or "training" in file.parts else GUESTS
    strangers = [
        name
        for name in imported(file)
        if name.startswith("harness.") and not any(name == each or name.startswith(f"{each}.") for each in known)
    ]
    assert not strangers, f"{file.relative_to(ROOT)} imports {strangers}; methods may know {', '.join(sorted(known))}"
