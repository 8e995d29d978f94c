"""Resizing of 8-bit images and labels, exactly as OpenCV does it, whole or only a window of the result.

Room: data. Imports data.sample, numpy and torch. Legend: H W size before, h w size after.

The published systems resize with OpenCV's INTER_LINEAR and INTER_NEAREST. On 8-bit pixels INTER_LINEAR is integer
arithmetic: weights of 11 bits, columns first, shifts that truncate. Rounding the ideal value instead differs by one
level on an eighth of all values. Every result pixel depends on its own row and column only, so a crop of the result
costs a crop's work: `window` computes nothing else and changes no value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.sample import UInt8

Size = tuple[int, int]
Window = tuple[int, int, int, int]  # top, left, height, width

_ROWS = 64  # result rows computed at once: the 32-bit intermediate values then stay in the cache
_ONE = 2048  # the weight 1


def limit_size(size: Size, long_short: Sequence[int], keep_ratio: bool, scale: float = 1.0) -> Size:
    """Size after fitting into limits, the rule of sssegmentation and mmsegmentation.

    Args:
        size: (H, W).
        long_short: limits of the long and of the short side, whichever of the two sides that is; () keeps the
            size and applies `scale` alone.
        keep_ratio: the largest size of the same shape inside the limits; otherwise the limits are the new size,
            with the larger one along the longer side (along the width of a square).
        scale: factor on the limits, which are then truncated to whole pixels.

    Returns:
        (h, w), each at least 1.
    """
    height, width = size
    if not long_short:
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    limits = [int(limit * scale) for limit in long_short]
    longest, shortest = max(1, *limits), max(1, min(limits))
    if not keep_ratio:
        return (longest, shortest) if height > width else (shortest, longest)
    factor = min(longest / max(height, width), shortest / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: UInt8, size: Size, window: Window | None = None, *, mirrored: bool = False) -> UInt8:
    """Bilinear on pixel centres without antialiasing: OpenCV's INTER_LINEAR, bit for bit.

    Args:
        image: (H, W, 3).
        size: (h, w) of the whole result.
        window: the part of the result that is wanted; None = all of it.
        mirrored: swap left and right of that part; costs nothing here.

    Returns:
        (h, w, 3), or the window's size. May share memory with `image`.
    """
    top, left, height, width = window or (0, 0, *size)
    if image.shape[:2] == size:
        part = image[top : top + height, left : left + width]
        return as_tensor(part).flip(1).numpy() if mirrored else part
    columns_of = _bilinear(image.shape[1], size[1], left, width)
    x0, x1, *weights = (side.flip(0) for side in columns_of) if mirrored else columns_of
    wx0, wx1 = (w.repeat_interleave(3) for w in weights)  # a pixel's three channels lie side by side
    y0, y1, wy0, wy1 = _bilinear(image.shape[0], size[0], top, height, keep_weight=True)
    source = as_tensor(image)
    result = torch.empty(height, width * 3, dtype=torch.uint8)
    for start in range(0, height, _ROWS):
        rows = slice(start, start + _ROWS)
        first, last = int(y0[rows][0]), int(y1[rows][-1])
        band = source[first : last + 1]
        columns = band.index_select(1, x0).flatten(1).to(torch.int32).mul_(wx0)
        columns.add_(band.index_select(1, x1).flatten(1).to(torch.int32).mul_(wx1)).bitwise_right_shift_(4)
        above = columns.index_select(0, y0[rows] - first).mul_(wy0[rows, None]).bitwise_right_shift_(16)
        below = columns.index_select(0, y1[rows] - first).mul_(wy1[rows, None]).bitwise_right_shift_(16)
        result[rows] = above.add_(below).add_(2).bitwise_right_shift_(2)
    return result.view(height, width, 3).numpy()


def resize_label(label: UInt8, size: Size, window: Window | None = None) -> UInt8:
    """Nearest neighbour: OpenCV's INTER_NEAREST, which takes the label at floor(index * step) on each axis.

    Args:
        label: (H, W).
        size: (h, w) of the whole result.
        window: the part of the result that is wanted; None = all of it.

    Returns:
        (h, w), or the window's size. May share memory with `label`.
    """
    top, left, height, width = window or (0, 0, *size)
    if label.shape == size:
        return label[top : top + height, left : left + width]
    rows = _nearest(label.shape[0], size[0], top, height)
    columns = _nearest(label.shape[1], size[1], left, width)
    return as_tensor(label).index_select(0, rows).index_select(1, columns).numpy()


def resize_floats(image: UInt8, size: Size, window: Window | None = None) -> npt.NDArray[np.float32]:
    """Bilinear with the corner pixels' centres aligned, not rounded: torch's align_corners=True, which the EMANet
    authors use. Unlike torch's function it gives the same bits on any number of threads.

    Args:
        image: (H, W, 3).
        size: (h, w) of the whole result.
        window: the part of the result that is wanted; None = all of it.

    Returns:
        (h, w, 3) on 0..255, or the window's size.
    """
    top, left, height, width = window or (0, 0, *size)
    x0, x1, tx = _aligned(image.shape[1], size[1], left, width)
    y0, y1, ty = _aligned(image.shape[0], size[0], top, height)
    first = int(y0[0])
    source = as_tensor(image)[first : int(y1[-1]) + 1].to(torch.float32)
    columns = source.index_select(1, x0).mul_((1 - tx)[:, None]).add_(source.index_select(1, x1).mul_(tx[:, None]))
    above, below = columns.index_select(0, y0 - first), columns.index_select(0, y1 - first)
    result: npt.NDArray[np.float32] = above.mul_((1 - ty)[:, None, None]).add_(below.mul_(ty[:, None, None])).numpy()
    return result


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """The array as a tensor: the same memory where it is writable and contiguous, else a copy."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _step(before: int, after: int) -> float:
    """Source pixels for one result pixel. OpenCV inverts the factor, which is not always before / after in the last
    bit; a label at a whole position depends on that bit."""
    return 1.0 / (after / before)


def _nearest(before: int, after: int, start: int, count: int) -> torch.Tensor:
    """Source index of each of `count` result pixels of one axis, from `start`."""
    index = np.floor(np.arange(start, start + count) * _step(before, after)).astype(np.int64)
    return torch.from_numpy(np.minimum(index, before - 1))


def _bilinear(
    before: int, after: int, start: int, count: int, *, keep_weight: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both source indices (count,) of each result pixel of one axis, and their integer weights (count,).

    Beyond the first and last pixel centre both indices are clamped to the edge. Columns give all weight to one of
    them there, rows (`keep_weight`) go on splitting it: no difference in the ideal value, but in its truncation.
    """
    position = ((np.arange(start, start + count) + 0.5) * _step(before, after) - 0.5).astype(np.float32)
    first = np.floor(position)
    t = position - first
    if not keep_weight:
        t[(first < 0) | (first >= before - 1)] = 0
    index = first.astype(np.int64)
    lower, upper = (torch.from_numpy(np.clip(i, 0, before - 1)) for i in (index, index + 1))
    w0, w1 = (torch.from_numpy(np.rint(_ONE * w).astype(np.int32)) for w in (1 - t, t))
    return lower, upper, w0, w1


def _aligned(before: int, after: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both source indices (count,) of each result pixel of one axis, and the weight of the second, float32."""
    step = np.float32((before - 1) / (after - 1) if after > 1 else 0)
    position = np.arange(start, start + count, dtype=np.float32) * step
    index = np.minimum(position.astype(np.int64), before - 1)
    t = torch.from_numpy(position - index.astype(np.float32))
    return torch.from_numpy(index), torch.from_numpy(np.minimum(index + 1, before - 1)), t
