"""Our ResNeSt-101 is the published sssegmentation one, number for number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import load_backbone
from emaseg.models.backbones.resnest import ResNeSt, SplitAttention
from emaseg.models.backbones.resnet import BLOCKS
from emaseg.models.layers import Norm
from tests.parity import backbone_keys, check_features, filled_backbone, images

PUBLISHED = "ssseg/memorynet_s101d8_cityscapes"


def published() -> ResNeSt:
    with torch.device("meta"):
        return ResNeSt(BLOCKS["resnest101"], output_stride=8, norm=Norm())


def small() -> ResNeSt:
    return ResNeSt((1, 1, 1, 1), output_stride=8, stem_channels=(4, 4, 8), width=4, norm=Norm())


def test_names_and_shapes_are_the_published_ones() -> None:
    """Protects released weights: every entry has its place, one to one."""
    own = {key: tuple(value.shape) for key, value in published().state_dict().items()}
    assert own == {key: shape for key, (_, shape, _) in backbone_keys(PUBLISHED).items()}


def test_features() -> None:
    """Protects all four stages: splits, attention, pools and dilations, at sizes where no stride divides."""
    network = filled_backbone(PUBLISHED, published())
    with torch.inference_mode():
        check_features(PUBLISHED, network(images((1, 3, 129, 161), 0)))


def test_split_attention_chooses_between_the_splits() -> None:
    """Protects the order of the splits: weights that prefer split 0 return the first half of the channels."""
    torch.manual_seed(0)
    attention = SplitAttention(6, Norm()).eval()
    x = torch.randn(2, 6, 5, 7)
    with torch.inference_mode():
        attention.fc2.weight.zero_()
        splits = torch.relu(attention.bn0(attention.conv(x)))
        for preferred, half in ((0, splits[:, :6]), (1, splits[:, 6:])):
            attention.fc2.bias.fill_(-100.0)
            attention.fc2.bias[6 * preferred : 6 * preferred + 6] = 100.0
            torch.testing.assert_close(attention(x), half)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_strided_blocks_pool(stride: int) -> None:
    """Protects the two average pools: present where a block strides, absent in dilated stages."""
    network = ResNeSt((1, 2, 2, 2), output_stride=stride, stem_channels=(4, 4, 8), width=4, norm=Norm())
    pools = {name for name, module in network.named_modules() if isinstance(module, torch.nn.AvgPool2d)}
    strided = {8: (2,), 16: (2, 3), 32: (2, 3, 4)}[stride]
    assert pools == {f"layer{i}.0.{part}" for i in strided for part in ("pool", "downsample.0")}


@pytest.mark.parametrize("stem", ["stem", "conv1"])
def test_imagenet_file(tmp_path: Path, stem: str) -> None:
    """Protects the start from ImageNet, in the two namings of the stem; the classifier is left out."""
    source = small().state_dict()
    named = dict(source)
    if stem == "conv1":  # the ResNeSt authors' names: six layers of the stem in conv1, its last norm outside
        named = {k.replace("stem.7.", "bn1.") if k.startswith("stem.7.") else k: v for k, v in source.items()}
        named = {f"conv1.{k.removeprefix('stem.')}" if k.startswith("stem.") else k: v for k, v in named.items()}
    torch.save({"state_dict": {**named, "fc.weight": torch.zeros(10, 64)}}, tmp_path / "weights.pth")
    network = small()
    load_backbone(network, tmp_path / "weights.pth")
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items())
