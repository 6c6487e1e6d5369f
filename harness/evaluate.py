"""The main job: play every sample that has no record yet."""

import logging
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from harness import records
from harness.api import BadInput, Clip, Method
from harness.datasets import Sequence
from harness.progress import bar
from harness.protocol import Clock, Protocol
from harness.provenance import machine, source_digest, weights_of
from harness.scribbles import empty

log = logging.getLogger(__name__)

DESCRIPTIVE = ("name", "official", "archives")  # keys that tell of a method or dataset and are no arguments of it
SELECTION = ("root", "sequences", "without_scribbles", "archives")  # where a dataset lies and what is played of it
NOTES = "records.txt"
REFUSAL = "refusal.txt"


def evaluate(
    method: DictConfig,
    dataset: DictConfig,
    protocol: DictConfig,
    clock: DictConfig,
    shard: str,
    results: str,
    recompute: bool,
) -> None:
    """Play the samples of `dataset` that fall into `shard`, and note their records in the job's output folder.

    method: stays a config until the first sample that is missing, so that a cached run never imports torch.
    shard: "i/n" plays every n-th sample, from the i-th (0-based).
    recompute: play also what has a complete record.
    A sample whose method fails is recorded as failed and the run goes on. What cannot be played at all is refused: the
    reason, one line, is noted, so that a sweep's other jobs go on and its end tells.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        given = HydraConfig.get().overrides.task
        for path in play_missing(method, dataset, protocol, clock, shard, Path(results, "runs"), recompute, given):
            with (folder / NOTES).open("a") as file:
                file.write(f"{path}\n")
    except BadInput as error:
        (folder / REFUSAL).write_text(f"{error}\n")


def play_missing(
    method: DictConfig,
    dataset: DictConfig,
    protocol: DictConfig,
    clock: DictConfig,
    shard: str,
    runs: Path,
    recompute: bool,
    given: Iterable[str] = (),
) -> Iterator[Path]:
    """The record of each sample, played if it has none. Raises BadInput before any method runs.

    given: the overrides that made these configs, "protocol.max_time=null", ...
    """
    if "name" not in method:
        raise BadInput(f"{method._target_}: its YAML file has no `name`; add one")
    rules: Protocol = build(protocol, name=protocol.name)
    watch: Clock = build(clock, method=method.name)
    sequences: list[Sequence] = build(dataset)
    samples = [(sequence, index) for sequence in sequences for index in sorted(sequence.scribbles) or [1]]
    mine = samples[parse_shard(shard)]
    for sequence in sequences:
        if rules.first_frame is None and not sequence.scribbles:
            raise BadInput(f"{sequence.name}: no scribbles, which protocol={rules.name} starts from; leave it out")
        if rules.scored != "all" and sequence.num_frames < 3:
            raise BadInput(f"{sequence.name}: {sequence.num_frames} frames, of which protocol={rules.name} scores none")
    entry = entry_of(method, dataset, protocol, clock)
    provenance = {"changes": changes(given), "samples": len(samples)}

    player = cache(partial(build_method, method, rules))
    played = 0
    for sequence, index in bar(mine, method.name):
        key = records.Key({"sequence": sequence.name, "scribble_idx": index, "manifest": sequence.manifest}, entry)
        path = key.path(runs)
        if recompute or not path.exists():
            clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
            records.write_thumbnails(runs, sequence.manifest, clip.frames)
            rows, error = play_sample(player, clip, sequence, index, rules, watch, key)
            path = records.write(runs, key, rows, **about(sequence, provenance), error=error, replace=recompute)
            played += 1
            if error:
                player.cache_clear()  # who failed starts afresh
        yield path
    log.info("%s on %s: %d samples played, %d recorded before", method.name, dataset.name, played, len(mine) - played)


def play_sample(
    player: Callable[[], Method],
    clip: Clip,
    sequence: Sequence,
    index: int,
    protocol: Protocol,
    clock: Clock,
    key: records.Key,
) -> tuple[list[dict[str, Any]], str]:
    """The record's rows of one sample, as far as it went, and the traceback if the method failed."""
    if protocol.engine == "official":
        from harness.official import play
    else:
        from harness.session import play
    scribbles = sequence.scribbles.get(index, empty(sequence.name, sequence.num_frames))
    rows: list[dict[str, Any]] = []
    try:
        for round in play(player(), clip, sequence.read_annotations(), scribbles, protocol, clock):
            rows += records.rows_of(round, key)
    except BadInput:
        raise
    except Exception:  # whatever a guest does, the house goes on; the record says what it did
        error = traceback.format_exc()
        log.error("%s failed on %s: %s", key.entry["method"]["name"], sequence.name, error.splitlines()[-1])
        return rows, error
    return rows, ""


def about(sequence: Sequence, provenance: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a record says beside its key and rows: the clip, and where data and scores come from."""
    return {
        "clip": {"num_frames": sequence.num_frames, "num_objects": sequence.num_objects, "size": sequence.size},
        "provenance": {
            **provenance,
            "scribbles": f"{len(sequence.scribbles)} of {sequence.scribbles_expected}, drawn by {sequence.drawn_by}",
            **machine(),
        },
    }


def build(config: DictConfig, **arguments: Any) -> Any:
    """What a choice of a config group stands for: its `_target_`, called with the keys that are arguments."""
    try:
        return instantiate(without(config, DESCRIPTIVE), **arguments, _convert_="all")
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key}: not given; say {error.full_key}=...") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, BadInput):
            raise error.__cause__ from None
        raise


def build_method(config: DictConfig, protocol: Protocol) -> Method:
    """The method; BadInput if the protocol is none for it."""
    method: Method = build(config)
    if protocol.interaction == "masks" and not getattr(method, "takes_masks", False):
        raise BadInput(f"method={config.name} takes no masks, which protocol={protocol.name} gives; leave it out")
    return method


def changes(given: Iterable[str]) -> list[str]:
    """What overrides changed of the named dataset, protocol and clock: "protocol.max_time=null", ..."""
    kept = (change for change in given if change.startswith(("dataset.", "protocol.", "clock.")))
    return sorted(change for change in kept if change.split("=")[0].partition(".")[2] not in SELECTION)


def entry_of(method: DictConfig, dataset: DictConfig, protocol: DictConfig, clock: DictConfig) -> dict[str, Any]:
    """What all samples of one leaderboard row share, as plain data."""
    plain_clock: Any = OmegaConf.to_container(clock, resolve=True)
    if "costs" in plain_clock:
        plain_clock["costs"] = plain_clock["costs"].get(method.name)
    return {
        "method": OmegaConf.to_container(without(method, ("official",)), resolve=True),
        "weights": weights_of(method),
        "dataset": OmegaConf.to_container(without(dataset, SELECTION), resolve=True),
        "protocol": OmegaConf.to_container(protocol, resolve=True),
        "clock": plain_clock,
        "source": source_digest(method._target_),
    }


def without(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """A config but for some of its keys."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in keys])


def parse_shard(shard: str) -> slice:
    """ "i/n" as the slice [i::n]."""
    first, _, step = shard.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise BadInput(f"shard={shard}: wanted i/n with 0 <= i < n, as in shard=0/4")
    return slice(int(first), None, int(step))
