"""Whatever is in a file, its reader gives something sound or refuses it in one line.

The long run, with counts: `uv run pytest tests/test_fuzz.py --hypothesis-profile=long --hypothesis-show-statistics`
"""

import io
import json
import math
import re
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from harness.api import BadInput
from harness.data import davis, fetch, folder, scribble_files
from harness.data.images import digest_line, inspect, read_annotations, read_frames
from harness.data.sequence import VideoSequence, choose, plain
from harness.report.exchange import read_csv, read_summary
from harness.rules import scribbles
from harness.rules.summary import report_columns, summarize
from harness.tasks.score import read_mask
from methods.blocks.weights import fill, read_official, read_safetensors, rename

EDIT = struct.Struct("<BHHB4s")  # what, in which part, where in it, which token, or else which bytes

EXAMPLES = max(200, settings().max_examples)
PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MOST_MEMORY = 2**20  # KiB that a kind's inputs may add to the process
H, W = 24, 32


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    parts: what a sound one is made of. pack: makes a file of parts, with the lengths and checksums they now have.
    read: the reader; may raise BadInput. use: what is done next with what it gave; may raise nothing.
    tokens: what stands in such files, or should not.
    """

    parts: list[bytes]
    read: Callable[[Path], Any]
    pack: Callable[[list[bytes]], bytes] = b"".join
    use: Callable[[Any], object] = id
    tokens: tuple[bytes, ...] = ()


NUMBERS = (b"NaN", b"-Infinity", b"1e999", b"-1", b"1.5", b"9" * 400, b"true", b"null")
JSON = (
    *(*NUMBERS, b"0", b"1", b"[]", b"{}", b"[0, 1]", b"[[0, 0]]", b'"x"', b'"\\n\\ud800"', b'"time"'),
    *(b"[" * 100_000, b"[" * 900 + b"]" * 900, b"\xef\xbb\xbf", b"\x00", b'"'),
)
WORD = re.compile(rb'("[^"]*"|[^][{}:,\s"]+)')  # a key or a value of JSON, a field of CSV
INTEGERS = tuple(struct.pack(form, value) for form in ("<I", ">I", "<Q", ">Q") for value in (0, 1, 2**31, 2**32 - 1))


def words(data: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    """The words of a text as its parts, and what puts them back between what stood between them."""
    between = WORD.split(data)[::2]
    return WORD.findall(data), lambda parts: b"".join(sum(zip(between, [*parts, b""], strict=True), ()))


def labels() -> np.ndarray:
    painted = np.zeros((H, W), np.uint8)
    painted[4:20, 3:14] = 1
    return painted


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def scribble_file() -> Kind:
    stroke = {"path": [[0.2, 0.3], [0.3, 0.6]], "object_id": 1, "start_time": 0, "end_time": 1.5}
    data = json.dumps({"sequence": "clip", "scribbles": [[], [stroke, stroke], []]}).encode()
    parts, pack = words(data)
    return Kind(
        parts,
        lambda path: scribble_files.read(path, "clip", 3),
        pack,
        use=lambda read: scribbles.draw_all(read, (H, W), bezier=True),
        tokens=JSON,
    )


def png_parts(png: bytes) -> list[bytes]:
    """Name and body of each chunk."""
    parts, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        parts.append(png[at + 4 : at + 8 + length])
        at += length + 12
    return parts


def png(parts: list[bytes]) -> bytes:
    """A PNG of chunks."""
    chunks = (struct.pack(">I", max(len(part) - 4, 0)) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def palette_png() -> list[bytes]:
    image = Image.fromarray(labels(), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    return png_parts(encoded(image, "PNG"))


def annotation(place: Path) -> Kind:
    def read(path: Path) -> Path:
        inspect([], [path])
        return path

    chunks = (b"tRNS", b"acTL", b"zTXt", b"iCCPx\x00\x00", b"IEND", b"IDAT", b"PLTE", zlib.compress(bytes(10**6)))
    return Kind(
        palette_png(),
        read,
        png,
        lambda path: read_annotations([path], [digest_line(path, path.read_bytes())]),
        (*INTEGERS, *chunks),
    )


def jpeg_frame(place: Path) -> Kind:
    (place / "sound.png").write_bytes(png(palette_png()))

    def read(path: Path) -> Path:
        inspect([path], [place / "sound.png"])
        return path

    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    markers = tuple(bytes([0xFF, code]) for code in (0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE))
    return Kind(
        [data],
        read,
        use=lambda path: read_frames([path], [digest_line(path, path.read_bytes())]),
        tokens=(*INTEGERS, *markers),
    )


def result_mask() -> Kind:
    sequence = VideoSequence("clip", 1, 1, (H, W), "", {}, lambda: np.empty(0), lambda: np.empty(0))
    return Kind(palette_png(), lambda path: read_mask(path, sequence), png, tokens=INTEGERS)


def sequence_list(place: Path) -> Kind:
    def read(path: Path) -> list[str]:
        home = place / "ImageSets" / "2017"
        home.mkdir(parents=True, exist_ok=True)
        path.replace(home / "val.txt")
        return choose(davis.listed(place, 2017, "val", "480p"), None, home)

    def use(names: list[str]) -> None:
        assert all((place / name).resolve().parent == place.resolve() for name in names)

    return Kind(
        [b"cats\ndogs\n/JPEGImages/480p/birds/00000.jpg x\n"], read, use=use, tokens=(b"..", b"/", b"\x00", b" ")
    )


def report_csv() -> Kind:
    rows = [["id", "clip", 1, i, k, t, 0.5, 0.25, 0.375, 1.5] for i in (1, 2) for k in (1, 2) for t in range(2)]
    data = pd.DataFrame(rows, columns=report_columns).to_csv().encode()

    def use(rows: pd.DataFrame) -> None:
        objects = rows.groupby(["sequence", "scribble_idx"], as_index=False)["object_id"].max()
        samples: Any = list(objects.itertuples(index=False, name=None))
        assert math.isfinite(summarize(rows, samples, max_time=30, max_interactions=2)["auc"])

    parts, pack = words(data)
    return Kind(parts, read_csv, pack, use=use, tokens=(*NUMBERS, b",", b"\n", b'"', b"\r", b"\x00", b"\xff"))


def summary_json() -> Kind:
    curve = {"time": [0, 1, 2], "J": [0, 0.5, 1.0]}
    data = json.dumps({"auc": 0.5, "metric_at_threshold": {"threshold": 60, "J": 1.0}, "curve": curve}).encode()

    def use(summary: dict[str, Any]) -> None:
        assert all(math.isfinite(value) for value in (summary["auc"], *summary["metric_at_threshold"].values()))

    parts, pack = words(data)
    return Kind(parts, read_summary, pack, use=use, tokens=JSON)


STATE = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


def filled(state: dict[str, torch.Tensor], path: Path) -> nn.Module:
    network = nn.Linear(3, 2)
    fill(network, state, str(path))
    return network


def finite(network: nn.Module) -> None:
    assert all(value.isfinite().all() for value in network.state_dict().values())


def our_weights() -> Kind:
    data = save(STATE, {"method": "stm", "size": "tiny"})
    (length,) = struct.unpack_from("<Q", data)
    types = tuple(f'"{name}"'.encode() for name in ("F64", "BF16", "F8_E4M3", "F8_E8M0", "F4", "C64", "BOOL", "I64"))
    parts, header = words(data[8 : 8 + length])
    return Kind(
        [*parts, data[8 + length :]],
        lambda path: filled(read_safetensors(path)[0], path),
        lambda parts: struct.pack("<Q", len(header(parts[:-1]))) + header(parts[:-1]) + parts[-1],
        finite,
        (*JSON, *INTEGERS, *types, b"\x00\x00\xc0\x7f"),
    )


def authors_state(path: Path) -> nn.Module:
    shapes = {key: value.shape for key, value in STATE.items()}
    return filled(rename(read_official(path), {key: [key] for key in STATE}, shapes, path), path)


PICKLE = (*INTEGERS, b"\x00\x00\xc0\x7f", b"ctorch\nDoubleStorage\n", b"cposix\nsystem\n", b"R", b"(", b"t", b"}", b".")


def zipped_weights() -> Kind:
    file = io.BytesIO()
    torch.save({f"module.{key}": value for key, value in STATE.items()}, file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        parts = [archive.read(name) for name in names]

    def pack(parts: list[bytes]) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, part in zip(names, parts, strict=True):
                archive.writestr(name, part)
        return packed.getvalue()

    return Kind(parts, authors_state, pack, finite, PICKLE)


def old_weights() -> Kind:
    file = io.BytesIO()
    torch.save({f"module.{key}": value for key, value in STATE.items()}, file, _use_new_zipfile_serialization=False)
    return Kind([file.getvalue()], authors_state, use=finite, tokens=PICKLE)


def archive(place: Path) -> Kind:
    """The parts are the members' names and contents in turn."""

    def pack(parts: list[bytes]) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in zip(parts[::2], parts[1::2], strict=True):
                member = zipfile.ZipInfo(name.decode("latin-1") or "x")
                member.external_attr = 0o120777 << 16 if text.startswith(b"/") else 0o644 << 16  # a link
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, text)
        return packed.getvalue()

    def read(path: Path) -> int:
        sandbox = place / "sandbox"
        shutil.rmtree(sandbox, ignore_errors=True)
        sandbox.mkdir()
        try:
            return fetch.unpack(path, sandbox / "DAVIS")
        finally:
            assert {found.name for found in sandbox.iterdir()} <= {"DAVIS"}
            assert not any(found.is_symlink() for found in sandbox.rglob("*"))

    parts = [b"DAVIS/ImageSets/val.txt", b"cats", b"DAVIS/link", b"/etc", b"DAVIS/links", b"root"]
    return Kind(
        parts, read, pack, tokens=(b"..", b"../", b"/", b"DAVIS", b"\\", b"\x00", b"\n", bytes(10**6), *INTEGERS)
    )


KINDS: dict[str, Callable[[Path], Kind]] = {
    "scribbles": lambda place: scribble_file(),
    "annotation": annotation,
    "frame": jpeg_frame,
    "mask": lambda place: result_mask(),
    "list": sequence_list,
    "csv": lambda place: report_csv(),
    "summary": lambda place: summary_json(),
    "safetensors": lambda place: our_weights(),
    "pth": lambda place: zipped_weights(),
    "old pth": lambda place: old_weights(),
    "zip": archive,
}


def edited(data: bytes, what: int, place: int, new: bytes) -> bytes:
    """`data` after one edit, at a place between its start (0) and its end (65536)."""
    at = place * len(data) >> 16
    match what % 16:
        case 2 | 3:
            return data[:at] + new + data[at + len(new) :]
        case 4:
            return data[:at] + new + data[at:]
        case 5:
            return data[:at] + data[at + len(new) :]
        case 6:
            return data[: at + 64] + data[at:]
        case 7:
            return data[:at] if place % 2 else data[:at] + data[len(data) - at :]
        case _:
            return new


def malformed(kind: Kind, code: bytes) -> bytes:
    """A file with edits in some of its parts, with edits anywhere, or no such file at all, as `code` says.

    One long draw that is decoded here is ten times quicker than many short ones.
    """
    where, code = code[0], code[1:]
    if where >= 224:
        return code
    parts = list(kind.parts) if where < 160 else [kind.pack(kind.parts)]
    for what, part, place, token, new in EDIT.iter_unpack(code[: len(code) // EDIT.size * EDIT.size]):
        new = new[: 1 + token % 3] if token % 8 == 7 or not kind.tokens else kind.tokens[token % len(kind.tokens)]
        part %= len(parts)
        parts[part] = edited(parts[part], what, place, new)
    return kind.pack(parts) if where < 160 else parts[0]


def refused(read: Callable[[], Any]) -> Any:
    """What `read` gives; None if it refuses in one line, which must not be a long one."""
    try:
        found = read()
    except BadInput as error:
        told = str(error)
    else:
        event("read")
        return found
    event("refused")
    assert len(told.splitlines()) == 1
    assert len(told) < 1000
    return None


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kind, Path]]:
    """A kind of file, and where to put one. A sound one is read; all of them together leave memory free."""
    place = tmp_path_factory.mktemp("fuzz")
    kind, path = KINDS[request.param](place), place / "file"
    path.write_bytes(kind.pack(kind.parts))
    kind.use(kind.read(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield kind, path
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@PROFILE
@given(code=st.binary(min_size=1 + EDIT.size, max_size=1 + 4 * EDIT.size))
def test_malformed_files(kind: tuple[Kind, Path], code: bytes) -> None:
    """Or a damaged download is a traceback, a hang, a full memory, or a score of something else."""
    of, path = kind
    path.write_bytes(malformed(of, code))
    found = refused(lambda: of.read(path))
    if found is not None:
        of.use(found)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["..", "../..", "~nobody", "/", "a\0b"]),
)


@pytest.mark.timeout(3600)
@PROFILE
@given(
    values=st.dictionaries(
        st.sampled_from(["root", "year", "subset", "sequences", "resolution", "first_frame", "seed"]),
        VALUES | st.lists(VALUES, max_size=3),
        min_size=1,
    )
)
def test_values_of_the_command_line(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    """Or `dataset.sequences=[../../etc]` reads what it should not, and `dataset.sequences=[1]` is a traceback."""
    place = tmp_path_factory.getbasetemp() / "clips"
    if not place.exists():
        for kind, name, image in (("frames", "0.png", "RGB"), ("masks", "0.png", "L")):
            (place / kind / "clip").mkdir(parents=True)
            Image.fromarray(labels()).convert(image).save(place / kind / "clip" / name)
        (place / "ImageSets" / "2017").mkdir(parents=True)
        (place / "ImageSets" / "2017" / "val.txt").write_text("clip\n")
    for load, keys in (
        (davis.load, ("root", "year", "subset", "sequences", "resolution")),
        (folder.load, ("root", "sequences", "first_frame", "seed")),
    ):
        chosen: dict[str, Any] = {"root": str(place)} | {key: value for key, value in values.items() if key in keys}
        found = refused(lambda load=load, chosen=chosen: load(**chosen))  # type: ignore[misc]
        assert found is None or [sequence.name for sequence in found] == ["clip"]


@PROFILE
@given(name=st.text() | st.text(st.sampled_from("./\\ a\n\0")))
def test_a_name_stays_in_its_folder(name: str) -> None:
    """Or a sequence called `../x` writes its records and masks somewhere else."""
    if refused(lambda: plain(name, "sequence")) is not None:
        assert (Path("/a/b") / name).resolve() == Path("/a/b", name)
        assert Path("/a/b", name).parent == Path("/a/b")
        assert Path("/a/b", name).name == name
