"""Resizing: sizes, images and labels bit for bit as OpenCV gives them, and a window equal to the whole result's part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.dataset import Region
from emaseg.data.pipeline import resize
from emaseg.data.pipeline.resize import box_needed, limit_size, resize_floats, resize_image, resize_label, resize_region
from tests.data.pipeline_golden import ARRAYS, FACTS, sample_image, sample_label, sha256

CASES = [pytest.param(case, id=case["name"]) for case in FACTS["cases"]]
SIDE = st.integers(1, 40)


@pytest.fixture(autouse=True, params=["own", "opencv"], scope="module")
def _each_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds for the arithmetic of this project and for OpenCV's own, where it is installed."""
    if request.param == "opencv":
        pytest.importorskip("cv2")
        assert resize._opencv_resize() is not None, "this build of OpenCV differs"
        yield
    else:
        with mock.patch.object(resize, "_opencv_resize", return_value=None):
            yield


@pytest.mark.parametrize("case", CASES)
def test_images_equal_opencv_bit_for_bit(case: dict[str, Any]) -> None:
    resized = resize_image(sample_image(*case["size"]), tuple(case["result"]))
    step = case["every"]
    np.testing.assert_array_equal(resized[::step, ::step], ARRAYS[f"{case['name']}__image"])
    assert sha256(resized) == case.get("image_sha256", sha256(resized))


@pytest.mark.parametrize("case", CASES)
def test_labels_equal_opencv(case: dict[str, Any]) -> None:
    resized = resize_label(sample_label(*case["size"]), tuple(case["result"]))
    step = case["every"]
    np.testing.assert_array_equal(resized[::step, ::step], ARRAYS[f"{case['name']}__label"])
    values, counts = np.unique(resized, return_counts=True)
    assert {str(v): int(n) for v, n in zip(values, counts, strict=True)} == case["label_counts"]
    assert sha256(resized) == case.get("label_sha256", sha256(resized))


def test_labels_at_whole_positions_fall_where_opencv_lets_them() -> None:
    """OpenCV's step is 1 / (new / old), now and then a last bit below old / new: floor then takes the pixel before.

    The columns are those where cv2.resize of OpenCV 4.5.5 is not floor(index * 189 / 462).
    """
    label = np.arange(189, dtype=np.uint8)[None]
    ideal = np.arange(462) * 189 // 462
    resized = resize_label(label, (1, 462))[0]
    assert np.flatnonzero(resized != ideal).tolist() == [66, 132, 154, 242, 264, 286, 308]
    assert (resized[[66, 308]] == ideal[[66, 308]] - 1).all()


@pytest.mark.parametrize("row", FACTS["train_sizes"])
def test_training_sizes(row: dict[str, Any]) -> None:
    size = limit_size(tuple(row["size"]), row["long_short"], row["keep_ratio"], row["scale"])
    assert list(size) == row["result"]


def test_evaluation_sizes() -> None:
    for height, width, *expected in FACTS["eval_sizes_2048x512"]:
        assert list(limit_size((height, width), (2048, 512), True)) == expected


def test_limits_follow_the_orientation_of_the_image() -> None:
    assert limit_size((300, 200), (600, 473), False) == (600, 473)
    assert limit_size((200, 300), (600, 473), False) == (473, 600)
    assert limit_size((200, 200), (600, 473), False) == (473, 600)  # a square counts as landscape
    assert limit_size((30, 31), (), True, 0.5) == (15, 16)
    assert limit_size((1000, 1), (100, 50), True) == (100, 1)  # never zero


@settings(max_examples=50, deadline=None)
@given(height=SIDE, width=SIDE, new=st.tuples(SIDE, SIDE), data=st.data())
def test_a_window_is_that_part_of_the_whole(height: int, width: int, new: tuple[int, int], data: st.DataObject) -> None:
    image, label = sample_image(height, width), sample_label(height, width)
    top, left = data.draw(st.integers(0, new[0] - 1)), data.draw(st.integers(0, new[1] - 1))
    h, w = data.draw(st.integers(1, new[0] - top)), data.draw(st.integers(1, new[1] - left))
    part = np.s_[top : top + h, left : left + w]
    window = (top, left, h, w)
    np.testing.assert_array_equal(resize_image(image, new, window), resize_image(image, new)[part])
    np.testing.assert_array_equal(resize_label(label, new, window), resize_label(label, new)[part])
    np.testing.assert_array_equal(resize_floats(image, new, window), resize_floats(image, new)[part])


@settings(max_examples=50, deadline=None)
@given(height=SIDE, width=SIDE, new=st.tuples(SIDE, SIDE))
def test_aligned_corners_follow_torch(height: int, width: int, new: tuple[int, int]) -> None:
    """To rounding, also for a single row or column."""
    image = sample_image(height, width)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, size=new, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_floats(image, new) - expected).max() < 2e-3  # of 255


@settings(max_examples=50, deadline=None)
@given(height=SIDE, width=SIDE, new=st.tuples(SIDE, SIDE))
def test_resizing_stays_near_the_ideal_and_invents_no_label(height: int, width: int, new: tuple[int, int]) -> None:
    """The integer arithmetic is at most one level from the real-valued result; labels only move."""
    image, label = sample_image(height, width), sample_label(height, width)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    ideal = F.interpolate(planes, size=new, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_image(image, new) - ideal).max() <= 1
    assert set(np.unique(resize_label(label, new))) <= set(np.unique(label))


@settings(max_examples=100, deadline=None)
@given(height=SIDE, width=SIDE, new=st.tuples(SIDE, SIDE), mirrored=st.booleans(), data=st.data())
def test_the_needed_box_is_enough(
    height: int, width: int, new: tuple[int, int], mirrored: bool, data: st.DataObject
) -> None:
    """A window comes out the same when nothing but the pixels that decide it was read."""
    image = sample_image(height, width)
    top, left = data.draw(st.integers(0, new[0] - 1)), data.draw(st.integers(0, new[1] - 1))
    window = (top, left, data.draw(st.integers(1, new[0] - top)), data.draw(st.integers(1, new[1] - left)))
    y, x, h, w = box_needed((height, width), new, window)
    assert 0 <= y < y + h <= height
    assert 0 <= x < x + w <= width
    seen, any_byte = image[y : y + h, x : x + w].copy(), np.uint8(data.draw(st.integers(0, 255)))
    words = np.dstack([seen, np.full((h, w), any_byte)]).view("<u4")[..., 0]
    expected = resize_image(image, new, window, mirrored=mirrored)
    for part in (Region(seen, y, x, image.shape[:2]), Region(seen, y, x, image.shape[:2], words)):
        np.testing.assert_array_equal(resize_region(part, new, window, mirrored=mirrored), expected)


@settings(max_examples=100, deadline=None)
@given(old=st.tuples(SIDE, SIDE), new=st.tuples(SIDE, SIDE), channels=st.integers(1, 9), at_once=st.integers(1, 2000))
def test_images_follow_the_integer_arithmetic(
    old: tuple[int, int], new: tuple[int, int], channels: int, at_once: int
) -> None:
    """The definition, pixel by pixel, for any number of channels and of rows that are computed together."""
    image = np.random.default_rng(old[0]).integers(0, 256, (*old, channels), np.uint8)
    (x0, x1), (u0, u1) = resize._bilinear(old[1], new[1], 0, new[1])
    (y0, y1), (v0, v1) = resize._bilinear(old[0], new[0], 0, new[0], keep_weight=True)
    wide = image.astype(np.int64)
    columns = wide[:, x0] * u0[:, None] + wide[:, x1] * u1[:, None] >> 4
    above, below = columns[y0] * v0[:, None, None] >> 16, columns[y1] * v1[:, None, None] >> 16
    expected = above + below + 2 >> 2 if old != new else image
    with mock.patch.object(resize, "_AT_ONCE", at_once):
        np.testing.assert_array_equal(resize_image(image, new), expected)


def test_the_same_size_changes_nothing() -> None:
    image, label = sample_image(20, 30), sample_label(20, 30)
    np.testing.assert_array_equal(resize_image(image, (20, 30)), image)
    np.testing.assert_array_equal(resize_label(label, (20, 30)), label)


def test_read_only_and_mirrored_arrays_are_accepted() -> None:
    image, label = sample_image(20, 30), sample_label(20, 30)
    expected = resize_image(image[:, ::-1].copy(), (33, 17)), resize_label(label[:, ::-1].copy(), (33, 17))
    image.setflags(write=False)
    label.setflags(write=False)
    np.testing.assert_array_equal(resize_image(image[:, ::-1], (33, 17)), expected[0])
    np.testing.assert_array_equal(resize_label(label[:, ::-1], (33, 17)), expected[1])
