"""Outputs of our networks beside recorded outputs of the authors', within the limits of LIMITS, on any device.

`python -m tests.parity.compare --device cuda:0` compares all recordings that lie here and says how far each is off.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from harness.api import Method
from tests.parity.goldens import CARRIED, FULL
from tests.parity.replays import THINNED, atnet, find, ipnet, mivos, stm_interactive, stm_video

# By the start of a recording's file name.
NETWORKS: dict[str, ModuleType] = {
    "stm_interactive.": stm_interactive,
    "stm.": stm_video,
    "mivos_": mivos,
    "atnet.": atnet,
    "ipnet.": ipnet,
}
NO_OUTPUT = re.compile(r"in_|near_|note$|(weights_)?fingerprint|scribbles_\d+_\d+$")


class Limit(NamedTuple):
    """How far a value may be off: `near`, or `far` for a part `outside` of all values.

    relative: `near` in parts of the largest recorded value, where that is more.
    """

    near: float
    outside: float = 0.0
    far: float = 0.0
    relative: float = 0.0


EXACT = Limit(0.0)
LABELS = Limit(0.0, outside=5e-4, far=np.inf)
DAVIS_LABELS = Limit(0.0, outside=2e-3, far=np.inf)
PROBABILITIES = Limit(1e-4, outside=1e-3, far=1e-3)
# Rounding grows with the maps, whose largest values are 7 to 10 here. Of those, after four rounds, it is up to 1.3e-5
# (AVX512, one thread or two), 1.9e-5 (ATEN_CPU_CAPABILITY=default) and 2.2e-5 (ONEDNN_MAX_CPU_ISA=SSE41), and 3e-5
# between two builds of the authors' code. What is read wrongly moves them by 1e-1 and more.
STM_FEATURES = Limit(2e-4, relative=5e-5)

# By file name and quantity, the first that fits; what are integers and fits none is exact.
LIMITS: tuple[tuple[str, str, Limit], ...] = (
    (r"mivos_davis", r"^(labels|mask)_", DAVIS_LABELS),
    (r"mivos", r"^labels_|^agg_wbg_hard", LABELS),
    (r"stm_interactive", r"^masks?_", LABELS),
    (r"stm\.", r"^pred_", LABELS),
    (r"atnet", r"^masks_|^merge_th", LABELS),
    (r"ipnet", r"^mask_", LABELS),
    (r"stm\.", r"^unused_plane", Limit(1e-6)),
    (r"stm|mivos", r"prob|^agg_|unfused|result", PROBABILITIES),
    (r"stm_interactive", r"", STM_FEATURES),
    (r"stm|mivos", r"", Limit(2e-4)),
    (r"atnet", r"^maps_", EXACT),
    (r"atnet", r"prob|_sum$", Limit(1e-4)),
    (r"atnet", r"", Limit(1e-3)),
    (r"ipnet", r"box", EXACT),
    (r"ipnet", r"^weight_", Limit(1e-12)),
    (r"ipnet", r"theta|^merged_", Limit(1e-6)),
    (r"ipnet", r"_em|all_E", Limit(2e-4)),
    (r"ipnet", r"", Limit(4e-4)),
)


class Difference(NamedTuple):
    """One quantity of a recording. worst: its largest difference; outside: the part further off than `limit.near`."""

    name: str
    worst: float
    outside: float
    limit: Limit

    @property
    def allowed(self) -> bool:
        return self.outside <= self.limit.outside and (self.outside == 0 or self.worst <= self.limit.far)

    def __str__(self) -> str:
        near, outside, far, _ = self.limit
        more = f", up to {far:.2g} for a part of {outside:.2g}" if outside else ""
        return f"{self.name}: {self.worst:.2g} off, {self.outside:.2g} of it beyond the limit of {near:.2g}{more}"


def compare(path: Path, method: Method) -> list[Difference]:
    """Play a recording again with `method`, which `paper_size` makes: every output that it holds.

    Raises KeyError for an output that the replay does not know, ValueError for one of another shape or an unknown file.
    """
    golden, replay = load(path), replay_of(path)
    if replay is None:
        raise ValueError(f"{path}: its name starts with none of {', '.join(network_of(path).REPLAYS)}")
    with torch.inference_mode():
        ours = replay(golden, method)
    return [
        difference(path.name, name.removeprefix("out_"), find(name.removeprefix("out_"), ours), values)
        for name, values in golden.items()
        if not NO_OUTPUT.match(name)
    ]


def check(path: Path, method: Method) -> None:
    """Assert that a recording, played again, is within its limits."""
    found = compare(path, method)
    assert found, f"{path}: nothing to compare"
    assert all(one.allowed for one in found), "\n".join(str(one) for one in found if not one.allowed)


def load(path: Path) -> dict[str, np.ndarray]:
    """A recording; frames that it shares with another (frames_in) are read from there."""
    with np.load(path) as stored:
        golden = dict(stored)
    if (other := golden.pop("frames_in", None)) is not None:
        with np.load(path.with_name(other.item())) as stored:
            golden["frames_u8"] = stored["frames_u8"]
    return golden


def network_of(path: Path) -> ModuleType:
    """The module that plays a recording's network. Raises ValueError for a file of none of them."""
    for start, module in NETWORKS.items():
        if path.name.startswith(start):
            return module
    raise ValueError(f"{path}: its name starts with none of {', '.join(NETWORKS)}")


def replay_of(path: Path) -> Any:
    """What plays a recording, by its file name; None where nothing does."""
    return next((replay for start, replay in network_of(path).REPLAYS.items() if path.name.startswith(start)), None)


def recordings(top: Path) -> list[Path]:
    """The recordings of networks under a folder of goldens that are played again."""
    found = sorted(top.glob("networks/*/*.npz"))
    return [path for path in found if replay_of(path) is not None]


@contextmanager
def paper_size(network: ModuleType, device: str) -> Iterator[Method]:
    """Our method at paper size on a device, with the weights of the recordings."""
    with TemporaryDirectory() as folder:
        network.write(Path(folder))
        with patch.dict(os.environ, {"IVOSBENCH_WEIGHTS": folder}):
            method = network.build(device)
    yield method


def difference(recording: str, name: str, ours: Any, golden: np.ndarray) -> Difference:
    """How far our output is from the recorded one, whichever way it was thinned (several can make the same shape)."""
    if torch.is_tensor(ours):
        ours = ours.float() if ours.dtype == torch.bfloat16 else ours
        ours = ours.detach().cpu().numpy()
    ours = np.asarray(ours)
    if name.endswith("_sum") and ours.shape != golden.shape:
        ours = np.array([ours.mean(dtype=np.float64), np.abs(ours).mean(dtype=np.float64), ours.std(dtype=np.float64)])
    marks = THINNED.findall(name)
    steps = {kind: prod(int(n) for k, n in marks if k == kind) for kind, _ in marks if kind in ("ch", "step")}
    candidates = [x for x in thinned(ours, golden.shape, steps) if x.shape == golden.shape]
    if not candidates:
        raise ValueError(f"{recording}: {name} is {ours.shape}, recorded {golden.shape}")
    limit = limit_of(recording, name, golden)
    limit = limit._replace(near=max(limit.near, limit.relative * float(np.abs(golden).max())))
    found = []
    for x in candidates:
        off = np.abs(x.astype(np.float64) - golden)
        found.append(Difference(name, float(off.max()), float((~(off <= limit.near)).mean()), limit))  # NaN is beyond
    return min(found, key=lambda one: (one.outside, one.worst))


def limit_of(recording: str, name: str, golden: np.ndarray) -> Limit:
    """The limit of a quantity."""
    for file, quantity, limit in LIMITS:
        if re.match(file, recording) and re.search(quantity, name) and (quantity or golden.dtype.kind == "f"):
            return limit
    return EXACT


def thinned(full: np.ndarray, shape: tuple[int, ...], steps: Mapping[str, int]) -> Iterator[np.ndarray]:
    """`full` with one in so many channels, rows and columns, as `steps` says, or in any way that makes the shape."""
    if full.ndim != len(shape) or full.ndim < 2:
        yield full
        return
    for axis in {0, max(full.ndim - 3, 0)} if full.ndim > 2 else ():  # channels come first or just before the rows
        for c in possible(full.shape[axis : axis + 1], shape[axis : axis + 1], steps.get("ch")):
            for p in possible(full.shape[-2:], shape[-2:], steps.get("step")):
                yield np.moveaxis(np.moveaxis(full, axis, 0)[::c], 0, axis)[..., ::p, ::p]
    if full.ndim == 2:
        for p in possible(full.shape, shape, steps.get("step")):
            yield full[::p, ::p]


def possible(full: tuple[int, ...], kept: tuple[int, ...], named: int | None) -> list[int]:
    """Strides that leave `kept` of `full` in every axis."""
    if named is not None:
        return [named]
    if full == kept:
        return [1]
    return [s for s in range(1, max(full) + 1) if all(-(-n // s) == k for n, k in zip(full, kept, strict=True))]


def summary(path: Path, found: Sequence[Difference]) -> Iterator[dict[str, Any]]:
    """What a comparison came to, by kind of quantity: of labels and masks the part of the pixels that differ, of values
    the largest difference.
    """
    for kind in ("labels", "values"):
        those = [one for one in found if (one.limit.far == np.inf) == (kind == "labels")]
        if those:
            yield {
                "recording": f"{path.parent.name}/{path.name}",
                "kind": kind,
                "off": max(one.outside if kind == "labels" else one.worst for one in those),
                "limit": max(one.limit.outside if kind == "labels" else one.limit.near for one in those),
                "compared": len(those),
                "beyond": sum(not one.allowed for one in those),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [network.__name__.rpartition(".")[2] for network in NETWORKS.values()]
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--carried", action="store_true", help="only what tests/goldens has")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each recording and kind of quantity")
    asked = parser.parse_args()
    paths = [path for top in ((CARRIED,) if asked.carried else (CARRIED, FULL)) for path in recordings(top)]
    failed = False
    for name, network in zip(names, NETWORKS.values(), strict=True):
        if name not in asked.networks:
            continue
        with paper_size(network, asked.device) as method:
            for path in (path for path in paths if network_of(path) is network):
                found = compare(path, method)
                bad = [one for one in found if not one.allowed]
                failed |= bool(bad)
                if asked.json:
                    for line in summary(path, found):
                        print(json.dumps(line), flush=True)
                    continue
                most = max(found, key=lambda one: one.worst / one.limit.near if one.limit.near else one.outside)
                print(f"{'FAIL' if bad else 'ok':5}{path.parent.name}/{path.name}: {len(found)} outputs; {most}")
                for one in bad:
                    print(f"     {one}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
