"""Small parts that every network here is made of.

Room: models. Legend: B batch, C channels, H W image, h w feature grid, K classes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.models.sync_norm import norm_alone


@dataclass(frozen=True, slots=True)
class Norm:
    """The options of every batch norm of a network: momentum is the weight of the new statistics, epsilon is added to the variance."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.epsilon, momentum=self.momentum)


class ConvNormAct(nn.Module):
    """k x k convolution without bias, padded to keep the size at stride 1, then norm, then ReLU unless told not to.

    Args:
        leak: slope of the activation below zero; 0 is ReLU.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        norm: Norm,
        *,
        stride: int = 1,
        dilation: int = 1,
        activate: bool = True,
        leak: float = 0.0,
    ) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, bias=False)
        self.norm = norm(channels_out)
        self.activate = activate
        self.leak = leak

    def forward(self, x: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
        """alone: the statistics are this process's, as all processes have the same x."""
        x = self.conv(x)
        x = norm_alone(self.norm, x) if alone else self.norm(x)
        if not self.activate:
            return x
        return F.leaky_relu_(x, self.leak) if self.leak else torch.relu_(x)


class Head(nn.Module):
    """Classification head: k x k convolution, channel dropout, 1x1 classifier. (B, C, h, w) -> logits (B, K, h, w)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        classes: int,
        kernel: int,
        dropout: float,
        norm: Norm,
        *,
        leak: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = ConvNormAct(channels_in, channels, kernel, norm, leak=leak)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
        """alone: as for ConvNormAct."""
        # A packed convolution of the engine, which never trains, has no such argument.
        x = self.conv(x, alone=True) if alone else self.conv(x)
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


def as_precise_as(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` in the number format of `like`. Where that is its own, an exported program has no trace of this."""
    return x if x.dtype == like.dtype else x.to(like.dtype)


def without_autocast(like: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Within the block, operations on the device of `like` compute in the format of their inputs."""
    kind = like.device.type
    if like.is_meta or not torch.is_autocast_enabled(kind):  # an exported program has no trace of the block then
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


@dataclass(frozen=True, slots=True)
class Step:
    """Where in the training a step is."""

    step: int  # optimiser steps done before this one
    epoch: int  # from 1
    lr: float  # schedule's value, without a warm-up and any group's factor
