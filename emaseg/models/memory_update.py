"""The update of MemoryNet's class memory from the features of one batch (Jin et al., MCIBI, ICCV 2021).

Paper: Jin et al., ICCV 2021, https://arxiv.org/abs/2108.11819.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models. Legend: B batch, C channels, h w feature grid, H W labels, K classes,
m memory row of a class, f feature of a pixel.

The published rule upsamples the features bilinearly to label size, (B, C, H, W), and loops over the classes present.
Each upsampled pixel is a weighted sum of four grid cells, f = sum_k w_k F[i_k], so the same numbers follow from the
grid, where no tensor is larger than max(K * h * w, H * W), one image at a time:
    dot products     f . m = sum_k w_k D[c, i_k] with D = m F, a (K, h * w) table: four look-ups per pixel
    squared lengths  |f|^2 from the inner products of neighbouring cells, four maps
    weighted sums    sum_p a_p f_p = A F, where A[c, i] collects a_p w_k of the pixels of class c: four additions per
                     pixel into a (K, h * w) table
Both products are dense over all classes, so shapes never depend on the labels and the host never waits for the device.
On CUDA the additions into A are atomic, in no fixed order; torch.use_deterministic_algorithms fixes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from emaseg.distributed.collectives import mean_over_ranks

Strategy = Literal["cosine_similarity", "mean"]
Ranks = Literal["by_count", "plain_mean"]

_EPSILON = 1e-8  # of F.cosine_similarity, which the published code calls: smallest length that divides
_LEAST_WEIGHT = 1e-24  # far below the rounding of 1 - cos, far above the smallest float32
_CHANNELS_AT_ONCE = 64  # products of neighbouring cells that stay in the cache


@torch.no_grad()
def updated_memory(
    memory: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    momentum: float,
    strategy: Strategy,
    ranks: Ranks,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory after one batch; the tensors passed in are left as they are.

    For every class with at least one labelled pixel, row = (1 - momentum) * row + momentum * new, where `new` is a mean
    of the class's upsampled pixels, weighted by 1 - cos(f, row) ("cosine_similarity") or plain ("mean"). A row that is
    exactly zero was never written and takes the plain mean itself. Other rows keep their values.

    Pixels parallel to the row weigh nothing. Where that holds for all pixels of a class the published weights are 0/0;
    `new` is then the plain mean, which is the limit wherever there is one (one pixel, or equal pixels).

    Args:
        memory: (K, C); fixes the precision of the computation, also under autocast.
        features: (B, C, h, w).
        labels: (B, H, W) uint8 or int64 class ids; 255 = ignore.
        momentum: weight of the new value, 0 to 1.
        strategy: weights of the pixels.
        ranks: several processes. "by_count": all processes' sums are added before the blend, as if their batches were
            one. "plain_mean" (published): each process updates a copy of its own, the stored memory is the mean of the
            copies; a class seen on r of R processes moves, or starts, at r/R of its size.

    Returns:
        (local, shared), both (K, C): what this step's backward pass and memory loss see, and what is stored. The same
        tensor on a single process and under "by_count".
    """
    with torch.autocast(memory.device.type, enabled=False):
        sums = _class_sums(memory, features, labels, weighted=strategy == "cosine_similarity")
    if ranks == "by_count":
        sums = mean_over_ranks(sums)  # the number of processes cancels in sum / weight
    local = _blend(memory, sums, momentum)
    return local, local if ranks == "by_count" else mean_over_ranks(local)


def _blend(memory: torch.Tensor, sums: torch.Tensor, momentum: float) -> torch.Tensor:
    """Blend (K, C + 1) sums, the last column their weights, into (K, C) memory."""
    weight = sums[:, -1:]
    present = weight > 0
    new = sums[:, :-1] / weight.where(present, 1)
    written = memory.any(dim=1, keepdim=True)
    step = memory.new_full(weight.shape, momentum).where(written, 1) * present
    return (1 - step) * memory + step * new


def _class_sums(memory: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, *, weighted: bool) -> torch.Tensor:
    """Per class: weighted sum of its upsampled pixels and, in the last column, of the weights; (K, C + 1).

    The cosine with a zero row is 0 and its pixels weigh 1, so the plain mean of an unwritten row needs no sum of its
    own.
    """
    classes, channels = memory.shape
    height, width = features.shape[2:]
    cells = height * width
    rows = _Axis.between(height, labels.shape[1], memory)
    columns = _Axis.between(width, labels.shape[2], memory)
    corner = rows.first[:, None] * width + columns.first  # upper left of the four cells, (H, W)
    unit = memory / torch.linalg.vector_norm(memory, dim=1, keepdim=True).clamp(min=_EPSILON)
    # One class more holds the ignored pixels. The tail is for the corners beyond the last cell: their weight is 0.
    dots = memory.new_zeros((classes + 1) * cells + width + 1)
    weights = torch.empty_like(dots)
    used = slice(0, classes * cells)
    sums = memory.new_zeros(classes, channels)
    totals = memory.new_zeros(classes)
    for image, label in zip(features, labels, strict=True):
        grid = image.to(memory.dtype)
        flat = grid.flatten(1)  # (C, h * w)
        at = label.clamp(max=classes).to(torch.int32).mul_(cells).add_(corner).flatten()
        if weighted:
            torch.mm(unit, flat, out=dots[used].view(classes, cells))
            pixel = _interpolate(dots, at, width, rows, columns)
            pixel.div_(_lengths(grid, rows, columns)).neg_().add_(1).clamp_(min=_LEAST_WEIGHT)
        else:
            pixel = memory.new_ones(label.shape)
        _scatter(pixel, weights.zero_(), at, width, rows, columns)
        table = weights[used].view(classes, cells)
        sums.addmm_(table, flat.t())
        totals += table.sum(dim=1)
    return torch.cat([sums, totals[:, None]], dim=1)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Bilinear interpolation along one axis, corners not aligned: pixel p lies between cells `first` and `first` + 1.

    At the last cell there is no next one, and `fraction` is 0.
    """

    first: torch.Tensor  # (pixels,) int32
    fraction: torch.Tensor  # (pixels,) weight of the cell after `first`
    squares: torch.Tensor  # (pixels, cells) squared weight of every cell
    products: torch.Tensor  # (pixels, cells - 1) product of the weights of a cell and the next, twice

    @classmethod
    def between(cls, cells: int, pixels: int, like: torch.Tensor) -> _Axis:
        """The axis from `cells` to `pixels`, on the device and in the precision of `like`."""
        # Distance of the centres from the first cell's, in 1 / (2 * pixels) of a cell: exact in integers.
        position = (2 * torch.arange(pixels, device=like.device) + 1).mul_(cells).sub_(pixels).clamp_(min=0)
        first = position // (2 * pixels)
        fraction = (position % (2 * pixels)).to(like.dtype).div_(2 * pixels).masked_fill_(first == cells - 1, 0)
        matrix = like.new_zeros(pixels, cells + 1)
        matrix.scatter_(1, first[:, None], (1 - fraction)[:, None]).scatter_(1, first[:, None] + 1, fraction[:, None])
        matrix = matrix[:, :cells]
        return cls(first.to(torch.int32), fraction, matrix.square(), 2 * matrix[:, :-1] * matrix[:, 1:])


def _interpolate(table: torch.Tensor, at: torch.Tensor, width: int, rows: _Axis, columns: _Axis) -> torch.Tensor:
    """Values of a flat table at the pixels (H, W), from the four cells whose first is `at`, (H * W,)."""
    size = (len(rows.fraction), len(columns.fraction))
    one, two, three, four = (table[offset:].index_select(0, at).view(size) for offset in (0, 1, width, width + 1))
    upper = torch.lerp(one, two, columns.fraction)
    lower = torch.lerp(three, four, columns.fraction)
    return torch.lerp(upper, lower, rows.fraction[:, None])


def _scatter(
    pixels: torch.Tensor, table: torch.Tensor, at: torch.Tensor, width: int, rows: _Axis, columns: _Axis
) -> None:
    """Transpose of `_interpolate`: add the pixels (H, W) to the table, each to its four cells."""
    lower = pixels * rows.fraction[:, None]
    for offset, row in ((0, pixels - lower), (width, lower)):
        right = row * columns.fraction
        table[offset:].index_add_(0, at, (row - right).flatten())
        table[offset + 1 :].index_add_(0, at, right.flatten())


def _lengths(grid: torch.Tensor, rows: _Axis, columns: _Axis) -> torch.Tensor:
    """Lengths of the upsampled pixels (H, W) of one image (C, h, w), never below `_EPSILON`.

    |f|^2 is a quadratic form in the weights: cells with themselves, with their right and their lower neighbour, and
    across both diagonals. Each is separable, a product of the map with one matrix per axis.
    """
    channels, height, width = grid.shape
    same = grid.new_zeros(height, width)
    right = grid.new_zeros(height, width - 1)
    below = grid.new_zeros(height - 1, width)
    across = grid.new_zeros(height - 1, width - 1)
    for first in range(0, channels, _CHANNELS_AT_ONCE):
        x = grid[first : first + _CHANNELS_AT_ONCE]
        same += x.square().sum(dim=0)
        right += (x[:, :, :-1] * x[:, :, 1:]).sum(dim=0)
        below += (x[:, :-1] * x[:, 1:]).sum(dim=0)
        across += (x[:, :-1, :-1] * x[:, 1:, 1:]).addcmul_(x[:, :-1, 1:], x[:, 1:, :-1]).sum(dim=0)
    squared = (rows.squares @ same + rows.products @ below) @ columns.squares.t()
    squared += (rows.squares @ right + 0.5 * rows.products @ across) @ columns.products.t()
    return squared.clamp_(min=_EPSILON**2).sqrt_()
