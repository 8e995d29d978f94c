"""Cross entropy at input resolution, computed from low-resolution logits.

Room: losses. Legend: B batch, K classes, h w logits grid, H W labels.

Full-size logits are the largest tensor of a training step: B x K x H x W values for the logits, again for their
log-softmax and again for the gradient, once for each head. The gradient with respect to the low-resolution logits is
linear in the loss's incoming gradient, so it is computed here together with the loss, a few images at a time, and only
(B, K, h, w) values are kept. The result is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

from emaseg.distributed import mean_over_ranks, world_size
from emaseg.recipe.schema import IGNORE

Reduction = Literal["valid_pixels", "all_pixels"]
# Full-size logits (b, K, H', W') of some pixels and their labels (b, H', W') -> the scalar sum of those pixels' losses.
OfPixels = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Ranks = Literal["by_count", "plain_mean"]

_CHUNK_VALUES = 1 << 24  # full-size logits held at once: 64 MB in float32


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
        return torch.tensor(labels.numel(), device=labels.device)
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


def _cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


class _UpsampledSum(torch.autograd.Function):
    """Sum of a loss over all pixels; keeps its gradient at the logits' own resolution."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, align_corners: bool, of_pixels: OfPixels
    ) -> torch.Tensor:
        images, classes = logits.shape[:2]
        height, width = labels.shape[1:]
        chunk = max(1, _CHUNK_VALUES // (classes * height * width))
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        total = logits.new_zeros(())
        for first in range(0, images, chunk):
            some = slice(first, first + chunk)
            small = logits[some].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                full = resize(small, (height, width), align_corners)
                loss = of_pixels(full, labels[some])
            if gradient is not None:
                gradient[some] = torch.autograd.grad(loss, small)[0]
            total += loss.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * incoming[0], None, None, None
