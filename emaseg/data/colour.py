"""Colour jitter of the published pipelines: brightness, contrast, saturation and hue on 8-bit pixels.

Room: data. Imports data.resize, data.sample, numpy and torch. Legend: H W image.

Each step ends in 8 bits again, clipped to 0..255 and truncated, and saturation and hue each make their own trip to
8-bit HSV (hue in 180 steps) and back, in OpenCV's arithmetic. All of this shows: rounding instead of truncating is
off by 0.9 levels on average, one trip for both steps by one level on a third of all values.

The one known difference: OpenCV's way back rounds instead of truncating in the last (width mod 32) columns on some
processors. Here it truncates everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from emaseg.data.resize import as_tensor
from emaseg.data.sample import UInt8

HUES = 180  # steps of the colour circle


@dataclass(frozen=True, slots=True)
class Photometric:
    """What is done to one image; None leaves a step out.

    brightness: added to every value, in levels. contrast: factor on every value. contrast_first: contrast comes
    before saturation and hue, otherwise after them. saturation: factor on S. hue: added to H, in steps of 2 degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = True
    saturation: float | None = None
    hue: int | None = None


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Each step with probability 1/2, with the published ranges."""
    return Photometric(
        brightness=rng.uniform(-32.0, 32.0) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        contrast=rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None,
        saturation=rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-18, 18)) if rng.random() < 0.5 else None,  # +18 is never drawn
    )


def apply_photometric(image: UInt8, p: Photometric, *, bgr_as_rgb: bool) -> UInt8:
    """The colour jitter `p` of an RGB image.

    Args:
        image: (H, W, 3).
        p: the steps.
        bgr_as_rgb: hand blue, green, red to the conversion that expects red, green, blue, as sssegmentation does.
            Hue then turns the other way, and little else changes. mmsegmentation does not.

    Returns:
        (H, W, 3); may share memory with `image` when no step is to be done.
    """
    pixels = as_tensor(image)
    if p.brightness is not None:
        pixels = _clip(pixels.to(torch.float32).add_(p.brightness))
    if p.contrast is not None and p.contrast_first:
        pixels = _clip(pixels.to(torch.float32).mul_(p.contrast))
    if p.saturation is not None:
        pixels = _through_hsv(pixels, p.saturation, 0, bgr_as_rgb)
    if p.hue is not None:
        pixels = _through_hsv(pixels, 1.0, p.hue, bgr_as_rgb)
    if p.contrast is not None and not p.contrast_first:
        pixels = _clip(pixels.to(torch.float32).mul_(p.contrast))
    return pixels.numpy()


def _clip(x: torch.Tensor) -> torch.Tensor:
    """Clipped to 0..255 and truncated to 8 bits."""
    return x.clamp_(0, 255).to(torch.uint8)


# ------------------------------------------------------------------------------------------------ 8-bit HSV
def _through_hsv(pixels: torch.Tensor, saturation: float, hue: int, bgr_as_rgb: bool) -> torch.Tensor:
    """(H, W, 3) uint8 with S multiplied and H turned."""
    order = (2, 1, 0) if bgr_as_rgb else (0, 1, 2)
    planes = pixels.permute(2, 0, 1).clone(memory_format=torch.contiguous_format).flatten(1)
    h, s, v = to_hsv(*(planes[c] for c in order))
    if saturation != 1.0:
        s = _clip(torch.arange(256, dtype=torch.float32) * saturation).to(torch.int32).index_select(0, s)
    if hue != 0:
        h = (torch.arange(HUES, dtype=torch.int32) + hue).remainder_(HUES).index_select(0, h)
    cell = h.mul_(256).add_(s)
    value = v.to(torch.float32).mul_(1 / 255)
    for channel, share in zip(order, _SHARES, strict=True):
        # In this order: V of a saturated pixel is 255, so a last bit often decides what truncation leaves.
        planes[channel] = share.index_select(0, cell).mul_(value).mul_(255)
    return planes.view(3, *pixels.shape[:2]).permute(1, 2, 0).contiguous()


def to_hsv(
    first: torch.Tensor, second: torch.Tensor, third: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit HSV of three colour planes, OpenCV's integer arithmetic.

    Args:
        first, second, third: (N,) uint8, red, green and blue.

    Returns:
        H in 0..179, S and V in 0..255, each (N,) int32.
    """
    largest = torch.maximum(torch.maximum(first, second), third)
    smallest = torch.minimum(torch.minimum(first, second), third)
    a, b, c, v = (plane.to(torch.int32) for plane in (first, second, third, largest))
    d = v - smallest
    s = _PER_VALUE.index_select(0, v).mul_(d).add_(1 << 11).bitwise_right_shift_(12)
    # Three formulas, one for each plane that can hold V; the first such plane decides. `where` would take three
    # times as long as replacing h by h + (other - h) * (0 or 1).
    h = (a - b).add_(d, alpha=4)
    h.add_((c - a).add_(d, alpha=2).sub_(h).mul_(largest == second))
    h.add_((b - c).sub_(h).mul_(largest == first))
    h.mul_(_PER_RANGE.index_select(0, d)).add_(1 << 11).bitwise_right_shift_(12)
    h.add_((h >> 31).bitwise_and_(HUES))  # a negative one comes round the circle
    return h, s, v


def _reciprocals(scale: float) -> torch.Tensor:
    """(256,) int32: scale / i in units of 1/4096, and 0 for i = 0."""
    table = torch.zeros(256, dtype=torch.int32)
    table[1:] = torch.round(scale * 4096 / torch.arange(1, 256, dtype=torch.float64)).to(torch.int32)
    return table


def _shares() -> torch.Tensor:
    """(3, 180 * 256) float32: the share 1 - s * w of V that each of the three colours has, for each H and S.

    In each sixth of the circle one colour is V itself (w = 0), one is smallest (w = 1), and one goes from one to the
    other (w = f or 1 - f). OpenCV's processors round 1 - s * w once, as a fused step; so does this, by float64.
    """
    sixth = torch.arange(HUES, dtype=torch.float32) * (6 / HUES)
    sector = sixth.to(torch.int64)
    f = sixth - sector
    kinds = torch.stack([torch.zeros(HUES), torch.ones(HUES), f, 1 - f])
    of_sector = torch.tensor([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
    w = kinds.gather(0, of_sector[sector].T).to(torch.float64)
    s = (torch.arange(256, dtype=torch.float32) * (1 / 255)).to(torch.float64)
    return (1 - w[..., None] * s).to(torch.float32).flatten(1)


_PER_VALUE = _reciprocals(255)
_PER_RANGE = _reciprocals(HUES / 6)
_SHARES = _shares()
