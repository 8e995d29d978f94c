"""Cross entropy from low-resolution logits equals the plain computation, value and gradient, in both normalisations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg import losses
from emaseg.losses import Reduction, cross_entropy


def plain(logits: torch.Tensor, labels: torch.Tensor, reduction: Reduction, align: bool) -> torch.Tensor:
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align)
    each = F.cross_entropy(full, labels, ignore_index=255, reduction="none")
    return each.sum() / ((labels != 255).sum() if reduction == "valid_pixels" else labels.numel())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 33),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 200, 1 << 24]),
)
def test_equals_the_plain_computation(
    batch: int, classes: int, grid: int, size: int, valid: bool, align: bool, chunk: int
) -> None:
    """Protects the lean computation: any shape, any number of images at once, some pixels ignored."""
    torch.manual_seed(batch + 10 * classes + 100 * grid + 1000 * size)
    labels = torch.randint(0, classes, (batch, size, size + 2))
    labels[torch.rand(labels.shape) < 0.3] = 255
    labels[0, 0, 0] = 0
    reduction: Reduction = "valid_pixels" if valid else "all_pixels"
    own = torch.randn(batch, classes, grid, grid + 1, dtype=torch.float64, requires_grad=True)
    other = own.detach().clone().requires_grad_()
    before, losses._CHUNK_VALUES = losses._CHUNK_VALUES, chunk
    try:
        value = cross_entropy(own, labels, reduction=reduction, align_corners=align)
    finally:
        losses._CHUNK_VALUES = before
    expected = plain(other, labels, reduction, align)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    (0.4 * value).backward()
    (0.4 * expected).backward()
    assert own.grad is not None
    assert other.grad is not None
    assert torch.allclose(own.grad, other.grad, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("reduction", ["valid_pixels", "all_pixels"])
def test_all_ignored_is_zero_not_nan(reduction: Reduction) -> None:
    """Protects a run from a crop without a single labelled pixel."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 8, 8), 255), reduction=reduction)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_no_gradient_is_computed_when_none_is_wanted() -> None:
    """Protects evaluation of a loss from paying for a backward pass."""
    assert not cross_entropy(
        torch.randn(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long), reduction="all_pixels"
    ).requires_grad
