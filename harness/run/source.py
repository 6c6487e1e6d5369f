"""Source files, read and never run: the code that a score depends on, and the defaults of what a config calls."""

import ast
import importlib.util
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from harness.api import BadInput
from harness.run.provenance import digest

RULES = Path(__file__).parents[1] / "rules"
INSTALLED = ("site-packages", "dist-packages")


@cache
def source_digest(target: str) -> str:
    """Digest of the code that a score of a method depends on, as this process first saw it.

    target: dotted path of the method's class. None of its code is executed.
    The code is that of `harness.api`, of `harness.rules`, of the class's module and of all that these import from their
    own packages, from beside them and from this house; what is installed is told by its version.
    What a module is called and where it lies does not count, nor do comments, docstrings and blank lines.
    Raises BadInput where the class has no module, or a module has no readable code.
    """
    module, _, name = target.rpartition(".")
    parts = {definition(module, name), *(text(module, file) for module, file in modules_of(target).items())} - {""}
    return digest(*sorted(digest(part.encode()).encode() for part in parts))


def is_changed(target: str) -> bool:
    """Whether the code of `source_digest` is no longer what this process first saw.

    Each file is looked at once, when it has been imported: what becomes of it later is of no consequence here.
    """
    return False in {is_as_read(file) for file in modules_of(target).values()}


def defaults_of(target: str) -> dict[str, Any]:
    """The defaults of what a config's `_target_` calls, by name: of its signature or its fields, what is plain data."""
    module, _, name = target.rpartition(".")
    found = find_definition(module, name)[1] if module else None
    if isinstance(found, ast.ClassDef):
        start = next(
            (node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None
        )
        if start is None:  # a dataclass
            fields = (node for node in found.body if isinstance(node, ast.AnnAssign))
            return literals((ast.unparse(field.target), field.value) for field in fields)
        found = start
    if not isinstance(found, ast.FunctionDef):
        return {}
    given = found.args
    last = reversed([*given.posonlyargs, *given.args])
    pairs = [*zip(last, reversed(given.defaults), strict=False), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return literals((argument.arg, default) for argument, default in pairs)


def literals(named: Iterable[tuple[str, ast.expr | None]]) -> dict[str, Any]:
    """The values that are written out, tuples as the lists of a config."""
    found: dict[str, Any] = {}
    for name, node in named:
        try:
            value = ast.literal_eval(node) if node else None
        except ValueError:
            continue
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


@cache
def modules_of(target: str) -> dict[str, Path]:
    """The modules of `source_digest` and their files."""
    first = target.rpartition(".")[0]
    if find_file(first) is None:
        raise BadInput(f"{first}: _target_ names this module, which cannot be found; is its folder on PYTHONPATH?")
    found: dict[str, Path] = {}  # `harness` itself has no code, but the version of the whole
    pending = [first, "harness.api", *(f"harness.rules.{file.stem}" for file in RULES.glob("*.py"))]
    while pending:
        module = pending.pop()
        file = find_file(module)
        if file is not None and module not in found and module != "harness":
            found[module] = file
            package, _, _ = module.rpartition(".")
            pending += [package, *(name for name, _ in imports(module, file) if is_own(name, module))]
    return found


def text(module: str, file: Path) -> str:
    """What a module says: its code, and the names it imports; of a compiled one, its digest."""
    if file.suffix != ".py":
        return digest(source(file))
    told = sorted({told for _, told in imports(module, file)} - {""})
    return "\n".join([*told, *(line for line in code(file) if line)])


def imports(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """The modules that one may import, and what of that counts: names, and of what is installed where they are from."""
    if file.suffix != ".py":
        return
    for node in nodes(file):
        if isinstance(node, ast.Import):
            for alias in node.names:
                called = f"as {alias.asname}" if alias.asname else ""
                yield alias.name, called if is_own(alias.name, module) else f"import {ast.unparse(alias)}"
        elif isinstance(node, ast.ImportFrom):
            base = origin(node, module, file)
            yield base, ""
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if not is_own(base, module):
                    yield name, f"from {base} import {ast.unparse(alias)}"
                elif find_file(name):
                    yield name, f"as {alias.asname}" if alias.asname else ""
                else:
                    yield name, ast.unparse(alias)


def origin(node: ast.ImportFrom, module: str, file: Path) -> str:
    """The module that a `from ... import` in `module` names."""
    here = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    parent = here[: len(here) + 1 - node.level] if node.level else []
    return ".".join([*parent, *([node.module] if node.module else [])])


def find_definition(module: str, name: str) -> tuple[Path | None, ast.stmt | None]:
    """Where a module's class, function or other name is defined: (file, statement), behind imports too; None if not."""
    file = find_file(module)
    if file is None or file.suffix != ".py":
        return None, None
    for node in nodes(file)[0].body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name == name:
                return file, node
            case ast.Assign(targets=[ast.Name(id=assigned)]) if assigned == name:
                return file, node
            case ast.ImportFrom():
                for alias in node.names:
                    if name == (alias.asname or alias.name) and origin(node, module, file) != module:
                        return find_definition(origin(node, module, file), alias.name)
    return None, None


def definition(module: str, name: str) -> str:
    """The text of what a module calls `name`, which tells two classes in one module apart."""
    file, node = find_definition(module, name)
    if file is None or node is None:
        return name
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    return "\n".join(line for line in code(file)[first - 1 : node.end_lineno] if line)


@cache
def code(file: Path) -> list[str]:
    """The lines of a Python file without imports, comments and docstrings, blank where nothing is left.

    Positions come from the parser, the text from the file: so it is the same for every version of Python.
    """
    data = source(file)
    lines = decode(data).split("\n")
    for token in tokenize.tokenize(io.BytesIO(data).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    inside: set[int] = set()  # of strings, where a blank line is one
    for node in nodes(file):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno:
            inside.update(range(node.lineno, node.end_lineno))
    for unread in dropped(file):
        first, last = unread.lineno - 1, (unread.end_lineno or unread.lineno) - 1
        rest = lines[first].encode()[: unread.col_offset] + lines[last].encode()[unread.end_col_offset :]
        inside.difference_update(range(first, last + 1))
        lines[first : last + 1] = [rest.decode().rstrip(" ;"), *[""] * (last - first)]
    return [f"{line}\n" if row in inside else line.rstrip() for row, line in enumerate(lines)]


def dropped(file: Path) -> list[ast.stmt]:
    """The imports and docstrings of a Python file, the last one first."""
    found: list[ast.stmt] = []
    for node in nodes(file):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str())) as docstring:
                    found.append(docstring)
    return sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True)


@cache
def nodes(file: Path) -> list[Any]:
    """The syntax tree of a Python file, its root first. Raises BadInput where it has none."""
    try:
        return list(ast.walk(ast.parse(decode(source(file)))))
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"{file}: no Python ({' '.join(str(error).split())}); mend it") from error


def decode(data: bytes) -> str:
    """The text of a Python file, in the encoding that it says, with plain line ends."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return io.TextIOWrapper(io.BytesIO(data), encoding, newline=None).read()


@cache
def source(file: Path) -> bytes:
    """A file as this process first saw it."""
    return file.read_bytes()


@cache
def is_as_read(file: Path) -> bool:
    """Whether a file still is what `source` gave, at the first time this is asked."""
    return file.is_file() and file.read_bytes() == source(file)


def is_own(module: str, importer: str) -> bool:
    """Whether a module is of the importer's package, or not installed: its text counts, not its version."""
    top = module.partition(".")[0]
    return top == importer.partition(".")[0] or not is_installed(top)


@cache
def is_installed(top: str) -> bool:
    """Whether a top-level package comes with Python or from a package index."""
    if top in sys.stdlib_module_names:
        return True
    places = [Path(place) for place in places_of(top)]
    library = Path(sysconfig.get_path("stdlib"))
    return not places or any({*INSTALLED} & {*place.parts} or place.is_relative_to(library) for place in places)


def places_of(top: str) -> list[str]:
    """Where a top-level package or module lies, found without importing it; nothing where there is none."""
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ValueError, ModuleNotFoundError):  # imported by hand; refused by whoever finds modules
        return []
    if spec is None:
        return []
    return list(spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else []))


def find_file(module: str) -> Path | None:
    """The file of a module or of a package's `__init__`; None where there is none."""
    top, *rest = module.split(".")
    places = [Path(place) for place in places_of(top)]
    if not rest and places and places[0].is_file():
        return places[0]
    paths = [Path(place, *rest) for place in places]
    endings = (".py", *EXTENSION_SUFFIXES)
    files = [file for path in paths for file in (path / "__init__.py", *(Path(f"{path}{end}") for end in endings))]
    return next((file for file in files if file.is_file()), None)
