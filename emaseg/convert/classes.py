"""Which mask value each label of an export gets, and the file of class names that says so.

Room: convert. Legend: K classes.

0 is the background: what no object covers, and a label of that name. Labels whose name says that they are no class
(ignore, void, unlabelled) become 255. The others are 1, 2, ... in the export's order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emaseg.convert.export import Label
from emaseg.data.files.label_files import MAX_CLASSES
from emaseg.data.files.mask_values import Colour
from emaseg.data.label_sets import voc_colours
from emaseg.errors import DataError
from emaseg.files import read_bytes, write_text
from emaseg.recipe.data import IGNORE
from emaseg.starter.class_files import Entry, clean, read_lines
from emaseg.words import printable

__all__ = ["ClassList", "class_list", "numbered", "read_names", "write_names"]

_BACKGROUND = ("background", "bg")
_LARGEST = 4 << 20  # bytes of a file of class names
_LONGEST = 150  # characters of a name; a recipe takes 200


@dataclass(frozen=True, slots=True)
class ClassList:
    """names: by mask value. values: of each label's key; 255 = ignored; "" is what no object covers, as base: 0 or 255.

    colours: (R, G, B) of each class, for the palette of the masks.
    """

    names: tuple[str, ...]
    values: Mapping[str, int]
    base: int
    colours: tuple[Colour, ...]


def class_list(labels: Sequence[Label], *, unlabelled: str) -> ClassList:
    """unlabelled: what pixels without an object are, "background" or "ignore".

    Raises:
        DataError: there is no label, or there are too many.
    """
    void = [label for label in labels if Entry(label.name).void]
    ground = [label for label in labels if _plain(label.name) in _BACKGROUND][:1]
    others = [label for label in labels if not Entry(label.name).void and label not in ground]
    named = [(label.key, _name(label.name), label.colour) for label in (*ground, *others)]
    if unlabelled == "background" and not ground:
        named.insert(0, ("", "background", (0, 0, 0)))
    if len(named) < 2:
        raise DataError("the annotations name no classes to learn", "draw the objects with a label, and export again")
    if len(named) > MAX_CLASSES:
        raise DataError(
            f"the annotations name {len(named):,} classes; {MAX_CLASSES} fit into a mask of 8 bits",
            "merge labels in the annotation tool, or export fewer of them",
        )
    names = _distinct([name for _, name, _ in named])
    base = 0 if unlabelled == "background" else IGNORE
    values = {"": base} | {key: value for value, (key, _, _) in enumerate(named) if key}
    values |= {label.key: IGNORE for label in void}
    return ClassList(names, values, base, _colours([colour for *_, colour in named]))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _name(name: str) -> str:
    return clean(printable(name))[:_LONGEST].strip()


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number at the end of one that stands twice."""
    found: dict[str, None] = {}
    for name in names:
        other, count = name, 1
        while other in found:
            count += 1
            other = f"{name}_{count}"
        found[other] = None
    return tuple(found)


def numbered(labels: Sequence[Label], classes: ClassList) -> list[str]:
    """The names of the classes that got a number, for another label has the same name."""
    values = {label.key: classes.values[label.key] for label in labels}
    return [
        classes.names[values[label.key]]
        for label in labels
        if values[label.key] != IGNORE and classes.names[values[label.key]] != _name(label.name)
    ]


def _colours(stated: Sequence[Colour | None]) -> tuple[Colour, ...]:
    """The export's, where it states a different one for each class; else VOC's."""
    given = [colour for colour in stated if colour is not None]
    if len(set(given)) == len(stated):
        return tuple(given)
    return tuple((int(red), int(green), int(blue)) for red, green, blue in voc_colours(len(stated)))


def write_names(folder: Path, names: Sequence[str]) -> Path:
    """classes.txt with a line `value: name` for each class; classes.json where a name would be read as something else.

    Raises:
        SystemFault: it cannot be written.
    """
    path, other = folder / "classes.txt", folder / "classes.json"
    write_text(path, "".join(f"{value}: {name}\n" for value, name in enumerate(names)))
    if _read_back(path) == dict(enumerate(names)):
        other.unlink(missing_ok=True)
        return path
    path.unlink()
    write_text(other, json.dumps({str(value): name for value, name in enumerate(names)}, indent=1) + "\n")
    return other


def read_names(folder: Path) -> dict[int, str] | None:
    """The names by value that `write_names` left in a folder; None: none."""
    path, other = folder / "classes.txt", folder / "classes.json"
    if path.is_file():
        return _read_back(path)
    try:
        said = json.loads(read_bytes(other, _LARGEST))
        return {int(value): str(name) for value, name in said.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _read_back(path: Path) -> dict[int, str]:
    try:
        found = read_lines(path)
    except DataError:
        return {}
    return {} if found is None else {value: entry.name for value, entry in found.by_value().items()}
