"""Files of gigabytes: what is read whole has a limit, and a TIFF that is larger is read in parts."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.files.bands import Bands, pixels_size, read_pixels
from emaseg.data.files.images import image_header, image_size, read_image
from emaseg.data.files.label_files import index_rule, read_label
from emaseg.data.files.region import read_region
from emaseg.errors import DataError

SIZE = 3 << 30
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 17, 3), np.uint8)
GREY = PICTURE[..., 0]
RANGE = ((0.0, 255.0),)
READERS: dict[str, Callable[[Path], object]] = {
    "image": read_image,
    "size": image_size,
    "header": image_header,
    "part": lambda path: read_region(path, str(path), (0, 0, 1, 1)),
    "mask": lambda path: read_label(path, index_rule(("a", "b"))),
    "bands": lambda path: read_pixels(path, bands=Bands(3, RANGE)),
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What is read takes a small part of the file's size."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def encoded(kind: str, picture: np.ndarray = PICTURE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def large(path: Path, content: bytes) -> Path:
    """The content, and zeros behind it that take no room on the disk."""
    with path.open("wb") as file:
        file.write(content)
        try:
            file.truncate(SIZE)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    return path


def tiff(array: np.ndarray, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "metadata": None, **options})
    return file.getvalue()


def entries(content: bytes) -> dict[int, int]:
    """The place of each entry of the first directory of a little-endian TIFF, by its tag."""
    at = struct.unpack_from("<I", content, 4)[0]
    places = range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12)
    return {struct.unpack_from("<H", content, place)[0]: place for place in places}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"])
def test_a_good_picture_with_gigabytes_behind_it(kind: str, reader: str, tmp_path: Path) -> None:
    """Protects the memory: an archive of kilobytes unfolds to such a file."""
    path = large(tmp_path / "a.png", encoded(kind))
    with pytest.raises(DataError, match=r"a\.png: a file of more than 2 GiB") as caught:
        READERS[reader](path)
    assert caught.value.hint


@pytest.mark.usefixtures("little_memory")
def test_an_array_is_as_long_as_its_header_says(tmp_path: Path) -> None:
    """Protects the memory before an array is read, and before its header is."""
    file = io.BytesIO()
    np.save(file, PICTURE)
    header = b"\x93NUMPY\x02\x00" + (2 << 30).to_bytes(4, "little")
    for content in (file.getvalue(), header):
        with pytest.raises(DataError, match=r"a\.npy"):
            read_pixels(large(tmp_path / "a.npy", content))
    with pytest.raises(DataError, match="fewer or more values"):
        read_pixels(file.getvalue()[:-1], "a.npy")
    np.testing.assert_array_equal(read_pixels(file.getvalue(), "a.npy"), PICTURE)


@pytest.mark.usefixtures("little_memory")
def test_a_large_tiff_is_read(tmp_path: Path) -> None:
    """Protects scenes of satellites, whose files are larger than what is read whole: of bands, of pages, and plain."""
    path = large(tmp_path / "a.tif", encoded("TIFF"))
    np.testing.assert_array_equal(read_image(path), PICTURE)
    assert (image_size(path), image_header(path).pages) == ((24, 17), 1)
    assert read_region(path, "a", (0, 0, 9, 9)).size == (24, 17)
    np.testing.assert_array_equal(read_pixels(path, bands=Bands(3, RANGE)), PICTURE)
    path = large(tmp_path / "a.tif", encoded("TIFF", GREY))
    assert read_label(path, index_rule(tuple(map(str, range(254))), ignore=(254, 255))).shape == (24, 17)
    four = np.dstack([PICTURE, GREY])
    for content in (
        tiff(four, planarconfig="contig"),
        tiff(four, planarconfig="contig", tile=(16, 16), bigtiff=True, byteorder=">"),
        tiff(np.ascontiguousarray(four.transpose(2, 0, 1)), planarconfig=None),
    ):
        path = large(tmp_path / "b.tif", content)
        assert pixels_size(path, bands=Bands(4, RANGE)) == (24, 17)
        np.testing.assert_array_equal(read_pixels(path, bands=Bands(4, RANGE)), four)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("tag", [273, 34665])
def test_a_large_tiff_whose_tags_fill_the_memory(tag: int, tmp_path: Path) -> None:
    """Protects the memory from values of a tag that reach to the end of the file, also of a tag of EXIF's."""
    content = bytearray(encoded("TIFF"))
    at = entries(content)[273]
    if tag == 34665:  # in the place of another: a directory of one entry
        at = entries(content)[279]
        struct.pack_into("<HHII", content, at, tag, 4, 1, len(content))
        at = len(content) + 2
        content += struct.pack("<H", 1) + bytes(16)
        struct.pack_into("<H", content, at, 37500)
    struct.pack_into("<HII", content, at + 2, 4, 600 << 20, 8)
    path = large(tmp_path / "a.tif", content)
    for read in (read_image, image_size, image_header):
        with pytest.raises(DataError, match="promises more than a picture needs"):
            read(path)


@pytest.mark.usefixtures("little_memory")
def test_strips_with_gigabytes_between_them(tmp_path: Path) -> None:
    """Protects the memory from a decoder that reads on to the next strip."""
    content = bytearray(tiff(GREY, rowsperstrip=12))
    kind, count, places = struct.unpack_from("<HII", content, entries(content)[273] + 2)
    assert (kind, count) == (4, 2)
    struct.pack_into("<I", content, places + 4, (2 << 30) + 4096)
    with pytest.raises(DataError, match="too far apart"):
        read_image(large(tmp_path / "a.tif", content))


@pytest.mark.usefixtures("little_memory")
def test_pieces_of_bands_of_gigabytes(tmp_path: Path) -> None:
    """Protects the memory from compressed pixels that take all of the file."""
    pytest.importorskip("imagecodecs")
    content = bytearray(tiff(np.dstack([PICTURE, GREY]), planarconfig="contig", compression="zlib", rowsperstrip=6))
    kind, count, places = struct.unpack_from("<HII", content, entries(content)[279] + 2)
    assert count == 4
    size = {3: 2, 4: 4}[kind]
    if size == 2:
        content += struct.pack("<4I", *[(2 << 30) - 1] * 4)
        struct.pack_into("<HII", content, entries(content)[279] + 2, 4, 4, len(content) - 16)
    else:
        struct.pack_into("<4I", content, places, *[(2 << 30) - 1] * 4)
    with pytest.raises(DataError, match="more bytes than they have"):
        read_pixels(large(tmp_path / "a.tif", content), bands=Bands(4, RANGE))


def chained(pages: int, *, loop: bool = False) -> bytes:
    """A TIFF of so many directories of one picture; loop: the last leads to the first."""
    content = encoded("TIFF", GREY)
    start = struct.unpack_from("<I", content, 4)[0]
    end = start + 2 + 12 * struct.unpack_from("<H", content, start)[0]
    at, parts = len(content), [content[:end], b"", content[end + 4 :]]
    places = [at + page * (end + 4 - start) for page in range(pages - 1)]
    follow = [*places, start if loop else 0]
    parts[1] = struct.pack("<I", follow[0])
    parts += [content[start:end] + struct.pack("<I", place) for place in follow[1:]]
    return b"".join(parts)


def test_of_many_pages_one_more_is_enough(tmp_path: Path) -> None:
    """Protects check-data and init from small files of many pages, each of which was looked for among all others."""
    path = tmp_path / "a.tif"
    for content, pages in (
        (chained(1), 1),
        (chained(1, loop=True), 1),
        (chained(2), 2),
        (chained(3, loop=True), 2),
        (chained(40_000), 2),
    ):
        path.write_bytes(content)
        start = time.process_time()
        header = image_header(path)
        assert time.process_time() - start < 1
        assert (header.pages, header.size, header.bits) == (pages, (24, 17), 8)
    path.write_bytes(chained(2)[: len(chained(1))])
    with pytest.raises(DataError, match=r"a\.tif"):
        image_header(path)
