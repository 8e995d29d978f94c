"""Resizing of 8-bit images and labels, exactly as OpenCV does it, whole or only a window of the result.

Room: data/pipeline. Legend: H W size before, h w size after.

The published systems resize with OpenCV's INTER_LINEAR and INTER_NEAREST. On 8-bit pixels INTER_LINEAR is integer
arithmetic: weights of 11 bits, columns first, shifts that truncate. Rounding the ideal value instead differs by one
level on an eighth of all values. Every result pixel depends on its own row and column only, so a crop of the result
costs a crop's work: `window` computes nothing else and changes no value. OpenCV itself, where it is installed, is so
much faster that it resizes the whole image in less time; the values are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.dataset import WORD, Box, Pixels, Region, UInt8, Words
from emaseg.data.files.opencv import opencv

Index = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]
Size = tuple[int, int]

_AT_ONCE = 60_000  # values, before or after, of the rows computed together: they then stay in the cache, in 32 bits
_LANES = 4  # channels of 8 bits in a word of 32
_ONE = 2048  # the weight 1
_TRUNCATED = ~0xFFFF  # the bits that a shift by 16 keeps, left in place
_HALF = 2 << 16  # rounds the shift by 2 that follows the one by 16
_RGB = 3  # channels for which OpenCV's build is compared with the arithmetic here


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


def resize_image(image: Pixels, size: Size, window: Box | None = None, *, mirrored: bool = False) -> Pixels:
    """Bilinear on pixel centres without antialiasing: of 8-bit pixels OpenCV's INTER_LINEAR, bit for bit.

    Args:
        image: (H, W, C).
        size: (h, w) of the whole result.
        window: the region of the result that is wanted; None = all of it.
        mirrored: swap left and right of that region; costs nothing here.

    Returns:
        (h, w, C) of the image's type, or the window's size. May share memory with `image`; may lie in memory channel
        after channel.
    """
    return resize_region(Region.whole(image), size, window or (0, 0, *size), mirrored=mirrored)


def resize_region(region: Region, size: Size, window: Box, *, mirrored: bool = False) -> Pixels:
    """resize_image of an image of which only a region is at hand, one that holds box_needed."""
    top, left, height, width = window
    if region.size == size:
        top, left = top - region.top, left - region.left
        same = region.pixels[top : top + height, left : left + width]
        return as_tensor(same).flip(1).numpy() if mirrored else same
    if region.pixels.dtype != np.uint8:
        return _resized_floats(region, size, window, mirrored)
    resize = (_opencv_resize() if region.pixels.shape[2] == _RGB else None) or _resized
    return resize(region, size, window, mirrored)


def box_needed(before: Size, size: Size, window: Box) -> Box:
    """The pixels that a window of the result is made from, as a box of the image. before: the image's (H, W)."""
    if before == size:
        return window
    top, left, height, width = window
    if _opencv_resize():
        return 0, 0, _reach(before[0], size[0], top + height), _reach(before[1], size[1], left + width)
    (first, _), (_, last) = (_ends(before[0], size[0], at) for at in (top, top + height - 1))
    (start, _), (_, end) = (_ends(before[1], size[1], at) for at in (left, left + width - 1))
    return first, start, last + 1 - first, end + 1 - start


@functools.cache
def _opencv_resize() -> Callable[[Region, Size, Box, bool], UInt8] | None:
    """_resized by OpenCV itself, for parts that begin at the image's top left corner: None where it is not installed,
    or where its build differs (some have faster versions for single processors and factors)."""
    cv2 = opencv()
    if cv2 is None:
        return None

    def resize(region: Region, size: Size, window: Box, mirrored: bool) -> UInt8:
        if region.top or region.left:
            return _resized(region, size, window, mirrored)
        top, left, height, width = window
        rows, columns = (
            _reach(before, after, end)
            for before, after, end in zip(region.size, size, (top + height, left + width), strict=True)
        )
        # Told the factors, not the size of the result, it does to a region what it would do to the whole.
        factors = size[1] / region.size[1], size[0] / region.size[0]
        seen = region.pixels[:rows, :columns]
        result: UInt8 = cv2.resize(seen, None, fx=factors[0], fy=factors[1], interpolation=cv2.INTER_LINEAR)
        if result.shape == seen.shape:  # it takes a factor near 1 for 1 where the rounded size is the same
            return _resized(region, size, window, mirrored)
        result = result[top : top + height, left : left + width]
        return cv2.flip(result, 1) if mirrored else result.copy()  # a view would keep the rest, cold, in the cache

    noise = Region.whole(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    sizes = ((30, 45), (43, 61), (60, 101), (83, 90), (120, 180), (97, 240), (1, 1))
    windows = [(size, (size[0] // 3, size[1] // 4, -(-size[0] // 2), -(-size[1] // 2))) for size in sizes]
    same = (np.array_equal(resize(noise, *each, False), _resized(noise, *each, False)) for each in windows)
    return resize if all(same) else None


def _reach(before: int, after: int, end: int) -> int:
    """How much of one axis, from its start, OpenCV has to see for the first `end` pixels of the result: so much that
    the result is not shorter, and that none of them lies at the end of what it sees."""
    return min(before, math.ceil(end * _step(before, after)) + 2)


def _resized(region: Region, size: Size, window: Box, mirrored: bool) -> UInt8:
    """resize_region by the arithmetic above, for a size that differs from the image's. Each channel is a plane of its own,
    in memory too: colour jitter and networks want planes."""
    top, left, height, width = window
    x, across = _bilinear(region.size[1], size[1], left, width)
    y, down = _bilinear(region.size[0], size[0], top, height, keep_weight=True)
    source: UInt8 | Words = cast(UInt8, region.pixels) if region.words is None else region.words
    source, y = _needed(source, 0, y - region.top)
    source, x = _needed(source, 1, x - region.left)
    if mirrored:
        x, across = x[:, ::-1], across[:, ::-1]
    channels = region.pixels.shape[2]
    # The rows are computed in bands, all of one shape: the last one begins sooner, and does some rows once more.
    bands = min(height, -(-width * channels * max(height, len(source)) // _AT_ONCE))
    step = -(-height // bands)
    starts = [min(start, height - step) for start in range(0, height, step)]
    count = max(int(y[1, start + step - 1] + 1 - y[0, start]) for start in starts)  # rows that a band is made from
    packed, taken = np.empty((count, source.shape[1]), WORD), np.empty((2, count, width), WORD)
    columns, lines = np.empty((2, channels, count, width), np.int32), np.empty((channels, 2, step, width), np.int32)
    near, far = columns
    above, below = lines[:, 0], lines[:, 1]
    # Weights lie as the values do: NumPy multiplies one long run in half the time of row by row.
    column_weights = np.broadcast_to(across[:, None, None], (2, 1, count, width)).copy()
    line_weights = np.empty((2, step, width), np.int32)
    lanes = [columns.view(np.uint32)[:, channel] for channel in range(channels)]
    result = np.empty((channels, height, width), np.uint8)
    for start in starts:
        rows, top = slice(start, start + step), min(int(y[0, start]), len(source) - count)
        for first in range(0, channels, _LANES):
            words = _words(source[top : top + count], first, packed)
            words.take(x[0], 1, taken[0], "wrap")
            words.take(x[1], 1, taken[1], "wrap")
            _unpack(taken, lanes[first : first + _LANES])
        columns *= column_weights
        near += far
        near >>= 4
        near.take(y[:, rows] - top, 1, lines, "wrap")
        line_weights[...] = down[:, rows, None]
        lines *= line_weights
        below &= _TRUNCATED  # above's low bits then carry nothing: one shift of the sum truncates both
        above += below
        above += _HALF
        above >>= 18
        result[:, rows] = above
    return result.transpose(1, 2, 0)


def _needed(source: UInt8 | Words, axis: int, index: Index) -> tuple[UInt8 | Words, Index]:
    """The part of an axis that holds both source indices (2, n) of each result pixel, and these in it. Where most of it is
    passed over, only the pixels at these indices. Rows of words stay whole: of cut ones NumPy would make copies."""
    start, stop, count = index[0, 0], index[1, -1] + 1, index.shape[1]
    if stop - start > 2 * count:
        return source.take(index.T.ravel(), axis), np.arange(2 * count).reshape(count, 2).T
    if axis == 1 and source.ndim == 2:
        return source, index
    return source[(slice(None),) * axis + (slice(start, stop),)], index - start


def _words(band: UInt8 | Words, first: int, packed: Words) -> Words:
    """Up to four channels of a band, from `first` on, as one word a pixel, in `packed` if they are not words already. Then
    one step takes a whole pixel, in a quarter of the time."""
    if band.ndim == 2:
        return cast(Words, band)
    lanes = packed.view(np.uint8).reshape(*packed.shape, _LANES)
    for lane in range(min(_LANES, band.shape[2] - first)):
        lanes[..., lane] = band[..., first + lane]
    return packed


def _unpack(words: Words, lanes: Sequence[Words]) -> None:
    """The channels of some words, each into an array of their shape."""
    for lane, values in enumerate(lanes):
        if lane:
            np.right_shift(words, 8 * lane, out=values)
            values &= 255
        else:
            np.bitwise_and(words, 255, out=values)


def _resized_floats(region: Region, size: Size, window: Box, mirrored: bool) -> npt.NDArray[np.float32]:
    """resize_region of float32 pixels: bilinear on pixel centres without rounding."""
    top, left, height, width = window
    x0, x1, tx = _linear(region.size[1], size[1], left, width)
    if mirrored:
        x0, x1, tx = x0[::-1], x1[::-1], tx[::-1]
    y0, y1, ty = _linear(region.size[0], size[0], top, height)
    first, last = int(y0[0]), int(y1[-1])
    band = region.pixels[first - region.top : last + 1 - region.top].astype(np.float32, copy=False)
    tx, ty = tx[:, None], ty[:, None, None]
    columns = band.take(x0 - region.left, axis=1) * (1 - tx) + band.take(x1 - region.left, axis=1) * tx
    return (columns[y0 - first] * (1 - ty) + columns[y1 - first] * ty).astype(np.float32, copy=False)


def _linear(before: int, after: int, start: int, count: int) -> tuple[Index, Index, npt.NDArray[np.float32]]:
    """Both source indices (count,) of each result pixel of one axis, and the weight of the second."""
    position = ((np.arange(start, start + count) + 0.5) * _step(before, after) - 0.5).clip(0, before - 1)
    index = position.astype(np.int64)
    return index, np.minimum(index + 1, before - 1), (position - index).astype(np.float32)


def resize_label(label: UInt8, size: Size, window: Box | None = None) -> UInt8:
    """Nearest neighbour: OpenCV's INTER_NEAREST, which takes the label at floor(index * step) on each axis.

    Args:
        label: (H, W).
        size: (h, w) of the whole result.
        window: the region of the result that is wanted; None = all of it.

    Returns:
        (h, w), or the window's size. May share memory with `label`.
    """
    top, left, height, width = window or (0, 0, *size)
    if label.shape == size:
        return label[top : top + height, left : left + width]
    rows = _nearest(label.shape[0], size[0], top, height)
    columns = _nearest(label.shape[1], size[1], left, width)
    if size[0] < label.shape[0]:  # rows are copied whole, columns pixel by pixel: of as few rows as possible
        return label.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")
    wide = label[rows[0] : rows[-1] + 1].take(columns, axis=1, mode="clip")
    result: UInt8 = wide.take(rows - rows[0], axis=0, mode="clip")
    return result


def resize_floats(image: Pixels, size: Size, window: Box | None = None) -> npt.NDArray[np.float32]:
    """Bilinear with the corner pixels' centres aligned, not rounded: torch's align_corners=True, which the EMANet
    authors use. Unlike torch's function it gives the same bits on any number of threads.

    Args:
        image: (H, W, 3).
        size: (h, w) of the whole result.
        window: the region of the result that is wanted; None = all of it.

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


def _nearest(before: int, after: int, start: int, count: int) -> Index:
    """Source index of each of `count` result pixels of one axis, from `start`."""
    index: Index = np.floor(np.arange(start, start + count) * _step(before, after)).astype(np.int64)
    np.minimum(index, before - 1, out=index)
    return index


def _bilinear(before: int, after: int, start: int, count: int, *, keep_weight: bool = False) -> tuple[Index, Weights]:
    """Both source indices (2, count) of each result pixel of one axis, and their integer weights, 2048 in all.

    Beyond the first and last pixel centre both indices are clamped to the edge. Columns give all weight to one of
    them there, rows (`keep_weight`) go on splitting it: no difference in the ideal value, but in its truncation.
    """
    position = ((np.arange(start, start + count) + 0.5) * _step(before, after) - 0.5).astype(np.float32)
    first = np.floor(position)
    t = position - first
    if not keep_weight:
        t[(first < 0) | (first >= before - 1)] = 0
    index = first.astype(np.int64)
    both = np.minimum(np.maximum(np.stack((index, index + 1)), 0), before - 1)
    return both, np.rint(_ONE * np.stack((1 - t, t))).astype(np.int32)


def _ends(before: int, after: int, at: int) -> tuple[int, int]:
    """Both source indices of one result pixel of one axis, as _bilinear gives them."""
    index = math.floor(np.float32((at + 0.5) * _step(before, after) - 0.5))
    return min(max(index, 0), before - 1), min(max(index + 1, 0), before - 1)


def _aligned(before: int, after: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both source indices (count,) of each result pixel of one axis, and the weight of the second, float32."""
    step = np.float32((before - 1) / (after - 1) if after > 1 else 0)
    position = np.arange(start, start + count, dtype=np.float32) * step
    index = np.minimum(position.astype(np.int64), before - 1)
    t = torch.from_numpy(position - index.astype(np.float32))
    return torch.from_numpy(index), torch.from_numpy(np.minimum(index + 1, before - 1)), t
