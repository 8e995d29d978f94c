"""The interface of every network: all that the trainer, the protocols and the commands know of one.

Room: models. Legend: B batch, H W crop, h w feature grid, K classes.

The trainer, the protocols and the commands know networks as `Network` and nothing else: they never ask for a kind.
State that a network keeps beside its parameters (EM bases, class memory) lies in buffers, so it is saved, moved and
resumed without anyone's help, and it changes in `training_step` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import nn

from emaseg.losses.terms import head_loss
from emaseg.models.backbones import FeatureExtractor
from emaseg.models.layers import Step, without_autocast
from emaseg.models.recompute import Recomputing
from emaseg.recipe.training import Loss

Frozen = Literal["none", "backbone", "backbone_norms"]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class Report:
    """What a network tells about its own state beside its scores.

    name: its key in metrics.json. lines: label and value pairs for people. content: the same as JSON values.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    content: Mapping[str, Any]


class Network(Recomputing, ABC):
    """Backbone and heads.

    Attributes:
        backbone: what start weights are loaded into, and what the parameter group "backbone" covers.
        num_classes: K.
        align_corners: corner convention by which logits are resized.
        loss: what the loss of a head is.
        kept_share: of the labelled pixels, those that the head scored last kept for its loss; None where it keeps all.
        frozen: which part keeps its values; see `freeze`.
        shares: parts of a process's batch that stand for a process each, where the recipe asks for the plain means of
            more processes than there are.
    """

    backbone: FeatureExtractor
    num_classes: int
    align_corners: bool
    loss: Loss
    kept_share: torch.Tensor | None = None
    frozen: Frozen = "none"
    shares: int = 1

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names of all losses that `training_step` may return, in their order.

        A step may leave one out (a loss that starts later); its cell in metrics.csv then stays empty.
        """

    @property
    def pixel_losses(self) -> tuple[str, ...]:
        """Those of `loss_names` that average over the pixels of the batch, as `reduction` says."""
        return self.loss_names

    @property
    @abstractmethod
    def per_class(self) -> tuple[str, ...]:
        """Names of the modules and buffers whose tensors have K as their first dimension."""

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised RGB -> the main head's logits (B, K, h, w), at low resolution."""

    @abstractmethod
    def training_step(self, images: torch.Tensor, labels: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """Losses of one batch, each a scalar and already weighted; their sum is what is back-propagated.

        Updates the network's own state (EM bases, class memory); never waits for the device.

        Args:
            images: (B, 3, H, W) normalised RGB.
            labels: (B, H, W) int64, 255 = ignore.
            step: where in the training this is.
        """

    @property
    def graph_changes(self) -> bool:
        """Whether a later step computes with its parameters what an earlier one did not."""
        return False

    @abstractmethod
    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values that a norm layer averages over in training, for a batch of height x width crops."""

    def freeze(self, part: Frozen) -> None:
        """Keep a part at its values: no gradient, no new norm statistics, no dropout in it, in training mode either.

        Args:
            part: "backbone", or "backbone_norms" for its norm layers alone.
        """
        self.frozen = part
        for module in self._still():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but that what is frozen stays in eval mode."""
        super().train(mode)
        for module in self._still():
            module.eval()
        return self

    def _still(self) -> Iterator[nn.Module]:
        """Asked for each time: the layers of a part may have been replaced by others of their kind."""
        if self.frozen == "backbone":
            yield self.backbone
        elif self.frozen == "backbone_norms":
            yield from (module for module in self.backbone.modules() if isinstance(module, NORMS))

    def recompute_activations(self, on: bool = True) -> None:
        """From now on a training step keeps what its blocks begin with, and computes anew what lies between; or not."""
        self.recompute = self.backbone.recompute = on

    def parts(self) -> Iterator[nn.Module]:
        """The modules that a step calls one by one; each is a tensor program of its own, to compile for instance."""
        for module in self.children():
            yield from module if isinstance(module, nn.ModuleList) else (module,)

    def report(self, classes: Sequence[str]) -> Report | None:
        """What the network has gathered beside its parameters; None when there is nothing to tell.

        Args:
            classes: the K class names.
        """
        return None

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a process: of its images, or the mean of its shares', each divided by its own pixels."""
        shares = 1 if self.loss.ranks == "by_count" else self.shares
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pairs = zip(precise.chunk(shares), labels.chunk(shares), strict=True)
        with without_autocast(logits):
            results = [head_loss(*pair, self.loss, align_corners=self.align_corners) for pair in pairs]
        kept = [result.kept_share for result in results if result.kept_share is not None]
        self.kept_share = torch.stack(kept).mean() if kept else None
        values = [result.value for result in results]
        return values[0] if shares == 1 else torch.stack(values).mean()
