"""Feature extractors. Each returns its stages' maps, shallow to deep.

Room: models/backbones; imports torch, recipe schema and errors.
"""

from __future__ import annotations

from emaseg.models.backbones.resnet import BLOCKS, ResNet
from emaseg.models.layers import Norm
from emaseg.recipe import not_available
from emaseg.recipe.schema import Backbone, ResNetBackbone

AVAILABLE = tuple(BLOCKS)


def build_backbone(backbone: Backbone, norm: Norm) -> ResNet:
    """The backbone of a recipe, randomly initialised.

    Raises:
        RecipeError: a kind that this version does not build.
    """
    if isinstance(backbone, ResNetBackbone):
        return ResNet(
            BLOCKS[backbone.kind],
            output_stride=backbone.output_stride,
            stem_channels=backbone.stem_channels,
            width=backbone.width,
            multi_grid=backbone.multi_grid,
            norm=norm,
        )
    raise not_available("backbone.kind", backbone.kind, AVAILABLE)


__all__ = ["AVAILABLE", "ResNet", "build_backbone"]
