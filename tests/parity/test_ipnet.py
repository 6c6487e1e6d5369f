"""Our IPNet gives what the authors' networks and session gave, from the same weights files."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.api import BadInput, Clip
from harness.rules.scribbles import from_json
from methods.blocks.aggregation import aggregate
from methods.ipnet.checkpoint import load
from methods.ipnet.method import OFFICIAL_FILES, IPNet, Options, bounds, stroke_planes, weight
from methods.ipnet.network import InteractionPropagation, Output, into_window, out_of_window, region
from tests.parity.goldens import DEVICE, folders, here, note, recorded, there
from tests.proc_weights import fill, fingerprint

FOLDER = "networks/atnet_ipnet"
NETWORKS = {"interaction": "ipnet_i", "propagation": "ipnet_p"}
FEATURES, PROBABILITIES, LABELS = 4e-4, 2e-4, 5e-4  # the last: part of the pixels that may differ


def cases(kind: str) -> list:
    """The recorded files of a kind, carried and full."""
    return recorded(FOLDER, f"ipnet.{kind}")


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict]:
    found = {path.name: path for folder in folders(FOLDER) for path in folder.glob("*.manifest.json")}
    return {network: json.loads(found[f"{name}.manifest.json"].read_text()) for network, name in NETWORKS.items()}


@pytest.fixture(scope="module")
def authors_files(manifests: dict[str, dict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files like the authors': their keys, prefix and old format, with procedural weights and without batch counts."""
    folder = tmp_path_factory.mktemp("weights")
    for network, manifest in manifests.items():
        state = fill(NETWORKS[network], {key: tuple(shape) for key, shape, *_ in manifest["keys"]})
        assert fingerprint(state) == manifest["procedural_fingerprint"]
        tensors = {f"module.{k}": torch.from_numpy(v) for k, v in state.items() if "num_batches_tracked" not in k}
        torch.save(tensors, folder / OFFICIAL_FILES[network], _use_new_zipfile_serialization=False)
    return {network: folder / name for network, name in OFFICIAL_FILES.items()}


@pytest.fixture(scope="module")
def method(authors_files: dict[str, Path]) -> Iterator[IPNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVOSBENCH_WEIGHTS", str(authors_files["interaction"].parent))
        yield IPNet(size="paper", weights="official", device=DEVICE)


def agrees(name: str, ours: Any, golden: np.ndarray, limit: float) -> None:
    """Assert that `ours`, thinned as `golden` is, is at most `limit` off; of masks, that no larger part of it differs.

    One in n channels was kept, n from the shapes, and one in n rows and columns: several n can make the same shape.
    """
    ours = there(ours)
    if ours.ndim > 2:
        assert ours.shape[-3] % golden.shape[-3] == 0, name
        ours = ours[..., :: ours.shape[-3] // golden.shape[-3], :, :]
    if ours.shape[-2:] != golden.shape[-2:]:
        thinned = [ours[..., ::n, ::n] for n in range(1, max(ours.shape))]
    else:
        thinned = [ours]
    differences = [np.abs(x.astype(np.float64) - golden) for x in thinned if x.shape == golden.shape]
    assert differences, f"{name}: {ours.shape}, wanted {golden.shape}"
    worst = min((x > 0).mean() if golden.dtype == np.uint8 else x.max() for x in differences)
    kind = "labels" if golden.dtype == np.uint8 else "probabilities" if limit == PROBABILITIES else "features"
    note(name, kind, worst, limit)
    assert worst <= limit, f"{name}: {worst:.2g} off, {limit} allowed"


class Watch:
    """What a network sees and says in a call: `seen` by the goldens' names, without their thinning mark."""

    def __init__(self, network: nn.Module, patch: pytest.MonkeyPatch) -> None:
        self.network = network
        self.samples: list[tuple[Tensor, Tensor]] = []
        grid_sample = F.grid_sample

        def watched(x: Tensor, grid: Tensor, **options: Any) -> Tensor:
            result = grid_sample(x, grid, **options)
            self.samples.append((grid, result))
            return result

        patch.setattr(F, "grid_sample", watched)

    def __call__(self, *inputs: Any) -> Any:
        self.samples.clear()
        maps: list[Any] = []
        hook = self.network.get_submodule("encoder").register_forward_hook(lambda *call: maps.append(call[2]))
        output = self.network(*inputs)
        hook.remove()
        (forward, window), (backward, _) = self.samples
        first, last = forward[:, 0, 0], forward[:, -1, -1]
        theta = torch.cat((torch.diag_embed((last - first) / 2), ((last + first) / 2)[..., None]), dim=2)
        self.seen = {
            "box_yxhw": output.box,
            "theta": theta,
            "fw_grid": forward.movedim(-1, 1),
            "bw_grid": backward.movedim(-1, 1),
            "roi_rgb": window[:, :3],
            "roi_maps": window[:, 3:],
            "logits": output.logits[0],
            "em": output.p,
        }
        self.seen |= {f"side_p{n}": logits for n, logits in enumerate(output.logits[1:], 2)}
        for name, features in zip(("r5", "r4", "r3", "r2"), maps[0], strict=True):
            self.seen[name] = features
            self.seen[f"{name}_sum"] = summary(features)
        return output

    def check(self, case: str, golden: dict[str, np.ndarray]) -> None:
        """Every output of a case."""
        for key, values in golden.items():
            if key.startswith(f"{case}_"):
                name = key.removeprefix(f"{case}_").removesuffix("_s")
                if "grid" in name:
                    values = np.moveaxis(values, -1, 1)
                limit = {"box_yxhw": 0.0, "theta": 1e-6, "em": PROBABILITIES}.get(name, FEATURES)
                agrees(key, self.seen[name], values, limit)


def summary(x: Tensor) -> np.ndarray:
    """Mean, mean absolute and deviation."""
    return there(torch.stack((x.mean(), x.abs().mean(), x.std())))


def images(frames: np.ndarray) -> Tensor:
    return here(frames).movedim(-1, 1).float() / 255


def test_every_key_of_the_authors_is_taken(authors_files: dict[str, Path], manifests: dict[str, dict]) -> None:
    network = InteractionPropagation("paper")
    network.load_state_dict(load(authors_files))
    for name, manifest in manifests.items():
        assert sum(p.numel() for p in network.get_submodule(name).parameters()) == manifest["parameters"]


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("interaction", {"module.Decoder.pred5.bias": None}, "Decoder.pred5.bias"),
        ("interaction", {"module.Decoder.ResFM1.conv1.bias": torch.zeros(1024)}, "Decoder.ResFM1.conv1.bias"),
        ("interaction", {"module.Encoder.conv1_n.weight": torch.zeros(32, 1, 7, 7)}, "Encoder.conv1_n.weight"),
        ("interaction", {"module.Encoder.conv1_n.weight": None}, "Encoder.conv1_n.weight"),
        ("interaction", {"module.Encoder.std": torch.ones(1, 3, 1, 1)}, "Encoder.std"),
        ("propagation", {"module.SEFA.fc2.weight": torch.zeros(2048, 4096)}, "SEFA.fc2.weight"),
        ("propagation", {"module.Decoder.ResFM1.conv1.weight": None}, "Decoder.ResFM1.conv1.weight"),
        (
            "propagation",
            {"module.Decoder.ResFM1.downsample.weight": torch.zeros(1)},
            "Decoder.ResFM1.downsample.weight",
        ),
    ],
)
def test_a_foreign_file_is_refused_by_key(
    authors_files: dict[str, Path], tmp_path: Path, file: str, change: dict, named: str
) -> None:
    state = {**torch.load(authors_files[file]), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=re.escape(f"key {named}")):
        load({**authors_files, file: tmp_path / "other.pth"})


def test_the_networks_files_cannot_be_swapped(authors_files: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=re.escape("key Encoder.conv1_p.weight is missing")):
        load({"interaction": authors_files["propagation"], "propagation": authors_files["interaction"]})


def test_the_authors_warning_is_shown(
    authors_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IVOSBENCH_WEIGHTS", str(authors_files["interaction"].parent))
    with caplog.at_level(logging.WARNING, "methods.ipnet.method"):
        IPNet(size="paper", weights="official", device="cpu")
    assert "do not reproduce the paper's table" in caplog.text


@pytest.mark.parametrize("path", cases("boxes*.npz"))
def test_boxes_and_windows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Tensor] = []
    monkeypatch.setattr(F, "grid_sample", lambda x, grid, **_: grids.append(grid))
    for row in np.load(path)["table"]:
        (height, width, y, x, h, w), box, (theta, corners) = row[:6].astype(int), row[6:10], np.split(row[10:], [6])
        plane = torch.zeros(1, 1, height, width)
        if y >= 0:
            plane[..., y : y + h, x : x + w] = 0.49
        ours = region(plane, minimum=128)
        np.testing.assert_array_equal(ours[0], box)
        into_window(plane, ours, 256)
        out_of_window(plane, ours, (height, width))
        forward, backward = (grid[0] for grid in grids[-2:])
        ends = torch.stack([grid[end, end] for grid in (forward, backward) for end in (0, -1)])
        np.testing.assert_allclose(ends.flatten(), corners, rtol=0, atol=1e-5)
        shift, scale = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        np.testing.assert_allclose(torch.column_stack((torch.diag(scale), shift)).flatten(), theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", cases("unit*.npz"))
@torch.inference_mode()
def test_units(path: Path, method: IPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = dict(np.load(path))
    frames = images(golden["frames_u8"])
    mask = previous = torch.zeros(1, *frames.shape[-2:], device=DEVICE)
    network = method.network.propagation
    interact, propagate = Watch(method.network.interaction, monkeypatch), Watch(network, monkeypatch)
    references: list[Tensor] = []
    for turn in ("first", "later"):
        if f"scribbles_{turn}" not in golden:
            break
        strokes = from_json(json.loads(golden[f"scribbles_{turn}"].item())).frames[0]
        planes = stroke_planes(strokes, *mask.shape)
        for name, plane in zip((f"pos_{turn}", f"neg_{turn}"), planes, strict=True):
            if name in golden:
                np.testing.assert_array_equal(plane, golden[name])
        positive, negative = (here(plane).float() for plane in planes)
        if turn == "first" and "I_half_em" in golden:
            interact(frames[:1], torch.full_like(mask, 0.5), positive, negative)
            interact.check("I_half", golden)
        output = interact(frames[:1], mask, positive, negative)
        interact.check(f"I_{turn}", golden)
        references.append(output.res5)
        mask = output.p
        reference = network.refer(output.res5, references[0] if turn == "later" else None)
        previous = propagate(frames[1:2], previous, mask, reference).p
        propagate.check(f"P_{turn}", golden)
        if f"ref_{turn}_s" in golden:
            agrees(f"ref_{turn}_s", output.res5, golden[f"ref_{turn}_s"], FEATURES)
    if "sefa_weights" in golden:
        agrees("sefa_weights", network.aggregation.weights(*references[::-1])[0], golden["sefa_weights"], FEATURES)
        agrees("sefa_out_s", reference, golden["sefa_out_s"], FEATURES)
        agrees("sefa_out_sum", summary(reference), golden["sefa_out_sum"], FEATURES)


@pytest.mark.parametrize("path", cases("e2e*.npz"))
@torch.inference_mode()
def test_a_session(path: Path, method: IPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = dict(np.load(path))
    if "frames_u8" not in golden:  # another session on the same clip is carried beside it
        golden["frames_u8"] = np.load(next(path.parent.glob("ipnet.e2e_linear*.npz")))["frames_u8"]
    monkeypatch.setattr(method, "options", Options("linear" if "linear" in path.name else "none", True, "device"))
    method.start(Clip("synthetic", golden["frames_u8"], num_objects=1))
    sample, load_images, forward = method.sample, method.sample.images, method.network.propagation.forward
    loaded: list[int] = []
    boxes: dict[int, Tensor] = {}

    def watched(frames: list[int]) -> Tensor:
        loaded[:] = frames
        return load_images(frames)

    def noted(images: Tensor, previous: Tensor, neighbour: Tensor, reference: Tensor) -> Output:
        for p, t in zip(neighbour, loaded, strict=True):
            settle(p, golden[f"mask_{k}"][t - np.sign(t - target)])
        output = forward(images, previous, neighbour, reference)
        boxes.update(zip(loaded, output.box, strict=True))
        return output

    monkeypatch.setattr(sample, "images", watched)
    monkeypatch.setattr(method.network.propagation, "forward", noted)
    for k, target in enumerate(map(int, golden["rounds"])):
        stops = sorted(name for name in golden if name.startswith(f"scribbles_{k}_"))
        for name in stops:
            scribbles = from_json(json.loads(golden[name].item()))
            sample.annotate(target, scribbles.frames[target])
            if (em := name.replace("scribbles", "inter_em")) in golden:
                agrees(em, sample.p[target, 0], golden[em], PROBABILITIES)
        boxes.clear()
        sample.propagate(target)
        # What was passed on is not in a fused mask, nor is which way its pixels at 0.5 went: one step is compared
        known = range(len(sample.p))
        if k and method.options.fusion == "linear":
            first, last = check_weights(target, list(map(int, golden["rounds"][:k])), golden[f"weight_{k}"])
            known = range(max(first, target - 1), min(last, target + 1) + 1) if k == 1 else range(0)
        for t in known:
            agrees(f"all_E_{k}", sample.p[t], golden[f"all_E_{k}"][t : t + 1], PROBABILITIES)
            agrees(f"mask_{k}", sample.labels()[t], golden[f"mask_{k}"][t], LABELS)
        if f"a_ref_{k}_s" in golden:
            assert sample.older is not None
            agrees(f"a_ref_{k}_s", sample.older, golden[f"a_ref_{k}_s"], FEATURES)
        if f"prop_boxes_{k}" in golden:
            order = sorted(boxes, key=lambda t: (t < target, abs(t - target)))
            np.testing.assert_array_equal(there(torch.stack([boxes[t] for t in order])), golden[f"prop_boxes_{k}"])


def settle(p: Tensor, mask: np.ndarray) -> None:
    """Pixels as good as at 0.5 go where they went in the recording: as masks are rounded, a session amplifies them."""
    undecided = (p - 0.5).abs() < 1e-3
    p[undecided] = torch.from_numpy(mask).to(p)[undecided]


def check_weights(target: int, earlier: list[int], golden: Any) -> tuple[int, int]:
    """Assert the weights of all frames; returns the ends of propagation."""
    before, after = bounds(target, earlier)
    ours = [weight(t, target, before if t < target else after) for t in range(len(golden))]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-12)
    return before or 0, len(golden) - 1 if after is None else after


@pytest.mark.parametrize("path", cases("fusion_weights*.json"))
def test_fusion_weights(path: Path) -> None:
    for case in json.loads(path.read_text()):
        assert len(case["weight"]) == case["num_frames"]
        assert check_weights(case["target"], case["previous"], case["weight"]) == (case["left"], case["right"])


@pytest.mark.parametrize("path", cases("merge*.npz"))
def test_the_merge_of_objects(path: Path) -> None:
    golden = np.load(path)
    for name in golden:
        if name.startswith("prob_"):
            merged = aggregate(torch.from_numpy(golden[name]))
            agrees(name, merged, golden[name.replace("prob", "merged")], 1e-6)


def pictures(count: int) -> tuple[Tensor, ...]:
    """Noise, each with a square of its own as mask and strokes."""
    noise = torch.rand(count, 3, 90, 150, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(count, 90, 150)
    for n in range(count):
        mask[n, 20 : 40 + 10 * n, 30 + 20 * n : 70 + 20 * n] = 0.9
    return noise, mask, mask.round(), mask.flip(2).round()


@torch.inference_mode()
def test_a_batch_is_its_pictures() -> None:
    torch.manual_seed(0)
    network = InteractionPropagation("tiny").eval()
    frames, mask, positive, negative = pictures(3)
    both = network.interaction(frames, mask, positive, negative)
    reference = network.propagation.refer(both.res5, both.res5.flip(0))
    after = network.propagation(frames, mask, both.p, reference)
    for n in range(3):
        alone = network.interaction(*(x[n : n + 1] for x in (frames, mask, positive, negative)))
        torch.testing.assert_close(alone.p, both.p[n : n + 1])
        alone = network.propagation(*(x[n : n + 1] for x in (frames, mask, both.p, reference)))
        torch.testing.assert_close(alone.p, after.p[n : n + 1])
        torch.testing.assert_close(alone.logits[-1], after.logits[-1][n : n + 1])


def test_every_parameter_learns() -> None:
    network = InteractionPropagation("tiny").train()
    frames, *planes = pictures(2)
    first = network.interaction(frames, *planes)
    reference = network.propagation.refer(first.res5, first.res5.flip(0))
    second = network.propagation(frames, planes[0], first.p, reference)
    torch.stack([logits.square().sum() for logits in (*first.logits, *second.logits)]).sum().backward()
    assert [logits.shape[-1] for logits in second.logits] == [128, 32, 16, 8, 4]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
