"""CVAT for images: one XML file with the shapes of all images.

Room: convert. A polygon, box, ellipse or mask has an area, as in CVAT's own masks; a point or a line has none.

Shapes lie in the order of their z_order, of equal ones the later on top. CVAT's mask export is a folder of colour masks
with labelmap.txt (colours.py).
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from functools import partial

from emaseg.convert.again import Again, by_split
from emaseg.convert.export import Export, Item, Label, Left, Object, Objects, Outline, RowRuns, Shape
from emaseg.convert.numbers import Malformed, check_bare, number, size_of, text_of, whole
from emaseg.convert.shapes import ellipse, rectangle
from emaseg.convert.source import Source, finder, is_at_its_place, read_xml, split_of, split_of_file, state_of
from emaseg.data.files.mask_values import Colour
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.files import open_file
from emaseg.threads import Reading
from emaseg.words import excerpt

__all__ = ["files", "read"]

_BARE = ("points", "polyline", "skeleton")

_HEAD = 1 << 16
_Raw = tuple[tuple[str, dict[str, str]], ...]  # of each shape its kind and its attributes


def files(source: Source) -> list[str]:
    """The XML files in this format."""
    return [name for name in source.ending(".xml") if _fits(source, name)]


def _fits(source: Source, name: str) -> bool:
    try:
        with open_file(source.root / name) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"<annotations" in head and (b"<image " in head or b"<track " in head or b"<meta>" in head)


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All of them; labels in the order of the task's, or else of the alphabet.

    Raises:
        DataError: a file is damaged, or the export of a video.
    """
    yield from ()
    found = _Found()
    for name in by_split(names):
        _read_file(source, name, len(names) > 1, found)
    subsets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one, image in (placed := _placed(source, found)):
        subsets[image, one.file].add(one.subset)
    for one, image in placed:
        _read_image(one, image, subsets[image, one.file], found)
    for name in sorted(found.used):
        found.labels.setdefault(name, Label(name, name))
    left, notes = (*found.left, *found.again.left()), tuple(found.again.notes())
    return Export(tuple(found.labels.values()), found.again.clear(found.items.values()), left, notes)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image as a file has it. part: the split of its subset, which comes before the file's."""

    file: str
    said: str
    subset: str
    part: str
    split: str
    height: str | None
    width: str | None
    shapes: _Raw
    state: str


@dataclass(slots=True)
class _Found:
    """What was read so far, of all files."""

    labels: dict[str, Label] = field(default_factory=dict)
    images: list[_Image] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    first: dict[str, _Image] = field(default_factory=dict)  # by the image that it is of
    again: Again = field(default_factory=Again)


def _read_file(source: Source, name: str, several: bool, found: _Found) -> None:
    state, split = state_of(source, name), split_of_file(name) if several else split_of(name)
    for element in read_xml(source.root / name):
        if element.tag == "track":
            raise DataError(
                f"{source.root / name}: CVAT's export of a video, whose shapes belong to frames without files",
                'export the task as "CVAT for images" with its images',
            )
        for label in _labels(element) if element.tag == "meta" else ():
            found.labels.setdefault(label.key, label)
        if element.tag == "image":
            said, subset = element.get("name", ""), element.get("subset", "")
            shapes: _Raw = tuple((shape.tag, dict(shape.attrib)) for shape in element)
            size = element.get("height"), element.get("width")
            part = split_of(f"{subset}/x")
            found.images.append(_Image(name, said, subset, part, split, *size, shapes, state))


def _placed(source: Source, found: _Found) -> list[tuple[_Image, str]]:
    """The images that are here. In the export of a project each lies in a folder of its subset, and two subsets may have
    images of one name."""
    subsets = [one for one in found.images if one.subset]
    parted = {one.subset for one in subsets if is_at_its_place(source, f"{one.subset}/{one.said}", one.file)}
    paths = [(f"{one.subset}/{one.said}" if one.subset in parted else one.said, one.file) for one in found.images]
    place, placed = finder(source, paths), []
    for path, one in zip(paths, found.images, strict=True):
        try:
            placed.append((one, place.image(*path, one.part)))
        except ValueError as error:
            found.left.append(Left(excerpt(one.said), str(error)))
    return placed


def _read_image(one: _Image, image: str, subsets: Collection[str], found: _Found) -> None:
    try:
        if len(subsets) > 1:
            which = first_few(sorted(subset or "none" for subset in subsets))
            raise Malformed(f"{len(subsets)} subsets ({which}) have an image of this name: whose is {image}?")
        size = size_of(one.height, one.width)
        labels = {object_.label for object_ in _objects(one.shapes).objects}
        first = found.first.setdefault(image, one)
        if first is not one and first.file == one.file:
            raise Malformed(f"{one.file} describes it a second time")
    except ValueError as error:
        found.left.append(Left(excerpt(one.said), str(error)))
        return
    if first is not one:
        found.again.add(image, one.shapes, one.file, first.file, first.shapes)
        return
    part = one.part or one.split or split_of(one.said) or split_of(image)
    found.used |= labels
    found.items[image] = Item(image, part, size, partial(_objects, one.shapes), one.state)


def _labels(meta: ET.Element) -> list[Label]:
    """Of a task, a job or a project."""
    found = []
    for label in meta.iter("label"):
        name = (label.findtext("name") or "").strip()
        if name and not label.findtext("parent"):
            found.append(Label(name, name, _colour(label.findtext("color"))))
    return found


def _colour(text: str | None) -> Colour | None:
    if text is None or len(text) != 7:
        return None
    try:
        code = int(text[1:], 16)
    except ValueError:
        return None
    return code >> 16, code >> 8 & 255, code & 255


# ---------------------------------------------------------------------------------------------------------- objects
def _objects(raw: _Raw) -> Objects:
    objects, without = list[tuple[int, Object]](), Counter[str]()
    for place, (kind, attributes) in enumerate(raw, 1):
        if kind == "tag":
            continue
        try:
            label = text_of(attributes.get("label"), "a label")
            if kind not in _SHAPES:
                check_bare(kind, _BARE)
            shape = _SHAPES[kind](attributes) if kind in _SHAPES else None
            order = whole(attributes.get("z_order", 0), "z_order")
        except ValueError as error:
            raise Malformed(f"object {place}: {error}") from None
        if shape is None:
            without[kind] += 1
        else:
            objects.append((order, Object(label, shape)))
    return Objects([one for _, one in sorted(objects, key=lambda pair: pair[0])], without)


def _polygon(attributes: dict[str, str]) -> Shape:
    points = [point.split(",") for point in attributes.get("points", "").split(";")]
    if any(len(point) != 2 for point in points):
        raise Malformed("a polygon whose points are not pairs")
    return Outline([[number(value) for point in points for value in point]])


def _box(attributes: dict[str, str]) -> Shape:
    left, top, right, bottom = (number(attributes.get(name), name) for name in ("xtl", "ytl", "xbr", "ybr"))
    corners, turn = rectangle(left, top, right, bottom), math.radians(number(attributes.get("rotation", 0), "rotation"))
    if turn:
        x, y, c, s = (left + right) / 2, (top + bottom) / 2, math.cos(turn), math.sin(turn)
        points = [(u - x, v - y) for u, v in zip(corners[::2], corners[1::2], strict=True)]
        corners = [value for u, v in points for value in (x + u * c - v * s, y + u * s + v * c)]
    return Outline([corners])


def _ellipse(attributes: dict[str, str]) -> Shape:
    x, y, across, down = (number(attributes.get(name), name) for name in ("cx", "cy", "rx", "ry"))
    turn = math.radians(number(attributes.get("rotation", 0), "rotation"))
    return Outline([ellipse(x, y, across, down, turn)], curved=True)


def _mask(attributes: dict[str, str]) -> Shape:
    top, left, height, width = (whole(attributes.get(name), name) for name in ("top", "left", "height", "width"))
    return RowRuns(top, left, height, width, attributes.get("rle", ""))


_SHAPES: dict[str, Callable[[dict[str, str]], Shape]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
