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
        first_weight: name of the weight that reads the images, (filters, C, kernel, kernel).
        channels: C of each returned map, shallow to deep.
        output_stride: input pixels for one cell of the last map.
    """

    first_weight: str
    channels: tuple[int, ...]
    output_stride: int

    @abstractmethod
    def forward(self, images: torch.Tensor, *, only_last: bool = False) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) normalised RGB, or other channels -> maps (B, C, h, w), shallow to deep; the last grid is
        ceil(H / stride). only_last: no other map is returned, so none is held while the next is computed."""

    @abstractmethod
    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Fewest values per channel that one of its norm layers averages over in training (batch norm needs 2).

        Args:
            batch, height, width: of the training crops.
        """

    def fitted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ImageNet weights under our names, resized where they depend on the input size; most do not."""
        return state

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self.get_parameter(self.first_weight).shape[1])


def other_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution for RGB, (filters, 3, kernel, kernel), as one for so many channels.

    Of four channels and more the first three are taken for RGB and keep their filters, and each other one gets the mean
    of the three; of one or two channels each gets the mean. All is scaled by 3 / channels, which keeps the size of the
    response: a grey image gives what the same image gives as RGB.
    """
    mean = weight.mean(dim=1, keepdim=True)
    kept = weight if channels > weight.shape[1] else weight[:, :0]
    filters = torch.cat([kept, mean.expand(-1, channels - kept.shape[1], -1, -1)], dim=1)
    return filters * (weight.shape[1] / channels)


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
