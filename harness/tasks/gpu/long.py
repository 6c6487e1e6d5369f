"""A long video: whether a frame costs the same at the end of it, and whether memory stays flat."""

import time
from itertools import product

from harness.tasks.gpu.part import GIB, Part, peak, scene, session

ABOUT = (
    "Long videos\n"
    "Two rounds with tiny weights on an embedded clip played to and fro, nothing kept of a frame that need not "
    "be (cache=none; of MiVOS the newest entries of the memory alone), without evaluation. As slow, more memory: "
    "beside the shortest clip. Memory is what tensors hold on the GPU at most, on a CPU what the process holds "
    "that no file backs, which the clip itself is a part of."
)
SLOWER = 1.25  # times as long as in the shortest clip a frame may take
LEFT = 2.5  # bytes a pixel of a frame may leave on a GPU: its label, once by itself and once among all


def play(part: Part) -> None:
    """All methods with the shortest clip first."""
    settings = part.settings
    height, width = settings["size"]
    overrides = settings["overrides"]
    shortest: dict[str, tuple[int, float, int]] = {}
    took: dict[str, float] = {}  # seconds for a frame, by method, the making of the clip in them
    for frames, method in product(sorted(settings["lengths"]), part.methods):
        part.check(took.get(method, 0) * frames)
        began = time.monotonic()
        with part.attempt(f"{method}, {frames} frames"):
            played = scene(frames, (height, width), settings["objects"], 2, settings["period"])
            player = part.build(method, "weights=tiny", *overrides.get("all", ()), *overrides.get(method, ()))
            with peak(part.device) as memory:
                seconds = sum(each for each, _ in session(player, played, 2)) / 2 / frames
            first = shortest.setdefault(method, (frames, seconds, memory.bytes))
            slower, more = seconds / first[1], (memory.bytes - first[2]) / max(1, frames - first[0])
            told = {"method": method, "frames": frames, "ms a frame": 1000 * seconds, "times as slow": slower}
            told |= {"memory [GiB]": memory.bytes / GIB, "more memory [kB a frame]": more / 1000}
            part.report.line(f"clips of {settings['objects']} objects, {width}×{height}", told)
            if part.device != "cpu" and (slower > SLOWER or more > LEFT * height * width):
                part.report.trouble(f"{method}, {frames} frames: not flat beside {first[0]} frames")
        took[method] = (time.monotonic() - began) / frames
