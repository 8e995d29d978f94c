"""Attention maps as one picture: a row a base, a column an iteration.

Room: inference. Legend: H W image, h w feature grid, M parts, T iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from emaseg.data.dataset import Pixels
from emaseg.lettering import lettered, plain_font
from emaseg.visual import as_picture
from emaseg.words import excerpt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_WIDTH, _GAP, _NAME, _TITLE = 240, 10, 150, 34  # pixels: of a column, between, of the names, of the head
_PAPER, _INK, _SOFT = (250, 250, 248), (32, 34, 38), (112, 116, 122)
_HEIGHT = 1000  # pixels, of a cell at most: beyond it a tall image is drawn too short
# From nothing to all, by even steps of lightness (after Smith and van der Walt's viridis, five of its colours).
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)
_PHOTO = 0.35  # how much of the photograph shines through


def sheet(
    image: Pixels,
    maps: Float32,
    rows: Sequence[tuple[int, str, str]],
    columns: Sequence[str],
    extra: Sequence[tuple[str, UInt8]] = (),
) -> Image.Image:
    """The page.

    Args:
        image: (H, W, C) on 0..255. maps: (T, M, h, w) in 0..1.
        rows: which of the M, its name, and a remark. Colours go from 0 to a row's largest value, so that rows can be
            read; the value stands beside it.
        columns: T titles. extra: more pictures (h', w', 3) for the first line, beside the photograph, with titles.
    """
    height = min(_HEIGHT, max(1, round(_WIDTH * image.shape[0] / image.shape[1])))
    size = (_WIDTH, height)
    photo = Image.fromarray(as_picture(image)).resize(size, Image.Resampling.LANCZOS)
    first = [
        ("image", photo),
        *((name, Image.fromarray(cell).resize(size, Image.Resampling.NEAREST)) for name, cell in extra),
    ]
    wide = max(len(columns), len(first))
    whole = (_NAME + wide * (_WIDTH + _GAP) + _GAP, 2 * _TITLE + (len(rows) + 1) * (height + _GAP) + _GAP)
    page = Image.new("RGB", whole, _PAPER)
    draw = ImageDraw.Draw(page)
    title, plain = plain_font(16), plain_font(14)

    def put(line: int, column: int, cell: Image.Image) -> None:
        head = _TITLE if line == 0 else 2 * _TITLE
        page.paste(cell, (_NAME + column * (_WIDTH + _GAP), head + line * (height + _GAP)))

    for column, (name, cell) in enumerate(first):
        draw.text((_NAME + column * (_WIDTH + _GAP), 9), excerpt(name, 30), _INK, title)
        put(0, column, cell)
    for column, name in enumerate(columns):
        draw.text((_NAME + column * (_WIDTH + _GAP), _TITLE + height + _GAP + 9), name, _INK, title)
    grey = np.asarray(photo.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    for line, (index, name, remark) in enumerate(rows, start=1):
        most = float(maps[:, index].max()) or 1.0
        top = 2 * _TITLE + line * (height + _GAP)
        written, font = lettered(excerpt(name, 18), 16, f"class {index}")
        draw.text((_GAP, top), written, _INK, font)
        draw.text((_GAP, top + 22), f"{remark}\nmax {most:.3g}", _SOFT, plain)
        for column in range(len(maps)):
            put(line, column, _heat(maps[column, index] / most, grey, size))
    return page


def _heat(values: Float32, grey: Float32, size: tuple[int, int]) -> Image.Image:
    """Values (h, w) in 0..1 as colours over a grey photograph (height, width, 3)."""
    full = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    place = np.clip(full, 0, 1) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    part = (place - below)[..., None]
    colours = _COLOURS[below] * (1 - part) + _COLOURS[below + 1] * part
    return Image.fromarray((colours * (1 - _PHOTO) + grey * _PHOTO).astype(np.uint8))
