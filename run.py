"""The one door: `uv run run.py`, then any `key=value` of conf/."""

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput
from harness.run.build import unwrapped
from harness.run.task_keys import with_typed_keys

WEIGHTS = Path(__file__).parent / "methods" / "weights"

OmegaConf.register_new_resolver("size_of", lambda weights: "paper" if weights == "official" else "tiny")
OmegaConf.register_new_resolver("seed_of", lambda weights, seed: seed if weights == "random" else 0)
OmegaConf.register_new_resolver(
    "weights_of", lambda weights, method: str(WEIGHTS / f"{method}.safetensors") if weights == "tiny" else weights
)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Do the task that conf/task names."""
    try:
        with unwrapped():
            with_typed_keys(instantiate(config.task))()
    except BadInput as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
