"""Our dilated ResNet is torchvision's, number for number; the stem and the multi-grid are the published ones."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from emaseg.models.backbones.resnet import BLOCKS, ResNet
from emaseg.models.layers import Norm

DILATE = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our keys (7x7 stem) as torchvision calls them."""
    return {k.replace("stem.0.", "conv1.").replace("stem.1.", "bn1."): v for k, v in state.items()}


def torchvision_empty(kind: str, stride: int) -> nn.Module:
    """On the meta device, for whoever brings the weights: random ones would take half of these tests' time."""
    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, kind)(
            weights=None, replace_stride_with_dilation=DILATE[stride]
        )
    return network.eval()


@cache
def start_weights(kind: str) -> dict[str, torch.Tensor]:
    """Random weights, which the stride does not change."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = ResNet(BLOCKS[kind], output_stride=32, stem_channels=(), norm=Norm()).state_dict()
    return state


@pytest.mark.parametrize(
    ("kind", "stride"),
    [*((kind, stride) for kind in ("resnet50", "resnet101", "resnet152") for stride in (8, 16)), ("resnet50", 32)],
)
def test_equals_torchvision(kind: str, stride: int) -> None:
    """Protects every stride, dilation and shortcut: all four stages agree exactly on an odd-sized image."""
    with torch.device("meta"):
        ours = ResNet(BLOCKS[kind], output_stride=stride, stem_channels=(), norm=Norm()).eval()
    theirs = torchvision_empty(kind, stride)
    ours.load_state_dict(start_weights(kind), assign=True)
    missing = theirs.load_state_dict(torchvision_names(start_weights(kind)), strict=False, assign=True)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    images = torch.randn(1, 3, 65, 81)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for i, stage in enumerate(ours(images)):
            x = getattr(theirs, f"layer{i + 1}")(x)
            assert torch.equal(stage, x), f"stage {i + 1} differs by {(stage - x).abs().max()}"


def test_deep_stem_replaces_the_7x7() -> None:
    """Protects v1c: the same network as torchvision's with its first convolution replaced by three."""
    torch.manual_seed(0)
    ours = ResNet(BLOCKS["resnet50"], output_stride=8, norm=Norm()).eval()
    theirs = torchvision_empty("resnet50", 8)
    theirs.conv1, theirs.bn1, theirs.relu = ours.stem, nn.Identity(), nn.Identity()
    body = {k: v for k, v in ours.state_dict().items() if not k.startswith("stem.")}
    theirs.load_state_dict(body, strict=False, assign=True)
    images = torch.randn(1, 3, 49, 65)
    with torch.inference_mode():
        x = theirs.layer2(theirs.layer1(theirs.maxpool(theirs.conv1(images))))
        x = theirs.layer4(theirs.layer3(x))
        assert torch.equal(ours(images)[3], x)


def test_dilations_of_the_last_stages() -> None:
    """Protects the contracted first block and the authors' multi-grid (2, 8, 16 at stride 8; 1, 4, 8 at 16)."""

    def dilations(stride: int, grid: tuple[int, ...]) -> list[int]:
        network = ResNet(BLOCKS["resnet50"], output_stride=stride, multi_grid=grid, norm=Norm(), width=4)
        return [block.conv2.dilation[0] for block in network.get_submodule("layer4")]

    assert dilations(8, ()) == [2, 4, 4]
    assert dilations(16, ()) == [1, 2, 2]
    assert dilations(8, (1, 2, 4)) == [2, 8, 16]
    assert dilations(16, (1, 2, 4)) == [1, 4, 8]


def test_start_values() -> None:
    """Protects the documented random start: Kaiming normal over outputs, norms 1 and 0."""
    torch.manual_seed(0)
    network = ResNet(BLOCKS["resnet50"], output_stride=8, norm=Norm())
    conv = network.get_submodule("layer3.1.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert all(
        (m.weight == 1).all() and (m.bias == 0).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )
