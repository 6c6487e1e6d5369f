"""The choices a method offers."""

from typing import Any, get_args

from harness.api import BadInput


def one_of(allowed: Any, **given: object) -> None:
    """Raise BadInput naming the first argument whose value is none of the Literal `allowed`."""
    for name, value in given.items():
        if value not in get_args(allowed):
            raise BadInput(f"{name}={value}: choose one of {', '.join(get_args(allowed))}")
