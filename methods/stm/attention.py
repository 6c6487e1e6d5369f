"""What the memory read attends to (Oh et al., TPAMI 2020, Section 5.4, Figure 9)."""

import math
from collections.abc import Sequence

import cv2
import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from harness.api import BadInput, Clip, Interaction, Scribbles, Stroke
from harness.rules.scribbles import empty, fuse
from methods.blocks.decoder import enlarge
from methods.blocks.padding import crop, pad
from methods.stm.method import STM

STRIDE = 16
OUTLINE = withStroke(linewidth=2.6, foreground="black")


def figure(player: STM, clip: Clip, rounds: Sequence[tuple[int, Scribbles]], query: int) -> Figure:
    """What a frame attends to in the memory after some rounds: above for an object, below for one position in it.

    rounds: annotated frame and new strokes of each round of a played sample, which are played again.
    query: index of the frame that reads. The object is the largest that STM sees there; the position its innermost.
    Strokes are those an entry was last written with, green on the object and red off it.
    Raises BadInput for a frame that is not of the clip or without an object, and for no rounds.
    """
    if query not in range(len(clip.frames)):
        raise BadInput(f"query={query}: {clip.name} has frames 0..{len(clip.frames) - 1}")
    if not rounds:
        raise BadInput(f"{clip.name}: no round was played, so there is no memory to show; play the sample again")
    labels = replay(player, clip, rounds)[query]
    if not labels.any():
        raise BadInput(f"query={query}: STM sees no object in this frame of {clip.name}; choose another")
    label = int(np.bincount(labels[labels > 0]).argmax())
    chosen = {"object": inside(labels == label), "one position": innermost(labels == label)}

    entries = list(player.state.memory)
    played = {t: [n for n, (frame, _) in enumerate(rounds, 1) if frame == t] for t in entries}
    with mpl.rc_context({"font.size": 8}):
        columns = 1 + len(entries)
        height, width = labels.shape
        size = (2 * columns + 1, 2 * (1.9 * height / width + 0.2) + 0.6)
        picture = Figure(figsize=size, dpi=150, layout="constrained")
        axes = picture.subplots(2, columns, squeeze=False)
        for row, (name, where) in zip(axes, chosen.items(), strict=True):
            weights = attention(player, query, label, where)
            show(row[0], marked(clip.frames[query], where))
            row[0].set_ylabel(name)
            for axis, t, share in zip(row[1:], entries, weights, strict=True):
                show(axis, dimmed(clip.frames[t]))
                heat = glow(axis, fit(share, labels.shape), float(weights.max()))
                strokes(axis, rounds[played[t][-1] - 1][1].frames[t], label, labels.shape)
                axis.set_xlabel(f"{share.sum():.0%} of the weight")
            picture.colorbar(heat, ax=row, shrink=0.8, pad=0.01, format="%.2g").set_label("weight of a position")
        axes[0, 0].set_title(f"query: frame {query}")
        for axis, t in zip(axes[0, 1:], entries, strict=True):
            plural = "rounds" if len(played[t]) > 1 else "round"
            axis.set_title(f"memory: frame {t}, {plural} {', '.join(map(str, played[t]))}")
        picture.suptitle(f"What STM's memory read attends to: {clip.name}, object {label}", fontsize=9)
    return picture


def replay(player: STM, clip: Clip, rounds: Sequence[tuple[int, Scribbles]]) -> np.ndarray:
    """Play the rounds of a sample again, so that its memory is at hand. Returns labels, uint8 T×H×W."""
    player.start(clip)
    drawn = empty(clip.name, len(clip.frames))
    for frame, new in rounds:
        drawn = fuse(drawn, new)
        prediction = player.interact(Interaction(frame, new, drawn))
    return prediction.masks


@torch.inference_mode()
def attention(player: STM, query: int, label: int, where: np.ndarray) -> np.ndarray:
    """The normalised weights f / Z of Equation 2 from positions of a frame to the memory, averaged over them.

    query, label: index of the frame, number of the object; where: the positions, bool h×w, H and W padded, by 16.
    Returns float32 E×h×w for the E entries of `player.state.memory`, in their order; the sum is 1.
    """
    sample = player.state
    memory = torch.stack([entry.key[label - 1] for entry in sample.memory.values()], dim=1).float()  # C/8×E×h×w
    rows = sample.encode(slice(query, query + 1)).key[0][:, torch.from_numpy(where)].float()  # C/8×positions
    affinity = rows.T @ memory.flatten(1) / math.sqrt(len(rows))  # as in methods.blocks.memory.read_memory
    return affinity.softmax(dim=-1).mean(dim=0).view(memory.shape[1:]).cpu().numpy()


def inside(mask: np.ndarray) -> np.ndarray:
    """The positions most of which a mask covers, bool H×W to h×w; of a mask too small for it, the fullest."""
    covered = F.avg_pool2d(pad(torch.from_numpy(mask).float()[None]), STRIDE)[0]
    return (covered >= min(0.5, covered.max().item())).numpy()


def innermost(mask: np.ndarray) -> np.ndarray:
    """The position that is deepest inside of a mask, bool H×W to h×w."""
    depth = torch.from_numpy(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5))
    deepest = F.max_pool2d(pad(depth[None]), STRIDE)[0]
    return (torch.arange(deepest.numel()) == deepest.argmax()).view(deepest.shape).numpy()


def fit(weights: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """h×w weights at the size of the frame, H×W."""
    height, width = size
    return crop(enlarge(torch.from_numpy(weights)[None, None], STRIDE), (height, width))[0, 0].numpy()


def marked(frame: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A frame with positions, bool h×w, in red."""
    height, width, _ = frame.shape
    large = torch.from_numpy(where).repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1)
    there = crop(large, (height, width)).numpy()[..., None]
    return np.where(there, 0.5 * frame + 0.5 * np.array((255, 0, 0)), frame).astype(np.uint8)


def dimmed(frame: np.ndarray) -> np.ndarray:
    """A frame in dark grey, for colours to be seen on it."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return np.repeat((0.7 * grey).astype(np.uint8)[..., None], 3, axis=2)


def show(axis: Axes, image: np.ndarray) -> None:
    """A picture without ticks."""
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def glow(axis: Axes, weights: np.ndarray, most: float) -> AxesImage:
    """Weights, H×W, over what is shown, the clearer the nearer they are to `most`."""
    seen = np.sqrt(weights.clip(0, most) / most)
    return axis.imshow(weights, cmap="inferno", vmin=0, vmax=most, alpha=seen)


def strokes(axis: Axes, drawn: Sequence[Stroke], label: int, size: tuple[int, ...]) -> None:
    """Strokes of a frame, green on the object and red off it."""
    height, width = size
    for stroke in drawn:
        x, y = (stroke.path * (width - 1, height - 1)).T
        colour = "#00FF00" if stroke.object_id == label else "#FF0000"
        axis.plot(x, y, color=colour, linewidth=1.3, path_effects=[OUTLINE], scalex=False, scaley=False)
