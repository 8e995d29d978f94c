"""The network as inference needs it: no training-only parts, norms folded into convolutions, ends as asked for.

Room: export. Legend: B batch, H W image, h w feature grid, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models import Network

_TRIAL = (1, 3, 64, 64)  # any image shows which modules a forward pass calls


class InferenceNetwork(nn.Module):
    """What an exported file computes.

    Args:
        network: prepared by `slim`; this object takes it over.
        include: "normalize": the input is uint8 RGB; "argmax": the output is class ids at the input's size.
        mean, std: of the RGB channels, in 0..255.
        dtype: what the network computes in; input and output stay float32 (or uint8).
    """

    def __init__(
        self,
        network: Network,
        include: Collection[str],
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        self.align_corners = network.align_corners
        self.labels = "argmax" in include
        self.pixels = "normalize" in include
        if self.pixels:
            self.register_buffer("shift", torch.tensor(mean).view(3, 1, 1))
            self.register_buffer("factor", torch.tensor([1 / s for s in std]).view(3, 1, 1))

    shift: torch.Tensor
    factor: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised float32 or uint8 RGB -> logits (B, K, h, w) float32 or class ids (B, H, W) uint8."""
        x = (image.float() - self.shift) * self.factor if self.pixels else image
        logits: torch.Tensor = self.network(x.to(self.dtype)).float()
        if not self.labels:
            return logits
        size = image.shape[2:]
        scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
        return scores.argmax(dim=1).to(torch.uint8)


def slim(network: Network) -> None:
    """Drop what a forward pass never calls and fold every norm that can be folded, in place; eval mode is expected.

    The result computes the same function up to rounding. `verify` proves that on the written file.
    """
    network.requires_grad_(False)
    _drop(network, _called(network))
    fold_norms(network)


@torch.inference_mode()
def _called(network: nn.Module) -> set[nn.Module]:
    """The modules that a forward pass calls."""
    called: set[nn.Module] = set()

    def note(module: nn.Module, _: object) -> None:
        called.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in network.modules()]
    try:
        network(torch.zeros(_TRIAL))
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _drop(module: nn.Module, called: Collection[nn.Module]) -> None:
    """Replace the children of which nothing is called (auxiliary heads, a ViT's layers behind the last tap)."""
    for name, child in list(module.named_children()):
        if any(part in called for part in child.modules()):
            _drop(child, called)
        elif any(True for _ in child.parameters()):
            module.add_module(name, nn.Identity())


def fold_norms(network: nn.Module) -> int:
    """Fold each batch norm into the convolution in front of it; returns how many.

    A norm belongs to a convolution where it is the next child of the same module and has its channels: in this
    package's networks, and only then, it is all that reads the convolution's result.
    """
    count = 0
    for module in network.modules():
        children = list(module.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if conv.out_channels == norm.num_features and norm.running_var is not None:
                _fold(conv, norm)
                module.add_module(name, nn.Identity())
                count += 1
    return count


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """weight * (w x + b - mean) / sqrt(var + eps) + bias, as one convolution; computed in float64."""
    assert norm.running_mean is not None  # a norm has both statistics or none
    assert norm.running_var is not None
    kind = conv.weight.dtype
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    before = torch.zeros_like(factor) if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - norm.running_mean.double()) * factor
    weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(kind), requires_grad=False)
