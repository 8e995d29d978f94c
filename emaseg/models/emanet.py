"""EMANet: expectation-maximization attention (Li et al., ICCV 2019), in its three published implementations.

Paper: Li et al., ICCV 2019, https://arxiv.org/abs/1907.13426.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; mmsegmentation 1.2.2; the authors' XiaLiPKU/EMANet at f09ffac.

Room: models. Legend: B batch, C channels, H W crop, h w feature grid, M bases (the paper's K), K classes.

The network, in this order (names in brackets are the attributes below):
    backbone stage 4 -> 3x3 conv [reduce] -> identity
    identity -> frozen 1x1 [project] -> EM attention [attention; em_attention.py] -> ReLU -> 1x1 conv [expand] -> + identity -> ReLU
    -> 3x3 conv [bottleneck] -> (join with stage 4 -> 3x3 conv [fuse]) -> dropout -> 1x1 [classifier]
    backbone stage 3 -> 3x3 conv -> dropout -> 1x1 [auxiliary]: training only
sssegmentation and mmsegmentation have the join and the auxiliary head, the paper's authors have neither.

Nothing inside the EM iterations carries a gradient, so [project] could not learn even if it were not frozen, and
[reduce] learns through the identity path alone. All three implementations agree on this.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from emaseg.models.backbones import build_backbone
from emaseg.models.em_attention import EMAttention
from emaseg.models.layers import ConvNormAct, Head, Norm, Step
from emaseg.models.network import Network
from emaseg.recipe.backbones import Backbone
from emaseg.recipe.models import EMANetModel
from emaseg.recipe.training import Loss

_CLASSIFIER_STD = 0.01  # mmsegmentation's start of the classifiers


class EMANet(Network):
    """The whole network. `forward` gives the main head's low-resolution logits; `training_step` the losses."""

    def __init__(self, model: EMANetModel, backbone: Backbone, loss: Loss, classes: int) -> None:
        super().__init__()
        norm = Norm(model.norm_momentum, model.norm_epsilon)
        self.num_classes = classes
        self.align_corners = model.align_corners
        self.loss = loss
        self.auxiliary_weight = loss.auxiliary_weight
        self.backbone = build_backbone(backbone, norm)
        stage4 = self.backbone.channels[-1]
        width = model.attention_channels
        self.reduce = ConvNormAct(stage4, width, 3, norm)
        self.project = nn.Conv2d(width, width, 1).requires_grad_(False)
        self.attention = EMAttention(
            width,
            model.bases,
            iterations=model.em_iterations,
            iterations_eval=model.em_iterations_eval,
            momentum=model.bases_momentum,
            normalise_average=model.bases_average == "normalised",
            add_epsilon=model.attention_epsilon == "add",
        )
        self.expand = ConvNormAct(width, width, 1, norm, activate=False)
        self.bottleneck = ConvNormAct(width, model.bottleneck_channels, 3, norm)
        joined = stage4 + model.bottleneck_channels
        self.fuse = ConvNormAct(joined, model.decoder_channels, 3, norm) if model.concat_input else None
        self.dropout = nn.Dropout2d(model.dropout)
        last = model.decoder_channels if model.concat_input else model.bottleneck_channels
        self.classifier = nn.Conv2d(last, classes, 1)
        self.auxiliary = (
            Head(self.backbone.channels[-2], model.auxiliary_channels, classes, 3, model.dropout, norm)
            if model.auxiliary_channels
            else None
        )
        _initialise(self, model.init)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of `training_step`'s losses, in their order."""
        return ("main",) if self.auxiliary is None else ("main", "auxiliary")

    @property
    def per_class(self) -> tuple[str, ...]:
        """The classifiers."""
        return ("classifier",) if self.auxiliary is None else ("classifier", "auxiliary.classifier")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised RGB -> logits (B, K, h, w) on the backbone's grid."""
        return self._head(self.backbone(images, only_last=True)[-1])[0]

    def training_step(self, images: torch.Tensor, labels: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """Losses of one batch, each already weighted; their sum is what is back-propagated.

        Moves the bases' moving average: nothing differentiates through it, so it may happen before the backward pass.

        Args:
            images: (B, 3, H, W) normalised RGB.
            labels: (B, H, W) int64, 255 = ignore.
            step: unused here; every model takes it.
        """
        maps = self.backbone(images)
        logits, adapted = self._head(maps[-1])
        losses = {"main": self._loss(logits, labels)}
        if self.auxiliary is not None:
            losses["auxiliary"] = self.auxiliary_weight * self._loss(self.block(self.auxiliary, maps[-2]), labels)
        self.attention.update(adapted)
        return losses

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values that a norm layer averages over in training, for a batch of height x width crops."""
        return self.backbone.norm_values(batch, height, width)

    def _head(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        identity = self.block(self.reduce, features)
        reconstruction, adapted = self.attention(self.project(identity))
        return self.block(self._decode, features, identity, torch.relu_(reconstruction)), adapted

    def _decode(self, features: torch.Tensor, identity: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = self.bottleneck(torch.relu(self.expand(attended) + identity))
        if self.fuse is not None:
            x = self.fuse(torch.cat([features, x], dim=1))
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


def _initialise(network: EMANet, init: str) -> None:
    """Random start of everything outside the backbone (which initialises itself), as the recipe's `model.init` says.

    "torch" leaves torch's defaults: convolutions uniform in +-1/sqrt(fan_in) (sssegmentation states nothing else).
    "mmseg": convolutions Kaiming normal over the outputs, biases 0; classifiers N(0, 0.01).
    "authors": the attention's 1x1 convolutions N(0, sqrt(2 / outputs)), the others torch's default.
    """
    if init == "torch" or network.project.weight.is_meta:
        return
    if init == "authors":
        for conv in (network.project, network.expand.conv):
            nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / conv.out_channels))
        return
    classifiers = {network.classifier}
    if network.auxiliary is not None:
        classifiers.add(network.auxiliary.classifier)
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or name.startswith("backbone."):
            continue
        if module in classifiers:
            nn.init.normal_(module.weight, 0.0, _CLASSIFIER_STD)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
