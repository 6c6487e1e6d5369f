"""The command line: `uv run run.py`, then any `key=value` of conf/."""

import shlex
import sys
from pathlib import Path

try:
    import hydra
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    from harness.api import BadInput
    from harness.run import command_line
    from harness.run.build import unwrapped
    from harness.run.guest import end_with
    from harness.run.task_keys import with_typed_keys
except ModuleNotFoundError as error:
    sys.exit(f"{error.name}: not installed; `pip install uv`, then `uv run {shlex.join(sys.argv)}` brings all it needs")

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


def checked() -> None:
    """What was typed is checked before anything is done, and what fails for a reason one can mend is told in a line."""
    with command_line.one_line():
        command_line.check(sys.argv[1:])
        main()


if __name__ == "__main__":
    end_with(checked)
