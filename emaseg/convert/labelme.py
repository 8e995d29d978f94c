"""labelme: one JSON file for each image, with the shapes in the order in which they were drawn.

Room: convert. A polygon, rectangle (turned or not), quadrilateral, circle or mask has an area; a point or a line has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

from emaseg.convert.export import Export, Item, Label, Left, Object, Objects, Outline, Picture, Shape
from emaseg.convert.numbers import Malformed, check_bare, pair, pairs, size_of, text_of
from emaseg.convert.shapes import ellipse, rectangle
from emaseg.convert.source import Finder, Source, finder, json_files, read_json, split_of, state_of
from emaseg.data.files.images import EXTENSIONS
from emaseg.errors import DataError
from emaseg.starter.names import Entry, find_names
from emaseg.threads import Reading, read_all

__all__ = ["files", "read"]

_TURNED = ("rotation", "oriented_rectangle", "quadrilateral")  # with their four corners
_BARE = ("point", "points", "line", "linestrip")


def files(source: Source) -> list[str]:
    """The JSON files in this format."""
    return json_files(source, b"shapes", b"imagePath", each=True)


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All of them. Labels are in the order of labels.txt, where there is one, else in that of the alphabet.

    Raises:
        DataError: labels.txt cannot be read.
    """
    found = yield from read_all("annotations", partial(_one, source), names)
    left = [one for one in found if isinstance(one, Left)]
    place = finder(source, ((one.said, one.name) for one in found if isinstance(one, _File)))
    of_images: list[tuple[_File, str]] = []
    for one in found:
        try:
            of_images += [(one, _image(place, one))] if isinstance(one, _File) else []
        except ValueError as error:
            left.append(Left(one.name, str(error)))
    ordered, notes = in_order(source, sorted({label for one, _ in of_images for label in one.labels}))
    items: dict[str, Item] = {}
    # The files that have their image's name come first: the others are copies.
    for one, image in sorted(of_images, key=lambda pair: _beside(source, pair[0].name) != pair[1]):
        if (
            image in items
        ):  # a second file of an image: that of the one beside it that has the file's own name, or of none
            first, image = image, _beside(source, one.name) or image
            if image in items:
                left.append(Left(one.name, f"a second file for {first}"))
                continue
        items[image] = Item(image, split_of(image), one.size, partial(_read, source, one.name), one.state)
    return Export(tuple(Label(label, label) for label in ordered), tuple(items.values()), tuple(left), notes)


@dataclass(frozen=True, slots=True)
class _File:
    """What an annotation file says. said: its image's path. has_copy: of the image. state: as `Item` has it."""

    name: str
    said: object
    has_copy: bool
    size: tuple[int, int] | None
    labels: frozenset[str]
    state: str


def _one(source: Source, name: str) -> _File | Left:
    try:
        content = read_json(source.root / name)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            return Left(name, "it holds no shapes of labelme", fault=False)
        size = size_of(content.get("imageHeight"), content.get("imageWidth"))
        labels = frozenset(one.label for one in _objects(content).objects)
    except ValueError as error:
        return Left(name, str(error))
    except DataError as error:
        return Left(name, error.message)
    return _File(name, content.get("imagePath"), bool(content.get("imageData")), size, labels, state_of(source, name))


def _image(place: Finder, one: _File) -> str:
    """The image that a file names, or the one beside it that has the file's own name: images are renamed with it.

    Raises:
        ValueError: there is none.
    """
    try:
        return place.image(one.said, one.name)
    except ValueError as error:
        found = _beside(place.source, one.name)
        if found is None or "leads out of the folder" in str(error):
            inside = "; a copy of it is in the JSON file, imageData" if one.has_copy else ""
            raise Malformed(f"{error}{inside}") from None
        return found


def _beside(source: Source, name: str) -> str | None:
    """The image beside an annotation file that has its name."""
    stem = name.removesuffix(".json")
    beside = [f"{stem}{ending}" for ending in (*EXTENSIONS, *map(str.upper, EXTENSIONS))]
    return next((source.images[one] for one in beside if one in source.images), None)


def in_order(source: Source, labels: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Labels in the order of a file of class names beside the annotations, those that it lacks at the end; and notes.

    Raises:
        DataError: that file cannot be read.
    """
    known, _ = find_names(source.root, coloured=False)
    if known is None:
        return labels, ()
    first = [entry.name for _, entry in sorted(known.by_value().items())]
    if not set(first) & set(labels):
        return labels, (f"{known.file} names none of the labels, and is not used.",)
    extra = [label for label in labels if label not in first and not Entry(label).void]
    void = [label for label in labels if label not in first and Entry(label).void]
    notes = [f"The classes are in the order of {known.file}."]
    notes += [f"Not in it: {', '.join(extra)}; they come last."] if extra else []
    return [*first, *extra, *void], tuple(notes)


def _read(source: Source, name: str) -> Objects:
    return _objects(read_json(source.root / name))


def _objects(content: dict[str, Any]) -> Objects:
    objects, without = [], Counter[str]()
    for number, shape in enumerate(content["shapes"], 1):
        if not isinstance(shape, dict):
            raise Malformed(f"object {number}: not a shape")
        label = text_of(shape.get("label"), f"object {number}: a label")
        kind = str(shape.get("shape_type") or "polygon")
        try:
            area = _shape(kind, shape)
        except ValueError as error:
            raise Malformed(f"object {number} ({label}): {error}") from None
        if area is None:
            without[kind] += 1
        else:
            objects.append(Object(label, area))
    return Objects(objects, without)


def _shape(kind: str, shape: dict[str, Any]) -> Shape | None:
    """None for a kind without an area."""
    points = pairs(shape.get("points"))
    if kind == "polygon":
        return Outline([[value for point in points for value in point]])
    if kind == "rectangle":
        if len(points) != 2:
            return Outline([[value for point in points for value in point]])
        (left, top), (right, bottom) = points
        return Outline([rectangle(left, top, right, bottom)])
    if kind in _TURNED:
        if len(points) != 4:
            raise Malformed(f"a shape of the kind {kind} without its four corners")
        return Outline([[value for point in points for value in point]])
    if kind == "circle":
        if len(points) != 2:
            raise Malformed("a circle without its two points")
        (x, y), (u, v) = points
        radius = math.hypot(u - x, v - y)
        return Outline([ellipse(x, y, radius, radius)], curved=True)
    if kind == "mask":
        if not points:
            raise Malformed("a mask without its place")
        x, y = pair(points[0])
        return Picture(round(y), round(x), text_of(shape.get("mask"), "the picture of a mask"))
    check_bare(kind, _BARE)
    return None
