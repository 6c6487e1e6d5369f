"""The HTML page: what a reader sees of a board, in a real browser where there is one."""

import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harness.report import page
from harness.report.leaderboard import Board, boards, reference, table
from harness.run import records
from harness.run.records import Key, Record
from tests.test_main_job import SMALL, guests, run
from tests.test_report import play, spoil

HOSTILE = """<b>&"'</script>"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Scripts(HTMLParser):
    """Collects a page's scripts and its other text, as a browser would tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """A board (with a bad name for a method and a clip, a failure, a reported entry)."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        run(folder, *SMALL, "clock=wall", guests(folder, patch, "nothing", "raise"), "method=grabcut,nothing,raise")
    runs = folder / "results" / "runs"
    (board,) = boards(renamed(records.read(path)) for path in sorted(runs.glob("*/*-*.parquet")))
    assert [entry.failed for entry in board.entries] == [0, 0, 1]
    summary = next(entry.summary for entry in board.entries if entry.name == "grabcut")
    assert summary is not None
    reported = reference("reported", summary, board)
    assert reported is not None
    board.entries.append(reported)
    return board


def renamed(record: Record) -> Record:
    """The record, as if its method `nothing` and its second clip had names that are no HTML."""
    sample, entry = dict(record.key.sample), dict(record.key.entry)
    if entry["method"]["name"] == "nothing":
        entry["method"] = entry["method"] | {"name": HOSTILE}
    if sample["sequence"].endswith("1"):
        sample["sequence"] = HOSTILE
    return replace(record, key=Key(sample, entry), rows=record.rows.assign(sequence=sample["sequence"]))


def parsed(path: Path) -> tuple[Scripts, dict[str, Any]]:
    """A page and the data in it."""
    seen = Scripts()
    seen.feed(path.read_text(encoding="utf-8"))
    return seen, json.loads(seen.scripts[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no browser here to open the page in; install the system's package chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def open_page(browser: Browser, path: Path, width: int) -> tuple[Page, list[str]]:
    """The page in a window of `width` pixels, and what goes wrong in it from now on."""
    shown = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    shown.on("console", lambda message: wrong.append(message.text))
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
    )
    shown.goto(path.as_uri())
    return shown, wrong


def test_names_are_text_and_never_markup(board: Board, tmp_path: Path) -> None:
    """A clip or method named like a tag would break the page, or run in its reader's browser."""
    seen, data = parsed(page.write_page(board, table(board), tmp_path))
    assert len(seen.scripts) == 3
    assert seen.tags.count("b") == 4  # green, red, and the failure's method and sample
    assert seen.text.count(HOSTILE) >= 2
    assert HOSTILE in [line["label"] for line in data["lines"]]
    assert f"{HOSTILE}-1" in data["heats"][0]["samples"]
    assert "ValueError: no second clip for me" in seen.text


def test_strip_shows_what_was_recorded(board: Board, tmp_path: Path) -> None:
    """A strip with another round's masks, or strokes out of place, would blame a method for what it did not do."""
    (entry,) = (entry for entry in board.entries if entry.name == "grabcut")
    record = records.read(entry.records[0].path, content=True)
    height, width = record.clip["size"]
    strip = page.film(record, (width, height), "j_and_f")
    for i, told in enumerate(strip["rounds"], 1):
        masks = records.masks_of(record, i)
        frame, scribbles = records.scribbles_of(record, i)
        assert told["frame"] == frame
        assert frame in strip["times"]
        rows = record.rows[record.rows.interaction == i]
        assert told["score"] == pytest.approx(rows.j_and_f.mean(), abs=6e-4)
        for t, index, strokes in zip(strip["times"], told["masks"], told["strokes"], strict=True):
            png = b64decode(strip["masks"][index].partition(",")[2])
            np.testing.assert_array_equal(records.decode(png), masks[t])
            assert [stroke["object"] for stroke in strokes] == [stroke.object_id for stroke in scribbles.frames[t]]
            for stroke, drawn in zip(scribbles.frames[t], strokes, strict=True):
                corners = np.array([xy.split(",") for xy in drawn["points"].split()], float)
                assert away(stroke.path * (width, height), corners) < 0.6


def away(points: np.ndarray, corners: np.ndarray) -> float:
    """The largest distance of points (P×2) from the line through corners (C×2)."""
    start, along = corners[:-1], np.diff(corners, axis=0)
    squared = np.maximum((along**2).sum(1), 1e-9)
    place = np.clip(((points[:, None] - start) * along).sum(2) / squared, 0, 1)
    return float(np.linalg.norm(points[:, None] - start - place[..., None] * along, axis=2).min(1).max())


def test_large_boards_show_some_samples_and_say_so(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All strips of a whole dataset would make a page that no browser opens."""
    monkeypatch.setattr(page, "STRIPS", 3)
    seen, data = parsed(page.write_page(board, table(board), tmp_path))
    assert {sample for strip in data["strips"] for sample in strip["samples"]} <= {
        page.shown_samples(board, "j_and_f")[0]
    }
    assert re.search(r"1 of 2\s+samples have strips", seen.text)


def test_page_in_a_browser(board: Board, browser: Browser, tmp_path: Path) -> None:
    """Sorting, slider, heat map, hover and legend are what the page is for; it must work offline, without errors."""
    shown, wrong = open_page(browser, page.write_page(board, table(board), tmp_path), 1280)
    shown.get_by_role("button", name="J&F 3", exact=True).click()
    header = shown.get_by_role("columnheader", name="J&F 3", exact=True)
    column = [cell.inner_text() for cell in header.locator("xpath=ancestor::thead").locator("th").all()].index("J&F 3")
    for order, direction in ((sorted, "ascending"), (lambda x: sorted(x, reverse=True), "descending")):
        if header.get_attribute("aria-sort") != direction:
            shown.get_by_role("button", name="J&F 3", exact=True).click()
        assert header.get_attribute("aria-sort") == direction
        values = [float(row.locator("> *").nth(column).inner_text()) for row in shown.locator("tbody tr").all()]
        assert len(set(values)) > 1
        assert values == order(values)
    assert HOSTILE in shown.locator("tbody th").all_inner_texts()

    entry = next(
        i for i, strip in enumerate(parsed(tmp_path / "index.html")[1]["strips"]) if strip["label"] == "grabcut"
    )
    shown.locator("#film-entry").select_option(str(entry))
    shown.locator("#film-sample").select_option(f"{HOSTILE}-1")
    pictures = []
    for number in ("1", "3"):
        shown.locator("#film-round").fill(number)
        assert shown.locator("#film-told").inner_text().startswith(f"Round {number} of 3: frame ")
        assert shown.locator("#strip figure.annotated polyline").count() > 0
        pictures.append([mask.get_attribute("src") for mask in shown.locator("#strip .mask").all()])
    assert len(pictures[0]) == 6
    assert pictures[0] != pictures[1]
    assert shown.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")

    cell = shown.locator("#heat-map .nsewdrag")
    cell.hover(position={"x": 20, "y": 5})
    cell.click(position={"x": 20, "y": 5})
    assert shown.locator("#film-told").inner_text().startswith("Round 1 of 3")

    line = next(i for i, e in enumerate(e for e in board.entries if e.summary) if e.name == HOSTILE)
    shown.evaluate(f"Plotly.Fx.hover('by-round', [{{curveNumber: {line}, pointNumber: 1}}])")
    told = shown.locator("#by-round .hoverlayer").text_content() or ""
    assert HOSTILE in told
    assert "round 2" in told
    shown.locator("#legend button").nth(line).click()
    assert shown.locator("#by-round .scatterlayer .trace").count() == len(board.entries) - 1
    assert wrong == []


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window(board: Board, browser: Browser, tmp_path: Path, width: int) -> None:
    """On a phone, too, nothing may stick out of the page or lie over its neighbour."""
    shown, wrong = open_page(browser, page.write_page(board, table(board), tmp_path), width)
    shown.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    places = "section, h2, #legend, .plots > div, .controls, #heat-map, #heat-map + p, #strip figure, details, dt, dd"
    overlaps = """(nodes) => nodes.flatMap((a, i) => nodes.slice(i + 1).filter((b) => !a.contains(b)).filter((b) => {
        const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
        return p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1;
    }).map((b) => `${a.outerHTML.slice(0, 60)} / ${b.outerHTML.slice(0, 60)}`))"""
    assert shown.locator(places).evaluate_all(overlaps) == []
    assert wrong == []


def test_an_entry_without_a_finished_round_has_no_pictures_of_another(browser: Browser, tmp_path: Path) -> None:
    """The former entry's pictures and score stayed there, under its name."""
    results = tmp_path / "results"
    paths = [play(results, "drawn"), play(results, "late", rounds=0), play(results, "spoilt")]
    spoil(paths[2], lambda rows: rows.assign(mask=b"no picture"))
    (board,) = boards(records.read(path) for path in paths)
    shown, wrong = open_page(browser, page.write_page(board, table(board), tmp_path), 1280)
    assert shown.locator("#strip figure").count() > 0
    for label, told in (("late", "No round was finished"), ("spoilt", "damaged or gone")):
        shown.locator("#film-entry").select_option(label=label)
        assert told in shown.locator("#film-told").inner_text()
        assert shown.locator("#strip figure").count() == 0
        shown.locator("#film-entry").select_option(label="drawn")
        assert shown.locator("#strip figure").count() > 0
    assert wrong == []


def test_page_without_thumbnails_says_so(board: Board, browser: Browser, tmp_path: Path) -> None:
    """Whoever deletes the thumbnails keeps the rest of the page."""
    frames = board.entries[0].records[0].path.parents[1] / "frames"
    away = frames.rename(tmp_path / "away")
    try:
        written = page.write_page(board, table(board), tmp_path)
    finally:
        away.rename(frames)
    shown, wrong = open_page(browser, written, 1280)
    assert "thumbnails were deleted" in shown.locator("#film-told").inner_text()
    assert shown.locator("#by-time .trace").count() > 0
    assert wrong == []
