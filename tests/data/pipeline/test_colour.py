"""Colour jitter: every stage against the published system and the plain formulas, the quirk of its colour order, and
what is drawn."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emaseg.data.dataset import UInt8
from emaseg.data.pipeline.colour import HUES, LOWEST_HUE, Photometric, apply_photometric, draw_photometric, to_hsv
from tests.data.pipeline_golden import ARRAYS, sample_image

IMAGE = sample_image(375, 500)
EXACT_COLUMNS = 120  # of the stored ones: the golden machine rounds instead of truncating in the last 500 mod 32

STAGES = {
    "brightness_17.3": Photometric(brightness=17.3),
    "brightness_-25.3": Photometric(brightness=-25.3),
    "contrast_0.73": Photometric(contrast=0.73),
    "contrast_1.31": Photometric(contrast=1.31, contrast_first=False),
    "saturation_0.61": Photometric(saturation=0.61),
    "saturation_1.42": Photometric(saturation=1.42),
    "hue_-18": Photometric(hue=-18),
    "hue_-13": Photometric(hue=-13),
    "hue_9": Photometric(hue=9),
    "hue_17": Photometric(hue=17),
    "chain_mode1_b12.5_c1.2_s0.8_h7": Photometric(12.5, 1.2, True, 0.8, 7),
    "chain_mode0_b12.5_s0.8_h7_c1.2": Photometric(12.5, 1.2, False, 0.8, 7),
}
colours = st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20)
jitters = st.builds(
    Photometric,
    brightness=st.none() | st.floats(-32, 32),
    contrast=st.none() | st.floats(0.5, 1.5),
    contrast_first=st.booleans(),
    saturation=st.none() | st.floats(0.5, 1.5),
    hue=st.none() | st.integers(-18, 17),
)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_equals_the_published_one(stage: str) -> None:
    """Exact but for the columns where the golden machine's last step rounds."""
    own = apply_photometric(IMAGE, STAGES[stage], bgr_as_rgb=True)[::4, ::4].astype(int)
    difference = np.abs(own - ARRAYS[f"photo__{stage}"])
    assert difference[:, :EXACT_COLUMNS].max() == 0
    assert difference.max() <= (3 if stage.startswith("chain") else 1)
    assert np.mean(difference > 0) < 0.022


def hsv(planes: UInt8) -> npt.NDArray[np.int64]:
    """(3, N): H in 0..179, S and V of (3, N) as to_hsv computes them."""
    h, s, v = (plane.astype(np.int64) for plane in to_hsv(planes))
    return np.stack([(h + LOWEST_HUE) % HUES, s, v])


def plain_hsv(planes: UInt8) -> npt.NDArray[np.int64]:
    """The same by OpenCV's integer formulas, written as they are published."""
    a, b, c = planes.astype(np.int64)
    v = np.maximum(np.maximum(a, b), c)
    d = v - np.minimum(np.minimum(a, b), c)
    n = np.select([v == a, v == b], [b - c, c - a + 2 * d], a - b + 4 * d)
    per_value, per_range = (
        np.rint(scale * 4096 / np.maximum(x, 1)).astype(np.int64) for scale, x in ((255, v), (30, d))
    )
    h, s = (n * per_range + 2048) >> 12, (d * per_value + 2048) >> 12
    return np.stack([np.where(h < 0, h + 180, h), s, v])


def plain_trip(image: UInt8, saturation: float, hue: int) -> UInt8:
    """To HSV, S multiplied, H turned, and back: OpenCV's way back with one 32-bit rounding for each operation."""
    h, s, v = plain_hsv(image.reshape(-1, 3).T)
    s = np.clip(s.astype(np.float32) * np.float32(saturation), 0, 255).astype(np.int64)
    sixth = ((h + hue) % 180).astype(np.float32) * np.float32(6 / 180)
    sector = sixth.astype(np.int64)
    f = sixth - sector.astype(np.float32)
    part = s.astype(np.float32) * np.float32(1 / 255)
    zero, one = np.zeros_like(f), np.ones_like(f)
    full, low, falling, rising = ((1 - w.astype(np.float64) * part).astype(np.float32) for w in (zero, one, f, 1 - f))
    shares = [
        np.choose(sector, [full, falling, low, low, rising, full]),
        np.choose(sector, [rising, full, full, falling, low, low]),
        np.choose(sector, [low, low, rising, full, full, falling]),
    ]
    value = v.astype(np.float32) * np.float32(1 / 255)
    colours = np.stack([share * value * np.float32(255) for share in shares], axis=-1)
    return colours.astype(np.uint8).reshape(image.shape)


def test_hsv_equals_the_published_one() -> None:
    """All pixels; blue goes in as the first plane, red as the third."""
    own = hsv(IMAGE[..., ::-1].reshape(-1, 3).T.copy()).T.reshape(375, 500, 3)
    np.testing.assert_array_equal(own[::4, ::4], ARRAYS["photo__hsv_of_bgr_as_rgb"])


def test_hsv_equals_the_integer_formulas_for_every_shade() -> None:
    """S depends on V and on the range below it, H on the range, the middle plane's place in it and the planes' order:
    all of these there are. Protects the claim that 32-bit floats and the choice by minimum change no bit."""
    v, d = np.divmod(np.arange(256 * 256), 256)
    v, d = v[d <= v], d[d <= v]
    grounds = np.stack([v, v - d, v - d])
    ranges, middle = np.divmod(np.arange(256 * 256), 256)
    ranges, middle = ranges[middle <= ranges], middle[middle <= ranges]
    orders = [np.stack([ranges, middle, 0 * middle])[list(order)] for order in itertools.permutations(range(3))]
    shades = np.concatenate([grounds, *orders], axis=1).astype(np.uint8)
    np.testing.assert_array_equal(hsv(shades), plain_hsv(shades))


@pytest.mark.parametrize(("saturation", "hue"), [(1.0, 0), (0.5, None), (1.37, None), (1.0, -18), (None, 7), (1.5, 17)])
def test_a_trip_equals_the_plain_formulas(saturation: float | None, hue: int | None) -> None:
    """On more pixels than are computed at once, and not a multiple of them: near greys, noise, and full saturation,
    where results lie at whole numbers and a last bit decides."""
    image = np.random.default_rng(0).integers(0, 256, (401, 701, 3), np.uint8)
    image[:60] = image[:60, :, :1] // 2 + image[:60] // 64
    for i, (low, high) in enumerate(itertools.permutations(range(3), 2)):
        image[60 + 40 * i : 100 + 40 * i, :, low] = 0
        image[60 + 40 * i : 100 + 40 * i, :, high] = 255
    expected = image
    if saturation is not None:
        expected = plain_trip(expected, saturation, 0)
    if hue is not None:
        expected = plain_trip(expected, 1.0, hue)
    own = apply_photometric(image, Photometric(saturation=saturation, hue=hue), bgr_as_rgb=False)
    np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (0, 0, 255)),
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((100, 50, 50), (0, 128, 100)),
        ((255, 0, 1), (0, 255, 255)),  # a hair below 360 degrees rounds to 0
    ],
)
def test_hsv_of_known_colours(rgb: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert tuple(hsv(np.array(rgb, np.uint8)[:, None])[:, 0].tolist()) == expected


@settings(max_examples=50, deadline=None)
@given(colours=colours, p=jitters)
def test_the_two_colour_orders_mirror_each_other(colours: list[tuple[int, int, int]], p: Photometric) -> None:
    """Handing BGR over as RGB is the correct step on an image whose red and blue are swapped."""
    image = np.array([colours], np.uint8)
    wrong = apply_photometric(image, p, bgr_as_rgb=True)
    np.testing.assert_array_equal(wrong, apply_photometric(image[..., ::-1], p, bgr_as_rgb=False)[..., ::-1])


@settings(max_examples=50, deadline=None)
@given(value=st.integers(0, 255), saturation=st.floats(0.5, 1.5), hue=st.integers(-18, 17))
def test_grey_has_no_colour_to_change(value: int, saturation: float, hue: int) -> None:
    """Neither step moves a grey by more than the last bit of the way to HSV and back."""
    image = np.full((1, 1, 3), value, np.uint8)
    result = apply_photometric(image, Photometric(saturation=saturation, hue=hue), bgr_as_rgb=False)
    assert len(set(result.ravel().tolist())) == 1
    assert abs(int(result[0, 0, 0]) - value) <= 2


@settings(max_examples=50, deadline=None)
@given(colours=colours, p=jitters)
def test_the_image_itself_is_never_written_to(colours: list[tuple[int, int, int]], p: Photometric) -> None:
    image = np.array([colours], np.uint8)
    before = image.copy()
    apply_photometric(image, p, bgr_as_rgb=True)
    np.testing.assert_array_equal(image, before)


def test_any_layout_in_memory_gives_the_same() -> None:
    """Crops are views, mirrored ones too, or planes; one pixel or one row is contiguous in every order."""
    whole = sample_image(37, 41)
    planes = np.ascontiguousarray(whole.transpose(2, 0, 1)).transpose(1, 2, 0)
    for image in (whole[5:30, 3:40], whole[:, ::-1], whole[:1, :1], whole[:1], whole[:, :1], planes, planes[2:, ::-1]):
        for p in STAGES.values():
            expected = apply_photometric(np.ascontiguousarray(image), p, bgr_as_rgb=True)
            before = image.copy()
            np.testing.assert_array_equal(apply_photometric(image, p, bgr_as_rgb=True), expected)
            np.testing.assert_array_equal(image, before)


@settings(max_examples=200, deadline=None)
@given(
    brightness=st.floats(-300, 300)
    | st.integers(-300, 300).map(lambda whole: float(np.nextafter(np.float32(whole), 0)))
)
@example(float(np.nextafter(np.float32(4), 0)))  # 0 becomes 3, but 200 becomes 204
def test_brightness_is_a_sum_of_32_bit_floats(brightness: float) -> None:
    """Clipped, then truncated. Protects the claim that whole levels, where they are added instead, change no bit."""
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    image = np.stack([levels, levels[::-1], levels[:, ::-1]], 2)
    expected = (image.astype(np.float32) + np.float32(brightness)).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(apply_photometric(image, Photometric(brightness), bgr_as_rgb=True), expected)


def test_hue_turns_the_right_way() -> None:
    """+17 (34 degrees) takes red towards yellow; with BGR handed over as RGB it takes it towards magenta."""
    red = np.array([[[255, 0, 0]]], np.uint8)
    right, wrong = (apply_photometric(red, Photometric(hue=17), bgr_as_rgb=quirk)[0, 0] for quirk in (False, True))
    assert right[1] > 100
    assert right[2] == 0
    assert wrong[1] == 0
    assert wrong[2] > 100


def test_the_draws_follow_the_published_distribution() -> None:
    """Each step in half of all images, within its range; hue reaches -18 and 17, never 18."""
    rng = np.random.default_rng(0)
    draws = [draw_photometric(rng) for _ in range(4000)]
    limits = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 17)}
    for field, (low, high) in limits.items():
        values = [value for p in draws if (value := getattr(p, field)) is not None]
        assert 0.46 < len(values) / len(draws) < 0.54
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    assert 0.46 < np.mean([p.contrast_first for p in draws]) < 0.54
    assert {p.hue for p in draws} == {None, *range(-18, 18)}


def test_the_same_generator_draws_the_same() -> None:
    first, second = (draw_photometric(np.random.default_rng(7)) for _ in range(2))
    assert dataclasses.astuple(first) == dataclasses.astuple(second)
