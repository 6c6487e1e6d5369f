"""A competitor that learnt nothing: GrabCut on the annotated frame, carried to the others by optical flow.

GrabCut: Rother, Kolmogorov, Blake, SIGGRAPH 2004. Flow: dense inverse search (DIS), Kroeger et al., ECCV 2016.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from harness.api import Clip, Interaction, Method, Prediction, Stroke
from harness.scribbles import draw

Flow = Literal["ultrafast", "fast", "medium"]
PRESETS: dict[Flow, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
SEED = 0  # GrabCut starts its colour models with a randomised k-means
# How far a stroke speaks, in lengths of itself: what lies nearer is likely like it, what lies farther does not change.
LIKELY, POSSIBLE = 0.1, 1.0


class GrabCut(Method):
    """A frame has the mask of the annotated frame nearest in time, carried there; of two as near, the newer one's.

    iterations: of GrabCut. flow: preset of DIS. max_side: longer side, in pixels, at which GrabCut and flow work.
    """

    takes_masks = True

    def __init__(self, iterations: int = 3, flow: Flow = "medium", max_side: int = 480) -> None:
        self.iterations = iterations
        self.flow = cv2.DISOpticalFlow.create(PRESETS[flow])
        self.max_side = max_side

    def start(self, clip: Clip) -> None:
        """Begin a sample: computes the flow between neighbours, both ways."""
        self.num_objects = clip.num_objects
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)
        self.annotated: set[int] = set()
        self.frames = [shrink(frame, self.max_side) for frame in clip.frames]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.frames]
        # A frame looks up what to take from its neighbour, so flow runs from the one that takes to the one that gives.
        none = np.zeros((*grey[0].shape, 2), np.float32)
        self.to_previous = {t: self.flow.calc(grey[t], grey[t - 1], none.copy()) for t in range(1, len(grey))}
        self.to_next = {t: self.flow.calc(grey[t], grey[t + 1], none.copy()) for t in range(len(grey) - 1)}

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
        possible = around([*ours, *against], size, POSSIBLE)
        trimap = np.where(likely, cv2.GC_FGD, cv2.GC_BGD)
        trimap[possible] = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD)[possible]
        trimap[known >= 0] = np.where(known == label, cv2.GC_FGD, cv2.GC_BGD)[known >= 0]
        trimap = trimap.astype(np.uint8)
        inside = foreground(trimap)
        if inside.all() or not inside.any():
            return inside  # GrabCut needs colours of both sides
        cv2.setRNGSeed(SEED)
        models = np.zeros((2, 1, 65))
        cv2.grabCut(image, trimap, (0, 0, 0, 0), *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        return touching(foreground(trimap), own | (known == label))

    def carry(self, frame: int) -> None:
        """Give the frame's mask to those that are no nearer to another annotated frame."""
        for step, flow in ((1, self.to_previous), (-1, self.to_next)):
            displacement = np.zeros((*self.frames[frame].shape[:2], 2), np.float32)
            t = frame + step
            while t in flow and all(abs(t - frame) <= abs(t - other) for other in self.annotated - {frame}):
                # Positions are chained, masks are looked up once: no blur on the way.
                displacement = flow[t] + look_up(displacement, flow[t], cv2.BORDER_REPLICATE)
                self.masks[t] = self.carried(self.masks[frame], displacement)
                t += step

    def carried(self, mask: np.ndarray, displacement: np.ndarray) -> np.ndarray:
        """`mask`, uint8 H×W, as seen by a frame whose pixels come from x + displacement, float32 h×w×2."""
        (height, width), (h, w) = mask.shape, displacement.shape[:2]
        full = cv2.resize(displacement, (width, height)) * np.array((width / w, height / h), np.float32)
        # What comes from outside of the frame is background: there, all planes are 0 and the first one wins.
        return moved(mask, self.num_objects, lambda plane: look_up(plane, full, cv2.BORDER_CONSTANT))


def shrink(frame: np.ndarray, max_side: int) -> np.ndarray:
    """uint8 H×W×3 at most `max_side` long."""
    scale = min(1.0, max_side / max(frame.shape[:2]))
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def moved(labels: np.ndarray, num_objects: int, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Labels after a linear operation on the plane of each, uint8: the strongest wins."""
    planes = [move(np.where(labels == label, 255, 0).astype(np.uint8)) for label in range(num_objects + 1)]
    return np.argmax(planes, axis=0).astype(np.uint8)


def look_up(image: np.ndarray, displacement: np.ndarray, border: int) -> np.ndarray:
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
