"""From an image of any channels to a batch: geometry for all, and the 8-bit RGB road as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.dataset import MemorySample, Region
from emaseg.data.pipeline.augmentations import add_noise, blur
from emaseg.data.pipeline.loading import raw_batch_bytes
from emaseg.data.pipeline.resize import box_needed, resize_image, resize_region
from emaseg.data.pipeline.rotation import rotate_image
from emaseg.data.pipeline.transforms import collate, normalise, normalise_batch, sample_rng, train_crop
from emaseg.recipe import Augment, PixelStats
from emaseg.visual import as_picture

SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))
AUGMENT = Augment(
    crop=(24, 24), photometric="none", rotation=1.0, vertical_flip=0.5, quarter_turns=0.5, blur=1, noise=1
)


def image(channels: int, dtype: type, size: tuple[int, int] = (20, 30), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(before=SIZES, after=SIZES, channels=st.sampled_from([1, 2, 4, 7]))
def test_each_channel_is_resized_and_turned_as_in_rgb(
    before: tuple[int, int], after: tuple[int, int], channels: int
) -> None:
    """Law: a channel knows nothing of the others, so it becomes what it would become in an RGB image."""
    pixels = image(channels, np.uint8, before)
    for change in (lambda x: resize_image(x, after), lambda x: rotate_image(x, 7)):
        found = change(pixels)
        for c in range(channels):
            assert np.array_equal(found[..., c], change(np.repeat(pixels[..., c : c + 1], 3, axis=2))[..., 1])


@settings(max_examples=40, deadline=None)
@given(before=SIZES, after=SIZES, data=st.data())
def test_floats_are_resized_at_the_same_places(
    before: tuple[int, int], after: tuple[int, int], data: st.DataObject
) -> None:
    """Law: of whole levels the float road differs from the 8-bit one by rounding alone, and a window is a window."""
    pixels = image(2, np.uint8, before)
    whole = resize_image(pixels.astype(np.float32), after)
    assert whole.dtype == np.float32
    assert np.abs(whole - resize_image(pixels, after)).max() <= 1.25
    top, left = (data.draw(st.integers(0, side - 1)) for side in after)
    window = (top, left, after[0] - top, after[1] - left)
    y, x, h, w = box_needed(before, after, window)
    region = Region(pixels[y : y + h, x : x + w].astype(np.float32), y, x, before)
    assert np.array_equal(resize_region(region, after, window), whole[top:, left:])
    mirrored = resize_region(region, after, window, mirrored=True)
    assert np.allclose(mirrored, whole[top:, left:][:, ::-1], atol=1e-3)


def test_degraded_floats_keep_their_fractions() -> None:
    """Protects more than 8 bits from being rounded on the way; 8-bit images stay so."""
    pixels = image(4, np.float32) * 0.5 + 0.25
    for change in (lambda x: blur(x, 1.0), lambda x: add_noise(x, 2.0, np.random.default_rng(0))):
        found = change(pixels)
        assert found.dtype == np.float32
        assert np.any(found % 1)
        assert change(image(4, np.uint8)).dtype == np.uint8
    turned = rotate_image(pixels, 9)
    assert turned.dtype == np.float32
    assert np.abs(turned - rotate_image(np.rint(pixels).astype(np.uint8), 9)).max() <= 2


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (5, np.float32)])
def test_batches(channels: int, dtype: type) -> None:
    """Protects training on any channels: crops, padding and normalisation are those of each channel alone."""
    label = np.random.default_rng(1).integers(0, 3, (20, 30)).astype(np.uint8)
    sample = MemorySample("a", image(channels, dtype), label)
    crops = [train_crop(sample, AUGMENT, sample_rng(0, 0, index)) for index in range(3)]
    raw = collate(crops, len(crops), AUGMENT)
    assert raw.pixels.shape == (3, 24, 24, channels)
    assert raw.pixels.numpy().nbytes + raw.labels.numpy().nbytes == raw_batch_bytes(
        AUGMENT, 3, channels, floats=dtype is np.float32
    )
    stats = PixelStats(tuple(range(channels)), tuple(range(1, channels + 1)))
    batch = normalise_batch(raw, stats, raw.pixels.device)
    assert batch.images.shape == (3, channels, 24, 24)
    top, left, h, w = raw.windows[0]
    assert np.array_equal(batch.images[0, :, top : top + h, left : left + w], normalise(crops[0].image, stats))
    assert not batch.images[0, :, top + h :].any()


def test_pictures_for_people() -> None:
    """Protects overlays: RGB as it is, other counts as three channels or grey, and dark sensors stretched."""
    rgb = image(3, np.uint8)
    assert as_picture(rgb) is rgb
    many = image(5, np.uint8)
    assert np.array_equal(as_picture(many), many[..., :3])
    assert np.array_equal(as_picture(many[..., :1]), np.repeat(many[..., :1], 3, axis=2))
    dark = image(4, np.float32) / 25
    shown = as_picture(dark)
    assert (shown.dtype, shown.shape) == (np.uint8, (20, 30, 3))
    assert shown.min() == 0
    assert shown.max() == 255
    assert as_picture(np.zeros((4, 4, 2), np.float32)).max() == 0
