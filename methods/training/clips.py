"""What a step of training sees: short clips with their labels, endless, each drawn from its own seed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from harness.api import VOID, BadInput
from harness.data import synthetic
from harness.data.sequence import VideoSequence

Source = Literal["video", "stills"]
# frames uint8 T×H×W×3 and labels uint8 T×H×W of a clip with so many objects, 1..N
Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]

# DAVIS 2016 and 2017 val: for evaluation only, under whatever root they lie
HELD_OUT = """
bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump
drift-chicane drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading
mbike-trick motocross-jump paragliding-launch parkour pigs scooter-black shooting soapbox
"""
TRIES = 20
BLEND = (480, 360)  # width and height of a blend, in pixels


class Batch(NamedTuple):
    """B clips with N objects each. frames: uint8 B×T×3×H×W RGB. labels: uint8 B×T×H×W, 0..N and 255 for void."""

    frames: Tensor
    labels: Tensor
    num_objects: int


class Batches(Dataset[Batch | BadInput]):
    """The batches of a stage by their step: the same for the same seed, whichever process asks and when.

    draw: a clip. objects: how many a clip may have; a batch's clips have the same number. size: in clips × objects, so
    that a step costs the same for one object as for several. progress: the part of the stage that is done, 0 to 1.
    """

    def __init__(self, draw: Draw, steps: int, size: int, objects: Sequence[int], seed: Sequence[int]) -> None:
        self.draw, self.steps, self.size, self.objects, self.seed = draw, steps, size, objects, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch | BadInput:
        try:
            return self.batch(step)
        except BadInput as error:  # returned: what a worker process raises arrives as a page of text
            return error

    def batch(self, step: int) -> Batch:
        """The batch of a step. Raises BadInput where no clip is to be had."""
        rng = np.random.default_rng([*self.seed, step])
        num_objects = int(rng.choice(self.objects))
        count = max(1, self.size // num_objects)
        clips = [self.clip(rng, num_objects, step / self.steps) for _ in range(count)]
        frames, labels = (torch.from_numpy(np.stack(parts)) for parts in zip(*clips, strict=True))
        return Batch(frames.movedim(-1, 2), labels, num_objects)

    def clip(self, rng: np.random.Generator, num_objects: int, progress: float) -> tuple[np.ndarray, np.ndarray]:
        """A clip; a draw that fails is repeated, or a training that meets one could never go on."""
        for _ in range(TRIES):
            try:
                return self.draw(rng, num_objects, progress)
            except BadInput as error:
                failed = error
        raise failed


def source(
    dataset: str,
    sequences: Sequence[VideoSequence],
    kind: Source,
    frames: int,
    size: Sequence[int],
    gap: Sequence[float],
    blended: bool,
) -> Draw:
    """How clips are drawn for a stage.

    dataset: "synthetic" makes each clip anew of the training photographs; others take theirs from `sequences`.
    kind: "video", or "stills", each a single frame that random affine maps set in motion.
    frames, size: T and (H, W) of a clip. gap: the largest between two frames at the start of the stage and at its end.
    blended: synthetic clips show blends of the photographs, see `blend`.
    Raises BadInput for a sequence that is held out for evaluation.
    """
    one: Callable[..., tuple[np.ndarray, np.ndarray]]
    if dataset == "synthetic":
        one = partial(synthesise, blended=blended)
    elif held_out := [sequence.name for sequence in sequences if sequence.name in HELD_OUT.split()]:
        raise BadInput(f"{', '.join(held_out)}: DAVIS val is never trained on; choose dataset.subset=train or another")
    else:
        one = partial(cut, recorded=Recorded(sequences))
    one = partial(one, size=size, gap=gap)
    if kind == "stills":
        return partial(animate, one=partial(one, frames=1), frames=frames)
    return partial(one, frames=frames)


def synthesise(
    rng: np.random.Generator,
    num_objects: int,
    progress: float,
    *,
    frames: int,
    size: Sequence[int],
    gap: Sequence[float],
    blended: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """A clip as the embedded ones are, of the training photographs, with `gap` for their time between two frames."""
    stride = rng.uniform(1, reach(gap, progress))
    photographs = synthetic.photographs("train")
    if blended:
        photographs = [blend(rng, photographs) for _ in range(num_objects + 1)]
    return synthetic.generate(rng, photographs, frames, (size[0], size[1]), num_objects, stride=stride)


def blend(rng: np.random.Generator, photographs: Sequence[np.ndarray]) -> np.ndarray:
    """A picture of two photographs, or every third time of one: uint8 H×W×3. A dozen are too few to learn from.

    Each is cropped, mirrored or turned upside down, and has its channels in another order, its greys inverted or not.
    """
    layers = []
    for number in rng.choice(len(photographs), 2, replace=False):
        image = photographs[number]
        height, width = (int(side * rng.uniform(0.5, 1)) for side in image.shape[:2])
        top, left = (
            int(rng.integers(full - part + 1)) for full, part in zip(image.shape, (height, width), strict=False)
        )
        image = image[top : top + height, left : left + width][:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        image = cv2.resize(np.ascontiguousarray(image[..., rng.permutation(3)]), BLEND)
        layers.append(255 - image if rng.random() < 0.3 else image)
    weight = 1.0 if rng.random() < 1 / 3 else rng.uniform(0.3, 0.7)
    return cv2.addWeighted(layers[0], weight, layers[1], 1 - weight, 0)


def reach(gap: Sequence[float], progress: float) -> float:
    """The largest gap between two frames, growing with training (STM, Section 3.5.2: from 0 to 25 frames skipped)."""
    return gap[0] + (gap[1] - gap[0]) * progress


class Recorded:
    """Recorded sequences. The last `kept` ones that were read stay in memory, about 0.1 GB each at 480×854."""

    def __init__(self, sequences: Sequence[VideoSequence], kept: int = 32) -> None:
        self.sequences, self.kept = sequences, kept
        self.clips: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 T×H×W×3 and labels uint8 T×H×W of a sequence."""
        if number not in self.clips:
            if len(self.clips) == self.kept:
                del self.clips[next(iter(self.clips))]
            sequence = self.sequences[number]
            self.clips[number] = sequence.read_frames(), sequence.read_annotations()
        return self.clips[number]


def cut(
    rng: np.random.Generator,
    num_objects: int,
    progress: float,
    *,
    recorded: Recorded,
    frames: int,
    size: Sequence[int],
    gap: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """A piece of a recorded sequence: frames in order or reversed, random gaps, one random crop, mirrored or not.

    Objects are a random choice of those on the first frame. Raises BadInput if no such piece is found.
    """
    sequences = recorded.sequences
    able = [n for n, s in enumerate(sequences) if s.num_objects >= num_objects and s.num_frames >= frames]
    for _ in range(TRIES if able else 0):
        rgb, labels = recorded.read(able[rng.integers(len(able))])
        steps = rng.integers(1, round(reach(gap, progress)) + 1, max(0, frames - 1))
        spread = min(1.0, (len(rgb) - 1) / max(1, steps.sum()))
        times = np.concatenate(([0], np.cumsum(np.maximum(1, steps * spread).astype(int))))
        if times[-1] >= len(rgb):
            times = np.arange(frames)
        times = times + rng.integers(len(rgb) - times[-1])
        times = times[::-1] if rng.random() < 0.5 else times
        pose = crop_pose(rng, rgb.shape[1:3], size)
        clip = [warp(rgb[t], labels[t], pose, size) for t in times]
        masks = np.stack([mask for _, mask in clip])
        areas = np.bincount(masks[0].ravel(), minlength=VOID + 1)[1:VOID]
        present = np.flatnonzero(areas > 0.002 * masks[0].size) + 1
        if len(present) >= num_objects:
            chosen = rng.permutation(present)[:num_objects]
            table = np.zeros(VOID + 1, np.uint8)
            table[chosen], table[VOID] = np.arange(1, num_objects + 1), VOID
            return np.stack([image for image, _ in clip]), table[masks]
    raise BadInput(
        f"dataset: no piece of {frames} frames with {num_objects} objects found in {len(sequences)} sequences; "
        "lower the recipe's objects or frames"
    )


def animate(
    rng: np.random.Generator, num_objects: int, progress: float, *, one: Draw, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """A clip out of a still: each frame is another affine view of it (STM, Section 3.5.1)."""
    rgb, labels = one(rng, num_objects, progress)
    views = [warp(rgb[0], labels[0], jolt(rng, labels.shape[1:]), labels.shape[1:]) for _ in range(frames)]
    images, masks = zip(*views, strict=True)
    return np.stack(images), np.stack(masks)


def crop_pose(rng: np.random.Generator, full: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A random crop of 0.36 to 1 of the largest that fits, of the shape of `size`, mirrored or not: 2×3 to `size`."""
    height, width = size
    scale = min(full[0] / height, full[1] / width) * np.sqrt(rng.uniform(0.36, 1))
    left, top = rng.uniform(0, full[1] - width * scale), rng.uniform(0, full[0] - height * scale)
    pose = np.array([[1 / scale, 0, -left / scale], [0, 1 / scale, -top / scale]])
    return np.array([[-1, 0, width - 1], [0, 1, 0]]) @ np.vstack((pose, [0, 0, 1])) if rng.random() < 0.5 else pose


def jolt(rng: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    """A random affine map about the centre: ±20° of rotation, ±10° of shear, zoom 0.85..1.15, a shift of up to 10 %."""
    height, width = size
    angle, shear = np.radians(rng.uniform(-20, 20)), np.tan(np.radians(rng.uniform(-10, 10)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rng.uniform(0.85, 1.15) * turn @ np.array([[1, shear], [0, 1]])
    centre = np.array([width, height]) / 2
    shift = rng.uniform(-0.1, 0.1, 2) * (width, height)
    return np.column_stack((linear, centre + shift - linear @ centre))


def warp(image: np.ndarray, labels: np.ndarray, pose: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """An image and its labels through a 2×3 pose, mirrored beyond their borders: uint8 H×W×3 and H×W of `size`."""
    to = {"dsize": (size[1], size[0]), "borderMode": cv2.BORDER_REFLECT_101}
    linear = cv2.warpAffine(image, pose, flags=cv2.INTER_LINEAR, **to)  # type: ignore[call-overload]
    nearest = cv2.warpAffine(labels, pose, flags=cv2.INTER_NEAREST, **to)  # type: ignore[call-overload]
    return linear, nearest


def one_hot(labels: Tensor, num_objects: int) -> Tensor:
    """Label maps *×H×W as masks *×N×H×W in {0, 1}; void is nobody's."""
    return (labels.unsqueeze(-3) == torch.arange(1, num_objects + 1, device=labels.device)[:, None, None]).float()


def wrong(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How much of each frame is wrong, for label maps B×T×H×W: B×T. Void is never wrong."""
    return ((guess != truth) & (truth != VOID)).mean((2, 3))
