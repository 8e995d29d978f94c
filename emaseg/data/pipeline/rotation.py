"""Rotation of 8-bit images and labels, exactly as OpenCV 4.5.5 does it.

Room: data/pipeline. Legend: H W image, N = H*W pixels.

The published LIP rows come from sssegmentation in 2021, which rotated with OpenCV 4: cv2.warpAffine, bicubic for
images and nearest for labels. The golden numbers are 4.5.5's, the newest version of that year's end. OpenCV 5 rotates
images by another arithmetic (half of the values of a noisy image differ, by up to 7 levels). So an installed OpenCV
is never asked, and the bits do not depend on it.

warpAffine inverts the matrix in double precision and counts positions in 1/1024 pixel; the share of the column and
that of the row are rounded separately, halves to even. An image reads them in steps of 1/32 pixel. One of 32 x 32
tables of 16 weights belongs to each fraction; the weights have 15 bits and add up to 1. Labels take the nearest pixel.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from emaseg.data.dataset import Pixels, UInt8
from emaseg.recipe.data import IGNORE

Positions = npt.NDArray[np.int32]

_POSITION_BITS = 10  # fraction of a rounded position
_STEP_BITS = 5  # fraction that chooses the weights
_STEPS = 1 << _STEP_BITS
_WEIGHT_BITS = 15
_ONE = 1 << _WEIGHT_BITS  # the weight 1
_CUBIC = -0.75  # OpenCV's parameter of the cubic kernel
_TAPS = 4  # pixels that the kernel covers along one axis
_COLUMNS = 32  # result columns computed at once: neighbours in such a strip read pixels that are still in the cache


def rotate_image(image: Pixels, degrees: float) -> Pixels:
    """(H, W, C) turned counter-clockwise about its centre; bicubic, black where nothing was.

    Bit for bit what OpenCV 4.5.5's warpAffine gives, which the published LIP rows were trained with. OpenCV 5 gives
    other values. Float32 pixels are turned by the same weights, and are not rounded.
    """
    height, width, channels = image.shape
    x, y = (at >> (_POSITION_BITS - _STEP_BITS) for at in _positions(height, width, degrees, _STEPS // 2))
    fraction = torch.from_numpy(((y & (_STEPS - 1)) << _STEP_BITS) + (x & (_STEPS - 1)))
    # With a black margin as wide as the kernel, a position outside needs no case of its own.
    stride = width + 2 * _TAPS
    framed = np.zeros((height + 2 * _TAPS, stride, channels), image.dtype)
    framed[_TAPS:-_TAPS, _TAPS:-_TAPS] = image
    floats = image.dtype != np.uint8
    pixels = torch.from_numpy(framed).view(-1, channels).to(torch.float32)
    first = torch.from_numpy(_first_tap(y, height) * np.int32(stride) + _first_tap(x, width))
    taps = torch.arange(_TAPS, dtype=torch.int32)
    offsets = (taps[:, None] * stride + taps).flatten()
    result = torch.empty(height, width, channels, dtype=pixels.dtype if floats else torch.uint8)
    for start in range(0, width, _COLUMNS):
        strip = slice(start, start + _COLUMNS)
        index = first[:, strip].reshape(-1, 1) + offsets
        weights = _weights().index_select(0, fraction[:, strip].flatten())
        # No partial sum of weights times pixels reaches 2^24 (tested), so float32 is exact here, in any order.
        sums = F.embedding_bag(index, pixels, mode="sum", per_sample_weights=weights)
        if floats:
            levels = sums.mul_(1 / _ONE).clamp_(0, 255)
        else:
            levels = sums.add_(_ONE // 2).mul_(1 / _ONE).floor_().clamp_(0, 255).to(torch.uint8)
        result[:, strip] = levels.view(height, -1, channels)
    turned: Pixels = result.numpy()
    return turned


def rotate_label(label: UInt8, degrees: float) -> UInt8:
    """(H, W) turned like its image; nearest pixel, ignored where nothing was. OpenCV's warpAffine, 4.x and 5."""
    height, width = label.shape
    columns, rows = (at >> _POSITION_BITS for at in _positions(height, width, degrees, 1 << (_POSITION_BITS - 1)))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(inside, label[rows.clip(0, height - 1), columns.clip(0, width - 1)], np.uint8(IGNORE))


def _positions(height: int, width: int, degrees: float, half: int) -> tuple[Positions, Positions]:
    """Source x and y (H, W) of each result pixel in 1/1024 pixel, plus `half` of the step that they are cut to."""
    x, y = np.arange(width), np.arange(height)[:, None]
    one = 1 << _POSITION_BITS
    columns, rows = (
        np.rint(a * x * one).astype(np.int32) + (np.rint((b * y + start) * one).astype(np.int32) + np.int32(half))
        for a, b, start in _source_of_rotation(height, width, degrees)
    )
    return columns, rows


def _source_of_rotation(height: int, width: int, degrees: float) -> tuple[tuple[float, float, float], ...]:
    """Two rows (a, b, start): source x and y of a result pixel are a * x + b * y + start.

    The centre is (width / 2, height / 2) counted in pixel indices: half a pixel off the middle, as published. The
    operations are getRotationMatrix2D's and then warpAffine's inversion, one by one: their last bits decide which way
    a position rounds.
    """
    angle = degrees * (math.pi / 180)
    c, s = math.cos(angle), math.sin(angle)
    cx, cy = width / 2, height / 2
    x0, y0 = (1 - c) * cx - s * cy, s * cx + (1 - c) * cy
    inverse = 1 / (c * c - s * -s)
    a, b, d = c * inverse, s * -inverse, -s * -inverse
    return (a, b, -a * x0 - b * y0), (d, a, -d * x0 - a * y0)


def _first_tap(position: Positions, side: int) -> Positions:
    """Where the kernel begins along one axis of the image with its margin, for positions in 1/32 pixel."""
    first: Positions = (position >> _STEP_BITS).clip(1 - _TAPS, side + 1) + np.int32(_TAPS - 1)
    return first


@functools.cache
def _weights() -> torch.Tensor:
    """(1024, 16) float32: the integer weights of the 4 x 4 pixels for each fraction, row 32 * y + x.

    What rounding leaves of their sum goes to the largest or the smallest of the four pixels that follow the middle.
    """
    one, cubic = np.float32(1), np.float32(_CUBIC)
    t = np.arange(_STEPS, dtype=np.float32) / np.float32(_STEPS)
    far = ((cubic * (t + one) - 5 * cubic) * (t + one) + 8 * cubic) * (t + one) - 4 * cubic
    near, after = (((cubic + 2) * at - (cubic + 3)) * at * at + one for at in (t, one - t))
    axis = np.stack([far, near, after, one - far - near - after], axis=1)
    ideal = axis[:, None, :, None] * axis[None, :, None, :] * np.float32(_ONE)
    weights = np.rint(ideal).clip(-_ONE, _ONE - 1).astype(np.int32)  # (y, x, tap in y, tap in x), signed 16 bits
    table = weights.reshape(_STEPS**2, _TAPS, _TAPS)
    four = table[:, 2:, 2:].reshape(-1, 4)  # a copy
    surplus = table.sum(axis=(1, 2)) - _ONE
    place = np.where(surplus < 0, four.argmax(axis=1), four.argmin(axis=1))
    table[np.arange(len(table)), 2 + place // 2, 2 + place % 2] -= surplus
    return torch.from_numpy(table.reshape(-1, _TAPS**2).astype(np.float32))
