"""Which mask value each name of a file is, where the file states no values.

Room: starter. Legend: K names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from emaseg.data.files.mask_values import Colour
from emaseg.recipe.data import IGNORE
from emaseg.starter.class_files import IGNORED
from emaseg.starter.names import Entry, Names
from emaseg.words import counted

__all__ = ["TOPS", "named_values"]

TOPS = (IGNORE, 65535)  # the highest values of 8 and 16 bits: the usual marks of unlabelled pixels
_GROUND = {"background", "backgrounds", "bg", "none", "nothing"}


def named_values(pixels: Counter[int], palette: Sequence[Colour], names: Names) -> tuple[dict[int, Entry], list[str]]:
    """The names of a file by mask value, and what had to be guessed.

    Args:
        pixels: of each value that the masks hold. palette: of palette masks, () for grey ones.
    """
    named, reasons = names.by_value(), [f"The names are those of {names.file}."]
    present, count = sorted(set(pixels) - set(TOPS)), len(names.entries)
    if names.stated:
        return named, reasons
    values = sorted(pixels)
    if count == len(values) == 2 and values != [0, 1]:
        first, second = names.entries[:: -1 if values[0] == 0 and _is_ground(names.entries[1]) else 1]
        reasons.append(f"Two names and two values: {values[0]} is {first.name}, {values[1]} is {second.name}.")
        return {values[0]: first, values[1]: second}, reasons
    if names.coloured and (found := _by_palette(pixels, palette, names)):
        return found, [*reasons, "They go to the indices that have their colours in the masks' palette."]
    if found := _with_ground(pixels, present if len(present) == 2 else values, names.entries):
        said = "; ".join(f"{value} is {entry.name}" for value, entry in found.items())
        if count == 2 and list(found) == [0, 1]:  # as the lines of the file say, too, but the other way round
            other = f"{names.file} has them in the order {names.entries[0].name}, {names.entries[1].name}"
            line = f"`0: {names.entries[0].name}` and `1: {names.entries[1].name}`"
            return found, [
                *reasons,
                f"warning: taken: {said}, for 0 is more frequent; but {other}. If that is meant: write {line}",
            ]
        return found, [*reasons, f"{said}."]
    if names.entries[0].name == IGNORED and not (present and present[-1] == count - 1):
        reasons.append(f"{IGNORED} is labelme's number -1, no value of a mask: the next name is value 0.")
        return dict(enumerate(names.entries[1:])), reasons
    if count == len(pixels) and max(pixels) >= count and present and not _runs(present):
        reasons.append("The names go to the mask values in their order: the file states no values.")
        return dict(zip(values, names.entries, strict=True)), reasons
    if present and present[0] == 1 and present[-1] == count:
        reasons.append("The masks count the classes from 1.")
        return {value + 1: entry for value, entry in named.items()}, reasons
    if present and present[-1] == count and present[0] == 0:
        return _one_too_many(pixels, names, reasons)
    return named, reasons


def _is_ground(entry: Entry) -> bool:
    return re.sub(r"[^a-z]", "", entry.name.lower()) in _GROUND


def _with_ground(pixels: Counter[int], values: list[int], entries: Sequence[Entry]) -> dict[int, Entry]:
    """The classes of masks that hold 0 and one more value, where the file names the object alone, or the object first
    and then its background; {} = of others."""
    if len(values) != 2 or values[0] != 0 or entries[0].void or len(entries) > 2:
        return {}
    if len(entries) == 1:
        ground = _is_ground(entries[0])
        return {
            0: entries[0] if ground else Entry("background"),
            values[1]: Entry("foreground") if ground else entries[0],
        }
    if _is_ground(entries[1]) and not _is_ground(entries[0]) and pixels[0] > pixels[values[1]]:
        return {0: entries[1], values[1]: entries[0]}
    return {}


def _one_too_many(pixels: Counter[int], names: Names, reasons: list[str]) -> tuple[dict[int, Entry], list[str]]:
    """K names for the values 0 to K: 0 has none, and is the background or unlabelled, or K has none and is unlabelled.

    Nothing but how frequent they are, another mark of unlabelled pixels and a name of the background tells which, so
    both readings are said.
    """
    count, entries = len(names.entries), names.entries
    most = pixels.most_common(1)[0][0]
    from_0 = dict(enumerate(entries)) | {count: Entry("unlabelled")}
    ground = Entry("class_0" if any(entry.name == "background" for entry in entries) else "background")
    from_1 = {0: ground} | {value + 1: entry for value, entry in enumerate(entries)}
    if _is_ground(entries[0]):
        reasons.append(f"Value {count} has no name and is the last: taken to be unlabelled.")
        return from_0, reasons
    taken, other = (from_1, from_0) if most == 0 or not pixels.keys().isdisjoint(TOPS) else (from_0, from_1)
    reasons.append(
        f"warning: {names.file} has {counted(count, 'name')} for the values 0 to {count}. Taken: {_said(taken)}. If it is "
        f"{_said(other)}: state the value of each name there, in lines such as `{0 if taken is from_1 else 1}: {entries[0].name}`; "
        "a value named unlabelled is ignored."
    )
    return taken, reasons


def _said(named: Mapping[int, Entry]) -> str:
    """The first two values and the last one, with their names."""
    few = sorted(named)[:2] + sorted(named)[2:][-1:]
    return ", ".join(f"{value} {named[value].name}" for value in few)


def _runs(present: list[int]) -> bool:
    """Whether the values are consecutive numbers from 0 or 1."""
    return present[0] in (0, 1) and present == list(range(present[0], present[0] + len(present)))


def _by_palette(pixels: Counter[int], palette: Sequence[Colour], names: Names) -> dict[int, Entry]:
    """The names by index, where the palette has the colour of each index that occurs; else none."""
    by_colour = {entry.colour: entry for entry in names.entries}
    used = [value for value in pixels if value < len(palette) and value != IGNORE]
    colours = [palette[value] for value in used]
    if not used or len(set(colours)) < len(colours) or any(colour not in by_colour for colour in colours):
        return {}
    found = dict(zip(used, (by_colour[colour] for colour in colours), strict=True))
    return dict(sorted(found.items()))
