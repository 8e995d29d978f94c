"""OpenCV's decoders give Pillow's values for every file that is handed to them, and nothing for a damaged one."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from emaseg.data.files import png
from emaseg.data.files.decoders import jpeg_decoder, numbers_decoder, png_decoder
from emaseg.data.files.label_files import LabelRule, index_rule, read_label
from emaseg.errors import DataError
from tests.data.pipeline_golden import sample_image, sample_label, without_opencv

pytest.importorskip("cv2")

SIZE = (40, 57)
LABEL = Image.fromarray(sample_label(*SIZE))
RULE = index_rule(tuple(map(str, range(21))))
PATH = Path("mask.png")


def stored(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def in_palette() -> Image.Image:
    picture = LABEL.copy()
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    return picture


def test_this_build_is_used() -> None:
    """Else every other test of them shows nothing."""
    assert jpeg_decoder() is not None
    assert png_decoder() is not None
    assert numbers_decoder() is not None


def both(content: bytes, rule: LabelRule = RULE) -> list[np.ndarray | str]:
    """What is read with OpenCV and without it: a label or a message."""

    def read() -> np.ndarray | str:
        try:
            return read_label(PATH, rule, content)
        except DataError as error:
            return f"{error} {error.hint}"

    result = [read()]
    with without_opencv():
        return [*result, read()]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def note(keyword: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, "text")
    return info


MASKS: dict[str, Callable[[], bytes]] = {
    "grey": lambda: stored(LABEL),
    "grey, well packed": lambda: stored(LABEL, optimize=True, dpi=(72, 72)),
    "grey, a transparent value": lambda: stored(LABEL, transparency=3),
    "palette": lambda: stored(in_palette()),
    "palette of which some is transparent": lambda: stored(in_palette(), transparency=bytes(range(256))),
    "palette, 4 bits": lambda: stored(LABEL.point([*range(15), *[1] * 241]), bits=4),
    "text": lambda: stored(LABEL, pnginfo=note("Software")),
    "turned": lambda: stored(LABEL, exif=turned()),
    "turned by a text": lambda: stored(LABEL, pnginfo=note("XML:com.adobe.xmp")),
    "16 bits": lambda: stored(Image.fromarray(sample_label(*SIZE).astype(np.uint16))),
    "1 bit": lambda: stored(LABEL.point([0, *[255] * 255]).convert("1")),
    "grey and alpha": lambda: stored(LABEL.convert("LA")),
    "colour": lambda: stored(LABEL.convert("RGB")),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_has_the_same_numbers_with_and_without(name: str) -> None:
    with_opencv, without = both(MASKS[name]())
    assert type(with_opencv) is type(without)
    np.testing.assert_array_equal(with_opencv, without)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mask_and_any_damage_reads_alike(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    values = data.draw(st.lists(st.integers(0, 20), min_size=height * width, max_size=height * width))
    picture = Image.fromarray(np.array(values, np.uint8).reshape(height, width))
    if data.draw(st.booleans()):
        picture.putpalette(bytes(range(256)) * 3)
    content = bytearray(stored(picture))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.integers(8, len(content))) if data.draw(st.booleans()) else len(content)
    with_opencv, without = both(bytes(content[:end]))
    assert type(with_opencv) is type(without)
    np.testing.assert_array_equal(with_opencv, without)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def made(pixels: bytes, size: tuple[int, int] = SIZE) -> bytes:
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, png.GREY, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_pixels_that_are_wrong_inside_right_checksums() -> None:
    """A program that wrote a damaged file: none of it may come through as a mask."""
    rows = b"".join(b"\0" + row.tobytes() for row in sample_label(*SIZE))
    pixels = zlib.compress(rows)
    assert isinstance(both(made(pixels))[0], np.ndarray)
    for wrong in (
        pixels[: len(pixels) // 2],
        pixels[:-4] + b"sums",
        zlib.compress(rows[:-30]),
        zlib.compress(b"\x09" + rows[1:]),
        b"",
    ):
        with_opencv, without = both(made(wrong))
        assert isinstance(with_opencv, str)
        assert with_opencv == without


def test_sizes_beyond_opencvs_limits_are_pillows() -> None:
    """It refuses more than 2^20 columns, by an exception of its own."""
    width = (1 << 20) + 1
    content = made(zlib.compress(bytes(1 + width)), (1, width))
    for read in both(content):
        assert isinstance(read, np.ndarray)
        assert read.shape == (1, width)


def test_a_bare_file_keeps_the_pixels_only() -> None:
    content = stored(Image.fromarray(sample_image(*SIZE)), pnginfo=note("Software"), icc_profile=bytes(300))
    header = png.read_header(content)
    assert header is not None
    bare = png.bare(content, header)
    assert len(bare) < len(content)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bare))), sample_image(*SIZE))
    decode = png_decoder()
    assert decode is not None
    np.testing.assert_array_equal(decode(bare), sample_image(*SIZE))
