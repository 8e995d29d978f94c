"""What every backbone promises, tried on small ones of each family."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emaseg.checkpoint import load_backbone
from emaseg.errors import WeightsError
from emaseg.models.backbones import FeatureExtractor, HRNet, ResNeSt, ResNet, ViT, build_backbone
from emaseg.models.layers import Norm
from emaseg.recipe.backbones import Backbone, HRNetBackbone, ResNeStBackbone, ResNetBackbone, ViTBackbone

SMALL = {
    "resnet": lambda: ResNet((1, 1, 1, 1), output_stride=16, width=4, norm=Norm()),
    "resnest": lambda: ResNeSt((1, 2, 1, 1), output_stride=8, stem_channels=(4, 4, 8), width=4, norm=Norm()),
    "hrnet": lambda: HRNet(stem_relu=True, width=2, modules=(1, 1, 1), blocks=1, norm=Norm()),
    "vit": lambda: ViT(image_size=(64, 64), taps=(0, 2), width=16, depth=3, heads=2, hidden=32),
}
# grids of the returned maps: input pixels for one cell
STRIDES = {"resnet": (4, 8, 16, 16), "resnest": (4, 8, 8, 8), "hrnet": (4,), "vit": (16, 16)}
BATCH_NORMED = ("resnet", "resnest", "hrnet")


def small(kind: str) -> FeatureExtractor:
    torch.manual_seed(0)
    return SMALL[kind]()


@pytest.mark.parametrize("kind", SMALL)
def test_shapes_at_any_size(kind: str) -> None:
    """Protects heads: channels and grids are the announced ones, also where no side is a multiple of anything."""
    network = small(kind).eval()
    assert network.output_stride == STRIDES[kind][-1]

    @settings(max_examples=12, deadline=None)
    @given(height=st.integers(1, 100), width=st.integers(1, 100))
    def shapes(height: int, width: int) -> None:
        with torch.inference_mode():
            maps = network(torch.zeros(1, 3, height, width))
        wanted = [(1, c, -(-height // s), -(-width // s)) for c, s in zip(network.channels, STRIDES[kind], strict=True)]
        assert [tuple(x.shape) for x in maps] == wanted

    shapes()


@pytest.mark.parametrize("kind", SMALL)
def test_the_last_map_alone(kind: str) -> None:
    """Protects inference: the one map that is asked for is the last of all."""
    network, images = small(kind).eval(), torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        (last,) = network(images, only_last=True)
        assert torch.equal(last, network(images)[-1])


@pytest.mark.parametrize("only_last", [True, False])
def test_earlier_maps_are_freed_on_the_way(only_last: bool) -> None:
    """Protects the peak of memory in inference: a stage's map is gone when the next stages compute, unless it is returned."""
    network = small("resnet").eval()
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    network.get_submodule("layer1.0").register_forward_hook(lambda m, x, y: made.append(weakref.ref(y)))
    network.get_submodule("layer4.0").register_forward_pre_hook(lambda m, x: alive.append(made[0]() is not None))
    with torch.inference_mode():
        network(torch.randn(1, 3, 40, 56), only_last=only_last)
    assert alive == [not only_last]


@pytest.mark.parametrize("kind", BATCH_NORMED)
@pytest.mark.parametrize("shape", [(2, 33, 70), (1, 64, 64), (3, 129, 97)])
def test_norm_values_are_counted_right(kind: str, shape: tuple[int, int, int]) -> None:
    """Protects the check before training: the fewest values of a batch norm are those that its norms really see."""
    network = small(kind).train()
    seen: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().register_forward_hook(lambda m, x, y: seen.append(y.numel() // y.shape[1]))
    batch, height, width = shape
    network(torch.randn(batch, 3, height, width))
    assert network.norm_values(batch, height, width) == min(seen)


def test_vit_needs_no_batch() -> None:
    """Protects ViT training with one image: it has no norm over the batch, so the check must not refuse it."""
    network = small("vit")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert network.norm_values(1, 64, 64) == 16


@pytest.mark.parametrize(
    ("backbone", "channels", "stride"),
    [
        (ResNetBackbone(kind="resnet50", output_stride=16, weights="none"), (256, 512, 1024, 2048), 16),
        (ResNeStBackbone(kind="resnest101", output_stride=8, weights="none"), (256, 512, 1024, 2048), 8),
        (HRNetBackbone(kind="hrnetv2_w48", weights="none"), (720,), 4),
        (ViTBackbone(kind="vit_large_p16_384", weights="none"), (1024,) * 4, 16),
    ],
)
def test_built_from_a_recipe(backbone: Backbone, channels: tuple[int, ...], stride: int) -> None:
    """Protects the recipe's words: each kind is the published network, and the meta device holds no memory."""
    with torch.device("meta"):
        network = build_backbone(backbone, Norm(momentum=0.25, epsilon=1e-3))
    assert (network.channels, network.output_stride) == (channels, stride)
    assert all(value.is_meta for value in network.state_dict().values())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} <= {(0.25, 1e-3)}


def test_weights_from_before_the_batch_counters(tmp_path: Path) -> None:
    """Protects the start from the oldest public ResNet files: only the norms' counters may be missing from them."""
    source = small("resnet").state_dict()
    old = {key: value + 1 for key, value in source.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    network = small("resnet")
    load_backbone(network, tmp_path / "old.pth")
    assert all(torch.equal(value, old.get(key, torch.tensor(0))) for key, value in network.state_dict().items())
    del old["layer1.0.bn1.running_mean"]
    torch.save(old, tmp_path / "damaged.pth")
    with pytest.raises(WeightsError, match=r"not in the file: layer1\.0\.bn1\.running_mean"):
        load_backbone(network, tmp_path / "damaged.pth")
