"""The loss of one head as [loss] has it: cross entropy with what helps thin and rare classes.

Room: losses. Legend: B batch, K classes, h w logits grid, H W labels.

Everything is computed on logits at the labels' resolution and as lean as cross_entropy.py: no tensor of B x K x H x W values
is kept. What depends on all pixels at once (which of them are hard, the sums of the Dice loss) goes over them twice.
Sums and counts are formed first and divided last, so that several processes can add theirs up in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from emaseg.distributed.collectives import differentiable_sum
from emaseg.losses.cross_entropy import (
    OfPixels,
    cross_entropy,
    denominator,
    over_ranks,
    pieces,
    pixel_entropy,
    upsampled_sum,
)
from emaseg.recipe.data import IGNORE
from emaseg.recipe.training import Loss

_FEW_KEPT = 0.01  # of the labelled pixels: below this the gradient is that of a few outliers
_SMALLEST = 1e-12  # of 1 - p: a power of 0 has no gradient


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """The loss of a head. kept_share: of the labelled pixels, those that hard-example mining keeps; None without it."""

    value: torch.Tensor
    kept_share: torch.Tensor | None = None


def head_loss(logits: torch.Tensor, labels: torch.Tensor, loss: Loss, *, align_corners: bool = False) -> HeadLoss:
    """The loss of a head's logits: cross entropy (or focal loss), plus loss.dice_weight times the Dice loss.

    With loss.reduction = "valid_pixels" the sum over the pixels is divided by the sum of their labels' class weights
    (torch, sssegmentation), and so by their number where all weights are 1; with "all_pixels" by B*H*W whatever the
    weights are (mmsegmentation). Pixels that mining drops are not counted by the first, but by the second.
    On several processes the mean of their losses is the loss; loss.ranks says what each divides by. Each mines its own
    images.

    Args:
        logits: (B, K, h, w), any resolution.
        labels: (B, H, W) int64 class ids; 255 = ignore.
        loss: the recipe's section.
        align_corners: corner convention of the upsampling.

    Returns:
        A scalar, differentiable with respect to `logits`.
    """
    kept = labels if loss.ohem_threshold == 1 else hard_pixels(logits, labels, loss, align_corners)
    share = None if kept is labels else (kept != IGNORE).sum() / (labels != IGNORE).sum().clamp(min=1)
    if loss.class_weights or loss.label_smoothing or loss.focal_gamma:
        weights = _weights(loss, logits)
        total = upsampled_sum(logits, kept, _of_pixels(loss, weights), align_corners)
        value = total / _denominator(kept, loss, weights)
    else:
        value = cross_entropy(logits, kept, reduction=loss.reduction, align_corners=align_corners, ranks=loss.ranks)
    if loss.dice_weight:
        sums: torch.Tensor = _DiceSums.apply(logits, labels, align_corners)
        if loss.ranks == "by_count":
            sums = differentiable_sum(sums)
        value = value + loss.dice_weight * dice_loss(sums)
    return HeadLoss(value, share)


# -------------------------------------------------------------------------------------------- cross entropy, focal
def _weights(loss: Loss, logits: torch.Tensor) -> torch.Tensor | None:
    """(K,) class weights on the logits' device; None where all are 1."""
    if not loss.class_weights:
        return None
    return torch.tensor(loss.class_weights, dtype=logits.dtype).to(logits.device, non_blocking=True)


def _denominator(labels: torch.Tensor, loss: Loss, weights: torch.Tensor | None) -> torch.Tensor | int:
    if loss.reduction == "all_pixels":
        return labels.numel()
    if weights is None:
        return denominator(labels, loss.reduction, loss.ranks)
    table = F.pad(weights, (0, IGNORE + 1 - len(weights)))  # an ignored pixel weighs 0
    count = over_ranks(table[labels].sum(), loss.ranks)
    return torch.where(count > 0, count, 1.0)


def pixel_weights(parts: Sequence[torch.Tensor], loss: Loss) -> torch.Tensor:
    """What the pixels of each part of a batch weigh together: `head_loss` divides by it, where mining keeps them all.

    On several processes with loss.ranks = "by_count" the weights are those of all processes' parts, in one message.

    Args:
        parts: the labels (b, H, W) of each.

    Returns:
        (P,) float64; float32 on a device that lacks it. 0 for a part without labelled pixels.
    """
    device = parts[0].device
    precise = torch.float32 if device.type == "mps" else torch.float64
    if loss.reduction == "all_pixels":
        return torch.tensor([part.numel() for part in parts], dtype=precise, device=device)
    if loss.class_weights:
        table = F.pad(torch.tensor(loss.class_weights, dtype=precise), (0, IGNORE + 1 - len(loss.class_weights)))
        table = table.to(device)
        weights = torch.stack([table[part].sum() for part in parts])
    else:
        weights = torch.stack([(part != IGNORE).sum() for part in parts]).to(precise)
    return over_ranks(weights, loss.ranks)


def _of_pixels(loss: Loss, weights: torch.Tensor | None) -> OfPixels:
    if loss.focal_gamma:
        return partial(_focal_sum, weights=weights, gamma=loss.focal_gamma)
    return partial(_cross_entropy_sum, weights=weights, smoothing=loss.label_smoothing)


def _cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, *, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    return pixel_entropy(logits, labels, reduction="sum", weight=weights, smoothing=smoothing)


def _focal_sum(
    logits: torch.Tensor, labels: torch.Tensor, *, weights: torch.Tensor | None, gamma: float
) -> torch.Tensor:
    """Sum of w_y (1 - p_y)^gamma (-log p_y) over the labelled pixels (Lin et al., ICCV 2017, equation 5)."""
    entropy = pixel_entropy(logits, labels, reduction="none")
    factor = (-torch.expm1(-entropy)).clamp(min=_SMALLEST) ** gamma
    if weights is not None:
        factor = factor * F.pad(weights, (0, IGNORE + 1 - len(weights)))[labels]
    total: torch.Tensor = (factor * entropy).sum()
    return total


# ------------------------------------------------------------------------------------------------- hard pixels
@torch.no_grad()
def hard_pixels(logits: torch.Tensor, labels: torch.Tensor, loss: Loss, align_corners: bool = False) -> torch.Tensor:
    """The labels with 255 in place of those that are predicted well: online hard-example mining.

    Kept are the pixels whose class has a probability below loss.ohem_threshold, and in any case the loss.ohem_min_kept
    * B hardest of the batch (mmsegmentation's OHEMPixelSampler, whose rule is the same but for ties).

    Returns:
        (B, H, W) int64.
    """
    valid = labels != IGNORE
    truth = torch.full(labels.shape, torch.inf, dtype=logits.dtype, device=logits.device)
    for piece in pieces(logits, labels, align_corners):
        full = piece.upsample(logits[piece.cells])
        entropy = pixel_entropy(full, labels[piece.pixels], reduction="none")
        truth[piece.pixels] = (-entropy).exp()
    truth[~valid] = torch.inf
    least = min(loss.ohem_min_kept * len(labels), labels.numel())
    kth = _kth_smallest(truth.flatten(), least)
    kept = (truth < loss.ohem_threshold) | (truth <= kth)
    return torch.where(valid & kept, labels, IGNORE)


def _kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th smallest. On CUDA `kthvalue` is refused where only what repeats to the bit is allowed: its indices, which
    nobody needs here, do not."""
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.sort().values[k - 1]
    return values.kthvalue(k).values


def few_kept(share: torch.Tensor | None) -> str:
    """A warning where mining leaves next to nothing to learn from, else "". share: as HeadLoss has it."""
    if share is None or float(share) >= _FEW_KEPT:
        return ""
    return f"OHEM keeps {float(share):.2%} of the labelled pixels: too few to learn from; raise loss.ohem_min_kept"


# -------------------------------------------------------------------------------------------------------- Dice
def dice_loss(sums: torch.Tensor) -> torch.Tensor:
    """1 - the mean of 2 I / (P + G) over the classes that the labels hold; 0 where they hold none.

    The soft Dice loss (Milletari et al., 3DV 2016, with sums instead of sums of squares) over a whole batch. A class
    that is in no label is left to the cross entropy.

    Args:
        sums: (3, K) over labelled pixels: I probability of a class on its own pixels, P its probability on all, G its
            pixels. Of several processes: added up.

    Returns:
        Scalar.
    """
    own, predicted, truth = sums
    present = truth > 0
    ratio = 2 * own / torch.where(present, predicted + truth, 1.0)
    loss: torch.Tensor = torch.where(present, 1 - ratio, 0.0).sum() / present.sum().clamp(min=1)
    return loss


def _dice_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(3, K) as `dice_loss` takes them, of full-size logits."""
    classes = logits.shape[1]
    valid = labels != IGNORE
    probabilities = logits.softmax(1) * valid[:, None]
    index = torch.where(valid, labels, 0)
    own = probabilities.gather(1, index[:, None])[:, 0].flatten()
    flat = index.flatten()
    zeros = logits.new_zeros(classes)
    return torch.stack(
        [
            zeros.index_add(0, flat, own),
            probabilities.sum((0, 2, 3)),
            zeros.index_add(0, flat, valid.flatten().to(logits.dtype)),
        ]
    )


class _DiceSums(torch.autograd.Function):
    """`_dice_sums` of upsampled logits; the backward pass computes them again instead of keeping anything full-size."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.align_corners = align_corners
        sums = logits.new_zeros(3, logits.shape[1])
        for piece in pieces(logits, labels, align_corners):
            sums += _dice_sums(piece.upsample(logits[piece.cells]), labels[piece.pixels])
        return sums

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for piece in pieces(logits, labels, ctx.align_corners):
            with torch.enable_grad():
                small = logits[piece.cells].detach().requires_grad_()
                sums = _dice_sums(piece.upsample(small), labels[piece.pixels])
                gradient[piece.cells] += torch.autograd.grad(sums, small, incoming[0])[0]
        return gradient, None, None
