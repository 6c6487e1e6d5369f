"""Samples are played: those that have no record yet, one after the other, whatever a method does."""

import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Method, Scribbles
from harness.data.sequence import VideoSequence, plain
from harness.rules.clock import Clock, ModelledClock, WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import InvalidPrediction, first_frame
from harness.run import records
from harness.run.build import build
from harness.run.contention import Occupancy, occupy
from harness.run.guest import Interrupted, hosted, said, told
from harness.run.identity import SELECTION, entry_of, player_of
from harness.run.progress import bar, showing, tell
from harness.run.provenance import device_used, machine
from harness.run.source import is_changed
from harness.run.workers import Died, in_children

log = logging.getLogger(__name__)

ENDLESS = 10_000  # rounds of a sample
LONGEST = 2**16  # characters of an error that are kept, from its end
# numpy's, torch's and OpenCV's errors have no class in common; the second is what torch says without a GPU
WANT_OF_MEMORY = ("MemoryError", "can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
# What a method whose config has the key can do about a full GPU: (key, what it may be now, what to say instead, why)
REMEDIES = (
    ("cache", ("device",), "cpu", "keeps frames in main memory"),
    ("precision", ("float32", "tf32"), "bfloat16", "takes half of the rest"),
)


class Sample(NamedTuple):
    """A sequence, and the key of the record that one of its scribbles leaves."""

    sequence: VideoSequence
    key: records.Key


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
    share = parse_shard(shard)
    rules: Protocol = build(protocol, "protocol.", name=protocol.name)
    watch: Clock = build(clock, "clock.", method=method.name)
    sequences = sequences_of(OmegaConf.to_yaml(dataset, resolve=True))
    chosen = [(sequence, index) for sequence in sequences for index in starts(sequence, rules)]
    for sequence, index in chosen:
        first_frame(scribbles_of(sequence, index), rules)
    for sequence in sequences:
        if isinstance(watch, ModelledClock) and rules.last_round == math.inf:
            price = watch.seconds(sequence.num_frames, sequence.num_objects)
            if rules.seconds(sequence.num_objects) > ENDLESS * price:
                raise BadInput(
                    f"protocol.rounds=null: {sequence.name} at {price:g} s a round has no end; "
                    f"set protocol.rounds, or clock.costs.{method.name} higher"
                )
        if rules.scored != "all" and sequence.num_frames < 3:
            raise BadInput(f"{sequence.name}: {sequence.num_frames} frames, of which protocol={rules.name} scores none")
    entry = entry_of(method, dataset, protocol, clock)
    samples = [Sample(each, records.Key(sample_of(each, index), entry)) for each, index in chosen[share]]

    missing = []
    for sample in samples:
        path = sample.key.path(runs)
        if recompute or not path.exists():
            missing.append(sample)
        else:
            yield path
    detached = DictConfig(OmegaConf.to_container(method, resolve=True))  # a child has no resolvers
    provenance = {"changes": changes(given), "samples": len(chosen)}
    if dataset.get("sequences") is None:  # what belongs together, for reports: folders of one name are told apart by it
        provenance["clips"] = {sequence.name: sequence.manifest for sequence in sequences}
    play = partial(play_samples, detached, rules, watch, runs, provenance, recompute)
    played = in_children(play, missing, timeout or math.inf, memory) if isolate else play(missing)
    for sample in bar(missing, method.name):
        end = next(played)
        yield record(sample, runs, provenance, [], status_of(end), str(end)) if isinstance(end, Died) else end
    recorded = len(samples) - len(missing)
    log.info("%s on %s: %d samples played, %d recorded before", method.name, dataset.name, len(missing), recorded)


def starts(sequence: VideoSequence, protocol: Protocol) -> list[int]:
    """The indices of the scribbles that a sequence is played from: one if the protocol shows none of them."""
    indices = sorted(sequence.scribbles) or [1]
    return indices[:1] if protocol.interaction == "masks" and protocol.first_frame is not None else indices


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
        frames = sequence.read_frames()
        frames.flags.writeable = False
        clip = Clip(sequence.name, frames, sequence.num_objects)
        records.write_thumbnails(runs, sequence.manifest, frames)
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
    truth = sample.sequence.read_annotations()
    scribbles = scribbles_of(sample.sequence, sample.key.sample["scribble_idx"])
    rows: list[dict[str, Any]] = []
    here = Occupancy()
    tell(f"{clip.name}, round 1 of {protocol.last_round}")
    try:
        with hosted() as guest:
            method = player()
            with occupy(device_used()) if isinstance(clock, WallClock) else nullcontext(here) as here:
                for round in play(method, clip, truth, scribbles, protocol, clock):
                    guest.end_copy()
                    rows += records.rows_of(round, sample.key)
                    following = min(round.interaction + 1, protocol.last_round)
                    tell(f"{clip.name}, round {following} of {protocol.last_round}")
    except (BadInput, Interrupted):
        raise
    except BaseException as error:  # whatever a guest does, the house goes on; the record says what it did
        why = told(error) + remedy(error, sample.key.entry["method"])
        return rows, status_of(error), why, here.shared
    return rows, "complete", "", here.shared


def scribbles_of(sequence: VideoSequence, index: int) -> Scribbles:
    """The scribbles a sample starts from; without a stroke where nobody drew any."""
    return sequence.scribbles.get(index, empty(sequence.name, sequence.num_frames))


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


def status_of(error: BaseException) -> str:
    """The status of a sample that ended with `error`; see `records.Record`."""
    match error:
        case InvalidPrediction():
            return "invalid"
        case Died(late=True):
            return "timeout"
        case Died(code=code):
            return "oom" if code == -signal.SIGKILL else "crashed"
    return "oom" if any(words in said(error) for words in WANT_OF_MEMORY) else "raised"


def remedy(error: BaseException, method: Mapping[str, Any]) -> str:
    """A last line on what makes a method need less of a GPU that `error` says is full; "" for other errors."""
    if status_of(error) != "oom" or not any(library in said(error) for library in ("CUDA", "CUBLAS", "CUDNN")):
        return ""
    known = [f"method.{key}={value} {why}" for key, now, value, why in REMEDIES if method.get(key) in now]
    return f"\nthe GPU's memory is full; {', '.join(known) or 'choose another device or a shorter clip'}"


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
    error = records.printable(error[-LONGEST:]).strip()
    if status != "complete":
        reason = error.splitlines()[-1]
        log.error("%s failed on %s (%s): %s", sample.key.entry["method"]["name"], sample.sequence.name, status, reason)
    told = about(sample.sequence, provenance)
    return records.write(runs, sample.key, rows, **told, status=status, error=error, replace=replace)


def sample_of(sequence: VideoSequence, index: int) -> dict[str, Any]:
    """What a record's key tells of a sample: which one it is, and its content."""
    told = {"sequence": sequence.name, "scribble_idx": index, "manifest": sequence.manifest}
    return told | ({"made_by": sequence.made_by} if sequence.made_by else {})


def about(sequence: VideoSequence, provenance: dict[str, Any]) -> dict[str, dict[str, Any]]:
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
def sequences_of(dataset: str) -> list[VideoSequence]:
    """The sequences a dataset's config (YAML) stands for, listed once for all jobs of a process."""
    config = DictConfig(OmegaConf.create(dataset))
    with showing(f"listing dataset={config.name}"):
        sequences: list[VideoSequence] = build(config, "dataset.")
    return sequences


def build_method(config: DictConfig, protocol: Protocol) -> Method:
    """The method; BadInput if the protocol is none for it."""
    return suited(partial(build, config, "method."), config.name, protocol)


def suited(make: Callable[[], Method], name: str, protocol: Protocol) -> Method:
    """What `make` makes; BadInput if the protocol is none for it."""
    method = make()
    if protocol.interaction == "masks" and not getattr(method, "takes_masks", False):
        raise BadInput(f"method={name} takes no masks, which protocol={protocol.name} gives; leave it out")
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
