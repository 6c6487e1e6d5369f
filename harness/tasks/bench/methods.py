"""Methods beside their authors' code: the same session played by both, round by round."""

import json
import logging
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip, Interaction, Method, Prediction
from harness.data.sequence import VideoSequence
from harness.data.synthetic import load_clip
from harness.rules.clock import Elapsed, WallClock
from harness.rules.metrics import Scorer
from harness.rules.protocol import Protocol
from harness.rules.robot import correct
from harness.rules.session import check, play
from harness.run import records
from harness.run.build import build
from harness.run.identity import entry_of
from harness.run.progress import bar
from harness.run.provenance import cpu_name, digest, versions
from harness.run.workers import CONTEXT, Answers, end_with_parent
from harness.tasks.bench import choose, given, keep
from harness.tasks.profile import Profiler

log = logging.getLogger(__name__)

PER = 10_000  # pixels
GIB = 2**30


class Scene(NamedTuple):
    """What is played; size: (H, W)."""

    frames: int
    size: tuple[int, int]
    objects: int
    rounds: int


def methods(
    reports: str,
    results: str,
    methods: Sequence[str],
    against: str | None,
    settings: Mapping[str, Sequence[str]],
    rounds: int,
    frames: int,
    size: tuple[int, int],
    objects: Sequence[int],
    repeats: int,
    name: str,
    remark: str | None,
) -> None:
    """Time a session of each method, for each count of objects, and write `<reports>/bench/<name>.md`.

    against: the opponent of method m is method m_<against>; None plays ours alone.
    settings: overrides by method, of ours alone, and of "all"; the command line's win.
    size: (H, W). repeats: sessions played; what is told of a round is the median of them.
    remark: what else the report says, as which weights the folder of the authors' files held.
    A session once measured is kept below `<results>/bench` and not measured again on the same machine.
    """
    said = given()
    pairs = []
    for method in methods:
        sides = [choose(method, [*settings["all"], *settings.get(method, ()), *said])]
        if against is not None:
            sides.append(choose(f"{method}_{against}", [*settings["all"], *said]))
        pairs.append(sides)
    scenes = [Scene(frames, (size[0], size[1]), count, rounds) for count in objects]
    races = [(sides, scene) for sides in pairs for scene in scenes]
    told = [raced(Path(results, "bench"), *each, repeats) for each in bar(races, "bench")]
    path = keep(reports, name, title(scenes[0], repeats), tables(told), notes(told, remark))
    log.info("written: %s", path)


def raced(folder: Path, sides: Sequence[DictConfig], scene: Scene, repeats: int) -> dict[str, Any]:
    """What `race` tells of a session, measured if it is not kept below `folder` yet."""
    nothing = OmegaConf.create({"name": "bench"})
    key = json.dumps(
        [[entry_of(side, *[nothing] * 3) for side in sides], scene, repeats, cpu_name(), versions(), environment()]
    )
    path = folder / f"{sides[0].name}-{digest(key.encode())}.json"
    if not path.exists():
        told = race(sides, scene, repeats)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(told, indent=1))
        temporary.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def environment() -> dict[str, str]:
    """What of the environment sets the number of threads."""
    return {name: os.environ[name] for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES") if name in os.environ}


def race(sides: Sequence[DictConfig], scene: Scene, repeats: int) -> dict[str, Any]:
    """Play `repeats` sessions of one clip with every side in a process of its own, ours first, and compare each round.

    Returns plain data: names, seconds (side × round, medians of the sessions), memory (GiB at most, by side), different
    (pixels per 10,000 that the others label unlike us, by round, the worst session), evaluation and records (seconds of
    a session), profiled (seconds of one more session of ours, with torch's profiler), modules (of them, by scope).
    """
    sample = load_clip("val", 0, scene.frames, scene.size, scene.objects, seed=0)
    clip = Clip(sample.name, sample.read_frames(), scene.objects)
    protocol = Protocol("bench", rounds=scene.rounds, max_time=None)
    truth = sample.read_annotations()
    Scorer(truth, scene.objects)(truth)  # they compile at their first call, which is no more counted than a warm-up
    correct(np.zeros_like(truth[0]), truth[0], scene.objects)
    laps: list[np.ndarray] = []
    different: list[np.ndarray] = []
    memory: list[list[float]] = []
    shares = []
    for repeat in range(repeats):
        with ExitStack() as stack:
            pair = Pair([stack.enter_context(playing(config)) for config in sides], first=repeat % 2)
            shares.append(session(pair, clip, sample, protocol))
            laps.append(np.array(pair.seconds))
            different.append(np.array(pair.different))
            memory.append([each.memory for each in pair.sides])
    watch = Profiler(WallClock())
    ours = play(build(sides[0], "method."), clip, truth, sample.scribbles[1], protocol, watch)
    total = sum(round.seconds for round in ours)
    evaluation, written = np.median(shares, axis=0)
    return {
        "names": [str(config.name) for config in sides],
        "objects": scene.objects,
        "frames": scene.frames,
        "seconds": np.median(laps, axis=0).T.tolist(),
        "memory": np.max(memory, axis=0).tolist(),
        "different": np.max(different, axis=0).tolist(),
        "evaluation": float(evaluation),
        "records": float(written),
        "profiled": total,
        "modules": watch.scopes()["seconds"].to_dict(),
        "weights": [entry_of(config, *[OmegaConf.create({"name": "bench"})] * 3)["weights"] for config in sides],
        "official": [
            {file: config.published[file]["from"] for file in config.get("official", {}).values()} for config in sides
        ],
    }


def session(pair: "Pair", clip: Clip, sample: VideoSequence, protocol: Protocol) -> tuple[float, float]:
    """Play one. Returns the seconds that evaluation and robot took, and those of its record."""
    watch = Evaluations()
    key = records.Key(
        {"sequence": sample.name, "scribble_idx": 1, "manifest": sample.manifest}, {"method": {"name": "bench"}}
    )
    rows: list[dict[str, Any]] = []
    written = 0.0
    for round in play(pair, clip, sample.read_annotations(), sample.scribbles[1], protocol, watch):
        start = time.perf_counter()
        rows += records.rows_of(round, key)
        written += time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        records.write_thumbnails(Path(folder), sample.manifest, clip.frames)
        records.write(Path(folder), key, rows, clip={}, provenance={})
        written += time.perf_counter() - start
    return watch.seconds, written


class Evaluations(WallClock):
    """A clock that adds up what evaluations take; the method is timed where it plays."""

    seconds = 0.0

    @contextmanager
    def method(self, clip: Clip) -> Iterator[Elapsed]:
        yield Elapsed()

    @contextmanager
    def evaluation(self) -> Iterator[Elapsed]:
        with super().evaluation() as elapsed:
            yield elapsed
        self.seconds += elapsed.seconds


@dataclass
class Side:
    """A method in a process of its own. memory: GiB it has held at most."""

    name: str
    process: Any
    pipe: Any
    answers: Answers
    memory: float = 0.0

    def ask(self, what: str, argument: Any) -> tuple[Any, float]:
        """Call one of its functions. Returns its answer and the seconds it took. Raises BadInput if it fails."""
        self.pipe.send((what, argument))
        try:
            answer, seconds, self.memory = self.answers.next(self.process, float("inf"))
        except EOFError:
            raise BadInput(f"method={self.name} ended in {what}; what it said is above") from None
        return answer, seconds


@contextmanager
def playing(method: DictConfig) -> Iterator[Side]:
    """A method, built in a new process, which ends with the block."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=serve, args=(OmegaConf.to_container(method), theirs))
    process.start()
    theirs.close()
    try:
        yield Side(str(method.name), process, ours, Answers(ours))
    finally:
        process.kill()
        process.join()


def serve(method: dict[str, Any], pipe: Any) -> None:
    """The life of a side: builds the method, then answers calls with (answer, seconds, memory) until nobody asks."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        player = build(DictConfig(method), "method.")
        while True:
            what, argument = pipe.recv()
            with WallClock().method(argument) as elapsed:
                answer = getattr(player, what, lambda _: None)(argument)
            pipe.send((answer, elapsed.seconds, held() / GIB))
    except BadInput as refusal:
        pipe.send(refusal)
    except EOFError:
        return


def held() -> int:
    """Bytes this process has held at most: of the GPU if it uses one, else of main memory."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Pair(Method):
    """Sides that play as one method: each answers every round, one after the other; the first one's answer counts.

    seconds: round × side. different: by round, pixels per 10,000 that any other labels unlike the first.
    first: who begins; it changes from round to round.
    """

    sides: Sequence[Side]
    first: int
    seconds: list[list[float]] = field(default_factory=list)
    different: list[float] = field(default_factory=list)

    def warm_up(self, clip: Clip) -> None:
        """Of every side."""
        for each in self.sides:
            each.ask("warm_up", clip)

    def start(self, clip: Clip) -> None:
        """Of every side; its time is that of the first round's."""
        self.clip = clip
        self.began = [each.ask("start", clip)[1] for each in self.sides]

    def interact(self, interaction: Interaction) -> Prediction:
        """Of every side."""
        count = len(self.sides)
        order = [(n + self.first + len(self.seconds)) % count for n in range(count)]
        answers = {n: self.sides[n].ask("interact", interaction) for n in order}
        for answer, _ in answers.values():
            check(answer, self.clip)
        began = self.began if not self.seconds else [0.0] * count
        self.seconds.append([began[n] + answers[n][1] for n in range(count)])
        ours, *others = (answers[n][0] for n in range(count))
        self.different.append(PER * max((float((ours.masks != other.masks).mean()) for other in others), default=0.0))
        return ours


def title(scene: Scene, repeats: int) -> str:
    """What the report says of itself."""
    height, width = scene.size
    return (
        f"A session of each method\n{scene.rounds} rounds on an embedded clip of {scene.frames} frames of "
        f"{width}x{height}, medians of {repeats} session(s). Every side plays in a process of its own; they answer "
        "each round in turns, on the same strokes. The first round has the start of the sample in it, warm-up is "
        "outside. Memory is the most a side's process held, weights and libraries among it. Different: pixels of "
        "10,000 labelled otherwise; of a session, in its worst round."
    )


def tables(told: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Sessions, their rounds, what others label otherwise, and where ours spend their time."""
    both = [each for each in told if len(each["names"]) > 1]
    compared = {"different by round": pd.DataFrame([differences(each) for each in both])} if both else {}
    modules = pd.DataFrame([row for each in told for row in by_module(each)])
    return {
        "whole sessions": pd.DataFrame([summary(each) for each in told]),
        "seconds by round": pd.DataFrame([row for each in told for row in by_round(each)]),
        **compared,
        "our modules, percent of a session by objects": modules.groupby(["method", "module"], sort=False)
        .first()
        .reset_index(),
    }


def summary(told: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one session."""
    (name, *others), (ours, *theirs) = told["names"], [sum(seconds) for seconds in told["seconds"]]
    harness = told["evaluation"] + told["records"]
    row = {"method": name, "objects": told["objects"], "ours [s]": ours}
    if others:
        against = others[0].removeprefix(f"{name}_")
        row |= {f"{against} [s]": theirs[0], "ratio": theirs[0] / ours}
    row["ours [GiB]"] = told["memory"][0]
    if others:
        row |= {f"{against} [GiB]": told["memory"][1], "different": max(told["different"])}
    row["frames/s"] = told["frames"] * len(told["seconds"][0]) / ours
    row["evaluation and records [%]"] = 100 * harness / (harness + ours)
    return row


def by_round(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per side."""
    for name, seconds in zip(told["names"], told["seconds"], strict=True):
        yield {"method": name, "objects": told["objects"], **numbered(seconds)}


def differences(told: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels of 10,000 that the other side labels otherwise."""
    return {"method": told["names"][0], "objects": told["objects"], **numbered(told["different"])}


def numbered(values: Sequence[float]) -> dict[str, float]:
    """A value for each round, by its number."""
    return {str(number): value for number, value in enumerate(values, 1)}


def by_module(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per scope, those of its parts after it, and one for the rest."""
    outermost = sum(seconds for scope, seconds in told["modules"].items() if "/" not in scope)
    for scope, seconds in {**told["modules"], "the rest": told["profiled"] - outermost}.items():
        yield {"method": told["names"][0], "module": scope, str(told["objects"]): 100 * seconds / told["profiled"]}


def notes(told: Sequence[Mapping[str, Any]], remark: str | None) -> dict[str, str]:
    """Which weights, and of whom."""
    sides = {
        name: f"weights {weights['name']} ({weights['digest']}), {whose(weights, official)}"
        for each in told
        for name, weights, official in zip(each["names"], each["weights"], each["official"], strict=True)
    }
    threads = ", ".join(f"{k}={v}" for k, v in environment().items()) or "torch's default"
    return {**sides, "threads": threads, **({} if remark is None else {"remark": remark})}


def whose(weights: Mapping[str, str], official: Mapping[str, str]) -> str:
    """Whose training; of official weights the files, as a folder need not hold what their authors published."""
    files = "files named as those of " + ", ".join(f"{place} ({file})" for file, place in official.items())
    return files if weights["name"] == "official" else weights["training"]
