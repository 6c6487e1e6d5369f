"""No GPU is here, and what would fail on one is seen all the same: networks and tensors are on a fake one.

torch's FakeTensorMode knows shape and device of each tensor and none of its numbers. What mixes devices raises there,
as does what waits for a number. The one way back, `to_host`, is cut: it answers a square of label 1.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import run  # noqa: F401  its resolvers
from harness.api import BadInput, Clip, Interaction, Method, Scribbles, Stroke
from harness.rules.scribbles import empty
from harness.run import evaluate
from harness.run.build import build
from methods.blocks.precision import Precision, inference
from methods.blocks.weights import find_device
from methods.stm.video import STMVideo
from methods.training.clips import Batch
from methods.training.loop import Stage, descend, optimiser_for

ROOT = Path(__file__).parents[1]
SIZE = (75, 133)
CLIP = Clip("noise", np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), np.uint8), 2)
PLAYED = {"stm": "stm", "stm_video": "stm", "ipnet": "ipnet", "atnet": "atnet", "mivos": "mivos"}  # method: folder


def square(x: Tensor) -> np.ndarray:
    """What stands in for a tensor's numbers."""
    found = np.zeros(x.shape, str(x.dtype).removeprefix("torch."))
    found[..., 10:30, 10:30] = 1
    return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A GPU that does not compute: modules are built on it, and the way back from it is cut."""

    def prepare(build: Callable[[], nn.Module], *_: object) -> nn.Module:
        with torch.device("cuda"):
            return build().eval().requires_grad_(False)

    for folder in set(PLAYED.values()):
        for name in ("method", "video", "training"):
            if (ROOT / "methods" / folder / f"{name}.py").exists():
                module = importlib.import_module(f"methods.{folder}.{name}")
                monkeypatch.setattr(module, "to_host", square)
                if name != "training":
                    monkeypatch.setattr(module, "prepare", prepare)
    monkeypatch.setattr("methods.training.losses.to_host", square)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # its grid_sample has no fake
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def config(method: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        chosen = [f"method={method}", "task=train", "recipe=smoke", "size=tiny", "weights=random"]
        composed = compose("config", [*chosen, *overrides])
    OmegaConf.resolve(composed)
    return composed


def marked(frame: int, *labels: int) -> Scribbles:
    """A stroke for each label on a frame."""
    frames = list(empty(CLIP.name, len(CLIP.frames)).frames)
    frames[frame] = tuple(Stroke(np.array([[0.1 + 0.3 * m, 0.3], [0.2 + 0.3 * m, 0.4]]), m) for m in labels)
    return Scribbles(CLIP.name, tuple(frames))


def play(method: Method) -> None:
    """`start` and two rounds."""
    method.start(CLIP)
    for frame in (1, 3):
        strokes = marked(frame, 0, 1, 2)
        mask = square(torch.empty(SIZE, dtype=torch.uint8)) if isinstance(method, STMVideo) else None
        assert method.interact(Interaction(frame, strokes, strokes, mask)).masks.shape == CLIP.frames.shape[:3]


class Travels(TorchDispatchMode):
    """Notes how many numbers each tensor had that went to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from_host = any(isinstance(x, Tensor) and x.device.type == "cpu" for x in args)
        out = func(*args, **(kwargs or {}))
        if from_host and isinstance(out, Tensor) and out.device.type == "cuda":
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize(
    ("method", "cache"),
    [(method, cache) for method in PLAYED for cache in ("device", "cpu") if (method, cache) != ("stm_video", "cpu")],
)
@pytest.mark.usefixtures("fake")
def test_a_session_stays_on_the_device(method: str, cache: str) -> None:
    """A tensor made in main memory by mistake raises or, copied again and again, makes the device wait."""
    chosen = config(method).method
    for key, value in {"cache": cache, "schedule": "every_round"}.items():
        if key in chosen:
            chosen[key] = value
    player = build(chosen)
    assert {value.device.type for value in player.network.state_dict().values()} == {"cuda"}
    with Travels() as travels:
        play(player)
    pictures = SIZE[0] * SIZE[1]
    expected = [size for size in travels.sizes if size >= pictures or size <= 3]
    assert max(expected) >= pictures
    if cache == "device":
        assert travels.sizes == expected


@pytest.mark.parametrize("method", PLAYED)
@pytest.mark.usefixtures("fake")
def test_a_step_of_training_stays_on_the_device(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective that waits for a number, or makes one in main memory, holds up every step of a training of days.

    The way back through the graph is torch's alone, whose engine wants a real GPU: gradients are zeros here.
    """
    composed = config(method)
    player = build(composed.method)

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        for parameter in player.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    for description in composed.recipe[method]:
        stage = Stage(**instantiate(description, _convert_="all"))
        count, (height, width) = 2, stage.size
        frames = torch.zeros(count, stage.frames, 3, height, width, dtype=torch.uint8)
        labels = torch.zeros(count, stage.frames, height, width, dtype=torch.uint8)
        optimiser = optimiser_for(player.network, stage)
        batch = Batch(frames, labels, num_objects=2)
        step = descend(player.network, stage, optimiser, batch, 0, np.random.default_rng(0), "float32")
        for number in (step.loss, *step.figures.values()):
            assert (number.device.type, number.ndim) == ("cuda", 0)


@pytest.mark.usefixtures("fake")
def test_tf32_is_on_while_a_method_that_asks_for_it_plays_and_off_again_after() -> None:
    """Else a method would round the next one's numbers, or its own, whatever it was told."""
    network = build(config("stm").method).network
    places: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    for place in places:
        place.allow_tf32 = False
    seen = {}
    for precision in get_args(Precision):
        with suppress(ArithmeticError), inference(network, precision):
            seen[precision] = [place.allow_tf32 for place in places]
            raise ArithmeticError
        assert not any(place.allow_tf32 for place in places)
    assert seen == {"float32": [False] * 2, "tf32": [True] * 2, "bfloat16": [False] * 2}


def test_tf32_is_refused_where_there_is_none() -> None:
    method = build(config("stm", "device=cpu", "method.precision=tf32").method)
    with pytest.raises(BadInput, match=r"precision=tf32: only a GPU has it; choose float32 or bfloat16"):
        play(method)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ({"cache": "device", "precision": "float32"}, "method.cache=cpu .*, method.precision=bfloat16 "),
        ({"cache": "cpu", "precision": "tf32"}, "full; method.precision=bfloat16 "),
        ({"cache": "none", "precision": "bfloat16"}, "choose another device"),
        ({}, "choose another device"),
    ],
)
def test_a_full_gpu_is_told_with_what_helps(method: dict[str, str], remedy: str) -> None:
    """Who reads of a lack of memory alone does not know that frames may wait elsewhere."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for error in (full, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")):
        assert evaluate.status_of(error) == "oom"
        assert re.search(remedy, evaluate.remedy(error, method))
    for other in (MemoryError("Unable to allocate 9 GiB"), RuntimeError("CUDA error: an illegal memory access")):
        assert not evaluate.remedy(other, method)


def test_a_device_that_is_not_named_is_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
