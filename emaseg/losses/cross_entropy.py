"""Cross entropy at input resolution, computed from low-resolution logits.

Room: losses. Legend: B batch, K classes, h w logits grid, H W labels.

Full-size logits are the largest tensor of a training step: B x K x H x W values for the logits, again for their
log-softmax and again for the gradient, once for each head. The gradient with respect to the low-resolution logits is
linear in the loss's incoming gradient, so it is computed here together with the loss, a few images or a band of rows at
a time, and only (B, K, h, w) values are kept. The result is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F

from emaseg.distributed.collectives import mean_over_ranks, world_size
from emaseg.recipe.data import IGNORE

Reduction = Literal["valid_pixels", "all_pixels"]
# Full-size logits (b, K, H', W') of some pixels and their labels (b, H', W') -> the scalar sum of those pixels' losses.
OfPixels = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Ranks = Literal["by_count", "plain_mean"]

_CHUNK_VALUES = 1 << 24  # full-size logits of whole images held at once: 64 MB in float32
_BAND_VALUES = 1 << 21  # of a band of rows, of an image that is larger than that: 8 MB


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """Bilinear resize of (B, K, h, w) to (B, K, H, W) without antialiasing, as every published head does it."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    reduction: Reduction,
    align_corners: bool = False,
    ranks: Ranks = "by_count",
) -> torch.Tensor:
    """Cross entropy of bilinearly upsampled logits. On several processes the mean of their losses is the loss.

    Args:
        logits: (B, K, h, w), any resolution.
        labels: (B, H, W) int64 class ids; 255 = ignore.
        reduction: "valid_pixels" divides the sum by the labelled pixels of the batch (sssegmentation; a batch
            without any gives 0 where the published code gives NaN), "all_pixels" by B*H*W (mmsegmentation, EMANet
            authors).
        align_corners: corner convention of the upsampling.
        ranks: as for `denominator`.

    Returns:
        Scalar loss, differentiable with respect to `logits`.
    """
    total = upsampled_sum(logits, labels, _cross_entropy_sum, align_corners)
    return total / denominator(labels, reduction, ranks)


def denominator(labels: torch.Tensor, reduction: Reduction, ranks: Ranks = "by_count") -> torch.Tensor:
    """What the sum over the pixels of (B, H, W) labels is divided by, as a scalar tensor above 0.

    Args:
        reduction: as for `cross_entropy`.
        ranks: "by_count" divides by the mean of all processes' labelled pixels, so that the mean of their losses is the
            loss of one batch; "plain_mean" (published) by this process's own, so that each process counts as much,
            however few of its pixels are labelled.
    """
    if reduction == "all_pixels":  # as many on every process
        return torch.full((), labels.numel(), device=labels.device)
    count = (labels != IGNORE).sum()
    if ranks == "plain_mean" or world_size() == 1:
        return count.clamp(min=1)
    return over_ranks(count.double(), ranks).clamp(min=1 / world_size())


def over_ranks(count: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """What a process divides the sum of its pixels by, of whose labels it counted `count`: as for `denominator`."""
    return count if ranks == "plain_mean" else mean_over_ranks(count)


def upsampled_sum(
    logits: torch.Tensor, labels: torch.Tensor, of_pixels: OfPixels, align_corners: bool = False
) -> torch.Tensor:
    """The sum over all pixels of a loss of upsampled logits, lean as described above.

    Args:
        logits, labels, align_corners: as for `cross_entropy`.
        of_pixels: the loss, a sum in which each pixel counts for itself.

    Returns:
        Scalar, differentiable with respect to `logits`.
    """
    total: torch.Tensor = _UpsampledSum.apply(logits, labels, align_corners, of_pixels)
    return total


def pixel_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    reduction: Literal["sum", "none"],
    weight: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """F.cross_entropy of logits (b, K, H', W') with 255 = ignore.

    PyTorch's kernel for maps repeats no bits on CUDA; where those are asked for, its kernel for lists is taken.
    """
    shape = labels.shape
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    entropy = F.cross_entropy(
        logits, labels, weight, ignore_index=IGNORE, reduction=reduction, label_smoothing=smoothing
    )
    return entropy.view(shape) if reduction == "none" else entropy


def _cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return pixel_entropy(logits, labels, reduction="sum")


class _UpsampledSum(torch.autograd.Function):
    """Sum of a loss over all pixels; keeps its gradient at the logits' own resolution."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, align_corners: bool, of_pixels: OfPixels
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if wanted else None
        total = logits.new_zeros(())
        for piece in pieces(logits, labels, align_corners):
            small = logits[piece.cells].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                loss = of_pixels(piece.upsample(small), labels[piece.pixels])
            if gradient is not None:
                gradient[piece.cells] += torch.autograd.grad(loss, small)[0]
            total += loss.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * incoming[0], None, None, None


# ----------------------------------------------------------------------------------------------------- pieces
@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole images of a batch, or a band of rows of one.

    pixels: where it is in the labels (B, H, W). cells: the part of the logits (B, K, h, w) that it is made from; bands
    share cells at their edges. upsample: from those cells to its full-size logits.
    """

    pixels: tuple[slice, ...]
    cells: tuple[slice, ...]
    upsample: Callable[[torch.Tensor], torch.Tensor]


def pieces(logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> Iterator[Piece]:
    """A batch in pieces that are small at full size.

    As many whole images as _CHUNK_VALUES holds, or where it holds none, bands of rows of one image after the other.
    """
    images, classes, cells, _ = logits.shape
    height, width = labels.shape[1:]
    some = _CHUNK_VALUES // (classes * height * width)
    if some:
        for first in range(0, images, some):
            here = (slice(first, first + some),)
            yield Piece(here, here, lambda x: resize(x, (height, width), align_corners))
        return
    rows = max(1, _BAND_VALUES // (classes * width))
    bands = []
    for row in range(0, height, rows):
        band = range(row, min(row + rows, height))
        source, weights = _band(band, height, cells, align_corners, logits)
        enlarge = partial(_enlarged, weights=weights, width=width, align_corners=align_corners)
        bands.append((slice(band.start, band.stop), source, enlarge))
    for image in range(images):
        this = slice(image, image + 1)
        for pixels, source, enlarge in bands:
            yield Piece((this, pixels), (this, slice(None), source), enlarge)


def _band(band: range, height: int, cells: int, align_corners: bool, like: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """The rows of the grid that a band of `height` pixel rows lies between, and their weights in each of its rows,
    (rows, rows of the grid) as `like`: bilinear interpolation along one axis. Nothing waits for the device.
    """
    scale = (cells - 1) / max(1, height - 1) if align_corners else cells / height
    shift = 0.0 if align_corners else 0.5 * scale - 0.5

    def position(row: int) -> float:
        return min(max(row * scale + shift, 0.0), cells - 1.0)

    start, stop = int(position(band[0])), min(int(position(band[-1])) + 2, cells)
    precise = torch.float32 if like.device.type == "mps" else torch.float64
    rows = torch.arange(band.start, band.stop, device=like.device, dtype=precise)
    distance = (rows * scale + shift).clamp_(0, cells - 1)[:, None] - torch.arange(
        start, stop, device=like.device, dtype=precise
    )
    return slice(start, stop), distance.abs_().neg_().add_(1).clamp_(min=0).to(like.dtype)


def _enlarged(x: torch.Tensor, *, weights: torch.Tensor, width: int, align_corners: bool) -> torch.Tensor:
    """(1, K, rows of the grid, w) -> (1, K, rows, W): sums of rows first, so that only `width` is left to interpolate.

    No matrix product, which train.tf32 would round.
    """
    rows = sum(x[:, :, i : i + 1] * weights[:, i, None] for i in range(x.shape[2]))
    return resize(torch.as_tensor(rows), (len(weights), width), align_corners)
