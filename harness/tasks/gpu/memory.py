"""What of DAVIS fits on which card: measured, with a line through it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from harness.api import Method
from harness.tasks.gpu.part import GIB, Part, davis_val, peak, scene, session

ABOUT = (
    "Memory\n"
    "What a method's tensors hold on the GPU at most, in sessions with random weights; on a CPU, what the "
    "process holds that no file backs. Out of clips of two lengths with two counts of objects come what any "
    "session takes beside the weights, and what each object, each frame, and each object in each frame adds, at "
    "480×854: all of it grows with the pixels. A card of 11 GB is counted as 11·10⁹ bytes, a few percent less "
    "than it has, for fragments."
)
PLANES = "slopes and offsets"
MIB = 2**20
GB = 10**9


class Fit(NamedTuple):
    """Bytes at 480×854: at rest, of the weights; of any session; what each object, frame, object in a frame adds."""

    rest: float
    session: float
    object: float
    frame: float
    object_in_frame: float

    def needs(self, frames: int, objects: int, pixels: float = 1.0) -> float:
        """Bytes of a session. pixels: of a frame, in those of 480×854."""
        more = self.session + objects * self.object + frames * self.frame + objects * frames * self.object_in_frame
        return self.rest + pixels * more


def play(part: Part) -> None:
    """All methods with each cache, the one that needs most first."""
    settings = part.settings
    pixels = settings["size"][0] * settings["size"][1] / (480 * 854)
    for cache, method in product(settings["caches"], part.methods):
        part.check()
        with part.attempt(f"{method}, cache={cache}"):
            player = part.build(method, "weights=random", f"size={settings['network']}", f"method.cache={cache}")
            fit = measure(part, player, pixels)
            beside = beside_tensors(part.device)
            row = {
                "method": method,
                "cache": cache,
                **{f"{name} [MiB]": value / MIB for name, value in fit._asdict().items()},
            }
            part.report.line(PLANES, row | {"beside tensors [MiB]": beside / MIB})
            frames, objects = settings["check"]
            expected, found = fit.needs(frames, objects, pixels), most(part, player, frames, objects)
            told = {"method": method, "cache": cache, "frames": frames, "objects": objects}
            told |= {"expected [GiB]": expected / GIB, "found [GiB]": found / GIB, "off": expected / found - 1}
            part.report.line("does it hold for another clip", told)
            if part.device != "cpu" and abs(expected / found - 1) > settings["tolerance"]:
                part.report.trouble(f"{method}, cache={cache}: {expected / found - 1:+.0%} off at {frames} frames")
            if part.device != "cpu":
                fits = {f"{card} GB": fitting(fit, card * GB - beside) for card in settings["cards"]}
                part.report.line(
                    "sequences of DAVIS-2017 val that fit, of 30", {"method": method, "cache": cache, **fits}
                )


def measure(part: Part, player: Method, pixels: float) -> Fit:
    """The plane through four sessions."""
    points = list(product(part.settings["frames"], part.settings["objects"]))
    with peak(part.device) as rest:
        pass
    found = [most(part, player, frames, objects) for frames, objects in points]
    terms = [(1, objects, frames, objects * frames) for frames, objects in points]
    plane = np.linalg.solve(np.array(terms, float), (np.array(found) - rest.bytes) / pixels)
    return Fit(rest.bytes, *plane.tolist())


def most(part: Part, player: Method, frames: int, objects: int) -> int:
    """Bytes at most in a session; the one before is forgotten first."""
    part.check()
    rounds = part.settings["rounds"]
    played = scene(frames, part.settings["size"], objects, rounds)
    player.start(replace(played.clip, frames=played.clip.frames[:1]))
    with peak(part.device) as memory:
        for _ in session(player, played, rounds):
            pass
    return memory.bytes


def beside_tensors(device: str) -> float:
    """Bytes of the GPU in use that hold no tensor and could not: the driver's and the libraries'."""
    if device == "cpu":
        return 0.0
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return float(total - free - torch.cuda.memory_reserved(device))


def fitting(fit: Fit, room: float) -> str:
    """How many sequences need no more bytes than there is room for, and which do."""
    too_large = [each.name for each in davis_val() if fit.needs(each.frames, each.objects, each.pixels) > room]
    count = len(davis_val()) - len(too_large)
    return f"{count}, not {' '.join(too_large)}" if count > 0 and too_large else str(count)


def fits_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Fit, float]]:
    """(method, cache, fit, bytes beside tensors) out of the rows of a report."""
    return [
        (
            row["method"],
            row["cache"],
            Fit(*(MIB * row[f"{name} [MiB]"] for name in Fit._fields)),
            MIB * row["beside tensors [MiB]"],
        )
        for row in rows
    ]
