"""One page to look at: a board's table, curves, heat map, film strips, failures and provenance in one HTML file."""

import gc
from base64 import b64encode
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from harness.api import BadInput, Stroke
from harness.report.figures import OBJECTS, styles, untrained
from harness.report.leaderboard import READING, Board, Entry, curve, notes, remarks, words
from harness.rules.summary import COLUMN
from harness.run import records
from harness.run.records import Record

STRIPS = 60  # film strips on a page; more make it too heavy to open
PICTURES = 8  # frames of a strip, beside those that were annotated
GONE = "This clip's thumbnails were deleted or are damaged: play one of its samples again to have its film strips."
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}  # matplotlib's lines as Plotly calls them


def write_page(board: Board, scores: pd.DataFrame, folder: Path) -> Path:
    """Write `folder`/index.html, which needs neither network nor other files.

    scores: the board's table.
    """
    column = COLUMN[board.protocol.metric]
    shown = shown_samples(board, column)
    gc.disable()  # a strip's strokes are parsed from millions of small lists, none in a cycle, which it would walk
    try:
        clips, strips = films(board, shown, column)
    finally:
        gc.enable()
    data = {
        "metric": board.metric,
        "clock": board.clock,
        "lines": lines(board),
        "heats": [heat(entry, column) for entry in board.entries if len(entry.rounds)],
        "clips": clips,
        "strips": strips,
    }
    template = environment().get_template("page.html.j2")
    html = template.render(
        board=board,
        columns=list(scores.columns),
        rows=cells(board, scores),
        remarks=remarks(board),
        untrained=[entry.label for entry in board.entries if untrained(entry)],
        failures=[(e.label, name_of(r), r.status, r.error) for e in board.entries for r in e.failures],
        shown=shown,
        notes=[note.partition(": ") for note in (*READING, *remarks(board), *notes(board))],
        data=data,
        plotly=Markup(get_plotlyjs()),
    )
    path = folder / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def environment() -> Environment:
    """Templates that escape every value and refuse unknown names; NaN, which is no JSON, is refused too."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return made


def cells(board: Board, scores: pd.DataFrame) -> list[list[tuple[str, str, bool]]]:
    """A table row by row: (column, text, whether that stands for a number that there is not)."""
    pairs = zip(words(board, scores).to_numpy(), (scores.isna() | (scores == "")).to_numpy(), strict=True)
    return [list(zip(scores.columns, texts, absent, strict=True)) for texts, absent in pairs]


def name_of(record: Record) -> str:
    """A sample's name, `sequence-scribble_idx`."""
    return f"{record.key.sample['sequence']}-{record.key.sample['scribble_idx']}"


def lines(board: Board) -> list[dict[str, Any]]:
    """The official curve of each entry that has one: (0, 0), then a point per round."""
    entries = [entry for entry in board.entries if entry.summary]
    drawn = []
    for entry, (colour, dash) in zip(entries, styles(entries), strict=True):
        time, score = curve(entry, board)
        look = {"colour": colour, "dash": DASHES[dash]}
        mark = f" (no times: {entry.untimed})" if entry.untimed else ""
        seconds = [None] * (len(time) - 1) if entry.untimed else time[:-1]
        drawn.append({"label": entry.label + untrained(entry) + mark, **look, "time": seconds, "score": score[:-1]})
    return drawn


def heat(entry: Entry, column: str) -> dict[str, Any]:
    """Mean score of each sample (row) after each round (column); null where the sample had ended."""
    mean = entry.rounds.groupby(["sequence", "scribble_idx", "interaction"])[column].mean().unstack()
    samples = [f"{sequence}-{index}" for sequence, index in mean.index]
    scores = [[rounded(score) for score in row] for row in mean.to_numpy()]
    return {"label": entry.label + untrained(entry), "samples": samples, "rounds": list(mean), "scores": scores}


def rounded(score: float) -> float | None:
    """A score with three decimals; None for a frame or round that has none."""
    return None if np.isnan(score) else round(float(score), 3)


def shown_samples(board: Board, column: str) -> list[str]:
    """The samples that have film strips: all if they are few, else some, evenly from the worst to the best."""
    ends = [
        entry.rounds.sort_values("interaction").groupby(["sequence", "scribble_idx", "frame", "object_id"]).last()
        for entry in board.entries
        if entry.records and len(entry.rounds)
    ]
    if not ends:
        return []
    final = pd.concat(ends).groupby(["sequence", "scribble_idx"])[column].mean().sort_values()
    names = [f"{sequence}-{index}" for sequence, index in final.index]
    count = min(len(names), max(1, STRIPS // len(ends)))
    return sorted(names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int))


def films(board: Board, shown: list[str], column: str) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The pictures of the samples `shown`: (clips by manifest, entries with a strip per sample).

    A clip is {size, frames}, its frames embedded once for all entries; a strip without pictures tells why: {told}.
    """
    entries = [entry for entry in board.entries if entry.records]
    strips: list[dict[str, Any]] = [{"label": e.label + untrained(e), "samples": {}} for e in entries]
    playings: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        for record in entry.records:
            if name_of(record) in shown:
                strips[index]["samples"][name_of(record)] = {"clip": record.key.sample["manifest"]}
                playings[record.key.sample["manifest"]].append((index, record))
    clips: dict[str, dict[str, Any]] = {}
    for manifest, played in playings.items():
        frames = records.read_thumbnails(played[0][1])
        size = (0, 0) if frames is None else (frames.shape[2], frames.shape[1])
        times: set[int] = set()
        for index, record in played:
            strip = strips[index]["samples"][name_of(record)]
            if frames is None:
                strip["told"] = GONE
            elif record.rows.empty:
                strip["told"] = "No round was finished in time."
            else:
                try:
                    strip |= film(records.read(record.path, content=True), size, column)
                    times.update(strip["times"])
                except BadInput as error:
                    strip["told"] = str(error)
        if frames is not None:
            clips[manifest] = {"size": size, "frames": {t: photograph(frames[t]) for t in sorted(times)}}
    return clips, [strip for strip in strips if strip["samples"]]


def film(record: Record, size: tuple[int, int], column: str) -> dict[str, Any]:
    """One sample's rounds, from a record read with its content; pictures have `size` (width, height).

    Returns {times, masks, rounds}: the frames shown, the masks that occur, and per round the annotated frame, its
    score, and per frame shown its score, the index of its mask and its new strokes. Raises BadInput if masks or
    strokes are damaged.
    """
    rows = record.rows
    rounds = [int(i) for i in sorted(rows["interaction"].unique())]
    marked = {i: records.scribbles_of(record, i) for i in rounds}
    spread = np.linspace(0, record.clip["num_frames"] - 1, PICTURES).round().astype(int).tolist()
    annotated = [t for frame, scribbles in marked.values() for t in (frame, *scribbles.annotated_frames)]
    times = sorted({*spread, *annotated})
    score = rows.groupby(["interaction", "frame"])[column].mean()
    mean = rows.groupby("interaction")[column].mean()
    pngs = rows.dropna(subset="mask").set_index(["interaction", "frame"])["mask"].to_dict()
    masks: dict[bytes, int] = {}
    told = []
    if any((i, t) not in pngs for i in rounds for t in times):
        raise BadInput(f"{record.path}: masks are {records.DAMAGED}")
    for i in rounds:
        frame, scribbles = marked[i]
        told.append(
            {
                "frame": frame,
                "score": rounded(mean[i]),
                "scores": [rounded(score[i, t]) for t in times],
                "masks": [masks.setdefault(pngs[i, t], len(masks)) for t in times],
                "strokes": [[line(stroke, size) for stroke in scribbles.frames[t]] for t in times],
            }
        )
    try:
        return {"times": times, "masks": [tint(png, size) for png in masks], "rounds": told}
    except ValueError as error:
        raise BadInput(f"{record.path}: masks are {records.DAMAGED}") from error


def line(stroke: Stroke, size: tuple[int, int]) -> dict[str, Any]:
    """A stroke as the points of an SVG polyline, in pixels of a picture of `size`, within half a pixel."""
    path = cv2.approxPolyDP((stroke.path * size).astype(np.float32), 0.5, closed=False)[:, 0]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*path, path[-1]))  # a single point is drawn if it is there twice
    return {"object": stroke.object_id, "points": points}


def tint(png: bytes, size: tuple[int, int]) -> str:
    """A label map's PNG as one of `size` in the objects' colours, its background transparent; ValueError for none."""
    mask = cv2.resize(records.decode(png), size, interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(np.where(mask, (mask - 1) % 5 + 1, 0).astype(np.uint8), mode="P")
    image.putpalette(OBJECTS.ravel().tolist())
    file = BytesIO()
    image.save(file, "PNG", bits=4, transparency=0)
    return embedded(file.getvalue(), "png")


def photograph(frame: np.ndarray) -> str:
    """An RGB frame as a JPEG."""
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return embedded(jpeg.tobytes(), "jpeg")


def embedded(image: bytes, kind: str) -> str:
    """An image as the address of itself."""
    return f"data:image/{kind};base64,{b64encode(image).decode()}"
