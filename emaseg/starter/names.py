"""Finding the file of class names beside the images: classes.txt, labels.txt, _classes.csv, data.yaml, ...

Room: starter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emaseg.data.files.label_files import MAX_CLASSES
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.starter.class_files import Entry, Names, read_lines
from emaseg.starter.class_trees import read_json, read_literal, read_yaml

__all__ = ["Entry", "Names", "find_names"]

_STEMS = ("classes", "class_names", "labels", "label_names", "names", "categories", "class_map", "label_map", "class_dict",
          "label_colors", "label_colours", "colormap", "color_map", "colors", "colours", "palette", "class", "label")  # fmt: skip
_KNOWN = (
    "classes.txt", "class_names.txt", "classnames.txt", "_classes.txt", "labels.txt", "label_names.txt", "names.txt",
    "codes.txt", "obj.names", "label_colors.txt", "label_colours.txt", "labels_colors.txt", "labelmap.txt",
    "label_map.txt", "class_dict.csv", "classes.csv", "_classes.csv", "class_names.csv", "labels.csv", "classes.json",
    "class_names.json", "labels.json", "names.json", "label_map.json", "labelmap.json", "id2label.json", "meta.json",
    *(f"{name}{ending}" for name in ("data", "dataset", "classes", "class_names", "labels", "names")
      for ending in (".yaml", ".yml")),
)  # fmt: skip
_ENDINGS = (".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".names")
FILES = dict.fromkeys((*_KNOWN, *(f"{stem}{ending}" for stem in _STEMS for ending in _ENDINGS)))  # in this order
_OTHERS = re.compile(
    r"readme|licen[cs]e|train|val|test|list|split|requirement|convert|pairs|annotation|instances|coco", re.IGNORECASE
)
_SMALL = 20_000  # bytes of a file that may name classes


def find_names(root: Path, folders: Sequence[Path] = (), *, coloured: bool) -> tuple[Names | None, tuple[str, ...]]:
    """The first file of class names in `root`, or in one of the other folders, and what people should know of it.

    Where masks are coloured, one that states colours comes first.

    Raises:
        DataError: such a file is there and cannot be read, or copies of it in different folders say different things.
    """
    found: list[Names] = []
    remarks: list[str] = []
    there = [_there(folder) for folder in dict.fromkeys((root, *folders))]
    for file in FILES:
        copies = [files[file] for files in there if file in files]
        read = [(path, names) for path in copies if (names := _read(path))]
        for path in (path for path in copies if path not in [known for known, _ in read]):
            remarks.append(f"{path.relative_to(root)} names no classes that can be used here.")
        for path, names in read[1:]:
            if names.entries != read[0][1].entries:
                raise DataError(
                    f"{read[0][0]} and {path} name the classes differently", "keep one of them, or make them alike"
                )
        if read:
            found.append(replace(read[0][1], file=read[0][0].relative_to(root).as_posix()))
    best = min(found, key=lambda names: coloured and not names.coloured, default=None)
    if best is not None:
        remarks += best.remarks
        kinds = {other.file for other in found if _said(other) != _said(best)}
        remarks += [f"{file} names classes too; {best.file} is the one used." for file in sorted(kinds)]
    if best is None and not remarks and (others := _other_texts(root)):
        remarks.append(f"No class names were looked for in {first_few(others)}: a file of them is called classes.txt.")
    return best, tuple(remarks)


def _other_texts(root: Path) -> list[str]:
    """Small text files that may name the classes, under names that are not known."""
    endings = (*_ENDINGS, ".pbtxt", ".xml", ".xlsx")
    try:
        return [
            path.name
            for path in sorted(root.iterdir())
            if path.suffix.lower() in endings and not _OTHERS.search(path.name) and path.stat().st_size <= _SMALL
        ]
    except OSError:
        return []


def _said(names: Names) -> list[str]:
    return [entry.name.lower() for entry in names.entries]


def _there(folder: Path) -> dict[str, Path]:
    """The files of class names in a folder, by their names in lower case."""
    try:
        names = sorted((name for name in os.listdir(folder) if name.lower() in FILES), reverse=True)
    except OSError:
        return {}
    return {name.lower(): folder / name for name in names if (folder / name).is_file()}


def _read(path: Path) -> Names | None:
    names = _by_ending(path)
    return None if names is None or len(names.entries) > MAX_CLASSES else names


def _by_ending(path: Path) -> Names | None:
    match path.suffix.lower():
        case ".json":
            return read_json(path)
        case ".yaml" | ".yml":
            return read_yaml(path)
        case _:
            return read_literal(path) or read_lines(path)
