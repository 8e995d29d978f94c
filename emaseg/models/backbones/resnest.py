"""ResNeSt (Zhang et al. 2020): dilated ResNet whose 3x3 convolutions are split attention, radix 2, one group.

Paper: Zhang et al. 2020, https://arxiv.org/abs/2004.08955.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models/backbones. Legend: B batch, C channels, H W image,
h w feature grid, R splits (the paper's radix).

The published sssegmentation variant: the shortcut's average pool has the stage's stride as its size, so a dilated
stage has none (the ResNeSt authors keep a 2x2 pool there), and a strided block pools after its attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.backbones.resnet import EXPANSION, ResNet
from emaseg.models.layers import Norm

SPLITS = 2  # the paper's radix
REDUCTION = 4  # of the channels of all splits, in the attention's hidden layer
LEAST_CHANNELS = 32  # of that hidden layer


class SplitAttention(nn.Module):
    """3x3 convolution into R splits of C channels, mixed by weights that depend on the whole map (paper section 3.1).

    In training `bn1` normalises 1x1 maps, that is over the B values of a batch only.
    """

    def __init__(self, channels: int, norm: Norm, *, dilation: int = 1) -> None:
        super().__init__()
        hidden = max(channels * SPLITS // REDUCTION, LEAST_CHANNELS)
        self.conv = nn.Conv2d(
            channels, channels * SPLITS, 3, padding=dilation, dilation=dilation, groups=SPLITS, bias=False
        )
        self.bn0 = norm(channels * SPLITS)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = norm(hidden)
        self.fc2 = nn.Conv2d(hidden, channels * SPLITS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        batch, channels, height, width = x.shape
        x = torch.relu_(self.bn0(self.conv(x)))
        splits = x.view(batch, SPLITS, channels, height, width)
        gap = splits.sum(dim=1).mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        logits = self.fc2(torch.relu_(self.bn1(self.fc1(gap))))
        weights = torch.softmax(logits.view(batch, SPLITS, channels, 1, 1), dim=1)  # between the splits, per channel
        return (splits * weights).sum(dim=1)


class SplitBottleneck(nn.Module):
    """1x1 reduce, split attention (then a pool where it strides), 1x1 expand, plus the shortcut."""

    def __init__(
        self, channels_in: int, width: int, norm: Norm, *, stride: int = 1, dilation: int = 1, project: bool = False
    ) -> None:
        super().__init__()
        channels_out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = SplitAttention(width, norm, dilation=dilation)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, norm, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.bn3(self.conv3(self.pool(self.conv2(x))))
        return torch.relu_(x.add_(shortcut))


class ShortcutPool(nn.AvgPool2d):
    """Average pool over 2x2 cells; at an odd border over those that are there."""

    def __init__(self) -> None:
        super().__init__(2, 2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))."""
        if not torch.compiler.is_exporting():
            return super().forward(x)
        # One program for all sizes: the border repeated, which at an even side no window reaches. The same means.
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 2)


def _shortcut(channels_in: int, channels_out: int, norm: Norm, stride: int) -> nn.Sequential:
    """Average pool over the block's stride (1 or 2), 1x1 convolution, norm."""
    pool = ShortcutPool() if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(channels_in, channels_out, 1, bias=False), norm(channels_out))


class ResNeSt(ResNet):
    """A ResNet of split-attention bottlenecks; arguments as there."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        in_channels: int = 3,
        output_stride: int,
        stem_channels: tuple[int, ...] = (64, 64, 128),
        width: int = 64,
        norm: Norm,
    ) -> None:
        super().__init__(
            blocks,
            in_channels=in_channels,
            output_stride=output_stride,
            stem_channels=stem_channels,
            width=width,
            norm=norm,
            block=SplitBottleneck,
        )

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """Split attention normalises 1x1 maps: one value for each image."""
        return batch
