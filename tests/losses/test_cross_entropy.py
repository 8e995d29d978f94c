"""Cross entropy from low-resolution logits equals the plain computation, value and gradient, in both normalisations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.losses import cross_entropy as losses
from emaseg.losses.cross_entropy import Reduction, cross_entropy


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
    st.sampled_from([0, 200, 1 << 24]),
    st.sampled_from([1, 100, 1000]),
)
def test_equals_the_plain_computation(
    batch: int, classes: int, grid: int, size: int, valid: bool, align: bool, chunk: int, band: int
) -> None:
    """Protects the lean computation: any shape, images or bands of rows at once, some pixels ignored."""
    torch.manual_seed(batch + 10 * classes + 100 * grid + 1000 * size)
    labels = torch.randint(0, classes, (batch, size, size + 2))
    labels[torch.rand(labels.shape) < 0.3] = 255
    labels[0, 0, 0] = 0
    reduction: Reduction = "valid_pixels" if valid else "all_pixels"
    own = torch.randn(batch, classes, grid, grid + 1, dtype=torch.float64, requires_grad=True)
    other = own.detach().clone().requires_grad_()
    before = losses._CHUNK_VALUES, losses._BAND_VALUES
    losses._CHUNK_VALUES, losses._BAND_VALUES = chunk, band
    try:
        value = cross_entropy(own, labels, reduction=reduction, align_corners=align)
    finally:
        losses._CHUNK_VALUES, losses._BAND_VALUES = before
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


def test_whole_images_are_computed_as_ever() -> None:
    """Protects the results of earlier versions: where images fit in one piece, value and gradient keep their bits."""
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (3, 64, 64))
    own, other = (torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    value = cross_entropy(own, labels, reduction="all_pixels")
    full = F.interpolate(other, size=(64, 64), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, labels, ignore_index=255, reduction="sum") / labels.numel()
    assert torch.equal(value, expected)
    value.backward()
    F.cross_entropy(full, labels, ignore_index=255, reduction="sum").backward()
    assert own.grad is not None
    assert other.grad is not None
    assert torch.equal(own.grad, other.grad * (1 / torch.tensor(labels.numel())))


def test_a_large_image_is_never_whole() -> None:
    """Protects the memory: of 150 classes, no piece of a 256 x 512 image is larger than a band."""
    logits, labels = torch.zeros(1, 150, 32, 64), torch.zeros(1, 256, 512, dtype=torch.long)
    rows = 0
    for piece in losses.pieces(logits, labels, False):
        full = piece.upsample(logits[piece.cells])
        assert full.numel() <= losses._BAND_VALUES
        assert full.shape[2:] == labels[piece.pixels].shape[1:]
        rows += full.shape[2]
    assert rows == 256
