"""What the readers of published data sets share: the top folder, the files of a folder by id, their pairs, the splits.

Room: data/sets.

An id is what the names of an image and of its label have in common; a file's name is its id and a fixed ending.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from emaseg.data.dataset import Phase, Sample, UInt8
from emaseg.data.files.file_sample import FileSample
from emaseg.data.sets.pairs import first_few, need_folder, read_names
from emaseg.errors import DataError, RecipeError, nearest
from emaseg.files import is_hidden

Pairs = tuple[tuple[Path, Path], ...]


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a folder that end alike. files: id -> path, in the order of the ids. pattern: for messages."""

    files: dict[str, Path]
    pattern: str


def files_below(folder: Path, ending: str, *, groups: bool = False) -> Files:
    """The files of `folder` whose names end in `ending`; with `groups` those of its sub-folders too (cities).

    Hidden files are passed over (macOS leaves ._<name> beside each file of an archive).

    Raises:
        DataError: the folder cannot be read, or two files of different sub-folders share an id.
    """
    found: dict[str, Path] = {}
    for path in _listed(folder, ending, groups):
        other = found.setdefault(path.name[: -len(ending)], path)
        if other is not path:
            raise DataError(f"{folder}: {path} and {other} share a name", "remove one of them")
    pattern = folder / "<folder>" / f"<id>{ending}" if groups else folder / f"<id>{ending}"
    return Files(dict(sorted(found.items())), str(pattern))


def _listed(folder: Path, ending: str, groups: bool) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.name.endswith(ending):
                    yield folder / entry.name
                elif groups and entry.is_dir():
                    yield from _listed(folder / entry.name, ending, groups=False)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})", "check its permissions") from error


def pairs(images: Files, labels: Files, hint: str, *, chosen: Sequence[str] | None = None) -> Pairs:
    """Every image with its label; of `chosen` ids only, in that order, where a list names them.

    Raises:
        DataError: there are no images; one has no label; or a label has no image and no list leaves it out.
    """
    if not images.files:
        raise DataError(f"no images: {images.pattern}", hint)
    if chosen is None:
        extra = [name for name in labels.files if name not in images.files]
        _refuse_unmatched(extra, len(labels.files), f"labels ({labels.pattern})", f"image ({images.pattern})", hint)
        chosen = list(images.files)
    lone = [name for name in chosen if name not in labels.files]
    _refuse_unmatched(lone, len(chosen), f"images ({images.pattern})", f"label ({labels.pattern})", hint)
    return tuple((images.files[name], labels.files[name]) for name in chosen)


def _refuse_unmatched(ids: list[str], total: int, these: str, other: str, hint: str) -> None:
    if ids:
        raise DataError(f"{len(ids):,} of {total:,} {these} have no {other}: {first_few(ids)}", hint)


def listed_ids(path: Path, images: Files, *endings: str) -> list[str] | None:
    """The ids of a list file, None where there is none: the last name of each line's path, without any of `endings`.

    Raises:
        DataError: the list cannot be read, or names images that are not there.
    """
    if not path.is_file():
        return None
    ids = [name.replace("\\", "/").rpartition("/")[2] for name in read_names(path)]
    for ending in endings:
        ids = [name.removesuffix(ending) for name in ids]
    unknown = [name for name in ids if name not in images.files]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown):,} of its {len(ids):,} images are missing ({images.pattern}): {first_few(unknown)}",
            nearest(unknown[0], images.files) or "unpack the images again, or correct the list",
        )
    return ids


# ---------------------------------------------------------------------------------------------------- folders
def top_folder(root: Path, inner: Sequence[str], holds: Sequence[str], what: str, hint: str) -> Path:
    """Of `root` and the folders `inner` below it the first that holds all of `holds`, or else some of them.

    inner: where published layouts keep the data set. holds: folders; of alternatives ("a|b") one is enough.

    Raises:
        DataError: nothing there looks like the data set; says what was expected and what is there.
    """
    places = [root, *(root / name for name in inner)]
    scores = [sum(any((place / name).is_dir() for name in names.split("|")) for names in holds) for place in places]
    if max(scores) > 0:
        return places[scores.index(max(scores))]
    try:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be read ({error.strerror})", "check its permissions") from error
    expected = ", ".join(names.partition("|")[0] for names in holds)
    near = next(filter(None, (nearest(name, found) for names in holds for name in names.split("|"))), "")
    raise DataError(
        f"{root}: {what} is not here: expected the folders {expected}; found {first_few(found, 8) or 'no folders'}",
        f"{near} {hint}" if near else hint,
    )


def first_folder(top: Path, names: Iterable[str], what: str, hint: str) -> Path:
    """The first of the folders `names` below `top` that exists.

    Raises:
        DataError: none does; names the first and what is there instead.
    """
    places = [top / name for name in names]
    for place in places:
        if place.is_dir():
            return place
    need_folder(places[0], what, hint)
    return places[0]


class _Splits(Protocol):
    """The data of a set that is published in splits."""

    @property
    def train_split(self) -> str: ...

    @property
    def eval_split(self) -> str: ...


def named_split(data: _Splits, phase: Phase) -> tuple[str, str]:
    """The published split that a recipe names for a phase, and the key that names it."""
    return (data.train_split, "train_split") if phase == "train" else (data.eval_split, "eval_split")


def known_split(data: _Splits, phase: Phase, known: Sequence[str]) -> str:
    """The published split that a recipe names for a phase; it must be among `known`.

    Raises:
        RecipeError: the data set has none of this name.
    """
    split, key = named_split(data, phase)
    if split not in known:
        hint = nearest(split, known) or f"set data.{key} to one of them"
        raise RecipeError(f'data.{key} = "{split}": no such split; there are {", ".join(known)}', hint)
    return split


# ------------------------------------------------------------------------------------------------ without labels
@dataclass(frozen=True, slots=True, eq=False)
class UnlabelledFiles:
    """The images of a test set whose labels are not published; satisfies data.dataset.Dataset.

    palette: (K, 3) uint8 RGB. withheld_by: who keeps the labels. layout: how the files were recognised, for people.
    """

    images: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: UInt8
    withheld_by: str
    layout: str = ""
    common_files: ClassVar[tuple[Path, ...]] = ()

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.images[index],)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def open(self, index: int) -> Sample:
        return FileSample(self.images[index], str(self.images[index]))
