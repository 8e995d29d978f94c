"""The training pipeline from a sample to a batch, and the evaluation pipeline to a network input.

Room: data; imports resize, colour, sample, recipe schema, numpy and torch. Legend: B batch, H W image, h w crop.

Pure functions; whatever is random comes from the generator they are given, and `sample_rng` derives that from
(seed, epoch, sample) alone. Images stay uint8 until they are placed into the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from emaseg.data.colour import apply_photometric, draw_photometric
from emaseg.data.resize import limit_size, resize_image, resize_label
from emaseg.data.sample import IGNORE, Batch, Sample, UInt8
from emaseg.recipe.schema import Augment, Inference


@dataclass(frozen=True, slots=True)
class Crop:
    """A training crop before normalisation: image (h, w, 3) uint8 RGB, label (h, w) uint8."""

    image: UInt8
    label: UInt8
    name: str


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch; nothing else decides its augmentation."""
    return np.random.default_rng((seed, epoch, index))


def train_crop(sample: Sample, augment: Augment, rng: np.random.Generator) -> Crop:
    """Resize, crop, mirror, rotate, colour: the published order."""
    low, high = augment.scale
    if augment.scale_choices:
        scale = float(rng.choice(augment.scale_choices))
    else:
        scale = float(rng.uniform(low, high)) if high > low else low
    size = limit_size(sample.label.shape, augment.resize_long_short, augment.keep_ratio, scale)
    image, label = resize_image(sample.image, size), resize_label(sample.label, size)
    top, left, height, width = crop_box(label, augment, rng)
    image, label = image[top : top + height, left : left + width], label[top : top + height, left : left + width]
    if rng.random() <= augment.flip:
        image, label = flip(image, label, augment.flip_pairs)
    if augment.photometric != "none":
        image = apply_photometric(image, draw_photometric(rng), bgr_as_rgb=augment.photometric == "bgr_as_rgb")
    return Crop(np.ascontiguousarray(image), np.ascontiguousarray(label), sample.name)


def crop_box(label: UInt8, augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the first acceptable crop, or of the last one drawn."""
    sides = [min(c, side) for c, side in zip(augment.crop, label.shape, strict=True)]
    top = left = 0
    for _ in range(augment.crop_draws):
        top, left = (int(rng.integers(0, side - c + 1)) for side, c in zip(label.shape, sides, strict=True))
        if augment.max_class_share >= 1.0:
            break
        if acceptable(label[top : top + sides[0], left : left + sides[1]], augment.max_class_share):
            break
    return top, left, sides[0], sides[1]


def acceptable(label: UInt8, max_class_share: float) -> bool:
    """Whether a crop shows at least two classes, none of them on `max_class_share` of its labelled pixels or more."""
    counts = np.bincount(label.ravel(), minlength=256)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share)


def flip(image: UInt8, label: UInt8, pairs: Sequence[tuple[int, int]] = ()) -> tuple[UInt8, UInt8]:
    """Mirror left to right; `pairs` of classes (left arm, right arm) swap."""
    image, label = image[:, ::-1], label[:, ::-1]
    if pairs:
        table = np.arange(256, dtype=np.uint8)
        for a, b in pairs:
            table[a], table[b] = b, a
        label = table[label]
    return image, label


def normalise(image: UInt8, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32: (x - mean) * (1 / std)."""
    x = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1).to(torch.float32)
    x = x.contiguous()
    shift, factor = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, [1 / s for s in std]))
    return x.sub_(shift).mul_(factor)


def collate(crops: Sequence[Crop], augment: Augment, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Normalise crops and place them into a batch; what they do not fill is 0 (the mean colour) and ignored."""
    height, width = augment.crop
    images = torch.zeros(len(crops), 3, height, width)
    labels = torch.full((len(crops), height, width), IGNORE, dtype=torch.int64)
    for i, crop in enumerate(crops):
        h, w = crop.label.shape
        top, left = ((height - h) // 2, (width - w) // 2) if augment.pad == "centre" else (0, 0)
        images[i, :, top : top + h, left : left + w] = normalise(crop.image, mean, std)
        labels[i, top : top + h, left : left + w] = torch.from_numpy(crop.label.astype(np.int64))
    return Batch(images, labels, tuple(crop.name for crop in crops))


def eval_image(image: UInt8, inference: Inference, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, h, w): resized to the protocol's limits, normalised, padded where it says so."""
    size = limit_size((image.shape[0], image.shape[1]), inference.resize_long_short, inference.keep_ratio)
    x = normalise(resize_image(image, size), mean, std)[None]
    if inference.pad == "8k+1":
        x = F.pad(x, (0, -(size[1] - 1) % 8, 0, -(size[0] - 1) % 8))
    return x
