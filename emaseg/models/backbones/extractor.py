"""What every backbone offers to the networks built on it.

Room: models/backbones. Legend: B batch, C channels, H W image, h w feature grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from emaseg.models.recompute import Recomputing


class FeatureExtractor(Recomputing, ABC):
    """A backbone.

    Attributes:
        channels: C of each returned map, shallow to deep.
        output_stride: input pixels for one cell of the last map.
    """

    channels: tuple[int, ...]
    output_stride: int

    @abstractmethod
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) normalised RGB -> maps (B, C, h, w), shallow to deep; the last grid is ceil(H / stride)."""

    @abstractmethod
    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values per channel that one of its norm layers averages over in training (batch norm needs 2).

        Args:
            batch, height, width: of the training crops.
        """

    def fitted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ImageNet weights under our names, resized where they depend on the input size; most do not."""
        return state


def cells(batch: int, height: int, width: int, stride: int) -> int:
    """Values per channel of a map that has one cell for `stride` pixels, a last one for what remains."""
    return batch * -(-height // stride) * -(-width // stride)


def initialise(network: nn.Module) -> None:
    """Start from nothing: convolutions Kaiming normal over the outputs, norms 1 and 0.

    Paper: He et al., ICCV 2015, https://arxiv.org/abs/1502.01852.

    Tensors on the meta device are left alone: torch would first import its compiler, for seconds, to do nothing.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
