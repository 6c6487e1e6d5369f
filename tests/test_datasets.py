"""Reading data: what is wrong with it must be said before a method runs, in one line that names it."""

import functools
import hashlib
import http.server
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.api import BadInput
from harness.data import davis, fetch, folder

SHARED = Path(__file__).parents[2] / "shared" / "davis"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="the real clips are not here")
NUM_FRAMES = 4
H, W = 24, 32


def labels_at(t: int) -> np.ndarray:
    """Two objects, the second one from frame 1 on."""
    labels = np.zeros((H, W), np.uint8)
    labels[4:20, 3:14] = 1
    if t:
        labels[6:18, 18:28] = 2
    return labels


def save_clip(frames: Path, masks: Path, digits: int = 5) -> None:
    for path in (frames, masks):
        path.mkdir(parents=True)
    for t in range(NUM_FRAMES):
        Image.fromarray(np.full((H, W, 3), 40 * t, np.uint8)).save(frames / f"{t:0{digits}d}.jpg")
        Image.fromarray(labels_at(t)).save(masks / f"{t:0{digits}d}.png")


def save_scribbles(path: Path, sequence: str, object_ids: tuple[int, ...] = (1, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = {"start_time": 0, "end_time": 1}
    strokes = [{"path": [[0.2, 0.3], [0.3, 0.6]], "object_id": k, **times} for k in object_ids]
    path.write_text(json.dumps({"sequence": sequence, "scribbles": [[], strokes, [], []]}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset in the DAVIS layout: `cats` and `dogs`, which DAVIS does not have; one scribble for cats alone."""
    for name in ("cats", "dogs"):
        save_clip(tmp_path / "JPEGImages" / "480p" / name, tmp_path / "Annotations" / "480p" / name)
    save_scribbles(tmp_path / "Scribbles" / "cats" / "001.json", "cats")
    for year in ("2016", "2017"):
        lists = tmp_path / "ImageSets" / year
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("cats\ndogs\n")
    return tmp_path


def test_2017_keeps_objects_apart_and_2016_merges_them(root: Path) -> None:
    (apart,) = davis.load(str(root), 2017)
    (merged,) = davis.load(str(root), 2016)
    assert (apart.num_frames, apart.num_objects, apart.size) == (NUM_FRAMES, 2, (H, W))
    assert merged.num_objects == 1
    np.testing.assert_array_equal(apart.read_annotations(), [labels_at(t) for t in range(NUM_FRAMES)])
    np.testing.assert_array_equal(merged.read_annotations(), [labels_at(t) > 0 for t in range(NUM_FRAMES)])
    assert [stroke.object_id for stroke in apart.scribbles[1].frames[1]] == [1, 2]
    assert [stroke.object_id for stroke in merged.scribbles[1].frames[1]] == [1, 1]
    assert apart.manifest != merged.manifest  # or a cached score of one would pass for the other
    assert apart.read_frames().shape == (NUM_FRAMES, H, W, 3)


def test_2016_takes_its_own_lists_and_masks(root: Path) -> None:
    """The official 2016 archive lists paths of frames, and its masks are 0 and 255."""
    (root / "ImageSets" / "2016" / "val.txt").unlink()
    (root / "ImageSets" / "480p").mkdir()
    pairs = [f"/JPEGImages/480p/cats/{t:05d}.jpg /Annotations/480p/cats/{t:05d}.png" for t in range(NUM_FRAMES)]
    (root / "ImageSets" / "480p" / "val.txt").write_text("\n".join(pairs))
    for path in (root / "Annotations" / "480p" / "cats").iterdir():
        Image.fromarray(255 * (np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    (clip,) = davis.load(str(root), 2016)
    assert clip.name == "cats"
    assert set(np.unique(clip.read_annotations())) == {0, 1}


def test_sequences_without_scribbles(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [clip.name for clip in davis.load(str(root))] == ["cats"]
    assert "dogs" in caplog.text
    with pytest.raises(BadInput, match="dogs"):
        davis.load(str(root), without_scribbles="refuse")
    assert [len(clip.scribbles) for clip in davis.load(str(root), without_scribbles="keep")] == [1, 0]
    with pytest.raises(BadInput, match="no sequence has scribbles"):
        davis.load(str(root), sequences=["dogs"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def scratch(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-30] ^= 255
    path.write_bytes(data)


def only_first_annotation(root: Path) -> None:
    for t in range(1, NUM_FRAMES):
        (root / "Annotations/480p/cats" / f"{t:05d}.png").unlink()


def repaint(root: Path, labels: np.ndarray) -> None:
    for path in (root / "Annotations/480p/cats").iterdir():
        Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda root: (root / "JPEGImages/480p/cats/00002.jpg").unlink(), "00002.jpg: missing"),
        (lambda root: (root / "Annotations/480p/cats/00003.png").unlink(), "00003.png: missing"),
        (only_first_annotation, "cannot be scored here"),
        (lambda root: cut(root / "JPEGImages/480p/cats/00001.jpg"), "00001.jpg: the image is cut off"),
        (lambda root: cut(root / "Annotations/480p/cats/00001.png"), "00001.png: the image is cut off"),
        (lambda root: scratch(root / "Annotations/480p/cats/00001.png"), "00001.png: damaged image"),
        (lambda root: (root / "JPEGImages/480p/cats/00001.jpg").write_text("<html>"), "00001.jpg: no readable image"),
        (lambda root: (root / "Annotations/480p/cats/00001.png").write_bytes(b"\x89PNG"), "00001.png: no readable"),
        (lambda root: Image.new("L", (W, H - 1)).save(root / "Annotations/480p/cats/00001.png"), "00001.png: 32x23"),
        (lambda root: Image.new("RGB", (W, H)).save(root / "Annotations/480p/cats/00001.png"), "00001.png: neither"),
        (lambda root: repaint(root, np.full((H, W), 255, np.uint8)), "no annotation has an object"),
        (lambda root: repaint(root, labels_at(0)), "001.json: a stroke of object 2"),
        (lambda root: save_scribbles(root / "Scribbles/cats/002.json", "dogs"), "002.json: sequence is 'dogs'"),
        (lambda root: save_scribbles(root / "Scribbles/cats/002.json", "cats", ()), "002.json: no stroke"),
        (lambda root: (root / "ImageSets/2017/val.txt").unlink(), "val.txt: missing"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("cats\nbirds\n"), "birds: no frames"),
    ],
)
def test_defects_are_named_when_listing(root: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(root)
    with pytest.raises(BadInput) as error:
        davis.load(str(root))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_gaps_in_labels_and_void_are_fine(root: Path) -> None:
    labels = 3 * (labels_at(1) == 1).astype(np.uint8)
    labels[0] = 255
    repaint(root, labels)
    (clip,) = davis.load(str(root))
    assert clip.num_objects == 3


def test_official_sequences_must_be_whole(root: Path) -> None:
    """A clip of fewer frames or objects gives a number nobody can compare."""
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\n")
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / "cats").rename(root / kind / "480p" / "bear")
    with pytest.raises(BadInput, match="bear: the files have 4 frames, 2 objects, 32x24; officially 82 frames, 1"):
        davis.load(str(root))


def test_the_table_is_that_of_the_benchmark() -> None:
    facts = davis.official_facts()
    assert len(facts) == 120
    assert sum("2016," in line for line in davis.TABLE.read_text().splitlines()) == 50
    assert (facts["dogs-jump"].frames, facts["dogs-jump"].objects) == (66, 3)
    assert facts["shooting"].size == "1152x480"


def test_unknown_names_and_places(root: Path) -> None:
    with pytest.raises(BadInput, match=r"cows not in .*known: cats, dogs"):
        davis.load(str(root), sequences=["cats", "cows"])
    with pytest.raises(BadInput, match=r"task=data dataset=davis2017 dataset\.root="):
        davis.load(str(root / "nowhere"))


@REAL
def test_real_clips(caplog: pytest.LogCaptureFixture) -> None:
    clips = davis.load(str(SHARED))
    first_frames = {clip.name: clip.scribbles[1].annotated_frames for clip in clips}
    assert first_frames == {"blackswan": [25], "car-shadow": [12], "drift-chicane": [50]}
    assert "libby" in caplog.text
    assert clips[0].read_frames().shape == (50, 480, 854, 3)
    assert set(np.unique(clips[0].read_annotations())) == {0, 1}


def test_folder_draws_the_first_scribble(tmp_path: Path) -> None:
    save_clip(tmp_path / "frames" / "mine", tmp_path / "masks" / "mine")
    (clip,) = folder.load(str(tmp_path), first_frame="middle")
    assert clip.drawn_by == "robot"
    assert clip.scribbles[1].annotated_frames == [2]
    assert {stroke.object_id for stroke in clip.scribbles[1].frames[2]} == {1, 2}
    draws = [folder.load(str(tmp_path), first_frame="random", seed=seed)[0].manifest for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1


def test_folder_sorts_numbers_by_value(tmp_path: Path) -> None:
    """frame10 after frame9, or the clip is played out of order."""
    paths = [tmp_path / f"frame{t}.png" for t in (10, 9, 1)]
    assert [path.stem for path in folder.by_number(paths)] == ["frame1", "frame9", "frame10"]


def test_folder_names_what_is_wrong(tmp_path: Path) -> None:
    save_clip(tmp_path / "frames" / "mine", tmp_path / "masks" / "mine")
    with pytest.raises(BadInput, match=r"mine: dataset\.first_frame=9; choose 0\.\.3"):
        folder.load(str(tmp_path), first_frame=9)
    Image.new("L", (W, H)).save(tmp_path / "masks" / "mine" / "00000.png")
    with pytest.raises(BadInput, match=r"00000\.png: nothing on frame 0"):
        folder.load(str(tmp_path))
    (tmp_path / "masks" / "mine" / "00002.png").unlink()
    with pytest.raises(BadInput, match="mine: no mask for 00002"):
        folder.load(str(tmp_path))
    with pytest.raises(BadInput, match="no such folder"):
        folder.load(str(tmp_path / "masks"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server of the folder `web`; gives its address."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def pack(path: Path, members: dict[str, str]) -> str:
    """Write a zip; gives its sha256."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetch_unpacks_and_does_nothing_twice(tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture) -> None:
    sha256 = pack(tmp_path / "web" / "a.zip", {"DAVIS/ImageSets/2017/val.txt": "cats", "DAVIS/README": "hello"})
    root = tmp_path / "data" / "mine"
    with caplog.at_level(logging.INFO):
        fetch.fetch(str(root), [{"url": f"{server}/a.zip", "sha256": None}])
    assert sha256 in caplog.text
    assert (root / "ImageSets" / "2017" / "val.txt").read_text() == "cats"
    (tmp_path / "web" / "a.zip").unlink()
    (root / "README").unlink()
    before = (root / "ImageSets" / "2017" / "val.txt").stat().st_mtime_ns
    fetch.fetch(str(root), [{"url": f"{server}/a.zip", "sha256": sha256}])
    assert (root / "README").read_text() == "hello"
    assert (root / "ImageSets" / "2017" / "val.txt").stat().st_mtime_ns == before


def test_fetch_refuses_what_is_not_the_archive(tmp_path: Path, server: str) -> None:
    pack(tmp_path / "web" / "a.zip", {"DAVIS/README": "hello"})
    (tmp_path / "web" / "b.zip").write_text("<html>moved</html>")
    with pytest.raises(BadInput, match="sha256 is not 00"):
        fetch.fetch(str(tmp_path / "DAVIS"), [{"url": f"{server}/a.zip", "sha256": "00" * 32}])
    with pytest.raises(BadInput, match=r"b\.zip: damaged"):
        fetch.fetch(str(tmp_path / "DAVIS"), [{"url": f"{server}/b.zip", "sha256": None}])
    with pytest.raises(BadInput, match=r"404.*put it at .*archives/c\.zip"):
        fetch.fetch(str(tmp_path / "DAVIS"), [{"url": f"{server}/c.zip", "sha256": None}])
    assert not (tmp_path / "DAVIS").exists()


@pytest.mark.parametrize("member", ["../evil", "DAVIS/../../evil", "/evil"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, member: str) -> None:
    pack(tmp_path / "a.zip", {"DAVIS/README": "hello", member: "evil"})
    with pytest.raises(BadInput, match="would land outside"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "DAVIS")
    assert not (tmp_path / "DAVIS").exists()
    assert not (tmp_path / "evil").exists()
