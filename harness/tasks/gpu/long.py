"""A long video: whether a frame costs the same at the end of it, and whether memory stays flat."""

import time
from itertools import product

from harness.tasks.gpu.part import GIB, Part, peak, scene, session

ABOUT = (
    "Long videos\n"
    "Two rounds with tiny weights on an embedded clip played to and fro, nothing kept of a frame that need not "
    "be (cache=none; of MiVOS the newest entries of the memory alone), without evaluation. Beside the shortest: "
    "seconds of a frame and memory, over those of the shortest clip. Memory is what tensors hold on the GPU at "
    "most, on a CPU what the process holds that no file backs, which the clip itself is a part of."
)
FLAT = 1.25  # how much more than for the shortest clip a frame may take, and memory on a GPU


def play(part: Part) -> None:
    """All methods with the shortest clip first."""
    settings = part.settings
    shortest: dict[str, tuple[float, float]] = {}
    longest = 0.0
    for frames, method in product(sorted(settings["lengths"]), part.methods):
        part.check(longest)
        began = time.monotonic()
        with part.attempt(f"{method}, {frames} frames"):
            played = scene(frames, settings["size"], settings["objects"], 2, settings["period"])
            player = part.build(
                method, "weights=tiny", *settings["overrides"].get("all", ()), *settings["overrides"].get(method, ())
            )
            with peak(part.device) as memory:
                seconds = [each for each, _ in session(player, played, 2)]
            each, most = sum(seconds) / frames / len(seconds), memory.bytes / GIB
            first = shortest.setdefault(method, (each, most))
            beside = {"beside the shortest: seconds": each / first[0], "memory": most / first[1]}
            told = {"method": method, "frames": frames, "objects": settings["objects"], "ms a frame": 1000 * each}
            part.report.line("seconds and memory by length", {**told, "memory [GiB]": most, **beside})
            if part.device != "cpu" and max(beside.values()) > FLAT:
                part.report.trouble(f"{method}: not flat, {frames} frames beside the shortest: {beside}")
        longest = max(longest, time.monotonic() - began)
