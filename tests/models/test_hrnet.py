"""Our HRNetV2p-W48 is the published sssegmentation one, number for number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from emaseg.checkpoint import load_backbone
from emaseg.errors import WeightsError
from emaseg.models.backbones.hrnet import HRNet
from emaseg.models.layers import Norm
from tests.parity import backbone_keys, check_features, filled_backbone, images

PUBLISHED = "ssseg/memorynet_hr48_cocostuff10k_norelu"


def published() -> HRNet:
    with torch.device("meta"):
        return HRNet(stem_relu=False, norm=Norm())


def small(*, stem_relu: bool = True) -> HRNet:
    torch.manual_seed(0)
    return HRNet(stem_relu=stem_relu, width=2, modules=(1, 1, 1), blocks=1, norm=Norm())


def test_names_and_shapes_are_the_published_ones() -> None:
    """Protects released weights: every entry has its place, one to one."""
    own = {key: tuple(value.shape) for key, value in published().state_dict().items()}
    assert own == {key: shape for key, (_, shape, _) in backbone_keys(PUBLISHED).items()}


def test_features() -> None:
    """Protects stages, exchanges and both resizes: all branch grids (33x41 to 5x6) are no halves of each other."""
    network = filled_backbone(PUBLISHED, published())
    with torch.inference_mode():
        check_features(PUBLISHED, network(images((1, 3, 129, 161), 0)))


def test_stem_relu() -> None:
    """Protects the option: a ReLU behind the first norm and nothing else."""
    without, with_relu = small(stem_relu=False).eval(), small().eval()
    x = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        plain, wanted = without(x)[0], with_relu(x)[0]
        without.bn1 = nn.Sequential(without.bn1, nn.ReLU())  # type: ignore[assignment]
        assert not torch.allclose(plain, wanted)
        assert torch.equal(without(x)[0], wanted)


def test_imagenet_file(tmp_path: Path) -> None:
    """Protects the start from ImageNet: `conv1` stays, everything behind the branches is left out, the rest is not."""
    source = small().state_dict()
    behind = (
        "classifier.weight",
        "incre_modules.0.0.conv1.weight",
        "downsamp_modules.0.0.weight",
        "final_layer.0.bias",
    )
    torch.save({**source, **{key: torch.zeros(1) for key in behind}}, tmp_path / "good.pth")
    network = small(stem_relu=False)
    nn.init.zeros_(network.conv1.weight)
    load_backbone(network, tmp_path / "good.pth")
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items())
    torch.save({**source, "stage5.0.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"not in the network: stage5\.0\.weight"):
        load_backbone(network, tmp_path / "bad.pth")
