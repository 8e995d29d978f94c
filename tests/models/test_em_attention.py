"""EM attention alone: golden numbers, a case by hand, and the laws of the algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.models import em_attention
from emaseg.models.em_attention import EMAttention
from tests.parity import golden, worst


def fixture_attention(unit: dict[str, np.ndarray]) -> EMAttention:
    attention = EMAttention(16, 8)
    attention.bases.copy_(torch.from_numpy(unit["ema/bases_before"]))
    return attention


def test_unit_fixture() -> None:
    """Protects the published iteration and its moving average: two training passes, then evaluation."""
    unit = golden("ssseg/unit.npz")
    attention = fixture_attention(unit)
    x = torch.from_numpy(unit["ema/x"])
    for name, after in (("ema/recon_train", "ema/bases_after1"), ("ema/recon_train_second", "ema/bases_after2")):
        reconstruction, adapted = attention(x)
        attention.update(adapted)
        assert worst(reconstruction, unit[name]) < 1e-5
        assert np.abs(attention.bases.numpy() - unit[after]).max() < 1e-6
    before = attention.bases.clone()
    reconstruction, _ = attention.eval()(x)
    assert worst(reconstruction, unit["ema/recon_eval"]) < 1e-5
    assert torch.equal(attention.bases, before)


def test_by_hand() -> None:
    """One iteration on two pixels and two bases in two channels, done with numpy's exponentials.

    Protects the order softmax over bases -> L1 over pixels -> weighted mean -> L2 over channels, and that the
    reconstruction uses the responsibilities of the bases before their last update.
    """
    attention = EMAttention(2, 2, iterations=1)
    attention.bases.copy_(torch.eye(2)[None])
    x = np.array([[1.0, 0.0], [0.0, 2.0]])  # (C, N): pixel 0 = (1, 0), pixel 1 = (0, 2)
    scores = np.exp(x.T @ np.eye(2))
    z = scores / scores.sum(axis=1, keepdims=True)
    mu = x @ (z / z.sum(axis=0))
    mu = mu / np.linalg.norm(mu, axis=0)
    reconstruction, adapted = attention(torch.tensor(x, dtype=torch.float32)[None, :, :, None])
    assert np.allclose(adapted[0].numpy(), mu, atol=1e-6)
    assert np.allclose(reconstruction[0, :, :, 0].numpy(), mu @ z.T, atol=1e-6)


def test_no_gradient_and_per_image_bases() -> None:
    """Protects that nothing in the iteration is differentiated and that images adapt their own bases."""
    torch.manual_seed(0)
    attention = EMAttention(8, 4).eval()
    x = torch.randn(2, 8, 5, 6, requires_grad=True)
    reconstruction, adapted = attention(x)
    assert not reconstruction.requires_grad
    assert not adapted.requires_grad
    alone, _ = attention(x[1:])
    assert torch.allclose(reconstruction[1:], alone, atol=1e-6)


def test_authors_average_is_not_normalised() -> None:
    """Protects the option that tells the authors' moving average from the toolkits'."""
    torch.manual_seed(0)
    adapted = torch.randn(3, 8, 4)
    for normalise in (True, False):
        attention = EMAttention(8, 4, normalise_average=normalise)
        before = attention.bases.clone()
        attention.update(adapted)
        mean = adapted.mean(0, keepdim=True)
        mean = mean / mean.norm(dim=1, keepdim=True) if normalise else mean
        assert torch.allclose(attention.bases, 0.9 * before + 0.1 * mean, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_laws(batch: int, channels: int, bases: int, h: int, w: int, iterations: int) -> None:
    """Any shape: adapted bases have unit length, and shuffling the pixels shuffles the reconstruction."""
    torch.manual_seed(batch * 1000 + channels * 100 + bases * 10 + h)
    attention = EMAttention(channels, bases, iterations=iterations, iterations_eval=iterations).double().eval()
    x = torch.randn(batch, channels, h, w, dtype=torch.float64)
    reconstruction, adapted = attention(x)
    assert torch.allclose(adapted.norm(dim=1), torch.ones(batch, bases, dtype=torch.float64), atol=1e-9)
    order = torch.randperm(h * w)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    expected = reconstruction.flatten(2)[:, :, order].view_as(x)
    assert torch.allclose(attention(shuffled)[0], expected, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1e20])
def test_extreme_input_stays_finite(value: float) -> None:
    """Protects against a black or exploding image writing NaN into the bases."""
    attention = EMAttention(4, 3)
    reconstruction, adapted = attention(torch.full((1, 4, 3, 3), value))
    attention.update(adapted)
    assert torch.isfinite(reconstruction).all()
    assert torch.isfinite(attention.bases).all()


def test_no_product_with_denormals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the speed where pixels are long: numbers below 1e-38 take some processors 30 times as long to multiply. What
    comes out is what comes out with them."""
    torch.manual_seed(0)
    attention, x = EMAttention(16, 8).eval(), 60 * torch.randn(1, 16, 9, 9)
    flush = em_attention._without_denormals
    seen: list[torch.Tensor] = []
    tiny = torch.finfo(torch.float32).tiny

    def watched(values: torch.Tensor) -> torch.Tensor:
        seen.append(((values > 0) & (values < tiny)).any())
        return flush(values)

    monkeypatch.setattr(em_attention, "_without_denormals", watched)
    own = attention(x)
    assert any(seen)
    assert flush(torch.tensor([0.0, tiny / 2, 2 * tiny, 1.0])).tolist() == [0.0, 0.0, 2 * tiny, 1.0]
    monkeypatch.setattr(em_attention, "_without_denormals", lambda values: values)
    for mine, plain in zip(own, attention(x), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)
