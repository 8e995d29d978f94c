"""Activations that are computed again in the backward pass instead of being kept (activation checkpointing).

Paper: Chen et al. 2016, https://arxiv.org/abs/1604.06174.
Reference: PyTorch's torch/utils/checkpoint.py at d0f2af8b66b2: by itself its second forward pass moves norm statistics again.

Room: models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


class Recomputing(nn.Module):
    """A module that runs in blocks, which may forget what lies between their inputs and their results.

    recompute: whether they do, in training. Losses, gradients and every buffer are the same to the bit: the second
    forward pass draws the dropout of the first and leaves the norms' running statistics alone.
    """

    recompute: bool = False

    def block(self, function: Callable[..., Result], *inputs: Any) -> Result:
        """`function(*inputs)`, of a submodule or of this module; it may change nothing but the statistics of norms."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return function(*inputs)
        owner = function if isinstance(function, nn.Module) else self
        result: Result = checkpoint(
            function, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _untracked(owner))
        )
        return result


@contextlib.contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Within the block, norms in training mode move copies of their running statistics, which nobody reads.

    Without any statistics (track_running_stats) they would save fewer tensors than the first time, which PyTorch refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    own = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in own:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in own:
            setattr(norm, name, buffer)
