"""A competitor that learnt nothing: GrabCut on the annotated frame, carried to the others by optical flow.

GrabCut: Rother, Kolmogorov, Blake, SIGGRAPH 2004. Flow: dense inverse search (DIS), Kroeger et al., ECCV 2016.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from harness.api import Clip, Interaction, Method, Prediction, Stroke
from harness.rules.scribbles import draw

Flow = Literal["ultrafast", "fast", "medium"]
PRESETS: dict[Flow, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
SEED = 0  # GrabCut starts its colour models with a randomised k-means
# How far a stroke speaks, in lengths of itself: what lies nearer is likely like it, what lies farther does not change.
LIKELY, POSSIBLE = 0.1, 1.0
OTHER_COLOUR = 32  # of 255, in any channel: more than noise and shading do from one frame to the next


class GrabCut(Method):
    """A frame has the mask of the annotated frame nearest in time, carried there; of two as near, the newer one's.

    iterations: of GrabCut. flow: preset of DIS. max_side: longer side, in pixels, at which GrabCut and flow work.
    """

    takes_masks = True

    def __init__(self, iterations: int = 3, flow: Flow = "medium", max_side: int = 480) -> None:
        self.iterations = iterations
        self.dis = cv2.DISOpticalFlow.create(PRESETS[flow])
        self.dis.setFinestScale(0)  # the presets stop at half of the size, which tears small objects
        self.max_side = max_side

    def start(self, clip: Clip) -> None:
        """Begin a sample: computes the flow between neighbours, both ways."""
        self.num_objects = clip.num_objects
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)
        self.annotated: set[int] = set()
        self.frames = [shrink(frame, self.max_side) for frame in clip.frames]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.frames]
        # A frame looks up what to take from its neighbour, so flow runs from the one that takes to the one that gives.
        self.to_previous = {t: self.flow(grey[t], grey[t - 1]) for t in range(1, len(grey))}
        self.to_next = {t: self.flow(grey[t], grey[t + 1]) for t in range(len(grey) - 1)}

    def flow(self, taker: np.ndarray, giver: np.ndarray) -> np.ndarray:
        """Where each pixel of one grey frame is in the other: displacement in pixels, float32 h×w×2 (x, y)."""
        return self.dis.calc(taker, giver, np.zeros((*taker.shape, 2), np.float32))

    def interact(self, interaction: Interaction) -> Prediction:
        """Correct the annotated frame and carry its mask along. Without strokes or mask nothing changes."""
        frame = interaction.frame
        new = interaction.new.frames[frame]
        if interaction.mask is not None:
            self.masks[frame] = interaction.mask
        elif new:
            self.masks[frame] = self.correct(frame, new, interaction.all.frames[frame])
        if interaction.mask is not None or new:
            self.carry(frame)
            self.annotated.add(frame)
        return Prediction(self.masks.copy())

    def correct(self, frame: int, new: Sequence[Stroke], strokes: Sequence[Stroke]) -> np.ndarray:
        """The frame's mask after its new strokes, uint8 H×W. `strokes` are all of the frame, the new ones included.

        Where two objects claim a pixel, it is that one's which reaches farther around it.
        """
        image, mask = self.frames[frame], self.masks[frame]
        size = image.shape[:2]
        current = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
        known = draw(strokes, size)
        claims = [self.cut(image, current, known, new, label) for label in range(1, self.num_objects + 1)]
        depth = [cv2.distanceTransform(claim.astype(np.uint8), cv2.DIST_L2, 3) for claim in claims]
        labels = np.argmax([np.zeros(size), *depth], axis=0)
        labels = np.where(known >= 0, known, labels)

        height, width = mask.shape
        changed = cv2.resize((labels != current).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
        enlarged = moved(labels, self.num_objects, lambda plane: cv2.resize(plane, (width, height)))
        return np.where(changed > 0, enlarged, mask)  # the rest stays as sharp as it was

    def cut(
        self, image: np.ndarray, current: np.ndarray, known: np.ndarray, new: Sequence[Stroke], label: int
    ) -> np.ndarray:
        """The pixels of one object, bool h×w: GrabCut of it against everything else, around the new strokes.

        current: labels so far; known: labels under strokes, -1 elsewhere. An object that no new stroke marks or crosses
        keeps its pixels.
        """
        own, size = current == label, current.shape
        ours = [stroke for stroke in new if stroke.object_id == label]
        against = [stroke for stroke in new if stroke.object_id != label and own[draw([stroke], size) >= 0].any()]
        if not ours and not against:
            return own
        likely = (own | around(ours, size, LIKELY)) & ~around(against, size, LIKELY)
        likely = np.where(known >= 0, known == label, likely)
        open_to_change = around([*ours, *against], size, POSSIBLE) & (known < 0)
        probably = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
        surely = np.where(likely, cv2.GC_FGD, cv2.GC_BGD)
        trimap = np.where(open_to_change, probably, surely).astype(np.uint8)
        inside = foreground(trimap)
        if inside.all() or not inside.any():
            return inside  # GrabCut needs colours of both sides
        cv2.setRNGSeed(SEED)
        behind, inner = np.zeros((1, 65)), np.zeros((1, 65))  # the colour models, not ours to read
        cv2.grabCut(image, trimap, (0, 0, 0, 0), behind, inner, self.iterations, cv2.GC_INIT_WITH_MASK)
        return touching(foreground(trimap), own | (known == label))

    def carry(self, frame: int) -> None:
        """Give the frame's mask to those that are no nearer to another annotated frame."""
        small = cv2.resize(self.masks[frame], self.frames[frame].shape[1::-1], interpolation=cv2.INTER_NEAREST)
        colours = [histogram(self.frames[frame], small == label) for label in range(self.num_objects + 1)]
        for step, flow, back in ((1, self.to_previous, self.to_next), (-1, self.to_next, self.to_previous)):
            displacement = np.zeros((*small.shape, 2), np.float32)
            doubt = np.zeros(small.shape, np.float32)
            t = frame + step
            while t in flow and all(abs(t - frame) <= abs(t - other) for other in self.annotated - {frame}):
                # Positions are chained, masks are looked up once: no blur on the way.
                displacement = flow[t] + look_up(displacement, flow[t])
                lost = unseen(self.frames[t], self.frames[t - step], flow[t], back[t - step])
                doubt = np.maximum(lost, look_up(doubt, flow[t]))
                self.masks[t] = self.carried(self.masks[frame], displacement)
                self.drop(t, doubt > 0.5, colours)
                t += step

    def carried(self, mask: np.ndarray, displacement: np.ndarray) -> np.ndarray:
        """`mask`, uint8 H×W, as seen by a frame whose pixels come from x + displacement, float32 h×w×2."""
        (height, width), (h, w) = mask.shape, displacement.shape[:2]
        full = cv2.resize(displacement, (width, height)) * np.array((width / w, height / h), np.float32)
        # What comes from outside of the frame is background: there, all planes are 0 and the first one wins.
        return moved(mask, self.num_objects, lambda plane: look_up(plane, full, cv2.BORDER_CONSTANT))

    def drop(self, t: int, doubt: np.ndarray, colours: Sequence[np.ndarray]) -> None:
        """Take doubtful pixels, bool h×w, off the objects of frame t whose colour they have less than the background's.

        Without it objects leave a trail: ground that they uncover finds them where it looks for itself.
        """
        likelihood = [cv2.GaussianBlur(colour[bins(self.frames[t])], (5, 5), 0) for colour in colours]
        height, width = self.masks[t].shape
        for label in range(1, self.num_objects + 1):
            off = (doubt & (likelihood[label] < likelihood[0])).astype(np.float32)
            off = cv2.resize(off, (width, height)) > 0.5
            self.masks[t][off & (self.masks[t] == label)] = 0


def unseen(taker: np.ndarray, giver: np.ndarray, there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """1 where what `taker` shows is not in `giver`, 0 elsewhere, float32 h×w.

    There, flow does not come back (Sundaram, Brox, Keutzer, ECCV 2010, Equation 5), or it finds another colour.
    """
    back = look_up(back, there)
    missed, lengths = ((there + back) ** 2).sum(axis=-1), (there**2 + back**2).sum(axis=-1)
    change = cv2.absdiff(taker, look_up(giver, there)).max(axis=-1)
    return ((missed > 0.01 * lengths + 0.5) | (change > OTHER_COLOUR)).astype(np.float32)


def bins(image: np.ndarray) -> np.ndarray:
    """The colour of each pixel as one of 16³, int h×w."""
    return (image // 16) @ np.array((256, 16, 1))


def histogram(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Share of each of the 16³ colours among the chosen pixels, float32 4096."""
    counts = np.bincount(bins(image)[where], minlength=4096)
    return (counts / max(1, counts.sum())).astype(np.float32)


def shrink(frame: np.ndarray, max_side: int) -> np.ndarray:
    """uint8 H×W×3 at most `max_side` long."""
    scale = min(1.0, max_side / max(frame.shape[:2]))
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def moved(labels: np.ndarray, num_objects: int, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Labels after a linear operation on the plane of each, uint8: the strongest wins."""
    planes = [move(np.where(labels == label, 255, 0).astype(np.uint8)) for label in range(num_objects + 1)]
    return np.argmax(planes, axis=0).astype(np.uint8)


def look_up(image: np.ndarray, displacement: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """image at x + displacement(x), bilinear: H×W or H×W×C by float32 H×W×2 (x, y)."""
    height, width = displacement.shape[:2]
    x = displacement[..., 0] + np.arange(width, dtype=np.float32)
    y = displacement[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)


def around(strokes: Sequence[Stroke], size: tuple[int, int], lengths: float) -> np.ndarray:
    """Pixels no farther from a stroke than so many times its own length, bool h×w."""
    height, width = size
    near = np.zeros(size, bool)
    for stroke in strokes:
        extent = (np.ptp(stroke.path, axis=0) * (width, height)).max() + 0.02 * max(size)  # a dot speaks, too
        away = cv2.distanceTransform((draw([stroke], size) < 0).astype(np.uint8), cv2.DIST_L2, 3)
        near |= away <= lengths * extent
    return near


def foreground(trimap: np.ndarray) -> np.ndarray:
    """Where a GrabCut mask says object, surely or probably."""
    return (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)


def touching(region: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected parts of `region` that hold a seed."""
    _, parts = cv2.connectedComponents(region.astype(np.uint8))
    return region & np.isin(parts, np.unique(parts[seeds & region]))
