"""The folder that a conversion writes: images/, masks/, the class names, and convert.json, its report.

Room: convert. Legend: H W image height and width.

Each mask is an indexed PNG whose comment says from what it was made and what it holds: a second run keeps those whose
annotations and image have not changed. Images are hard links where the disk allows it, else copies; never resized.
Every file appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from emaseg.convert.classes import ClassList
from emaseg.convert.export import Item, Left
from emaseg.convert.numbers import Malformed
from emaseg.convert.painting import Overlap, Painted, label_map
from emaseg.data.files.images import image_size
from emaseg.data.files.mask_values import Colour
from emaseg.data.sets.folder import walk
from emaseg.data.sets.names import stem_of
from emaseg.errors import DataError, RecipeError
from emaseg.files import atomic, fault, open_file, write_text
from emaseg.recipe.data import IGNORE
from emaseg.words import quoted_path

__all__ = ["REPORT", "Done", "Job", "Place", "check_out", "convert_item", "places", "stale_files", "write_report"]

REPORT = "convert.json"
_SCHEMA = 1
_COMMENT = "Comment"  # a keyword of PNG texts that readers of masks expect
_VOID_COLOUR = (224, 224, 192)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item goes: relative paths of its image and mask below the output."""

    image: str
    mask: str


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all images. empty: what an image without objects is, "background" or "skip"."""

    root: Path
    out: Path
    classes: ClassList
    overlap: Overlap
    empty: str

    @property
    def settings(self) -> str:
        """What a mask depends on besides its image and annotations."""
        said = [_SCHEMA, self.classes.names, sorted(self.classes.values.items()), self.classes.base]
        return json.dumps([*said, self.classes.colours, self.overlap, self.empty])


@dataclass(frozen=True, slots=True)
class Done:
    """A mask that is there. objects, pixels: by mask value. kept: it was there before."""

    place: Place
    objects: Mapping[int, int]
    pixels: Mapping[int, int]
    contested: int
    empty: int
    without_area: Mapping[str, int]
    kept: bool


# -------------------------------------------------------------------------------------------------------- places
def places(items: Sequence[Item]) -> tuple[list[Place], str]:
    """Where each item goes, and a note on the splits, "" = none.

    Sub-folders below the deepest common one are kept. Splits become folders where there is one to train on.
    """
    splits = {item.split for item in items}
    used = "train" in splits and "" not in splits and len(splits) > 1
    note = ""
    if not used and splits - {"", "train"}:
        found = ", ".join(sorted(splits - {""}))
        note = (
            f"Not all images belong to a split, or none is for training ({found}): they are converted without splits."
        )
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.split if used else ""].append(item)
    found_places: dict[str, Place] = {}
    for split, group in groups.items():
        found_places |= _group_places(split, [item.image for item in group])
    return [found_places[item.image] for item in items], note


def _group_places(split: str, images: Sequence[str]) -> dict[str, Place]:
    """Of the images of one split; those that share a stem get their ending into the name."""
    parents = [PurePosixPath(image).parent.parts for image in images]
    shared = _shared(parents)
    names = {image: PurePosixPath(*PurePosixPath(image).parts[len(shared) :]) for image in images}
    twice = Counter(stem_of(str(name)).lower() for name in names.values())
    found: dict[str, Place] = {}
    taken: set[str] = set()
    for image, name in names.items():
        stem = name.stem if twice[stem_of(str(name)).lower()] == 1 else f"{name.stem}_{name.suffix.lstrip('.')}"
        while str(name.with_name(f"{stem}.x")).lower() in taken:
            stem += "_"
        taken.add(str(name.with_name(f"{stem}.x")).lower())
        path = PurePosixPath(split) / name.with_name(f"{stem}{name.suffix}")
        found[image] = Place(f"images/{path}", f"masks/{path.with_name(f'{stem}.png')}")
    return found


def _shared(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders that all paths begin with."""
    low, high = min(paths), max(paths)
    count = next((place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    return low[: min(count, len(high))]


# ------------------------------------------------------------------------------------------------------- one image
def convert_item(job: Job, item: Item, place: Place) -> Done | Left:
    """Write the mask of an item and give its image a place, unless they are there.

    Raises:
        SystemFault: the disk is full, or a folder cannot be written.
    """
    image = job.root / item.image
    try:
        size = image_size(image)
        _check_size(item, size)
        key = _key(job, item, image)
        done = _known(job.out / place.mask, key, place)
        if done is None:
            objects = item.read()
            if not objects.objects and job.empty == "skip":
                return Left(item.image, "nothing is drawn on it", fault=False)
            painted = label_map(objects, size, job.classes.values, job.classes.base, job.overlap)
            done = _written(job, place, key, painted, objects.without_area)
    except ValueError as error:
        return Left(item.image, str(error))
    except DataError as error:
        return Left(item.image, error.message)
    _give(image, job.out / place.image)
    return done


def _check_size(item: Item, size: tuple[int, int]) -> None:
    if item.size is None or item.size == size:
        return
    turned = " (turned by its EXIF orientation?)" if item.size == size[::-1] else ""
    raise Malformed(
        f"its annotations are for {item.size[0]} x {item.size[1]} (height x width), the image has "
        f"{size[0]} x {size[1]}{turned}"
    )


def _key(job: Job, item: Item, image: Path) -> str:
    stat = image.stat()
    text = json.dumps([job.settings, item.image, item.state, item.size, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _known(path: Path, key: str, place: Place) -> Done | None:
    """What a mask says of itself, if it was made from the same."""
    try:
        with open_file(path) as file, Image.open(file, formats=("PNG",)) as picture:
            said = json.loads(picture.info.get(_COMMENT, ""))
        if said["key"] != key:
            return None
        objects, pixels = ({int(k): int(v) for k, v in said[name].items()} for name in ("objects", "pixels"))
        without = {str(k): int(v) for k, v in said["without_area"].items()}
        return Done(place, objects, pixels, int(said["contested"]), int(said["empty"]), without, kept=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError):
        return None


def _written(job: Job, place: Place, key: str, painted: Painted, without: Mapping[str, int]) -> Done:
    histogram = np.bincount(painted.label.ravel(), minlength=256)
    pixels = {int(value): int(histogram[value]) for value in np.flatnonzero(histogram)}
    said = {
        "key": key,
        "objects": dict(painted.objects),
        "pixels": pixels,
        "contested": painted.contested,
        "empty": painted.empty,
        "without_area": dict(without),
    }
    comment = PngImagePlugin.PngInfo()
    comment.add_text(_COMMENT, json.dumps(said))
    picture = Image.fromarray(painted.label)
    picture.putpalette(_palette(job.classes.colours))
    with atomic(job.out / place.mask) as file:
        picture.save(file, "PNG", pnginfo=comment)
    return Done(place, painted.objects, pixels, painted.contested, painted.empty, without, kept=False)


def _palette(colours: Sequence[Colour]) -> list[int]:
    """256 colours; the ignored pixels' is VOC's for outlines."""
    every = [*colours, *[(0, 0, 0)] * (IGNORE - len(colours)), _VOID_COLOUR]
    return [part for colour in every for part in colour]


def _give(image: Path, place: Path) -> None:
    """A hard link to the image, or a copy where the disk cannot link."""
    try:
        real = image.resolve()
        if place.exists():
            if place.samefile(real) or (place.stat().st_size, place.stat().st_mtime_ns) == (
                real.stat().st_size,
                real.stat().st_mtime_ns,
            ):
                return
            place.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(real, place)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        with open_file(real) as source, atomic(place) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        os.utime(place, ns=(real.stat().st_atime_ns, real.stat().st_mtime_ns))
    except OSError as error:
        raise fault(error, place, "giving the image a place") from error


# ------------------------------------------------------------------------------------------------------ the folder
def check_out(out: Path, folder: Path) -> None:
    """Stop at an output folder that is in use for something else.

    Raises:
        RecipeError: it lies in the folder that is converted, or holds what no conversion of that folder left there.
    """
    root = (folder.parent if folder.is_file() else folder).resolve()
    if out.resolve() == root or root in out.resolve().parents:
        raise RecipeError(
            f"--out {out}: lies in the folder that is converted, and would be taken for a part of it",
            f"--out {quoted_path(f'{root}_labels')}",
        )
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise RecipeError(f"--out {out}: is a file", "name a new folder")
    there = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
    if not there:
        return
    if REPORT not in there:
        raise RecipeError(f"--out {out}: holds something else, such as {there[0]}", "name a new folder")
    try:
        before: Any = json.loads((out / REPORT).read_text("utf-8"))
        source = before["source"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise RecipeError(f"--out {out}: its {REPORT} is damaged", "remove the folder, or name another") from None
    if source != str(folder.resolve()):
        raise RecipeError(f"--out {out}: holds the conversion of {source}", "name a new folder")


def write_report(out: Path, content: Mapping[str, Any]) -> None:
    """convert.json; `done` in it says whether the conversion came to its end.

    Raises:
        SystemFault: it cannot be written.
    """
    write_text(out / REPORT, json.dumps({"schema": _SCHEMA, **content}, indent=1) + "\n")


def stale_files(out: Path, done: Sequence[Done]) -> list[str]:
    """Remove the images and masks of an earlier run that belong to no image any more; returns the masks' names."""
    wanted = {name for one in done for name in (one.place.image, one.place.mask)}
    gone = []
    for part in ("images", "masks"):
        if not (out / part).is_dir():
            continue
        for name in walk(out / part, None):
            path = f"{part}/{name}"
            if path not in wanted:
                (out / path).unlink()
                gone += [path] if part == "masks" else []
    return gone
