"""The network that is exported computes what the trained one does, and holds nothing more."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from emaseg.engine.slim import fold_norms, slim
from emaseg.exporting.network import InferenceNetwork
from emaseg.models.backbones import HRNet, ResNeSt, ViT
from emaseg.models.em_attention import EMAttention
from emaseg.models.layers import Norm
from emaseg.models.memory import ClassMemory
from tests.exporting.made import network, recipe, settle


def backbones() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "hrnet": HRNet(stem_relu=False, width=4, modules=(1, 1, 1), blocks=1, norm=Norm()),
        "resnest": ResNeSt((1, 1, 1, 1), output_stride=8, stem_channels=(8, 8, 16), width=8, norm=Norm()),
    }
    for module in made.values():
        settle(module)
    return made


@pytest.mark.parametrize("name", ["hrnet", "resnest", "emanet", "memorynet"])
def test_folding_leaves_no_norm_and_changes_no_value(name: str) -> None:
    """Protects the arithmetic, in float64 so that rounding hides nothing: every norm here follows a convolution."""
    model = (backbones()[name] if name in backbones() else network(recipe(name))).double().eval()
    images = torch.randn(2, 3, 65, 40, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert fold_norms(model) == norms > 0
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        after = model(images)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_norm_behind_something_else_is_left_alone() -> None:
    """Protects from folding into a convolution that the norm does not follow."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    assert fold_norms(model.eval()) == 1
    assert isinstance(model[2], nn.BatchNorm2d)


@pytest.mark.parametrize("kind", ["emanet", "memorynet"])
def test_training_only_parts_are_dropped(kind: str) -> None:
    """Protects the file's size and its licence to claim "inference only": no auxiliary head stays."""
    model = network(recipe(kind))
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        before = model(images)
        slim(model)
        assert not any("auxiliar" in name for name in model.state_dict())
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)


def test_layers_of_a_vit_behind_the_last_tap_are_dropped() -> None:
    """Protects the largest file from weights that never run."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = ViT(image_size=(32, 32), taps=(0, 1), width=16, depth=4, heads=2, hidden=32)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.backbone(images)[-1]

    model = Net().eval()
    slim(model)  # type: ignore[arg-type]
    assert {name.split(".")[2] for name in model.state_dict() if ".layers." in name} == {"0", "1"}


def test_pixels_in_and_labels_out_are_the_protocols() -> None:
    """Protects the ends that can go inside: the same normalisation and arg max as outside."""
    made = recipe("emanet")
    model = network(made)
    mean, std = made.backbone.mean, made.backbone.std
    whole = InferenceNetwork(copy.deepcopy(model), ("normalize", "argmax"), mean, std).eval()
    pixels = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        scores = nn.functional.interpolate(model(images), size=(50, 70), mode="bilinear", align_corners=False)
        labels = whole(pixels)
    assert labels.dtype == torch.uint8
    assert (labels == scores.argmax(1)).double().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["emanet", "memorynet", "hard"])
def test_what_sums_over_pixels_stays_in_float32(kind: str, dtype: torch.dtype) -> None:
    """Protects large images: a pixel's share of a base falls below what 16 bits hold, and a memory's rows are averages."""
    made = (
        recipe("emanet")
        if kind == "emanet"
        else recipe("memorynet", f"model.memory_hard={str(kind == 'hard').lower()}")
    )
    model = network(made)
    whole = InferenceNetwork(copy.deepcopy(model), (), (0.0,) * 3, (1.0,) * 3, dtype).eval()
    kept = [part for part in whole.modules() if isinstance(part, EMAttention | ClassMemory)]
    assert kept
    assert all(x.dtype == torch.float32 for part in kept for x in part.buffers() if x.is_floating_point())
    images = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, own = model(images), whole(images)
    assert (own - expected).abs().max() < 0.1 * (expected.max() - expected.min())


def test_an_image_of_many_pixels_is_the_same_in_fp16() -> None:
    """Protects what fp16 loses: of many equal pixels, each one's share of a base is below its smallest number."""
    attention = EMAttention(8, 4)
    torch.manual_seed(0)
    features = torch.rand(1, 8, 8, 8).repeat(1, 1, 32, 64).half()

    class Net(nn.Module):
        align_corners = False

        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            reconstruction: torch.Tensor = self.attention(images)[0]
            return reconstruction

    with torch.no_grad():
        expected = attention(features.float())[0]
        own = InferenceNetwork(Net(), (), (0.0,), (1.0,), torch.float16)(features)  # type: ignore[arg-type]
    assert (own - expected).abs().max() < 0.01 * expected.abs().max()
