"""List files that name the mask of each image, instead of leaving it to the names.

Room: data/sets.

    images/1.jpg masks/1.png        two paths a line, between them blanks, a tab or a comma
    image,mask,...                  CSV with these columns (or img, file, filename; label, annotation, ...) in any order

Paths are relative to data.root, where a slash in front means the same, or to the folders of the images and of the masks.
An image without a mask is all of the first class.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.files.images import ARRAY, EXTENSIONS
from emaseg.data.sets.names import listed_names
from emaseg.data.sets.pairs import read_text
from emaseg.errors import DataError

__all__ = ["PairList", "mostly_there", "read_pair_list", "without_heading"]

_IMAGE_WORDS = ("image", "images", "img", "image_path", "image_file", "filename", "file", "file_name", "path", "input")
_MASK_WORDS = (
    "mask",
    "masks",
    "label",
    "labels",
    "mask_path",
    "label_path",
    "annotation",
    "seg",
    "gt",
    "target",
    "segmentation",
)


@dataclass(frozen=True, slots=True)
class PairList:
    """(image, mask) paths in the list's order, and the images that have no mask there."""

    pairs: tuple[tuple[Path, Path], ...]
    background: tuple[Path, ...]


def read_pair_list(path: Path, root: Path, images: Path, masks: Path | None) -> PairList | None:
    """The pairs of a list file; None where it names one file a line, or none.

    Raises:
        DataError: unreadable, or a line names a file that is not there; says the line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    rows = _rows(path, lines)
    if rows is None:
        return None
    pairs: list[tuple[Path, Path]] = []
    background: list[Path] = []
    seen: dict[Path, int] = {}
    for number, image, mask in rows:
        found = _there(path, number, image, (root, images))
        if seen.setdefault(found, number) != number:
            raise DataError(f"{path}:{number}: {image} stands in line {seen[found]}, too", "keep one of the lines")
        if mask:
            pairs.append((found, _there(path, number, mask, (root, masks or root))))
        else:
            background.append(found)
    return PairList(tuple(pairs), tuple(background))


def mostly_there(path: Path, root: Path) -> bool:
    """Whether most lines of a list file name two files below `root`: a list of pairs, then, even with a wrong line."""
    try:
        lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
        rows = [names for _, *names in _table(lines) or []] or [
            parts for _, line in lines if len(parts := _parts(line)) == 2
        ]
        found = 0
        for names in rows:
            with contextlib.suppress(DataError):
                found += all(_there(path, 0, name, (root,)) for name in names)
    except (DataError, csv.Error):
        return False
    return found > 0 and 2 * found >= len(lines)


def _rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, str, str]] | None:
    """(line, image, mask or "") of a list of pairs; None of another list."""
    try:
        table = _table(lines)
    except csv.Error as error:
        raise DataError(
            f"{path}: no list of images and masks ({error})", "write `image,mask` and two paths on a line"
        ) from error
    if table is not None:
        return table
    if len(lines) > 1 and not any(map(_is_picture, re.split(r"[\s,;]+", lines[0][1].replace('"', "")))):
        lines = lines[1:]  # a heading in words that are not known
    rows = [(number, _parts(line)) for number, line in lines]
    if not any(len(parts) == 2 for _, parts in rows):
        return None
    odd = next(((number, parts) for number, parts in rows if len(parts) > 2 or not _is_picture(parts[0])), None)
    if odd:
        raise DataError(
            f"{path}:{odd[0]}: no pair of an image and a mask: {' '.join(odd[1])!r}",
            "write `image mask` on each line; between paths with blanks in them write a tab or a comma",
        )
    return [(number, parts[0], parts[1] if len(parts) == 2 else "") for number, parts in rows]


def _table(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str, str]] | None:
    """The columns image and mask of a CSV with a heading; None where there is none."""
    for mark in (",", ";", "\t"):
        heading = _heading(lines[0][1], mark) if lines else []
        image = next((place for place, word in enumerate(heading) if word in _IMAGE_WORDS), None)
        mask = next((place for place, word in enumerate(heading) if word in _MASK_WORDS), None)
        if image is None or mask is None:
            continue
        text = "\n".join(line for _, line in lines[1:])
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=mark)]
        rows = [row + [""] * (max(image, mask) + 1 - len(row)) for row in rows]
        return [(number, row[image], row[mask]) for (number, _), row in zip(lines[1:], rows, strict=False)]
    return None


def without_heading(lines: Sequence[str], top: Path, known: Callable[[str], bool]) -> Sequence[str]:
    """The lines of a list that names one image a line, without the heading of their column.

    Args:
        top: the image folder, as listed_names has it.
        known: whether a name is an image's, with or without its extension: such a first line is no heading.
    """
    cells = _heading(lines[0], ",") if len(lines) > 1 else []
    heading = len(cells) == 1 and cells[0] in _IMAGE_WORDS and not any(map(known, listed_names(lines[0], top)))
    return lines[1:] if heading else lines


def _heading(line: str, mark: str) -> list[str]:
    """The words of a first line; none where a cell is longer than the csv module takes, as no word of a heading is."""
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=mark))]
    except csv.Error:
        return []


def _parts(line: str) -> list[str]:
    """The paths of a line; a line that is one path with blanks or commas stays whole."""
    for mark in ("\t", ",", ";", None):
        parts = [part.strip() for part in line.split(mark)]
        if len(parts) > 1 and _is_picture(parts[0]) and (_is_picture(parts[-1]) or parts[1:] == [""]):
            return [part for part in parts if part]
    return [line]


def _is_picture(name: str) -> bool:
    return name.lower().endswith((*EXTENSIONS, ARRAY))


def _there(path: Path, number: int, name: str, folders: Sequence[Path]) -> Path:
    """The file of a name, below the first folder that has it."""
    plain = name.replace("\\", "/").lstrip("/").removeprefix("./")
    for folder in folders:
        if os.path.isfile(folder / plain):  # unlike Path's, it takes names that no file can have
            return folder / plain
    if Path(name).is_absolute() and os.path.isfile(name):
        return Path(name)
    raise DataError(
        f"{path}:{number}: no file {name} in {' or '.join(dict.fromkeys(map(str, folders)))}",
        "write paths relative to data.root",
    )
