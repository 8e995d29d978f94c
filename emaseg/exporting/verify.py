"""The written file against the network it was made from: the same images through both, number by number.

Room: exporting. Legend: B batch, H W image, h w feature grid, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emaseg.data.dataset import Pixels
from emaseg.data.pipeline.resize import resize_image
from emaseg.data.pipeline.transforms import normalise
from emaseg.exporting.request import Request
from emaseg.recipe import Recipe
from emaseg.recipe.channels import RGB

UInt8 = npt.NDArray[np.uint8]
Probe = tuple[Pixels, ...]  # the images of one batch, each (H, W, C), all of one size

SIZES = ((1, 256, 320), (1, 225, 289), (1, 320, 192), (2, 200, 264))  # multiples of 8, odd, portrait, two at once
BATCHES = (1, 1, 2, 3)  # where the file takes one size only
LARGE = 1 << 17  # pixels of that size above which two batches must do: they have more pixels than all of SIZES
LARGE_BATCHES = (1, 2)  # alone, and beside another


@dataclass(frozen=True, slots=True)
class Tolerance:
    """difference: largest difference of a logit allowed, as a share of the logits' range. agreement: least share of
    pixels with the same class."""

    difference: float
    agreement: float


TOLERANCES = {  # about five times what the published networks lose; a wrong file loses nearly everything
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(5e-3, 0.99),
    "bf16": Tolerance(5e-2, 0.95),
    "int8": Tolerance(0.25, 0.9),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. difference: of the logits, as a share of their range; None where the file gives class ids only.

    agreement: share of the pixels, at the image's size, whose class is the same.
    """

    batch: int
    height: int
    width: int
    difference: float | None
    agreement: float

    def within(self, tolerance: Tolerance) -> bool:
        near = self.difference is None or self.difference <= tolerance.difference
        return near and self.agreement >= tolerance.agreement


def probes(request: Request, images: Sequence[Pixels] = (), channels: int = RGB) -> list[Probe]:
    """Batches for the comparison: resized `images` in turn, or drawn ones of so many channels where there are none."""
    sizes: Sequence[tuple[int, int, int]] = SIZES
    if request.shape is not None:
        batches = BATCHES if request.shape[0] * request.shape[1] <= LARGE else LARGE_BATCHES
        sizes = tuple((batch, *request.shape) for batch in batches)
    made = []
    number = 0
    for batch, height, width in sizes:
        some = []
        for _ in range(batch):
            one = (
                resize_image(images[number % len(images)], (height, width))
                if images
                else _drawn(height, width, channels, number)
            )
            some.append(one)
            number += 1
        made.append(tuple(some))
    return made


def _drawn(height: int, width: int, channels: int, seed: int) -> UInt8:
    """Soft colours with some grain: neither flat nor noise alone, which no network was made for."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 9, channels), dtype=np.uint8)
    image = resize_image(coarse, (height, width)).astype(np.int16) + random.integers(-20, 21, (height, width, channels))
    return image.clip(0, 255).astype(np.uint8)


def inputs(probe: Probe, recipe: Recipe) -> Tensor:
    """(B, C, H, W) float32, normalised."""
    stats = recipe.backbone.pixel_stats
    return torch.stack([normalise(image, stats) for image in probe])


@torch.inference_mode()
def logits_of(network: nn.Module, probes: Sequence[Probe], recipe: Recipe) -> list[Tensor]:
    """The network's own logits (B, K, h, w) for each probe."""
    return [network(inputs(probe, recipe)).float() for probe in probes]


@torch.inference_mode()
def compare(
    exported: nn.Module, probes: Sequence[Probe], references: Sequence[Tensor], recipe: Recipe, *, labels: bool
) -> Iterator[Check]:
    """Each probe through the exported file, against the network's logits.

    Args:
        exported: images -> logits, or with `labels` scores of 1 and 0 at the image's size; has `align_corners`.
    """
    for probe, reference in zip(probes, references, strict=True):
        images = inputs(probe, recipe)
        size = (images.shape[2], images.shape[3])
        own = exported(images)
        align_corners = bool(exported.align_corners)
        same = _classes(own, size, align_corners) == _classes(reference, size, align_corners)
        difference = None if labels else _difference(own, reference)
        yield Check(len(images), *size, difference, same.double().mean().item())


def failed(probes: Sequence[Probe]) -> Iterator[Check]:
    """The comparison of a file that cannot be run: nothing agrees."""
    for probe in probes:
        height, width = probe[0].shape[:2]
        yield Check(len(probe), height, width, math.inf, 0.0)


def _difference(own: Tensor, reference: Tensor) -> float:
    if own.shape != reference.shape:
        return math.inf
    span = (reference.max() - reference.min()).item()
    largest = (own - reference).abs().max().item()
    return largest / span if math.isfinite(largest) and span > 0 else math.inf


def _classes(scores: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if scores.shape[2:] != size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)
    return scores.argmax(dim=1)
