"""EMANet: expectation-maximization attention (Li et al., ICCV 2019), in its three published implementations.

Paper: Li et al., ICCV 2019, https://arxiv.org/abs/1907.13426.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; mmsegmentation 1.2.2; the authors' XiaLiPKU/EMANet at f09ffac.

Room: models; imports torch, recipe schema, losses. Legend: B batch, C channels, h w feature grid, N = h*w pixels,
M bases (the paper's K), K classes, T iterations.

The network, in this order (names in brackets are the attributes below):
    backbone stage 4 -> 3x3 conv [reduce] -> identity
    identity -> frozen 1x1 [project] -> EM attention [attention] -> ReLU -> 1x1 conv [expand] -> + identity -> ReLU
    -> 3x3 conv [bottleneck] -> (join with stage 4 -> 3x3 conv [fuse]) -> dropout -> 1x1 [classifier]
    backbone stage 3 -> 3x3 conv -> dropout -> 1x1 [auxiliary]: training only
sssegmentation and mmsegmentation have the join and the auxiliary head, the paper's authors have neither.

Nothing inside the EM iterations carries a gradient, so [project] could not learn even if it were not frozen, and
[reduce] learns through the identity path alone. All three implementations agree on this.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.distributed import mean_over_ranks
from emaseg.models.backbones import build_backbone
from emaseg.models.layers import ConvNormAct, Head, Norm, Step
from emaseg.models.network import Network
from emaseg.recipe.backbones import Backbone
from emaseg.recipe.schema import EMANetModel, Loss

_ADDED = 1e-6  # to the length that a vector is divided by: the authors' guard against 0
_LEAST = 1e-12  # of such a length: sssegmentation's and mmsegmentation's guard
_CLASSIFIER_DEVIATION = 0.01  # mmsegmentation's start of the classifiers


class EMAttention(nn.Module):
    """Expectation-maximization attention (paper section 3.2, equations 10 to 15).

    Args:
        channels: C of the feature map.
        bases: M.
        stages, stages_eval: T in training and otherwise.
        momentum: weight of the new bases in the moving average (the paper's 1 - alpha).
        normalise_average: L2-normalise the batch mean before blending it (sssegmentation, mmsegmentation).
        add_epsilon: guard the normalisations by x + 1e-6 (authors) instead of max(x, 1e-12).

    The buffer `bases` is (1, C, M): columns of unit length at the start; the blend is not normalised again, so their
    length drifts a little below 1, as published.
    """

    bases: torch.Tensor

    def __init__(
        self,
        channels: int,
        bases: int,
        *,
        stages: int = 3,
        stages_eval: int = 3,
        momentum: float = 0.1,
        normalise_average: bool = True,
        add_epsilon: bool = False,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.stages_eval = stages_eval
        self.momentum = momentum
        self.normalise_average = normalise_average
        self.add_epsilon = add_epsilon
        start = torch.empty(1, channels, bases)
        if not start.is_meta:  # there torch would first import its compiler, for seconds, to do nothing
            start = F.normalize(start.normal_(0, math.sqrt(2.0 / bases)), dim=1)
        self.register_buffer("bases", start)

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct a feature map from bases adapted to each image.

        Args:
            features: (B, C, h, w).

        Returns:
            The reconstruction (B, C, h, w) and the adapted bases (B, C, M); both are constants for autograd.
        """
        batch, channels, height, width = features.shape
        x = features.reshape(batch, channels, height * width)  # (B, C, N)
        mu = self.bases.expand(batch, -1, -1)  # (B, C, M)
        for _ in range(self.stages if self.training else self.stages_eval):
            z = torch.softmax(x.transpose(1, 2) @ mu, dim=2)  # E step, equation 11: responsibilities (B, N, M)
            mu = x @ self._unit(z, dim=1, power=1)  # M step, equation 12: mean of the pixels, weighted by z
            mu = self._unit(mu, dim=1, power=2)
        # Equation 14. The responsibilities are those that made the last bases, not recomputed from them.
        return (mu @ z.transpose(1, 2)).view(batch, channels, height, width), mu

    def _unit(self, x: torch.Tensor, *, dim: int, power: int) -> torch.Tensor:
        if self.add_epsilon:
            length: torch.Tensor = torch.linalg.vector_norm(x, power, dim=dim, keepdim=True)
            return x / (_ADDED + length)
        return F.normalize(x, p=power, dim=dim, eps=_LEAST)

    @torch.no_grad()
    def update(self, adapted: torch.Tensor) -> None:
        """Move the stored bases towards the batch mean of the adapted ones (equation 15), over all processes.

        Args:
            adapted: (B, C, M) from `forward`.
        """
        mean = mean_over_ranks(adapted.mean(dim=0, keepdim=True))
        if self.normalise_average:
            mean = self._unit(mean, dim=1, power=2)
        self.bases.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)


class EMANet(Network):
    """The whole network. `forward` gives the main head's low-resolution logits; `training_step` the losses."""

    def __init__(self, model: EMANetModel, backbone: Backbone, loss: Loss, classes: int) -> None:
        super().__init__()
        norm = Norm(model.norm_momentum, model.norm_epsilon)
        self.num_classes = classes
        self.align_corners = model.align_corners
        self.reduction = loss.reduction
        self.auxiliary_weight = loss.auxiliary_weight
        self.backbone = build_backbone(backbone, norm)
        stage4 = self.backbone.channels[-1]
        width = model.attention_channels
        self.reduce = ConvNormAct(stage4, width, 3, norm)
        self.project = nn.Conv2d(width, width, 1).requires_grad_(False)
        self.attention = EMAttention(
            width,
            model.bases,
            stages=model.stages,
            stages_eval=model.stages_eval,
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
        return self._head(self.backbone(images)[-1])[0]

    def training_step(self, images: torch.Tensor, labels: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """Losses of one batch, each already weighted; their sum is what is back-propagated.

        Moves the bases' moving average: nothing differentiates through it, so it may happen before the backward pass.

        Args:
            images: (B, 3, H, W) normalised RGB.
            labels: (B, H, W) int64, 255 = ignore.
            step: unused here; every model takes it.
        """
        stages = self.backbone(images)
        logits, adapted = self._head(stages[-1])
        losses = {"main": self._loss(logits, labels)}
        if self.auxiliary is not None:
            losses["auxiliary"] = self.auxiliary_weight * self._loss(self.auxiliary(stages[-2]), labels)
        self.attention.update(adapted)
        return losses

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values that a norm layer averages over in training, for a batch of height x width crops."""
        return self.backbone.norm_values(batch, height, width)

    def _head(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        identity = self.reduce(features)
        reconstruction, adapted = self.attention(self.project(identity))
        x = self.expand(torch.relu_(reconstruction))
        x = self.bottleneck(torch.relu(x + identity))
        if self.fuse is not None:
            x = self.fuse(torch.cat([features, x], dim=1))
        return self.classifier(self.dropout(x)), adapted


def _initialise(network: EMANet, rule: str) -> None:
    """Random start of everything outside the backbone (which initialises itself).

    "torch" leaves torch's defaults: convolutions uniform in +-1/sqrt(fan_in) (sssegmentation states nothing else).
    "mmseg": convolutions Kaiming normal over the outputs, biases 0; classifiers N(0, 0.01).
    "authors": the attention's 1x1 convolutions N(0, sqrt(2 / outputs)), the others torch's default.
    """
    if rule == "torch" or network.project.weight.is_meta:
        return
    if rule == "authors":
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
            nn.init.normal_(module.weight, 0.0, _CLASSIFIER_DEVIATION)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
