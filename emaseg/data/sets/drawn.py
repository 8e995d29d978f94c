"""Labels that are drawn from the annotations of one large JSON file, when they are asked for.

Room: data/sets. Legend: H W image height and width.

Such a file takes minutes and gigabytes to parse. That is done once: an index in the cache folder keeps, for each image,
one line with what is drawn on it, so that a later start reads names only and a label costs one line. The index is named
after the JSON file's place, size and time, so that a changed file is never mistaken for the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from emaseg.data.dataset import Sample, UInt8
from emaseg.data.files.file_sample import FileSample
from emaseg.data.files.images import MAX_PIXELS
from emaseg.data.files.label_files import LabelRule, apply_rule
from emaseg.data.sets.masks import paint
from emaseg.errors import DataError, SystemFault
from emaseg.files import atomic, open_file
from emaseg.resources import cache_folder

FORMAT = 1  # of the index; a new number leaves old files unread
_AGAIN = "download it again, or check that data.root holds the right release"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn on one image.

    name: file name. group: the split it belongs to, where one JSON file holds several; else "". size: (H, W).
    shapes: (value, segmentation) pairs (masks.py), painted in this order on zeros; the values are raw labels.
    """

    name: str
    group: str
    size: tuple[int, int]
    shapes: tuple[tuple[int, Any], ...]


def check_size(name: object, size: tuple[int, int]) -> None:
    """Stop at a size (H, W) that no image has, before a label of it is made.

    Raises:
        ValueError: it is one.
    """
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"image {name} of {size[0]} x {size[1]} (height x width)")


@dataclass(frozen=True, slots=True)
class Index:
    """Where the lines of an index are: for each image its name, its group, and its line's (offset, bytes) in `path`."""

    path: Path
    source: Path
    names: tuple[str, ...]
    groups: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class DrawnFiles:
    """Image files with labels drawn from an index; satisfies data.dataset.Dataset.

    items: (image, line of the index). rule: what the drawn values mean. palette: (K, 3) uint8 RGB. layout: how the
    files were recognised, for people.
    """

    items: tuple[tuple[Path, int], ...]
    index: Index
    rule: LabelRule
    palette: UInt8
    layout: str = ""
    withheld_by: ClassVar[str] = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    @property
    def common_files(self) -> tuple[Path, ...]:
        return (self.index.source,)

    def __len__(self) -> int:
        return len(self.items)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.items[index][0],)

    def name(self, index: int) -> str:
        return str(self.items[index][0])

    def open(self, index: int) -> Sample:
        image, line = self.items[index]
        return FileSample(image, str(image), partial(self._label, line), str(self.index.source))

    def _label(self, line: int) -> UInt8:
        drawing, source = read_drawing(self.index, line), self.index.source
        if not all(type(side) is int and 0 < side <= MAX_PIXELS for side in drawing.size) or (
            drawing.size[0] * drawing.size[1] > MAX_PIXELS
        ):
            raise DataError(f"{source}: {drawing.name} has a wrong size there, {drawing.size}", _AGAIN)
        label = np.zeros(drawing.size, np.uint16)
        try:
            for value, segmentation in drawing.shapes:
                paint(label, segmentation, value)
        except ValueError as error:
            raise DataError(f"{source}: an annotation of {drawing.name} holds {error}", _AGAIN) from error
        return apply_rule(label, source, self.rule)


# ---------------------------------------------------------------------------------------------------- the index
def open_index(source: Path, kind: str, drawings: Callable[[Mapping[str, Any]], Iterable[Drawing]]) -> Index:
    """The index of a JSON file, from the cache or made now. kind: names the rule by which `drawings` selects.

    Raises:
        DataError: the file is missing, is not JSON, or lacks what `drawings` looks for.
        SystemFault: the cache folder cannot be written.
    """
    try:
        state = source.stat()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})", _AGAIN) from error
    identity = json.dumps([FORMAT, kind, str(source.resolve()), state.st_size, state.st_mtime_ns])
    path = cache_folder() / "annotations" / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
    return _opened(path, source) or _made(path, source, drawings)


def _opened(path: Path, source: Path) -> Index | None:
    """The index of a file that was written before; None where there is none or it is not whole."""
    try:
        with path.open("rb") as file:
            rows = json.loads(file.readline())
            start = file.tell()
            end = file.seek(0, 2)
        sizes = [int(size) for _, _, size in rows]
        offsets = [start, *(start + np.cumsum(sizes)).tolist()]
        if offsets[-1] != end or min(sizes, default=0) < 0:
            return None
        names, groups = tuple(str(row[0]) for row in rows), tuple(str(row[1]) for row in rows)
    except (OSError, ValueError, TypeError, IndexError, OverflowError, RecursionError):
        return None
    return Index(path, source, names, groups, tuple(zip(offsets[:-1], sizes, strict=True)))


def _made(path: Path, source: Path, drawings: Callable[[Mapping[str, Any]], Iterable[Drawing]]) -> Index:
    lines, rows = [], []
    for drawing in _drawings(source, drawings):
        text = json.dumps([drawing.name, drawing.group, drawing.size, drawing.shapes], separators=(",", ":"))
        line = text.encode() + b"\n"
        lines.append(line)
        rows.append([drawing.name, drawing.group, len(line)])
    try:
        with atomic(path) as file:
            file.write(json.dumps(rows, separators=(",", ":")).encode() + b"\n")
            file.writelines(lines)
    except SystemFault as error:
        raise SystemFault(
            error.message, "give the index of the annotations a place: export EMASEG_CACHE=/path"
        ) from None
    index = _opened(path, source)
    if index is None:
        raise SystemFault(f"{path}: written, but it cannot be read back", "check the disk, or set EMASEG_CACHE")
    return index


def _drawings(source: Path, drawings: Callable[[Mapping[str, Any]], Iterable[Drawing]]) -> Iterator[Drawing]:
    try:
        with open_file(source) as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})", _AGAIN) from error
    except MemoryError as error:
        raise SystemFault(f"{source}: does not fit into memory", "free memory, or use another machine once") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: damaged, or not a JSON file ({error})", _AGAIN) from error
    if not isinstance(content, Mapping):
        raise DataError(f"{source}: not an annotation file: its top is no object", _AGAIN)
    try:
        yield from drawings(content)
    except KeyError as error:
        found = ", ".join(list(content)[:8])
        raise DataError(f"{source}: holds no {error}; at its top are {found or 'no keys'}", _AGAIN) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{source}: holds what no annotation file should: {error}", _AGAIN) from error


def read_drawing(index: Index, line: int) -> Drawing:
    """One line of an index.

    Raises:
        DataError: it cannot be read any more.
    """
    offset, size = index.spans[line]
    try:
        with index.path.open("rb") as file:
            file.seek(offset)
            name, group, (height, width), shapes = json.loads(file.read(size))
        drawn = tuple((value, segmentation) for value, segmentation in shapes)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{index.path}: the index of {index.source} is gone or damaged ({error})", "remove it and start again"
        ) from error
    return Drawing(name, group, (height, width), drawn)
