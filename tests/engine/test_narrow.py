"""Convolutions in 16 bits on images narrower than matrix units can take."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from emaseg.engine import prepare
from emaseg.engine.packed import NONE, RELU, PackedConv, WideConv, packed_conv, packing_works
from emaseg.models import build_model
from tests.exporting.made import settle
from tests.helpers import tiny
from tests.models.test_every_network import NETWORKS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not packing_works(torch.bfloat16), reason="PyTorch or the processor lacks the operators"),
]


def soil() -> None:
    """Large values in the memory that is handed out next: what is read without being written is no 0."""
    for count in (16, 256, 1024, 4096, 16384, 65536, 262144):
        blocks = [torch.full((count,), 1e30) for _ in range(6)]
        del blocks


def narrow(channels: int, height: int, width: int) -> Tensor:
    drawn = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    return drawn.bfloat16().contiguous(memory_format=torch.channels_last)


def close(own: Tensor, expected: Tensor) -> bool:
    """As near as 8 bits are, NaN excluded."""
    return own.shape == expected.shape and bool((own.float() - expected).abs().max() <= 0.05 * expected.abs().max())


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(16, 3, 2), (192, 3, 2), (3, 7, 2), (64, 3, 3), (64, 1, 2)])
@pytest.mark.parametrize("height", [1, 3, 9, 33])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7])
@torch.inference_mode()
def test_a_step_over_a_narrow_image_is_right(channels: int, kernel: int, stride: int, height: int, width: int) -> None:
    """Protects thin images from memory that nobody has written: packed, with a sum, and by torch's own convolution."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 24, kernel, stride, kernel // 2).bfloat16()
    x = narrow(channels, height, width)
    plain = copy.deepcopy(conv).float()(x.float())
    total = torch.randn(plain.shape).bfloat16().contiguous(memory_format=torch.channels_last)
    summed = torch.relu(plain + total.float())
    for own in (WideConv(conv), packed_conv(conv, NONE)):
        soil()
        assert close(own(x), plain)
    soil()
    assert close(packed_conv(conv, RELU)(x), plain.relu())
    soil()
    assert close(PackedConv(conv).add_relu(x, total), summed)
    assert close(total, summed)  # it is written over the sum


@pytest.mark.parametrize("name", ["emanet with a 7x7 stem", "memorynet of hrnet"])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "torch's own"])
def test_a_thin_image_is_right_in_bf16(name: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the whole road, soiled before each part: every convolution of a network that goes in steps takes an image of any width."""
    if not packs:
        monkeypatch.setattr("emaseg.engine.stages.packing_works", lambda dtype: False)
    torch.manual_seed(0)
    model = build_model(tiny(*NETWORKS[name])).eval()
    settle(model)
    image = torch.randn(1, 3, 120, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(image)
        engine = prepare(model, "bf16")
        for module in engine.modules():
            module.register_forward_pre_hook(lambda *_: soil())
        assert (engine(image) - expected).abs().max() < 0.2 * (expected.max() - expected.min())
