"""The names of classes in one small file, in the forms in which annotation tools write them.

Room: starter.

    car                       one name a line; its position is its mask value (labelme's __ignore__ is number -1)
    3: car    3,car    3 car  the value first; car: 3, car,3 and car (3) too, and car 3 where these are all values; 3. car, 3) car, 3 - car, 3 -> car, 3|car
    64 0 128 car              a colour first or last, with or without a value in front; #ff0000 is a colour
    car:64,0,128::            CVAT's labelmap.txt
    Pixel Value, Class        a heading (Roboflow's _classes.csv), by which the columns are told apart
    .json, .yaml              class_trees.py

All lines of a file have one form. A line that has another is an error: to read it as a name would give every later
class the wrong value.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emaseg.data.files.images import EXTENSIONS
from emaseg.data.files.mask_values import MASK_VALUES, Colour
from emaseg.data.sets.pairs import read_text
from emaseg.errors import DataError

# What people call pixels that are neither to be learnt nor scored.
_VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "unlabel", "unknown", "dontcare", "notlabelled"}
IGNORED = "__ignore__"  # labelme's first label, whose number is -1

_NUMBER, _GAP = r"(\d{1,6})", r"[\s,;]+"
_RGB = rf"{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}"
_HEX = r"#([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})"
_NAME = r"(\S.*?)"
# Between a name and what follows it, without and with the sign that goes before a colour or a name. A run of these is
# taken whole, or by the one before the name: what could be shared out in many ways would be tried in all of them.
_SPACE, _IS = r"[\s,;:]", r"[\s,;:=]"
_OPEN, _AFTER = r"[(\[]?", r"(?:\s*\||\.\s|[)\]]:?|\s*[-=]>|\s[-\u2013]\s)"  # of 3. car, (3) car, 3 - car, 3 -> car
MOST_NAMES = 2000  # of a file; far more than a mask has values
_LARGEST = 4 << 20  # bytes of a file that holds nothing but names
_BRACKETS = re.compile(r"[\[(]\s*(\d+[\s,;]+\d+[\s,;]+\d+)\s*[\])]")  # around a colour


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to write a line: its pattern, and what the groups are (v value, n name, r g b colour, x hexadecimal).

    The pattern takes a time that grows with the line's length, and not with a power of it.
    """

    words: str
    pattern: re.Pattern[str]
    groups: str
    strict: bool = True  # a line of this form among others is an error; else it is a name


def _form(words: str, pattern: str, groups: str, *, strict: bool = True) -> _Form:
    return _Form(words, re.compile(pattern), groups, strict)


_FORMS = (
    _form("value, colour and name", rf"{_NUMBER}{_GAP}{_RGB}[\s,;:]+(\D.*)", "vrgbn"),
    _form(
        "value, name and colour",
        rf"{_NUMBER}(?={_IS}\D){_IS}+(?!{_IS})(?:(.+?)(?<!{_SPACE}){_SPACE}+|(?<={_IS}{_IS}{_SPACE})){_RGB}",
        "vnrgb",
    ),
    _form("colour and name", rf"{_RGB}[\s,;:]+(\D.*)", "rgbn"),
    _form("name and colour", rf"(\d*(?:(?={_SPACE}{{2}})|\D.*?(?<!{_SPACE}))){_SPACE}+{_RGB}", "nrgb"),
    _form(
        "value, name and colour",
        rf"{_NUMBER}{_IS}+(?!{_IS})"
        rf"(?:(.+?)(?<!{_SPACE}){_SPACE}+|(?<={_IS}[,;:=]{_SPACE})|(?<={_IS}{{3}}{_SPACE})){_HEX}",
        "vnxxx",
    ),
    _form("name and colour", rf"((?={_IS}{{2}})|.+?(?<!{_IS})){_IS}+{_HEX}", "nxxx"),
    _form("colour and name", rf"{_HEX}[\s,;:=]+{_NAME}", "xxxn"),
    _form("value and name", rf"(-?\d{{1,6}})\s*[:=,;\t]\s*{_NAME}", "vn"),
    _form("value and name", rf"{_OPEN}(-?\d{{1,6}}){_AFTER}\s*(\D.*)", "vn"),
    _form("name and value", rf"{_NAME}\s*[:=,;\t|]\s*(-?\d{{1,6}})", "nv"),
    _form("name and value", rf"{_NAME}\s*[-=]>\s*(-?\d{{1,6}})", "nv"),
    _form("name and value", rf"{_NAME}\s*[(\[](-?\d{{1,6}})[)\]]", "nv", strict=False),
    _form("value and name", rf"{_NUMBER}\s+(\D.*)", "vn", strict=False),
)
_CVAT = _form("CVAT's name:colour:parts:actions", r"([^:\s][^:]*):(\d+),(\d+),(\d+):[^:]*:[^:]*", "nrgb")

_BEHIND = _form("name and value", rf"{_NAME}\s(\d{{1,6}})", "nv")  # car 1, which may be a name, as stage 1 is

_LONGEST = 500  # characters of a line
_LONGEST_LIST = 100_000  # of all names in one line
_MARKS = (",", ";", "\t", "|")  # between columns
_RULE = re.compile(r"[-|:+=\s]+")  # the line below the heading of a drawn table
_REMARK = re.compile(r"(?<!\s)\s+(#|//)\s.*$")  # behind a name; #ff0000 is a colour
_NAMES = {"name", "names", "class", "classes", "label", "labels", "class name", "label name", "category", "title"}
_VALUES = {
    "id",
    "ids",
    "index",
    "idx",
    "value",
    "pixel value",
    "pixel",
    "class id",
    "label id",
    "class index",
    "number",
}
_HEADED = {"class", "label", "category"}  # of a column of names, or of values where they are numbers
_REDS, _GREENS, _BLUES = {"r", "red"}, {"g", "green"}, {"b", "blue"}
_ONE_COLOUR = {"hex", "color", "colour", "hex code", "rgb"}
_HEADINGS = _NAMES | _VALUES | _REDS | _GREENS | _BLUES | _ONE_COLOUR


@dataclass(frozen=True, slots=True)
class Entry:
    """A class. value: the mask value that is stated, None = its position counts. colour: RGB, None = not stated."""

    name: str
    value: int | None = None
    colour: Colour | None = None

    @property
    def void(self) -> bool:
        """Whether its name says that it is no class."""
        return re.sub(r"[^a-z]", "", self.name.lower()) in _VOID


@dataclass(frozen=True, slots=True)
class Names:
    """The classes of one file, which states a value for all or for none; names are different from each other.

    remarks: what people should know of how the file was read.
    """

    file: str
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = ()

    @property
    def coloured(self) -> bool:
        return all(entry.colour is not None for entry in self.entries)

    @property
    def stated(self) -> bool:
        """Whether the file gives the values; else the positions are meant."""
        return all(entry.value is not None for entry in self.entries)

    def by_value(self) -> dict[int, Entry]:
        """The entry of each mask value: the stated ones, else the positions."""
        return {
            place if entry.value is None else entry.value: entry
            for place, entry in enumerate(self.entries)
            if entry.value is None or entry.value >= 0
        }


def read_lines(path: Path) -> Names | None:
    """The classes of a text or CSV file; None where it holds something else, a list of images for example.

    Raises:
        DataError: unreadable, or a line that does not fit the others.
    """
    text = text_of(path)
    if text is None:
        return None
    lines = [(n, _BRACKETS.sub(r"\1", line.strip())) for n, line in enumerate(text.splitlines(), 1)]
    filled = [(number, _bare(line)) for number, line in lines if line and not _RULE.fullmatch(line)]
    if not filled or all(line.lower().endswith(EXTENSIONS) for _, line in filled):
        return None
    if any(len(line) > _LONGEST_LIST for _, line in filled):
        return None
    kept = [(number, line) for number, line in filled if not _is_comment(line)]
    if len(kept) > MOST_NAMES + 1:  # with a heading
        return None
    remarks = []
    if kept and _is_heading(kept):
        remarks.append(f"The first line of {path.name} is a heading: {kept[0][1]}.")
        heading = _cells(kept[0][1]) if any(mark in kept[0][1] for mark in _MARKS) else []
        kept = kept[1:]
    else:
        heading = []
    if len(kept) == 1 and not heading:
        kept = _one_line(*kept[0])
    if len(kept) > MOST_NAMES or 2 * sum(_names_an_image(line) for _, line in kept) > len(kept):
        return None
    entries = _table(path, kept, heading) if heading and kept else None
    if entries is not None and _is_of_images(entries):
        return None
    if entries is None:
        if not kept or any(len(line) > _LONGEST for _, line in kept):
            return None
        entries = _entries(path, kept)
    if not all(entry.value is not None for entry in entries):
        remarks += _check_positions(path, filled, kept)
    return Names(path.name, distinct(path, entries), tuple(remarks))


def text_of(path: Path, most: int = _LARGEST) -> str | None:
    """A file's text; None where it has more than `most` bytes, as no list of names has.

    Raises:
        DataError: unreadable, or no text.
    """
    with contextlib.suppress(OSError):  # read_text says what is wrong
        if path.stat().st_size > most:
            return None
    return read_text(path)


def _names_an_image(line: str) -> bool:
    """Whether a line begins with an image, as `a.png,1` and `a.png car` do: no class is called like that."""
    return re.split(r"[\s,;|]+", line)[0].strip("\"'").lower().endswith(EXTENSIONS)


def _is_of_images(entries: Sequence[Entry]) -> bool:
    """Whether the rows of a table are images, each with its class: names that stand there again and again, without a value."""
    bare = all(entry.value is None and entry.colour is None for entry in entries)
    return bare and 3 * len({entry.name for entry in entries}) <= 2 * len(entries)


def distinct(path: Path, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries with a number added to a name that stands twice.

    Raises:
        DataError: two of them have one value or one colour, or a value or colour cannot be one.
    """
    taken: set[str] = set()
    names: dict[int, str] = {}  # by value
    counts: dict[str, int] = {}  # the last number that each name got
    found: list[Entry] = []
    for entry in entries:
        if entry.value is not None and not -1 <= entry.value < MASK_VALUES:
            raise DataError(f"{path}: {entry.value} is no mask value", f"values run from 0 to {MASK_VALUES - 1}")
        if entry.colour is not None and max(entry.colour) > 255:
            raise DataError(f"{path}: {list(entry.colour)} is no colour", "each of its numbers runs from 0 to 255")
        if entry.value is not None and (other := names.get(entry.value)) is not None:
            raise DataError(
                f'{path}: value {entry.value} is both "{other}" and "{entry.name}"', "give each its own value"
            )
        name, count = entry.name, counts.get(entry.name, 1)
        while name in taken:
            count += 1
            name = f"{entry.name}_{count}"
        counts[entry.name] = count
        taken.add(name)
        if entry.value is not None:
            names[entry.value] = name
        found.append(replace(entry, name=name))
    return tuple(found)


def clean(name: str) -> str:
    """A name without quotes and what else stands around it."""
    return re.sub(r"\s+", " ", name.strip(" \t\"',;:")) or "class"


# ------------------------------------------------------------------------------------------------------- lines
def _bare(line: str) -> str:
    """A line without a remark behind it, and without the bars around a row of a drawn table."""
    plain = _REMARK.sub("", line)
    return plain[1:-1].strip() if plain[0] == plain[-1] == "|" and len(plain) > 2 else plain


def _one_line(number: int, line: str) -> list[tuple[int, str]]:
    """All names in one line with commas between them, as lines."""
    cells = _cells(line)
    return [(number, line)] if len(cells) < 2 or any(map(_is_number, cells)) else [(number, c) for c in cells if c]


def _is_comment(line: str) -> bool:
    return line.startswith(("#", "//")) and not re.match(_HEX + r"\b", line)


def _check_positions(path: Path, filled: list[tuple[int, str]], kept: list[tuple[int, str]]) -> list[str]:
    """What could shift the positions of names: comments and gaps among them."""
    numbers = {number for number, _ in kept}
    inner = [item for item in filled if item[0] not in numbers and item[0] > kept[0][0]]
    if inner:
        raise DataError(
            f"{path}:{inner[0][0]}: a comment among the names, whose positions are their mask values: {inner[0][1]!r}",
            "write the value in front of each name (0: road), or take the comment out",
        )
    if kept[-1][0] - kept[0][0] >= len(kept):
        return [f"Blank lines among the names of {path.name} do not count."]
    return []


def _is_heading(lines: list[tuple[int, str]]) -> bool:
    """Whether the first line is one: known words only, or words above a column of numbers."""
    first = _cells(lines[0][1])
    if all(_word(cell) in _HEADINGS for cell in first if cell) and len(lines) > 1:
        return any(_word(cell) in _NAMES for cell in first)
    rows = [_cells(line) for _, line in lines[1:]]
    if len(first) < 2 or not rows or any(len(row) != len(first) for row in rows):
        return False
    columns = zip(first, *rows, strict=True)
    return any(not _is_number(top) and all(map(_is_number, below)) for top, *below in columns)


def _cells(line: str) -> list[str]:
    """The columns of a line: by comma, semicolon or tab, else by blanks where all are words of headings."""
    for mark in _MARKS:
        if mark in line:
            row = next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
            return [cell.strip() for cell in row]
    words = line.split()
    return words if len(words) > 1 and all(_word(word) in _HEADINGS for word in words) else [line]


def _word(cell: str) -> str:
    return re.sub(r"[\W_]+", " ", cell.lower()).strip()


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d{1,6}", cell.strip()) is not None


def _table(path: Path, lines: list[tuple[int, str]], heading: list[str]) -> list[Entry] | None:
    """Entries by the words of the heading; None where none of them says which column holds the names.

    Raises:
        DataError: a line has other columns, or a value or colour is missing.
    """
    words = [_word(cell) for cell in heading]
    rows = [_cells(line) for _, line in lines]
    for (number, line), row in zip(lines, rows, strict=True):
        if len(row) != len(heading) and any(word in _NAMES for word in words):
            raise DataError(
                f"{path}:{number}: {len(row)} columns, but the heading has {len(heading)}: {line!r}",
                "write all lines alike; a name with a comma needs double quotes",
            )
    if any(len(row) != len(heading) for row in rows):
        return None
    columns = list(zip(*rows, strict=True))
    numeric = [all(map(_is_number, column)) for column in columns]
    place = next((i for i, word in enumerate(words) if word in _NAMES and not numeric[i]), None)
    if place is None:
        return None

    def numbers(known: set[str]) -> list[int] | None:
        """The column of numbers that has one of these words on top."""
        for i, word in enumerate(words):
            if i != place and word in known and numeric[i]:
                return list(map(int, columns[i]))
            if i != place and word in known and known is not _HEADED and any(map(_is_number, columns[i])):
                number, line = lines[next(n for n, cell in enumerate(columns[i]) if not _is_number(cell))]
                raise DataError(
                    f"{path}:{number}: no number in the column {heading[i]!r}: {line!r}", "write all lines alike"
                )
        return None

    values = numbers(_VALUES) or numbers(_HEADED)
    red, green, blue = numbers(_REDS), numbers(_GREENS), numbers(_BLUES)
    colours: Sequence[Colour | None] = [None] * len(rows)
    if red and green and blue:
        colours = list(zip(map(abs, red), map(abs, green), map(abs, blue), strict=True))
    else:
        i = next((i for i, word in enumerate(words) if word in _ONE_COLOUR), None)
        found = [] if i is None else [_colour(cell) for cell in columns[i]]
        colours = found if found and None not in found else colours
    stated: Sequence[int | None] = values or [None] * len(rows)
    return [Entry(clean(n), v, c) for n, v, c in zip(columns[place], stated, colours, strict=True)]


def _colour(cell: str) -> Colour | None:
    """Of `#ff0000` or `255 0 0`."""
    if match := re.fullmatch(_HEX, cell.strip()):
        return int(match[1], 16), int(match[2], 16), int(match[3], 16)
    if match := re.fullmatch(_RGB, cell.strip("[]() ")):
        return int(match[1]), int(match[2]), int(match[3])
    return None


def _entries(path: Path, lines: list[tuple[int, str]]) -> list[Entry]:
    """Entries in the form that all lines have.

    Raises:
        DataError: some lines have a form and others not.
    """
    lines = [(number, re.sub(r"\s+", _blank, line)) for number, line in lines]
    most: tuple[int, _Form] | None = None
    for form in (_CVAT, *_FORMS):
        fitting = sum(form.pattern.fullmatch(line) is not None for _, line in lines)
        if fitting == len(lines):
            return [_entry(form, line) for _, line in lines]
        if fitting and form.strict and (most is None or fitting > most[0]):
            most = fitting, form
    if most is not None:
        count, form = most
        odd = count * 2 >= len(lines)  # the lines of the rarer kind are the strange ones
        number, line = next(item for item in lines if (form.pattern.fullmatch(item[1]) is None) == odd)
        what = f"is not {form.words} as" if odd else f"reads as {form.words}, unlike"
        raise DataError(
            f"{path}:{number}: {line!r} {what} the other lines, so the values of the classes are unclear",
            "write all lines alike, for example `0: road`; or rename the file if it does not name the classes",
        )
    if all(_BEHIND.pattern.fullmatch(line) for _, line in lines):
        entries = [_entry(_BEHIND, line) for _, line in lines]
        if _are_values(entries):
            return entries
    if path.suffix.lower() == ".csv" and any("," in line for _, line in lines):
        raise DataError(
            f"{path}:{lines[0][0]}: columns without a heading that says which holds the names: {lines[0][1]!r}",
            "put a heading on top, such as `value,name` or `name,r,g,b`",
        )
    for number, line in lines:
        if not any(map(str.isalnum, line)):
            raise DataError(
                f"{path}:{number}: {line!r} is no name of a class", "write one name a line, `0: road` for example"
            )
    return [Entry(clean(line)) for _, line in lines]


def _blank(run: re.Match[str]) -> str:
    return "\t" if "\t" in run[0] else " "


def _are_values(entries: Sequence[Entry]) -> bool:
    """Whether numbers behind names are values: all from 0 on, each once, and the names differ without them."""
    values = sorted(-1 if entry.value is None else entry.value for entry in entries)
    return values == list(range(len(entries))) and len({entry.name for entry in entries}) == len(entries)


def _entry(form: _Form, line: str) -> Entry:
    match = form.pattern.fullmatch(line)
    groups = match.groups() if match else ()
    parts = {kind: [g for k, g in zip(form.groups, groups, strict=True) if k == kind] for kind in "vnrgbx"}
    colour: Colour | None = None
    if parts["x"]:
        red, green, blue = (int(part, 16) for part in parts["x"])
        colour = red, green, blue
    elif parts["r"]:
        colour = int(parts["r"][0]), int(parts["g"][0]), int(parts["b"][0])
    return Entry(clean(parts["n"][0] or ""), int(parts["v"][0]) if parts["v"] else None, colour)
