"""Vision transformer (Dosovitskiy et al. 2021), plain, with taps after chosen layers.

Paper: Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models/backbones. Legend: B batch, C channels, H W image, h w patch grid,
N = 1 + h*w tokens (the class token first), D heads.

Pre-norm blocks, exact GELU, no dropout, no norm after the last layer. The class token takes part in every layer and
is dropped from the maps. A block is numerically torchvision's `EncoderBlock` (tested).
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.backbones.extractor import FeatureExtractor, cells

NORM_EPSILON = 1e-6  # of sssegmentation's ViT
START_STD = 0.02  # of the truncated normal that everything starts from; own choice, the rows load weights


class SelfAttention(nn.Module):
    """Multi-head self-attention. Its parameters are those of `nn.MultiheadAttention`; no N x N map is stored."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, tokens, channels = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, D, N, C / D), scaled by 1 / sqrt(C / D)
        projected: torch.Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return projected


class Layer(nn.Module):
    """Attention, then a two-layer perceptron, each on normalised tokens and added to them.

    `attn` and `ffn` are nested as the published names want it.
    """

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels, NORM_EPSILON)
        self.attn = nn.Sequential(OrderedDict(attn=SelfAttention(channels, heads)))
        self.ln2 = nn.LayerNorm(channels, NORM_EPSILON)
        expand = nn.Sequential(nn.Linear(channels, hidden), nn.GELU())
        self.ffn = nn.Sequential(OrderedDict(layers=nn.Sequential(expand, nn.Linear(hidden, channels))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.ln1(x))
        y: torch.Tensor = x + self.ffn(self.ln2(x))
        return y


class ViT(FeatureExtractor):
    """Patches, class token, position embedding, layers.

    Args:
        image_size: (H, W) whose patch grid the position embedding holds; multiples of `patch`.
        taps: layers (from 0, ascending) whose outputs are returned. Layers behind the last one never run; they keep
            their weights, without a gradient.
        in_channels: of the images.
        width: C.  depth: layers.  heads: D.  hidden: width of the perceptrons.  patch: side of a patch.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int],
        taps: tuple[int, ...],
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        hidden: int = 4096,
        patch: int = 16,
    ) -> None:
        super().__init__()
        self.first_weight = "patch_embed.projection.weight"
        self.taps = taps
        self.channels = (width,) * len(taps)
        self.output_stride = patch
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.patch_embed = nn.Sequential(OrderedDict(projection=nn.Conv2d(in_channels, width, patch, patch)))
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))
        self.layers[max(taps) + 1 :].requires_grad_(False)
        _initialise(self)

    def forward(self, images: torch.Tensor, *, only_last: bool = False) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W), any size -> a map (B, C, ceil(H / patch), ceil(W / patch)) for each tap, not normalised."""
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % self.output_stride, 0, -height % self.output_stride))
        x = self.patch_embed(images)
        grid = x.shape[2:]
        batch = x.shape[0]
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions((grid[0], grid[1]))
        maps = []
        for i in range(max(self.taps) + 1):
            x = self.block(self.layers[i], x)
            if i == max(self.taps) or (i in self.taps and not only_last):
                maps.append(x[:, 1:].transpose(1, 2).reshape(batch, -1, *grid).contiguous())
        return tuple(maps)

    def norm_values(self, batch: int, height: int, width: int) -> int:
        """It has no batch norm; this is what one on its maps would see."""
        return cells(batch, height, width, self.output_stride)

    def fitted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`state` with its position embedding, of a square patch grid, resized to this network's grid."""
        embedding = state.get("pos_embed")
        if embedding is None or embedding.ndim != 3 or embedding.shape == self.pos_embed.shape:
            return state
        side = math.isqrt(max(embedding.shape[1] - 1, 0))
        if side == 0 or 1 + side * side != embedding.shape[1]:
            return state  # a strict loader reports it
        return {**state, "pos_embed": resize_positions(embedding, (side, side), self.grid)}

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The embedding for a patch grid. As published it is resized by the COUNT of patches only: another grid with
        as many patches (16 x 64 for 32 x 32) takes it unchanged, row after row.
        """
        if torch.compiler.is_exporting():
            return _positions_without_branch(self.pos_embed, self.grid, grid)
        if grid[0] * grid[1] == self.grid[0] * self.grid[1]:
            return self.pos_embed
        return resize_positions(self.pos_embed, self.grid, grid)


def resize_positions(embedding: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Position embedding for another patch grid: bilinear, corners not aligned, no antialiasing.

    Args:
        embedding: (1, 1 + h*w, C); the class token's place is kept as it is.
        grid: its (h, w).
        target: (h, w) wanted.
    """
    first, rest = embedding[:, :1], embedding[:, 1:]
    image = rest.transpose(1, 2).reshape(1, -1, *grid)
    image = F.interpolate(image, size=target, mode="bilinear", align_corners=False)
    return torch.cat([first, image.flatten(2).transpose(1, 2)], dim=1)


def _positions_without_branch(embedding: torch.Tensor, own: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """What `ViT._positions` chooses, as one program for all grids: both candidates are made, one is selected."""
    count = own[0] * own[1]
    resized = resize_positions(embedding, own, grid)
    places = torch.arange(resized.shape[1], device=embedding.device)
    unchanged = embedding[:, places.clamp(max=count)]
    return torch.where(places[-1] == count, unchanged, resized)


def _initialise(network: ViT) -> None:
    """Start from nothing: every weight a truncated normal, biases 0, norms 1 and 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif ".ln" not in name:
            nn.init.trunc_normal_(parameter, std=START_STD)
