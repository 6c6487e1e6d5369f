"""Speed and memory, measured side by side in one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from harness.report.tables import markdown, show
from harness.run.command_line import command_of, compose
from harness.run.provenance import machine


def given() -> list[str]:
    """What the command line says of a method: its overrides but those of the bench, and where configs are searched."""
    overrides = HydraConfig.get().overrides
    places = [each for each in overrides.hydra if each.startswith("hydra.searchpath")]
    return places + [each for each in overrides.task if not each.startswith(("task=", "bench", "method="))]


def choose(method: str, overrides: Sequence[str]) -> DictConfig:
    """A method's config, as the command line would have it."""
    config: DictConfig = compose([f"method={method}", *overrides]).method
    OmegaConf.resolve(config)
    return config


def keep(reports: str, name: str, about: str, tables: Mapping[str, pd.DataFrame], notes: Mapping[str, str]) -> Path:
    """Print tables, and write them to `<reports>/bench/<name>.md` with the command that makes them and the machine.

    about: first line the title, then what was measured. tables: by their captions. notes: what else to say, by name.
    """
    for caption, table in tables.items():
        show(caption, table)
    overrides = HydraConfig.get().overrides
    said = [
        each
        for each in (*overrides.hydra, *overrides.task)
        if not each.startswith(("hydra.mode", "results=", "reports="))
    ]
    title, _, text = about.partition("\n")
    written = [f"# {title}", text.strip(), f"`{command_of(said)}`"]
    for caption, table in tables.items():
        written += [f"{caption[0].upper()}{caption[1:]}:", markdown(table)]
    written.append("\n".join(f"- {key}: {value}" for key, value in {**notes, **machine()}.items()))
    path = Path(reports, "bench", f"{name}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(written) + "\n")
    return path
