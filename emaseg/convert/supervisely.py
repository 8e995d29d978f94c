"""Supervisely: meta.json with the classes, and for each image ann/<image>.json beside img/<image>.

Room: convert. A polygon, bitmap, alpha mask or rectangle has an area; a point or a line has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from emaseg.convert.export import Export, Item, Label, Left, Object, Objects, Outline, Picture, Shape
from emaseg.convert.numbers import Malformed, check_bare, pair, pairs, size_of, text_of, whole
from emaseg.convert.shapes import rectangle
from emaseg.convert.source import Source, find_image, json_files, read_json, split_of, state_of
from emaseg.data.files.mask_values import Colour
from emaseg.errors import DataError
from emaseg.threads import Reading, read_all
from emaseg.words import excerpt

__all__ = ["files", "read"]

_BARE = ("point", "line", "polyline", "graph")


def files(source: Source) -> list[str]:
    """The JSON files in this format."""
    found = json_files(source, b"objects", b"size", none_of=[b"shapes", b"images"], each=True)
    return [name for name in found if PurePosixPath(name).name != "meta.json"]


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All of them; labels in the order of meta.json, or else of the alphabet.

    Raises:
        DataError: meta.json cannot be read.
    """
    found = yield from read_all("annotations", partial(_one, source), names)
    left = [one for one, _ in found if isinstance(one, Left)]
    items: dict[str, Item] = {}
    for name, (one, _) in zip(names, found, strict=True):
        if isinstance(one, Item) and items.setdefault(one.image, one) is not one:
            left.append(Left(name, f"a second file for {one.image}"))
    labels = {label.key: label for label in _labels(source)}
    for label in sorted({label for _, used in found for label in used}):
        labels.setdefault(label, Label(label, label))
    return Export(tuple(labels.values()), tuple(items.values()), tuple(left))


def _one(source: Source, name: str) -> tuple[Item | Left, set[str]]:
    """The image of one file with its labels."""
    try:
        content = read_json(source.root / name)
        if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
            return Left(name, "it holds no objects of Supervisely", fault=False), set()
        image, size = _image(source, name), content.get("size")
        if not isinstance(size, dict):
            raise Malformed("it says no size")
        shape = size_of(size.get("height"), size.get("width"))
        labels = {one.label for one in _objects(content).objects}
    except ValueError as error:
        return Left(name, str(error)), set()
    except DataError as error:
        return Left(name, error.message), set()
    return Item(image, split_of(image), shape, partial(_read, source, name), state_of(source, name)), labels


def _image(source: Source, name: str) -> str:
    """ds/img/a.jpg of ds/ann/a.jpg.json; elsewhere only an image that has no such file of its own."""
    path = PurePosixPath(name)
    for said in (path.stem, *(f"{path.stem}{ending}" for ending in (".jpg", ".png", ".jpeg"))):
        for folder in ("img", "images", ""):
            place = str(path.parent.parent / folder / said)
            if place in source.images:
                return source.images[place]
    found = find_image(source, path.stem, name)
    own = source.root / PurePosixPath(found).parent.parent / path.parent.name / path.name
    if own.is_file() and own != source.root / name:
        raise Malformed(f"no image {excerpt(path.stem)}: {found} has its name, and an annotation of its own")
    return found


def _labels(source: Source) -> list[Label]:
    """Of the meta.json at the top, or one folder below it."""
    places = sorted(
        (name for name in source.files if PurePosixPath(name).name == "meta.json"), key=lambda n: n.count("/")
    )
    found = []
    for place in places[:1]:
        content = read_json(source.root / place)
        classes = content.get("classes") if isinstance(content, dict) else None
        for one in classes if isinstance(classes, list) else []:
            if isinstance(one, dict) and isinstance(one.get("title"), str) and one["title"].strip():
                title = one["title"].strip()
                found.append(Label(title, title, _colour(one.get("color"))))
    return found


def _colour(value: Any) -> Colour | None:
    try:
        code = int(value[1:], 16) if isinstance(value, str) and len(value) == 7 and value[0] == "#" else None
    except ValueError:
        code = None
    return None if code is None or code < 0 else (code >> 16, code >> 8 & 255, code & 255)


def _read(source: Source, name: str) -> Objects:
    return _objects(read_json(source.root / name))


def _objects(content: Mapping[str, Any]) -> Objects:
    objects, without = [], Counter[str]()
    for place, one in enumerate(content["objects"], 1):
        if not isinstance(one, dict):
            raise Malformed(f"object {place}: no object")
        label = text_of(one.get("classTitle"), f"object {place}: a class")
        kind = str(one.get("geometryType") or ("bitmap" if one.get("bitmap") else "polygon"))
        try:
            shape = _shape(kind, one)
        except ValueError as error:
            raise Malformed(f"object {place} ({label}): {error}") from None
        if shape is None:
            without[kind] += 1
        else:
            objects.append(Object(label, shape))
    return Objects(objects, without)


def _shape(kind: str, one: Mapping[str, Any]) -> Shape | None:
    if kind in ("bitmap", "alpha_mask"):
        bitmap = one.get("bitmap")
        if not isinstance(bitmap, dict):
            raise Malformed("a bitmap without its picture")
        x, y = pair(bitmap.get("origin"))
        return Picture(
            whole(y, "an origin"), whole(x, "an origin"), text_of(bitmap.get("data"), "a picture"), folded=True
        )
    if kind not in ("polygon", "rectangle"):
        check_bare(kind, _BARE)
        return None
    points = one.get("points")
    if not isinstance(points, dict):
        raise Malformed("an outline without points")
    outer = pairs(points.get("exterior"))
    if kind == "rectangle" and len(outer) == 2:
        return Outline([rectangle(*outer[0], *outer[1])])
    holes = points.get("interior") or []
    if not isinstance(holes, list):
        raise Malformed("holes that are not a list")
    return Outline([_flat(outer)], [_flat(pairs(hole)) for hole in holes])


def _flat(points: list[tuple[float, float]]) -> list[float]:
    return [value for point in points for value in point]
