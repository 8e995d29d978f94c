"""Label Studio: a JSON export of all tasks, or brush exports, one PNG for each label of a task.

Room: convert. A polygon, brush, bitmask, rectangle or ellipse that was drawn as a region of a class has an area.

A brush export's name has the number of its task, not the image's name: the JSON or CSV export of the same project says
which image a task is of.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from emaseg.convert.again import Again, by_split
from emaseg.convert.export import (
    BrushRuns,
    Export,
    Item,
    Label,
    Left,
    MaskFile,
    Object,
    Objects,
    Outline,
    Picture,
    Shape,
)
from emaseg.convert.labelme import in_order
from emaseg.convert.numbers import Malformed, check_bare, number, pairs, size_of, text_of
from emaseg.convert.shapes import ellipse, rectangle
from emaseg.convert.source import Finder, Source, csv_rows, finder, json_files, read_json, split_of, state_of
from emaseg.data.files.images import EXTENSIONS
from emaseg.data.sets.pairs import first_few, read_text
from emaseg.errors import DataError
from emaseg.threads import Reading, read_all
from emaseg.words import excerpt

__all__ = ["brush_files", "files", "read", "read_brushes"]

BRUSH = re.compile(r"(?:.*/)?task-(\d+)-annotation-(\d+)-by-.*-tag-(.+?)-\d+\.png", re.IGNORECASE)
_BARE = tuple(f"{kind}labels" for kind in ("keypoint", "timeseries", "hypertext", "paragraph", "timeline"))
_SHAPES = ("polygon", "brush", "bitmask", "rectangle", "ellipse")
_PREFIX = re.compile(r"[0-9a-f]{8}-")  # in front of the name of an uploaded file


def files(source: Source) -> list[str]:
    """The JSON files in this format."""
    whole = json_files(source, b"annotations", b"data", b"result", none_of=[b"images", b"shapes"])
    return whole or json_files(source, b"original_width", b"annotator", b"id", none_of=[b"annotations", b"shapes"])


def brush_files(source: Source) -> list[str]:
    """The brush exports, where there is no JSON export with what they show."""
    return [] if files(source) else [name for name in source.files if BRUSH.fullmatch(name)]


# ------------------------------------------------------------------------------------------------------ JSON export
def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All tasks; of several annotations of a task the first that was not cancelled counts.

    Raises:
        DataError: a file is no such export.
    """
    items, left, found, again, notes = [], [], Counter[str](), Again(), Counter[str]()
    images: dict[str, tuple[str, list[Any]]] = {}
    names = by_split(names)
    contents = yield from read_all("annotations", lambda name: read_json(source.root / name), names)
    for name, content in zip(names, contents, strict=True):
        if not isinstance(content, list):
            raise DataError(
                f"{source.root / name}: no JSON export of Label Studio: its top is not a list", "export it again"
            )
    tasks = [(name, _whole(task)) for name, content in zip(names, contents, strict=True) for task in content]
    place = _images(source, [(_image_of(task), name) for name, task in tasks])
    claims = _claims(place, [(_image_of(task), name) for name, task in tasks if _is_annotated(task)])
    states = {name: state_of(source, name) for name in names}
    for name, task in tasks:
        said = _image_of(task)
        try:
            image = place.find(said, name)
            results, several = _results(task)
            if results is None:
                left.append(Left(image, "its task has no annotation", fault=False))
                continue
            objects, size = _objects(results), _size(results)
            _check_claims(image, claims)
            used, known = images.get(image, ("", []))
            if used == name:
                raise Malformed(f"{name} describes it a second time")
        except ValueError as error:
            left.append(Left(excerpt(said), str(error)))
            continue
        if used:
            again.add(image, results, name, used, known)
            continue
        images[image] = name, results
        notes["several"] += several
        found.update(one.label for one in objects.objects)
        items.append(Item(image, split_of(image), size, partial(_objects, results), states[name]))
    ordered, remarks = in_order(source, sorted(found))
    remarks = (*remarks, *_several(notes["several"]), *again.notes())
    left += again.left()
    return Export(tuple(Label(label, label) for label in ordered), again.clear(items), tuple(left), remarks)


def _is_annotated(task: Any) -> bool:
    try:
        return _results(task)[0] is not None
    except (ValueError, AttributeError):  # told when the task is read
        return False


def _claims(place: _Images, said: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    """The names by which tasks lead to each image. said: a task's name for its image, and the file that says so."""
    claims: dict[str, set[str]] = defaultdict(set)
    for one, near in said:
        with contextlib.suppress(ValueError):  # told when the task is read
            claims[place.find(one, near)].add(_unsigned(one))
    return claims


def _check_claims(image: str, claims: Mapping[str, set[str]]) -> None:
    """
    Raises:
        Malformed: uploads of two names would be one image; which of them it is nobody says.
    """
    if len(claims[image]) > 1:
        raise Malformed(
            f"{len(claims[image]):,} tasks lead to {image} ({first_few(sorted(map(_name, claims[image])))}): keep the one "
            "that is of this image"
        )


def _several(tasks: int) -> tuple[str, ...]:
    return (f"{tasks:,} tasks have several annotations: the first of each is used.",) if tasks else ()


def _whole(task: Any) -> Any:
    """A task of the JSON-MIN export, which has its regions under the names of the labels' tags, as the full one has it."""
    if not isinstance(task, dict) or "annotations" in task or "completions" in task:
        return task
    regions = [one for value in task.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
    results = [
        {**one, "type": next((key for key in one if key.endswith("labels")), ""), "value": one} for one in regions
    ]
    return {
        **task,
        "data": {key: value for key, value in task.items() if isinstance(value, str)},
        "annotations": [{"result": results}],
    }


def _image_of(task: Any) -> str:
    """The image that a task names, its own name first."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return ""
    named = [value for value in data.values() if isinstance(value, str)]
    keys = [data[key] for key in ("image", "img", "url") if isinstance(data.get(key), str)]
    pictures = [value for value in named if _is_picture(value)]
    return next(iter([*keys, *pictures, *named]), "")


def _is_picture(said: str) -> bool:
    """A signed address has its signature after the name; a file on a disk is named after `?d=`."""
    return any(part.lower().endswith(EXTENSIONS) for part in (said, said.partition("?")[0]))


def _path(said: str) -> str:
    """Of a file on a disk the path after `?d=`, of an uploaded one or one in a store its name."""
    said = _unsigned(said)
    said = said.partition("?d=")[2] or said
    return _name(said) if said.startswith(("/data/", "s3:", "gs:")) or "://" in said else said


def _name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _unsigned(said: str) -> str:
    """An address without what follows the name of a picture in it."""
    name = said.partition("?")[0]
    return name if name.lower().endswith(EXTENSIONS) else said


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """Finds the images of tasks. stored: images by the names under which an upload would be stored, in lower case."""

    finder: Finder
    stored: Mapping[str, Sequence[str]]

    def find(self, said: str, near: str) -> str:
        """Names may be written as in an address; those of uploads have eight letters and a hyphen in front.

        Raises:
            ValueError: there is none, or there are several.
        """
        path = _path(said)
        forms = list(dict.fromkeys((path, unquote(path))))
        short = [form.removesuffix(_name(form)) + _PREFIX.sub("", _name(form), count=1) for form in forms]
        reasons = []
        for form in dict.fromkeys((*forms, *short)):
            try:
                return self.finder.image(form, near)
            except ValueError as error:
                reasons.append(error)
        alike = self.stored.get(_stored(short[-1]), ()) if short != forms else ()
        if len(alike) == 1:
            return alike[0]
        raise reasons[-1]


def _images(source: Source, said: Sequence[tuple[str, str]]) -> _Images:
    """said: the tasks' names for their images, each with the file that says so."""
    stored: dict[str, list[str]] = defaultdict(list)
    for name in source.images.values():
        stored[_stored(name)].append(name)
    return _Images(finder(source, ((_path(name), near) for name, near in said)), stored)


def _stored(path: str) -> str:
    """The name that Label Studio gives to an uploaded file: blanks become _, and other signs go."""
    return re.sub(r"[^\w.-]", "", _name(path).strip().replace(" ", "_")).lower()


def _results(task: Mapping[str, Any]) -> tuple[list[Any] | None, bool]:
    """The results of a task's annotation, None where it has none, and whether there are others."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise Malformed("annotations that are not a list")
    good = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    results = good[0].get("result") if good else None
    if results is not None and not isinstance(results, list):
        raise Malformed("results that are not a list")
    regions = [one for one in results or () if isinstance(one, dict) and "original_width" in one]
    if len(pictures := sorted({str(one["to_name"]) for one in regions if "to_name" in one})) > 1:
        raise Malformed(f"regions on several pictures of one task ({first_few(pictures)})")
    return results, len(good) > 1


def _size(results: list[Any]) -> tuple[int, int] | None:
    for one in results:
        if isinstance(one, dict) and "original_width" in one:
            return size_of(one.get("original_height"), one.get("original_width"))
    return None


def _objects(results: list[Any]) -> Objects:
    objects, without = [], Counter[str]()
    labelled = {str(one.get("id")) for one in results if isinstance(one, dict) and one.get("type") == "labels"}
    # A shape and its region of <Labels> are two results of one id.
    drawn = [one for one in results if isinstance(one, dict) and one.get("type") != "labels"]
    shapes = {str(one.get("id")): str(one.get("type")) for one in drawn}
    for place, one in enumerate(results, 1):
        if not isinstance(one, dict):
            raise Malformed(f"object {place}: no object")
        said, value = str(one.get("type")), one.get("value")
        kind = f"{shapes.get(str(one.get('id')), '')}labels" if said == "labels" else said
        if said in _SHAPES and str(one.get("id")) not in labelled:
            without[f"{said} without a label"] += 1
        if not kind.endswith("labels") or kind == "labels" or not isinstance(value, dict):
            continue  # a choice, a text, a relation; or the shape of a `labels` region
        try:
            names = value.get(said)
            label = text_of(names[0] if isinstance(names, list) and names else None, "a label")
            shape = _shape(kind, value, one)
        except ValueError as error:
            raise Malformed(f"object {place}: {error}") from None
        if shape is None:
            without[kind.removesuffix("labels")] += 1
        else:
            objects.append(Object(label, shape))
    return Objects(objects, without)


def _shape(kind: str, value: Mapping[str, Any], one: Mapping[str, Any]) -> Shape | None:
    """Places are in percent of the image's size."""
    if kind == "polygonlabels":
        return Outline([[part / 100 for point in pairs(value.get("points")) for part in point]], shares=True)
    if kind == "brushlabels":
        if value.get("format") != "rle" or not isinstance(value.get("rle"), list):
            raise Malformed("a brush drawing that is not packed as rle")
        size = size_of(one.get("original_height"), one.get("original_width"))
        if size is None:
            raise Malformed("a brush drawing without the image's size")
        return BrushRuns(*size, value["rle"])
    if kind == "bitmasklabels":
        content = text_of(value.get("imageDataURL"), "the picture of a bitmask").partition("base64,")[2]
        size = size_of(one.get("original_height"), one.get("original_width"))
        return Picture(0, 0, content, size=size)
    if kind not in ("rectanglelabels", "ellipselabels"):
        check_bare(kind, _BARE)
        return None
    size = size_of(one.get("original_height"), one.get("original_width"))
    if size is None:
        raise Malformed("a shape without the image's size")
    x, y = number(value.get("x")) * size[1] / 100, number(value.get("y")) * size[0] / 100
    turn = math.radians(number(value.get("rotation", 0)))
    if kind == "ellipselabels":
        across = number(value.get("radiusX")) * size[1] / 100
        return Outline([ellipse(x, y, across, number(value.get("radiusY")) * size[0] / 100, turn)])
    corners = rectangle(0, 0, number(value.get("width")) * size[1] / 100, number(value.get("height")) * size[0] / 100)
    c, s = math.cos(turn), math.sin(turn)  # around the upper left corner
    flat = [
        part
        for u, v in zip(corners[::2], corners[1::2], strict=True)
        for part in (x + u * c - v * s, y + u * s + v * c)
    ]
    return Outline([flat])


# ---------------------------------------------------------------------------------------------------- brush exports
def read_brushes(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """The PNGs of each task's first annotation, with the image that a JSON or CSV export names for it.

    Raises:
        DataError: nothing says which image a task is of.
    """
    yield from ()
    images = _tasks(source)
    drawn: dict[int, dict[int, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if match := BRUSH.fullmatch(name):
            drawn[int(match[1])][int(match[2])].append((match[3], name))
    by_task = {task: annotations[min(annotations)] for task, annotations in drawn.items()}
    if not images:
        raise DataError(
            f"{source.root}: {len(names):,} brush exports of Label Studio ({PurePosixPath(names[0]).name}), whose names say "
            "the task and the label but not the image",
            "put the JSON or CSV export of the same project into the folder, too: it says which image each task is of",
        )
    place = _images(source, [(images[task], "x") for task in by_task if task in images])
    claims = _claims(place, [(images[task], "x") for task in by_task if task in images])
    items, left, used = [], [], set[str]()
    for task, masks in sorted(by_task.items()):
        try:
            if task not in images:
                raise Malformed(f"task {task} is in no export, so its image is not known")
            image = place.find(images[task], "x")
            _check_claims(image, claims)
            if image in used:
                raise Malformed(f"another task is of {image}, too, and is the one used")
            used.add(image)
        except ValueError as error:
            left.append(Left(f"task {task}: {first_few(name for _, name in masks)}", str(error)))
            continue
        objects = Objects([Object(tag, MaskFile(source.root / name)) for tag, name in masks], {})
        state = " ".join(state_of(source, name) for _, name in masks)
        items.append(Item(image, split_of(image), None, partial(_same, objects), state))
    ordered, notes = in_order(source, sorted({tag for masks in by_task.values() for tag, _ in masks}))
    notes = (*notes, *_several(sum(len(annotations) > 1 for annotations in drawn.values())))
    labels = tuple(Label(tag, tag) for tag in ordered)
    return Export(labels, tuple(items), tuple(left), notes, masks=frozenset(names))


def _same(objects: Objects) -> Objects:
    return objects


def _tasks(source: Source) -> dict[int, str]:
    """The image of each task, of the project's JSON and CSV exports."""
    found: dict[int, str] = {}
    for name in source.files:
        if name.lower().endswith(".json"):
            content = read_json(source.root / name)
            rows = content if isinstance(content, list) else []
        elif name.lower().endswith(".csv"):
            try:
                heading, *body = list(csv_rows(read_text(source.root / name))) or [[]]
            except csv.Error as error:
                raise DataError(f"{source.root / name}: no CSV export ({excerpt(error)})", "export it again") from error
            rows = [dict(zip(heading, row, strict=False)) for row in body]
        else:
            continue
        for row in rows:
            said = _image_of(row) or (row.get("image") if isinstance(row, dict) else None)
            if isinstance(row, dict) and said and re.fullmatch(r"\d{1,9}", str(row.get("id"))):
                found[int(row["id"])] = str(said)
    return found
