"""Stages 1 and 2: what a forward pass never calls is dropped, and norms are folded into the convolutions before them.

Room: engine.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import torch
from torch import nn

from emaseg.models import Network

_TRIAL = (64, 64)  # any image shows which modules a forward pass calls


def slim(network: Network) -> None:
    """Drop what a forward pass never calls and fold every norm that can be folded, in place; eval mode is expected.

    The result computes the same function up to rounding.
    """
    network.requires_grad_(False)
    _drop(network, _called(network))
    fold_norms(network)


@torch.inference_mode()
def _called(network: Network) -> set[nn.Module]:
    """The modules that a forward pass calls."""
    called: set[nn.Module] = set()

    def note(module: nn.Module, _: object) -> None:
        called.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in network.modules()]
    try:
        network(torch.zeros(1, network.backbone.in_channels, *_TRIAL))
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
    """weight * (w x + b - mean) / sqrt(var + eps) + bias, as one convolution; its factor and bias computed in float64."""
    assert norm.running_mean is not None  # a norm has both statistics or none
    assert norm.running_var is not None
    kind = conv.weight.dtype
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    before = torch.zeros_like(factor) if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - norm.running_mean.double()) * factor
    conv.weight = nn.Parameter(conv.weight.detach() * factor.to(kind).view(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(kind), requires_grad=False)
