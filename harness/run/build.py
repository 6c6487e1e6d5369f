"""From a choice of the command line to what it stands for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from harness.api import BadInput

DESCRIPTIVE = ("name", "published", "archives")  # keys that tell of a method or dataset and are no arguments of it


def build(config: DictConfig, group: str = "", **arguments: Any) -> Any:
    """What a choice of a config group stands for: its `_target_`, called with the keys that are arguments.

    group: how the command line begins the names of its keys. Raises BadInput for a key that must be given and is not.
    """
    try:
        with unwrapped():
            return instantiate(without(config, DESCRIPTIVE), **arguments, _convert_="all")
    except MissingMandatoryValue as error:
        raise BadInput(f"{group}{error.full_key}: not given; say {group}{error.full_key}=...") from error


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
