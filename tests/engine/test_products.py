"""Products run on the library that is quicker on this processor, and mean the same on either."""

from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F

from emaseg.engine.packed import GELU, NONE, RELU, Activation, PackedLinear, packed_weight, packing_works, product


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors may lack the operators")
def test_packing_is_not_given_up_here() -> None:
    """Protects the engine's speed: where a trial fails the network runs on torch's operators, and nothing else shows it."""
    assert packing_works(torch.float32)


@pytest.mark.skipif(not packing_works(torch.float32), reason="PyTorch or the processor lacks the operators")
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("activation", [NONE, RELU, GELU])
def test_products_by_either_library(capability: str, activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects layers and Winograd's sums: MKL's products and oneDNN's are those of torch, with and without a sum."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 7, 32), (48, 32), (48,)))
    total = torch.randn(7, 48, generator=generator)
    after = {"none": lambda y: y, "relu": torch.relu, "gelu": F.gelu}[activation[0]]
    with torch.inference_mode():
        own = PackedLinear(weight, bias, activation)(x)
        expected, summed = x[0] @ weight.t(), total + x[0] @ weight.t()
        torch.testing.assert_close(own, after(F.linear(x, weight, bias)), rtol=1e-4, atol=1e-4)
        packed = packed_weight(weight)
        torch.testing.assert_close(product(x[0], packed), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(product(x[0], packed, total), summed, rtol=1e-4, atol=1e-4)
