"""Networks for any number of channels: what a recipe may declare, how each stem follows, and what start weights become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import load_backbone
from emaseg.errors import RecipeError, WeightsError
from emaseg.models.backbones import build_backbone
from emaseg.models.backbones.extractor import other_channels
from emaseg.models.layers import Norm
from emaseg.recipe import HRNetBackbone, ResNeStBackbone, ResNetBackbone, ViTBackbone, load_recipe, recipe_to_toml
from emaseg.recipe.backbones import Backbone
from emaseg.training.start_weights import load_start_weights
from tests.bands.made import channels, recipe_of
from tests.data.made import fails

BACKBONES: tuple[Backbone, ...] = (
    ResNetBackbone(kind="resnet50", output_stride=16, weights="none", in_channels=5),
    ResNetBackbone(kind="resnet14", output_stride=16, weights="none", in_channels=5, stem_channels=()),
    ResNeStBackbone(kind="resnest101", output_stride=8, weights="none", in_channels=5),
    HRNetBackbone(kind="hrnetv2_w48", weights="none", in_channels=5),
    ViTBackbone(kind="vit_large_p16_384", weights="none", in_channels=5),
)


def test_the_default_is_not_written() -> None:
    """Protects the shipped recipes and those in old checkpoints: RGB needs no word."""
    text = recipe_to_toml(load_recipe("voc_r50_d16"))
    assert "in_channels" not in text
    assert "range" not in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.in_channels=4"], ("backbone.mean", "3 values for in_channels = 4")),
        ([*channels(4), "backbone.std=[1.0]"], ("backbone.std", "1 value for in_channels = 4")),
        (["backbone.mean=[1.0]"], ("backbone.mean", "1 value for in_channels = 3")),
        ([*channels(4), 'augment.photometric="bgr"'], ("augment.photometric", "8-bit RGB", "in_channels = 4")),
        ([*channels(1), "augment.jpeg=0.5"], ("augment.jpeg", "8-bit RGB")),
        (["data.range=[[0, 1000]]", 'augment.photometric="bgr"'], ("augment.photometric", "data.range")),
        ([*channels(4), "data.range=[[0, 1], [0, 1]]"], ("data.range", "2 pairs for in_channels = 4")),
        (["data.range=[[5, 5]]"], ("data.range", "[5, 5] is empty")),
        (["data.range=[[16777216, 16777217]]"], ("data.range", "too narrow: in floats of 32 bits")),
        (["data.range=[[0, 1e-45]]"], ("data.range", "too narrow: in floats of 32 bits")),
        (["backbone.in_channels=0"], ("backbone.in_channels", "1 to 64")),
        ([*channels(4), 'data={kind="shapes"}'], ("backbone.in_channels", "shapes are RGB")),
    ],
)
def test_contradictions_are_told(overrides: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    """Protects from a run that trains on something else than was meant."""
    with pytest.raises(RecipeError) as caught:
        recipe_of(tmp_path, *overrides)
    assert all(word in str(caught.value.message) for word in words)


def test_what_is_allowed(tmp_path: Path) -> None:
    """Protects users of one range for all channels and of one for each, and the way through a file."""
    for number, pairs in ((4, "[[0, 10000]]"), (2, "[[0, 1], [-1, 1]]"), (64, "[]")):
        recipe = recipe_of(tmp_path, *channels(number), f"data.range={pairs}")
        assert f"in_channels = {number}" in recipe_to_toml(recipe)
        assert len(recipe.backbone.pixel_stats.mean) == number


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda one: one.kind)
def test_every_stem_follows(backbone: Backbone) -> None:
    """Protects each kind of network: its first convolution reads the channels, and nothing else changes."""
    with torch.device("meta"):
        network = build_backbone(backbone, Norm())
        rgb = build_backbone(replace(backbone, in_channels=3), Norm()).state_dict()
    assert network.in_channels == 5
    other = {key for key, value in network.state_dict().items() if value.shape != rgb[key].shape}
    assert other == {network.first_weight}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_start_weights_keep_the_size_of_the_response(count: int) -> None:
    """Law: an image whose channels are equal gives what it gives as RGB, whatever their number."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    grey = torch.rand(1, 1, 9, 9)
    conv = torch.nn.functional.conv2d
    found = other_channels(weight, count)
    assert found.shape == (6, count, 3, 3)
    assert torch.allclose(
        conv(grey.expand(-1, count, -1, -1), found), conv(grey.expand(-1, 3, -1, -1), weight), atol=1e-5
    )
    if count > 3:
        assert torch.allclose(found[:, :3] * count / 3, weight)
        assert torch.allclose(found[:, 3:] * count / 3, weight.mean(1, keepdim=True).expand(-1, count - 3, -1, -1))


def small(count: int) -> ResNetBackbone:
    return ResNetBackbone(
        kind="resnet14", output_stride=16, weights="none", width=4, stem_channels=(4, 4, 8), in_channels=count
    )


def test_start_weights_for_rgb_are_adapted_and_nothing_else(tmp_path: Path) -> None:
    """Protects strict loading: only a first convolution for RGB is adapted, and the start of training says so."""
    source = build_backbone(small(3), Norm()).state_dict()
    torch.save(source, tmp_path / "rgb.pth")
    network = build_backbone(small(4), Norm())
    assert load_backbone(network, tmp_path / "rgb.pth")
    for key, value in network.state_dict().items():
        wanted = other_channels(source[key], 4) if key == "stem.0.weight" else source[key]
        assert torch.equal(value, wanted)
    assert not load_backbone(build_backbone(small(3), Norm()), tmp_path / "rgb.pth")
    torch.save(network.state_dict(), tmp_path / "four.pth")
    assert not load_backbone(build_backbone(small(4), Norm()), tmp_path / "four.pth")
    fails(lambda: load_backbone(build_backbone(small(5), Norm()), tmp_path / "four.pth"), WeightsError, "stem.0.weight")
    torch.save({**source, "layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "odd.pth")
    fails(lambda: load_backbone(build_backbone(small(4), Norm()), tmp_path / "odd.pth"), WeightsError, "layer1.0.conv1")


@pytest.mark.parametrize(("count", "words"), [(1, "sum of the red"), (2, "times 3/2"), (4, "times 3/4")])
def test_the_start_of_training_says_what_became_of_them(count: int, words: str, tmp_path: Path) -> None:
    """Protects users: a rule that is applied without a word looks like a file that fits."""
    from emaseg.models import build_model

    rgb = build_model(recipe_of(tmp_path))
    torch.save(rgb.backbone.state_dict(), tmp_path / "rgb.pth")
    recipe = recipe_of(tmp_path, *channels(count), f'backbone.weights="{tmp_path / "rgb.pth"}"')
    notes = [note.text for note in load_start_weights(build_model(recipe), recipe)]
    assert len(notes) == 2
    assert words in notes[1]
