"""A long video: what memory a method holds while it plays, and whether its time grows with the length alone."""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from harness.api import BadInput, Clip
from harness.data.synthetic import load_clip
from harness.report.figures import COLOURS, STYLE
from harness.rules.clock import WallClock
from harness.rules.protocol import Protocol
from harness.rules.scribbles import empty
from harness.rules.session import on_frame, play
from harness.run.build import build
from harness.run.progress import bar
from harness.run.workers import Died, in_children
from harness.tasks.bench import choose, given, keep

log = logging.getLogger(__name__)

GIB = 2**30
STATUS = Path("/proc/self/status")
OFTEN = 0.1  # seconds between two looks at the memory
COPIES = 3 + 1 + 4  # bytes a pixel takes: frames, truth, and labels of the method, its answer, session and scorer


class Long(NamedTuple):
    """What is played: a clip of `period` frames to and fro, until there are `frames`. size: (H, W)."""

    method: dict[str, Any]
    frames: int
    period: int
    size: tuple[int, int]
    objects: int
    rounds: int


def long_video(
    reports: str,
    methods: Sequence[str],
    settings: Mapping[str, Sequence[str]],
    lengths: Sequence[int],
    period: int,
    size: tuple[int, int],
    objects: int,
    rounds: int,
) -> None:
    """Play clips of growing length; writes `<reports>/bench/long_video.md` and a plot of the longest one's memory.

    settings: overrides by method, and of "all"; the command line's win. The rest: see `Long`.
    Raises BadInput where the system does not tell of memory, and for a method that fails.
    """
    if not STATUS.exists():
        raise BadInput(f"{STATUS}: missing, so memory cannot be told; run this on Linux")
    said = given()
    configs = [choose(name, [*settings["all"], *settings.get(name, ()), *said]) for name in methods]
    scene = period, (size[0], size[1]), objects, rounds
    plain: list[Any] = [OmegaConf.to_container(config) for config in configs]
    items = [Long(config, length, *scene) for config in plain for length in sorted(lengths)]
    told = [one(item) for item in bar(items, "bench")]
    about = (
        f"Long videos\n{rounds} rounds on an embedded clip of {period} frames of {size[1]}x{size[0]} with {objects} "
        "objects, played to and fro. Memory is what a process holds at most that no file backs, of which frames, truth "
        f"and labels are {COPIES} bytes a pixel, and on a GPU what is allocated there. ![memory](long_video.png)"
    )
    settings_said = {name: " ".join(settings.get(name, ())) or "as it is" for name in ("all", *methods)}
    tables = {"seconds and memory": pd.DataFrame([row(item, each) for item, each in zip(items, told, strict=True)])}
    path = keep(reports, "long_video", about, tables, settings_said)
    longest = {item.method["name"]: each for item, each in zip(items, told, strict=True) if item.frames == max(lengths)}
    draw(longest, path.with_suffix(".png"))
    log.info("written: %s", path)


def one(item: Long) -> dict[str, Any]:
    """What `measure` tells of one item, measured in a process of its own."""
    (told,) = in_children(measure, [item], inf, None)
    if isinstance(told, Died):
        raise BadInput(f"method={item.method['name']} failed with {item.frames} frames: {told}")
    return told


def measure(items: Sequence[Long]) -> Iterator[dict[str, Any]]:
    """Play each item. Yields seconds (by round) and looks, [seconds since the start, GiB, GiB on the GPU]."""
    for method, num_frames, period, size, num_objects, rounds in items:
        sample = load_clip("val", 0, min(period, num_frames), size, num_objects, seed=0)
        there = range(sample.num_frames)
        order = np.resize([*there, *there[-2:0:-1]], num_frames)
        clip = Clip(sample.name, sample.read_frames()[order], num_objects)
        truth = sample.read_annotations()[order]
        first = sample.scribbles[1].annotated_frames[0]
        drawn = on_frame(list(sample.scribbles[1].frames[first]), first, empty(sample.name, num_frames))
        player = build(DictConfig(method), "method.")
        protocol = Protocol("bench", rounds=rounds, max_time=None)
        with looking() as looks:
            seconds = [round.seconds for round in play(player, clip, truth, drawn, protocol, WallClock())]
        yield {"seconds": seconds, "looks": looks}


@contextmanager
def looking() -> Iterator[list[tuple[float, float, float]]]:
    """Look at this process's memory when the block begins, again and again, and when it ends."""
    looks: list[tuple[float, float, float]] = []
    start, ended = time.monotonic(), threading.Event()

    def look() -> None:
        looks.append((time.monotonic() - start, *held()))

    def look_often() -> None:
        while not ended.wait(OFTEN):
            look()

    look()
    thread = threading.Thread(target=look_often)
    thread.start()
    try:
        yield looks
    finally:
        ended.set()
        thread.join()
        look()


def held() -> tuple[float, float]:
    """GiB this process holds: of main memory, what no file backs, and of the GPUs."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    torch: Any = sys.modules.get("torch")
    used = torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized()
    gpus = sum(torch.cuda.memory_allocated(n) for n in range(torch.cuda.device_count())) if used else 0
    return 1024 * int(line.split()[1]) / GIB, gpus / GIB


def row(item: Long, told: Mapping[str, Any]) -> dict[str, Any]:
    """An item as a row of the table."""
    per_frame = {f"round {n} [s/frame]": s / item.frames for n, s in enumerate(told["seconds"], 1)}
    _, main, gpu = np.max(told["looks"], axis=0)
    own = COPIES * item.frames * item.size[0] * item.size[1] / GIB
    gpus = {"GPU [GiB]": gpu} if gpu else {}
    return {
        "method": item.method["name"],
        "frames": item.frames,
        **per_frame,
        "memory [GiB]": main,
        "of it frames, truth, labels": own,
        **gpus,
    }


def draw(told: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Memory over the time of a session."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axis = figure.subplots()
        for name, each in told.items():
            seconds, main, gpu = np.array(each["looks"]).T
            axis.plot(seconds / seconds[-1], main + gpu, label=name, color=COLOURS.get(name))
        axis.set(xlabel="time, of the whole session", ylabel="memory [GiB]", ylim=(0, None))
        axis.legend(frameon=False)
        figure.savefig(path, dpi=150)
