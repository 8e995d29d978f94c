"""What the masks of a folder hold, and which of it is a class.

Room: starter. Legend: H W mask height and width, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from emaseg.data.checks import spread
from emaseg.data.files.label_files import MAX_CLASSES, SHARP_EDGES
from emaseg.data.files.mask_values import Colour, MaskValues, mask_values, unpacked
from emaseg.data.files.smooth import Blend, find_blend
from emaseg.data.label_sets import voc_colours
from emaseg.data.sets.mixed_bits import mixed_bits
from emaseg.data.sets.mixed_palettes import mixed_palettes
from emaseg.errors import DataError
from emaseg.recipe.data import IGNORE
from emaseg.starter.names import Entry, Names
from emaseg.starter.value_names import TOPS, named_values
from emaseg.threads import Reading, read_all
from emaseg.words import counted

_BLACK = (0, 0, 0)
_VOC_BORDER = (224, 224, 192)  # of the outlines in coloured VOC masks
_AS_PNG = "export the masks again as PNG, without smoothing"
_MOST_VALUES = 200  # class numbers that masks may hold
_LOOKED = 48  # masks that are searched for smooth edges


@dataclass(frozen=True, slots=True)
class Held:
    """What masks hold: pixels of each value (or packed colour), and the number of masks that hold it.

    colours: whether they are colours. equal: whether all have three equal channels, so that they may be numbers.
    palette: (256, 3) of palette masks, () for grey ones. clear: masks with transparent pixels, counted as 0 (black).
    opaque: masks that hold opaque pixels of 0 (black). apart: masks of 0 and another value, and as well masks of 0 and
    255 (or 65535), but none of all three.
    """

    colours: bool
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    palette: tuple[Colour, ...] = ()
    equal: bool = False
    clear: int = 0
    opaque: int = 0
    apart: bool = False

    def share(self, value: int) -> float:
        return self.pixels[value] / max(1, self.pixels.total())

    def as_numbers(self) -> Held:
        """Of equal channels: the same as class numbers."""

        def numbers(counts: Counter[int]) -> Counter[int]:
            return Counter({code & 255: count for code, count in counts.items()})

        return replace(self, colours=False, pixels=numbers(self.pixels), masks=numbers(self.masks))


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


@dataclass(frozen=True, slots=True)
class _Row:
    """One mask: its values (colours packed) and their pixels; equal: a colour mask of equal channels."""

    values: list[int]
    counts: list[int]
    coloured: bool
    equal: bool
    palette: tuple[Colour, ...]
    clear: bool
    one_bit: bool


def read_masks(paths: Sequence[Path]) -> Generator[Reading, None, Held]:
    """Count the values of all masks.

    Raises:
        DataError: one is damaged or of a kind that cannot hold classes; there are colours and class numbers; an index
            means different colours; masks of 1 bit are among others that hold 255; edges were smoothed; or there are more
            values than classes can be.
    """
    rows = yield from read_all("masks", _read, paths)
    truly = [row.coloured and not row.equal for row in rows]
    numbers = [not row.coloured for row in rows]
    if any(truly) and any(numbers):
        raise DataError(
            f"{paths[truly.index(True)]} is an RGB mask, but {paths[numbers.index(True)]} holds class numbers",
            "save all masks in one of the two ways",
        )
    mixed = mixed_palettes([(path, row.palette, row.values) for path, row in zip(paths, rows, strict=True)])
    if mixed is not None and mixed.swapped:
        raise DataError(mixed.text, mixed.hint)
    rows = [_as_number(row) for row in rows] if any(numbers) else rows
    bits = mixed_bits((path, row.one_bit, row.values) for path, row in zip(paths, rows, strict=True))
    if bits is not None:
        raise DataError(*bits)
    held = _summed(rows)
    if held.clear and held.opaque:
        raise DataError(
            f"{held.clear:,} masks have transparent pixels and {held.opaque:,} others opaque black ones (0): which of them "
            "is the background is unclear",
            "save all masks without transparency",
        )
    yield from _check_sharp(paths, rows, held)
    return held


def _as_number(row: _Row) -> _Row:
    return replace(row, values=[value & 255 for value in row.values], coloured=False) if row.coloured else row


def _summed(rows: Sequence[_Row]) -> Held:
    pixels, masks = Counter[int](), Counter[int]()
    for row in rows:
        pixels.update(dict(zip(row.values, row.counts, strict=True)))
        masks.update(row.values)
    return Held(
        colours=rows[0].coloured,
        pixels=pixels,
        masks=masks,
        palette=max((row.palette for row in rows), key=len),
        equal=rows[0].coloured and all(row.equal for row in rows),
        clear=sum(row.clear for row in rows),
        opaque=sum(0 in row.values and not row.clear for row in rows),
        apart=_are_apart([set(row.values) - {0} for row in rows]),
    )


def _are_apart(found: Sequence[set[int]]) -> bool:
    """Whether two values, one of them the mark of unlabelled pixels, are each in a tenth of the masks, never in one."""
    values = set().union(*found)
    counts = [sum(one == {value} for one in found) for value in values]
    return (
        len(values) == 2
        and max(values) in TOPS
        and not any(len(one) > 1 for one in found)
        and (min(counts) >= max(2, len(found) / 10))
    )


def _check_sharp(paths: Sequence[Path], rows: Sequence[_Row], held: Held) -> Generator[Reading, None, None]:
    """Stop at smooth edges, and at more values than classes can be.

    Raises:
        DataError: half of the masks looked at have edges with values between those of the classes, or few masks whose
            edges make up half of all values; or as above.
    """
    values = sorted(held.pixels)
    if len(values) > 4:
        most = sorted(range(len(rows)), key=lambda place: -len(rows[place].values))[: _LOOKED // 2]
        some = [paths[place] for place in sorted({*most, *spread(len(paths), _LOOKED // 2)})]
        blends = yield from read_all("edges", _blend, some)
        found = [(path, blend) for path, blend in zip(some, blends, strict=True) if blend is not None]
        if 2 * len(found) >= len(some) or 2 * len({v for _, blend in found for v in blend.values}) >= len(values):
            share = sum(blend.pixels for _, blend in found) / sum(blend.total for _, blend in found)
            path, blend = found[0]
            examples = ", ".join(str(list(unpacked(v)) if held.colours else v) for v in blend.values[:3])
            raise DataError(
                f"the masks have smooth edges: {share:.1%} of the pixels hold values between those of the classes beside "
                f"them, in {len(found):,} of {len(some):,} masks looked at, such as {examples} in {path}",
                SHARP_EDGES,
            )
    if len(values) > MAX_CLASSES + 1 or (not held.colours and len(values) > _MOST_VALUES):
        what = "colours" if held.colours else "values"
        raise DataError(
            f"the masks hold {len(values):,} different {what}, as photographs and smoothed masks do: {paths[0]}",
            f"{_AS_PNG}; or these are not the masks",
        )


def _blend(path: Path) -> Blend | None:
    stored = mask_values(path, path)
    return find_blend(stored.values, coloured=stored.coloured)


def _read(path: Path) -> _Row:
    stored = mask_values(path, path)
    values, counts = _counted(stored)
    if (values and not 0 <= values[0] <= values[-1] <= 0xFFFFFF) or (not stored.coloured and values[-1] > TOPS[1]):
        raise DataError(
            f"{path}: the mask holds {values[0] if values[0] < 0 else values[-1]}; values from 0 to {TOPS[1]} can be read",
            "save it as an 8-bit grey or palette PNG whose values are the classes",
        )
    return _Row(values, counts, stored.coloured, stored.equal, stored.palette, stored.clear, stored.one_bit)


def _counted(stored: MaskValues) -> tuple[list[int], list[int]]:
    """The values of a mask, sorted, and their pixels."""
    if stored.values.dtype == np.uint8:
        histogram = np.bincount(stored.values.ravel(), minlength=256)
        present = np.flatnonzero(histogram)
        return present.tolist(), histogram[present].tolist()
    values, counts = np.unique(stored.values, return_counts=True)
    return values.tolist(), counts.tolist()


def classes_of(held: Held, names: Names | None) -> Classes:
    """Which values or colours are classes, what they are called, and what is ignored.

    Raises:
        DataError: there are not two classes.
    """
    classes = _by_colour(held, names) if held.colours else _by_value(held, names)
    if held.equal and not held.colours:
        why = f", for the colours in {names.file} are others" if names and names.coloured else ""
        reason = f"The masks are RGB with three equal channels: read as class numbers{why}."
        classes = replace(classes, reasons=(reason, *classes.reasons))
    if held.clear:
        reason = (
            f"Transparent pixels ({held.clear:,} masks) are read as {'black' if held.colours else '0'}: the background."
        )
        classes = replace(classes, reasons=(reason, *classes.reasons))
    if len(classes.names) < 2:
        void = [entry.name for entry in names.entries if entry.void] if names else []
        raise DataError(
            f"all masks hold {'one colour' if held.colours else 'one value'} besides what is ignored: nothing can be "
            "learnt from a single class",
            f"if {void[0]} in {names.file} is everything but the object, call it background there"
            if names and void and len(held.pixels) > 1
            else "check that the right folder holds the masks, and that they were exported with all classes",
        )
    return classes


# ------------------------------------------------------------------------------------------------ class numbers
def _by_value(held: Held, names: Names | None) -> Classes:
    present = sorted(held.pixels)
    if names is None and held.apart:
        low, top = present[-2:]
        raise DataError(
            f"some masks hold 0 and {low}, {held.masks[top]:,} others 0 and {top}, and none holds both {low} and {top}: one "
            "object saved in two ways?",
            f"save the object as {low} in all masks; if {top} marks unlabelled pixels, put a classes.txt beside the folders "
            f"that names 0 and {low} (`0: background` ...)",
        )
    if names is None and len(present) == 2 and present[0] == 0 and present[1] in TOPS:
        reason = f"The masks hold 0 and {present[1]} only: two classes (data.values), nothing is ignored."
        return _numbered(held, {0: "background", present[1]: "foreground"}, (), [reason])
    named, reasons = named_values(held.pixels, held.palette, names) if names else ({}, [])
    ignored = sorted(value for value, entry in named.items() if entry.void)
    if ignored:
        reasons.append(f"Ignored by their name: {', '.join(f'{v} ({named[v].name})' for v in ignored)}.")
    if not named and _stretched(present):
        reasons.append(
            f"The values lie evenly between 0 and {present[-1]}, as in masks stretched for viewing: {present[-1]} is taken "
            "for a class. If it marks unlabelled pixels, put it into ignore instead."
        )
    else:
        ignored += _ignored_tops(held, named, reasons)
    other = [value for value in present if value not in named and value not in ignored]
    texts = {value: entry.name for value, entry in named.items() if not entry.void}
    if not named and len(other) == 2 and other[0] == 0:
        texts |= {0: "background", other[1]: "foreground"}
    else:
        texts |= {value: _free(f"class_{value}", texts) for value in other}
        if other and named:
            reasons.append(f"Values without a name in the file: {', '.join(map(str, other[:8]))}.")
        if other:
            reasons.append("Rename class_0, class_1, ... as you like: the order is what counts.")
            reasons.append("A value that means unlabelled: take its name out, and put the value into ignore.")
    return _numbered(held, texts, tuple(sorted(set(ignored))), reasons)


def _free(name: str, texts: dict[int, str]) -> str:
    while name in texts.values():
        name += "_"
    return name


def _stretched(present: list[int]) -> bool:
    """Whether three values or more lie evenly between 0 and 255 or 65535."""
    top, steps = present[-1], len(present) - 1
    even = all(abs(value - top * place / steps) <= 1 for place, value in enumerate(present)) if steps > 1 else False
    return even and top in TOPS and top / steps >= 16


def _ignored_tops(held: Held, named: dict[int, Entry], reasons: list[str]) -> list[int]:
    """255, and 65535 where it occurs, unless the file names them; and why."""
    found = []
    for top in TOPS:
        if top in named:
            continue
        if top in held.pixels:
            found.append(top)
            reasons.append(
                f"{top} is ignored: the usual mark of unlabelled pixels ({held.share(top):.1%} of all here)."
            )
        elif top == IGNORE:
            found.append(top)
            reasons.append("255 does not occur; it would be ignored.")
    return found


def _numbered(held: Held, texts: dict[int, str], ignored: tuple[int, ...], reasons: list[str]) -> Classes:
    values = tuple(sorted(texts))
    plain = values == tuple(range(len(values)))
    if not plain and values not in [(0, top) for top in TOPS]:
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


def class_shares(held: Held, classes: Classes) -> tuple[float, ...]:
    """The share of each class of the pixels that are not ignored."""
    if held.colours:
        keys = [red << 16 | green << 8 | blue for red, green, blue in classes.palette]
    else:
        keys = list(classes.values or range(len(classes.names)))
    pixels = [held.pixels[key] for key in keys]
    return tuple(count / max(1, sum(pixels)) for count in pixels)


def remark(held: Held, key: int, what: str) -> str:
    """For people: how much of the masks a value (or packed colour) is, called `what`."""
    masks = held.masks[key]
    if not masks:
        return f"{what}, in no mask"
    return f"{what}, {held.share(key):.2%} of the pixels, in {counted(masks, 'mask')}"


# ------------------------------------------------------------------------------------------------------ colours
def are_colours(held: Held, names: Names) -> bool:
    """Whether grey colours are those that a file of names states, rather than class numbers in three equal channels.

    They are where the file has them all, black aside, or half of them and the others are no positions of its names.
    """
    if not names.coloured:
        return False
    found = {colour for code in held.pixels if (colour := unpacked(code)) != _BLACK}
    stated = found & {entry.colour for entry in names.entries}
    numbers = all(colour[0] <= len(names.entries) or colour[0] in TOPS for colour in found)
    return stated == found or (2 * len(stated) >= len(found) and not numbers)


def _strangers(stated: dict[Colour, Entry], held: Held, file: str) -> list[str]:
    """A warning of a file that states none of the masks' colours, black aside."""
    found = sorted({unpacked(code) for code in held.pixels} - {_BLACK, _VOC_BORDER})
    if not found or not stated.keys().isdisjoint(found):
        return []
    turned = all(colour[::-1] in stated for colour in found)
    hint = "there they are with red and blue exchanged" if turned else "is it the file of other masks?"
    what = f"{file} states none of the masks' colours, such as {list(found[0])}"
    return [f"warning: {what}, so none of its classes but a black one is in any mask; {hint}"]


def _by_colour(held: Held, names: Names | None) -> Classes:
    colours = {code: unpacked(code) for code in held.pixels}
    ignored = [_VOC_BORDER] if _VOC_BORDER in colours.values() else []
    reasons = ["The outlines in VOC's border colour are ignored."] if ignored else []
    texts: dict[Colour, str] = {}
    if names is not None and names.coloured:
        reasons.append(f"Names and colours are those of {names.file}.")
        stated = _stated_colours(names)
        reasons += _strangers(stated, held, names.file)
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
    elif len(left) == 2 and min(left) == _BLACK and not texts:
        texts = {_BLACK: "background", max(left): "foreground"}
    elif ordered:
        start = len(texts)
        texts |= {colour: f"class_{start + place}" for place, colour in enumerate(ordered)}
        reasons.append(
            "The masks are RGB: data.palette gives the colour of each class. Rename class_0, ... as you like."
        )
        reasons.append("A colour that means unlabelled: move it from palette to ignore_colours, and take its name out.")
    if names is not None and names.file not in " ".join(reasons):
        reasons.append(f"{names.file} is not used: it does not say which colour is which class.")
    codes = {colour: code for code, colour in colours.items()}
    return Classes(
        names=tuple(texts.values()),
        palette=tuple(texts),
        ignore_colours=tuple(ignored),
        remarks=tuple(remark(held, codes.get(colour, -1), f"colour {list(colour)}") for colour in texts),
        reasons=tuple(reasons),
    )


def _stated_colours(names: Names) -> dict[Colour, Entry]:
    """The entry of each colour.

    Raises:
        DataError: one colour is two classes.
    """
    stated: dict[Colour, Entry] = {}
    for entry in names.entries:
        if entry.colour is not None and stated.setdefault(entry.colour, entry) is not entry:
            raise DataError(
                f'{names.file}: colour {list(entry.colour)} is both "{stated[entry.colour].name}" and "{entry.name}"',
                "give each class a colour of its own",
            )
    return stated


def _ordered(colours: list[Colour], held: Held) -> tuple[list[Colour], bool]:
    """Colours in VOC's order where all are of its map, else black first and then the more frequent ones."""
    voc = [(int(red), int(green), int(blue)) for red, green, blue in voc_colours(64)]
    if all(colour in voc for colour in colours):
        return sorted(colours, key=voc.index), True
    return sorted(colours, key=lambda c: (c != (0, 0, 0), -held.pixels[c[0] << 16 | c[1] << 8 | c[2]], c)), False
