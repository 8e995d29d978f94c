"""Dot-product attention between two maps of the same image (MCIBI's "self attention", after non-local networks).

Paper: Wang et al., CVPR 2018, https://arxiv.org/abs/1711.07971.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models. Legend: B batch, C channels, A attention channels, h w feature grid,
N = h*w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.layers import ConvNormAct, Norm


class PixelAttention(nn.Module):
    """Every pixel of one map gathers from all pixels of another: softmax(q k^T / sqrt(A)) v.

    Queries and keys pass two 1x1 convolutions, values and the result one. The N x N weights are never stored:
    a 1024 x 2048 image at stride 8 would need 4.3 GB for them.
    """

    def __init__(self, channels: int, attention_channels: int, norm: Norm, *, leak: float = 0.0) -> None:
        super().__init__()

        def project(channels_in: int, channels_out: int) -> ConvNormAct:
            return ConvNormAct(channels_in, channels_out, 1, norm, leak=leak)

        width = attention_channels
        self.query = nn.Sequential(project(channels, width), project(width, width))
        self.key = nn.Sequential(project(channels, width), project(width, width))
        self.value = project(channels, width)
        self.out = project(width, channels)

    def forward(self, queries: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """
        Args:
            queries: (B, C, h, w), the pixels that ask.
            source: (B, C, h, w), where keys and values come from.

        Returns:
            (B, C, h, w).
        """
        q, k, v = _pixels(self.query(queries)), _pixels(self.key(source)), _pixels(self.value(source))
        gathered = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)  # (B, A, N)
        out: torch.Tensor = self.out(gathered.reshape(*gathered.shape[:2], *queries.shape[2:]))
        return out


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """(B, A, h, w) -> (B, 1 head, N, A), contiguous as the fused kernels want it."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
