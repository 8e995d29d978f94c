"""TIFF files of other bands and samples are told as what they are, never as damaged, and no band is dropped."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import LabelError
from emaseg.data.files.images import image_size, read_image
from emaseg.data.files.mask_values import mask_values
from emaseg.data.files.tiff import is_plain, nodata_of
from emaseg.errors import DataError
from tests.data.made import real


def tiff(
    folder: Path,
    bands: int,
    bits: int,
    kind: int,
    photometric: int,
    extra: int | None,
    planes: int = 1,
    orientation: int = 1,
    pixel: bytes = b"",
) -> Path:
    """An uncompressed little-endian TIFF of 4 x 6 pixels, as its tags say. pixel: of some pixels, which repeat."""
    pixels = pixel * (4 * 6 * bands * bits // 8 // len(pixel)) if pixel else b"\x01" * (4 * 6 * bands * bits // 8)
    tags = {256: (6,), 257: (4,), 258: (bits,) * bands, 259: (1,), 262: (photometric,), 273: (8,), 277: (bands,)}
    tags |= {274: (orientation,), 278: (4,), 279: (len(pixels),), 284: (planes,), 339: (kind,) * bands}
    if planes == 2:
        size = len(pixels) // bands
        tags |= {273: tuple(8 + place * size for place in range(bands)), 279: (size,) * bands}
    if extra is not None:
        tags[338] = (extra,) * (bands - (3 if photometric == 2 else 1))
    start = 8 + len(pixels)
    after, entries, more = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        where = packed if len(packed) == 4 else struct.pack("<I", after + len(more))
        more += b"" if len(packed) == 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + where
    path = folder / "a.tif"
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + more
    )
    return path


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "photometric", "extra", "planes", "words"),
    [
        (4, 8, 1, 1, 0, 1, "4 bands of 8 bits"),
        (4, 8, 1, 2, 0, 1, "4 bands of 8 bits, and nothing says what band 4 is"),
        (4, 8, 1, 2, None, 1, "4 bands of 8 bits, and nothing says what band 4 is"),
        (4, 16, 1, 2, 0, 1, "4 bands of 16 bits"),
        (4, 8, 1, 1, 0, 2, "4 bands of 8 bits"),
        (5, 8, 1, 1, 0, 1, "5 bands of 8 bits"),
        (2, 8, 1, 1, 0, 1, "2 bands of 8 bits"),
        (8, 16, 1, 2, 0, 1, "8 bands of 16 bits"),
        (3, 32, 3, 2, None, 1, "3 bands with 32-bit floating-point samples"),
        (4, 32, 3, 1, 0, 1, "4 bands with 32-bit floating-point samples"),
        (3, 16, 2, 2, None, 1, "3 bands with 16-bit signed integer samples"),
        (1, 64, 3, 1, None, 1, "64"),
    ],
)
def test_other_bands_and_samples(
    bands: int, bits: int, kind: int, photometric: int, extra: int | None, planes: int, words: str, tmp_path: Path
) -> None:
    """Protects people with satellite images from looking for damage in whole files, and from a band that vanishes."""
    path = tiff(tmp_path, bands, bits, kind, photometric, extra, planes)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert words in caught.value.message
    assert "damaged" not in caught.value.message
    assert "gdal_translate" in caught.value.hint
    with pytest.raises(LabelError) as of_mask:
        mask_values(path, path)
    assert words in of_mask.value.message
    assert of_mask.value.hint == "save it as an 8-bit grey or palette PNG whose values are the classes"
    if (bands, photometric, extra) == (4, 2, None):  # what the fourth band is shows in its values alone
        assert image_size(path) == (4, 6)
        return
    with pytest.raises(DataError):
        image_size(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_band_like_transparency_is_read_as_that(bits: int, tmp_path: Path) -> None:
    """Protects images and masks with transparency as OpenCV writes it, without the tag that says what band 4 is."""
    pixel = bytes(value for value in (0, 0, 142, 255) for _ in range(bits // 8))
    clear = bytes(value for value in (0, 0, 0, 0) for _ in range(bits // 8))
    path = tiff(tmp_path, 4, bits, 1, 2, None, pixel=pixel)
    assert image_size(path) == (4, 6)
    assert read_image(path).reshape(-1, 3).tolist() == [[0, 0, 142]] * 24
    held = mask_values(path, path)
    assert held.coloured
    assert held.values.tolist() == [[142] * 6] * 4
    tiff(tmp_path, 4, bits, 1, 2, None, pixel=pixel + clear)
    assert read_image(path).reshape(-1, 3).tolist() == [[0, 0, 142], [255, 255, 255]] * 12
    assert mask_values(path, path).values.tolist() == [[142, 0] * 3] * 4
    tiff(tmp_path, 4, bits, 1, 2, None, pixel=pixel * 3 + pixel[: -bits // 8] + b"\x07" * (bits // 8))
    with pytest.raises(DataError, match="nothing says what band 4 is"):
        read_image(path)


def test_small_numbers_of_16_bits_in_a_fourth_band_are_no_transparency(tmp_path: Path) -> None:
    """Protects from white images: of near infrared below 256 the upper bytes, which are seen, are all 0."""
    path = tiff(tmp_path, 4, 16, 1, 2, None, pixel=struct.pack("<4H", 90, 80, 70, 200))
    with pytest.raises(DataError, match="nothing says what band 4 is"):
        read_image(path)


def test_a_tag_of_many_fractions_is_not_decoded(tmp_path: Path) -> None:
    """Protects time and memory: a private tag of 20 MB held the reader for half a minute, with 600 MB of objects."""
    count = 100_000
    plain = tiff(tmp_path, 1, 8, 1, 1, None).read_bytes()
    start = struct.unpack_from("<I", plain, 4)[0]
    entries = struct.unpack_from("<H", plain, start)[0]
    directory = plain[start + 2 : start + 2 + 12 * entries]
    fractions = struct.pack("<HHII", 60000, 5, count, len(plain))
    content = plain + bytes(8 * count)
    content += struct.pack("<H", entries + 1) + directory + fractions + bytes(4)
    content = content[:4] + struct.pack("<I", len(plain) + 8 * count) + content[8:]
    tracemalloc.start()
    try:
        assert is_plain(io.BytesIO(content))
        assert nodata_of(io.BytesIO(content)) is None
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
    finally:
        tracemalloc.stop()
    assert read_image(content).shape == (4, 6, 3)


def test_plain_files_are_read(tmp_path: Path) -> None:
    """Protects what the tests above are made with: one band, colours, and transparency that is declared."""
    assert read_image(tiff(tmp_path, 3, 8, 1, 2, None)).shape == (4, 6, 3)
    assert read_image(tiff(tmp_path, 1, 8, 1, 1, None)).shape == (4, 6, 3)
    assert read_image(tiff(tmp_path, 4, 8, 1, 2, 2)).shape == (4, 6, 3)


def test_a_damaged_directory_is_damage(tmp_path: Path) -> None:
    path = tiff(tmp_path, 5, 8, 1, 1, 0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"damaged|cut short"):
        read_image(path)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("b2", "2 bands"),
        ("b4_minisblack", "4 bands"),
        ("b4_planar", "4 bands"),
        ("b4_unspec", "band 4"),
        ("u16_b4_12", "4 bands of 16 bits"),
        ("b5", "5 bands"),
        ("f32_rgb", "floating-point"),
    ],
)
def test_real_bands(file: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_image(real("field_cases") / "tiff_bands" / f"{file}.tif")
    assert words in caught.value.message
    assert "damaged" not in caught.value.message


@pytest.mark.parametrize(("bits", "stored"), [(8, [[1] * 6] * 4), (4, [[0, 17] * 3] * 4), (16, [[257] * 6] * 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_whose_0_is_white_is_what_it_stores(
    bits: int, stored: list[list[int]], turned: bool, tmp_path: Path
) -> None:
    """Its numbers are the same with either photometric interpretation, which is about looks: ImageJ and tifffile write
    such masks, and inverted ones would train without a word."""
    for photometric in (0, 1):
        path = tiff(tmp_path, 1, bits, 1, photometric, None, orientation=3 if turned else 1)
        values = mask_values(path, path).values
        assert (values[::-1, ::-1] if turned else values).tolist() == stored, photometric
        assert np.array_equal(mask_values(path.read_bytes(), path).values, values)
        if bits < 16:
            assert np.array_equal(read_image(path)[..., 0], values if photometric else 255 - values)


def test_of_one_bit_white_is_1_either_way(tmp_path: Path) -> None:
    """Fax compression has white as 0: whoever saves a mask so has not chosen the numbers."""
    picture = Image.fromarray(np.array([[True, False, False]]))
    for photometric in (0, 1):
        picture.save(tmp_path / "a.tif", tiffinfo={262: photometric})
        assert mask_values(tmp_path / "a.tif", tmp_path / "a.tif").values.tolist() == [[1, 0, 0]]
