"""Which window of an image is trained on: the published verdicts first, then their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.pipeline.crop import acceptable, draw_crop
from emaseg.data.pipeline.transforms import sample_rng
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import ARRAYS


def test_crops_are_accepted_and_rejected_as_published() -> None:
    """All 43 boxes, one of them without any labelled pixel."""
    label = ARRAYS["crop__label"]
    verdicts = []
    for top, left, height, width, *_, accept in ARRAYS["crop__boxes"].tolist():
        part = label[int(top) : int(top + height), int(left) : int(left + width)]
        verdicts.append(acceptable(part, 0.75) == bool(accept))
    assert verdicts == [True] * 43


def test_crops_are_redrawn_until_one_is_acceptable() -> None:
    """Only the right edge of this label holds a second class; nearly all single draws miss it."""
    label = np.zeros((64, 400), np.uint8)
    label[:, 380:] = 1
    hits = {}
    for draws in (1, 400):
        augment = Augment(crop=(32, 32), crop_draws=draws)
        parts = [draw_crop(label, (64, 400), augment, sample_rng(0, 0, i))[1] for i in range(30)]
        hits[draws] = sum(acceptable(part, 0.75) for part in parts)
    assert hits[400] == 30
    assert hits[1] < 10


def test_a_crop_without_a_good_window_is_used_all_the_same() -> None:
    augment = Augment(crop=(32, 32))
    window, part = draw_crop(np.full((64, 64), 255, np.uint8), (64, 64), augment, sample_rng(0, 0, 0))
    assert window[2:] == part.shape == (32, 32)


@pytest.mark.parametrize(("share", "expected"), [(0.75, False), (0.76, True), (1.0, True)])
def test_the_largest_share_is_exclusive(share: float, expected: bool) -> None:
    """Three quarters of the labelled pixels are one class; the ignored ones do not count."""
    assert acceptable(np.array([[1, 1, 1, 2, 255, 255]], np.uint8), share) is expected


def test_one_class_or_none_is_not_acceptable() -> None:
    assert not acceptable(np.array([[3, 3, 255]], np.uint8), 0.99)
    assert not acceptable(np.array([[255, 255]], np.uint8), 0.99)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), share=st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_a_crop_is_judged_by_all_its_pixels(data: st.DataObject, share: float) -> None:
    """Some rows often decide; the verdict is that of the definition for every label."""
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    values = data.draw(st.lists(st.sampled_from([0, 1, 2, 253, 255]), min_size=height * width, max_size=height * width))
    label = np.array(values, np.uint8).reshape(height, width)
    shares = [values.count(v) / max(1, sum(v != 255 for v in values)) for v in {*values} - {255}]
    assert acceptable(label, share) is (share == 1.0 or (len(shares) > 1 and max(shares) < share))
