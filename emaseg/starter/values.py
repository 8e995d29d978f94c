"""What the masks of a folder hold, and which of it is a class.

Room: starter. Imports errors and the data room's readers. Legend: H W mask height and width, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from emaseg.data.files.images import decode
from emaseg.data.files.label_files import MAX_CLASSES, Colour
from emaseg.data.labels import voc_colours
from emaseg.data.sample import IGNORE
from emaseg.errors import DataError
from emaseg.starter.names import Entry, Names
from emaseg.threads import Reading, read_all

_VOC_BORDER = (224, 224, 192)  # of the outlines in coloured VOC masks
_AS_PNG = "export the masks again as PNG, without smoothing"


@dataclass(frozen=True, slots=True)
class Held:
    """What masks hold: pixels of each value (or packed colour), and the number of masks that hold it.

    colours: whether the masks are RGB. palette: (256, 3) of palette masks, () for grey ones.
    """

    colours: bool
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    palette: tuple[Colour, ...] = ()

    def share(self, value: int) -> float:
        return self.pixels[value] / max(1, self.pixels.total())


@dataclass(frozen=True, slots=True)
class Classes:
    """The keys of [data] that say what masks mean, and a remark on each class for people."""

    names: tuple[str, ...]
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)
    palette: tuple[Colour, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    remarks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()  # why the names, the values and the ignored ones are what they are


def read_masks(paths: Sequence[Path]) -> Generator[Reading, None, Held]:
    """Count the values of all masks.

    Raises:
        DataError: one is damaged or of a kind that cannot hold classes; there are colours and class numbers; or more
            values than classes can be.
    """
    rows = yield from read_all("masks", _read, paths)
    coloured = [row[0] for row in rows]
    if any(coloured) and not all(coloured):
        raise DataError(
            f"{paths[coloured.index(True)]} is an RGB mask, but {paths[coloured.index(False)]} holds class numbers",
            "save all masks in one of the two ways",
        )
    held = Held(colours=coloured[0], palette=rows[0][3])
    for _, values, counts, _ in rows:
        held.pixels.update(dict(zip(values, counts, strict=True)))
        held.masks.update(values)
    if len(held.pixels) > MAX_CLASSES + 1 or (not coloured[0] and len(held.pixels) > 200):
        what = "colours" if coloured[0] else "values"
        raise DataError(
            f"the masks hold {len(held.pixels):,} different {what}, as photographs and smoothed masks do: {paths[0]}",
            f"{_AS_PNG}; or these are not the masks",
        )
    return held


def _read(path: Path) -> tuple[bool, list[int], list[int], tuple[Colour, ...]]:
    """Whether a mask is RGB, its values (colours packed as 0xRRGGBB), their pixels, and its own palette."""
    picture = decode(path)
    if picture.format in ("JPEG", "MPO"):
        raise DataError(f"{path}: a JPEG mask: its compression has changed the class values", _AS_PNG)
    if picture.mode in ("RGB", "RGBA"):
        rgb = np.asarray(picture)[..., :3].astype(np.uint32)
        values, counts = np.unique(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], return_counts=True)
        return True, values.tolist(), counts.tolist(), ()
    if picture.mode not in ("L", "P", "1", "I") and not picture.mode.startswith("I;16"):
        raise DataError(f"{path}: a mask of mode {picture.mode}; its pixels are not class numbers", _AS_PNG)
    raw = np.asarray(picture)
    if raw.min() < 0 or raw.max() > IGNORE:
        raise DataError(f"{path}: the mask holds {raw.max()}; values up to {IGNORE} can be read", _AS_PNG)
    histogram = np.bincount(raw.ravel(), minlength=256)
    present = np.flatnonzero(histogram)
    return False, present.tolist(), histogram[present].tolist(), _own_palette(picture)


def _own_palette(picture: Image.Image) -> tuple[Colour, ...]:
    flat = picture.getpalette() if picture.mode == "P" else None
    return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)) if flat else ()


def classes_of(held: Held, names: Names | None) -> Classes:
    """Which values or colours are classes, what they are called, and what is ignored.

    Raises:
        DataError: there are not two classes.
    """
    classes = _by_colour(held, names) if held.colours else _by_value(held, names)
    if len(classes.names) < 2:
        raise DataError(
            f"all masks hold {'one colour' if held.colours else 'one value'} besides what is ignored: nothing can be "
            "learnt from a single class",
            "check that the right folder holds the masks, and that they were exported with all classes",
        )
    return classes


# ------------------------------------------------------------------------------------------------ class numbers
def _by_value(held: Held, names: Names | None) -> Classes:
    present = sorted(held.pixels)
    if names is None and present == [0, 255]:
        reason = "The masks hold 0 and 255 only: two classes (data.values), nothing is ignored."
        return _numbered(held, {0: "background", 255: "foreground"}, (), [reason])
    named, reasons = _named(held, names) if names else ({}, [])
    ignored = sorted(value for value, entry in named.items() if entry.void)
    if ignored:
        reasons.append(f"Ignored by their name: {', '.join(f'{v} ({named[v].name})' for v in ignored)}.")
    if 255 in present and 255 not in named:
        ignored.append(255)
        reasons.append(f"255 is ignored: the usual mark of unlabelled pixels ({held.share(255):.1%} of all here).")
    elif 255 not in named:
        ignored.append(255)
        reasons.append("255 does not occur; it would be ignored.")
    other = [value for value in present if value not in named and value not in ignored]
    texts = {value: entry.name for value, entry in named.items() if not entry.void}
    if not named and len(other) == 2 and other[0] == 0:
        texts |= {0: "background", other[1]: "foreground"}
    else:
        texts |= {value: f"class_{value}" for value in other}
        if other:
            reasons.append("Rename class_0, class_1, ... as you like: the order is what counts.")
            reasons.append("A value that means unlabelled: take its name out, and put the value into ignore.")
    return _numbered(held, texts, tuple(sorted(set(ignored))), reasons)


def _numbered(held: Held, texts: dict[int, str], ignored: tuple[int, ...], reasons: list[str]) -> Classes:
    values = tuple(sorted(texts))
    plain = values == tuple(range(len(values)))
    if not plain and values != (0, 255):
        reasons.append("The mask values are not 0, 1, 2, ...: data.values gives the value of each class.")
    palette = tuple(held.palette[value] for value in values) if held.palette and values[-1] < len(held.palette) else ()
    return Classes(
        names=tuple(texts[value] for value in values),
        values=() if plain else values,
        ignore=ignored,
        palette=palette if len(set(palette)) == len(palette) else (),
        remarks=tuple(remark(held, value, f"value {value}") for value in values),
        reasons=tuple(reasons),
    )


def _named(held: Held, names: Names) -> tuple[dict[int, Entry], list[str]]:
    """The names of a file by mask value, and what had to be guessed."""
    named = names.by_value()
    reasons = [f"The names are those of {names.file}."]
    present, count = sorted(set(held.pixels) - {255}), len(named)
    if any(entry.value is not None for entry in names.entries) or sorted(named) != list(range(count)):
        return named, reasons
    if present and present[0] == 1 and present[-1] == count:
        reasons.append("The masks count the classes from 1.")
        return {value + 1: entry for value, entry in named.items()}, reasons
    if present and present[-1] == count and present[0] == 0:
        if held.pixels.most_common(1)[0][0] == 0:
            reasons.append(f"Value {count} has no name: the names are taken to begin at 1, and 0 to be the background.")
            shifted = {value + 1: entry for value, entry in named.items()}
            return {0: Entry("background" if not _has(named, "background") else "class_0"), **shifted}, reasons
        reasons.append(f"Value {count} has no name and is the last: taken to be unlabelled.")
        named = {**named, count: Entry("unlabelled")}
    return named, reasons


def _has(named: dict[int, Entry], name: str) -> bool:
    return any(entry.name == name for entry in named.values())


def largest_share(held: Held, classes: Classes) -> tuple[str, float]:
    """The class with the most pixels, and its share of those that are not ignored."""
    if held.colours:
        keys = [red << 16 | green << 8 | blue for red, green, blue in classes.palette]
    else:
        keys = list(classes.values or range(len(classes.names)))
    pixels = [held.pixels[key] for key in keys]
    return classes.names[pixels.index(max(pixels))], max(pixels) / max(1, sum(pixels))


def remark(held: Held, key: int, what: str) -> str:
    """For people: how much of the masks a value (or packed colour) is, called `what`."""
    masks = held.masks[key]
    if not masks:
        return f"{what}, in no mask"
    return f"{what}, {held.share(key):.2%} of the pixels, in {masks:,} mask{'s' * (masks != 1)}"


# ------------------------------------------------------------------------------------------------------ colours
def _by_colour(held: Held, names: Names | None) -> Classes:
    colours = {code: (code >> 16, code >> 8 & 255, code & 255) for code in held.pixels}
    ignored = [_VOC_BORDER] if _VOC_BORDER in colours.values() else []
    reasons = ["The outlines in VOC's border colour are ignored."] if ignored else []
    texts: dict[Colour, str] = {}
    if names is not None and names.coloured:
        reasons.append(f"Names and colours are those of {names.file}.")
        stated = {entry.colour: entry for entry in names.entries if entry.colour is not None}
        texts = {colour: entry.name for colour, entry in stated.items() if not entry.void}
        void = [colour for colour, entry in stated.items() if entry.void and colour not in ignored]
        if void:
            reasons.append(f"Ignored by their name: {', '.join(stated[colour].name for colour in void)}.")
        ignored += void
    left = [colour for colour in colours.values() if colour not in texts and colour not in ignored]
    ordered, why = _ordered(left, held)
    plain = [entry.name for entry in names.entries if not entry.void] if names and not names.coloured else []
    if plain and len(plain) == len(ordered) and why:
        reasons.append(f"The names are those of {names.file if names else ''}, in VOC's order of colours.")
        texts |= dict(zip(ordered, plain, strict=True))
    elif sorted(left) == [(0, 0, 0), (255, 255, 255)] and not texts:
        texts = {(0, 0, 0): "background", (255, 255, 255): "foreground"}
    elif ordered:
        start = len(texts)
        texts |= {colour: f"class_{start + place}" for place, colour in enumerate(ordered)}
        reasons.append(
            "The masks are RGB: data.palette gives the colour of each class. Rename class_0, ... as you like."
        )
        reasons.append("A colour that means unlabelled: move it from palette to ignore_colours, and take its name out.")
    codes = {colour: code for code, colour in colours.items()}
    return Classes(
        names=tuple(texts.values()),
        palette=tuple(texts),
        ignore_colours=tuple(ignored),
        remarks=tuple(remark(held, codes.get(colour, -1), f"colour {list(colour)}") for colour in texts),
        reasons=tuple(reasons),
    )


def _ordered(colours: list[Colour], held: Held) -> tuple[list[Colour], bool]:
    """Colours in VOC's order where all are of its map, else black first and then the more frequent ones."""
    voc = [(int(red), int(green), int(blue)) for red, green, blue in voc_colours(64)]
    if all(colour in voc for colour in colours):
        return sorted(colours, key=voc.index), True
    return sorted(colours, key=lambda c: (c != (0, 0, 0), -held.pixels[c[0] << 16 | c[1] << 8 | c[2]], c)), False
