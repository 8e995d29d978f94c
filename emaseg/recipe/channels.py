"""Images that are not 8-bit RGB: what the keys that describe them ask of the others.

Room: recipe. Legend: C channels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from emaseg.recipe.data import Data, FolderData, PackedData, Range
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Problem
from emaseg.words import counted

RGB = 3
_NARROWEST = 1e-30  # between black and white: 255 divided by less may be no float of 32 bits


def ranges(data: Data) -> tuple[Range, ...]:
    """`data.range`: (black, white) of all channels, or of each; () where the images are 8-bit."""
    return data.range if isinstance(data, FolderData | PackedData) else ()


def is_rgb8(recipe: Recipe) -> bool:
    """Whether the images are read as 8-bit RGB, as every published data set has them."""
    return recipe.backbone.in_channels == RGB and not ranges(recipe.data)


def channel_names(recipe: Recipe) -> tuple[str, ...]:
    """What the C channels are called, for other programs."""
    count = recipe.backbone.in_channels
    known = {1: ("grey",), RGB: ("red", "green", "blue")}
    return known.get(count) or tuple(f"channel {number}" for number in range(1, count + 1))


def channel_problems(recipe: Recipe) -> Iterator[Problem]:
    """What contradicts backbone.in_channels and data.range."""
    backbone, data = recipe.backbone, recipe.data
    channels = backbone.in_channels
    for name, values in (("mean", backbone.mean), ("std", backbone.std)):
        if len(values) != channels:
            text = f"{counted(len(values), 'value')} for in_channels = {channels}; give one for each channel"
            yield Problem(f"backbone.{name}", text)
    if channels != RGB and not isinstance(data, FolderData | PackedData):
        text = f"{channels}, but images of data.kind {data.kind} are RGB; only folder and packed have others"
        yield Problem("backbone.in_channels", text)
    found = ranges(data)
    if len(found) not in (0, 1, channels):
        text = f"{len(found)} pairs for in_channels = {channels}; give one for all channels or one for each"
        yield Problem("data.range", text)
    for low, high in found:
        if low >= high:
            yield Problem(
                "data.range", f"[{low:g}, {high:g}] is empty; the value of black comes first, white's is above"
            )
        elif _float32(high) - _float32(low) < _NARROWEST:
            text = f"[{low!r}, {high!r}] is too narrow: in floats of 32 bits, which pixels become, it holds one value"
            yield Problem("data.range", f"{text}; scale the values in the files")
    yield from _colour(recipe)


def _float32(value: float) -> float:
    """The nearest float of 32 bits; data.range has limits far below their largest."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _colour(recipe: Recipe) -> Iterator[Problem]:
    """Augmentations that are defined on red, green and blue of 8 bits."""
    if is_rgb8(recipe):
        return
    augment, channels = recipe.augment, recipe.backbone.in_channels
    what = f"in_channels = {channels}" if channels != RGB else "data.range, whose images have more than 8 bits"
    if augment.photometric != "none":
        yield Problem("augment.photometric", f'is defined on 8-bit RGB; write "none" with {what}')
    if augment.jpeg > 0:
        yield Problem("augment.jpeg", f"is defined on 8-bit RGB; write 0 with {what}")
