"""A JPEG with fewer rows decodes to the first rows of the whole, without a word on the terminal."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.files.bands import Bands, read_pixels
from emaseg.data.files.images import decode, read_image
from emaseg.data.files.jpeg import END, first_rows, is_complete, read_frame
from emaseg.data.files.opencv import opencv
from emaseg.data.files.region import read_region
from emaseg.errors import DataError
from tests.data.pipeline_golden import sample_image, without_opencv

SIZE = (211, 90)
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:1:1")


@functools.cache
def stored(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sample_image(*SIZE)).save(file, "JPEG", **options)
    return file.getvalue()


def with_opencv(content: bytes) -> np.ndarray:
    cv2 = pytest.importorskip("cv2")
    assert opencv() is cv2
    result: np.ndarray = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    return result


@settings(max_examples=60, deadline=None)
@given(sampling=st.sampled_from(SAMPLINGS), quality=st.sampled_from([30, 90, 100]), rows=st.integers(1, SIZE[0]))
def test_the_first_rows_are_those_of_the_whole(sampling: str, quality: int, rows: int) -> None:
    """Colour of a lower resolution is interpolated across rows, so that the last of them must not be missing."""
    content = stored(subsampling=sampling, quality=quality)
    frame = read_frame(content)
    assert frame is not None
    assert frame.size == SIZE
    short = first_rows(content, frame, rows)
    assert (short is None) == (rows > SIZE[0] - 72)
    if short is None:
        return
    whole = read_image(content)
    for some in (read_image(short + END), with_opencv(short)):
        assert rows <= some.shape[0] < SIZE[0]
        np.testing.assert_array_equal(some[:rows], whole[:rows])


def test_decoders_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """libjpeg prints what it finds odd, at every reading, into whatever the terminal shows."""
    content = stored()
    frame = read_frame(content)
    assert frame is not None
    short = first_rows(content, frame, 50)
    assert short is not None
    read_image(short + END)
    with_opencv(short)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 3}])
def test_rows_that_are_not_stored_in_order_stay(options: dict[str, Any]) -> None:
    content = stored(**options)
    frame = read_frame(content)
    assert frame is not None
    assert frame.size == SIZE
    assert not frame.in_order
    assert first_rows(content, frame, 50) is None


def test_an_incomplete_file_is_left_to_the_decoder() -> None:
    content = stored()
    frame = read_frame(content)
    assert frame is not None
    assert is_complete(content)
    assert is_complete(content + bytes(7))
    assert first_rows(content + bytes(7), frame, 50) is not None
    for other in (content[:-1], content[:-2], content[:-40], content + b"more", content + content):
        assert first_rows(other, frame, 50) is None
    assert not is_complete(content[:-1])


def test_marks_after_the_rows_keep_the_file_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """A comment there is legal; a decoder that stopped early would complain of the rows before it."""
    content = stored()
    for more in (b"\xff\xfe\x00\x04hi", b"\xff\xdc\x00\x04" + SIZE[0].to_bytes(2)):
        other = content[: -len(END)] + more + END
        frame = read_frame(other)
        assert frame is not None
        assert first_rows(other, frame, 50) is None
        np.testing.assert_array_equal(
            read_region(other, "picture", (0, 0, 50, 90)).pixels[:50], read_image(content)[:50]
        )
    assert capfd.readouterr() == ("", "")


def test_headers_that_libjpeg_remarks_on_are_pillows() -> None:
    content = stored()
    for at, value in ((content.index(b"JFIF") + 5, 2), (content.index(b"JFIF") - 1, 17)):
        assert read_frame(content[:at] + bytes([value]) + content[at + 1 :]) is None
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    for transform, usual in ((0, True), (1, True), (2, False)):
        found = read_frame(content[:2] + adobe + bytes([transform]) + content[2:])
        assert (found is not None) is usual


def test_a_header_that_may_turn_the_picture_is_not_bare() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, bare in (
        ({}, True),
        ({"icc_profile": bytes(70_000)}, True),
        ({"comment": b"hello", "dpi": (72, 72), "optimize": True}, True),
        ({"exif": exif.tobytes()}, False),
        ({"xmp": b"<x/>"}, False),
    ):
        frame = read_frame(stored(**options))
        assert frame is not None
        assert frame.bare is bare


def test_a_second_picture_is_not_bare() -> None:
    """MPO: some telephones' pictures end in .jpg and hold two."""
    file = io.BytesIO()
    picture = Image.fromarray(sample_image(*SIZE))
    picture.save(file, "MPO", save_all=True, append_images=[picture])
    frame = read_frame(file.getvalue())
    assert frame is not None
    assert not frame.bare


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_have_a_frame_or_none(data: st.DataObject) -> None:
    content = bytearray(stored()[: data.draw(st.integers(0, 700))])
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    frame = read_frame(bytes(content))
    assert frame is None or (frame.size[0] > 0 and frame.size[1] > 0)


def test_a_file_that_ends_anywhere_in_its_header_has_no_frame() -> None:
    """Segments of programs are looked into: JFIF's, and Adobe's, which is 14 bytes long."""
    content = stored()
    assert content[2:4] == b"\xff\xe0"
    adobe = b"\xff\xee\x00\x0eAdobe\0d\0\0\0\0\1"
    content = content[:20] + adobe + content[20:]
    frame = read_frame(content)
    assert frame is not None
    assert all(read_frame(content[:end]) is None for end in range(frame.scan))


def in_scans(count: int, **options: Any) -> bytes:
    """A progressive file whose last scan stands there again and again, as refinements may."""
    content = stored(progressive=True, **options)
    last = content[content.rindex(b"\xff\xda") : -len(END)]
    return content[: -len(END)] + last * count + END


@pytest.mark.parametrize("decoder", [True, False])
def test_a_jpeg_of_thousands_of_scans_is_refused(decoder: bool, tmp_path: Path) -> None:
    """Protects from a file that holds a reader for hours: each scan of it takes a hundred bytes, and the time of all
    pixels. A mark between that has no segment does not hide them."""
    path = tmp_path / "a.jpg"
    for content in (in_scans(200), in_scans(200).replace(b"\xff\xda", b"\xff\x01\xff\xff\xff\xda")):
        path.write_bytes(content)
        with contextlib.nullcontext() if decoder else without_opencv():
            for read in (read_image, decode, functools.partial(read_region, name="a.jpg", box=(0, 0, 9, 9))):
                for source in (path, content):
                    with pytest.raises(DataError, match=r"a\.jpg: a JPEG in more than 100 scans"):
                        read(source, name="a.jpg")


def test_scans_inside_a_tiff() -> None:
    """Protects from the same in the pieces of a TIFF of bands."""
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 9, 4), np.uint8), photometric="minisblack", planarconfig="contig")
    content, piece = bytearray(file.getvalue()), in_scans(200)
    at = int.from_bytes(content[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(content[at : at + 2], "little"), 12):
        changed = {259: 7, 273: len(content), 279: len(piece)}.get(int.from_bytes(content[entry : entry + 2], "little"))
        if changed is not None:
            content[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, changed)
    with pytest.raises(DataError, match=r"a\.tif: a JPEG in more than 100 scans"):
        read_pixels(bytes(content) + piece, "a.tif", Bands(4))


def test_scans_of_other_pictures_do_not_count() -> None:
    """Protects files with a preview in their header, and with a film or more pictures behind the first one."""
    whole = read_image(stored(progressive=True))
    for content in (
        stored(progressive=True, comment=b"\xff\xda" * 500),
        stored(progressive=True) + b"\xff\xda" * 500,
        stored(progressive=True) + in_scans(200),
    ):
        np.testing.assert_array_equal(read_image(content), whole)
        np.testing.assert_array_equal(read_region(content, "a", (0, 0, 9, 9)).pixels[:9, :9], whole[:9, :9])


def test_other_files_have_no_frame() -> None:
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.fromarray(sample_image(*SIZE)).convert(mode).save(file, "JPEG")
        assert read_frame(file.getvalue()) is None
    assert read_frame(b"") is None
    assert read_frame(b"\x89PNG\r\n\x1a\n" + bytes(40)) is None
