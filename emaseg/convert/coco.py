"""COCO JSON: images, categories and annotations in one file; polygons, run lengths, and panoptic PNGs.

Room: convert. Roboflow's _annotations.coco.json in each split is this, too.

Objects lie in the order of the file, crowds like the others. Of several files that describe one image the first counts,
and files that state a split come first.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from emaseg.convert.again import Again, by_split
from emaseg.convert.export import Codes, ColumnRuns, Export, Item, Label, Left, Object, Objects, Outline, Shape
from emaseg.convert.numbers import Malformed, size_of, text_of, whole
from emaseg.convert.source import (
    Finder,
    Source,
    finder,
    json_files,
    last_name,
    read_json,
    split_of,
    split_of_file,
    state_of,
)
from emaseg.data.files.mask_values import Colour
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.threads import Reading, read_all
from emaseg.words import excerpt

__all__ = ["files", "read"]

_CORNERS = 3  # of an outline, at least
_BOX, _LINE = "box without an outline", "outline of less than three corners"
_Table = Mapping[str, Any]


def files(source: Source) -> list[str]:
    """The JSON files in this format; of one folder those with outlines, or else those of panoptic PNGs."""
    outlines = json_files(source, b"images", b"annotations", b"categories", b"segmentation", none_of=[b"segments_info"])
    return outlines or json_files(source, b"images", b"annotations", b"categories", b"segments_info")


@dataclass(slots=True)
class _Found:
    """What was read so far, of all files."""

    labels: dict[str, Label] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: dict[str, tuple[str, Sequence[_Table]]] = field(default_factory=dict)  # the file of each, its annotations
    again: Again = field(default_factory=Again)
    masks: set[str] = field(default_factory=set)  # panoptic PNGs


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All of them; labels in the order of their ids.

    Raises:
        DataError: a file is no COCO JSON, or two files give one id to different categories.
    """
    found, names = _Found(), by_split(names)
    others = json_files(source, b"images", b"annotations", b"categories", b"segments_info")
    if passed := [name for name in others if name not in names]:
        found.notes.append(
            f"Not read: {first_few(passed)}, panoptic PNGs beside outlines; name the file to convert it."
        )
    contents = yield from read_all("annotations", lambda name: read_json(source.root / name), names)
    for name, content in zip(names, contents, strict=True):
        _check(source, name, content)
    stated = [
        (image.get("file_name"), name)
        for name, content in zip(names, contents, strict=True)
        for image in content["images"]
        if isinstance(image, dict)
    ]
    place = finder(source, stated)
    for name, content in zip(names, contents, strict=True):
        _read_file(place, name, content, len(names) > 1, found)
    labels = [found.labels[key] for key in sorted(found.labels, key=int)]
    left, notes = (*found.left, *found.again.left()), (*found.notes, *found.again.notes())
    return Export(tuple(labels), found.again.clear(found.items), left, notes, masks=frozenset(found.masks))


def _check(source: Source, name: str, content: Any) -> None:
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError(f"{source.root / name}: no COCO JSON: {', '.join(keys)} should be lists", "export it again")


def _read_file(place: Finder, name: str, content: _Table, several: bool, found: _Found) -> None:
    source = place.source
    try:
        labels, note = _labels(content["categories"], content["annotations"])
    except ValueError as error:
        raise DataError(f"{source.root / name}: {error}", "export it again") from error
    found.notes += [f"{name}: {note}"] if note else []
    for label in labels:
        other = found.labels.setdefault(label.key, label)
        if other.name != label.name:
            raise DataError(
                f'{source.root / name}: category {label.key} is "{label.name}", and "{other.name}" in another file',
                "convert the files one by one: name one of them instead of the folder",
            )
    notes: dict[Any, list[_Table]] = defaultdict(list)
    for note_ in content["annotations"]:
        if isinstance(note_, dict):
            notes[_key(note_.get("image_id"))].append(note_)
        else:
            found.left.append(Left(name, f"an annotation that is not an object: {excerpt(note_, 40)}"))
    split = split_of_file(name) if several or split_of(name) else ""
    state = state_of(source, name)
    named: dict[Any, set[str]] = defaultdict(set)
    for image in content["images"]:
        if isinstance(image, dict):
            named[_key(image.get("id"))].add(repr(image.get("file_name")))
    for image in content["images"]:
        if isinstance(image, dict) and len(named[key := _key(image.get("id"))]) > 1:
            notes.pop(key, None)
            reason = f"{len(named[key]):,} images of {name} have the id {excerpt(image.get('id'), 20)}: whose objects are whose?"
            found.left.append(Left(excerpt(image.get("file_name"), 60), reason))
            continue
        _read_image(
            place,
            name,
            image,
            notes.pop(_key(image.get("id")) if isinstance(image, dict) else None, []),
            split,
            state,
            found,
        )
    for key, lost in list(notes.items())[:20]:
        found.left.append(
            Left(name, f"{len(lost):,} annotations of image {excerpt(key, 40)}, which the file does not list")
        )


def _key(value: Any) -> Any:
    """An id as something that can be looked up: 7, 7.0 and "7" are one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value):
        return int(value)
    return value if isinstance(value, int | str) else repr(value)[:80]


def _read_image(
    place: Finder, name: str, image: Any, notes: Sequence[_Table], split: str, state: str, found: _Found
) -> None:
    said = image.get("file_name") if isinstance(image, dict) else None
    try:
        path = place.image(said, name)
        used, known = found.images.get(path, ("", ()))
        if used == name:
            raise Malformed(f"{name} describes it twice")
        if used:
            found.again.add(path, _drawn(notes), name, used, _drawn(known))
            return
        size = size_of(image.get("height"), image.get("width"))
    except ValueError as error:
        found.left.append(Left(excerpt(said) if isinstance(said, str) else name, str(error)))
        return
    found.images[path] = name, notes
    if _is_panoptic(notes):
        with contextlib.suppress(Malformed):  # said when it is read
            png = _png_of(place.source, notes[0])
            found.masks.add(png)
            state = f"{state} {state_of(place.source, png)}"
    read_ = partial(_panoptic, place.source, name, notes) if _is_panoptic(notes) else partial(_objects, notes)
    found.items.append(Item(path, split or split_of(path), size, read_, state))


def _drawn(notes: Sequence[_Table]) -> list[list[Any]]:
    """What shows whether two annotations are one."""
    return [[_key(note.get("category_id")), note.get("segmentation"), note.get("segments_info")] for note in notes]


# ------------------------------------------------------------------------------------------------------ categories
def _labels(categories: Sequence[Any], annotations: Sequence[Any]) -> tuple[list[Label], str]:
    """The labels, without one that is only the others' heading, as Roboflow writes; and a note on it."""
    labels, parents = [], {}
    for category in categories:
        if not isinstance(category, dict):
            raise Malformed("a category that is not an object")
        key = str(whole(category.get("id"), "a category's id"))
        if key in parents:
            raise Malformed(f"category {key} appears twice")
        labels.append(Label(key, text_of(category.get("name"), f"the name of category {key}"), _colour(category)))
        parents[key] = str(category.get("supercategory"))
    used = Counter(str(_key(note.get("category_id"))) for note in annotations if isinstance(note, dict))
    headings = [
        one for one in labels if not used[one.key] and one.name in parents.values() and parents[one.key] == "none"
    ]
    if headings and len(headings) < len(labels):
        note = f"{headings[0].name} has no annotation and is only the heading of other categories: no class."
        return [label for label in labels if label not in headings], note
    return labels, ""


def _colour(category: _Table) -> Colour | None:
    colour = category.get("color")
    if isinstance(colour, list) and len(colour) == 3 and all(type(part) is int and 0 <= part < 256 for part in colour):
        return colour[0], colour[1], colour[2]
    return None


# --------------------------------------------------------------------------------------------------------- objects
def _objects(notes: Sequence[_Table]) -> Objects:
    objects, without = [], Counter[str]()
    for number, note in enumerate(notes, 1):
        label = str(_key(note.get("category_id")))
        shape = _shape(note.get("segmentation"), number)
        if isinstance(shape, str):
            without[shape] += 1
        else:
            objects.append(Object(label, shape))
    return Objects(objects, without)


def _shape(segmentation: Any, number: int) -> Shape | str:
    """Of what has no area what it is: data sets hold a few outlines of two points, which cost no image."""
    if segmentation is None or segmentation == {}:
        return _BOX
    if isinstance(segmentation, dict):
        return ColumnRuns(segmentation)
    if not isinstance(segmentation, list):
        raise Malformed(f"object {number}: a segmentation that is neither polygons nor run lengths")
    rings = _rings(segmentation)
    if all(ring == [] for ring in rings):
        return _BOX
    if all(isinstance(ring, list) and len(ring) in range(0, 2 * _CORNERS, 2) for ring in rings):
        return _LINE
    return Outline(rings)


def _rings(segmentation: list[Any]) -> list[Any]:
    """Flat lists of numbers, of polygons that may be written as points, and of one without the list around it."""
    if segmentation and all(isinstance(value, int | float) for value in segmentation):
        return [segmentation]
    if len(segmentation) >= _CORNERS and all(map(_is_point, segmentation)):
        return [_flat(segmentation)]
    return [
        _flat(ring) if isinstance(ring, list) and ring and all(map(_is_point, ring)) else ring for ring in segmentation
    ]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, int | float) for part in value)


def _flat(points: list[list[float]]) -> list[float]:
    return [part for point in points for part in point]


# -------------------------------------------------------------------------------------------------------- panoptic
def _is_panoptic(notes: Sequence[_Table]) -> bool:
    return any("segments_info" in note for note in notes)


def _panoptic(source: Source, name: str, notes: Sequence[_Table]) -> Objects:
    """A PNG whose colours are numbers of segments: red + 256 green + 65536 blue; 0 is no segment."""
    if len(notes) != 1 or not isinstance(notes[0].get("segments_info"), list):
        raise Malformed("several panoptic annotations of one image")
    table = {0: ""}
    for segment in notes[0]["segments_info"]:
        if not isinstance(segment, dict):
            raise Malformed("a segment that is not an object")
        code = whole(segment.get("id"), "a segment's id")
        if not 0 < code < 1 << 24:
            raise Malformed(f"a segment {code}, which no colour can be")
        table[(code & 255) << 16 | (code & 0xFF00) | code >> 16] = str(_key(segment.get("category_id")))
    png = _png_of(source, notes[0])
    return Objects([Object("", Codes(source.root / png, table))], {})


def _png_of(source: Source, note: _Table) -> str:
    file = text_of(note.get("file_name"), "the name of the panoptic PNG").replace("\\", "/")
    last = PurePosixPath(file).name
    places = [one for one in source.by_name.get(last_name(last), ()) if PurePosixPath(one).name == last]
    if len(places) != 1 and (near := [one for one in places if one.endswith(".png") and "panoptic" in one]):
        places = near
    if len(places) != 1:
        raise Malformed(f"{len(places) or 'no'} files are called {excerpt(last)}, the panoptic PNG")
    return places[0]
