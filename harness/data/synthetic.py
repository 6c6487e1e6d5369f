"""Embedded clips: made on the fly from photographs that installed packages carry; nothing is downloaded.

One to three objects with a deforming outline, each filled with a piece of a photograph, move, turn, grow, hide each
other, leave and come back before a moving camera. Training and evaluation clips show different photographs.

Frames, truth and first scribbles are the same to the bit on every machine: see `harness.data.exact`.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from harness.api import BadInput, Scribbles
from harness.data.exact import (
    CORNER,
    GREY,
    ONE,
    PLACE,
    Draws,
    box,
    cosine,
    cover,
    develop,
    exponential,
    gaussian,
    lay,
    resize,
    sine,
    smear,
    warp,
)
from harness.data.sequence import VideoSequence, robot_scribbles
from harness.rules.robot import bounding_box
from harness.rules.scribbles import to_json

GENERATOR = 2  # counts up with every change of what comes out
SPLITS = ("train", "val")
FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
PHOTOGRAPHS = {  # with digests of their pixels
    "train": {
        "skimage": {
            "astronaut.png": "a8c429c18afa7b0f",
            "brick.png": "3501e216fb0968c3",
            "camera.png": "13e2b4aa92cb1649",
            "clock_motion.png": "bd64c6ee0d85e182",
            "coffee.png": "0ce2b51640b9c95f",
            "grass.png": "c7ca5c984d6b5a27",
            "hubble_deep_field.jpg": "9a3ea9548188f81e",
            "moon.png": "a641c47851a3252e",
            "motorcycle_left.png": "ca829467c1d4f427",
            "motorcycle_right.png": "ae44d83f55e66623",
            "retina.jpg": "3670e389d0dae9f7",
            "text.png": "36c90cb1af920325",
        },
        "sklearn": {"china.jpg": "e701459344fd6979"},
    },
    "val": {
        "skimage": {
            "chelsea.png": "416b729128bfb2c3",
            "coins.png": "aaecc2ad43bd43e2",
            "gravel.png": "e73bd88250cbfd7f",
            "ihc.png": "c5b3ef509a92f16d",
            "page.png": "ec733fa2c4086658",
            "rocket.jpg": "3d4435cc745752b7",
        },
        "sklearn": {"flower.jpg": "3202904ed246795b"},
        "matplotlib": {"grace_hopper.jpg": "f7f982de68dd296a"},
    },
}
LONGEST_SIDE = 640  # pixels; photographs larger than that are shrunk once

ATTEMPTS = 500
CORNERS = 96  # of an outline
VISIBLE = 0.012  # of the frame: an object smaller than that counts as out of sight
IN_SIGHT = 0.7  # of the frames of a clip, for every object
SHUTTER = 0.5  # of the time between two frames
REACH = 1.6  # of a texture, in radii of its object
DISTINCT = 60.0  # grey levels between the mean colours of an object and what is behind it


class Pose(NamedTuple):
    """Scales, rotates and shifts: x goes to a x - b y + dx, y to b x + a y + dy. float64, of one shape each."""

    a: np.ndarray
    b: np.ndarray
    dx: np.ndarray
    dy: np.ndarray

    def at(self, index: Any) -> "Pose":
        """Some of the poses."""
        return Pose(*(part[index] for part in self))

    def move(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Where a point goes."""
        return self.a * x - self.b * y + self.dx, self.b * x + self.a * y + self.dy

    def after(self, first: "Pose") -> "Pose":
        """The pose that does `first` and then this one."""
        a, b = self.a * first.a - self.b * first.b, self.b * first.a + self.a * first.b
        return Pose(a, b, *self.move(first.dx, first.dy))

    def fixed_inverse(self) -> np.ndarray:
        """The way back, as `warp` takes it: int64 ...×4."""
        square = self.a * self.a + self.b * self.b
        a, b = self.a / square, -self.b / square
        back = (a, b, b * self.dy - a * self.dx, -b * self.dx - a * self.dy)
        return np.rint(np.stack(back, -1) * 2**PLACE).astype(np.int64)


@dataclass(frozen=True)
class Body:
    """One object as it moves.

    outline: int64 T×P×2, x and y as `cover` takes them.
    pose: of T, from its own coordinates (outline radius about 1) to pixels.
    blur: float64 T×2, how far it moves while the shutter is open, in pixels.
    """

    outline: np.ndarray
    pose: Pose
    blur: np.ndarray


def load(
    split: Literal["train", "val"] = "val",
    clips: int = 8,
    frames: int = 20,
    size: tuple[int, int] = (160, 288),
    max_objects: int = 3,
    seed: int = 0,
) -> list[VideoSequence]:
    """The same clips for the same arguments; the robot draws the first scribble of each on a frame of its choice.

    split: which photographs the clips are made of.
    frames: per clip.
    size: (H, W) in pixels.
    max_objects: clips have 1, 2, ... max_objects objects in turn.
    Raises BadInput for arguments no clip can be made with, and for photographs other than ours.
    """
    if split not in SPLITS:
        raise BadInput(f"dataset.split={split}: choose train or val")
    height, width = size
    if min(clips, frames, max_objects) < 1 or min(height, width) < 32 or max_objects > 9:
        raise BadInput(
            f"dataset: clips={clips}, frames={frames}, size={height}x{width}, max_objects={max_objects}; "
            "wanted clips and frames of at least 1, a size of at least 32x32, and 1 to 9 objects"
        )
    return [load_clip(split, index, frames, (height, width), 1 + index % max_objects, seed) for index in range(clips)]


def load_clip(
    split: str, index: int, num_frames: int, size: tuple[int, int], num_objects: int, seed: int
) -> VideoSequence:
    """One clip, made here and kept."""
    name = f"{split}-{index:02d}"
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    frames, annotations = generate(rng, photographs(split), num_frames, size, num_objects)
    scribbles = first_scribbles(rng, name, annotations, num_objects)
    content = hashlib.sha256(json.dumps([frames.shape, to_json(scribbles)]).encode())
    content.update(frames.data)
    content.update(annotations.data)
    return VideoSequence(
        name=name,
        num_frames=num_frames,
        num_objects=num_objects,
        size=size,
        manifest=content.hexdigest(),
        scribbles={1: scribbles},
        read_frames=frames.copy,
        read_annotations=annotations.copy,
        drawn_by="robot",
        made_by=made_by(split, index, num_frames, size, num_objects, seed),
    )


def made_by(
    split: str,
    index: int,
    num_frames: int,
    size: Sequence[int],
    num_objects: int,
    seed: int,
    *,
    generator: int | None = None,
) -> str:
    """What makes a clip: the version of the generator, today's by default, and its arguments, as one text."""
    height, width = size
    arguments = f"split={split}, clip={index}, frames={num_frames}, size={height}x{width}"
    return f"generator {generator or GENERATOR}: {arguments}, objects={num_objects}, seed={seed}"


def first_scribbles(rng: np.random.Generator, name: str, annotations: np.ndarray, num_objects: int) -> Scribbles:
    """The robot's scribbles on a random frame on which it draws on every object."""
    candidates = np.flatnonzero(in_sight(annotations, num_objects).all(1))
    for choice in Draws(rng).permutation(len(candidates)):
        frame = int(candidates[choice])
        scribbles = robot_scribbles(name, len(annotations), frame, annotations[frame], num_objects)
        if {stroke.object_id for stroke in scribbles.frames[frame]} == set(range(1, num_objects + 1)):
            return scribbles
    raise BadInput(f"{name}: objects too small to scribble on; choose another dataset.seed or a larger dataset.size")


@cache
def photographs(split: str) -> list[np.ndarray]:
    """The photographs of a split, uint8 H×W×3, RGB; grey ones have three equal channels."""
    return [
        read_photograph(package, file, digest)
        for package, files in PHOTOGRAPHS[split].items()
        for file, digest in files.items()
    ]


def read_photograph(package: str, file: str, digest: str) -> np.ndarray:
    """A photograph out of an installed package, which is not imported: that would take seconds.

    Raises BadInput where it is missing, and where its pixels are not those of `digest`.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(f"package {package} is not installed, and dataset=synthetic needs its photographs; run uv sync")
    path = Path(spec.origin).parent / FOLDERS[package] / file
    if not path.is_file():
        raise BadInput(f"{path}: missing, and dataset=synthetic needs it; reinstall {package}")
    image = np.asarray(Image.open(path).convert("RGB"))
    if (found := hashlib.sha256(image.tobytes()).hexdigest()[:16]) != digest:
        raise BadInput(
            f"{path}: its pixels have digest {found}, not {digest}: {package} or pillow is of a version whose "
            "photographs differ, and so would all scores on dataset=synthetic; run uv sync"
        )
    longest = max(image.shape)
    if longest <= LONGEST_SIDE:
        return image
    return resize(image, *(round(side * LONGEST_SIDE / longest) for side in image.shape[:2]))


def generate(
    rng: np.random.Generator,
    photographs: Sequence[np.ndarray],
    num_frames: int,
    size: tuple[int, int],
    num_objects: int,
    *,
    stride: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A random clip: frames uint8 T×H×W×3, RGB, and annotations uint8 T×H×W, labels 0..num_objects.

    rng: on PCG64.
    photographs: uint8 H×W×3, RGB.
    size: (H, W).
    stride: time between two frames; 3 looks like every third frame of a clip with 1.
    Every object is in sight on most frames, and all are together on one at least.
    Raises BadInput if no such clip is found.
    """
    draws = Draws(rng)
    # The shutter opens before and closes after the instant that is annotated.
    time = draws.uniform(0, 1000) + stride * np.arange(num_frames) + SHUTTER * np.array([[0], [-0.5], [0.5]])
    for _ in range(ATTEMPTS):
        camera = move_camera(draws, time, size)
        bodies = [make_body(draws, time, size, camera) for _ in range(num_objects)]
        order = draws.permutation(num_objects)  # from the back to the front
        coverage = [[cover(body.outline[t], *size) for body in bodies] for t in range(num_frames)]
        annotations = np.zeros((num_frames, *size), np.uint8)
        for t in range(num_frames):
            for index in order:
                annotations[t][coverage[t][index] >= ONE // 2] = index + 1
        visible = in_sight(annotations, num_objects)
        if visible.all(1).any() and (visible.sum(0) >= IN_SIGHT * num_frames).all():
            break
    else:
        raise BadInput(f"no clip found in which {num_objects} objects stay in sight; take fewer (dataset.max_objects)")
    frames = render(draws, photographs, time[0], camera, bodies, order, coverage)
    return frames, annotations


def in_sight(annotations: np.ndarray, num_objects: int) -> np.ndarray:
    """Whether a sensible part of each object is seen: bool T×N."""
    areas = [np.bincount(labels.ravel(), minlength=num_objects + 1)[1:] for labels in annotations]
    return np.array(areas) >= VISIBLE * annotations[0].size


def wander(draws: Draws, time: np.ndarray, reach: ArrayLike, slowest: float = 90.0) -> np.ndarray:
    """Smooth random paths through `time`, each within about ±reach: float64 (shape of reach)×(shape of time)."""
    each = np.reshape(reach, (*np.shape(reach), *(1 for _ in time.shape)))
    periods = draws.uniforms([slowest / 3, slowest / 5], [slowest, slowest / 2], *each.shape, 2)
    phases = draws.uniforms(0, 2 * np.pi, *each.shape, 2)
    waves = sine(2 * np.pi * time[..., None] / periods + phases)
    return each * (0.75 * waves[..., 0] + 0.25 * waves[..., 1])


def similarity(scale: ArrayLike, angle: ArrayLike, x: ArrayLike, y: ArrayLike) -> Pose:
    """Scale, rotate (radians), then shift."""
    return Pose(np.multiply(scale, cosine(angle)), np.multiply(scale, sine(angle)), np.asarray(x), np.asarray(y))


def place(scale: float, x: float, y: float) -> Pose:
    """Scale, then shift."""
    return Pose(*np.array([scale, 0, x, y], np.float64))


def move_camera(draws: Draws, time: np.ndarray, size: tuple[int, int]) -> Pose:
    """Zoom, roll and pan: poses of the world for `time`, from pixels at rest to pixels."""
    height, width = size
    restless = 0.15 if draws.chance(0.5) else 1.0  # a tripod or a hand
    zoom, angle, x, y = wander(draws, time, np.array([0.18, 0.10, 0.16 * width, 0.12 * height]) * restless)
    return similarity(exponential(zoom), angle, x + width / 2, y + height / 2).after(place(1, -width / 2, -height / 2))


def make_body(draws: Draws, time: np.ndarray, size: tuple[int, int], camera: Pose) -> Body:
    """A random object on its way."""
    height, width = size
    area = height * width * exponential(draws.uniform(-3.2, -1.7))  # 0.04 to 0.18 of the frame
    ways = draws.uniforms([0.05 * width, 0.05 * height, 0.1, 0.05], [0.30 * width, 0.25 * height, 0.9, 0.25], 4)
    x, y, angle, growth = wander(draws, time, ways)
    x += draws.uniform(0.12, 0.88) * width
    y += draws.uniform(0.15, 0.85) * height
    angle += draws.uniform(0, 2 * np.pi)
    pose = camera.after(similarity(np.sqrt(area / np.pi) * exponential(growth), angle, x, y))
    now, opened, closed = (pose.at(k) for k in range(3))
    corners = np.stack(now.at(np.s_[:, None]).move(*outline(draws, time[0])), -1)
    corners = np.rint((corners + 0.5) * CORNER).astype(np.int64)  # a pixel's centre is where its index says
    return Body(corners, now, np.stack([closed.dx - opened.dx, closed.dy - opened.dy], -1))


def outline(draws: Draws, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A deforming closed curve around the origin, of radius about 1: x and y, float64 T×CORNERS each.

    A Fourier series of the radius over the angle, stretched and bent, all of which change with time.
    """
    theta = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    orders = np.arange(2, 8)
    amplitudes = 0.5 * draws.bell(6)[:, None] / orders[:, None] * (1 + wander(draws, time, np.full(6, 0.5), slowest=40))
    phases = draws.uniforms(0, 2 * np.pi, 6)[:, None] + wander(draws, time, np.full(6, 1.0))
    waves = amplitudes[..., None] * cosine(orders[:, None, None] * theta + phases[..., None])
    radius = np.full((len(time), CORNERS), 0.75)
    for wave in waves:
        radius += wave
    radius = 0.25 + (radius + np.sqrt(radius * radius + 0.1)) / 2  # a waist never closes
    x, y = radius * cosine(theta), radius * sine(theta)
    stretch = exponential(draws.uniform(-0.35, 0.35) + wander(draws, time, 0.12, slowest=50))[:, None]
    bend = (draws.uniform(-0.35, 0.35) + wander(draws, time, 0.15, slowest=50))[:, None]
    x, y = x * stretch, y / stretch
    return x, y + bend * (x * x - 0.5)


def render(
    draws: Draws,
    photographs: Sequence[np.ndarray],
    time: np.ndarray,
    camera: Pose,
    bodies: list[Body],
    order: list[int],
    coverage: list[list[np.ndarray]],
) -> np.ndarray:
    """Paint a clip, uint8 T×H×W×3: the background, the objects in `order`, then what a lens and a sensor do to it."""
    num_frames, (height, width) = len(coverage), coverage[0][0].shape
    picks = draws.permutation(len(photographs))
    if len(photographs) <= len(bodies):
        picks = [draws.below(len(photographs)) for _ in range(1 + len(bodies))]
    if len(bodies) > 1 and draws.chance(0.25):
        picks[2] = picks[1]  # two of a kind
    right, down = width // 4, height // 4  # how much more there is on each side, for the camera to pan over
    backdrop = recolour(draws, piece(draws, photographs[picks[0]], height + 2 * down, width + 2 * right), [])
    colours = [mean_colour(backdrop)]
    textures = []
    backs = []
    for body, pick in zip(bodies, picks[1:], strict=False):
        scales = np.sqrt(body.pose.a * body.pose.a + body.pose.b * body.pose.b)
        side = max(8, round(2 * REACH * math.fsum(scales.tolist()) / num_frames))
        textures.append(recolour(draws, piece(draws, photographs[pick], side, side), colours))
        colours.append(mean_colour(textures[-1]))
        backs.append(body.pose.after(place(2 * REACH / side, -REACH, -REACH)).fixed_inverse())

    now, opened, closed = (camera.at(k) for k in range(3))
    from_camera = now.after(place(1, -right, -down)).fixed_inverse()
    pan = np.subtract(closed.move(width / 2, height / 2), opened.move(width / 2, height / 2)).T
    defocus = 0.45 + np.maximum(0, wander(draws, time, 0.2 if draws.chance(0.5) else 1.2))
    light = 1 + wander(draws, time, 0.12)[:, None] + wander(draws, time, 0.03)[:, None] * draws.bell(3)
    light = np.rint(light * ONE).astype(np.int32)
    grain = np.rint(draws.uniform(1, 5) * GREY * draws.bell(height + 32, width + 32, 3)).astype(np.int32)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        picture = smear(warp(backdrop, from_camera[t], 0, 0, height, width), pan[t])
        for index in order:
            paint(picture, textures[index], coverage[t][index], backs[index][t], bodies[index].blur[t])
        frames[t] = develop(picture, gaussian(defocus[t]), light[t], grain, draws.below(32), draws.below(32))
    return frames


def paint(picture: np.ndarray, texture: np.ndarray, mask: np.ndarray, back: np.ndarray, blur: np.ndarray) -> None:
    """Paint an object over `picture` where `mask` covers it, and darken both sides of its outline.

    picture: int32 H×W×3 in 1/GREY. mask: int32 H×W in 1/ONE. back: from the picture to the texture, as `warp` has it.
    """
    soft = 2 * (len(texture) // 24) + 3
    region = bounding_box(mask > 0, margin=soft + int(np.abs(blur).max()))
    alpha = mask[region]
    if not alpha.size:
        return
    surface = smear(warp(texture, back, region[0].start, region[1].start, *alpha.shape), blur)
    lay(picture[region], surface, smear(alpha, blur), box(box(alpha, soft), soft))


def piece(draws: Draws, photograph: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random part of a photograph, of three the one with most to see, scaled to uint8 height×width×3."""
    largest = min(photograph.shape[0] / height, photograph.shape[1] / width)
    crops = []
    for _ in range(3):
        zoom = largest * draws.uniform(0.5, 1)
        rows, columns = max(1, int(height * zoom)), max(1, int(width * zoom))
        top, left = draws.below(photograph.shape[0] - rows + 1), draws.below(photograph.shape[1] - columns + 1)
        crops.append(photograph[top : top + rows, left : left + columns])
    scaled = resize(max(crops, key=variance), height, width)
    return scaled[:, ::-1] if draws.chance(0.5) else scaled


def variance(image: np.ndarray) -> float:
    """How much there is to see in an image, by every 16th pixel."""
    levels = image[::16, ::16].astype(np.int64)
    return (levels.size * int((levels * levels).sum()) - int(levels.sum()) ** 2) / levels.size**2


def mean_colour(image: np.ndarray) -> np.ndarray:
    """The mean of each channel, float64 3."""
    return np.array(cv2.sumElems(image)[:3]) / (image.shape[0] * image.shape[1])


def recolour(draws: Draws, image: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """`image` in other colours, grey ones tinted, such that its mean stays away from those in `others`; uint8."""
    mean = mean_colour(image)
    grey = (image[::4, ::4, 0] == image[::4, ::4, 1]).all()
    best, most = (np.ones(3), np.zeros(3)), -1.0
    for _ in range(12):
        if grey:
            offset = draws.uniforms(0, 90, 3)
            gain = (draws.uniforms(130, 255, 3) - offset) / 255
        else:
            gain = draws.uniform(0.8, 1.2) * draws.uniforms(0.8, 1.2, 3)
            offset = draws.uniforms(-30, 30, 3)
        colour = np.clip(gain * mean + offset, 0, 255)
        distance = min(
            (math.sqrt(math.fsum(((colour - other) * (colour - other)).tolist())) for other in others), default=DISTINCT
        )
        if distance > most:
            best, most = (gain, offset), distance
        if distance >= DISTINCT:
            break
    gain, offset = best
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])
