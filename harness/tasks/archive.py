"""Scores to keep in git: a method's records without their pictures."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from harness.api import BadInput
from harness.data.sequence import plain
from harness.run import records
from harness.run.evaluate import play_missing

log = logging.getLogger(__name__)


def archive(
    variant: str,
    method: DictConfig,
    dataset: DictConfig,
    protocol: DictConfig,
    clock: DictConfig,
    shard: str,
    results: str,
) -> None:
    """Play what is missing of a method, and keep its scores in `<results>/ablations/<variant>.parquet`, for tables.

    Raises BadInput if a sample fails.
    """
    kept = Path(results, "ablations", f"{plain(variant, 'variant')}.parquet")
    played = list(play_missing(method, dataset, protocol, clock, shard, Path(results, "runs"), recompute=False))
    for path in played:
        if (status := records.read(path).status) != "complete":
            raise BadInput(f"{path}: {method.name} failed there ({status}); its record says why")
    records.archive(played, kept)
    log.info("written: %s", kept)
