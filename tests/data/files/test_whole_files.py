"""Images and masks whose files hold less than they promise, and names behind which no ordinary file lies."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.files.images import image_size, read_image
from emaseg.data.files.label_files import index_rule, read_label
from emaseg.data.files.mat import read_mat
from emaseg.data.files.region import read_region
from emaseg.data.sets.packed import open_packed
from emaseg.data.sets.pairs import read_names
from emaseg.errors import DataError
from tests.data.pipeline_golden import sample_image

pytestmark = pytest.mark.usefixtures("each_decoder")

SIZE = (24, 17)
RULE = index_rule(tuple(map(str, range(200))))
GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, RGBA: 4}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows(kind: int, count: int = SIZE[0], method: int = 0) -> bytes:
    """Stored rows of zeros and more, of which the last is black."""
    values = np.random.default_rng(0).integers(0, 3, (SIZE[0], SIZE[1] * SAMPLES[kind]), np.uint8)
    values[-1] = 0
    return b"".join(bytes((method,)) + row.tobytes() for row in values[:count])


def png(
    kind: int, stream: bytes, *, colours: int = 256, before: bytes = b"", after: bytes = b"", end: bool = True
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, kind, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(256))[:colours] * 3) if kind == PALETTE else b""
    parts = header, palette, before, chunk(b"IDAT", stream), after, chunk(b"IEND", b"") if end else b""
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refused(content: bytes, *, mask: bool = True) -> None:
    """By every reader, with the file's name."""
    readers: list[Callable[[], object]] = [
        lambda: read_image(content, "a.png"),
        lambda: read_region(content, "a.png", (0, 0, *SIZE)),
    ]
    if mask:
        readers.append(lambda: read_label(Path("a.png"), RULE, content))
    for read in readers:
        with pytest.raises(DataError, match=r"a\.png"):
            read()


def test_whole_files_are_read() -> None:
    """The files that the other tests damage are sound."""
    for kind in SAMPLES:
        for method in range(3):
            content = png(kind, zlib.compress(rows(kind, method=method)))
            assert read_image(content, "a").shape == (*SIZE, 3)
            if kind in (GREY, PALETTE):
                assert read_label(Path("a.png"), RULE, content).shape == SIZE


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("count", [0, 1, 12, SIZE[0] - 1])
@pytest.mark.parametrize("method", [0, 2])
def test_a_png_with_fewer_rows_is_damaged(kind: int, count: int, method: int) -> None:
    """All checksums are right, but the stream ends between two rows: they must not come out black, or class 0."""
    refused(png(kind, zlib.compress(rows(kind, count, method))), mask=kind in (GREY, PALETTE))


@pytest.mark.parametrize("kind", [GREY, RGB, PALETTE])
def test_a_crop_of_a_png_never_holds_missing_rows(kind: int) -> None:
    """Rows above the end are what they are; rows below it are an error."""
    short = png(kind, zlib.compress(rows(kind, 12)))
    for top, height in ((0, 13), (11, 2), (12, 1), (20, 4)):
        with pytest.raises(DataError, match=r"a\.png"):
            read_region(short, "a.png", (top, 0, height, 5))


def test_other_damage_inside_right_checksums() -> None:
    """A wrong checksum of the stream, a part of it missing, unknown critical parts, doubled ones, no end."""
    whole = zlib.compress(rows(GREY))
    text = bytearray(chunk(b"tEXt", b"Title\0x"))
    text[-1] ^= 1
    for content in (
        png(GREY, whole[:-4] + b"sums"),
        png(GREY, whole[:-4]),
        png(GREY, whole[: len(whole) // 2], after=chunk(b"gAMA", bytes(4)) + chunk(b"IDAT", whole[len(whole) // 2 :])),
        png(GREY, whole, before=chunk(b"ABCD", b"x")),
        png(GREY, whole, after=chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))),
        png(GREY, whole, before=bytes(text)),
        png(GREY, whole, after=bytes(text)),
        png(GREY, whole, end=False),
        png(GREY, whole)[:-2],
        png(GREY, zlib.compress(rows(GREY) + rows(GREY, 2))),
    ):
        refused(content)


def test_pixels_beyond_the_palette() -> None:
    """A picture has no colour there; a mask's numbers need none."""
    content = png(PALETTE, zlib.compress(rows(PALETTE)), colours=2)
    with pytest.raises(DataError, match="palette of 2"):
        read_image(content, "a.png")
    assert read_label(Path("a.png"), RULE, content).max() == 2


def test_an_interlaced_png_that_ends_early_is_damaged() -> None:
    """Its last row is not stored last."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, GREY, 0, 0, 1))
    passes = [b"\0\1", b"\0\2", b"\0\4\5", b"\0\6\0\7", b"\0\1\2\3"]  # of 3 x 3 pixels, without the empty ones
    whole = b"".join(passes)
    for stream, sound in ((whole, True), (whole[:-4], False), (whole[:2], False), (whole[:-1], False)):
        content = start + chunk(b"IDAT", zlib.compress(stream)) + chunk(b"IEND", b"")
        if sound:
            assert read_image(content, "a.png").shape == (3, 3, 3)
        else:
            with pytest.raises(DataError, match=r"a\.png"):
                read_image(content, "a.png")


# --------------------------------------------------------------------------------------------------- other kinds
def stored(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sample_image(90, 70)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_jpeg_whose_scan_ends_early_is_damaged(options: dict[str, object], share: float) -> None:
    """With the mark at its end put behind: decoders make the rest up, grey, and say nothing."""
    whole = stored("JPEG", **options)
    cut = whole[: int(len(whole) * share)]
    for content in (cut + b"\xff\xd9", cut, cut + bytes(500)):
        with pytest.raises(DataError, match=r"a\.jpg"):
            read_image(content, "a.jpg")
        with pytest.raises(DataError, match=r"a\.jpg"):
            read_region(content, "a.jpg", (0, 0, 90, 70))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_grey_jpeg_is_not_taken_for_a_short_one(mode: str, options: dict[str, object]) -> None:
    """Its last pixel looks like one that is missing, so it gets the second look, and passes."""
    file = io.BytesIO()
    Image.new(mode, (40, 50), 128 if mode == "L" else (128,) * len(mode)).save(file, "JPEG", **options)
    assert read_image(file.getvalue(), "a").shape == (50, 40, 3)
    assert read_region(file.getvalue(), "a", (0, 0, 50, 40)).pixels.shape == (50, 40, 3)
    two = file.getvalue() + b"trailer \xff\xd9"
    assert read_image(two, "a").shape == (50, 40, 3)


def test_a_tiff_with_fewer_strips_is_damaged() -> None:
    """Pillow leaves the rows of a missing strip black. Here the one strip of 70 rows becomes the first of five."""
    content = bytearray(stored("TIFF"))
    at = struct.unpack_from("<I", content, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12):
        changed = {278: 15, 279: 15 * 90 * 3}.get(
            struct.unpack_from("<H", content, entry)[0]
        )  # rows and bytes of a strip
        if changed is not None:
            assert struct.unpack_from("<I", content, entry + 4) == (1,)
            struct.pack_into("<I", content, entry + 8, changed)
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(bytes(content), "a.tif")


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG"]), share=st.floats(0, 1, exclude_max=True)
)
def test_a_cut_file_gives_all_its_pixels_or_an_error(kind: str, share: float) -> None:
    """Of every format; what follows the pixels may be missing."""
    whole = stored(kind)
    try:
        read = read_image(whole[: int(len(whole) * share)], "a")
    except DataError:
        return
    np.testing.assert_array_equal(read, read_image(whole, "a"))


# ------------------------------------------------------------------------------------------ no ordinary files
def odd_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "fifo.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    place = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has a limit of its own
    try:
        place.bind("socket.png")
    finally:
        os.chdir(here)
        place.close()
    names = ("fifo", "loop", "zero", "folder", "socket", "gone")
    return {name: folder / f"{name}.png" for name in names} | {
        "long": folder / ("x" * 300 + ".png"),
        "null": folder / "a\0b.png",
        "file in the way": folder / "fifo.png/a.png",
    }


READERS: dict[str, Callable[[Path], object]] = {
    "image": read_image,
    "size": image_size,
    "part": lambda path: read_region(path, str(path), (0, 0, 1, 1)),
    "mask": lambda path: read_label(path, RULE),
    "mat": lambda path: read_mat(path, "S"),
    "list": read_names,
    "packed": open_packed,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_or_fails_on_what_is_no_ordinary_file(reader: str, tmp_path: Path) -> None:
    """A FIFO would keep it waiting for ever, /dev/zero would fill the memory; both end in an error with the name."""
    for name, path in odd_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            READERS[reader](path)
        assert str(path) in caught.value.message, name
        assert caught.value.hint, name


def test_lists_that_are_no_text(tmp_path: Path) -> None:
    """Null characters and other encodings than UTF-8 and UTF-16; a huge list is refused before it is read."""
    path = tmp_path / "train.txt"
    for content, words in (
        (b"a\nb\0c\n", "null"),
        (b"\xff\xfea\0b", "UTF-8"),  # half a character of UTF-16
        (b"caf\xe9\n", "UTF-8"),
        (b"\n \n", "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_names(path)
    path.write_bytes("\ufeffcaf\u00e9\r\nb\r\n".encode("utf-16-le"))
    assert list(read_names(path)) == ["caf\u00e9", "b"]
    with path.open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match="larger than"):
        read_names(path)
