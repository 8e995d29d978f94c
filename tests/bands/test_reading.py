"""Images of any channels and depth: exactly the file's values, mapped as declared, or a reason that is true."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.files import tiff_bands
from emaseg.data.files.bands import Bands, pixels_size, read_pixels, stored_pixels
from emaseg.data.files.images import read_image
from emaseg.errors import DataError, SystemFault, UserError
from emaseg.exporting.quantise import calibration_images
from tests.data.made import fails

RNG = np.random.default_rng(0)


def values(channels: int, dtype: type[np.generic], size: tuple[int, int] = (7, 9)) -> np.ndarray:
    white = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (RNG.random((*size, channels)) * white).astype(dtype)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("top", [300, 4095, 65535])
@pytest.mark.parametrize("remark", ["", "# of a camera 9 9\n"])
def test_a_range_is_of_the_values_that_a_pgm_holds(top: int, remark: str, tmp_path: Path) -> None:
    """Protects data.range: Pillow stretches the values of a PGM to 65535, whatever its largest one is."""
    image = RNG.integers(0, top + 1, (7, 9))
    plain = f"P2\n{remark}9 7 {top}\n{' '.join(map(str, image.ravel()))}\n".encode()
    raw = f"P5\n{remark}9 7\n{top}\n".encode() + image.astype(">u2").tobytes()
    for content in (raw, plain):
        (tmp_path / "a.pgm").write_bytes(content)
        assert (stored_pixels(tmp_path / "a.pgm", 1)[..., 0] == image).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_a_range_is_mapped_to_0_and_255_and_not_rounded(dtype: type[np.generic]) -> None:
    """Protects the meaning of mean and std, which are on 0..255 whatever the files hold, and every bit of the sensor's."""
    image = np.array([[[0, 100], [25, 300], [50, 7], [100, 500], [999, 999]]], dtype)
    found = read_pixels(npy(image), "a", Bands(2, ((0, 100), (100, 500))))
    assert found.dtype == np.float32
    assert np.allclose(found[0, :, 0], [0, 63.75, 127.5, 255, 255])
    assert np.allclose(found[0, :, 1], [0, 127.5, 0, 255, 255])  # beyond the range: black and white


def test_without_a_range_only_8_bits_are_read() -> None:
    """Protects from a guess: nothing in a 16-bit file says which value is white."""
    image = values(4, np.uint8)
    found = read_pixels(npy(image), "a", Bands(4))
    assert np.array_equal(found, image)
    assert found.flags.writeable
    fails(lambda: read_pixels(npy(values(4, np.uint16)), "a.npy", Bands(4)), DataError, "a.npy", "data.range", "uint16")
    holes = values(1, np.float32)
    holes[2, 3] = np.nan
    fails(lambda: read_pixels(npy(holes[..., 0]), "a", Bands(1, ((0, 1),))), DataError, "1 values", "nan_to_num")


def test_the_rgb_road_is_untouched(tmp_path: Path) -> None:
    """Protects the published systems: without a declaration every file is what read_image gives, arrays excepted."""
    for mode in ("RGB", "L", "RGBA"):
        Image.fromarray(values(4, np.uint8)).convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_pixels(tmp_path / f"{mode}.png"), read_image(tmp_path / f"{mode}.png"))
    rgb = values(3, np.uint8)
    np.save(tmp_path / "a.npy", rgb)
    assert np.array_equal(read_pixels(tmp_path / "a.npy"), rgb)


# --------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (16, 16)},
        {"bigtiff": True, "byteorder": ">"},
        {"pages": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_tiff_of_any_arrangement(channels: int, dtype: type[np.generic], options: dict[str, object]) -> None:
    """Protects satellite images: pixel by pixel, in planes, tiles or pages, the values are the file's."""
    image = values(channels, dtype)
    options, planes = dict(options), np.ascontiguousarray(image.transpose(2, 0, 1))
    if options.pop("pages", False):
        content = tiff(planes, planarconfig=None, metadata=None)
    else:
        content = tiff(planes if "separate" in options.values() else image, **options)
    white = 255 if dtype is np.uint8 else 65535 if dtype is np.uint16 else 1
    bands = Bands(channels, ((0, white),))
    assert pixels_size(content, "a", bands) == image.shape[:2]
    assert np.allclose(read_pixels(content, "a", bands), image.astype(np.float64) * (255 / white), atol=1e-3)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    """Protects files of GDAL, which are compressed as a rule: emaseg[tiff] brings the decoders."""
    pytest.importorskip("imagecodecs")
    image = values(4, np.uint8)
    assert np.array_equal(read_pixels(tiff(image, compression=compression), "a", Bands(4)), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation(orientation: int) -> None:
    """Protects masks that were drawn in a viewer: the same turn as Pillow makes of a grey file."""
    grey = values(1, np.uint8)[..., 0]
    tag = [(274, 3, 1, orientation, True)]
    turned = np.asarray(Image.open(io.BytesIO(tiff(grey, planarconfig=None, extratags=tag))))
    if turned.shape == grey.shape and orientation != 1:
        turned = read_pixels(tiff(grey, planarconfig=None, extratags=tag), "a", Bands(1))[..., 0]
    content = tiff(np.dstack([grey] * 4), extratags=tag)
    found = read_pixels(content, "a", Bands(4))
    assert np.array_equal(found[..., 3], turned)
    assert pixels_size(content, "a", Bands(4)) == turned.shape


def test_pillows_kinds(tmp_path: Path) -> None:
    """Protects grey and 16-bit PNG and TIFF without the optional package, and alpha as a band of its own."""
    grey, deep, clear = values(1, np.uint8)[..., 0], values(1, np.uint16)[..., 0], values(4, np.uint8)
    floats = values(1, np.float32)[..., 0]
    for name, array in (("g.png", grey), ("g.tif", grey), ("d.png", deep), ("d.tif", deep), ("f.tif", floats)):
        Image.fromarray(array).save(tmp_path / name)
        white = {"g": 255, "d": 65535, "f": 1}[name[0]]
        found = read_pixels(tmp_path / name, bands=Bands(1, ((0, white),)))
        assert np.allclose(found[..., 0], array.astype(np.float64) * (255 / white), atol=1e-3)
        thrice = read_pixels(tmp_path / name, bands=Bands(3, ((0, white),)))  # for weights that expect RGB
        assert np.array_equal(thrice, np.repeat(found, 3, axis=2))
    Image.fromarray(clear).save(tmp_path / "c.png")
    assert np.array_equal(read_pixels(tmp_path / "c.png", bands=Bands(4)), clear)


def test_png_of_16_bit_colours() -> None:
    """Protects the low bytes that Pillow drops."""
    cv2 = pytest.importorskip("cv2")
    image = values(3, np.uint16)
    content = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    found = read_pixels(content, "a", Bands(3, ((0, 65535),)))
    assert np.allclose(found, image.astype(np.float64) * (255 / 65535), atol=1e-3)
    fails(lambda: read_pixels(content[:-40], "a.png", Bands(3, ((0, 1),))), DataError, "a.png", "damaged")


# ------------------------------------------------------------------------------------------------------------- arrays
def test_the_channels_of_an_array() -> None:
    """Protects (C, H, W) and (H, W, C) alike; what could be both is refused."""
    image = values(4, np.uint8)
    for array in (image, image.transpose(2, 0, 1), np.asfortranarray(image)):
        assert np.array_equal(read_pixels(npy(array), "a", Bands(4)), image)
        assert pixels_size(npy(array), "a", Bands(4)) == (7, 9)
    assert read_pixels(npy(image[..., 0]), "a", Bands(1)).shape == (7, 9, 1)
    fails(lambda: read_pixels(npy(values(4, np.uint8, (4, 9))), "a", Bands(4)), DataError, "does not tell")
    fails(lambda: read_pixels(npy(image[..., 0]), "a", Bands(4)), DataError, "1 channel", "in_channels = 1")
    fails(lambda: read_pixels(npy(values(5, np.uint8)), "a", Bands(4)), DataError, "(7, 9, 5)", "4 channels")
    fails(lambda: read_pixels(npy(np.array(["x"] * 4, object)), "a", Bands(4)), DataError, "not of numbers")


def test_other_channels_than_declared() -> None:
    """Protects from a band that is dropped without a word."""
    grey = io.BytesIO()
    Image.fromarray(values(3, np.uint8)).save(grey, "PNG")
    fails(lambda: read_pixels(grey.getvalue(), "a.png", Bands(4)), DataError, "a.png", "3 channels", "in_channels = 3")
    fails(lambda: read_pixels(tiff(values(5, np.uint8)), "a", Bands(4)), DataError, "5 channels", "in_channels = 5")


def test_without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects people without the extra: its name is told when such a file is opened, not before."""
    content = tiff(values(4, np.uint8))
    monkeypatch.setattr(tiff_bands.importlib.util, "find_spec", lambda name: None)
    fails(lambda: read_pixels(content, "a.tif", Bands(4)), SystemFault, "a.tif", "tifffile", "pip install tifffile")


# ------------------------------------------------------------------------------------------------------------- hostile
@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["npy", "tiff", "pages", "lzw"]))
def test_damaged_files_are_data_errors(data: st.DataObject, kind: str) -> None:
    """Law: a file that is cut short or has bytes changed is read, or refused by its name; nothing else ever escapes."""
    image = np.arange(6 * 8 * 4, dtype=np.uint8).reshape(6, 8, 4)
    content = bytearray(
        {
            "npy": lambda: npy(image),
            "tiff": lambda: tiff(image),
            "pages": lambda: tiff(image.transpose(2, 0, 1), planarconfig=None),
            "lzw": lambda: tiff(image, compression="lzw"),
        }[kind]()
    )
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(8, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_pixels, pixels_size):
        try:
            read(bytes(content), "hostile", Bands(4))
        except UserError as error:
            assert "hostile" in error.message or "hostile" in error.hint  # noqa: PT017


@pytest.mark.parametrize("shape", ["(100000, 100000, 4)", "(-1, 8, 4)", "(0, 8, 4)", "(2**63, 8, 4)", "(8,)", "()"])
def test_headers_that_promise_anything(shape: str) -> None:
    """Protects the memory: the header is held against the limits and the file's length before anything is made."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    with pytest.raises(DataError):
        read_pixels(content, "a", Bands(4))


def test_an_export_learns_ranges_from_arrays(tmp_path: Path) -> None:
    """Protects --calibrate for recipes whose images are .npy files: they are images there, as in training."""
    np.save(tmp_path / "a.npy", values(4, np.uint16))
    (found,) = calibration_images(tmp_path, Bands(4, ((0, 65535),)))
    assert (found.shape, found.dtype) == ((7, 9, 4), np.float32)
