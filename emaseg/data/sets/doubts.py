"""What does not stop a training but would spoil its result, as the files show it: told by `init`, `check-data` and at
the start of training.

Room: data/sets. Legend: H W image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.checks import spread
from emaseg.data.dataset import Dataset
from emaseg.data.doubts import Doubt
from emaseg.data.files.bands import Bands, pgm_top
from emaseg.data.files.images import Header, decode, image_header, read_image
from emaseg.data.files.label_files import LabelRule, same_order
from emaseg.data.files.mask_values import mask_values
from emaseg.data.sets.mixed_bits import mixed_bits
from emaseg.data.sets.mixed_palettes import mixed_palettes
from emaseg.data.sets.pairs import PairedFiles, first_few
from emaseg.errors import DataError

__all__ = ["file_doubts"]

_READ = 64  # images of 16 bits whose range is looked at, and masks of 1 bit and of more
_INDEXED = (".png", ".gif", ".tif", ".tiff", ".bmp")  # that may have a palette, or 1 bit
_PGM = (".pgm", ".pnm")
_COLOURED = ("RGB", "RGBA")  # modes
_LAYERS = 8  # TIFFs whose transparency is looked at
_NARROW = 64  # of 256 levels: a quarter of the range
_SLIVER = 13  # ... 5 % of it
_APART = 32  # levels between an extreme one and all others that make it a mark rather than a value


def file_doubts(dataset: Dataset, chosen: Sequence[int]) -> list[Doubt]:
    """Of the files of some samples: palettes or bits that differ, dark 16-bit images, further pages, images that are
    read turned; and files left out."""
    if not isinstance(dataset, PairedFiles):
        return []
    found = [Doubt("left", text, "convert what should be used, or take it for known") for text in dataset.left]
    pairs = [dataset.items[index] for index in chosen if index < len(dataset.items)]
    masks = [mask for _, mask in pairs]
    heads = {path: head for path in masks if path.suffix.lower() in _INDEXED and (head := _header(path))}
    found += _two_ways(heads, dataset.rule) + _palettes(heads) + _bits(heads)
    layered = [path for path, head in heads.items() if path.suffix.lower() in (".tif", ".tiff") and head.pages > 1]
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
    found += _turned(dict(pairs), dict(headers), heads)
    if dataset.bands is not None:
        return found + _pgm_range([path for path, _ in headers], dataset.bands)
    return found + _see_through(headers) + _range([path for path, header in headers if header.bits == 16])


def _header(path: Path) -> Header | None:
    try:
        return image_header(path)
    except DataError:  # told where it is read
        return None


def _turned(pairs: Mapping[Path, Path], headers: Mapping[Path, Header], heads: Mapping[Path, Header]) -> list[Doubt]:
    """Images whose EXIF orientation keeps their size, so that a mask drawn on the stored pixels fits them all the same.

    There is no doubt where masks fit images whose sides it exchanges: they were drawn on turned images.

    Args:
        pairs: the mask of each image. headers: of the images. heads: of the masks.
    """
    kept = []
    for image, mask in pairs.items():
        header, head = headers.get(image), heads.get(mask)
        if header is None or header.turn == 1:
            continue
        if header.turn <= 4 or header.size[0] == header.size[1]:
            kept.append(image)
        elif head is not None and head.size == header.size:
            return []
    if not kept:
        return []
    return [
        Doubt(
            "turned",
            f"{len(kept):,} of {len(pairs):,} images are turned or mirrored when they are read, as their EXIF "
            "orientation says, but keep their size, so that it does not show whether their masks were drawn on the "
            f"turned pixels: {first_few(kept, 2)}",
            "look at them with check-data --sheet; masks drawn on the unturned pixels must be turned, too",
        )
    ]


def _two_ways(heads: Mapping[Path, Header], rule: LabelRule) -> list[Doubt]:
    """Masks that are read by their colours beside masks that are read by their numbers, unless these are alike."""
    if not rule.palette or rule.layout:
        return []
    colours = [path for path, head in heads.items() if head.mode in _COLOURED]
    numbers = [
        path for path, head in heads.items() if head.mode not in _COLOURED and not same_order(head.palette, rule)
    ]
    if not colours or not numbers:
        return []
    return [
        Doubt(
            "ways",
            f"{len(colours):,} masks are RGB and read by their colours, such as {colours[0]}, but {len(numbers):,} others "
            f"by the class numbers that they store: {first_few(numbers, 2)}",
            "save all masks in one of the two ways, if these numbers are not those of the classes",
        )
    ]


def _palettes(heads: Mapping[Path, Header]) -> list[Doubt]:
    """Palettes are compared first; only where they differ are the masks read, for the indices that they use."""
    palettes = {path: head.palette for path, head in heads.items()}
    known = sorted({palette for palette in palettes.values() if palette}, key=len)
    if all(longer[: len(one)] == one for one, longer in pairwise(known)):  # each goes on where a shorter one ends
        return []
    rows = [(path, palette, values) for path, palette in palettes.items() if (values := _values(path))]
    mixed = mixed_palettes(rows)
    return [] if mixed is None else [Doubt("palettes", mixed.text, mixed.hint)]


def _values(path: Path) -> list[int]:
    """That a mask holds; none where it cannot be read, which is told where it is."""
    try:
        return [int(value) for value in np.unique(mask_values(path, path).values)]
    except DataError:
        return []


def _bits(heads: Mapping[Path, Header]) -> list[Doubt]:
    """Masks are read where some have 1 bit and others more: all of the few, and the others until it is known."""
    few = [path for path, head in heads.items() if head.bits == 1]
    many = [path for path, head in heads.items() if head.bits != 1]
    if not few or not many:
        return []
    some = [many[place] for place in spread(len(many), _READ)]
    mixed = mixed_bits((path, path in few, _values(path)) for path in (*few[:_READ], *some))
    return [Doubt("bits", *mixed)] if mixed else []


def _see_through(headers: Sequence[tuple[Path, Header]]) -> list[Doubt]:
    """TIFFs whose transparency has any values, as another band has them: they are laid on white with it."""
    layered = [path for path, head in headers if head.mode == "RGBA" and path.suffix.lower() in (".tif", ".tiff")]
    half = [path for path in layered[:_LAYERS] if _half_clear(path)]
    if not half:
        return []
    return [
        Doubt(
            "clear",
            f"{len(half):,} of {len(layered[:_LAYERS]):,} TIFF images with transparency are half transparent nearly "
            f"everywhere, and are laid on white: {first_few(half, 2)}",
            "if the fourth band is another one, such as near infrared, declare it: backbone.in_channels = 4, with as many "
            "values in mean and std",
        )
    ]


def _half_clear(path: Path) -> bool:
    try:
        counts = decode(path).getchannel("A").histogram()
    except DataError:  # told where it is read
        return False
    return 2 * sum(counts[1:255]) > sum(counts)


def _range(paths: Sequence[Path]) -> list[Doubt]:
    """16-bit images that use a sliver of their range: they become a few levels of the eight bits that are read."""
    rows = []
    for path in paths[:_READ]:
        try:
            channels = np.array(Image.fromarray(read_image(path)).histogram())  # NumPy's would copy the image as int64
        except DataError:
            continue
        rows.append(channels.reshape(-1, 256).sum(axis=0))
    if not rows:
        return []
    low, high = _hull([_used(row) for row in rows])
    share = beyond = ""
    if high - low >= _NARROW:
        low, high = _hull([_mostly(row) for row in rows])
        share, beyond = " in 99% of the pixels of each", "; all brighter pixels become white"
        if high - low >= _SLIVER:
            return []
    return [
        Doubt(
            "range",
            f"{len(paths):,} images of 16 bits use about {low * 256} to {high * 256 + 255} of 0 to 65535{share}: of 256 "
            f"levels {high - low + 1} are left when they are read, {paths[0]} for example",
            f"declare what they use: data.range = [[{low * 256}, {high * 256 + 255}]] (with augment.photometric = "
            f'"none"{beyond}); or scale all of them alike to the whole range and save 8 bits, for example with '
            f"`gdal_translate -ot Byte -scale {low * 256} {high * 256 + 255} 0 255 in.tif out.tif`",
        )
    ]


def _pgm_range(paths: Sequence[Path], bands: Bands) -> list[Doubt]:
    """PGMs whose largest value is far below white: their values are those in the file, not stretched to 16 bits."""
    if not bands.ranges:
        return []
    white = min(high for _, high in bands.ranges)
    tops = {path: top for path in paths if path.suffix.lower() in _PGM and (top := pgm_top(path))}
    dark = {path: top for path, top in tops.items() if 2 * top < white}
    if not dark:
        return []
    first, most = next(iter(dark)), max(dark.values())
    return [
        Doubt(
            "range",
            f"the values of {len(dark):,} of {len(paths):,} images go to {most:,} at most, data.range to {white:g}: they are "
            f"read dark, {first} for example",
            f"declare what they hold: data.range = [[0, {most}]]",
        )
    ]


def _hull(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(low for low, _ in spans), max(high for _, high in spans)


def _used(row: npt.NDArray[np.intp]) -> tuple[int, int]:
    """The lowest and the highest level that an image uses. row: (256,) the pixels of each.

    White counts only where it is not far from all others: saturated pixels and those without data are no use of it.
    """
    levels = np.flatnonzero(row)
    if len(levels) > 2 and levels[-1] == 255 and levels[-1] - levels[-2] > _APART:
        levels = levels[:-1]
    return int(levels[0]), int(levels[-1])


def _mostly(row: npt.NDArray[np.intp]) -> tuple[int, int]:
    """The levels between which 99% of an image lie, without a black and a white that are far from all others."""
    levels = np.flatnonzero(row)
    for end, extreme in ((-1, 255), (0, 0)):
        rest = np.delete(levels, end)
        if len(rest) > 1 and levels[end] == extreme and abs(levels[end] - rest[end]) > _APART:
            levels = rest
    below = np.cumsum(row[levels]) / row[levels].sum()
    return int(levels[np.searchsorted(below, 0.005)]), int(levels[np.searchsorted(below, 0.995)])
