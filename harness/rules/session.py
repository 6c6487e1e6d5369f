"""The robot-agent loop."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from harness.api import VOID, BadInput, Clip, Interaction, Method, Prediction, Scribbles, Stroke
from harness.rules.clock import Clock
from harness.rules.metrics import Scorer
from harness.rules.protocol import Protocol
from harness.rules.robot import correct, next_frame
from harness.rules.scribbles import empty, fuse


class InvalidPrediction(Exception):
    """A method answered something that is not a `Prediction` of its clip."""


@dataclass(frozen=True)
class Round:
    """What one round of a sample came to.

    interaction: its number, from 1.
    frame: the annotated frame; new: the strokes of this round.
    masks: uint8 T×H×W. jaccard, contour: float64 T×N, NaN on frames the protocol does not score.
    seconds: what the method took.
    """

    interaction: int
    frame: int
    new: Scribbles
    masks: np.ndarray
    jaccard: np.ndarray
    contour: np.ndarray
    seconds: float


def play(
    method: Method, clip: Clip, truth: np.ndarray, scribbles: Scribbles, protocol: Protocol, clock: Clock
) -> Iterator[Round]:
    """Play one sample: yields its rounds, until the rounds or the time budget are used up.

    truth: uint8 T×H×W, 0 background, 255 void. scribbles: those of the first round.
    Raises InvalidPrediction, or whatever the method raises.
    """
    frame = first_frame(scribbles, protocol)
    gives_masks = protocol.interaction == "masks"
    new = drawn = empty(clip.name, len(truth)) if gives_masks else scribbles
    score = Scorer(truth, clip.num_objects)
    scored = slice(1, -1) if protocol.scored == "but_first_and_last" else slice(None)
    used: set[int] = set()
    spent = 0.0
    if hasattr(method, "warm_up"):
        method.warm_up(clip)

    for number in count(1):
        mask = np.where(truth[frame] == VOID, 0, truth[frame]) if gives_masks else None
        question = Interaction(frame, read_only(new), read_only(drawn), mask)
        with clock.method(clip) as elapsed:
            if number == 1:
                method.start(clip)
            prediction = method.interact(question)
        spent += elapsed.seconds
        if spent > protocol.seconds(clip.num_objects):
            return  # an answer after the deadline counts as none, as in the official session
        masks = check(prediction, clip)

        with clock.evaluation() as evaluation:
            jaccard, contour = (unscored_as_nan(values, scored) for values in score(masks))
            if number < protocol.last_round:
                quality = {"J": jaccard, "F": contour, "J_AND_F": 0.5 * jaccard + 0.5 * contour}[protocol.metric]
                offered = None if prediction.candidates is None else [int(t) for t in prediction.candidates]
                candidates = protocol.candidates(number, frame, offered)
                worst = next_frame(quality, used, len(truth), candidates)
                pair = masks[worst], truth[worst]
                strokes = [] if gives_masks else correct(*pair, clip.num_objects, **protocol.robot)
        yield Round(number, frame, new, masks, jaccard, contour, elapsed.seconds)
        if number >= protocol.last_round:
            return
        used.add(worst)
        frame, new = worst, on_frame(strokes, worst, drawn)
        drawn = fuse(drawn, new)
        if protocol.budget == "official":
            spent += evaluation.seconds
        if spent > protocol.seconds(clip.num_objects):
            return


def first_frame(scribbles: Scribbles, protocol: Protocol) -> int:
    """The frame of the first round: the protocol's, or the one the scribble is on.

    Raises BadInput if there is none, or if the protocol gives strokes and asks about a frame that has none.
    """
    frame, drawn_on = protocol.first_frame, scribbles.annotated_frames
    if not drawn_on and (frame is None or protocol.interaction == "strokes"):
        raise BadInput(f"{scribbles.sequence}: no scribbles, which protocol={protocol.name} starts from; leave it out")
    if frame is None:
        return drawn_on[0]
    if frame >= len(scribbles.frames):
        last = len(scribbles.frames) - 1
        raise BadInput(f"protocol.first_frame={frame}: {scribbles.sequence} has frames 0..{last}; choose one of them")
    if protocol.interaction == "strokes" and frame not in drawn_on:
        raise BadInput(
            f"protocol.first_frame={frame}: the first scribble of {scribbles.sequence} is on frame {drawn_on[0]}; "
            "say protocol.first_frame=null, or give masks with protocol.interaction=masks"
        )
    return frame


def read_only(scribbles: Scribbles) -> Scribbles:
    """A copy that a method cannot write to: records, the rounds after and other methods have strokes as drawn."""

    def locked(stroke: Stroke) -> Stroke:
        path = stroke.path.copy()
        path.flags.writeable = False
        return replace(stroke, path=path)

    return replace(scribbles, frames=tuple(tuple(map(locked, strokes)) for strokes in scribbles.frames))


def on_frame(strokes: list[Stroke], frame: int, like: Scribbles) -> Scribbles:
    """The robot's strokes as scribbles of the clip."""
    frames = list(empty(like.sequence, len(like.frames)).frames)
    frames[frame] = tuple(strokes)
    return Scribbles(like.sequence, tuple(frames))


def unscored_as_nan(values: np.ndarray, scored: slice) -> np.ndarray:
    """T×N with NaN on the frames that the protocol does not score."""
    kept = np.full_like(values, np.nan)
    kept[scored] = values[scored]
    return kept


def check(prediction: Prediction, clip: Clip) -> np.ndarray:
    """The masks of a prediction, uint8 T×H×W, as they are now: a copy, which the method cannot change later.

    Raises InvalidPrediction unless they are label masks for every frame of `clip`.
    """
    given = getattr(prediction, "masks", None)
    if not isinstance(given, np.ndarray):
        raise InvalidPrediction(f"masks: {type(given).__name__}, wanted a numpy array")
    masks = np.array(given)
    if np.issubdtype(masks.dtype, np.floating) and np.isnan(masks).any():
        raise InvalidPrediction("masks hold NaN, wanted labels")
    if masks.dtype != np.uint8:
        raise InvalidPrediction(f"masks: dtype {masks.dtype}, wanted uint8")
    if masks.shape != clip.frames.shape[:3]:
        raise InvalidPrediction(f"masks: shape {masks.shape}, wanted {clip.frames.shape[:3]}")
    if masks.max() > clip.num_objects:
        raise InvalidPrediction(f"masks: label {masks.max()}, wanted 0..{clip.num_objects}")
    for frame in () if prediction.candidates is None else prediction.candidates:
        if frame not in range(len(masks)):
            raise InvalidPrediction(f"candidates: frame {frame}, wanted 0..{len(masks) - 1}")
    return masks
