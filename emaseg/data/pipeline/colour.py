"""Colour jitter of the published pipelines: brightness, contrast, saturation and hue on 8-bit pixels.

Room: data/pipeline. Legend: H W image, N pixels of one band of it.

Each step ends in 8 bits again, clipped to 0..255 and truncated, and saturation and hue each make their own trip to
8-bit HSV (hue in 180 steps) and back, in OpenCV's arithmetic. All of this shows: rounding instead of truncating is
off by 0.9 levels on average, one trip for both steps by one level on a third of all values.

A trip is among the longest steps of loading a sample, so it is made of what processors do fast: one operation on a
whole plane, in the narrowest type that holds the numbers, written over an operand. Choosing between planes or reading
a table takes five to ten times as long and is done only where nothing else gives the same bits.

The one known difference: OpenCV's way back rounds instead of truncating in the last (width mod 32) columns on some
processors. Here it truncates everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import UInt8

Int16 = npt.NDArray[np.int16]
UInt16 = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]

HUES = 180  # steps of the colour circle
LOWEST_HUE = -30  # of what the formulas give before a negative H comes round the circle; the highest is 150

_BAND = 1 << 16  # pixels computed at once: few enough for the cache, enough to hide what each call costs


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
        (H, W, 3), which may lie in memory channel after channel; `image` itself when no step is to be done.
    """
    in_planes = p.saturation is not None or p.hue is not None
    if not in_planes and p.brightness is None and p.contrast is None:
        return image
    result = (
        np.empty(image.shape[2:] + image.shape[:2], np.uint8).transpose(1, 2, 0) if in_planes else np.empty_like(image)
    )
    shift = None if p.brightness is None else _shift(p.brightness)
    rows = max(1, _BAND // max(1, image.shape[1]))
    for top in range(0, len(image), rows):
        pixels, done = image[top : top + rows], result[top : top + rows]
        if not in_planes:
            done[...] = _steps(pixels, p, shift)
            continue
        if bgr_as_rgb:
            pixels, done = pixels[..., ::-1], done[..., ::-1]
        planes = _steps(pixels.transpose(2, 0, 1).copy().reshape(3, -1), p, shift)  # each plane's values side by side
        for channel, plane in enumerate(planes):
            done[..., channel] = plane.reshape(done.shape[:2])
    return result


def _steps(values: UInt8, p: Photometric, shift: int | None) -> UInt8:
    """The steps of `p` on values of any shape; on planes (3, N), in the order HSV is to see them, if it is.

    shift: what p.brightness comes to in whole levels, if it does.
    """
    if shift is not None:
        values = _shifted(values, shift)
    elif p.brightness is not None:
        values = _clipped(np.add, values, p.brightness)
    if p.contrast is not None and p.contrast_first:
        values = _clipped(np.multiply, values, p.contrast)
    if p.saturation is not None:
        values = _through_hsv(values, p.saturation, 0)
    if p.hue is not None:
        values = _through_hsv(values, 1.0, p.hue)
    if p.contrast is not None and not p.contrast_first:
        values = _clipped(np.multiply, values, p.contrast)
    return values


def _shift(brightness: float) -> int | None:
    """The whole levels by which `brightness` moves every value; None where rounding makes them differ by value."""
    levels = np.arange(256, dtype=np.uint8)
    moved = _clipped(np.add, levels, brightness)
    shift = int(moved[0]) + int(moved[-1]) - 255
    return shift if np.array_equal(_shifted(levels, shift), moved) else None


def _shifted(values: UInt8, shift: int) -> UInt8:
    """values + shift, clipped to 0..255. Limits are arrays: np.minimum and np.maximum are much slower with a number."""
    if shift < 0:
        least: UInt8 = np.maximum(values, np.full_like(values, -shift))
        return np.subtract(least, np.uint8(-shift), out=least)
    most: UInt8 = np.minimum(values, np.full_like(values, 255 - shift))
    return np.add(most, np.uint8(shift), out=most)


def _clipped(operation: np.ufunc, values: UInt8 | UInt16, number: float) -> UInt8:
    """The operation in 32-bit floats, clipped to 0..255 and truncated to 8 bits."""
    x = values.astype(np.float32)
    operation(x, np.float32(number), out=x)
    if operation is not np.multiply or not 0 <= number <= 1:  # a factor up to 1 leaves them within
        x.clip(0, 255, out=x)
    return x.astype(np.uint8)


# ------------------------------------------------------------------------------------------------ 8-bit HSV
def _through_hsv(planes: UInt8, saturation: float, hue: int) -> UInt8:
    """(3, N) with S multiplied and H turned."""
    h, s, v = to_hsv(planes)
    cell = h
    cell *= 256
    cell += s if saturation == 1.0 else _clipped(np.multiply, s, saturation)
    index = cell.astype(np.intp)
    value = v
    value *= 1 / 255
    result, x = np.empty_like(planes), np.empty_like(value)
    for plane, share in zip(result, _SHARES[:, 256 * (hue % HUES) :], strict=True):
        share.take(index, out=x, mode="wrap")  # never needed, but faster than the mode that looks for errors
        x *= value
        x *= 255  # in this order: V of a saturated pixel is 255, so a last bit often decides what truncation leaves
        plane[:] = x
    return result


def to_hsv(planes: UInt8) -> tuple[UInt16, UInt16, Float32]:
    """8-bit HSV of three colour planes, OpenCV's integer arithmetic.

    Args:
        planes: (3, N), red, green and blue.

    Returns:
        H - LOWEST_HUE in 0..180 (H is still to be taken modulo HUES), S and V in 0..255, each (N,).
    """
    largest = planes.max(axis=0)
    span = largest - planes.min(axis=0)
    v, d = largest.astype(np.float32), span.astype(np.float32)
    s = _rounded_quotient(d, 255, v, 0)
    # Counted from LOWEST_HUE, H is positive, and truncating is what OpenCV's shift to the right does.
    h = _rounded_quotient(_hue_numerator(planes, largest, span).astype(np.float32), HUES // 6, d, -LOWEST_HUE)
    return h.astype(np.uint16), s.astype(np.uint16), v


def _hue_numerator(planes: UInt8, largest: UInt8, span: UInt8) -> Int16:
    """H in units of span / 30, (N,): one formula for each plane that can hold V; the first such plane decides.

    The other formulas are lifted out of the way, so that the right one gives the smallest value. The third needs no
    lifting: it is never below the right one.
    """
    a, b, c = planes.astype(np.int16)
    d2 = span.astype(np.int16)
    d2 *= 2
    lift = (planes[:2] != largest).astype(np.int16)
    lift *= 2048
    first = b - c
    first += lift[0]
    second = c - a
    second += d2
    second += lift[1]
    third: Int16 = a - b
    third += d2
    third += d2
    np.minimum(third, second, out=third)
    np.minimum(third, first, out=third)
    return third


def _rounded_quotient(n: Float32, scale: int, d: Float32, start: int) -> Float32:
    """n * scale / d + 1/2 + start for integers, with scale / d rounded to 1/4096. Where d is 0, so is n.

    OpenCV's `n * round(scale * 4096 / d) + 2048`, in units of 1/4096: below 2^24, so floats hold it exactly.
    """
    q = d + np.float32(1e-9)  # changes 0 only
    np.divide(np.float32(scale * 4096), q, out=q)
    np.rint(q, out=q)
    q *= n
    q *= 1 / 4096
    q += 0.5 + start
    return q


def _shares() -> Float32:
    """(3, 360 * 256): the share 1 - s * w of V that each of the three colours has, for each H and S.

    H runs twice round the circle, from LOWEST_HUE on: turned hues are read further down. In each sixth of the circle
    one colour is V itself (w = 0), one is smallest (w = 1), and one goes from one to the other (w = f or 1 - f).
    OpenCV's processors round 1 - s * w once, as a fused step; so does this, by float64.
    """
    hue = np.arange(LOWEST_HUE, LOWEST_HUE + 2 * HUES) % HUES
    sixth = hue.astype(np.float32) * np.float32(6 / HUES)
    sector = sixth.astype(np.intp)
    f = sixth - sector.astype(np.float32)
    kinds = np.stack([np.zeros_like(f), np.ones_like(f), f, 1 - f])
    of_sector = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
    w = np.take_along_axis(kinds, of_sector[sector].T, axis=0).astype(np.float64)
    s = (np.arange(256, dtype=np.float32) * np.float32(1 / 255)).astype(np.float64)
    return (1 - w[..., None] * s).astype(np.float32).reshape(3, -1)


_SHARES = _shares()
