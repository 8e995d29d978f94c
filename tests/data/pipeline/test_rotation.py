"""Rotation against OpenCV 4.5.5, bit for bit, whichever OpenCV is installed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from emaseg.data.dataset import UInt8
from emaseg.data.pipeline import rotation
from emaseg.data.pipeline.rotation import rotate_image, rotate_label
from tests.data.pipeline_golden import ARRAYS, FACTS, sample_image, sample_label, sha256
from tests.parity import GOLDEN

CASES: list[tuple[int, int, int, str, str]] = json.loads((GOLDEN / "rotation.json").read_text())["cases"]


def noise(height: int, width: int, channels: int) -> UInt8:
    """(H, W, channels) without any order that an eye sees, so that every weight counts. No random generator makes it."""
    y, x, c = np.ogrid[:height, :width, :channels]
    n = 7919 * y + 104729 * x + 1299709 * c
    return ((n * n >> 7) % 256).astype(np.uint8)


def test_images_and_labels_equal_opencv_4_5_5() -> None:
    """Protects the published LIP rows: all their angles and some beyond, at many sizes, to the last bit."""
    wrong = []
    for height, width, degrees, image, label in CASES:
        if sha256(rotate_image(noise(height, width, 3), degrees)) != image:
            wrong.append(f"image {height}x{width} by {degrees}")
        if sha256(rotate_label(noise(height, width, 1)[..., 0] % 21, degrees)) != label:
            wrong.append(f"label {height}x{width} by {degrees}")
    assert wrong == []
    assert {degrees for _, _, degrees, _, _ in CASES} >= set(range(-30, 30))


@pytest.mark.parametrize("degrees", [17, -23])
def test_rotation_equals_the_published_pipeline(degrees: int) -> None:
    """Protects against a wrong centre or order of steps: what sssegmentation's own transform gave, exactly."""
    forward = np.vstack([ARRAYS[f"rotation_{degrees}__matrix"], [0, 0, 1]])
    np.testing.assert_allclose(rotation._source_of_rotation(375, 500, degrees), np.linalg.inv(forward)[:2], atol=1e-12)
    label = rotate_label(sample_label(375, 500), degrees)
    np.testing.assert_array_equal(label[::4, ::4], ARRAYS[f"rotation_{degrees}__label"])
    assert int((label == 255).sum()) == FACTS["rotation_ignored"][str(degrees)]
    image = rotate_image(sample_image(375, 500), degrees)
    np.testing.assert_array_equal(image[::4, ::4], ARRAYS[f"rotation_{degrees}__image"])


def test_the_installed_opencv_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects training samples from an upgrade: OpenCV 5 rotates to other values."""
    cv2: Any = pytest.importorskip("cv2")

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("OpenCV was asked to rotate")

    for name in ("warpAffine", "remap", "getRotationMatrix2D", "invertAffineTransform"):
        monkeypatch.setattr(cv2, name, asked)
    height, width, degrees, image, _ = CASES[0]
    assert sha256(rotate_image(noise(height, width, 3), degrees)) == image


def test_sums_of_weighted_pixels_are_exact_in_float32() -> None:
    """Protects the bits on every processor and number of threads: no partial sum leaves the exact integers."""
    weights = rotation._weights().double()
    assert float(weights.abs().sum(dim=1).max()) * 255 + 2**14 < 2**24
    assert (weights.sum(dim=1) == 2**15).all()
    assert (weights == weights.round()).all()


def test_rotation_by_nothing_and_by_a_half_turn() -> None:
    """A half turn about (w / 2, h / 2) leaves row and column 0 empty and turns the rest: the published centre."""
    image, label = sample_image(20, 31), sample_label(20, 31)
    np.testing.assert_array_equal(rotate_image(image, 0), image)
    np.testing.assert_array_equal(rotate_label(label, 0), label)
    np.testing.assert_array_equal(rotate_label(label, 180)[1:, 1:], label[1:, 1:][::-1, ::-1])
    assert (rotate_label(label, 180)[0] == 255).all()


def test_mirrored_and_cut_images_are_rotated_like_their_copies() -> None:
    """Protects crops, which are views with any strides: the values decide, and the source is left as it was."""
    whole = noise(50, 60, 3)
    kept = whole.copy()
    for view in (whole[:, ::-1], whole[7:41, 3:50], whole[::2]):
        np.testing.assert_array_equal(rotate_image(view, 11), rotate_image(view.copy(), 11))
    np.testing.assert_array_equal(whole, kept)
