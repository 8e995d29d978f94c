"""Dilated ResNet (He et al. 2016) with bottleneck blocks, at output stride 8, 16 or 32.

Paper: He et al., CVPR 2016, https://arxiv.org/abs/1512.03385.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; XiaLiPKU/EMANet at f09ffac (stem, multi-grid).

Room: models/backbones. Legend: B batch, C channels, H W image.

Numerically equal to torchvision's ResNet with `replace_stride_with_dilation` (tested). What the published networks
change: a stem of three 3x3 convolutions ("v1c": 32, 32, 64; the EMANet authors': 64, 64, 128) instead of one 7x7, and,
for the authors only, a multi-grid in the last stage. The stride of a block sits on its 3x3 convolution.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from emaseg.models.backbones.extractor import FeatureExtractor, cells, initialise
from emaseg.models.layers import Norm

EXPANSION = 4  # output channels of a bottleneck block, as a multiple of its width (paper, table 1)

BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet14": (1, 1, 1, 1),
    "resnest101": (3, 4, 23, 3),
}

# output stride -> (stride, dilation) of the four stages
_STAGES: dict[int, tuple[tuple[int, int], ...]] = {
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
}


class BlockKind(Protocol):
    """A residual block of 4 x `width` output channels: `Bottleneck` or one with its arguments."""

    def __call__(
        self, channels_in: int, width: int, norm: Norm, *, stride: int = 1, dilation: int = 1, project: bool = False
    ) -> nn.Module: ...


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (strided, dilated), 1x1 expand, plus the shortcut."""

    def __init__(
        self, channels_in: int, width: int, norm: Norm, *, stride: int = 1, dilation: int = 1, project: bool = False
    ) -> None:
        super().__init__()
        channels_out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm(channels_out))
            if project
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return torch.relu_(x.add_(shortcut))


class ResNet(FeatureExtractor):
    """Four stages of residual blocks.

    Args:
        blocks: number of blocks of each stage.
        in_channels: of the images.
        output_stride: input pixels for one cell of the last stage.
        stem_channels: widths of the three 3x3 stem convolutions; () is one 7x7 with `width` channels.
        width: channels of the first stage's 3x3 convolutions.
        multi_grid: factors on the last stage's dilation for its blocks after the first; () = none. The first
            factor belongs to the first block, which keeps half the dilation and ignores it (EMANet authors).
        block: kind of the residual blocks.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        in_channels: int = 3,
        output_stride: int,
        stem_channels: tuple[int, ...] = (32, 32, 64),
        width: int = 64,
        multi_grid: tuple[int, ...] = (),
        norm: Norm,
        block: BlockKind = Bottleneck,
    ) -> None:
        super().__init__()
        self.first_weight = "stem.0.weight"
        self.output_stride = output_stride
        self.stem = _stem(in_channels, stem_channels, width, norm)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = stem_channels[-1] if stem_channels else width
        self.channels = tuple(width * EXPANSION * 2**i for i in range(4))  # of the four returned maps
        for i, (stride, dilation) in enumerate(_STAGES[output_stride]):
            grid = multi_grid if i == 3 else ()
            stage = _stage(block, channels, width * 2**i, blocks[i], norm, stride, dilation, grid)
            self.add_module(f"layer{i + 1}", stage)
            channels = self.channels[i]
        initialise(self)

    def forward(self, images: torch.Tensor, *, only_last: bool = False) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> four maps with `channels` channels; grids of ceil(H / stride)."""
        x = self.block(self._start, images)
        stages = []
        for i in range(4):
            for block in self.get_submodule(f"layer{i + 1}").children():
                x = self.block(block, x)
            if i == 3 or not only_last:
                stages.append(x)
        return tuple(stages)

    def _start(self, images: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.maxpool(self.stem(images))
        return x

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """The last stage's grid is the smallest."""
        return cells(batch, height, width, self.output_stride)


def _stem(in_channels: int, channels: tuple[int, ...], width: int, norm: Norm) -> nn.Sequential:
    """Three 3x3 convolutions with `channels` widths, or one 7x7 with `width`; halves the image."""
    if not channels:
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False), norm(width), nn.ReLU(inplace=True)
        )
    layers: list[nn.Module] = []
    previous, stride = in_channels, 2
    for c in channels:
        layers += [nn.Conv2d(previous, c, 3, stride, padding=1, bias=False), norm(c), nn.ReLU(inplace=True)]
        previous, stride = c, 1
    return nn.Sequential(*layers)


def _stage(
    block: BlockKind,
    channels: int,
    width: int,
    count: int,
    norm: Norm,
    stride: int,
    dilation: int,
    multi_grid: tuple[int, ...] = (),
) -> nn.Sequential:
    """The first block takes the stage's stride and half its dilation: its input is still the denser grid."""
    first = block(channels, width, norm, stride=stride, dilation=max(1, dilation // 2), project=True)
    factors = multi_grid or (1,) * count
    rest = [block(width * EXPANSION, width, norm, dilation=dilation * factors[i]) for i in range(1, count)]
    return nn.Sequential(first, *rest)
