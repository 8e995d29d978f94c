"""VGG Image Annotator (VIA 1 to 3): one JSON or CSV file with the regions of all images.

Room: convert. A polygon, rectangle, circle or ellipse has an area; a point or a line has none.

The class of a region is the value of its one attribute; of several attributes, of that called class, label, type, name
or category that says something. A note tells which one is used.

Two annotated files of one name are told apart by their sizes in bytes.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import Any

from emaseg.convert.again import Again, by_split
from emaseg.convert.export import Export, Item, Label, Left, Object, Objects, Outline, Shape
from emaseg.convert.labelme import in_order
from emaseg.convert.numbers import Malformed, check_bare, number, text_of
from emaseg.convert.shapes import ellipse, rectangle
from emaseg.convert.source import Source, csv_rows, finder, json_files, read_json, split_of, split_of_file, state_of
from emaseg.data.sets.pairs import read_text
from emaseg.errors import DataError
from emaseg.files import open_file
from emaseg.threads import Reading, read_all
from emaseg.words import excerpt

__all__ = ["files", "read"]

_CLASS_KEYS = ("class", "label", "type", "name", "category", "object")
_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_THREE = (b"attribute", b"file", b"metadata", b"fname", b"av", b"xy")  # keys of VIA 3
_SHAPES = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}  # first of its xy
_NUMBERS = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
_BARE = ("point", "line", "polyline")
_NOTHING = ("", "unknown", "undefined", "none")  # values that say nothing; the first option of VIA's own example
_Region = tuple[Mapping[str, Any], Mapping[str, Any]]  # shape attributes, region attributes
_File = tuple[str, str]  # the name of an annotated file, and what tells it from others of that name: its size in bytes
_Rows = dict[_File, list[_Region]]


def files(source: Source) -> list[str]:
    """The JSON and CSV files in this format."""
    tables = [name for name in source.ending(".csv") if _heading(source, name)]
    return json_files(source, b"shape_attributes", b"filename") + json_files(source, *_THREE) + tables


def _heading(source: Source, name: str) -> bool:
    try:
        with open_file(source.root / name) as file:
            first = file.readline(1 << 12)
    except OSError:
        return False
    return all(column.encode() in first for column in _COLUMNS)


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All of them; labels in the order of the alphabet, or of a file of class names.

    Raises:
        DataError: a file is no VIA file, or nothing says which attribute is the class.
    """
    items, left, found, again, remarks = [], [], Counter[str](), Again(), list[str]()
    images, names = dict[str, tuple[str, list[_Region]]](), by_split(names)
    contents = yield from read_all("annotations", partial(_rows_of, source), names)
    place = finder(source, ((said, name) for name, rows in zip(names, contents, strict=True) for said, _ in rows))
    for name, rows in zip(names, contents, strict=True):
        state, split = state_of(source, name), split_of_file(name) if len(names) > 1 else split_of(name)
        key, remark = _class_key(source, name, rows)
        remarks += [remark] if remark else []
        files_of = Counter(said for said, _ in rows)
        for (said, size), regions in rows.items():
            try:
                image = place.image(said, name) if files_of[said] == 1 else _of_size(source, said, size)
                used, known = images.get(image, ("", []))
                if used == name:
                    raise Malformed(f"{name} describes it a second time")
                if used:
                    again.add(image, regions, name, used, known)
                    continue
                found.update(one.label for one in _objects(regions, key).objects)
            except ValueError as error:
                left.append(Left(excerpt(said), str(error)))
                continue
            images[image] = name, regions
            items.append(Item(image, split or split_of(image), None, partial(_objects, regions, key), state))
    ordered, notes = in_order(source, sorted(found))
    left, notes = [*left, *again.left()], (*notes, *remarks, *again.notes())
    return Export(tuple(Label(label, label) for label in ordered), again.clear(items), tuple(left), notes)


def _of_size(source: Source, said: str, size: str) -> str:
    """The image of a name that several annotated files have, by its size in bytes.

    Raises:
        ValueError: there is none, or several.
    """
    last = said.replace("\\", "/").rpartition("/")[2].lower()
    here = [one for one in source.by_name.get(last, ()) if str((source.root / one).stat().st_size) == size]
    if len(here) != 1:
        which = f"of {size} bytes" if size.isdecimal() else "of it"
        raise Malformed(
            f"several files of this name are annotated, and {'several images' if here else 'no image'} {which} "
            f"{'are' if here else 'is'} here; give each a name of its own"
        )
    return here[0]


# ---------------------------------------------------------------------------------------------------------- files
def _rows_of(source: Source, name: str) -> _Rows:
    """The regions of each image."""
    return _from_csv(source, name) if name.lower().endswith(".csv") else _from_json(source, name)


def _from_json(source: Source, name: str) -> _Rows:
    content = read_json(source.root / name)
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    if not isinstance(content, dict):
        raise _no_via(source, name, "its top is not an object")
    if isinstance(content.get("metadata"), dict) and isinstance(content.get("file"), dict):
        return _from_three(source, name, content)
    found: _Rows = {}
    for entry in content.values():
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            continue
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(regions, list):
            raise _no_via(source, name, f"the regions of {excerpt(entry['filename'])} are not a list")
        found.setdefault((entry["filename"], str(entry.get("size"))), []).extend(map(_region, regions))
    if not found:
        raise _no_via(source, name, "it names no images")
    return found


def _from_three(source: Source, name: str, content: Mapping[str, Any]) -> _Rows:
    """Of VIA 3, where a region names its view, and a view its file."""
    files_ = {
        key: (str(one["fname"]), str(one.get("src") or key))
        for key, one in content["file"].items()
        if isinstance(one, dict) and "fname" in one
    }
    views = content.get("view")
    shown = (
        {key: one.get("fid_list") for key, one in views.items() if isinstance(one, dict)}
        if isinstance(views, dict)
        else {}
    )
    images = {
        key: files_[str(fids[0])]
        for key, fids in shown.items()
        if isinstance(fids, list) and fids and str(fids[0]) in files_
    }
    attributes = content.get("attribute")
    known = (
        {key: one for key, one in attributes.items() if isinstance(one, dict)} if isinstance(attributes, dict) else {}
    )
    found: _Rows = {image: [] for image in images.values()}
    for region in content["metadata"].values():
        if isinstance(region, dict) and region.get("xy") and str(region.get("vid")) in images:
            found[images[str(region["vid"])]].append(_region_of_three(region, known))
    if not found:
        raise _no_via(source, name, "it names no images")
    return found


def _region_of_three(region: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> _Region:
    """With the names that VIA 2 gives to the numbers of its shape, and to its attributes and their options."""
    first, *numbers = region["xy"] if isinstance(region["xy"], list) else [0]
    kind = _SHAPES.get(first, "shape") if isinstance(first, int) else "shape"
    shape: dict[str, Any] = {"name": kind, "all_points_x": numbers[::2], "all_points_y": numbers[1::2]}
    shape |= dict(zip(_NUMBERS.get(kind, ()), numbers, strict=False))
    said = region.get("av")
    values = {}
    for key, value in said.items() if isinstance(said, dict) else ():
        options = known.get(key, {}).get("options")
        text = options.get(value, value) if isinstance(options, dict) and isinstance(value, str) else value
        values[str(known.get(key, {}).get("aname", key))] = text
    return shape, values


def _region(region: Any) -> _Region:
    parts = (region.get("shape_attributes"), region.get("region_attributes")) if isinstance(region, dict) else ({}, {})
    return parts[0] if isinstance(parts[0], dict) else {}, parts[1] if isinstance(parts[1], dict) else {}


def _from_csv(source: Source, name: str) -> _Rows:
    text = read_text(source.root / name)
    found: defaultdict[_File, list[_Region]] = defaultdict(list)
    try:
        heading, *rows = list(csv_rows(text))
        columns = [cell.strip().lstrip("#") for cell in heading]
        places = [columns.index(column) for column in _COLUMNS]
        sized = columns.index("file_size") if "file_size" in columns else None
        for row in rows:
            if row:
                said, shape, attributes = (row[place] for place in places)
                found[said, "" if sized is None else row[sized].strip()] += (
                    [_region({"shape_attributes": json.loads(shape), "region_attributes": json.loads(attributes)})]
                    if shape not in ("", "{}")
                    else []
                )
    except (csv.Error, ValueError, IndexError, RecursionError) as error:
        raise _no_via(source, name, excerpt(error)) from error
    return dict(found)


def _no_via(source: Source, name: str, reason: str) -> DataError:
    return DataError(f"{source.root / name}: no annotations of VIA: {reason}", "export it again, or remove it")


def _class_key(source: Source, name: str, rows: Mapping[_File, Iterable[_Region]]) -> tuple[str, str]:
    """The attribute that is the class, and a note where there are others, "" = none."""
    values: dict[str, set[str]] = defaultdict(set)
    for regions in rows.values():
        for _, attributes in regions:
            for key, value in attributes.items():
                values[key].add(str(value).strip().lower())
    known = [key for word in _CLASS_KEYS for key in values if key.lower().replace("_name", "") == word]
    if len(values) == 1:
        return next(iter(values)), ""
    if known:
        used = next((key for key in known if not values[key] <= {*_NOTHING}), known[0])
        others = ", ".join(excerpt(key, 40) for key in sorted(values) if key != used)
        return used, (
            f"{name}: the class is the attribute {excerpt(used, 40)}; not used: {others}. If another one is the class, "
            "rename it to `class` in VIA, and export again."
        )
    if values:
        raise DataError(
            f"{source.root / name}: the regions have several attributes ({', '.join(sorted(values)[:6])}), and none is "
            "called class or label",
            "rename the one that is the class to `class` in VIA, and export again",
        )
    return "", ""


# ---------------------------------------------------------------------------------------------------------- objects
def _objects(regions: Iterable[_Region], key: str) -> Objects:
    objects, without = [], Counter[str]()
    for place, (shape, attributes) in enumerate(regions, 1):
        kind = str(shape.get("name"))
        try:
            label = _label(attributes.get(key)) if key else "object"
            area = _shape(kind, shape)
        except ValueError as error:
            raise Malformed(f"object {place}: {error}") from None
        if area is None:
            without[kind] += 1
        else:
            objects.append(Object(label, area))
    return Objects(objects, without)


def _label(value: Any) -> str:
    """A text, or the one ticked box of several."""
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else None
    return text_of(value, "a class")


def _shape(kind: str, shape: Mapping[str, Any]) -> Shape | None:
    def value(name: str) -> float:
        return number(shape.get(name), name)

    match kind:
        case "polygon":
            xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
            if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                raise Malformed("a polygon without as many x as y")
            return Outline([[number(part) for point in zip(xs, ys, strict=True) for part in point]])
        case "rect":
            left, top = value("x"), value("y")
            return Outline([rectangle(left, top, left + value("width"), top + value("height"))])
        case "circle":
            return Outline([ellipse(value("cx"), value("cy"), value("r"), value("r"))], curved=True)
        case "ellipse":
            turn = number(shape.get("theta", 0), "theta")
            return Outline([ellipse(value("cx"), value("cy"), value("rx"), value("ry"), turn)], curved=True)
    if shape:  # a region may have none
        check_bare(kind, _BARE)
    return None
