"""One robot user, many methods, one set of numbers: `evaluate` is for Python, `run.py` for the command line."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from harness.tasks.evaluate import evaluate  # brings pandas and Hydra, which a method need not wait for

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
