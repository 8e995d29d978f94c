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
    pixels = _by_table(as_tensor(image), p.brightness or 0.0, p.contrast if p.contrast_first else None)
    if p.saturation is not None:
        pixels = _through_hsv(pixels, p.saturation, 0, bgr_as_rgb)
    if p.hue is not None:
        pixels = _through_hsv(pixels, 1.0, p.hue, bgr_as_rgb)
    pixels = _by_table(pixels, 0.0, None if p.contrast_first else p.contrast)
    return pixels.numpy()


def _by_table(pixels: torch.Tensor, brightness: float, contrast: float | None) -> torch.Tensor:
    """Brightness, then contrast. Both treat every value alike, so both together are one table of 256 entries."""
    if brightness == 0.0 and contrast is None:
        return pixels
    table = _clip(torch.arange(256, dtype=torch.float32) + brightness)
    if contrast is not None:
        table = _clip(table.to(torch.float32) * contrast)
    return table.index_select(0, pixels.flatten().to(torch.int32)).view(pixels.shape)


def _clip(x: torch.Tensor) -> torch.Tensor:
    """Clipped to 0..255 and truncated to 8 bits."""
    return x.clamp_(0, 255).to(torch.uint8)


# ------------------------------------------------------------------------------------------------ 8-bit HSV
def _through_hsv(pixels: torch.Tensor, saturation: float, hue: int, bgr_as_rgb: bool) -> torch.Tensor:
    """(H, W, 3) uint8 with S multiplied and H turned."""
    order = (2, 1, 0) if bgr_as_rgb else (0, 1, 2)
    h, s, v = to_hsv(*(pixels[..., c] for c in order))
    factor = _clip(torch.arange(256, dtype=torch.float32) * saturation).to(torch.float32) * (1 / 255)
    s, v = factor.index_select(0, s), v.to(torch.float32).mul_(1 / 255)
    result = torch.empty(3, *pixels.shape[:2], dtype=torch.uint8)
    for channel, table in zip(order, _MIX.roll(-hue, dims=1), strict=True):
        # Exactly in this order: V of a saturated pixel is 255, so a last bit often decides what truncation gives.
        value = table.index_select(0, h).mul_(s).neg_().add_(1).mul_(v).mul_(255)
        result[channel] = value.view(pixels.shape[:2])
    return result.permute(1, 2, 0).contiguous()


def to_hsv(
    first: torch.Tensor, second: torch.Tensor, third: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit HSV of three colour planes, OpenCV's integer arithmetic.

    Args:
        first, second, third: (H, W) uint8, red, green and blue.

    Returns:
        H in 0..179, S and V in 0..255, each (H*W,) int32.
    """
    a, b, c = (plane.flatten().to(torch.int32) for plane in (first, second, third))
    v = torch.maximum(torch.maximum(a, b), c)
    d = v - torch.minimum(torch.minimum(a, b), c)
    s = (d * _PER_VALUE.index_select(0, v)).add_(1 << 11).bitwise_right_shift_(12)
    turned = torch.where(v == b, c - a + 2 * d, a - b + 4 * d)
    turned = torch.where(v == a, b - c, turned)
    h = turned.mul_(_PER_RANGE.index_select(0, d)).add_(1 << 11).bitwise_right_shift_(12)
    h.add_((h < 0).to(torch.int32), alpha=HUES)
    return h, s, v


def _reciprocals(scale: float) -> torch.Tensor:
    """(256,) int32: scale / i in units of 1/4096, and 0 for i = 0."""
    table = torch.zeros(256, dtype=torch.int32)
    table[1:] = torch.round(scale * 4096 / torch.arange(1, 256, dtype=torch.float64)).to(torch.int32)
    return table


def _mix() -> torch.Tensor:
    """(3, 180) float32: for each hue, the share w of S that is taken from each of three colours: V * (1 - S * w).

    In each sixth of the circle one colour keeps V (w = 0), one is smallest (w = 1), and one moves between them.
    """
    sixth = torch.arange(HUES, dtype=torch.float32) * (6 / HUES)
    sector = sixth.to(torch.int64)
    f = sixth - sector
    zero, one = torch.zeros(HUES), torch.ones(HUES)
    kinds = torch.stack([zero, one, f, 1 - f])
    rows = torch.tensor([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])  # one for each sector
    return kinds.gather(0, rows[sector].T)


_PER_VALUE = _reciprocals(255)
_PER_RANGE = _reciprocals(HUES / 6)
_MIX = _mix()
