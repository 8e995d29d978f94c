"""Feature extractors: ResNet, ResNeSt, HRNet, ViT.

Room: models/backbones.

All are a `FeatureExtractor` (extractor.py, where the interface is documented). What they return:
    resnet, resnest   the four stages, widths 256, 512, 1024, 2048 for the published networks
    hrnet             one map: the four resolutions joined at stride 4, 720 channels for width 48
    vit               the chosen layers' tokens as maps at stride 16, not normalised: the head owns the layer norms
Their parameters carry the names of the published sssegmentation networks, without `backbone_net.` in front.
"""

from __future__ import annotations

from emaseg.models.backbones.extractor import FeatureExtractor
from emaseg.models.backbones.hrnet import HRNet
from emaseg.models.backbones.resnest import ResNeSt
from emaseg.models.backbones.resnet import BLOCKS, ResNet
from emaseg.models.backbones.vit import ViT
from emaseg.models.layers import Norm
from emaseg.recipe.backbones import Backbone, HRNetBackbone, ResNeStBackbone, ResNetBackbone, ViTBackbone


def build_backbone(backbone: Backbone, norm: Norm) -> FeatureExtractor:
    """The backbone of a recipe, randomly initialised.

    Args:
        norm: of its batch norms; a ViT has none.
    """
    match backbone:
        case ResNetBackbone():
            return ResNet(
                BLOCKS[backbone.kind],
                in_channels=backbone.in_channels,
                output_stride=backbone.output_stride,
                stem_channels=backbone.stem_channels,
                width=backbone.width,
                multi_grid=backbone.multi_grid,
                norm=norm,
            )
        case ResNeStBackbone():
            return ResNeSt(
                BLOCKS[backbone.kind],
                in_channels=backbone.in_channels,
                output_stride=backbone.output_stride,
                stem_channels=backbone.stem_channels,
                norm=norm,
            )
        case HRNetBackbone():
            return HRNet(in_channels=backbone.in_channels, stem_relu=backbone.stem_relu, norm=norm)
        case ViTBackbone():
            return ViT(in_channels=backbone.in_channels, image_size=backbone.image_size, taps=backbone.taps)


__all__ = ["FeatureExtractor", "HRNet", "ResNeSt", "ResNet", "ViT", "build_backbone"]
