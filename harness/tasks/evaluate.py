"""The main job as the command line has it, and the same for a notebook."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from harness import report
from harness.api import BadInput, Clip, Method
from harness.data import synthetic
from harness.data.sequence import VideoSequence
from harness.report.leaderboard import Board, board, table
from harness.rules.clock import Clock, WallClock
from harness.rules.protocol import Protocol
from harness.run import records
from harness.run.evaluate import Sample, about, play_missing, play_sample, sample_of, starts, suited
from harness.run.guest import job_done
from harness.run.identity import rules_of
from harness.run.records import Record

log = logging.getLogger(__name__)

NOTES = "records.txt"
REFUSAL = "refusal.txt"
SWEEP = "IVOSBENCH_SWEEP"  # the environment tells jobs, wherever they run, in whose name they note
DAVIS2020 = Protocol(
    "davis2020", robot={"kernel_size": 0.2, "max_kernel_radius": 16, "min_nb_nodes": 4, "nb_points": 1000}
)


@dataclass(frozen=True)
class Results:
    """What methods came to on the same samples.

    board: for `harness.report`: figures and tables are made from it.
    """

    board: Board

    @property
    def rounds(self) -> pd.DataFrame:
        """A row per method, sample, round, object and frame, with the columns of the official report."""
        return pd.concat({entry.label: entry.rounds for entry in self.board.entries}, names=["method"]).reset_index(0)

    @property
    def table(self) -> pd.DataFrame:
        """The leaderboard: a row per method, the best first; scores in 0..1, times in seconds."""
        return table(self.board)

    def curves(self, folder: str | Path) -> list[Path]:
        """Draw the score against time and rounds into `folder`: the paths of curves.png, .svg and .pdf."""
        from harness.report import figures  # Matplotlib is only waited for where something is drawn

        Path(folder).mkdir(parents=True, exist_ok=True)
        return figures.curves(self.board, Path(folder))


def evaluate(
    methods: Mapping[str, Callable[[], Method]],
    sequences: Sequence[VideoSequence] | None = None,
    protocol: Protocol = DAVIS2020,
    clock: Clock | None = None,
) -> Results:
    """Play methods on sequences, here and now, and score them; nothing is recorded.

    methods: by the name they get in the table, the class or what else makes one.
    sequences: what `load` of a module of `harness.data` gives; None for the embedded clips.
    clock: None for the wall clock.
    A method that raises is counted as failed on that sample. Raises BadInput for one that cannot play by `protocol`.

    >>> from harness import evaluate
    >>> from methods.grabcut.method import GrabCut
    >>> from harness.data.synthetic import load
    >>> results = evaluate({"grabcut": GrabCut}, load(clips=1, frames=4, size=(64, 96)))
    >>> results.table["method"].tolist()
    ['grabcut']
    """
    clips = synthetic.load() if sequences is None else sequences
    watch = clock or WallClock()
    found: list[Record] = []
    for name, make in methods.items():
        entry = {
            "method": {"name": name},
            "weights": {"name": "none", "digest": "", "training": "not told"},
            "dataset": {"name": "sequences"},
            "protocol": rules_of({**asdict(protocol), "_target_": "harness.rules.protocol.Protocol"}),
            "clock": {"name": "wall" if clock is None else type(clock).__name__},
            "source": "",
        }
        chosen = [(sequence, index) for sequence in clips for index in starts(sequence, protocol)]
        for sequence, index in chosen:
            sample = Sample(sequence, records.Key(sample_of(sequence, index), entry))
            frames = sequence.read_frames()
            frames.flags.writeable = False
            clip = Clip(sequence.name, frames, sequence.num_objects)
            rows, status, error, shared = play_sample(
                partial(suited, make, name, protocol), clip, sample, protocol, watch
            )
            if status != "complete":
                log.error("%s failed on %s (%s): %s", name, sequence.name, status, error.strip().splitlines()[-1])
            told = about(sequence, {"changes": [], "samples": len(chosen), "shared": shared})
            frame = pa.Table.from_pylist(rows, schema=records.SCHEMA).select(records.SCORES).to_pandas()
            path = Path(name, f"{sample.key.name}.parquet")
            found.append(Record(path, sample.key, status, error, told["clip"], told["provenance"], frame, 0))
    if not found:
        raise BadInput("evaluate: no methods, or no sequences; give one of each at least")
    return Results(board(found))


def job(
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

    The end of the sweep finds what its own jobs noted (`begin_sweep`, `noted`).

    method: stays a config until the first sample that is missing, so that a cached run never imports torch.
    shard: "i/n" plays every n-th sample, from the i-th (0-based).
    recompute: play also what has a complete record.
    isolate, timeout, memory: as in `play_missing`.
    A sample whose method fails is recorded as failed and the run goes on. What cannot be played at all is refused: the
    reason, one line, is noted, so that a sweep's other jobs go on and its end tells. On a disk that takes no record the
    run ends: raises records.Unwritable.
    """
    runs = Path(results, "runs").absolute()  # a guest may go to another folder
    try:
        given = HydraConfig.get().overrides.task
        what = (method, dataset, protocol, clock, shard, runs, recompute, given)
        for path in play_missing(*what, isolate=isolate, timeout=timeout, memory=memory):
            note(NOTES, str(path))
    except records.Unwritable:
        raise
    except BadInput as error:
        note(REFUSAL, str(error))
    finally:
        job_done()


def begin_sweep() -> None:
    """For a callback at the start of a sweep: its jobs' notes get a name that no other sweep's have."""
    os.environ[SWEEP] = uuid4().hex


def note(name: str, line: str) -> None:
    """Add a line to what this job leaves for the end of its sweep."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with records.writable(folder), (folder / of_sweep(name)).open("a") as file:
        file.write(f"{line}\n")


def of_sweep(name: str) -> str:
    """What a note of this sweep is called."""
    return f"{os.environ.get(SWEEP, '')}-{name}"


def noted(config: DictConfig) -> tuple[list[Path], list[str]]:
    """What the jobs of a sweep noted, for a callback at its end: paths of records, and refusals, each once.

    config: the sweep's. Logging works again afterwards: Hydra silences every logger once the jobs are done.
    """
    configure_log(config.hydra.job_logging)
    jobs = Path(config.hydra.sweep.dir)
    paths, refusals = (
        [line for file in sorted(jobs.rglob(of_sweep(name))) for line in file.read_text().splitlines()]
        for name in (NOTES, REFUSAL)
    )
    return [Path(line) for line in dict.fromkeys(paths)], sorted(set(refusals))


class Leaderboard(Callback):
    """Ends a sweep with the leaderboards that its records belong to. A refusal or a failed sample makes it exit 1."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        begin_sweep()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        paths, troubles = noted(config)
        records.clear_stale(Path(config.results, "runs"))
        try:
            troubles += report.after(paths, Path(config.results), Path(config.reports)) if paths else []
        except BadInput as error:
            sys.exit(str(error))
        except Exception:  # Hydra would make a warning of it, and exit 0
            log.exception("the report failed; the records are safe, try `uv run run.py task=report`")
            sys.exit(1)
        if troubles:
            sys.exit("\n".join(troubles))
