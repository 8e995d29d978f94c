"""Reading pictures: every kind of file becomes the RGB array a viewer shows, or one DataError that says why not."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from emaseg.data.files.images import EXTENSIONS, MAX_PIXELS, decode, image_size, read_image
from emaseg.errors import DataError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(PICTURE), "PNG", exif=exif.tobytes())


def fails(source: Path | bytes, name: str | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image(source, name)
    assert caught.value.hint
    return caught.value


# ------------------------------------------------------------------------------------------------ what is read
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_stored_pixels(kind: str) -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(PICTURE), kind)), PICTURE)


def test_webp_and_gif_and_jpeg_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(PICTURE), "WEBP", lossless=True)), PICTURE)
    two = np.where(GREY[..., None] > 128, PICTURE[:1, :1], PICTURE[1:2, 1:2])
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(two), "GIF")), two)
    flat = np.full((16, 16, 3), 90, np.uint8)
    np.testing.assert_allclose(read_image(encoded(Image.fromarray(flat), "JPEG")), flat, atol=2)


def test_paths_bytes_and_open_files_give_the_same_writable_contiguous_array(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    with path.open("rb") as file:
        arrays = [read_image(path), read_image(path.read_bytes()), read_image(file)]
    for array in arrays:
        np.testing.assert_array_equal(array, PICTURE)
        assert array.dtype == np.uint8
        assert array.flags.writeable
        assert array.flags.c_contiguous


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (4, PICTURE[::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE, -1)),
        (7, np.rot90(PICTURE, 2).transpose(1, 0, 2)),
        (8, np.rot90(PICTURE, 1)),
        (9, PICTURE),
    ],
)
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path, orientation: int, shown: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(oriented(orientation))
    array = read_image(path)
    np.testing.assert_array_equal(array, shown)
    assert array.flags.c_contiguous
    assert image_size(path) == shown.shape[:2]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_orientation_counts_in_every_format_that_has_it(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a"
    Image.fromarray(PICTURE).save(path, kind, exif=exif.tobytes())
    assert read_image(path).shape == (7, 5, 3)
    assert image_size(path) == (7, 5)


def test_grey_and_one_bit_become_three_equal_channels() -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(GREY))), np.stack([GREY] * 3, -1))
    bits = GREY > 100
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(bits))), np.stack([bits * 255] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_divided_by_257(kind: str) -> None:
    raw = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    wanted = [0, 0, 1, 1, 128, 254, 255, 255]
    array = read_image(encoded(Image.fromarray(raw), kind))
    np.testing.assert_array_equal(array, np.stack([[wanted]] * 3, -1))


def test_transparent_pixels_turn_white_and_opaque_ones_keep_their_exact_colour() -> None:
    rgba = np.dstack([PICTURE, np.full((5, 7), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(rgba))), PICTURE)
    rgba[0, :, 3] = 0
    array = read_image(encoded(Image.fromarray(rgba)))
    assert (array[0] == 255).all()
    np.testing.assert_array_equal(array[1:], PICTURE[1:])
    half = read_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    np.testing.assert_allclose(half, 127, atol=1)


def test_transparency_without_an_alpha_channel_is_white_too() -> None:
    """Colour keys (tRNS) of grey, RGB and 16-bit PNGs, palettes with alpha, and grey with alpha."""
    grey = np.array([[7, 9]], np.uint8)
    assert read_image(encoded(Image.fromarray(grey), transparency=7))[0, :, 0].tolist() == [255, 9]
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert read_image(encoded(Image.fromarray(rgb), transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    deep = np.array([[257, 514]], np.uint16)
    assert read_image(encoded(Image.fromarray(deep), transparency=257))[0, :, 0].tolist() == [255, 2]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read_image(encoded(palette, transparency=b"\x00\xff")).tolist() == [[[255] * 3, [40, 50, 60]]]
    la = Image.new("LA", (1, 1), (50, 0))
    assert read_image(encoded(la)).tolist() == [[[255] * 3]]


def test_cmyk_jpeg_is_converted() -> None:
    """Pure cyan ink is (0, 255, 255); an inversion mistake would give red."""
    cyan = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(read_image(cyan)[8, 8], [0, 255, 255], atol=3)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PICTURE).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_image(path).shape == (5, 7, 3)
    assert image_size(path) == (5, 7)


def test_pillows_warnings_do_not_come_through_and_filters_are_left_as_they_were(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = list(warnings.filters)
        palette = Image.new("P", (2, 1))
        palette.putpalette([0] * 6)
        read_image(encoded(palette, transparency=b"\x00\x80"))
        assert warnings.filters == before


def test_extensions_are_in_lower_case_with_a_dot() -> None:
    """Folder listings compare in lower case."""
    assert all(extension == extension.lower() and extension[0] == "." for extension in EXTENSIONS)


# --------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("content", "words", "remedy"),
    [
        (b"", "empty (0 bytes)", "download it again"),
        (b"<!DOCTYPE html><html><body>404 not found</body>", "an HTML page", "sign-in"),
        (b"\xef\xbb\xbf\n<HTML>", "an HTML page", "sign-in"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        (b"just some words", "holds text, 'just some words'", "JPEG, PNG"),
        (b"PK\x03\x04rest of it", "a ZIP archive", "unpack"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "a HEIC image", "convert"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "begins with the bytes 00 01 02 03", "JPEG, PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG", "again"),
        (b"   ", "holds text, ''", "JPEG, PNG"),
    ],
)
def test_a_file_that_is_no_image_says_what_it_looks_like(
    tmp_path: Path, content: bytes, words: str, remedy: str
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    error = fails(path)
    assert str(path) in error.message
    assert words in error.message
    assert remedy in error.hint
    assert words in fails(content, "upload").message  # bytes are told apart the same way
    with pytest.raises(DataError):
        image_size(path)


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    error = fails(path)
    assert str(path) in error.message
    assert "cut short" in error.message
    assert "again" in error.hint
    png = bytearray(encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))))
    png[60:70] = bytes(10)
    assert "damaged" in fails(bytes(png), "b.png").message


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    assert "no such file" in fails(tmp_path / "none.jpg").message
    assert "a folder" in fails(tmp_path).message
    assert "b" in fails(Path("a\0b.jpg")).message
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    assert "not an ordinary file" in fails(pipe).message


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the calling program has switched Pillow's own limit off; a scene below the limit draws no warning."""
    for side, limit in [(13_400, None), (20_000, Image.MAX_IMAGE_PIXELS)]:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        header = b"P5 %d %d 255\n" % (side, side)
        error = fails(header + bytes(10), "big.pgm")
        assert f"{MAX_PIXELS:,} pixels" in error.message
        assert "tiles" in error.hint
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(encoded(Image.new("L", (4, 4)))).shape == (4, 4, 3)


def test_samples_without_a_defined_range_are_refused() -> None:
    for array in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        error = fails(encoded(Image.fromarray(array), "TIFF"), "a.tif")
        assert "nothing says which values are black and white" in error.message
        assert "0..255" in error.hint


def test_formats_outside_the_list_are_refused() -> None:
    """No decoder but the listed ones ever sees a stranger's bytes."""
    assert "icon file" in fails(encoded(Image.new("RGB", (16, 16)), "ICO"), "a.ico").message
    fails(encoded(Image.new("RGB", (16, 16)), "SGI"), "a.png")
    fails(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "a.png")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_read_or_give_a_data_error(data: st.DataObject) -> None:
    """Whatever a file's bytes, nothing but a DataError comes out, and no warning."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    content = bytearray(encoded(Image.fromarray(PICTURE), kind))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    outcome: object
    try:
        outcome = read_image(bytes(content), "a").shape[2]
    except DataError as error:
        outcome = error.message[:2]
    assert outcome in (3, "a:")


@settings(max_examples=30, deadline=None)
@given(picture=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3))))
def test_png_round_trip_is_exact(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(picture))), picture)


def test_decode_keeps_the_stored_mode() -> None:
    """Labels need indices, not colours."""
    palette = Image.new("P", (2, 2), 3)
    palette.putpalette(list(range(12)))
    assert decode(encoded(palette)).mode == "P"
    assert decode(encoded(palette)).format == "PNG"


def test_reading_images_loads_neither_torch_nor_torchvision() -> None:
    """Predicting must start quickly."""
    code = "import sys, emaseg.data.files.images; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bmp_header_with_a_huge_size_is_refused() -> None:
    """The pixel limit works on the header: nothing of that size is allocated."""
    header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 2_000_000, 3_000_000, 1, 24, 0, 0, 0, 0, 0, 0)
    assert "pixels" in fails(header, "a.bmp").message


# --------------------------------------------------------------------------------------------------- real data
def real(part: str) -> Path:
    root = os.environ.get("EMASEG_TEST_DATA")
    if not root:
        pytest.skip("EMASEG_TEST_DATA is not set")
    return Path(root, part)


@pytest.mark.realdata
def test_odd_images_read_or_give_a_data_error() -> None:
    """45 damaged or unusual files of Pillow's, exif-samples' and scikit-image's test sets: as Pillow's own result."""
    folder = real("odd_images")
    lines = (folder / "INDEX.tsv").read_text().splitlines()[1:]
    assert len(lines) == 45
    for line in lines:
        name, _, kind, *_ = line.split("\t")
        loads = "\tloads" in line and kind != "ICO"  # icons are outside the list of formats
        start = time.monotonic()
        if loads:
            array = read_image(folder / name)
            assert array.dtype == np.uint8
            assert array.shape == (*image_size(folder / name), 3), name
        else:
            assert name in fails(folder / name).message
        assert time.monotonic() - start < 5, name


@pytest.mark.realdata
def test_photographs_of_all_kinds_are_read() -> None:
    shapes = {path.name: read_image(path).shape for path in sorted(real("predict_photos").iterdir())}
    assert len(shapes) == 14
    assert shapes["exif_orientation6_landscape.jpg"] == (1200, 1800, 3)
    assert shapes["large_12mp_4032x3024.jpg"] == (3024, 4032, 3)
    assert shapes["grey_camera_512.png"] == (512, 512, 3)


@pytest.mark.realdata
def test_sixteen_bit_png_and_pgm_of_one_picture_agree() -> None:
    folder = real("predict_photos")
    png, pgm = read_image(folder / "grey_16bit_hopper.png"), read_image(folder / "grey_16bit_hopper.pgm")
    np.testing.assert_array_equal(png, pgm)
    assert png.std() > 20  # a picture, not the black sheet that truncated high bits would give
