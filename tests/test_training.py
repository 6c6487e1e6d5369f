"""Training learns from training data alone, goes on where it was stopped, and leaves weights that play."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import run  # noqa: F401  its resolvers
from harness.api import VOID, BadInput
from harness.data import folder, synthetic
from harness.rules.scribbles import draw
from methods.mivos.method import MiVOS
from methods.stm.method import STM
from methods.stm.network import STMInteractive
from methods.training import losses, strokes
from methods.training.clips import Batches, source
from methods.training.loop import Stage
from methods.training.start import imagenet

ROOT = Path(__file__).parents[1]
METHODS = ("stm", "ipnet", "atnet", "mivos")


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["task=train", "size=tiny", "device=cpu", "workers=0", "recipe=smoke", *overrides])


def labels_of(rng: np.random.Generator) -> np.ndarray:
    return synthetic.generate(rng, synthetic.photographs("train"), 1, (96, 160), 2)[1][0]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_clips_are_made_of_training_photographs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    photographs = synthetic.photographs

    def watched(split: str) -> list[np.ndarray]:
        asked.append(split)
        return photographs(split)

    monkeypatch.setattr(synthetic, "photographs", watched)
    for kind in ("video", "stills"):
        draw_clip = source("synthetic", [], kind, 2, (64, 96), (1, 3), blended=kind == "video")
        draw_clip(np.random.default_rng(0), 2, 0.5)
    assert asked == ["train", "train"]
    train, val = (set(synthetic.PHOTOGRAPHS[split]) for split in ("train", "val"))
    assert not {(package, name) for package in train for name in synthetic.PHOTOGRAPHS["train"][package]} & {
        (package, name) for package in val for name in synthetic.PHOTOGRAPHS["val"][package]
    }


def recordings(root: Path, **lengths: int) -> Path:
    """A folder dataset of random clips with so many frames, two objects in each."""
    for name, length in lengths.items():
        frames, labels = synthetic.generate(
            np.random.default_rng(length), synthetic.photographs("train"), length, (80, 96), 2
        )
        for kind, images, suffix in (("frames", frames, "jpg"), ("masks", labels, "png")):
            (root / kind / name).mkdir(parents=True)
            for t, image in enumerate(images):
                Image.fromarray(image).save(root / kind / name / f"{t:05d}.{suffix}")
    return root


def test_davis_val_is_refused_under_any_root(tmp_path: Path) -> None:
    root = recordings(tmp_path / "clips", mine=2, libby=3)
    with pytest.raises(BadInput, match=r"libby: DAVIS val is never trained on"):
        instantiate(config("dataset=folder", f"dataset.root={root}", f"results={tmp_path}").task)()


@pytest.mark.parametrize("kind", ["video", "stills"])
def test_recorded_clips_and_stills_are_trained_on(tmp_path: Path, kind: str) -> None:
    root = recordings(tmp_path / "clips", long=9, short=2 if kind == "video" else 1)
    sequences = folder.load(str(root))
    draw_clip = source("folder", sequences, kind, 3, (48, 64), (1, 9), False)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for progress in np.linspace(0, 1, 12):
        frames, labels = draw_clip(rng, 2, progress)
        assert (frames.shape, labels.shape) == ((3, 48, 64, 3), (3, 48, 64))
        assert {1, 2} <= set(np.unique(labels)) <= {0, 1, 2, VOID}
        assert (frames[0] != frames[1]).any()
    with pytest.raises(BadInput, match="with 3 objects found in 2 sequences"):
        draw_clip(rng, 3, 0.0)
    assert isinstance(Batches(draw_clip, 1, 3, [3], (0,))[0], BadInput)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    batches = Batches(source("synthetic", [], "video", 3, (64, 96), (1, 4), blended=True), 10, 4, (1, 2), (0, 1))
    first, again, other = batches.batch(3), batches.batch(3), batches.batch(4)
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.labels, again.labels)
    assert first.frames.shape != other.frames.shape or not torch.equal(first.frames, other.frames)


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def task(folder: str) -> DictConfig:
        few = ["recipe.stm.0.steps=6", "recipe.stm.0.batch=1", "save_every=2"]
        return config("method=stm", *few, f"results={tmp_path / folder}").task

    curves, weights = [], []
    instantiate(task("whole"))()
    rate = Stage.rate
    monkeypatch.setattr(Stage, "rate", lambda self, step: 1 / 0 if step == 3 else rate(self, step))
    with pytest.raises(ZeroDivisionError):
        instantiate(task("stopped"))()
    monkeypatch.setattr(Stage, "rate", rate)
    instantiate(task("stopped"))()
    for name in ("whole", "stopped"):
        path = tmp_path / name / "training" / "stm-tiny-smoke"
        curves.append(pd.read_csv(path / "loss.csv").drop(columns="seconds"))
        weights.append(load_file(path / "weights.safetensors"))
    pd.testing.assert_frame_equal(curves[0], curves[1])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with pytest.raises(BadInput, match="of a training with other stages"):
        instantiate(config("method=stm", f"results={tmp_path / 'whole'}").task)()


def test_smoke_recipe_of_stm(tmp_path: Path) -> None:
    command = ["run.py", "task=train", "method=stm", "recipe=smoke", "save_every=15", f"results={tmp_path}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    curve = pd.read_csv(path.parent / "loss.csv")
    assert curve["loss"].iloc[-1] < 0.9 * curve["loss"].iloc[0]
    assert (path.parent / "loss.png").stat().st_size > 0
    card = json.loads((path.parent / "weights.json").read_text())
    assert (card["method"], card["size"], card["recipe"]) == ("stm", "tiny", "smoke")
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["training"] == "ours, recipe smoke on synthetic"
    STM(size="tiny", weights=str(path), device="cpu")
    with pytest.raises(BadInput, match=re.escape(f"{path}, of stm, tiny: ")):
        MiVOS(size="tiny", weights=str(path), device="cpu")


@pytest.mark.parametrize("method", [*METHODS, "stm_video"])
def test_every_part_of_a_network_learns_in_some_stage_and_no_other_part_in_it(method: str) -> None:
    smoke = config(f"method={method}")
    arguments = {key: value for key, value in smoke.method.items() if key not in ("name", "published")}
    network = instantiate(arguments, _convert_="all").network.train()
    learnt = set()
    for description in smoke.recipe[method]:
        stage = Stage(**instantiate(description, _convert_="all"))
        network.requires_grad_(False).zero_grad()
        for part in stage.trains or [""]:
            network.get_submodule(part).requires_grad_(True)
        clip = stage.source, stage.frames, stage.size, stage.gap, stage.blended
        draw_clip = source("synthetic", [], *clip)
        batch = Batches(draw_clip, 1, 4, [2], (0,)).batch(0)
        loss, figures = stage.objective(network, batch, np.random.default_rng(0), 0.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert figures
        now = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert not {name for name in now if not name.startswith(tuple(stage.trains) or "")}
        learnt |= now
    assert not {name for name, p in network.named_parameters()} - learnt


@pytest.mark.parametrize("method", METHODS)
def test_shipped_weights_are_what_their_card_says(method: str) -> None:
    file, card = (ROOT / "methods/weights" / f"{method}{suffix}" for suffix in (".safetensors", ".json"))
    about = json.loads(card.read_text())
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (about["method"], about["size"], about["recipe"]) == (method, "tiny", "small")
    default = config(f"method={method}", "weights=tiny").method
    assert Path(default.weights).resolve() == file
    instantiate({key: value for key, value in default.items() if key not in ("name", "published")})
    assert sum(path.stat().st_size for path in file.parent.iterdir()) <= 16e6


@pytest.mark.parametrize("name", ["paper", "small", "smoke"])
def test_every_recipe_has_every_method(name: str) -> None:
    for method in METHODS:
        stages = [Stage(**instantiate(s, _convert_="all")) for s in config(f"recipe={name}").recipe[method]]
        rates = [stage.rate(step) for stage in stages for step in (0, stage.steps // 2, stage.steps - 1)]
        assert min(rates) > 0
        assert max(rates) <= max(stage.learning_rate for stage in stages)


@pytest.mark.parametrize(("method", "same", "other"), [("atnet", "a_net", "t_net"), ("mivos", "propagation", "fusion")])
def test_ablations_begin_with_the_parts_that_are_not_compared(method: str, same: str, other: str) -> None:
    """Else variants of T-Net or of the fusion would differ in A-Net or the propagation, too."""
    ablation = config(f"method={method}", "recipe=ablation", f"weights={'random' if method == 'atnet' else 'tiny'}")
    arguments = {key: value for key, value in ablation.method.items() if key not in ("name", "published")}
    network = instantiate(arguments, _convert_="all").network
    instantiate(ablation.recipe[method][0].start, _convert_="all")(network)
    trained = load_file(ROOT / f"methods/weights/{method}.safetensors")
    filters = {key: value for key, value in network.state_dict().items() if value.ndim == 4}
    equal = {key: torch.equal(value, trained[key].float()) for key, value in filters.items()}
    assert {value for key, value in equal.items() if key.startswith(same)} == {True}
    assert {value for key, value in equal.items() if key.startswith(other)} == {False}


def test_imagenet_features_reach_every_trunk(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet50(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    network = STMInteractive("paper")
    imagenet(network, str(tmp_path / "resnet50.pth"))
    state, features = network.state_dict(), theirs.state_dict()
    for trunk in ("query_encoder", "memory_encoder"):
        assert torch.equal(state[f"{trunk}.conv1.weight"][:, :3], features["conv1.weight"])
        assert torch.equal(state[f"{trunk}.res4.5.conv3.weight"], features["layer3.5.conv3.weight"])
    with pytest.raises(BadInput, match=r"does not fit query_encoder.res2.0.conv1.weight.*size=paper"):
        imagenet(STMInteractive("tiny"), str(tmp_path / "resnet50.pth"))


def test_losses_are_what_their_papers_say() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 8, 9, generator=rng), (torch.rand(2, 8, 9, generator=rng) > 0.8).float()
    p, naive = logits.sigmoid(), []
    for guess, truth in zip(p, mask, strict=True):
        beta = (truth == 0).float().mean()
        naive.append(-(beta * guess.log()[truth == 1].sum() + (1 - beta) * (1 - guess).log()[truth == 0].sum()) / 72)
    assert losses.class_balanced(logits, mask) == pytest.approx(torch.stack(naive).mean().item())
    planes = torch.stack((1 - p, p), dim=1)
    labels = mask.to(torch.uint8)
    labels[0, 0] = VOID
    each = -planes.gather(1, mask[:, None].long()).log().squeeze(1)[labels != VOID]
    assert losses.cross_entropy(planes, labels) == pytest.approx(each.mean().item())
    hardest = each.sort(descending=True).values[: int(0.25 * len(each))]
    assert losses.cross_entropy(planes, labels, hardest=0.25) == pytest.approx(hardest.mean().item())
    perfect = torch.stack((1 - mask, mask), dim=1)
    assert losses.soft_jaccard(perfect, labels) == pytest.approx(0, abs=1e-6)
    assert losses.jaccard(labels, labels, 1) == 1
    assert losses.jaccard(1 - mask, mask.to(torch.uint8), 1) == 0


def test_simulated_users_draw_where_they_mean_to() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        truth = labels_of(rng)
        for m in (1, 2):
            drawn = draw(strokes.points(rng, truth, 2, (100, 100)), truth.shape)
            assert (drawn == m).sum() == max(1, round((truth == m).sum() / 100))
            assert (truth[drawn == m] == m).all()
        guess = np.where(rng.random() < 0.5, np.roll(truth, 9, axis=1), np.zeros_like(truth))
        curve = draw(strokes.curves(rng, guess, truth, 2), truth.shape, bresenham=False)
        assert ((curve == -1) | ((curve == truth) & (guess != truth))).all()
        mask = (truth == 1).astype(np.uint8)
        damaged = strokes.damage(rng, mask, least=0.6, most=0.6)
        assert 0.1 < (damaged & mask).sum() / (damaged | mask).sum() < 0.6
