"""The main job: play every sample that has no record yet."""

import logging
import math
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Method
from harness.data.sequence import Sequence, plain
from harness.rules.clock import Clock, WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import InvalidPrediction
from harness.run import records
from harness.run.build import build
from harness.run.contention import Stay, stay
from harness.run.identity import SELECTION, entry_of, player_of
from harness.run.progress import bar
from harness.run.provenance import device_used, machine
from harness.run.source import is_changed
from harness.run.workers import Died, in_children

log = logging.getLogger(__name__)

NOTES = "records.txt"
REFUSAL = "refusal.txt"
# numpy's, torch's and OpenCV's errors have no class in common; the last is what torch says without a GPU
WANT_OF_MEMORY = ("MemoryError", "can't allocate memory")


class Sample(NamedTuple):
    """A sequence, and the key of the record that one of its scribbles leaves."""

    sequence: Sequence
    key: records.Key


def evaluate(
    method: DictConfig,
    dataset: DictConfig,
    protocol: DictConfig,
    clock: DictConfig,
    shard: str,
    results: str,
    recompute: bool,
    isolate: bool = False,
    timeout: float | None = None,
    memory: float | None = None,
) -> None:
    """Play the samples of `dataset` that fall into `shard`, and note their records in the job's output folder.

    method: stays a config until the first sample that is missing, so that a cached run never imports torch.
    shard: "i/n" plays every n-th sample, from the i-th (0-based).
    recompute: play also what has a complete record.
    isolate, timeout, memory: as in `play_missing`.
    A sample whose method fails is recorded as failed and the run goes on. What cannot be played at all is refused: the
    reason, one line, is noted, so that a sweep's other jobs go on and its end tells.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        given = HydraConfig.get().overrides.task
        what = (method, dataset, protocol, clock, shard, Path(results, "runs"), recompute, given)
        for path in play_missing(*what, isolate=isolate, timeout=timeout, memory=memory):
            with (folder / NOTES).open("a") as file:
                file.write(f"{path}\n")
    except BadInput as error:
        (folder / REFUSAL).write_text(f"{error}\n")


def noted(config: DictConfig) -> tuple[list[Path], list[str]]:
    """What the jobs of a sweep noted, for a callback at its end: paths of records, and refusals, each once.

    config: the sweep's. Logging works again afterwards: Hydra silences every logger once the jobs are done.
    """
    configure_log(config.hydra.job_logging)
    jobs = Path(config.hydra.sweep.dir)
    lines = [line for file in sorted(jobs.glob(f"*/{NOTES}")) for line in file.read_text().splitlines()]
    refusals = {file.read_text().strip() for file in jobs.glob(f"*/{REFUSAL}")}
    return [Path(line) for line in dict.fromkeys(lines)], sorted(refusals)


def play_missing(
    method: DictConfig,
    dataset: DictConfig,
    protocol: DictConfig,
    clock: DictConfig,
    shard: str,
    runs: Path,
    recompute: bool,
    given: Iterable[str] = (),
    *,
    isolate: bool = False,
    timeout: float | None = None,
    memory: float | None = None,
) -> Iterator[Path]:
    """The record of each sample, played if it has none. Raises BadInput before any method runs.

    given: the overrides that made these configs, "protocol.max_time=null", ...
    isolate: play in a child process; one that dies costs no more than the sample it was at.
    timeout: seconds a child may take for a sample, its first one with the import of the method; None for no limit.
    memory: GiB of data a child may hold in main memory; None for no limit.
    """
    if "name" not in method:
        raise BadInput(f"{method._target_}: its YAML file has no `name`; add one")
    plain(str(method.name), f"{method._target_}: method name")
    for name, limit, unit in (("timeout", timeout, "seconds"), ("memory", memory, "GiB")):
        if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
            raise BadInput(f"{name}={limit}: wanted a number of {unit} above 0, or null")
        if limit is not None and not isolate:
            raise BadInput(f"{name}={limit}: only a process of its own can be held to it; add isolate=true")
    rules: Protocol = build(protocol, name=protocol.name)
    watch: Clock = build(clock, method=method.name)
    sequences = sequences_of(OmegaConf.to_yaml(dataset, resolve=True))
    chosen = [(sequence, index) for sequence in sequences for index in sorted(sequence.scribbles) or [1]]
    for sequence in sequences:
        if rules.first_frame is None and not sequence.scribbles:
            raise BadInput(f"{sequence.name}: no scribbles, which protocol={rules.name} starts from; leave it out")
        if rules.scored != "all" and sequence.num_frames < 3:
            raise BadInput(f"{sequence.name}: {sequence.num_frames} frames, of which protocol={rules.name} scores none")
    entry = entry_of(method, dataset, protocol, clock)
    samples = [Sample(each, records.Key(sample_of(each, index), entry)) for each, index in chosen[parse_shard(shard)]]

    missing = []
    for sample in samples:
        path = sample.key.path(runs)
        if recompute or not path.exists():
            missing.append(sample)
        else:
            yield path
    detached = DictConfig(OmegaConf.to_container(method, resolve=True))  # a child has no resolvers
    provenance = {"changes": changes(given), "samples": len(chosen)}
    play = partial(play_samples, detached, rules, watch, runs, provenance, recompute)
    played = in_children(play, missing, timeout or math.inf, memory) if isolate else play(missing)
    for sample in bar(missing, method.name):
        end = next(played)
        yield record(sample, runs, provenance, [], status_of(end), str(end)) if isinstance(end, Died) else end
    recorded = len(samples) - len(missing)
    log.info("%s on %s: %d samples played, %d recorded before", method.name, dataset.name, len(missing), recorded)


def play_samples(
    method: DictConfig,
    protocol: Protocol,
    clock: Clock,
    runs: Path,
    provenance: dict[str, Any],
    replace: bool,
    samples: list[Sample],
) -> Iterator[Path]:
    """Play samples one after the other: yields their records below `runs`."""
    player = cache(partial(build_method, method, protocol))
    for sample in samples:
        sequence = sample.sequence
        clip = Clip(sequence.name, sequence.read_frames(), sequence.num_objects)
        records.write_thumbnails(runs, sequence.manifest, clip.frames)
        rows, status, error, shared = play_sample(player, clip, sample, protocol, clock)
        verify(method, sample)
        if status != "complete":
            player.cache_clear()  # who failed starts afresh
        yield record(sample, runs, provenance | {"shared": shared}, rows, status, error, replace)


def play_sample(
    player: Callable[[], Method], clip: Clip, sample: Sample, protocol: Protocol, clock: Clock
) -> tuple[list[dict[str, Any]], str, str, bool]:
    """One sample's rows, as far as it went, its status, the traceback if the method failed, and whether its time was
    taken beside another job on the same device.
    """
    if protocol.engine == "official":
        from harness.rules.referee import play
    else:
        from harness.rules.session import play
    sequence = sample.sequence
    scribbles = sequence.scribbles.get(sample.key.sample["scribble_idx"], empty(sequence.name, sequence.num_frames))
    rows: list[dict[str, Any]] = []
    here = Stay()
    try:
        method = player()
        with stay(device_used()) if isinstance(clock, WallClock) else nullcontext(here) as here:
            for round in play(method, clip, sequence.read_annotations(), scribbles, protocol, clock):
                rows += records.rows_of(round, sample.key)
    except BadInput:
        raise
    except Exception as error:  # whatever a guest does, the house goes on; the record says what it did
        return rows, status_of(error), traceback.format_exc(), here.shared
    return rows, "complete", "", here.shared


def verify(method: DictConfig, sample: Sample) -> None:
    """Raise BadInput unless what played a sample is, by all that can be seen, what its key tells of.

    Asked when it has been played, as a method may read its files whenever it likes.
    """
    entry = sample.key.entry
    now = player_of(method)
    changed = [name for name, value in now.items() if value != entry[name]]
    if not changed and is_changed(method._target_):
        changed = ["source"]
    if changed:
        what = " and ".join({"method": "files", "weights": "weights", "source": "code"}[name] for name in changed)
        raise BadInput(
            f"{method.name}: its {what} changed under the run; {sample.sequence.name} is not kept, run again"
        )


def status_of(error: Exception) -> str:
    """The status of a sample that ended with `error`; see `records.Record`."""
    match error:
        case InvalidPrediction():
            return "invalid"
        case Died(code=None):
            return "timeout"
        case Died(code=code):
            return "oom" if code == -signal.SIGKILL else "crashed"
    told = f"{type(error).__name__}: {error}"
    return "oom" if any(words in told for words in WANT_OF_MEMORY) else "raised"


def record(
    sample: Sample,
    runs: Path,
    provenance: dict[str, Any],
    rows: list[dict[str, Any]],
    status: str,
    error: str,
    replace: bool = False,
) -> Path:
    """Write a sample's record; a failure is told at once."""
    if status != "complete":
        reason = error.splitlines()[-1]
        log.error("%s failed on %s (%s): %s", sample.key.entry["method"]["name"], sample.sequence.name, status, reason)
    told = about(sample.sequence, provenance)
    return records.write(runs, sample.key, rows, **told, status=status, error=error, replace=replace)


def sample_of(sequence: Sequence, index: int) -> dict[str, Any]:
    """What a record's key tells of a sample: which one it is, and its content."""
    told = {"sequence": sequence.name, "scribble_idx": index, "manifest": sequence.manifest}
    return told | ({"made_by": sequence.made_by} if sequence.made_by else {})


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


@lru_cache(maxsize=2)
def sequences_of(dataset: str) -> list[Sequence]:
    """The sequences a dataset's config (YAML) stands for, listed once for all jobs of a process."""
    sequences: list[Sequence] = build(DictConfig(OmegaConf.create(dataset)), "dataset.")
    return sequences


def build_method(config: DictConfig, protocol: Protocol) -> Method:
    """The method; BadInput if the protocol is none for it."""
    method: Method = build(config, "method.")
    if protocol.interaction == "masks" and not getattr(method, "takes_masks", False):
        raise BadInput(f"method={config.name} takes no masks, which protocol={protocol.name} gives; leave it out")
    return method


def changes(given: Iterable[str]) -> list[str]:
    """What overrides changed of the named dataset, protocol and clock: "protocol.max_time=null", ..."""
    last = dict(
        change.partition("=")[::2] for change in given if change.startswith(("dataset.", "protocol.", "clock."))
    )
    return sorted(f"{key}={value}" for key, value in last.items() if key.partition(".")[2] not in SELECTION)


def parse_shard(shard: str) -> slice:
    """ "i/n" as the slice [i::n]."""
    first, _, step = shard.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise BadInput(f"shard={shard}: wanted i/n with 0 <= i < n, as in shard=0/4")
    return slice(int(first), None, int(step))
