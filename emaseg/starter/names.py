"""The names of classes in a small text file beside the images: classes.txt, labels.txt, class_dict.csv, ...

Room: starter. Imports the data room's reader of list files.

One class a line, as `car`, `3: car`, `3 car`, `64 0 128 car`, `car,64,0,128` (with or without a heading).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.files.label_files import Colour
from emaseg.data.sets.pairs import read_names

FILES = (
    "classes.txt", "class_names.txt", "classnames.txt", "labels.txt", "label_names.txt", "names.txt", "codes.txt",
    "label_colors.txt", "label_colours.txt", "labels_colors.txt", "class_dict.csv", "classes.csv", "labels.csv",
)  # fmt: skip

# How people call pixels that are neither to be learnt nor scored.
_VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "unlabel", "unknown", "dontcare", "notlabelled"}

_NUMBER = r"(\d{1,3})"
_COLOUR_FIRST = re.compile(rf"{_NUMBER}[\s,;]+{_NUMBER}[\s,;]+{_NUMBER}[\s,;]+(\D.*)")
_COLOUR_LAST = re.compile(rf"(.*[^\s,;:])[\s,;:]+{_NUMBER}[\s,;]+{_NUMBER}[\s,;]+{_NUMBER}")
_VALUE_FIRST = re.compile(rf"{_NUMBER}\s*[:=,;\s]\s*(\S.*)")
_HEADING = re.compile(r"\W*(name|class|label|id|index)\w*\W*[,;].*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line. value: the mask value it states, None = its position counts. colour: RGB, None = not stated."""

    name: str
    value: int | None = None
    colour: Colour | None = None

    @property
    def void(self) -> bool:
        """Whether its name says that it is no class."""
        return re.sub(r"[^a-z]", "", self.name.lower()) in _VOID


@dataclass(frozen=True, slots=True)
class Names:
    """The lines of one file; names are different from each other."""

    file: str
    entries: tuple[Entry, ...]

    @property
    def coloured(self) -> bool:
        return all(entry.colour is not None for entry in self.entries)

    def by_value(self) -> dict[int, Entry]:
        """The entry of each mask value: the stated ones, else the positions."""
        stated = all(entry.value is not None for entry in self.entries)
        return {entry.value if stated and entry.value is not None else i: entry for i, entry in enumerate(self.entries)}


def find_names(root: Path, *, coloured: bool) -> Names | None:
    """The first file of class names in `root`; where masks are coloured, one that states colours comes first.

    Raises:
        DataError: such a file is there and cannot be read.
    """
    there = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    found = [_read(there[name]) for name in FILES if name in there]
    found = [names for names in found if names.entries]
    return min(found, key=lambda names: coloured and not names.coloured, default=None)


def _read(path: Path) -> Names:
    lines = [line for line in read_names(path) if not line.startswith("#")]
    if lines and _HEADING.fullmatch(lines[0]):
        lines = lines[1:]
    taken: set[str] = set()
    entries = []
    for line in lines:
        entry = _entry(line)
        name, count = entry.name, 1
        while name in taken:
            count += 1
            name = f"{entry.name}_{count}"
        taken.add(name)
        entries.append(Entry(name, entry.value, entry.colour))
    return Names(path.name, tuple(entries))


def _entry(line: str) -> Entry:
    if match := _COLOUR_FIRST.fullmatch(line):
        return Entry(_clean(match[4]), colour=_colour(match[1], match[2], match[3]))
    if match := _COLOUR_LAST.fullmatch(line):
        return Entry(_clean(match[1]), colour=_colour(match[2], match[3], match[4]))
    if match := _VALUE_FIRST.fullmatch(line):
        return Entry(_clean(match[2]), value=int(match[1]))
    return Entry(_clean(line))


def _colour(red: str, green: str, blue: str) -> Colour | None:
    colour = (int(red), int(green), int(blue))
    return colour if max(colour) <= 255 else None


def _clean(name: str) -> str:
    return name.strip(" \t\"',;:") or "class"
