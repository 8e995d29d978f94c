"""mmsegmentation's training pipeline: its order of steps written out again, its colour order, its crops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emaseg.data.dataset import MemorySample
from emaseg.data.pipeline.colour import Photometric, apply_photometric, draw_photometric
from emaseg.data.pipeline.crop import acceptable, draw_crop
from emaseg.data.pipeline.resize import limit_size, resize_image, resize_label
from emaseg.data.pipeline.transforms import normalise, sample_rng, train_crop
from emaseg.recipe import load_recipe
from tests.data.pipeline_golden import ARRAYS, STATS, batch_of, sample_image, sample_label

ROW = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k").augment
SMALL = replace(ROW, resize_long_short=(128, 64), crop=(48, 96))
STAGES = {
    "saturation_0.61": Photometric(saturation=0.61),
    "hue_-13": Photometric(hue=-13),
    "hue_9": Photometric(hue=9),
    "chain_mode1_b12.5_c1.2_s0.8_h7": Photometric(12.5, 1.2, True, 0.8, 7),
    "chain_mode0_b12.5_s0.8_h7_c1.2": Photometric(12.5, 1.2, False, 0.8, 7),
}


@pytest.mark.parametrize("index", range(8))
def test_a_batch_equals_the_published_order_of_steps(index: int) -> None:
    """Protects the whole row: resize, crop (from the whole resized image), mirror, colour, normalise, pad below and
    right; ours resizes only the window.
    """
    source = MemorySample("a", sample_image(50, 90), sample_label(50, 90))
    rng = sample_rng(1, 0, index)
    scale = float(rng.uniform(0.5, 2.0))
    limits = int(128 * scale), int(64 * scale)
    factor = min(limits[0] / 90, limits[1] / 50)
    size = int(50 * factor + 0.5), int(90 * factor + 0.5)
    image, label = resize_image(source.image(), size), resize_label(source.label(), size)
    height, width = min(48, size[0]), min(96, size[1])
    for draw in range(11):
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        part = label[top : top + height, left : left + width]
        if draw == 10 or acceptable(part, 0.75):
            break
    image, label = image[top : top + height, left : left + width], part
    if rng.random() <= 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image = apply_photometric(image, draw_photometric(rng), bgr_as_rgb=False)
    images, labels = torch.zeros(3, 48, 96), torch.full((48, 96), 255)
    images[:, :height, :width] = normalise(image, STATS)
    labels[:height, :width] = torch.from_numpy(label.astype(np.int64))

    batch = batch_of([train_crop(source, SMALL, sample_rng(1, 0, index))], SMALL)
    assert torch.equal(batch.images[0], images)
    assert torch.equal(batch.labels[0], labels)


@pytest.mark.parametrize("stage", STAGES)
def test_colour_order_is_the_right_one(stage: str) -> None:
    """Protects `photometric = "bgr"`: hue and saturation of the true colours. The golden numbers come from handing
    blue, green, red to a step for red, green, blue; with the planes exchanged that is this step.
    """
    exchanged = np.ascontiguousarray(sample_image(375, 500)[..., ::-1])
    own = apply_photometric(exchanged, STAGES[stage], bgr_as_rgb=False)[::4, ::4, ::-1].astype(int)
    exact = 120  # stored columns; the golden machine rounds in the last ones
    assert np.abs(own - ARRAYS[f"photo__{stage}"])[:, :exact].max() == 0


def test_the_eleventh_crop_is_taken_unchecked() -> None:
    """Protects mmsegmentation's count: one crop and ten more, the last of which is used whatever it holds."""
    assert ROW.crop_draws == 11
    label = np.zeros((80, 120), np.uint8)  # one class: no crop of it is acceptable
    rng, again = sample_rng(0, 0, 0), sample_rng(0, 0, 0)
    window, _ = draw_crop(label, label.shape, SMALL, rng)
    places = [(int(again.integers(80 - 48 + 1)), int(again.integers(120 - 96 + 1))) for _ in range(11)]
    assert window[:2] == places[-1]
    assert rng.integers(1 << 30) == again.integers(1 << 30)  # nothing more was drawn


@pytest.mark.parametrize(
    ("name", "scale", "size"),
    [
        ("mmseg_cityscapes_r50_d8_512x1024_80k", 1.0, (1024, 2048)),
        ("mmseg_cityscapes_r50_d8_512x1024_80k", 0.5003, (512, 1024)),  # limits 1024 x 512: truncated
        ("mmseg_cityscapes_r50_d8_769x769_80k", 1.0, (1025, 2049)),
        ("mmseg_cityscapes_r50_d8_769x769_80k", 0.5, (512, 1024)),  # limits 1024 x 512
        ("mmseg_cityscapes_r50_d8_769x769_80k", 1.5, (1537, 3073)),  # limits 3073 x 1537
    ],
)
def test_sizes_of_a_cityscapes_image(name: str, scale: float, size: tuple[int, int]) -> None:
    """Hand-computed: the base scale is the image's own size, or one pixel a side more for the 769 crop."""
    augment = load_recipe(name).augment
    assert limit_size((1024, 2048), augment.resize_long_short, augment.keep_ratio, scale) == size
