"""From a choice of the command line to what it stands for."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from harness.api import BadInput

DESCRIPTIVE = ("name", "published", "archives")  # keys that tell of a method or dataset and are no arguments of it
PLAIN = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", NoneType: "null"}


def build(config: DictConfig, group: str = "", **arguments: Any) -> Any:
    """What a choice of a config group stands for: its `_target_`, called with the keys that are arguments.

    group: how the command line begins the names of its keys. Raises BadInput for a key that must be given and is not,
    for one that is no argument, and for a value of another kind than the argument's type hint says.
    """
    settings = without(config, DESCRIPTIVE)
    try:
        with unwrapped():
            given: Any = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
            check_arguments(get_object(config._target_), {**given, **arguments}, group)
            return instantiate(settings, **arguments, _convert_="all")
    except MissingMandatoryValue as error:
        raise BadInput(f"{group}{error.full_key}: not given; say {group}{error.full_key}=...") from error


def check_arguments(target: Callable[..., Any], given: Mapping[str, Any], group: str) -> None:
    """Raise BadInput for arguments that a class or function does not take, or that are not what its hints say.

    given: by name, plain data. Keys that Hydra reads itself, as `_target_`, are passed over.
    """
    taken = inspect.signature(target).parameters
    if any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        return
    if missing := [name for name, each in taken.items() if each.default is each.empty and name not in given]:
        raise BadInput(f"{group}{missing[0]}: not given, and {target.__qualname__} wants it; add it to the YAML file")
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key, value in given.items():
        if key.startswith("_"):
            continue
        if key not in taken:
            near = get_close_matches(key, taken, 1)
            remedy = f"did you mean {group}{near[0]}?" if near else f"it takes {', '.join(taken) or 'none'}"
            raise BadInput(f"{group}{key}: no argument of {target.__module__}.{target.__qualname__}; {remedy}")
        if not fits(value, hints.get(key, Any)):
            default = taken[key].default
            example = f", as in {group}{key}={typed(default)}" if isinstance(default, str | int | float | tuple) else ""
            raise BadInput(f"{group}{key}={typed(value)}: wanted {words(hints[key])}{example}")


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data is of the kind that a type hint says; of a hint that says more the callee judges itself."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (int, float, bool, NoneType):
        return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if kind is str:
        return isinstance(value, str | int | float)  # a folder may be called 2017
    if kind in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(each, parts[1]) for each in value.values() if parts)
    if kind is tuple and Ellipsis not in parts:
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if kind in (list, tuple, Sequence, Iterable, Collection):
        return isinstance(value, list | tuple) and all(fits(each, parts[0]) for each in value if parts)
    return True


def words(hint: Any) -> str:
    """A type hint as people say it."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(words, parts))
    if kind is tuple and Ellipsis not in parts:
        return f"a list of {len(parts)}: [{', '.join(map(words, parts))}]"
    if kind in (list, tuple, Sequence, Iterable, Collection):
        return f"a list, each {words(parts[0])}" if parts else "a list"
    return PLAIN.get(kind, "keys with values")


def typed(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


@contextmanager
def unwrapped() -> Iterator[None]:
    """A constructor's BadInput, of which Hydra makes an InstantiationException, is raised as it was."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, BadInput):
            raise error.__cause__ from None
        raise


def without(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """A config but for some of its keys."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in keys])
