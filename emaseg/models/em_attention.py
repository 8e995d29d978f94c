"""Expectation-maximization attention (paper section 3.2, equations 10 to 15): E step, M step, reconstruction.

Paper: Li et al., ICCV 2019, https://arxiv.org/abs/1907.13426.
Reference: SegmentationBLWX/sssegmentation at eb1878c1; mmsegmentation 1.2.2; the authors' XiaLiPKU/EMANet at f09ffac.

Room: models. Legend: B batch, C channels, h w feature grid, N = h*w pixels, M bases (the paper's K), T iterations.

A few bases describe all pixels of an image, as in a mixture model. T times: the E step computes how much each base is
responsible for each pixel, the M step moves the bases to the pixels that they are responsible for. Every pixel is then
replaced by the mixture of the bases that are responsible for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.distributed.collectives import mean_over_ranks
from emaseg.models.layers import as_precise_as, without_autocast

_EPSILON_ADDED = 1e-6  # to a length before it divides: the authors' guard against 0
_EPSILON_CLAMP = 1e-12  # smallest length that divides: sssegmentation's and mmsegmentation's guard


def e_step(pixels: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    """E step (equation 11): pixels (B, C, N), bases (B, C, M) -> responsibilities (B, N, M), whose sum over M is 1."""
    return _without_denormals(torch.softmax(pixels.transpose(1, 2) @ bases, dim=2))


def m_step(pixels: torch.Tensor, responsibilities: torch.Tensor, *, add_epsilon: bool) -> torch.Tensor:
    """M step (equation 12): pixels (B, C, N), responsibilities (B, N, M) -> bases (B, C, M) of unit length.

    A base is the mean of the pixels, weighted by its responsibility for them. add_epsilon: as for `EMAttention`.
    """
    weights = _without_denormals(_unit(responsibilities, dim=1, power=1, add_epsilon=add_epsilon))
    bases = pixels @ weights
    return _unit(bases, dim=1, power=2, add_epsilon=add_epsilon)


class EMAttention(nn.Module):
    """Expectation-maximization attention.

    Args:
        channels: C of the feature map.
        bases: M.
        iterations, iterations_eval: T in training and otherwise.
        momentum: weight of the new bases in the moving average (the paper's 1 - alpha).
        normalise_average: L2-normalise the batch mean before blending it (sssegmentation, mmsegmentation).
        add_epsilon: guard the normalisations by x + 1e-6 (authors) instead of max(x, 1e-12).

    The buffer `bases` is (1, C, M): columns of unit length at the start; the blend is not normalised again, so their
    length drifts a little below 1, as published.
    """

    bases: torch.Tensor

    def __init__(
        self,
        channels: int,
        bases: int,
        *,
        iterations: int = 3,
        iterations_eval: int = 3,
        momentum: float = 0.1,
        normalise_average: bool = True,
        add_epsilon: bool = False,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.iterations_eval = iterations_eval
        self.momentum = momentum
        self.normalise_average = normalise_average
        self.add_epsilon = add_epsilon
        start = torch.empty(1, channels, bases)
        if not start.is_meta:  # there torch would first import its compiler, for seconds, to do nothing
            start = F.normalize(start.normal_(0, math.sqrt(2.0 / bases)), dim=1)
        self.register_buffer("bases", start)

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct a feature map from bases adapted to each image.

        Args:
            features: (B, C, h, w).

        Returns:
            The reconstruction (B, C, h, w) and the adapted bases (B, C, M); both are constants for autograd.
            Everything is computed in the number format of the stored bases, also under autocast.
        """
        batch, channels, height, width = features.shape
        pixels = as_precise_as(features, self.bases).reshape(batch, channels, height * width)  # (B, C, N)
        bases = self.bases.expand(batch, -1, -1)  # (B, C, M)
        with without_autocast(features):
            for _ in range(self.iterations if self.training else self.iterations_eval):
                responsibilities = e_step(pixels, bases)
                bases = m_step(pixels, responsibilities, add_epsilon=self.add_epsilon)
            # Equation 14. The responsibilities are those that made the last bases, not recomputed from them.
            reconstruction = as_precise_as(bases @ responsibilities.transpose(1, 2), features)
        return reconstruction.view(batch, channels, height, width), bases

    @torch.no_grad()
    def update(self, adapted: torch.Tensor) -> None:
        """Move the stored bases towards the batch mean of the adapted ones (equation 15), over all processes.

        Args:
            adapted: (B, C, M) from `forward`.
        """
        mean = mean_over_ranks(adapted.mean(dim=0, keepdim=True))
        if self.normalise_average:
            mean = _unit(mean, dim=1, power=2, add_epsilon=self.add_epsilon)
        self.bases.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)


def _without_denormals(x: torch.Tensor) -> torch.Tensor:
    """0 in the place of positive numbers too small for a full mantissa (below 1e-38 in float32): where pixels are long, a
    tenth of the responsibilities are such, and a product with them takes some processors 30 times as long."""
    return F.threshold(x, torch.finfo(x.dtype).tiny, 0.0)


def _unit(x: torch.Tensor, *, dim: int, power: int, add_epsilon: bool) -> torch.Tensor:
    """`x` divided by its length along `dim`: the sum of the magnitudes (power 1), or the Euclidean length (power 2)."""
    if add_epsilon:
        length: torch.Tensor = torch.linalg.vector_norm(x, power, dim=dim, keepdim=True)
        return x / (_EPSILON_ADDED + length)
    return F.normalize(x, p=power, dim=dim, eps=_EPSILON_CLAMP)
