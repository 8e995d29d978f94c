"""A data set of image files, each with a mask file; and the list files and folders that such sets are made of.

Room: data/sets. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from emaseg.data.dataset import Sample, UInt8
from emaseg.data.files.bands import Bands, pixels_size
from emaseg.data.files.file_sample import FileSample
from emaseg.data.files.label_files import LabelRule, read_label
from emaseg.data.sets.path_lists import PathPairs
from emaseg.errors import DataError, nearest
from emaseg.files import is_hidden, read_bytes

_LONGEST = 256 << 20  # bytes of a list file: millions of names


@dataclass(frozen=True, slots=True, eq=False)
class PairedFiles:
    """Images with masks, as files; satisfies data.dataset.Dataset.

    items: (image, mask) paths. rule: what the masks' values mean. palette: (K, 3) uint8 RGB, for pictures of results.
    layout: how the files were recognised, for people, where a data set has several layouts; "" = nothing to say.
    left: what was found in the folders and is not read, for people, one sentence each. background: images without a
    mask file whose pixels are all of the first class; they follow the others. bands: how images are read; None = as
    8-bit RGB.
    """

    items: Sequence[tuple[Path, Path]]
    rule: LabelRule
    palette: UInt8
    layout: str = ""
    left: tuple[str, ...] = ()
    background: Sequence[Path] = ()
    bands: Bands | None = None
    withheld_by: ClassVar[str] = ""
    common_files: ClassVar[tuple[Path, ...]] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    def __len__(self) -> int:
        return len(self.items) + len(self.background)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.items[index] if index < len(self.items) else (self.background[index - len(self.items)],)

    def name(self, index: int) -> str:
        if isinstance(self.items, PathPairs) and index < len(self.items):
            return self.items.images.path(index)  # a million of them are asked for
        return str(self.files(index)[0])

    def names(self) -> Iterator[str]:
        """Every name in order: quicker than one after the other."""
        if isinstance(self.items, PathPairs) and not self.background:
            return self.items.images.paths()
        return map(self.name, range(len(self)))

    def open(self, index: int) -> Sample:
        if index >= len(self.items):
            image = self.background[index - len(self.items)]
            return FileSample(
                image, str(image), partial(_first_class, image, self.bands), f"all {self.classes[0]}", self.bands
            )
        image, label = self.items[index]
        return FileSample(image, str(image), partial(read_label, label, self.rule), str(label), self.bands)


def _first_class(image: Path, bands: Bands | None) -> UInt8:
    """(H, W) zeros: the label of an image that shows the first class only."""
    return np.zeros(pixels_size(image, bands=bands), np.uint8)


# -------------------------------------------------------------------------------------- folders and list files
def need_folder(path: Path, what: str, hint: str) -> None:
    """Stop unless `path` is a folder.

    Raises:
        DataError: it is missing or a file; says which folders its nearest existing parent holds.
    """
    try:
        if path.is_dir():
            return
        if path.exists():
            raise DataError(f"{path}: {what} should be a folder, but is a file", hint)
        parent = next(above for above in path.parents if above.is_dir() or above == above.parent)
        found = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror})", "check the permissions") from error
    near = nearest(path.relative_to(parent).parts[0], found)
    raise DataError(
        f"{path}: {what} is missing; {parent} holds {first_few(found, 8) or 'no folders'}",
        f"{near} {hint}" if near else hint,
    )


def read_names(path: Path) -> list[str]:
    """The lines of a list file, stripped, blank ones dropped; any line ending.

    Raises:
        DataError: the file is unreadable, is not text, or names nothing.
    """
    names = [line.strip() for line in read_text(path).splitlines()]
    names = [name for name in names if name]
    if not names:
        raise DataError(f"{path}: the list file is empty", "write one image name a line")
    return names


def read_text(path: Path) -> str:
    """A small text file in UTF-8, with or without a byte order mark, or in UTF-16 with one, as Windows writes it.

    Raises:
        DataError: the file is unreadable or is not text.
    """
    try:
        content = read_bytes(path, _LONGEST)
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})", "save the list as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: the list file cannot be read ({error.strerror})", "check the path") from error
    if "\0" in text:  # no file name holds one
        raise DataError(f"{path}: not a text file (character {text.index(chr(0)) + 1} is null)", "write the list again")
    return text


def first_few(names: Iterable[object], count: int = 3) -> str:
    """`a, b, c and 7 more`."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
