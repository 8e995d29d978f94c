"""Reading a part of a picture: the same values as the whole picture's, for every kind of file, and the same errors."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from emaseg.data.dataset import Box, MemorySample, Region, read_pair
from emaseg.data.files import images
from emaseg.data.files.images import read_image
from emaseg.data.files.label_files import index_rule
from emaseg.data.files.png import read_header
from emaseg.data.files.region import read_region
from emaseg.data.pipeline.loading import CPU, batches
from emaseg.data.pipeline.transforms import sample_rng, train_crop
from emaseg.errors import DataError
from emaseg.recipe import PixelStats
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import sample_image, sample_label

pytestmark = pytest.mark.usefixtures("each_decoder")

SIZE = (150, 90)  # high enough for rows to be left off
BOX = (20, 30, 15, 41)
PHOTO = Image.fromarray(sample_image(*SIZE))


def stored(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def text(keyword: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, value)
    return info


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: stored(PHOTO, "PNG"),
    "png, text": lambda: stored(PHOTO, "PNG", pnginfo=text("Software", "paint")),
    "png, orientation": lambda: stored(PHOTO, "PNG", exif=turned(6)),
    "png, transparent colour": lambda: stored(PHOTO, "PNG", transparency=tuple(sample_image(*SIZE)[25, 40].tolist())),
    "png, alpha": lambda: stored(PHOTO.convert("RGBA"), "PNG"),
    "png, grey": lambda: stored(PHOTO.convert("L"), "PNG"),
    "png, palette": lambda: stored(PHOTO.convert("P"), "PNG"),
    "png, 16 bits": lambda: stored(Image.fromarray(sample_image(*SIZE)[..., 0].astype(np.uint16) * 257), "PNG"),
    "jpeg": lambda: stored(PHOTO, "JPEG", quality=90),
    "jpeg, all colour": lambda: stored(PHOTO, "JPEG", subsampling="4:4:4"),
    "jpeg, progressive": lambda: stored(PHOTO, "JPEG", progressive=True),
    "jpeg, marks between rows": lambda: stored(PHOTO, "JPEG", restart_marker_rows=1),
    "jpeg, profile": lambda: stored(PHOTO, "JPEG", icc_profile=bytes(200)),
    "jpeg, comment": lambda: stored(PHOTO, "JPEG", comment=b"of no import"),
    "jpeg, photoshop": lambda: stored(PHOTO, "JPEG", exif=turned(1), xmp=b"<x/>", dpi=(72, 72)),
    "jpeg, zeros after its end": lambda: stored(PHOTO, "JPEG") + bytes(5),
    "jpeg, two pictures": lambda: stored(PHOTO, "JPEG") + stored(PHOTO, "JPEG"),
    "jpeg, orientation 1": lambda: stored(PHOTO, "JPEG", exif=turned(1)),
    "jpeg, orientation 6": lambda: stored(PHOTO, "JPEG", exif=turned(6)),
    "jpeg, grey": lambda: stored(PHOTO.convert("L"), "JPEG"),
    "jpeg, cmyk": lambda: stored(PHOTO.convert("CMYK"), "JPEG"),
    "webp": lambda: stored(PHOTO, "WEBP", lossless=True),
    "tiff": lambda: stored(PHOTO, "TIFF"),
}


def outcome(read: Callable[[], object]) -> object:
    """What was read, or the message."""
    try:
        return read()
    except DataError as error:
        return str(error)


def check_equal(content: bytes, box: Box) -> Region:
    whole = read_image(content, "picture")
    read = read_region(content, "picture", box)
    assert read.size == whole.shape[:2]
    height, width = read.pixels.shape[:2]
    np.testing.assert_array_equal(read.pixels, whole[read.top : read.top + height, read.left : read.left + width])
    if read.words is not None:
        np.testing.assert_array_equal(
            read.words.astype("<u4").view(np.uint8).reshape(height, width, 4)[..., :3], read.pixels
        )
    assert read.top <= box[0]
    assert read.left <= box[1]
    if box[0] + box[2] <= read.size[0] and box[1] + box[3] <= read.size[1]:
        assert read.top + height >= box[0] + box[2]
        assert read.left + width >= box[1] + box[3]
    return read


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_reads_as_the_whole_picture_does(name: str, tmp_path: Path) -> None:
    content = FILES[name]()
    check_equal(content, BOX)
    path = tmp_path / "picture"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_region(path, str(path), BOX).pixels, read_region(content, "", BOX).pixels)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box(data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, SIZE[0] - 1)), data.draw(st.integers(0, SIZE[1] - 1))
    box = (top, left, data.draw(st.integers(1, SIZE[0] - top)), data.draw(st.integers(1, SIZE[1] - left)))
    words = check_equal(stored(PHOTO, "PNG"), box).words
    assert (words is None) == (images.opencv() is not None)
    read = check_equal(stored(PHOTO, "JPEG"), box)
    assert read.pixels.shape[0] < SIZE[0] or box[0] + box[2] > SIZE[0] - 80


def test_a_box_beyond_the_picture_gives_all_of_it() -> None:
    """A mask larger than its image: the sizes are compared afterwards, in words for people."""
    for name in ("png", "jpeg"):
        assert check_equal(FILES[name](), (140, 0, 20, 90)).pixels.shape == (*SIZE, 3)


def chunks(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    at = 8
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield at, kind, content[at + 8 : at + 8 + length]
        at += length + 12


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("keyword", ["exif", "interlace", "transparency", "bbox", "XML:com.adobe.xmp"])
def test_a_text_that_pillow_takes_for_more_than_a_text_keeps_the_file_whole(keyword: str) -> None:
    content = stored(PHOTO, "PNG", pnginfo=text(keyword, "Exif\0\0" + turned(6).tobytes()[6:].decode("latin-1")))
    assert read_header(content) is None
    whole = outcome(lambda: read_image(content, "picture"))
    np.testing.assert_array_equal(outcome(lambda: read_region(content, "picture", BOX).pixels), whole)


def test_a_text_may_turn_a_png() -> None:
    """An orientation can hide in a text of an old tool's, which some programs write instead of the eXIf chunk."""
    raw = turned(6).tobytes()
    profile = f"\nexif\n{len(raw):8}\n{raw.hex()}\n"
    content = stored(PHOTO, "PNG", pnginfo=text("Raw profile type exif", profile))
    assert check_equal(content, BOX).size == SIZE[::-1]


def test_an_interlaced_png_is_read_whole() -> None:
    """Its first rows are spread over the file. Adam7 of an image of one pixel is that pixel: no writer is needed."""
    pixel = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)) + chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    content = b"\x89PNG\r\n\x1a\n" + pixel + chunk(b"IEND", b"")
    assert read_header(content) is None
    assert check_equal(content, (0, 0, 1, 1)).pixels.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("name", ["png", "jpeg", "jpeg, progressive"])
def test_a_file_that_is_cut_short_is_an_error_wherever_the_box_is(name: str) -> None:
    content = FILES[name]()

    found = []
    for end in (len(content) - 1, len(content) * 3 // 4, len(content) // 2, 40, 10):
        cut = content[:end]
        whole = outcome(functools.partial(read_image, cut, "picture"))
        found.append(whole if isinstance(whole, str) else "is read")
        part = outcome(functools.partial(read_region, cut, "picture", (0, 0, 5, 5)))
        assert (part if isinstance(part, str) else "is read") == found[-1]
    assert all("picture" in words for words in found[1:])


def test_a_damaged_header_is_an_error() -> None:
    """Its checksum is made anew when rows are left off, and must not cover up that the size was wrong."""
    content = bytearray(FILES["png"]())
    content[23] ^= 1
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 45, 75, 8, 2, 0, 0, 0))
    for damaged in (bytes(content), FILES["png"]()[:33] + second + FILES["png"]()[33:]):
        assert read_header(damaged) is None


def test_a_picture_of_too_many_pixels_is_refused_for_a_small_box_too() -> None:
    header = struct.pack(">IIBBBBB", 1_000_000, 200, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="pixels"):
        read_region(content, "picture", (0, 0, 5, 5))


def test_a_file_that_does_not_fit_into_memory_is_an_error(tmp_path: Path) -> None:
    """A sparse file of four terabytes costs nothing to make."""
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        try:
            file.truncate(4 << 40)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(DataError, match=r"a\.png"):
        read_region(path, str(path), (0, 0, 5, 5))


def test_damage_in_the_box_is_an_error() -> None:
    content = bytearray(stored(PHOTO, "PNG"))
    at = next(at for at, kind, _ in chunks(bytes(content)) if kind == b"IDAT")
    content[at + 40] ^= 0xFF
    with pytest.raises(DataError, match="picture"):
        read_region(bytes(content), "picture", BOX)


def test_missing_files_and_folders_are_explained_as_ever(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone.png", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(DataError, match=words):
            read_region(path, str(path), BOX)


# ---------------------------------------------------------------------------------------------- training samples
AUGMENT = Augment(
    resize_long_short=(90, 60), scale=(0.5, 2.0), crop=(40, 50), max_class_share=0.75, photometric="bgr", flip=0.5
)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_crop_is_the_same_from_a_part_as_from_the_whole(ending: str, tmp_path: Path) -> None:
    """The law behind the speed: what is not read changes nothing."""
    from emaseg.data.sets.pairs import PairedFiles

    image, label = tmp_path / f"a.{ending}", tmp_path / "a_label.png"
    PHOTO.save(image)
    Image.fromarray(sample_label(*SIZE)).save(label)
    dataset = PairedFiles(((image, label),), index_rule(tuple(map(str, range(21)))), np.zeros((21, 3), np.uint8))
    whole = MemorySample(str(image), *read_pair(dataset, 0))
    for i in range(60):
        crop = train_crop(dataset.open(0), AUGMENT, sample_rng(0, 0, i))
        expected = train_crop(whole, AUGMENT, sample_rng(0, 0, i))
        np.testing.assert_array_equal(crop.image, expected.image)
        np.testing.assert_array_equal(crop.label, expected.label)


def test_images_and_masks_of_two_sizes_are_named(tmp_path: Path) -> None:
    from emaseg.data.sets.pairs import PairedFiles

    image, label = tmp_path / "a.png", tmp_path / "a_label.png"
    PHOTO.save(image)
    for size in ((151, 90), (149, 90), (150, 91), (90, 150)):
        Image.fromarray(sample_label(*size)).save(label)
        dataset = PairedFiles(((image, label),), index_rule(tuple(map(str, range(21)))), np.zeros((21, 3), np.uint8))
        stream = batches(
            dataset, AUGMENT, PixelStats((0, 0, 0), (1, 1, 1)), batch=1, start=0, total=1, seed=0, workers=0, device=CPU
        )
        with pytest.raises(DataError, match=rf"{size[0]} x {size[1]}"):
            next(stream)
