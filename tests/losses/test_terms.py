"""Every option of the loss equals a slow computation pixel by pixel, value and gradient, and is the plain loss where it does nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.losses import cross_entropy as losses
from emaseg.losses.cross_entropy import cross_entropy
from emaseg.losses.terms import hard_pixels, head_loss
from emaseg.recipe.training import Loss

OFF = Loss(ohem_min_kept=1)
WEIGHTS = (0.5, 2.0, 0.0, 7.5)
OPTIONS = {
    "weights": replace(OFF, class_weights=WEIGHTS),
    "smoothing": replace(OFF, label_smoothing=0.2),
    "smoothing and weights": replace(OFF, label_smoothing=0.2, class_weights=WEIGHTS),
    "focal": replace(OFF, focal_gamma=2.0),
    "focal and weights": replace(OFF, focal_gamma=0.5, class_weights=WEIGHTS),
    "dice": replace(OFF, dice_weight=0.7),
    "hard pixels": replace(OFF, ohem_threshold=0.3, ohem_min_kept=5),
    "the few hardest": replace(OFF, ohem_threshold=1e-6, ohem_min_kept=9),
    "everything": replace(
        OFF, class_weights=WEIGHTS, focal_gamma=1.5, dice_weight=0.5, ohem_threshold=0.4, ohem_min_kept=3
    ),
}


def slow(logits: torch.Tensor, labels: torch.Tensor, loss: Loss, align: bool) -> torch.Tensor:
    """The definitions, a pixel at a time, on the whole full-size probabilities."""
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align).softmax(1)
    classes = full.shape[1]
    weights = loss.class_weights or (1.0,) * classes
    places = torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist()
    pixels = [(full[b, :, y, x], int(labels[b, y, x])) for b, y, x in places if labels[b, y, x] != 255]
    kept = pixels
    if loss.ohem_threshold < 1:
        own = [p[c].item() for p, c in pixels]
        hardest = sorted(own)[: loss.ohem_min_kept * len(labels)][-1]
        kept = [pixel for pixel, p in zip(pixels, own, strict=True) if p < loss.ohem_threshold or p <= hardest]
    total, count = logits.new_zeros(()), 0.0
    for p, c in kept:
        target = [loss.label_smoothing / classes] * classes
        target[c] += 1 - loss.label_smoothing
        entropy = sum(-target[k] * weights[k] * p[k].log() for k in range(classes))
        total = total + (1 - p[c]) ** loss.focal_gamma * entropy
        count += weights[c]
    value = total / (labels.numel() if loss.reduction == "all_pixels" else count or 1.0)
    if loss.dice_weight:
        present = sorted({c for _, c in pixels})
        terms = []
        for k in present:
            inside = sum(p[k] for p, c in pixels if c == k)
            terms.append(1 - 2 * inside / (sum(p[k] for p, _ in pixels) + sum(c == k for _, c in pixels)))
        value = value + loss.dice_weight * sum(terms) / len(present)
    return value


@pytest.mark.parametrize(("chunk", "band"), [(0, 1), (0, 60), (1 << 24, 1)], ids=["rows", "bands", "whole"])
@pytest.mark.parametrize("reduction", ["valid_pixels", "all_pixels"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_definition_pixel_by_pixel(
    name: str, reduction: losses.Reduction, chunk: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects every option, alone and together: the value and the gradient, in one piece or in many."""
    monkeypatch.setattr(losses, "_CHUNK_VALUES", chunk)
    monkeypatch.setattr(losses, "_BAND_VALUES", band)
    torch.manual_seed(len(name))
    loss = replace(OPTIONS[name], reduction=reduction)
    labels = torch.randint(0, 4, (2, 5, 7))
    labels[torch.rand(labels.shape) < 0.3] = 255
    labels[labels == 3] = 1  # a class that is in no label
    labels[0, 0, 0] = 0
    own = (2 * torch.randn(2, 4, 3, 3, dtype=torch.float64)).requires_grad_()
    other = own.detach().clone().requires_grad_()
    value, expected = head_loss(own, labels, loss).value, slow(other, labels, loss, align=False)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    (0.4 * value).backward()
    (0.4 * expected).backward()
    assert torch.allclose(_gradient(own), _gradient(other), rtol=1e-8, atol=1e-14)


def _gradient(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 5), st.integers(1, 20), st.booleans(), st.booleans())
def test_what_does_nothing_is_the_plain_loss(
    batch: int, classes: int, grid: int, size: int, valid: bool, align: bool
) -> None:
    """Protects the laws: weights of 1, no smoothing, gamma 0, a threshold of 1; to the last bits of the sums."""
    torch.manual_seed(batch + 10 * classes + 100 * grid + 1000 * size)
    labels = torch.randint(0, classes, (batch, size, size + 1))
    labels[torch.rand(labels.shape) < 0.3] = 255
    logits = torch.randn(batch, classes, grid, grid, dtype=torch.float64)
    reduction: losses.Reduction = "valid_pixels" if valid else "all_pixels"
    plain = cross_entropy(logits, labels, reduction=reduction, align_corners=align)
    off = Loss(reduction=reduction)
    assert head_loss(logits, labels, off, align_corners=align).value == plain
    for loss in (
        replace(off, class_weights=(1.0,) * classes),
        replace(off, focal_gamma=1e-14),
        replace(off, label_smoothing=1e-14),
        replace(off, dice_weight=1e-14),
        replace(off, ohem_threshold=1e-9, ohem_min_kept=labels.numel()),
    ):
        assert head_loss(logits, labels, loss, align_corners=align).value.item() == pytest.approx(
            plain.item(), rel=1e-9
        )


PERFECT: dict[str, Callable[[Loss], Loss]] = {
    "plain": lambda loss: loss,
    "weights": lambda loss: replace(loss, class_weights=(1.0, 5.0)),
    "focal": lambda loss: replace(loss, focal_gamma=0.5),
    "dice": lambda loss: replace(loss, dice_weight=1.0),
    "hard pixels": lambda loss: replace(loss, ohem_threshold=0.5, ohem_min_kept=1),
}


@pytest.mark.parametrize("name", PERFECT)
@pytest.mark.parametrize("ignored", [False, True])
def test_nothing_left_to_learn_is_zero_not_nan(name: str, ignored: bool) -> None:
    """Protects a run from a perfect prediction, whose logarithms and powers are at their ends, and from empty labels."""
    labels = torch.full((1, 4, 4), 255) if ignored else torch.tensor([[[0, 1] * 2] * 4])
    target = torch.where(labels == 255, 0, labels)
    logits = (200 * (F.one_hot(target, 2).movedim(-1, 1).float() - 0.5)).requires_grad_()
    value = head_loss(logits, labels, PERFECT[name](Loss())).value
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(_gradient(logits)).all()


def test_dice_grows_less_with_the_easy_pixels_than_the_cross_entropy() -> None:
    """Protects the reason for it: of a class on 1 % of the pixels, missing it all costs half of the Dice loss."""
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 10)
    logits[:, 0] = 20.0
    plain, dice = (head_loss(logits, labels, Loss(dice_weight=weight)).value.item() for weight in (0.0, 1.0))
    assert plain == pytest.approx(0.2, abs=1e-3)
    assert dice - plain == pytest.approx(0.5 * (1 + 1 - 2 * 99 / (100 + 99)), abs=1e-3)


def test_the_hardest_are_kept_and_counted() -> None:
    """Protects mining: the pixels below the threshold, at least so many, and their share for the warning."""
    truth = torch.linspace(0.05, 0.95, 16).reshape(1, 4, 4)
    logits = torch.stack([truth.log(), (1 - truth).log()], dim=1)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 3, 3] = 255
    for threshold, least, expected in ((0.5, 1, 8), (0.05, 3, 3), (0.05, 16, 15)):
        loss = Loss(ohem_threshold=threshold, ohem_min_kept=least)
        kept = hard_pixels(logits, labels, loss) != 255
        assert int(kept.sum()) == expected
        assert truth[kept].max() < truth[~kept & (labels != 255)].min() if expected < 15 else True
        share = head_loss(logits, labels, loss).kept_share
        assert share is not None
        assert math.isclose(share.item(), expected / 15, rel_tol=1e-6)
