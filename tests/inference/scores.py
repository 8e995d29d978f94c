"""The averaged scores that a label map is chosen from, of which the commands hold no more than a band at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emaseg.inference.protocols import Size, _rescaled, _sum, _terms, _whole
from emaseg.recipe import Inference


@torch.inference_mode()
def scores_map(model: nn.Module, image: Tensor, inference: Inference, size: Size) -> Tensor:
    """The averaged scores themselves, for a prepared image.

    Args:
        model: as for label_map.
        image: (1, C, h, w) normalised; the scales are taken from it, whatever `inference.scale_source` says.
        size: (H, W) of the result.

    Returns:
        (K, H, W) float32: mean logits, or mean probabilities, as `inference.average` says.
    """
    align_corners = bool(model.align_corners)
    terms = (_whole(term, align_corners) for term in _terms(model, _rescaled(image, inference.scales), inference))
    count = len(inference.scales) * (2 if inference.flip else 1)
    return _sum(terms, size, inference, align_corners).div_(count)
