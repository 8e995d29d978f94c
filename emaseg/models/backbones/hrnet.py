"""HRNetV2p (Sun et al. 2019): four resolutions side by side, exchanged after every module, joined at stride 4.

Paper: Sun et al. 2019, https://arxiv.org/abs/1904.04514.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; stem_relu = false is the stem before 4602275d.

Room: models/backbones. Legend: B batch, C channels, H W image,
h w feature grid.

    stem (stride 4) -> 4 bottlenecks -> stage2: 2 branches -> stage3: 3 -> stage4: 4 -> joined map
Branch b has width * 2**b channels at stride 4 * 2**b. A stage takes the branches before it and makes one more from
the coarsest. All upsampling is bilinear, corners not aligned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.backbones.extractor import FeatureExtractor, cells, initialise
from emaseg.models.backbones.resnet import EXPANSION, Bottleneck
from emaseg.models.layers import Norm

STEM_CHANNELS = 64  # of both stem convolutions, whatever the width
STRIDE = 4  # of the finest branch


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the shortcut; neither width nor size changes."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        return torch.relu_(y.add_(x))


class Exchange(nn.Module):
    """One module of a stage: basic blocks on each branch, then every branch receives the sum of all of them.

    Args:
        channels: of the branches, fine to coarse.
        blocks: basic blocks of a branch.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int, norm: Norm) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(c, norm) for _ in range(blocks))) for c in channels)
        count = range(len(channels))
        self.fuse_layers = nn.ModuleList(nn.ModuleList(_path(channels, j, i, norm) for j in count) for i in count)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of the branches, fine to coarse -> the same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._fused(maps, i) for i in range(len(maps))]

    def _fused(self, maps: list[torch.Tensor], i: int) -> torch.Tensor:
        """What branch `i` has after the exchange: the sum over the branches, fine to coarse, then ReLU."""
        terms = []
        for j, x in enumerate(maps):
            y = self.fuse_layers.get_submodule(f"{i}.{j}")(x)
            if j > i:
                # Twice, as published: by the factor between the branches, then to the size. They differ at odd sizes.
                y = F.interpolate(y, scale_factor=2.0 ** (j - i), mode="bilinear", align_corners=False)
                y = _resized(y, maps[i])
            terms.append(y)
        total = terms[0] + terms[1]
        for y in terms[2:]:
            total = total.add_(y)
        return torch.relu_(total)


def _path(channels: tuple[int, ...], source: int, target: int, norm: Norm) -> nn.Module:
    """From branch `source` to branch `target`, without the upsampling of the way to a finer one."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(channels[source], channels[target], 1, bias=False), norm(channels[target]))
    halvings = [_conv(channels[source], channels[source], norm, stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, _conv(channels[source], channels[target], norm, stride=2, activate=False))


def _conv(channels_in: int, channels_out: int, norm: Norm, *, stride: int, activate: bool = True) -> nn.Sequential:
    """3x3 convolution, norm, ReLU unless told not to."""
    layers = [nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), norm(channels_out)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activate else nn.Sequential(*layers)


def _resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` on the grid of `like`; untouched when it has it.

    An exported program is one for all sizes and cannot choose: it always resizes, which to the same size is exact.
    """
    size = like.shape[2:]
    if not torch.compiler.is_exporting() and x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class HRNet(FeatureExtractor):
    """Three stages of 2, 3 and 4 branches behind a stem and four bottlenecks.

    Args:
        in_channels: of the images.
        stem_relu: ReLU after the stem's first norm. The released MemoryNets were trained without it.
        width: channels of the finest branch.
        modules: exchanges of stages 2, 3 and 4.
        blocks: basic blocks of a branch in each module, and bottlenecks before stage 2.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem_relu: bool,
        width: int = 48,
        modules: tuple[int, int, int] = (1, 4, 3),
        blocks: int = 4,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.first_weight = "conv1.weight"
        self.stem_relu = stem_relu
        self.output_stride = STRIDE
        widths = tuple(width * 2**b for b in range(4))
        self.channels = (sum(widths),)
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 3, 2, padding=1, bias=False)
        self.bn1 = norm(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, 2, padding=1, bias=False)
        self.bn2 = norm(STEM_CHANNELS)
        inner = STEM_CHANNELS * EXPANSION
        rest = [Bottleneck(inner, STEM_CHANNELS, norm) for _ in range(blocks - 1)]
        self.layer1 = nn.Sequential(Bottleneck(STEM_CHANNELS, STEM_CHANNELS, norm, project=True), *rest)
        self.transition1 = nn.ModuleList(
            [_conv(inner, widths[0], norm, stride=1), nn.Sequential(_conv(inner, widths[1], norm, stride=2))]
        )
        self.stage2 = _stage(widths[:2], modules[0], blocks, norm)
        self.transition2 = _transition(widths[:3], norm)
        self.stage3 = _stage(widths[:3], modules[1], blocks, norm)
        self.transition3 = _transition(widths, norm)
        self.stage4 = _stage(widths, modules[2], blocks, norm)
        initialise(self)

    def forward(self, images: torch.Tensor, *, only_last: bool = False) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) -> one map (B, 15 * width, ceil(H / 4), ceil(W / 4)), fine branches first."""
        x = self.block(self._stem, images)
        for block in self.layer1:
            x = self.block(block, x)
        maps = self._stage(self.stage2, [transition(x) for transition in self.transition1])
        maps = self._stage(self.stage3, [*maps, self.transition2[-1](maps[-1])])
        maps = self._stage(self.stage4, [*maps, self.transition3[-1](maps[-1])])
        return (torch.cat([_resized(y, maps[0]) for y in maps], dim=1),)

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(images))
        x = torch.relu_(x) if self.stem_relu else x
        return torch.relu_(self.bn2(self.conv2(x)))

    def _stage(self, exchanges: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        for exchange in exchanges.children():
            maps = self.block(exchange, maps)
        return maps

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """The coarsest branch has the fewest."""
        return cells(batch, height, width, STRIDE * 2**3)


def _stage(channels: tuple[int, ...], modules: int, blocks: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(Exchange(channels, blocks, norm) for _ in range(modules)))


def _transition(channels: tuple[int, ...], norm: Norm) -> nn.ModuleList:
    """The branches before stay as they are, the last is new: half the grid of the coarsest of them."""
    new = nn.Sequential(_conv(channels[-2], channels[-1], norm, stride=2))
    return nn.ModuleList([*(nn.Identity() for _ in channels[:-1]), new])
