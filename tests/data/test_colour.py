"""Colour jitter: every stage against the published system, the quirk of its colour order, and what is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.colour import Photometric, apply_photometric, draw_photometric, to_hsv
from tests.data.pipeline import ARRAYS, sample_image

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


def test_hsv_equals_the_published_one() -> None:
    """All pixels; blue goes in as the first plane, red as the third."""
    planes = to_hsv(*(torch.from_numpy(IMAGE[..., c].flatten()) for c in (2, 1, 0)))
    own = torch.stack(planes, dim=-1).view(375, 500, 3).numpy()
    np.testing.assert_array_equal(own[::4, ::4], ARRAYS["photo__hsv_of_bgr_as_rgb"])


@pytest.mark.parametrize(
    ("rgb", "hsv"),
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
def test_hsv_of_known_colours(rgb: tuple[int, int, int], hsv: tuple[int, int, int]) -> None:
    own = to_hsv(*(torch.tensor([value], dtype=torch.uint8) for value in rgb))
    assert tuple(int(plane) for plane in own) == hsv


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
