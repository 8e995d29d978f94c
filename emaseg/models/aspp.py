"""Context within the image: atrous spatial pyramid pooling (DeepLabV3, Chen et al. 2017).

Paper: Chen et al. 2017, https://arxiv.org/abs/1706.05587.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models. Legend: B batch, C channels, h w feature grid.
"""

from __future__ import annotations

import torch
from torch import nn

from emaseg.models.layers import ConvNormAct, Norm


class ASPP(nn.Module):
    """Parallel convolutions with different reach, and the whole image's mean, joined by a 3x3 convolution.

    Args:
        dilations: one branch each; 1 is a 1x1 convolution, every other a dilated 3x3.
        leak: slope of the activations below zero; 0 is ReLU.

    In training the image mean's norm averages over the batch alone, so a batch needs two images.
    """

    def __init__(
        self, channels_in: int, channels: int, dilations: tuple[int, ...], norm: Norm, *, leak: float = 0.0
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNormAct(channels_in, channels, 1 if d == 1 else 3, norm, dilation=d, leak=leak) for d in dilations
        )
        self.pooled = ConvNormAct(channels_in, channels, 1, norm, leak=leak)
        self.fuse = ConvNormAct((len(dilations) + 1) * channels, channels, 3, norm, leak=leak)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, h, w) -> (B, C, h, w)."""
        mean = self.pooled(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        joined: torch.Tensor = self.fuse(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1))
        return joined
