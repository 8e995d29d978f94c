"""The [inference] and [inference_tta] sections: the protocol by which an image becomes its label map.

Room: recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.rule import SCALE, SIDE, key


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """From an image to its label map, at evaluation and prediction."""

    resize_long_short: tuple[int, ...] = key(
        "limits (long side, short side); [] keeps the image's own size", (), low=1, lengths=(0, 2), ceiling=SIDE
    )
    keep_ratio: bool = key("keep the aspect ratio inside the limits", True)
    pad: Literal["none", "8k+1"] = key('"8k+1" pads below and right to multiples of 8 plus 1 (EMANet authors)', "none")
    mode: Literal["whole", "slide"] = key("the whole image at once, or a sliding window", "whole")
    window: tuple[int, ...] = key("window (height, width) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    stride: tuple[int, ...] = key("window step (down, right) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    scales: tuple[float, ...] = key(
        "scales whose results are averaged", (1.0,), above=0, floor=0.01, ceiling=SCALE, most=32
    )
    scale_source: Literal["tensor", "image"] = key(
        "rescale the normalised tensor by the factor (sssegmentation), or the original image again (mmsegmentation)",
        "tensor",
    )
    flip: bool = key("average with the flipped image", False)
    flip_pairs: tuple[tuple[int, int], ...] = key(
        "pairs of classes that swap when flipped", (), low=0, ceiling=255, most=128
    )
    average: Literal["logits", "probs_before_resize", "probs_after_resize"] = key(
        "what is averaged; the softmax comes before resizing (sssegmentation) or after it (mmsegmentation)", "logits"
    )
    logits_path: Literal["direct", "via_input"] = key(
        "resize logits to the original size directly (sssegmentation), or via the input size (mmsegmentation, authors)",
        "direct",
    )
    precision: Literal["fp32", "bf16", "fp16"] = key(
        "what the network computes in at eval and predict; every published score is fp32", "fp32", extra=True
    )
