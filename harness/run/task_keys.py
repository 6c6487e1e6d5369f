"""The keys of a task, as the command line has them and as its function wants them."""

from collections.abc import Sequence
from functools import partial
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from harness.api import BadInput

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's; Hydra knows two


def with_typed_keys(task: "partial[Any]") -> "partial[Any]":
    """A task, its keys read by the type hints of its function. Raises BadInput for a value that is none of them."""
    hints = get_type_hints(task.func)
    keys = {key: as_hinted(key, value, hints.get(key, Any)) for key, value in task.keywords.items()}
    return partial(task.func, *task.args, **keys)


def as_hinted(key: str, value: Any, hint: Any) -> Any:
    """The value of a key as a type hint wants it: true or false, a number, a list, null; others stay as they are."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and (type(None) in kinds or hint is Any):
        return None
    if bool in kinds:
        return boolean(key, value)
    if {int, float} & {*kinds}:
        whole = float not in kinds
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            null = ", or null" if type(None) in kinds else ""
            raise BadInput(f"{key}={value}: wanted a {'whole ' if whole else ''}number{null}")
    if isinstance(value, str) and str not in kinds and {get_origin(kind) for kind in kinds} & {list, Sequence}:
        return [value]
    return value


def boolean(key: str, value: Any) -> bool:
    """The value of a key that is true or false, in any word that YAML has for it."""
    told = value if isinstance(value, bool) else WORDS.get(str(value).lower())
    if told is None:
        raise BadInput(f"{key}={value}: wanted true or false")
    return told
