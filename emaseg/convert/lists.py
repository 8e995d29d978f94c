"""Which images are for training and which for evaluation, where files beside the annotations say so.

Room: convert.

    train.txt + val.txt     an image a line, where `emaseg init` looks for them: in the folder, splits/, ImageSets/, ...
    data.yaml               train: and val: with such lists, or with folders

An export that has splits of its own keeps them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from emaseg.convert.export import Export, Item, Left
from emaseg.convert.numbers import Malformed
from emaseg.convert.output import are_splits, shared_folders
from emaseg.convert.source import Source, among, finder, has_name, image_at, split_of
from emaseg.data.sets.pairs import first_few, read_text
from emaseg.errors import DataError
from emaseg.starter.layout import LIST_FOLDERS
from emaseg.words import excerpt

__all__ = ["with_lists"]

_KEY = re.compile(r"([A-Za-z_]\w*)\s*:(?:\s+(.*))?")  # at the left margin of data.yaml
_CLASSES = frozenset(("names", "nc"))  # keys of data.yaml, and not of settings that have train: and val:, too
_LISTS, _YAML = (".txt", ".lst"), (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class _Stated:
    """files: what says it. splits: of images. twice: how many are in two lists. sure: the data set's own file says it.

    problem: why it cannot be used; "" = it can. passed: why its test part is not used; "" = it is, or there is none.
    """

    files: tuple[str, ...]
    splits: Mapping[str, str]
    twice: int = 0
    sure: bool = False
    problem: str = ""
    passed: str = ""


def with_lists(source: Source, export: Export, annotations: Collection[str]) -> Export:
    """The export with the splits that lists of images say, where it has none; or with a note that they are not used.

    Images in none of the lists are left out, unless their folder is of a split that has no list.

    Args:
        annotations: the files of the export, which are no lists.
    """
    stated = _stated(source, export.items, annotations)
    if stated is None:
        return export
    files = " and ".join(stated.files)
    if are_splits({item.split for item in export.items}):
        others = [item.image for item in export.items if stated.splits.get(item.image, item.split) != item.split]
        note = f"The export's own splits are used, not those of {files}, which differ: {first_few(others)}."
        return replace(export, notes=(*export.notes, note)) if others else export
    problem = stated.problem or _problem(stated, export.items)
    if problem:
        return replace(export, notes=(*export.notes, f"The splits of {files} are not used: {problem}."))
    listed = set(stated.splits.values())
    items, left = list[Item](), list[Left]()
    for item in export.items:
        split = stated.splits.get(item.image, "" if item.split in listed else item.split)
        if split:
            items.append(replace(item, split=split))
        else:
            left.append(Left(item.image, f"it is in none of the splits of {files}", fault=False))
    notes = [*export.notes, f"The splits are those of {files}."]
    notes += [f"Images in two of these splits: {stated.twice:,}, taken for training."] if stated.twice else []
    notes += [f"The test part of these splits is not used: {stated.passed}."] if stated.passed else []
    return replace(export, items=tuple(items), left=(*export.left, *left), notes=tuple(notes))


def _problem(stated: _Stated, items: Sequence[Item]) -> str:
    """Why the splits cannot be used; "" = they can."""
    found = [stated.splits[item.image] for item in items if item.image in stated.splits]
    if "train" not in found:
        return "they have no annotated image for training"
    if set(found) == {"train"}:
        return "they have no annotated image for evaluation that is not for training, too"
    if not stated.sure and 2 * len(found) < len(items):
        return f"they have {len(found):,} of {len(items):,} annotated images"
    return ""


def _stated(source: Source, items: Sequence[Item], annotations: Collection[str]) -> _Stated | None:
    """What data.yaml says, or else the lists; None: there is neither."""
    texts = [name for name in source.files if name.lower().endswith((*_LISTS, *_YAML)) and name not in annotations]
    if not texts:
        return None
    shared = shared_folders([tuple(item.image.split("/")[:-1]) for item in items])
    tops = [str(PurePosixPath(*shared[:count])) for count in range(len(shared) + 1)]
    images = among(source, [item.image for item in items])
    found = [*_of_yaml(source, images, tops, texts), *_of_lists(source, images, tops, texts)]
    return next((one for one in found if not one.problem), found[0] if found else None)


# ------------------------------------------------------------------------------------------------------------- lists
def _of_lists(source: Source, images: Source, tops: Sequence[str], texts: Sequence[str]) -> Iterator[_Stated]:
    """In each folder that has some. images: the source with the annotated images only. texts: files that may be lists."""
    folders = [str(PurePosixPath(top, folder)).lower() for folder in LIST_FOLDERS for top in tops]
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for name in texts:
        path = PurePosixPath(name)
        folder, split = str(path.parent).lower(), split_of(f"{path.stem}/x")
        if split and folder in folders and path.suffix.lower() in _LISTS:
            by_folder[folder].setdefault(split, name)
    for folder in sorted(by_folder, key=folders.index):
        lists = by_folder[folder]
        if len(lists) > 1 or "train" not in lists:
            yield _joined(
                tuple(lists.values()), {split: _listed(source, images, [name]) for split, name in lists.items()}
            )
        else:
            yield _Stated(tuple(lists.values()), {}, problem="there is no list of images for evaluation")


def _joined(files: Sequence[str], found: Mapping[str, set[str] | str], *, sure: bool = False) -> _Stated:
    """found: of each split its images, or what is wrong. Beside a val part the test part may be wrong: its images are often
    not there."""
    wrong = {split: one for split, one in found.items() if isinstance(one, str)}
    passed = wrong.pop("test", "") if "val" in found else ""
    if wrong:
        return _Stated(tuple(files), {}, problem=next(iter(wrong.values())))
    right = {split: one for split, one in found.items() if not isinstance(one, str)}
    every = [(image, split) for split in ("test", "val", "train") for image in right.get(split, ())]
    splits = dict(every)  # training comes last: what is trained on is not evaluated
    return _Stated(tuple(files), splits, len(every) - len(splits), sure, passed=passed)


def _listed(source: Source, images: Source, lists: Iterable[str]) -> set[str] | str:
    """The annotated images that some lists name, or what is wrong with a list."""
    found: set[str] = set()
    for name in lists:
        try:
            lines = [line.strip() for line in read_text(source.root / name).splitlines() if line.strip()]
        except DataError as error:
            return error.message
        lines = [line if has_name(source, line) else _first(line) for line in lines]
        strange = [line for line in lines if not has_name(source, line)]
        if 2 * len(strange) > len(lines):
            return (
                f"{len(strange):,} of {len(lines):,} lines of {name} name no image here, such as {excerpt(strange[0])}"
            )
        place = finder(images, ((line, name) for line in lines))
        for line in lines:
            image = image_at(source, line, name)
            if image is None and has_name(images, line):
                try:
                    image = place.image(line, name)
                except Malformed:
                    continue
            found |= {image} if image is not None else set()
    return found


def _first(line: str) -> str:
    """The image of a line that has its mask or a number after it."""
    first, *more = re.split(r"[\t,; ]+", line)
    return first if more else line


# --------------------------------------------------------------------------------------------------------- data.yaml
def _of_yaml(source: Source, images: Source, tops: Sequence[str], texts: Sequence[str]) -> Iterator[_Stated]:
    for name in texts:
        path = PurePosixPath(name)
        if path.suffix.lower() not in _YAML or str(path.parent) not in tops:
            continue
        try:
            said = _paths(read_text(source.root / name))
        except DataError:  # told where it is to name the classes
            continue
        splits: dict[str, list[str]] = defaultdict(list)
        for key, values in said.items():
            if split := split_of(f"{key}/x"):
                splits[split] += values
        if "train" in splits and len(splits) > 1 and not _CLASSES.isdisjoint(said):
            found = {split: _meant(source, images, tops, values) for split, values in splits.items()}
            yield _joined([name], found, sure=True)


def _paths(text: str) -> dict[str, list[str]]:
    """The texts of the keys at the left margin: one, a list in brackets, or one with a hyphen a line."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines():
        plain = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if match := _KEY.fullmatch(plain):
            key, plain = match[1], match[2] or ""
        elif not re.match(r"\s*-\s|\s+\S", plain):
            continue
        parts = re.sub(r"^\s*-\s", "", plain).strip().strip("[]").split(",")
        found.setdefault(key, []).extend(value for part in parts if (value := part.strip().strip("'\"")))
    return found


def _meant(source: Source, images: Source, tops: Sequence[str], values: Sequence[str]) -> set[str] | str:
    """The annotated images of the lists and folders that are meant, or what is wrong."""
    found: set[str] = set()
    folders = {str(folder) for name in images.images.values() for folder in PurePosixPath(name).parents}
    for value in values:
        place = _place(value, tops, folders | set(source.files))
        if place is None:
            return f"{excerpt(value)} is not here"
        if place in folders:
            found.update(name for name in images.images.values() if place == "." or name.startswith(f"{place}/"))
            continue
        listed = _listed(source, images, [place])
        if isinstance(listed, str):
            return listed
        found |= listed
    return found


def _place(value: str, tops: Sequence[str], known: Collection[str]) -> str | None:
    """What a path means here that may be of another machine: as much of its end as there is."""
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(max(1, len(parts))):
        for top in tops:
            place = str(PurePosixPath(top, *parts[start:]))
            if place in known:
                return place
    return None
