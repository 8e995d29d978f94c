"""Stage 4 on a CPU: every convolution packed, and what follows it (ReLU, the shortcut's sum) done in the same pass.

Room: engine. Legend: B batch, C channels, h w feature grid, N tokens, A channels of an attention.

`pack` goes through the modules and puts a fused one in the place of each kind that it knows; the norms are folded by
then. What it does not know stays as it is and works as before. Each class says the function of the one that it replaces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emaseg.engine.packed import (
    GELU,
    NONE,
    RELU,
    PackedConv,
    PackedLinear,
    leaky_relu,
    packed_linear,
    part,
)
from emaseg.engine.winograd import best_conv, joined, together
from emaseg.models.aspp import ASPP
from emaseg.models.backbones.hrnet import BasicBlock
from emaseg.models.backbones.resnest import SplitAttention, SplitBottleneck
from emaseg.models.backbones.resnet import Bottleneck
from emaseg.models.backbones.vit import Layer, SelfAttention
from emaseg.models.emanet import EMANet
from emaseg.models.layers import ConvNormAct
from emaseg.models.pixel_attention import PixelAttention


def pack(module: nn.Module) -> None:
    """Replace, below `module` and in place, all that can be packed; norms must have been folded."""
    if isinstance(module, EMANet) and module.fuse is not None:
        _pack_head(module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Sequential):
            _pack_activations(child)
        fused = _fused(child)
        if fused is None:
            pack(child)
        else:
            module.add_module(name, fused)


def _fused(module: nn.Module) -> nn.Module | None:
    """The packed module in the place of one that is known, else None."""
    match module:
        case Bottleneck():
            return _Bottleneck(module)
        case BasicBlock():
            return _BasicBlock(module)
        case SplitBottleneck():
            return _SplitBottleneck(module)
        case ConvNormAct() if _folded(module.norm):
            return best_conv(module.conv, leaky_relu(module.leak) if module.activate else NONE)
        case ASPP() if _folded(module.fuse.norm):
            return _Context(module)
        case PixelAttention():
            return _PixelAttention(module)
        case Layer():
            return _Layer(module)
        case nn.Conv2d():
            return best_conv(module)
        case nn.Linear():
            return packed_linear(module)
    return None


def _pack_activations(sequence: nn.Sequential) -> None:
    """Convolution, folded norm, ReLU in a row become one; the two places behind it are left empty."""
    for i in range(len(sequence) - 2):
        conv, norm, activation = sequence[i], sequence[i + 1], sequence[i + 2]
        if isinstance(conv, nn.Conv2d) and _folded(norm) and isinstance(activation, nn.ReLU):
            sequence[i], sequence[i + 2] = best_conv(conv, RELU), nn.Identity()


def _folded(norm: nn.Module) -> bool:
    return isinstance(norm, nn.Identity)


class _Bottleneck(nn.Module):
    """resnet.Bottleneck. The sum is written over the shortcut: nothing else reads a block's input afterwards, as the first
    block of each stage, whose input is kept for other heads, has a convolution on its shortcut."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = PackedConv(block.conv1, RELU)
        self.conv2 = best_conv(block.conv2, RELU)
        self.conv3 = PackedConv(block.conv3)
        self.downsample = None if block.downsample is None else PackedConv(_only_conv(block.downsample))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))  # before the shortcut, which is four times as large as what is held for it
        return self.conv3.add_relu(y, x if self.downsample is None else self.downsample(x))


class _BasicBlock(nn.Module):
    """hrnet.BasicBlock, written over its input; the branches' inputs are read by nothing else."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1 = best_conv(block.conv1, RELU)
        self.conv2 = best_conv(block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2.add_relu(self.conv1(x), x)


class _SplitBottleneck(nn.Module):
    """resnest.SplitBottleneck; the two splits' weights have the sum 1, so one interpolation mixes them."""

    def __init__(self, block: SplitBottleneck) -> None:
        super().__init__()
        attention: SplitAttention = block.conv2
        self.conv1 = PackedConv(block.conv1, RELU)
        self.splits = PackedConv(attention.conv, RELU)
        self.fc1 = PackedConv(attention.fc1, RELU)
        self.fc2 = PackedConv(attention.fc2)
        self.pool = block.pool
        self.conv3 = PackedConv(block.conv3)
        self.downsample = block.downsample
        if self.downsample is not None:
            pack(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self._attention(self.conv1(x)))
        return self.conv3.add_relu(y, x if self.downsample is None else self.downsample(x))

    def _attention(self, x: Tensor) -> Tensor:
        first, second = self.splits(x).chunk(2, dim=1)
        mean = (first.mean((2, 3), keepdim=True)) + second.mean((2, 3), keepdim=True)
        weights = self.fc2(self.fc1(mean)).unflatten(1, (2, -1)).softmax(1)  # (B, 2, C, 1, 1)
        return torch.lerp(second, first, weights[:, 0].expand_as(first))


class _Context(nn.Module):
    """aspp.ASPP. Its image mean is the same at every pixel: what the last convolution makes of it is computed once, and
    without the weights that lie beyond the image at the border."""

    def __init__(self, context: ASPP) -> None:
        super().__init__()
        fuse, mean = context.fuse, context.pooled.conv.out_channels
        rest = fuse.conv.in_channels - mean
        self.branches = context.branches
        self.pooled = context.pooled
        pack(self)
        self.fuse = best_conv(part(fuse.conv, inputs=slice(0, rest)))
        self.of_mean = [fuse.conv.weight.detach()[:, rest:].float()]  # in a list: not to be packed or moved
        self.leak = fuse.leak

    def forward(self, x: Tensor) -> Tensor:
        mean = self.pooled(x.mean(dim=(2, 3), keepdim=True))
        y = joined([branch(x) for branch in self.branches], self.fuse)
        y.add_(_constant_conv(mean.float(), self.of_mean[0], x.shape[2], x.shape[3]))
        return F.leaky_relu_(y, self.leak) if self.leak else y.relu_()


def _constant_conv(values: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """What a 3x3 convolution (O, C, 3, 3) with a border of zeros makes of a map with the same (B, C, 1, 1) at every pixel:
    (B, O, h, w), channels last. All but the outermost pixels are alike, so a map of 3 x 3 has every value."""
    small = F.conv2d(values.expand(-1, -1, min(height, 3), min(width, 3)), weight, padding=1)
    rows, columns = _stretched(height), _stretched(width)
    return small.permute(0, 2, 3, 1)[:, rows[:, None], columns].permute(0, 3, 1, 2)


def _stretched(side: int) -> Tensor:
    """(side,): of which of 3 pixels each of a longer side has the value, the middle one for all but the ends."""
    places = torch.arange(side).clamp_(max=1)
    places[-1] = min(side, 3) - 1
    return places


class _PixelAttention(nn.Module):
    """pixel_attention.PixelAttention with its projections packed."""

    def __init__(self, attention: PixelAttention) -> None:
        super().__init__()
        self.query, self.key = attention.query, attention.key
        pack(self.query)
        pack(self.key)
        value, out = _fused(attention.value), _fused(attention.out)
        assert value is not None  # both are convolutions
        assert out is not None
        self.value, self.out = value, out

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        q, k, v = (_rows(x) for x in (self.query(queries), self.key(source), self.value(source)))
        gathered = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])  # (B, 1, N, A)
        batch, _, height, width = queries.shape
        out: Tensor = self.out(gathered.view(batch, height, width, -1).permute(0, 3, 1, 2))
        return out


def _rows(x: Tensor) -> Tensor:
    """(B, A, h, w) -> (B, N, A); no copy where the channels lie together."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class _Layer(nn.Module):
    """vit.Layer with its four products packed, and the GELU in one of them."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        attention = layer.attn.attn
        assert isinstance(attention, SelfAttention)
        first, last = layer.ffn.layers[0][0], layer.ffn.layers[1]  # type: ignore[index]
        self.heads = attention.heads
        self.ln1, self.ln2 = layer.ln1, layer.ln2
        self.qkv = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = packed_linear(attention.out_proj)
        self.expand, self.reduce = packed_linear(first, GELU), packed_linear(last)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.ln1(x))
        return x + self.reduce(self.expand(self.ln2(x)))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, channels))
        return out


# ------------------------------------------------------------------------------------------------- EMANet's head
class _Head(nn.Module):
    """EMANet's head: `EMANet._head` with the sums in the convolutions' passes.

    The last convolution is the sum of two, of the backbone's channels and of the bottleneck's, so these are never joined.
    """

    def __init__(self, network: EMANet, fuse: nn.Conv2d) -> None:
        super().__init__()
        width = fuse.in_channels - network.bottleneck.conv.out_channels
        self.reduce = best_conv(network.reduce.conv, RELU)
        self.fuse_features = best_conv(part(fuse, inputs=slice(0, width)))
        self.fuse = best_conv(part(fuse, inputs=slice(width, None)))
        self.project = PackedConv(network.project)
        self.attention = network.attention
        self.expand = PackedConv(network.expand.conv)
        self.bottleneck = best_conv(network.bottleneck.conv, RELU)
        self.classifier = network.classifier

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        identity, from_features = together(features, self.reduce, self.fuse_features)
        del features  # the largest map here: nobody else holds it
        reconstruction, adapted = self.attention(self.project(identity))
        rows = torch.relu_(reconstruction).contiguous(memory_format=torch.channels_last)
        x = self.bottleneck(self.expand.add_relu(rows, identity))
        return self.classifier(self.fuse.add_relu(x, from_features)), adapted


def _pack_head(network: EMANet) -> None:
    """Put `_Head` in the place of the head's layers; its classifier and attention stay the network's own."""
    assert network.fuse is not None
    network.classifier = _fused(network.classifier) or network.classifier  # type: ignore[assignment]
    head = _Head(network, network.fuse.conv)
    for name in ("reduce", "project", "expand", "bottleneck", "fuse"):
        network.add_module(name, None)
    network.add_module("head", head)
    network._head = head.forward  # type: ignore[method-assign]


def _only_conv(sequence: nn.Sequential) -> nn.Conv2d:
    """The convolution of a shortcut: all that is left of one whose norm is folded."""
    (conv,) = (layer for layer in sequence if isinstance(layer, nn.Conv2d))
    return conv
