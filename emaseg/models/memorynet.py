"""MemoryNet: a DeepLabV3 that also reads a memory of every class of the data set (Jin et al., ICCV 2021: "Mining Contextual
Information Beyond Image", MCIBI), as sssegmentation implements it.

Paper: Jin et al., ICCV 2021, https://arxiv.org/abs/2108.11819.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; the rows are those of 6385ddc.

Room: models. Legend: B batch, C channels, H W crop, h w feature grid, K classes.

The network, in this order (names in brackets are the attributes below):
    backbone -> (layer norm of each ViT map [tap_norms]) -> (3x3 conv, stride 2 [downsample]) = f
    f -> ASPP [context]
    f -> 3x3 conv [reduce] = pixels -> [coarse] head -> class probabilities
    probabilities x class memory [memory] -> pixels attend to it [memory_attention] -> join, 3x3 conv [memory_fuse]
    pixels attend to the context [context_attention] -> join with the above, 3x3 conv [context_fuse] -> [final] head
    earlier backbone maps -> [auxiliaries]: training only
In training the memory is updated from `pixels` in every step (memory.py), and from the second epoch on its rows may be
classified by the final head themselves: the memory loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.aspp import ASPP
from emaseg.models.backbones import build_backbone
from emaseg.models.layers import ConvNormAct, Head, Norm, Step, as_precise_as
from emaseg.models.memory import ClassMemory, memory_momentum
from emaseg.models.network import Network, Report
from emaseg.models.pixel_attention import PixelAttention
from emaseg.recipe.backbones import Backbone, ViTBackbone
from emaseg.recipe.models import MemoryNetModel
from emaseg.recipe.training import Loss

_LEAK = {"relu": 0.0, "leaky_relu": 0.01}  # slope below zero; 0.01 in the LIP rows
_VIT_UPSAMPLING = 4  # after each of an auxiliary head's two convolutions
_LAYER_NORM_EPSILON = 1e-6  # the head's layer norms have the ViT's own epsilon
_DOWNSAMPLE_PASSES = 4  # a step of the published network puts HRNet's map through `downsample` as often


class UpsamplingHead(nn.Module):
    """Training-only head on a ViT's map: twice 3x3 conv and enlargement by 4, channel dropout, 1x1 classifier.

    The published head enlarges, drops and classifies in this order. Repeating cells, dropping channels and a 1x1
    convolution may change places, so here the K logits are enlarged instead of C channels: the same values.
    """

    def __init__(
        self, channels_in: int, channels: int, classes: int, dropout: float, norm: Norm, *, leak: float
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels_in, channels, 3, norm, leak=leak)
        self.conv2 = ConvNormAct(channels, channels, 3, norm, leak=leak)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, h, w) -> logits (B, K, 16 h, 16 w)."""
        x = self.conv2(F.interpolate(self.conv1(x), scale_factor=_VIT_UPSAMPLING))
        return F.interpolate(self.classifier(self.dropout(x)), scale_factor=_VIT_UPSAMPLING)


class MemoryNet(Network):
    """The whole network. `forward` gives the final head's low-resolution logits; `training_step` the losses."""

    def __init__(self, model: MemoryNetModel, backbone: Backbone, loss: Loss, classes: int) -> None:
        super().__init__()
        norm, leak, width = Norm(model.norm_momentum, model.norm_epsilon), _LEAK[model.activation], model.channels
        self.config = model
        self.num_classes = classes
        self.align_corners = model.align_corners
        self.loss = loss
        self.auxiliary_weight = loss.auxiliary_weight
        self.backbone = build_backbone(backbone, norm)
        last = self.backbone.channels[-1]
        vit = isinstance(backbone, ViTBackbone)
        self.downsample = _downsample(last, norm, leak) if model.downsample else None
        self.context = ASPP(last, width, model.aspp_dilations, norm, leak=leak)
        self.reduce = ConvNormAct(last, width, 3, norm, leak=leak)
        self.coarse = Head(width, width, classes, 1, model.dropout, norm, leak=leak)
        self.memory = ClassMemory(
            classes,
            width,
            hard=model.memory_hard,
            strategy=model.memory_strategy,
            ranks=model.memory_ranks,
            gradient=model.memory_gradient,
        )
        self.memory_attention = PixelAttention(width, model.attention_channels, norm, leak=leak)
        self.memory_fuse = ConvNormAct(2 * width, width, 3, norm, leak=leak)
        self.context_attention = PixelAttention(width, model.attention_channels, norm, leak=leak)
        self.context_fuse = ConvNormAct(2 * width, width, 3, norm, leak=leak)
        self.final = Head(width, width, classes, 1, model.dropout, norm, leak=leak)
        earlier = self.backbone.channels[:-1] if vit else self.backbone.channels[-2:-1]
        heads = earlier if model.auxiliary_channels else ()
        self.auxiliaries = nn.ModuleList(
            UpsamplingHead(c, model.auxiliary_channels, classes, model.dropout, norm, leak=leak)
            if vit
            else Head(c, model.auxiliary_channels, classes, 3, model.dropout, norm, leak=leak)
            for c in heads
        )
        self.tap_norms = nn.ModuleList(nn.LayerNorm(c, eps=_LAYER_NORM_EPSILON) for c in (*heads, last) if vit)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of `training_step`'s losses, in their order; "memory" is left out before its first epoch."""
        memory = ("memory",) if self.config.memory_loss_weight else ()
        return ("main", "coarse", *self._auxiliary_names(), *memory)

    @property
    def pixel_losses(self) -> tuple[str, ...]:
        """All but the memory's."""
        return ("main", "coarse", *self._auxiliary_names())

    @property
    def per_class(self) -> tuple[str, ...]:
        """Classifiers and memory rows."""
        auxiliaries = (f"auxiliaries.{i}.classifier" for i in range(len(self.auxiliaries)))
        return ("coarse.classifier", "final.classifier", "memory.features", "memory.age", *auxiliaries)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised RGB -> logits (B, K, h, w) on the backbone's grid, or half of it."""
        features = self._features(self._normalised(self.backbone(images, only_last=True)[-1], -1))
        pixels = self.reduce(features)
        logits: torch.Tensor = self.final(self._join(pixels, self.memory(self.coarse(pixels)), self.context(features)))
        return logits

    def training_step(self, images: torch.Tensor, labels: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """Losses of one batch, each already weighted; their sum is what is back-propagated.

        Updates the memory: it depends on the batch's features alone, not on the losses.

        Args:
            images: (B, 3, H, W) normalised RGB.
            labels: (B, H, W) int64, 255 = ignore.
            step: its learning rate gives the memory's momentum, its epoch decides on the memory loss.
        """
        config = self.config
        used = self.backbone(images)[-1 - len(self.auxiliaries) :]
        *earlier, last = (self._normalised(x, i) for i, x in enumerate(used))
        features = self._features(last)
        context = self.block(self.context, features)
        pixels = self.block(self.reduce, features)
        coarse = self.block(self.coarse, pixels)
        read, memory = self.memory.read_and_update(
            coarse, pixels, labels, memory_momentum(config, step.lr), self.shares
        )
        losses = {
            "main": self._loss(self.block(self.final, self._join(pixels, read, context)), labels),
            "coarse": config.coarse_weight * self._loss(coarse, labels),
        }
        for name, head, x in zip(self._auxiliary_names(), self.auxiliaries, earlier, strict=True):
            losses[name] = self.auxiliary_weight * self._loss(self.block(head, x), labels)
        if config.memory_loss_weight and step.epoch >= config.memory_loss_from_epoch:
            losses["memory"] = config.memory_loss_weight * self._memory_loss(memory)
        return losses

    @property
    def graph_changes(self) -> bool:
        """The memory loss begins later."""
        return bool(self.config.memory_loss_weight) and self.config.memory_loss_from_epoch > 1

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values that a norm layer averages over in training: the batch, in the context's image mean."""
        return min(batch, self.backbone.norm_values(batch, height, width))

    def report(self, classes: Sequence[str]) -> Report:
        """The state of the class memory."""
        return self.memory.report(classes)

    def _auxiliary_names(self) -> tuple[str, ...]:
        count = len(self.auxiliaries)
        return ("auxiliary",) if count == 1 else tuple(f"auxiliary{i + 1}" for i in range(count))

    def _normalised(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """A ViT's map, normalised over the channels of each cell; any other backbone's as it is."""
        if not self.tap_norms:
            return x
        normalised: torch.Tensor = self.tap_norms[index](x.movedim(1, -1)).movedim(-1, 1)
        return normalised.contiguous()

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.downsample is None else self.block(self.downsample, x)

    def _join(self, pixels: torch.Tensor, read: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Pixels, the memory that they attend to and the context that they attend to, joined to one map (B, C, h, w)."""
        with_memory = self.block(self._fuse_memory, pixels, read)
        return self.block(self._fuse_context, pixels, context, with_memory)

    def _fuse_memory(self, pixels: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        fused: torch.Tensor = self.memory_fuse(torch.cat([pixels, self.memory_attention(pixels, read)], dim=1))
        return fused

    def _fuse_context(self, pixels: torch.Tensor, context: torch.Tensor, with_memory: torch.Tensor) -> torch.Tensor:
        attended = self.context_attention(pixels, context)
        fused: torch.Tensor = self.context_fuse(torch.cat([attended, with_memory], dim=1))
        return fused

    def _memory_loss(self, memory: torch.Tensor) -> torch.Tensor:
        """Cross entropy of classifying every row of (shares * K, C), unwritten ones too, as its own class by the final head.

        The rows go through as images of one pixel, in training mode: the head's batch norm averages over them. As
        published its running statistics then move a second time in this step, from the pixels' to the rows', and
        evaluation finds neither; with few classes that costs most of the score.
        """
        norm = self.final.conv.norm
        momentum = norm.momentum
        if self.config.memory_loss_statistics == "apart":
            norm.momentum = 0.0
        logits = self.final(memory[:, :, None, None], alone=self.config.memory_ranks == "by_count")
        norm.momentum = momentum
        rows = as_precise_as(logits[:, :, 0, 0], memory)
        own = torch.arange(self.num_classes, device=rows.device).repeat(len(memory) // self.num_classes)
        return F.cross_entropy(rows, own)


def _downsample(channels: int, norm: Norm, leak: float) -> ConvNormAct:
    """Halves the grid of a backbone whose last map is too fine to attend over.

    The published network applies this layer to four copies of the same HRNet map and uses the last: its running
    statistics move four times in a step by the same amount. One move with weight 1 - (1 - m)^4 is equal.
    """
    layer = ConvNormAct(channels, channels, 3, norm, stride=2, leak=leak)
    layer.norm.momentum = 1 - (1 - norm.momentum) ** _DOWNSAMPLE_PASSES
    return layer
