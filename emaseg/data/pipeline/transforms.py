"""The training pipeline from a sample to a batch, and the evaluation pipeline from an image to a network input.

Room: data/pipeline. Legend: B batch, H W image, h w crop.

Training: resize -> crop -> mirror -> turn -> rotate -> colour -> degrade -> normalise -> pad, the order of sssegmentation
and mmsegmentation, which neither turn nor degrade. crop.py chooses the window. 8-bit pixels stay so up to the
normalisation, as there. Every random choice comes from the generator that a function is given; `sample_rng` derives it
from (seed, epoch, sample) alone, so a crop depends neither on the number of loading processes nor on the order in which
samples are read.

The EMANet authors' pipeline (augment.interpolation = "align_corners") resizes the normalised image. Interpolation
weights sum to 1, so to normalise last gives the same numbers; until then the image is float32 on 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from emaseg.data.dataset import Box, Pixels, Sample, UInt8, published_label
from emaseg.data.pipeline.augmentations import Turned, degrade, draw_turned
from emaseg.data.pipeline.colour import apply_photometric, draw_photometric
from emaseg.data.pipeline.crop import draw_crop
from emaseg.data.pipeline.resize import (
    as_tensor,
    box_needed,
    limit_size,
    resize_floats,
    resize_image,
    resize_region,
)
from emaseg.data.pipeline.rotation import rotate_image, rotate_label
from emaseg.errors import RecipeError
from emaseg.recipe.backbones import PixelStats
from emaseg.recipe.data import IGNORE
from emaseg.recipe.inference import Inference
from emaseg.recipe.training import Augment

Empty = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]  # an array that is not filled, such as np.empty's

_CROPS = 1  # keeps the samples' generators apart from that of the epoch's order (loading.py) under one seed


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step reads: images (B, C, H, W) float32 normalised, labels (B, H, W) int64, 255 = ignore."""

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Crop:
    """A training crop before normalisation and padding.

    image: (h, w, C) on 0..255; uint8, or float32 with augment.interpolation = "align_corners" or data.range.
    label: (h, w) uint8. turned: how it lies. name: the sample's.
    """

    image: Pixels
    label: UInt8
    turned: Turned
    name: str


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of sample `index` in epoch `epoch` (from 0): all that decides its augmentation."""
    return np.random.default_rng((seed, _CROPS, epoch, index))


# ----------------------------------------------------------------------------------------------- training
def train_crop(sample: Sample, augment: Augment, rng: np.random.Generator) -> Crop:
    """One random crop of a sample, augment.crop large or smaller where the resized image is.

    The window is drawn on the label; of an image that is not yet read, only what the window shows is.

    Raises:
        RecipeError: interpolation = "align_corners" together with rotation or colour jitter.
    """
    if augment.interpolation == "align_corners":
        return _crop_of_floats(sample, augment, rng)
    truth = published_label(sample)
    before = truth.shape
    size = limit_size(before, augment.resize_long_short, augment.keep_ratio, _draw_scale(augment, rng))
    window, label = draw_crop(truth, size, augment, rng)
    mirrored = bool(rng.random() <= augment.flip)
    image = resize_region(sample.region(box_needed(before, size, window)), size, window, mirrored=mirrored)
    turned = draw_turned(augment, mirrored, rng)
    image, label = turned.pixels(image), turn_label(label, turned, augment.flip_pairs)
    if augment.rotation > 0 and rng.random() <= augment.rotation:
        degrees = int(rng.integers(-augment.rotation_degrees, augment.rotation_degrees))
        image, label = rotate_image(image, degrees), rotate_label(label, degrees)
    if augment.photometric != "none":
        image = apply_photometric(
            cast(UInt8, image), draw_photometric(rng), bgr_as_rgb=augment.photometric == "bgr_as_rgb"
        )
    return Crop(degrade(image, augment, rng), label, turned, sample.name)


def turn_label(label: UInt8, turned: Turned, pairs: Sequence[tuple[int, int]] = ()) -> UInt8:
    """(h, w) mirrored, upended and turned; in a mirror image the two classes of each pair (left arm, right arm) change
    places."""
    moved = turned.pixels(label[:, ::-1] if turned.mirrored else label)
    if not pairs or not turned.reflected:
        return moved
    partner = np.arange(IGNORE + 1, dtype=np.uint8)
    for a, b in pairs:
        partner[a], partner[b] = b, a
    return partner[moved]


def _draw_scale(augment: Augment, rng: np.random.Generator) -> float:
    if augment.scale_choices:
        return float(rng.choice(augment.scale_choices))
    low, high = augment.scale
    return float(rng.uniform(low, high))


def _crop_of_floats(sample: Sample, augment: Augment, rng: np.random.Generator) -> Crop:
    """The EMANet authors' pipeline up to the crop: no colour jitter, corners aligned when resizing."""
    if augment.photometric != "none" or augment.rotation > 0:
        raise RecipeError(
            'augment.interpolation = "align_corners" leaves no 8-bit image to rotate or to jitter in colour',
            'set augment.rotation = 0 and augment.photometric = "none", or augment.interpolation = "pixel"',
        )
    scale = _draw_scale(augment, rng)
    truth = published_label(sample)
    label = as_tensor(truth)[None, None]
    if augment.resize_long_short:
        size = limit_size(truth.shape, augment.resize_long_short, augment.keep_ratio, scale)
        label = F.interpolate(label, size=size, mode="nearest")
    else:  # sides are truncated, and labels are read at steps of exactly 1 / scale
        steps = tuple(scale if side * scale >= 1 else 1.5 / side for side in truth.shape)  # at least one pixel is left
        label = F.interpolate(label, scale_factor=steps, mode="nearest")
    resized: UInt8 = label[0, 0].numpy()
    window, window_label = draw_crop(resized, resized.shape, augment, rng)
    pixels = resize_floats(sample.image(), resized.shape, window)
    mirrored = bool(rng.random() <= augment.flip)
    turned = draw_turned(augment, mirrored, rng)
    pixels = turned.pixels(pixels[:, ::-1]) if mirrored else turned.pixels(pixels)
    return Crop(pixels, turn_label(window_label, turned, augment.flip_pairs), turned, sample.name)


# ------------------------------------------------------------------------------------- what networks read
def normalise(image: Pixels, stats: PixelStats) -> torch.Tensor:
    """(x - mean) * (1 / std).

    Args:
        image: (H, W, C) on 0..255.
        stats: mean and standard deviation of the channels.

    Returns:
        (C, H, W) float32, in memory of its own.
    """
    return _normalised(as_tensor(image.transpose(2, 0, 1)), stats)


def _normalised(planes: torch.Tensor, stats: PixelStats) -> torch.Tensor:
    """(..., C, H, W) of any type, as float32 in memory of its own."""
    shift = torch.tensor(stats.mean, dtype=torch.float32, device=planes.device).view(-1, 1, 1)
    factor = torch.tensor([1 / s for s in stats.std], dtype=torch.float32, device=planes.device).view(-1, 1, 1)
    return planes.to(torch.float32).sub(shift).mul_(factor)


@dataclass(frozen=True, slots=True)
class RawBatch:
    """The crops of a batch before normalisation, on their way to the device.

    pixels: (B, h, w, C) on 0..255, uint8 or float32 as the crops are; 0 in the padding. They lie in memory as the first
    crop does, pixel after pixel or channel after channel. labels: (B, h, w) uint8, 255 = ignore. windows: where each
    crop lies in it. names: the samples'.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    windows: tuple[Box, ...]
    names: tuple[str, ...]

    def pin_memory(self) -> RawBatch:
        """In memory that a GPU copies from while the program goes on; the loader calls this, in a thread."""
        return replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


def collate(crops: Iterable[Crop], count: int, augment: Augment, empty: Empty = np.empty) -> RawBatch:
    """`count` crops of one data type as a batch of augment.crop, padded.

    Each is laid in its place when it comes: of crops that are made one by one only one is held beside the batch.

    The published padding transposes its target for a portrait crop and a landscape target. That never happens on
    its data sets, and such crops could not share a batch; here every crop is padded to augment.crop as it stands.

    Args:
        empty: makes room for the batch, first for its pixels.
    """
    height, width = augment.crop
    windows, names = [], []
    for i, crop in enumerate(crops):
        if i == 0:
            pixels = _pixels_like(crop.image, (count, height, width), empty)
            labels = empty((count, height, width), np.dtype(np.uint8))
        h, w = crop.label.shape
        before = augment.pad_before_crop  # then the padding is mirrored and turned with the image
        if before and crop.turned.turns % 2:
            h, w = w, h
        top, left = ((height - h) // 2, (width - w) // 2) if augment.pad == "centre" else (0, 0)
        if before:
            top, left, h, w = crop.turned.place((top, left, h, w), (height, width))
        if (h, w) != (height, width):
            pixels[i], labels[i] = 0, IGNORE
        place = pixels[i, top : top + h, left : left + w]
        if _in_planes(place) or _in_planes(crop.image):
            for channel in range(place.shape[2]):  # one by one: numpy takes up to four times as long to reorder all
                place[..., channel] = crop.image[..., channel]
        else:
            place[...] = crop.image
        labels[i, top : top + h, left : left + w] = crop.label
        windows.append((top, left, h, w))
        names.append(crop.name)
    return RawBatch(torch.from_numpy(pixels), torch.from_numpy(labels), tuple(windows), tuple(names))


def _pixels_like(image: Pixels, shape: tuple[int, int, int], empty: Empty) -> Pixels:
    """(B, h, w, C), not filled, that lies in memory as an image (H, W, C) does."""
    batch, height, width = shape
    channels = image.shape[2]
    if _in_planes(image):
        return empty((batch, channels, height, width), image.dtype).transpose(0, 2, 3, 1)
    return empty((batch, height, width, channels), image.dtype)


def _in_planes(image: Pixels) -> bool:
    """Whether an image lies in memory channel after channel, not pixel after pixel."""
    return abs(image.strides[2]) > abs(image.strides[1])


def normalise_batch(raw: RawBatch, stats: PixelStats, device: torch.device) -> Batch:
    """Take a batch to the device and normalise it there, with 0, the mean colour, in the padding.

    Each value is computed as `normalise` does, so a device changes nothing.
    """
    pixels = raw.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
    labels = raw.labels.to(device, non_blocking=True).to(torch.int64)
    images = _normalised(pixels, stats)
    for image, (top, left, h, w) in zip(images, raw.windows, strict=True):
        for padding in (image[:, :top], image[:, top + h :], image[:, :, :left], image[:, :, left + w :]):
            padding.zero_()
    return Batch(images, labels, raw.names)


def eval_image(
    image: Pixels, inference: Inference, stats: PixelStats, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """An image as evaluation and prediction feed it to the network, at scale 1.

    Args:
        image: (H, W, C).
        inference: its limits are applied. Padding is not: each forward pass pads what it reads for itself.
        stats: mean and standard deviation of the channels.
        size: (h, w), where the limits are not meant.

    Returns:
        (1, C, h, w) float32.
    """
    size = size or limit_size(image.shape[:2], inference.resize_long_short, inference.keep_ratio)
    return normalise(resize_image(image, size), stats)[None]
