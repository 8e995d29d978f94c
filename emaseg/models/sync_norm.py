"""Batch norm whose statistics are those of the whole batch, however many processes share it (model.norm = "sync").

Room: models. Legend: B batch of this process, C channels, H W grid, R processes.

On CUDA this is torch's SyncBatchNorm. Torch has none for other devices, where the class below does the same: one message
of 2 C + 1 values from each process in the forward pass (means, variances, number of values) and one of 2 C in the
backward pass. The statistics are combined in the order of the ranks, so that every process keeps the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from emaseg.distributed.collectives import sum_over_ranks, world_size

_OVER = (0, 2, 3)  # what a channel's statistics are over: B, H, W


def share_norms(network: nn.Module, device: torch.device) -> None:
    """Give a network's batch norms the statistics of all processes; parameters and buffers stay the same objects."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SharedBatchNorm):
                setattr(module, name, _shared(child, device))


def norm_alone(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A batch norm of what this process has alone, where all processes have the same."""
    if isinstance(norm, nn.BatchNorm2d):
        return nn.BatchNorm2d.forward(norm, x)
    if not isinstance(norm, _BatchNorm) or norm.momentum is None or norm.num_batches_tracked is None:
        raise TypeError(f"{type(norm).__name__} is not a batch norm of these networks")
    if norm.training:
        norm.num_batches_tracked.add_(1)
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps
    )


def _shared(norm: nn.BatchNorm2d, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        converted.train(norm.training)
        return converted
    shared = SharedBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
    for name, parameter in norm.named_parameters():
        setattr(shared, name, parameter)
    for name, buffer in norm.named_buffers():
        setattr(shared, name, buffer)
    return shared.train(norm.training)


class SharedBatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm2d, but in training its statistics are over the batches of all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same, normalised."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        y, mean, variance, count = _NormOverRanks.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        normalised: torch.Tensor = y
        return normalised


class _NormOverRanks(torch.autograd.Function):
    """(B, C, H, W) of each process, normalised over all of them; also the mean, the variance and the number of values."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=_OVER, correction=0)
        own = torch.cat([mean, variance, mean.new_full((1,), wide.numel() // wide.shape[1])])
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own)
        all_parts = torch.stack(parts)  # (R, 2 C + 1)
        means, variances, counts = (*all_parts[:, :-1].chunk(2, dim=1), all_parts[:, -1:])
        count = counts.sum()
        mean = (means * counts).sum(dim=0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(dim=0) / count  # Chan et al., 1979
        scale = torch.rsqrt(variance + epsilon)
        hat = (wide - _wide(mean)).mul_(_wide(scale))
        y = (hat * _wide(weight)).add_(_wide(bias)).to(x.dtype)
        ctx.save_for_backward(hat, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        hat, weight, scale, count = ctx.saved_tensors
        gradient = incoming[0].to(hat.dtype)
        of_bias = gradient.sum(dim=_OVER)
        of_weight = (gradient * hat).sum(dim=_OVER)
        mean_bias, mean_weight = (sum_over_ranks(torch.cat([of_bias, of_weight])) / count).chunk(2)
        of_x = (gradient - _wide(mean_bias) - hat * _wide(mean_weight)) * _wide(scale * weight)
        return of_x.to(incoming[0].dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _wide(channels: torch.Tensor) -> torch.Tensor:
    """(C,) -> (1, C, 1, 1)."""
    return channels.view(1, -1, 1, 1)
