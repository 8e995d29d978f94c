"""The pipelines: normalisation, crops, mirroring and padding against the published system, then their laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.data.dataset import MemorySample, Sample
from emaseg.data.pipeline.augmentations import Turned
from emaseg.data.pipeline.resize import resize_image
from emaseg.data.pipeline.transforms import (
    Crop,
    eval_image,
    normalise,
    sample_rng,
    train_crop,
    turn_label,
)
from emaseg.errors import RecipeError
from emaseg.recipe.inference import Inference
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import ARRAYS, FACTS, STATS, batch_of, sample_image, sample_label

VOC = Augment(resize_long_short=(128, 48), scale=(0.5, 2.0), crop=(48, 48), photometric="bgr_as_rgb")
LIP = Augment(
    resize_long_short=(60, 60),
    keep_ratio=False,
    scale=(0.75, 1.25),
    crop=(47, 47),
    flip_pairs=((14, 15), (16, 17), (18, 19)),
    rotation=0.6,
)
AUTHORS = Augment(
    scale_choices=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    interpolation="align_corners",
    crop=(65, 65),
    max_class_share=1.0,
    photometric="none",
    pad="bottom_right",
    pad_before_crop=True,
)
PLAIN = Augment(crop=(48, 48), max_class_share=1.0, flip=0.0, photometric="none")
ALL = (VOC, LIP, AUTHORS, PLAIN)
MIRRORED = Turned(mirrored=True)
LIP_PAIRS = ((14, 15), (16, 17), (18, 19))


def sample(height: int = 60, width: int = 80) -> Sample:
    return MemorySample("a.jpg", sample_image(height, width), sample_label(height, width))


def crop_of(height: int, width: int, *, mirrored: bool = False) -> Crop:
    return Crop(sample_image(height, width), sample_label(height, width), Turned(mirrored), f"{height}x{width}")


# ------------------------------------------------------------------------------------------------ golden
@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in FACTS["cases"]])
def test_network_inputs_equal_the_published_ones(case: dict[str, Any]) -> None:
    """Resized and normalised, to the last bits of float32."""
    inference = Inference(resize_long_short=tuple(case["long_short"]), keep_ratio=case["keep_ratio"])
    own = eval_image(sample_image(*case["size"]), inference, STATS)
    assert list(own.shape) == [1, 3, *case["result"]]
    step = case["every"] * 4
    difference = np.abs(own[0, :, ::step, ::step].numpy() - ARRAYS[f"{case['name']}__normalised"])
    assert difference.max() <= 2.5e-7


def test_mirroring_swaps_the_limbs_as_published() -> None:
    after = turn_label(ARRAYS["flip__before"][None], MIRRORED, LIP_PAIRS)[0]
    np.testing.assert_array_equal(after, ARRAYS["flip__after"])


@pytest.mark.parametrize("case", FACTS["padding"])
def test_padding_is_centred_as_published(case: dict[str, Any]) -> None:
    crop = crop_of(*case["crop"])
    batch = batch_of([crop], replace(PLAIN, crop=(512, 512)))
    inside = np.zeros((512, 512), bool)
    (top, bottom), (left, right) = case["rows"], case["columns"]
    inside[top : bottom + 1, left : right + 1] = True
    assert (batch.images[0][:, ~torch.from_numpy(inside)] == 0).all()
    assert (batch.labels[0].numpy()[~inside] == 255).all()
    content = batch.images[0, :, top : bottom + 1, left : right + 1]
    assert torch.equal(content, normalise(crop.image, STATS))
    assert (batch.labels[0, top : bottom + 1, left : right + 1].numpy() == crop.label).all()


# ----------------------------------------------------------------------------------------- whole pipelines
@pytest.mark.parametrize("augment", ALL)
def test_a_crop_follows_from_seed_epoch_and_sample(augment: Augment) -> None:
    """The same three numbers give the same crop; another epoch, sample or seed another one."""

    def make(seed: int, epoch: int, index: int) -> Crop:
        return train_crop(sample(), augment, sample_rng(seed, epoch, index))

    first, again = make(1, 2, 3), make(1, 2, 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    for other in (make(2, 2, 3), make(1, 3, 3), make(1, 2, 4)):
        assert first.image.shape != other.image.shape or (first.image != other.image).any()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(8, 90), width=st.integers(8, 90), index=st.integers(0, 10**6), augment=st.sampled_from(ALL))
def test_crops_stay_inside_and_keep_their_labels(height: int, width: int, index: int, augment: Augment) -> None:
    source = sample(height, width)
    crop = train_crop(source, augment, sample_rng(0, 0, index))
    assert crop.image.shape == (*crop.label.shape, 3)
    assert crop.image.dtype == (np.float32 if augment is AUTHORS else np.uint8)
    assert all(side <= limit for side, limit in zip(crop.label.shape, augment.crop, strict=True))
    partners = {a for pair in augment.flip_pairs for a in pair}
    assert set(np.unique(crop.label)) <= set(np.unique(source.label())) | {255} | partners


def test_without_any_option_the_crop_is_a_cut_from_the_image() -> None:
    source = sample()
    crop = train_crop(source, PLAIN, sample_rng(0, 0, 0))
    places = np.lib.stride_tricks.sliding_window_view(source.image(), (48, 48, 3))[:, :, 0]
    found = (places == crop.image).all(axis=(2, 3, 4))
    assert found.sum() == 1
    top, left = np.argwhere(found)[0]
    np.testing.assert_array_equal(crop.label, source.label()[top : top + 48, left : left + 48])


def test_image_and_label_move_together() -> None:
    """An image that shows its label keeps showing it after resizing by 2, cropping and mirroring."""
    y, x = np.mgrid[:40, :40]
    label = (x // 10 + 4 * (y // 10)).astype(np.uint8)
    source = MemorySample("a", np.repeat(label[..., None] * 10, 3, axis=2), label)
    mirrored = set()
    for index in range(8):
        augment = replace(PLAIN, scale=(2.0, 2.0), flip=0.5, crop=(32, 32))
        crop = train_crop(source, augment, sample_rng(0, 0, index))
        agree = np.abs(crop.image[..., 0].astype(int) - crop.label.astype(int) * 10) <= 2
        assert agree.mean() > 0.75  # all but the blends along the outlines
        mirrored.add(crop.turned.mirrored)
    assert mirrored == {True, False}


def test_mirroring_twice_changes_nothing() -> None:
    label = ARRAYS["flip__before"][None]
    np.testing.assert_array_equal(turn_label(turn_label(label, MIRRORED, LIP_PAIRS), MIRRORED, LIP_PAIRS), label)


def test_flip_probabilities_0_and_1_mean_never_and_always() -> None:
    for p, expected in ((0.0, False), (1.0, True)):
        crops = [train_crop(sample(), replace(VOC, flip=p), sample_rng(0, 0, i)) for i in range(20)]
        assert {crop.turned.mirrored for crop in crops} == {expected}


# --------------------------------------------------------------------------------- the authors' pipeline
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_of_a_thin_image_one_pixel_is_left(shape: tuple[int, int]) -> None:
    """Protects a training from an error of PyTorch's: half of a pixel was no pixel."""
    thin = MemorySample("a", np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8))
    crop = train_crop(thin, replace(AUTHORS, scale_choices=(0.5,)), sample_rng(0, 0, 0))
    assert crop.label.shape == crop.image.shape[:2] == tuple(max(1, side // 2) for side in shape)
    assert (crop.label == 1).all()


@pytest.mark.parametrize("index", range(6))
def test_the_authors_pipeline_equals_their_order_of_steps(index: int) -> None:
    """Normalise, resize, pad, crop, mirror, in this order; ours resizes first and pads last."""
    source = sample(52, 90)
    rng = sample_rng(4, 0, index)
    scale = float(rng.choice(AUTHORS.scale_choices))
    image = F.interpolate(
        normalise(source.image(), STATS)[None], scale_factor=scale, mode="bilinear", align_corners=True
    )
    label = F.interpolate(torch.from_numpy(source.label())[None, None].float(), scale_factor=scale, mode="nearest")
    h, w = image.shape[-2:]
    image = F.pad(image, (0, max(65 - w, 0), 0, max(65 - h, 0)))
    label = F.pad(label, (0, max(65 - w, 0), 0, max(65 - h, 0)), value=255)
    top, left = int(rng.integers(max(h - 65, 0) + 1)), int(rng.integers(max(w - 65, 0) + 1))
    image, label = (x[..., top : top + 65, left : left + 65] for x in (image, label))
    if rng.random() <= 0.5:
        image, label = image.flip(-1), label.flip(-1)

    batch = batch_of([train_crop(source, AUTHORS, sample_rng(4, 0, index))], AUTHORS)
    assert torch.equal(batch.labels, label[:, 0].long())
    assert float((batch.images - image).abs().max()) <= 2e-5


def test_float_images_cannot_be_jittered_or_rotated() -> None:
    for augment in (replace(AUTHORS, photometric="bgr"), replace(AUTHORS, rotation=0.5)):
        with pytest.raises(RecipeError, match="align_corners") as caught:
            train_crop(sample(), augment, sample_rng(0, 0, 0))
        assert "augment.rotation = 0" in caught.value.hint


# ----------------------------------------------------------------------------------- batches and inputs
def test_a_batch_holds_crops_of_different_sizes() -> None:
    """Values of the batch are floats, normalised, and 64-bit labels; every crop lies where its padding says."""
    crops = [crop_of(48, 48), crop_of(30, 48), crop_of(48, 21, mirrored=True)]
    batch = batch_of(crops, PLAIN)
    assert batch.images.shape == (3, 3, 48, 48)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert batch.names == ("48x48", "30x48", "48x21")
    corner = batch_of(crops, replace(PLAIN, pad="bottom_right"))
    assert (corner.labels[2, :, :21].numpy() == crops[2].label).all()
    early = batch_of(crops, replace(PLAIN, pad="bottom_right", pad_before_crop=True))
    assert (early.labels[2, :, -21:].numpy() == crops[2].label).all()  # mirrored together with its padding
    assert (early.labels[1, :30].numpy() == crops[1].label).all()


def test_evaluation_resizes_before_it_normalises() -> None:
    image = sample_image(30, 40)
    x = eval_image(image, Inference(resize_long_short=(200, 45)), STATS)
    assert torch.equal(x[0], normalise(resize_image(image, (45, 60)), STATS))


def test_normalised_values_are_in_memory_of_their_own() -> None:
    """Also for a single pixel, whose planes and rows lie alike."""
    for pixels in (np.full((1, 1, 3), 7, np.uint8), np.full((1, 1, 3), 7, np.float32)):
        normalise(pixels, STATS).zero_()
        assert (pixels == 7).all()
