"""The images that 8-bit ranges are learned from: read one after the other, and never more of one than fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import Pixels
from emaseg.errors import DataError
from emaseg.exporting import export, quantise
from emaseg.exporting.export import file_info
from emaseg.exporting.quantise import MOST_PIXELS, calibration_images
from emaseg.exporting.request import make_request
from tests.exporting.made import exported, network, recipe


class Fail(Exception):
    """As those of ONNX Runtime, which have no other base."""


def saved(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Random pictures of (height, width) in a folder."""
    random = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_images_are_held_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects memory: 64 photographs at once would be gigabytes. What is no image is told before any work all the same."""
    read: list[Path] = []

    def note(file: Path, bands: object = None) -> Pixels:
        read.append(file)
        return np.zeros((40, 40, 3), np.uint8)

    monkeypatch.setattr(quantise, "read_pixels", note)
    images = calibration_images(saved(tmp_path, (40, 40), (40, 40), (40, 40)))
    assert (len(images), read) == (3, [])
    made = recipe("emanet")
    reader = quantise._Reader(images, file_info(network(made), made, make_request("torch")))
    for count in (1, 2, 3):
        assert reader.get_next() is not None
        assert len(read) == count
    assert reader.get_next() is None
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png"):
        calibration_images(tmp_path)


def test_of_a_large_image_the_middle_is_seen(tmp_path: Path) -> None:
    """Protects memory: what a network takes grows with its input. The middle keeps its pixels, as tiles and windows do."""
    (image,) = calibration_images(saved(tmp_path, (1500, 3000)))
    made = recipe("emanet")
    info = file_info(network(made), made, make_request("torch", include="normalize"))
    reader = quantise._Reader([image, image[:1000, :1000]], info)
    first, second = reader.get_next(), reader.get_next()
    assert first is not None
    assert second is not None
    seen = first["image"][0].transpose(1, 2, 0)
    height, width = seen.shape[:2]
    assert 0.99 * MOST_PIXELS < height * width <= MOST_PIXELS
    assert width / height == pytest.approx(2, rel=0.01)
    top, left = (1500 - height) // 2, (3000 - width) // 2
    assert np.array_equal(seen, image[top : top + height, left : left + width])
    assert second["image"].shape == (1, 3, 1000, 1000)
    assert reader.cut == 1


def test_no_memory_for_calibration_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects people from "a bug in emaseg": ONNX Runtime's exception becomes the one that means no memory everywhere.
    Any other failure stays what it is."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 1"

    def fail(*_: object) -> None:
        raise Fail(words)

    monkeypatch.setattr(quantise._Reader, "get_next", fail)
    saved(tmp_path, (64, 80))
    with pytest.raises(MemoryError, match="Failed to allocate memory"):
        exported(recipe("emanet"), tmp_path / "a.onnx", "onnx", precision="int8", calibrate=tmp_path, shape="64x80")
    words = "something else"
    with pytest.raises(Fail, match="something else"):
        exported(recipe("emanet"), tmp_path / "a.onnx", "onnx", precision="int8", calibrate=tmp_path, shape="64x80")
    assert not (tmp_path / "a.onnx").exists()


def test_large_images_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a silent cut: a note says of how many images only the middle was looked at."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(quantise, "MOST_PIXELS", 64 * 80)
    monkeypatch.setattr(export, "MOST_PIXELS", 64 * 80)
    made = recipe("emanet")
    request = make_request("onnx", precision="int8", calibrate=saved(tmp_path, (64, 80), (65, 80)))
    told = [getattr(event, "text", "") for event in export.export(network(made), made, request, tmp_path / "a.onnx")]
    assert any(text.endswith("megapixels: the ranges were learned from the middle only") for text in told), told
