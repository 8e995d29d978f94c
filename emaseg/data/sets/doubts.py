"""What does not stop a training but would spoil its result, as the files show it: told by `init`, `check-data` and at
the start of training.

Room: data/sets. Legend: H W image height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emaseg.data.dataset import Dataset
from emaseg.data.doubts import Doubt
from emaseg.data.files.images import Header, image_header, read_image
from emaseg.data.files.mask_values import mask_values
from emaseg.data.sets.mixed_palettes import mixed_palettes
from emaseg.data.sets.pairs import PairedFiles, first_few
from emaseg.errors import DataError

__all__ = ["file_doubts"]

_READ = 64  # images of 16 bits whose range is looked at
_NARROW = 64  # of 256 levels: a quarter of the range


def file_doubts(dataset: Dataset, chosen: Sequence[int]) -> list[Doubt]:
    """Of the files of some samples: palettes that differ, dark 16-bit images, further pages; and files left out."""
    if not isinstance(dataset, PairedFiles):
        return []
    found = [Doubt("left", text, "convert what should be used, or take it for known") for text in dataset.left]
    masks = [dataset.items[index][1] for index in chosen if index < len(dataset.items)]
    found += _palettes(masks)
    layered = [path for path in masks if path.suffix.lower() in (".tif", ".tiff") and _pages(path) > 1]
    if layered:
        found.append(
            Doubt(
                "pages",
                f"{len(layered):,} of {len(masks):,} masks have several pages, and the first is the one read: "
                f"{first_few(layered, 2)}",
                "if each page is a class, save them as one mask of class numbers, or as a file each and use emaseg convert",
            )
        )
    headers = [(path, header) for index in chosen if (header := _header(path := dataset.files(index)[0])) is not None]
    paged = [path for path, header in headers if header.pages > 1]
    if paged and dataset.bands is None:
        found.append(
            Doubt(
                "pages",
                f"{len(paged):,} of {len(headers):,} images have several pages, and the first is the one read: "
                f"{first_few(paged, 2)}",
                "if the pages are bands, declare their number in backbone.in_channels, with as many values in mean and std; "
                "or write three of them as the red, green and blue of one image",
            )
        )
    return found + (_range([path for path, header in headers if header.bits == 16]) if dataset.bands is None else [])


def _header(path: Path) -> Header | None:
    try:
        return image_header(path)
    except DataError:  # told where it is read
        return None


def _pages(path: Path) -> int:
    header = _header(path)
    return header.pages if header else 1


def _palettes(masks: Sequence[Path]) -> list[Doubt]:
    """Palettes are compared first; only where they differ are the masks read, for the indices that they use."""
    palettes = {}
    for path in masks:
        if path.suffix.lower() in (".png", ".gif", ".tif", ".tiff", ".bmp") and (header := _header(path)):
            palettes[path] = header.palette
    known = [palette for palette in palettes.values() if palette]
    shortest = min(map(len, known), default=0)
    if len({palette[:shortest] for palette in known}) < 2:
        return []
    rows = []
    for path, palette in palettes.items():
        try:
            rows.append((path, palette, np.unique(mask_values(path, path).values).tolist()))
        except DataError:
            continue
    mixed = mixed_palettes(rows)
    return [] if mixed is None else [Doubt("palettes", mixed.text, mixed.hint)]


def _range(paths: Sequence[Path]) -> list[Doubt]:
    """16-bit images that use a sliver of their range: they become a few levels of the eight bits that are read."""
    low, high = 255, 0
    for path in paths[:_READ]:
        try:
            image = read_image(path)
        except DataError:
            continue
        low, high = min(low, int(image.min())), max(high, int(image.max()))
    if not paths or high < low or high - low >= _NARROW:
        return []
    return [
        Doubt(
            "range",
            f"{len(paths):,} images of 16 bits use about {low * 256} to {high * 256 + 255} of 0 to 65535: of 256 levels {high - low + 1} "
            f"are left when they are read, {paths[0]} for example",
            f"declare what they use: data.range = [[{low * 256}, {high * 256 + 255}]] (with augment.photometric = "
            '"none"); or scale all of them alike to the whole range and save 8 bits, for example with '
            f"`gdal_translate -ot Byte -scale {low * 256} {high * 256 + 255} 0 255 in.tif out.tif`",
        )
    ]
