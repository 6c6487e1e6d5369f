"""Embedded clips: made on the fly from photographs that installed packages carry; nothing is downloaded.

One to three objects with a deforming outline, each filled with a piece of a photograph, move, turn, grow, hide each
other, leave and come back before a moving camera. Training and evaluation clips show different photographs.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from harness.api import BadInput, Scribbles
from harness.data.sequence import Sequence, robot_scribbles
from harness.rules.scribbles import to_json

GENERATOR = 1  # the version of what is made here; clips of another one are other clips
SPLITS = ("train", "val")
FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
PHOTOGRAPHS = {
    "train": {
        "skimage": (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "clock_motion.png",
            "coffee.png",
            "grass.png",
            "hubble_deep_field.jpg",
            "moon.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
            "retina.jpg",
            "text.png",
        ),
        "sklearn": ("china.jpg",),
    },
    "val": {
        "skimage": ("chelsea.png", "coins.png", "gravel.png", "ihc.png", "page.png", "rocket.jpg"),
        "sklearn": ("flower.jpg",),
        "matplotlib": ("grace_hopper.jpg",),
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


@dataclass(frozen=True)
class Body:
    """One object as it moves.

    outline: float32 T×P×2, x and y in pixels.
    poses: float64 T×3×3, from its own coordinates (outline radius about 1) to pixels.
    blur: float64 T×2, how far it moves while the shutter is open, in pixels.
    """

    outline: np.ndarray
    poses: np.ndarray
    blur: np.ndarray


def load(
    split: Literal["train", "val"] = "val",
    clips: int = 8,
    frames: int = 20,
    size: Items[int] = (160, 288),
    max_objects: int = 3,
    seed: int = 0,
) -> list[Sequence]:
    """The same clips for the same arguments; the robot draws the first scribble of each on a frame of its choice.

    split: which photographs the clips are made of.
    frames: per clip.
    size: (H, W) in pixels.
    max_objects: clips have 1, 2, ... max_objects objects in turn.
    Raises BadInput for arguments no clip can be made with.
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


def load_clip(split: str, index: int, num_frames: int, size: tuple[int, int], num_objects: int, seed: int) -> Sequence:
    """One clip, made here and kept."""
    name = f"{split}-{index:02d}"
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    frames, annotations = generate(rng, photographs(split), num_frames, size, num_objects)
    scribbles = first_scribbles(rng, name, annotations, num_objects)
    content = hashlib.sha256(json.dumps([frames.shape, to_json(scribbles)]).encode())
    content.update(frames.data)
    content.update(annotations.data)
    return Sequence(
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
    size: Items[int],
    num_objects: int,
    seed: int,
    *,
    generator: int | None = None,
) -> str:
    """What makes a clip: "generator 1: split=val, ...", the version of the generator, today's by default, and its
    arguments."""
    height, width = size
    arguments = f"split={split}, clip={index}, frames={num_frames}, size={height}x{width}"
    return f"generator {generator or GENERATOR}: {arguments}, objects={num_objects}, seed={seed}"


def first_scribbles(rng: np.random.Generator, name: str, annotations: np.ndarray, num_objects: int) -> Scribbles:
    """The robot's scribbles on a random frame on which it draws on every object."""
    candidates = np.flatnonzero(in_sight(annotations, num_objects).all(1))
    for frame in rng.permutation(candidates):
        scribbles = robot_scribbles(name, len(annotations), int(frame), annotations[frame], num_objects)
        if {stroke.object_id for stroke in scribbles.frames[frame]} == set(range(1, num_objects + 1)):
            return scribbles
    raise BadInput(f"{name}: objects too small to scribble on; choose another dataset.seed or a larger dataset.size")


@cache
def photographs(split: str) -> list[np.ndarray]:
    """The photographs of a split, uint8 H×W×3, RGB; grey ones have three equal channels."""
    return [read_photograph(package, file) for package, files in PHOTOGRAPHS[split].items() for file in files]


def read_photograph(package: str, file: str) -> np.ndarray:
    """A photograph out of an installed package, which is not imported: that would take seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(f"package {package} is not installed, and dataset=synthetic needs its photographs; run uv sync")
    path = Path(spec.origin).parent / FOLDERS[package] / file
    if not path.is_file():
        raise BadInput(f"{path}: missing, and dataset=synthetic needs it; reinstall {package}")
    image = Image.open(path).convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def generate(
    rng: np.random.Generator,
    photographs: Items[np.ndarray],
    num_frames: int,
    size: tuple[int, int],
    num_objects: int,
    *,
    stride: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A random clip: frames uint8 T×H×W×3, RGB, and annotations uint8 T×H×W, labels 0..num_objects.

    photographs: uint8 H×W×3, RGB.
    size: (H, W).
    stride: time between two frames; 3 looks like every third frame of a clip with 1.
    Every object is in sight on most frames, and all are together on one at least.
    Raises BadInput if no such clip is found.
    """
    # The shutter opens before and closes after the instant that is annotated.
    time = rng.uniform(0, 1000) + stride * np.arange(num_frames) + SHUTTER * np.array([[0], [-0.5], [0.5]])
    for _ in range(ATTEMPTS):
        camera = move_camera(rng, time, size)
        bodies = [make_body(rng, time, size, camera) for _ in range(num_objects)]
        order = rng.permutation(num_objects)  # from the back to the front
        coverage = [[cover(body.outline[t], size) for body in bodies] for t in range(num_frames)]
        annotations = np.zeros((num_frames, *size), np.uint8)
        for t in range(num_frames):
            for index in order:
                annotations[t][coverage[t][index] > 127] = index + 1
        visible = in_sight(annotations, num_objects)
        if visible.all(1).any() and (visible.mean(0) >= IN_SIGHT).all():
            break
    else:
        raise BadInput(f"no clip found in which {num_objects} objects stay in sight; take fewer (dataset.max_objects)")
    frames = render(rng, photographs, time[0], camera, bodies, order, coverage)
    return frames, annotations


def in_sight(annotations: np.ndarray, num_objects: int) -> np.ndarray:
    """Whether a sensible part of each object is seen: bool T×N."""
    areas = [np.bincount(labels.ravel(), minlength=num_objects + 1)[1:] for labels in annotations]
    return np.array(areas) >= VISIBLE * annotations[0].size


def wander(rng: np.random.Generator, time: np.ndarray, reach: float, slowest: float = 90.0) -> np.ndarray:
    """A smooth random path through `time`, within about ±reach."""
    periods = rng.uniform([slowest / 3, slowest / 5], [slowest, slowest / 2])
    phases = rng.uniform(0, 2 * np.pi, 2)
    slow, fast = (np.sin(2 * np.pi * time / period + phase) for period, phase in zip(periods, phases, strict=True))
    return reach * (0.75 * slow + 0.25 * fast)


def similarity(scale: ArrayLike, angle: ArrayLike, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Scale, rotate (radians), then shift: ...×3×3 for arguments of one shape."""
    cosine, sine, zero = np.multiply(scale, np.cos(angle)), np.multiply(scale, np.sin(angle)), np.zeros_like(x)
    rows = [[cosine, -sine, x], [sine, cosine, y], [zero, zero, zero + 1]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def move_camera(rng: np.random.Generator, time: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Zoom, roll and pan: poses of the world, ...×3×3 for `time`, from pixels at rest to pixels."""
    height, width = size
    restless = rng.choice([0.15, 1.0])  # a tripod or a hand
    zoom = np.exp(wander(rng, time, 0.18 * restless))
    angle = wander(rng, time, 0.10 * restless)
    x, y = wander(rng, time, 0.16 * width * restless), wander(rng, time, 0.12 * height * restless)
    to_centre = similarity(1.0, 0.0, -width / 2, -height / 2)
    return similarity(zoom, angle, x + width / 2, y + height / 2) @ to_centre


def make_body(rng: np.random.Generator, time: np.ndarray, size: tuple[int, int], camera: np.ndarray) -> Body:
    """A random object on its way."""
    height, width = size
    radius = np.sqrt(height * width * np.exp(rng.uniform(np.log(0.04), np.log(0.18))) / np.pi)
    x = rng.uniform(0.12, 0.88) * width + wander(rng, time, rng.uniform(0.05, 0.30) * width)
    y = rng.uniform(0.15, 0.85) * height + wander(rng, time, rng.uniform(0.05, 0.25) * height)
    angle = rng.uniform(0, 2 * np.pi) + wander(rng, time, rng.uniform(0.1, 0.9))
    scale = radius * np.exp(wander(rng, time, rng.uniform(0.05, 0.25)))
    poses = camera @ similarity(scale, angle, x, y)
    shape = outline(rng, time[0])
    placed = shape @ poses[0, :, :2, :2].swapaxes(1, 2) + poses[0, :, None, :2, 2]
    return Body(placed.astype(np.float32), poses[0], poses[2, :, :2, 2] - poses[1, :, :2, 2])


def outline(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A deforming closed curve around the origin, of radius about 1: float64 T×CORNERS×2.

    A Fourier series of the radius over the angle, stretched and bent, all of which change with time.
    """
    theta = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = np.ones((len(time), CORNERS))
    for order in range(2, 8):
        amplitude = rng.normal(0, 0.5 / order) * (1 + wander(rng, time, 0.5, slowest=40))
        phase = rng.uniform(0, 2 * np.pi) + wander(rng, time, 1.0)
        radius += amplitude[:, None] * np.cos(order * theta + phase[:, None])
    radius = 0.25 + np.logaddexp(0, 3 * (radius - 0.25)) / 3  # a waist never closes
    x, y = radius * np.cos(theta), radius * np.sin(theta)
    stretch = np.exp(rng.uniform(-0.35, 0.35) + wander(rng, time, 0.12, slowest=50))[:, None]
    bend = (rng.uniform(-0.35, 0.35) + wander(rng, time, 0.15, slowest=50))[:, None]
    x, y = x * stretch, y / stretch
    return np.stack([x, y + bend * (x**2 - 0.5)], -1)


def cover(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How much of each pixel lies inside a polygon: uint8 H×W, 255 for all of it."""
    mask = np.zeros(size, np.uint8)
    shift = 4  # bits of a pixel's fraction
    cv2.fillPoly(mask, [np.round(corners * 2**shift).astype(np.int32)], 255, cv2.LINE_AA, shift)
    return mask


def render(
    rng: np.random.Generator,
    photographs: Items[np.ndarray],
    time: np.ndarray,
    camera: np.ndarray,
    bodies: list[Body],
    order: np.ndarray,
    coverage: list[list[np.ndarray]],
) -> np.ndarray:
    """Paint a clip, uint8 T×H×W×3: the background, the objects in `order`, then what a lens and a sensor do to it."""
    num_frames, (height, width) = len(coverage), coverage[0][0].shape
    picks = rng.choice(len(photographs), 1 + len(bodies), replace=len(photographs) <= len(bodies))
    if len(bodies) > 1 and rng.random() < 0.25:
        picks[2] = picks[1]  # two of a kind
    surplus = np.array([width, height]) // 4  # on each side, for the camera to pan over
    backdrop = recolour(rng, piece(rng, photographs[picks[0]], height + 2 * surplus[1], width + 2 * surplus[0]), [])
    colours = [mean_colour(backdrop)]
    textures = []
    for body, pick in zip(bodies, picks[1:], strict=True):
        side = max(8, round(2 * REACH * np.sqrt(np.linalg.det(body.poses[:, :2, :2])).mean()))
        textures.append(recolour(rng, piece(rng, photographs[pick], side, side), colours))
        colours.append(mean_colour(textures[-1]))

    rest = similarity(1.0, 0.0, *-surplus)
    centre = np.array([width / 2, height / 2, 1])
    pan = ((camera[2] - camera[1]) @ centre)[:, :2]
    defocus = 0.45 + np.maximum(0, wander(rng, time, rng.choice([0.2, 1.2])))
    light = 1 + wander(rng, time, 0.12)[:, None] + wander(rng, time, 0.03)[:, None] * rng.normal(size=3)
    grain = rng.uniform(1, 5) * rng.standard_normal((height + 32, width + 32, 3), np.float32)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        frame = smear(warp(backdrop, camera[0, t] @ rest, (height, width)), pan[t])
        for index in order:
            paint(frame, textures[index], coverage[t][index], bodies[index].poses[t], bodies[index].blur[t])
        frame = cv2.GaussianBlur(frame, (0, 0), defocus[t])
        y, x = rng.integers(32, size=2)
        frame = frame * light[t].astype(np.float32) + grain[y : y + height, x : x + width]
        frames[t] = np.clip(np.rint(frame), 0, 255)
    return frames


def paint(frame: np.ndarray, texture: np.ndarray, mask: np.ndarray, pose: np.ndarray, blur: np.ndarray) -> None:
    """Paint an object over `frame` (float32 H×W×3) where `mask` covers it, and darken both sides of its outline."""
    soft = 2 * (len(texture) // 24) + 3
    left, top, columns, rows = cv2.boundingRect(mask)
    if not columns:
        return
    margin = soft + int(np.abs(blur).max())
    region = (
        slice(max(0, top - margin), min(len(mask), top + rows + margin)),
        slice(max(0, left - margin), min(mask.shape[1], left + columns + margin)),
    )
    alpha = mask[region].astype(np.float32) / 255
    side = len(texture)
    to_object = similarity(2 * REACH / side, 0.0, -REACH, -REACH)
    to_region = similarity(1.0, 0.0, -region[1].start, -region[0].start)
    surface = smear(warp(texture, to_region @ pose @ to_object, alpha.shape), blur)
    depth = cv2.blur(cv2.blur(alpha, (soft, soft)), (soft, soft))[..., None]
    alpha = smear(alpha, blur)[..., None]
    behind = frame[region] * (1 - 0.5 * depth)
    frame[region] = behind + alpha * (surface * (0.5 + 0.5 * depth) - behind)


def warp(image: np.ndarray, pose: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """An image seen through a 3×3 pose, as float32 of `size` (H, W); beyond its border it is mirrored."""
    warped = cv2.warpAffine(image, pose[:2], size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return warped.astype(np.float32)


def smear(image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Motion blur: the mean of `image` along `motion` (x and y in pixels), which runs through each pixel's centre."""
    length = np.abs(motion).max()
    if length < 1:
        return image
    reach = int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for x, y in np.rint(reach + np.linspace(-0.5, 0.5, 4 * reach + 1)[:, None] * motion).astype(int):
        kernel[y, x] += 1
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def piece(rng: np.random.Generator, photograph: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random part of a photograph, of three the one with most to see, scaled to uint8 height×width×3."""
    largest = min(photograph.shape[0] / height, photograph.shape[1] / width)
    crops = []
    for _ in range(3):
        rows, columns = (np.array([height, width]) * largest * rng.uniform(0.5, 1)).astype(int)
        top, left = (rng.integers(space + 1) for space in photograph.shape[:2] - np.array([rows, columns]))
        crops.append(photograph[top : top + rows, left : left + columns])
    crop = max(crops, key=lambda crop: float(crop[::16, ::16].std()))
    shrinks = crop.shape[0] > height
    scaled = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled[:, ::-1] if rng.random() < 0.5 else scaled


def mean_colour(image: np.ndarray) -> np.ndarray:
    """The mean of each channel, float64 3."""
    return np.array(cv2.mean(image)[:3])


def recolour(rng: np.random.Generator, image: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """`image` in other colours, grey ones tinted, such that its mean stays away from those in `others`; uint8."""
    mean = mean_colour(image)
    grey = (image[::4, ::4, 0] == image[::4, ::4, 1]).all()
    best, most = (np.ones(3), np.zeros(3)), -1.0
    for _ in range(12):
        if grey:
            offset = rng.uniform(0, 90, 3)
            gain = (rng.uniform(130, 255, 3) - offset) / 255
        else:
            gain, offset = rng.uniform(0.8, 1.2) * rng.uniform(0.8, 1.2, 3), rng.uniform(-30, 30, 3)
        colour = np.clip(gain * mean + offset, 0, 255)
        distance = min((float(np.linalg.norm(colour - other)) for other in others), default=DISTINCT)
        if distance > most:
            best, most = (gain, offset), distance
        if distance >= DISTINCT:
            break
    gain, offset = best
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])
