"""Small parts that every network here is made of.

Room: models; imports torch only. Legend: B batch, C channels, H W image, h w feature grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Norm:
    """How batch norm is set up: momentum is the weight of the new statistics, epsilon is added to the variance."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.epsilon, momentum=self.momentum)


class ConvNormAct(nn.Module):
    """k x k convolution without bias, padded to keep the size at stride 1, then norm, then ReLU unless told not to."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, norm: Norm, *, stride: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = norm(channels_out)
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return torch.relu_(x) if self.activate else x


@dataclass(frozen=True, slots=True)
class Step:
    """What a model may ask about the training step it is in."""

    step: int  # optimiser steps done before this one
    epoch: int  # from 1
    lr: float  # schedule's value, without any group's factor
