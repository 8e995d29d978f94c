"""Finding the file of class names beside the images: classes.txt, labels.txt, _classes.csv, data.yaml, ...

Room: starter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emaseg.data.files.label_files import MAX_CLASSES
from emaseg.errors import DataError
from emaseg.starter.class_files import Entry, Names, read_lines
from emaseg.starter.class_trees import read_json, read_yaml

__all__ = ["Entry", "Names", "find_names"]

FILES = (
    "classes.txt", "class_names.txt", "classnames.txt", "_classes.txt", "labels.txt", "label_names.txt", "names.txt",
    "codes.txt", "obj.names", "label_colors.txt", "label_colours.txt", "labels_colors.txt", "labelmap.txt",
    "label_map.txt", "class_dict.csv", "classes.csv", "_classes.csv", "class_names.csv", "labels.csv", "classes.json",
    "class_names.json", "labels.json", "names.json", "label_map.json", "labelmap.json", "id2label.json", "meta.json",
    *(f"{name}{ending}" for name in ("data", "dataset", "classes", "class_names", "labels", "names")
      for ending in (".yaml", ".yml")),
)  # fmt: skip


def find_names(root: Path, folders: Sequence[Path] = (), *, coloured: bool) -> tuple[Names | None, tuple[str, ...]]:
    """The first file of class names in `root`, or in one of the other folders, and what people should know of it.

    Where masks are coloured, one that states colours comes first.

    Raises:
        DataError: such a file is there and cannot be read, or copies of it in different folders say different things.
    """
    found: list[Names] = []
    remarks: list[str] = []
    for file in FILES:
        copies = [path for folder in dict.fromkeys((root, *folders)) if (path := _there(folder, file))]
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
    return best, tuple(remarks)


def _said(names: Names) -> list[str]:
    return [entry.name.lower() for entry in names.entries]


def _there(folder: Path, file: str) -> Path | None:
    try:
        return next((p for p in sorted(folder.iterdir()) if p.name.lower() == file and p.is_file()), None)
    except OSError:
        return None


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
            return read_lines(path)
