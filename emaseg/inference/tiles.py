"""Images whose activations do not fit into memory: which tiles they are predicted in, and how much memory that takes.

Room: inference. Legend: H W image height and width. Sizes are bytes unless a name says otherwise.

What a network takes grows with its input: some kilobytes for each pixel, 15 GB for a photograph of 100 megapixels. Such
an image is divided into tiles whose results are kept without their margins. A tile sees no further than its own border,
and attention that gathers from the whole image gathers from the tile: another protocol than the recipe's, so it is used
only where the image does not fit otherwise, and told with the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from emaseg.data.dataset import Box
from emaseg.data.pipeline.resize import limit_size
from emaseg.free_memory import is_out_of_memory, peak_memory, reset_peak
from emaseg.recipe import Inference

SIDES = (2048, 1536, 1024, 768, 512, 384, 256, 128)  # pixels of the network's input, of a tile with its margins
_CELL = 32  # pixels: the coarsest grid of the networks here
MARGIN = 8  # a tile's margin is this part of its side: what both neighbours see around a border
USUAL_PIXEL = 12_000  # for each input pixel, the networks here at most; measured before it is used to divide an image
_TRIAL = 384  # pixels, side of the input that is measured
_SPARE = 1.25  # of what is measured; allocators lose some
RESULT = 12  # for each pixel of the image: labels, overlay and the files of both while they are made


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image is divided.

    Attributes:
        side: of a tile with its margins, in pixels of the image (height, width). margin: (down, right).
        boxes: (tile, its part that is kept), both as (top, left, height, width) in the image.
    """

    side: tuple[int, int]
    margin: tuple[int, int]
    boxes: tuple[tuple[Box, Box], ...]

    def __str__(self) -> str:
        height, width = self.side
        return f"{len(self.boxes)} tiles of {width} x {height} pixels, {2 * self.margin[1]} of them shared"


def input_size(size: tuple[int, int], inference: Inference) -> tuple[int, int]:
    """(h, w) of the network's largest input for an image of (H, W)."""
    h, w = limit_size(size, inference.resize_long_short, inference.keep_ratio)
    scale = max(inference.scales)
    h, w = round(h * scale), round(w * scale)
    if inference.mode == "slide":
        return min(h, inference.window[0]), min(w, inference.window[1])
    return h, w


def whole_need(size: tuple[int, int], inference: Inference, classes: int, for_pixel: float) -> float:
    """What the whole image takes beyond the decoded image itself."""
    height, width = size
    scaled = limit_size(size, inference.resize_long_short, inference.keep_ratio)
    largest = scaled[0] * scaled[1] * max(inference.scales) ** 2
    h, w = input_size(size, inference)
    held = 0.0
    if inference.mode == "slide":
        held += 4 * classes * largest  # the sum over the windows
        if len(inference.scales) > 1 or inference.flip:  # whole images' terms stay on the feature grid
            held += 4 * classes * height * width  # the sum over the terms
    return RESULT * height * width + 24 * largest + held + for_pixel * h * w


def tiling(size: tuple[int, int], inference: Inference, budget: float, for_pixel: float, most: int) -> Tiling:
    """The division with the largest tiles of which one fits.

    Args:
        size: (H, W).
        budget: what a tile may take. for_pixel: of the network's input.
        most: pixels of a tile's side, in the network's input.
    """
    sides = [side for side in SIDES if side <= most] or [SIDES[-1]]
    side = next((side for side in sides if side * side * for_pixel <= budget), sides[-1])
    scaled = limit_size(size, inference.resize_long_short, inference.keep_ratio)
    scale = max(inference.scales)
    steps = [
        _spans(length, max(16, round(side * length / (after * scale))))
        for length, after in zip(size, scaled, strict=True)
    ]
    boxes = tuple(
        ((tile_top, tile_left, tile_bottom - tile_top, tile_right - tile_left), (top, left, bottom - top, right - left))
        for (tile_top, tile_bottom, top, bottom) in steps[0]
        for (tile_left, tile_right, left, right) in steps[1]
    )
    first = boxes[0][0]
    return Tiling((first[2], first[3]), (first[2] // MARGIN, first[3] // MARGIN), boxes)


def _spans(length: int, side: int) -> list[tuple[int, int, int, int]]:
    """(start, end, kept start, kept end) of the tiles along one side.

    They start at multiples of `_CELL` pixels of the image (cells of its feature grid where it is not resized); the last one
    is shifted back and may be a little longer.
    """
    side = min(side, length)
    margin, cell = side // MARGIN, _CELL if side >= SIDES[-1] else 1
    spans, kept = [], 0
    while kept < length:
        start = min(max(0, kept - margin), length - side) // cell * cell
        end = length if start + side + cell > length else start + side
        stop = length if end == length else end - margin
        spans.append((start, end, kept, stop))
        kept = stop
    return spans


def tile_size(tile: Box, size: tuple[int, int], inference: Inference) -> tuple[int, int]:
    """(h, w) that a tile of an image of (H, W) is resized to: by the image's own factors."""
    h, w = limit_size(size, inference.resize_long_short, inference.keep_ratio)
    return max(1, round(tile[2] * h / size[0])), max(1, round(tile[3] * w / size[1]))


@torch.inference_mode()
def measured_need(model: nn.Module, device: torch.device, channels: int) -> float:
    """What a pixel of the network's input takes, measured on a small one; the usual value where nothing can be measured."""
    height, width = getattr(model, "input_size", None) or (_TRIAL, _TRIAL)  # an exported file may take one size only
    trial = torch.zeros(1, channels, height, width, device=device)
    try:
        model(trial)  # what is allocated once is not counted
        reset_peak(device)
        before = peak_memory(device)
        model(trial)
        after = peak_memory(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return float(USUAL_PIXEL)
    if before is None or after is None or after <= before:
        return float(USUAL_PIXEL)
    return _SPARE * (after - before) / (height * width)
