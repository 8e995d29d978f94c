"""What an exported file computes: the slimmed network between its ends, normalisation and arg max, as asked for.

Room: exporting. Legend: B batch, H W image, h w feature grid, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from emaseg.engine import stays_float32
from emaseg.models import Network


class InferenceNetwork(nn.Module):
    """What an exported file computes.

    Args:
        network: prepared by the engine's `slim`; this object takes it over.
        include: "normalize": the input is uint8 pixels; "argmax": the output is class ids at the input's size.
        mean, std: of each channel, in 0..255.
        dtype: what the network computes in, but for EM attention and class memory, which stay in float32; input and
            output stay float32 (or uint8).
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
        for part in network.modules():
            if stays_float32(part):
                part.float()
        self.dtype = dtype
        self.align_corners = network.align_corners
        self.labels = "argmax" in include
        self.pixels = "normalize" in include
        if self.pixels:
            self.register_buffer("shift", torch.tensor(mean).view(-1, 1, 1))
            self.register_buffer("factor", torch.tensor([1 / s for s in std]).view(-1, 1, 1))

    shift: torch.Tensor
    factor: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) normalised float32 or uint8 -> logits (B, K, h, w) float32 or class ids (B, H, W) uint8."""
        x = (image.float() - self.shift) * self.factor if self.pixels else image
        logits: torch.Tensor = self.network(x.to(self.dtype)).float()
        if not self.labels:
            return logits
        size = image.shape[2:]
        scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
        return scores.argmax(dim=1).to(torch.uint8)
