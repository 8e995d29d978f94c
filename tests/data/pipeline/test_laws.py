"""Laws of the training pipeline on arbitrary small images: nothing is invented, nothing depends on the route."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.dataset import MemorySample, Sample, UInt8
from emaseg.data.pipeline.augmentations import Turned
from emaseg.data.pipeline.colour import Photometric, apply_photometric
from emaseg.data.pipeline.resize import resize_image
from emaseg.data.pipeline.transforms import Crop, collate, normalise, sample_rng, train_crop, turn_label
from emaseg.recipe.data import IGNORE
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import STATS, batch_of, without_opencv

MIRRORED = Turned(mirrored=True)
AUGMENT = Augment(resize_long_short=(64, 24), scale=(0.5, 2.0), crop=(16, 20), photometric="none")
SIDES = st.integers(1, 30)
SEEDS = st.integers(0, 10_000)
few = settings(max_examples=12, deadline=None)


def sample(height: int, width: int, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return MemorySample("sample", image, rng.choice(np.array([0, 3, 7, IGNORE], np.uint8), (height, width)))


@few
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_two_mirrors_are_none(height: int, width: int, seed: int) -> None:
    """With pairs that swap, too."""
    label = sample(height, width, seed).label()
    assert np.array_equal(turn_label(turn_label(label, MIRRORED, [(0, 3)]), MIRRORED, [(0, 3)]), label)


@few
@given(height=SIDES, width=SIDES, new=st.tuples(SIDES, SIDES), seed=SEEDS)
def test_a_mirrored_resize_is_the_mirror_of_the_resize(
    height: int, width: int, new: tuple[int, int], seed: int
) -> None:
    """Bit for bit, of a window as of the whole, whatever the size; the image itself stays as it is."""
    image = sample(height, width, seed).image()
    before = image.copy()
    window = (new[0] // 3, new[1] // 3, new[0] - new[0] // 3, new[1] - new[1] // 3)
    for size, part in ((new, window), (new, None), ((height, width), None)):
        turned = resize_image(image, size, part, mirrored=True)
        assert np.array_equal(turned, resize_image(image, size, part)[:, ::-1])
    assert np.array_equal(image, before)


@few
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_crop_invents_nothing(height: int, width: int, seed: int) -> None:
    """It lies inside the crop size, image and label have one size, and no label value is new."""
    source = sample(height, width, seed)
    crop = train_crop(source, AUGMENT, sample_rng(seed, 0, 0))
    assert crop.image.shape[:2] == crop.label.shape
    assert all(side <= limit for side, limit in zip(crop.label.shape, AUGMENT.crop, strict=True))
    assert set(np.unique(crop.label)) <= set(np.unique(source.label()))
    assert source.image().min() <= crop.image.min() + 1  # the integer arithmetic truncates
    assert crop.image.max() <= source.image().max()


def test_resized_and_jittered_pixels_are_planes() -> None:
    """Protects loading from rearranging a sample's pixels, three times in all."""
    with without_opencv():
        resized = resize_image(sample(20, 30, 0).image(), (33, 17))
    for p in (Photometric(brightness=9.0, contrast=1.2), Photometric(saturation=1.2), Photometric(hue=3)):
        for image in (resized, apply_photometric(cast(UInt8, resized), p, bgr_as_rgb=True)):
            assert image.transpose(2, 0, 1).flags.c_contiguous


@few
@given(
    sizes=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 20)), min_size=1, max_size=3),
    seed=SEEDS,
    data=st.data(),
)
def test_a_batch_is_its_crops_normalised_one_by_one(
    sizes: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    """Bit for bit, however a crop lies in memory; the padding is 0 and ignored; and until then a batch is 8 bits a
    value."""
    crops = [Crop(s.image(), s.label(), Turned(), s.name) for s in (sample(h, w, seed) for h, w in sizes)]
    in_planes = data.draw(st.lists(st.booleans(), min_size=len(crops), max_size=len(crops)))
    for i, planes in enumerate(in_planes):
        if planes:
            image = np.ascontiguousarray(crops[i].image.transpose(2, 0, 1)).transpose(1, 2, 0)
            crops[i] = replace(crops[i], image=image)
    for pad in ("centre", "bottom_right"):
        augment = replace(AUGMENT, pad=pad)  # type: ignore[arg-type]
        raw, batch = collate(crops, len(crops), augment), batch_of(crops, augment)
        assert (raw.pixels.dtype, raw.labels.dtype) == (torch.uint8, torch.uint8)
        assert raw.pixels.permute(0, 3, 1, 2).is_contiguous() or not in_planes[0]
        for i, (crop, (top, left, h, w)) in enumerate(zip(crops, raw.windows, strict=True)):
            images, labels = torch.zeros(3, *augment.crop), torch.full(augment.crop, IGNORE)
            images[:, top : top + h, left : left + w] = normalise(crop.image, STATS)
            labels[top : top + h, left : left + w] = torch.from_numpy(crop.label)
            assert torch.equal(batch.images[i], images)
            assert torch.equal(batch.labels[i], labels)
