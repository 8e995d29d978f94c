"""Turned crops move exactly with their labels; blur, noise and JPEG change pixels alone, as drawn from the sample's own generator."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.dataset import MemorySample
from emaseg.data.files.file_sample import FileSample
from emaseg.data.pipeline.augmentations import Turned, add_noise, blur, through_jpeg
from emaseg.data.pipeline.transforms import collate, sample_rng, train_crop, turn_label
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import sample_image, sample_label, without_opencv
from tests.recipe.samples import MINIMAL, complaint

PLAIN = Augment(crop=(48, 48), max_class_share=1.0, flip=0.0, photometric="none")
AUTHORS = dataclasses.replace(PLAIN, interpolation="align_corners", pad="bottom_right", pad_before_crop=True)


def sample(height: int = 60, width: int = 80) -> MemorySample:
    return MemorySample("a.jpg", sample_image(height, width), sample_label(height, width))


TURNS = st.builds(Turned, st.booleans(), st.booleans(), st.integers(0, 3))


@given(TURNS, st.integers(1, 9), st.integers(1, 9))
def test_pixels_move_to_where_the_box_says(turned: Turned, height: int, width: int) -> None:
    """Protects image, label and padding from moving apart: a box cut out of a canvas lands where `place` says."""
    side, top, left = 12, 2, 1
    canvas = np.arange(side * side, dtype=np.float32).reshape(side, side)
    whole = turned.pixels(canvas[:, ::-1] if turned.mirrored else canvas)
    part = canvas[top : top + height, left : left + width]
    moved = turned.pixels(part[:, ::-1] if turned.mirrored else part)
    y, x, h, w = turned.place((top, left, height, width), (side, side))
    np.testing.assert_array_equal(whole[y : y + h, x : x + w], moved)


@given(TURNS)
def test_turned_back_is_where_it_was(turned: Turned) -> None:
    """Protects the law: a flip twice and four quarters are nothing; the pairs of classes change places in mirrors only."""
    label = sample_label(7, 7) % 4
    if turned.turns == 0:
        twice = turn_label(turn_label(label, turned, [(0, 3)]), turned, [(0, 3)])
        np.testing.assert_array_equal(twice, label)
    four = label
    for _ in range(4):
        four = turn_label(four, Turned(turns=1), [(0, 3)])
    np.testing.assert_array_equal(four, label)
    counts = [np.count_nonzero(turn_label(label, turned, [(0, 3)]) == c) for c in (0, 3)]
    before = [np.count_nonzero(label == c) for c in (0, 3)]
    assert counts == (before[::-1] if turned.reflected else before)


@pytest.mark.parametrize("plain", [PLAIN, AUTHORS], ids=["pixel", "align_corners"])
@pytest.mark.parametrize("size", [(60, 80), (30, 20)], ids=["larger", "smaller"])
def test_a_batch_holds_the_turned_canvas(plain: Augment, size: tuple[int, int]) -> None:
    """Protects the padding: the same draws without turns give the same crop, which then is turned as a whole."""
    augment = dataclasses.replace(plain, vertical_flip=1.0, quarter_turns=1.0)
    seen = set()
    for index in range(8):
        one, two = (train_crop(sample(*size), a, sample_rng(3, 0, index)) for a in (plain, augment))
        turned = two.turned
        seen.add(turned)
        np.testing.assert_array_equal(turned.pixels(one.image), two.image)
        np.testing.assert_array_equal(turned.pixels(one.label), two.label)
        if plain.pad_before_crop:
            first, second = (collate([crop], 1, augment) for crop in (one, two))
            np.testing.assert_array_equal(turned.pixels(first.labels[0].numpy()), second.labels[0].numpy())
    assert {t.turns for t in seen} == {1, 2, 3}
    assert all(t.upended and not t.mirrored for t in seen)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("off", [("rotation",), ("photometric",), ("rotation", "photometric"), ()])
def test_a_file_is_never_written_to(kind: str, off: tuple[str, ...]) -> None:
    """Protects from a step that works in place: pixels as they were decoded, at their own size, refuse that."""
    file = io.BytesIO()
    Image.fromarray(sample_image(60, 80)).save(file, kind)
    every = dataclasses.replace(
        PLAIN, scale=(1.0, 1.0), resize_long_short=(), flip=0.5, vertical_flip=0.5, quarter_turns=0.5,
        rotation=1.0, photometric="bgr", blur=1.0, noise=1.0, jpeg=1.0,
    )  # fmt: skip
    augment = dataclasses.replace(every, **{name: getattr(PLAIN, name) for name in off})  # type: ignore[arg-type]
    label = sample_label(60, 80)
    with without_opencv():
        crops = [
            train_crop(FileSample(file.getvalue(), "a", lambda: label), augment, sample_rng(0, 0, i)) for i in range(8)
        ]
    assert collate(crops, len(crops), augment).pixels.shape == (8, 48, 48, 3)


def test_off_draws_nothing() -> None:
    """Protects every published row and every run that exists: probabilities of 0 leave the generator where it was."""
    for plain in (dataclasses.replace(PLAIN, flip=0.5, photometric="bgr", rotation=0.5), AUTHORS):
        one, two = (sample_rng(1, 2, 3) for _ in range(2))
        train_crop(sample(), plain, one)
        options = {} if plain is AUTHORS else {"blur_sigma": (3.0, 4.0), "noise_levels": (9.0, 9.0)}
        train_crop(sample(), dataclasses.replace(plain, jpeg_quality=(5, 5), **options), two)
        assert one.random() == two.random()


def test_what_cameras_do_leaves_labels_alone_and_repeats() -> None:
    """Protects labels from the image's effects, and a resumed run from other pixels: all comes from the sample's generator."""
    augment = dataclasses.replace(PLAIN, blur=1.0, noise=1.0, jpeg=1.0)
    plain, one, two, other = (
        train_crop(sample(), a, sample_rng(0, 0, index))
        for a, index in ((PLAIN, 5), (augment, 5), (augment, 5), (augment, 6))
    )
    np.testing.assert_array_equal(plain.label, one.label)
    np.testing.assert_array_equal(one.image, two.image)
    assert not np.array_equal(plain.image, one.image)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_the_convolution(sigma: float) -> None:
    """Protects the strength that the recipe states, against the sum over all neighbours, done by hand."""
    image = sample_image(9, 11)
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-reach, reach + 1)]
    expected = image.astype(np.float64)
    for axis in (0, 1):
        count = image.shape[axis]
        rows = [np.clip(np.arange(count) + d, 0, count - 1) for d in range(-reach, reach + 1)]
        expected = sum(w / sum(weights) * expected.take(r, axis) for w, r in zip(weights, rows, strict=True))
    assert np.abs(blur(image, sigma) - expected).max() <= 0.51
    flat = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(blur(flat, sigma), flat)


def test_noise_has_the_stated_deviation() -> None:
    """Protects its strength, and that it is clipped instead of wrapping round."""
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = add_noise(grey, 6.0, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx(6.0, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.1)
    white = add_noise(np.full((50, 50, 3), 254, np.uint8), 6.0, np.random.default_rng(0))
    assert white.min() > 200
    np.testing.assert_array_equal(add_noise(grey, 0.0, np.random.default_rng(0)), grey)


def test_jpeg_loses_more_the_lower_the_quality() -> None:
    """Protects the direction of the scale and the size of the picture."""
    image = sample_image(40, 56)
    errors = [float(np.abs(through_jpeg(image, q).astype(int) - image).mean()) for q in (100, 60, 5)]
    assert errors == sorted(errors)
    assert errors[0] < errors[2]
    assert through_jpeg(image, 60).shape == image.shape


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["augment.quarter_turns=0.5"], "augment.quarter_turns: needs a square crop; augment.crop is [64, 96]"),
        (["augment.blur_sigma=[2, 1]"], "augment.blur_sigma: [2.0, 1.0] runs backwards"),
        (
            ["augment.interpolation='align_corners'", "augment.photometric='none'", "augment.jpeg=0.5"],
            "augment.jpeg: must be 0 with",
        ),
        (["augment.crop=[64, 64]", "augment.quarter_turns=0.5", "augment.vertical_flip=1"], ""),
    ],
)
def test_what_cannot_be_done_is_said(sets: list[str], message: str) -> None:
    """Protects a run from starting with a turn that does not fit its crop, or pixels that are no longer 8-bit."""
    text = complaint(MINIMAL, *sets)
    assert message in text if message else text == ""
