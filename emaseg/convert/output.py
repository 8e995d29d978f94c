"""The folder that a conversion writes: images/, masks/, the class names, and convert.json, its report.

Room: convert. Legend: H W image height and width.

Each mask says from what it was made and what it holds (mask_files.py): a second run keeps those whose annotations and
image have not changed, and those that somebody has changed. Images are hard links where the disk allows it, else copies; never resized.
Every file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from emaseg.convert.classes import ClassList
from emaseg.convert.export import Item, Left
from emaseg.convert.mask_files import Made, as_written, mask_file, own_pixels, pixels_of, read_made, was_edited
from emaseg.convert.numbers import Malformed
from emaseg.convert.painting import Overlap, Painted, check_places, label_map
from emaseg.data.files.images import image_header, image_size
from emaseg.data.sets.names import stem_of
from emaseg.errors import DataError, RecipeError
from emaseg.files import atomic, fault, open_file, read_bytes, write_text
from emaseg.starter.arrangements import EVAL_NAMES, TRAIN_NAMES
from emaseg.words import quoted_path

__all__ = [
    "REPORT",
    "Done",
    "Job",
    "Place",
    "are_splits",
    "as_put",
    "check_out",
    "convert_item",
    "places",
    "shared_folders",
    "write_report",
]

REPORT = "convert.json"
_SCHEMA = 1
_ROUNDED = 2_000_000_000  # nanoseconds


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
    """A mask that is there. objects, pixels: by mask value. kept: it was there before. own: somebody has changed it since
    it was written, so that its objects are not known. turned: its image is turned when it is read, and the annotations
    say no size that would show which way up they were drawn."""

    place: Place
    objects: Mapping[int, int]
    pixels: Mapping[int, int]
    contested: int
    empty: int
    without_area: Mapping[str, int]
    kept: bool
    own: bool = False
    turned: bool = False


# -------------------------------------------------------------------------------------------------------- places
def places(items: Sequence[Item]) -> tuple[list[Place], str]:
    """Where each item goes, and a note on the splits, "" = none.

    Sub-folders below the deepest common one are kept. Splits become folders where there is one to train on.
    """
    splits = {item.split for item in items}
    used = are_splits(splits)
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


def are_splits(splits: Collection[str]) -> bool:
    """Whether the splits of all images make a training and an evaluation part."""
    return "train" in splits and "" not in splits and len(set(splits)) > 1


def _group_places(split: str, images: Sequence[str]) -> dict[str, Place]:
    """Of the images of one split; those that share a stem get their ending into the name."""
    shared = shared_folders([PurePosixPath(image).parent.parts for image in images])
    names = {image: PurePosixPath(*PurePosixPath(image).parts[len(shared) :]) for image in images}
    if not split:
        tops = {name.parts[0].lower() for name in names.values() if len(name.parts) > 1}
        names = {image: _in_no_split(name, tops) for image, name in names.items()}
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


def _in_no_split(name: PurePosixPath, tops: Collection[str]) -> PurePosixPath:
    """Where the first folder is called as a split is, with another one: `emaseg init` would read such folders and none of
    the others. tops: all first folders, in lower case."""
    top, *rest = name.parts
    if not rest or top.lower() not in TRAIN_NAMES + EVAL_NAMES:
        return name
    while top.lower() in (*TRAIN_NAMES, *EVAL_NAMES, *tops):
        top += "_part"
    return PurePosixPath(top, *rest)


def shared_folders(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders that all paths begin with."""
    low, high = min(paths), max(paths)
    count = next((place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    return low[: min(count, len(high))]


# ------------------------------------------------------------------------------------------------------- one image
def convert_item(job: Job, item: Item, place: Place) -> Done | Left:
    """Write the mask of an item and give its image a place, unless they are there. What is in their places and not as
    this program left it stays.

    Raises:
        SystemFault: the disk is full, or a folder cannot be written.
    """
    image, mask = job.root / item.image, job.out / place.mask
    try:
        size, turned = image_size(image), item.size is None and _is_turned(image)
        _check_size(item, size)
        made, key = read_made(mask), _key(job, item, image)
        _check_image(image, job.out / place.image, made, partial(_key, job, item))
        done = _there(job, mask, made, key, size, place)
        content = b""
        if done is None:
            objects = item.read()
            if item.size is None:
                check_places(objects, size)
            if not objects.objects and job.empty == "skip":
                return Left(item.image, "nothing is drawn on it", fault=False)
            painted = label_map(objects, size, job.classes.values, job.classes.base, job.overlap)
            done, content = _drawn(job, item, place, key, painted, objects.without_area)
    except ValueError as error:
        return Left(item.image, str(error))
    except DataError as error:
        return Left(item.image, error.message)
    _give(image, job.out / place.image, made)
    if content:  # after the image: a mask that is there says what was put beside it
        with atomic(mask) as file:
            file.write(content)
    return replace(done, turned=turned)


def _is_turned(image: Path) -> bool:
    """Whether EXIF turns it; not of a file whose further pages are damaged, which the first one does not need."""
    try:
        return image_header(image).turn != 1
    except DataError:
        return False


def _there(job: Job, mask: Path, made: Made | None, key: str, size: tuple[int, int], place: Place) -> Done | None:
    """The mask that is there, if it was made from the same, or somebody has changed it; None: it is to be written."""
    if not os.path.lexists(mask):
        return None
    same = made is not None and made.key == key
    if as_written(mask):
        if not same:
            return None
    elif not same or was_edited(mask, made):
        return Done(place, {}, own_pixels(mask, size, len(job.classes.names)), 0, 0, {}, kept=True, own=True)
    if made is None:
        return None
    return Done(place, made.objects, made.pixels, made.contested, made.empty, made.without_area, kept=True)


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


def _drawn(
    job: Job, item: Item, place: Place, key: str, painted: Painted, without: Mapping[str, int]
) -> tuple[Done, bytes]:
    """What a mask holds, and its file."""
    stat = (job.root / item.image).stat()
    pixels, counts = pixels_of(painted.label), (painted.contested, painted.empty)
    names = job.classes.names
    made = Made(key, painted.objects, pixels, *counts, without, item.image, (stat.st_size, stat.st_mtime_ns), names)
    done = Done(place, painted.objects, pixels, *counts, without, kept=False)
    return done, mask_file(painted.label, job.classes.colours, made)


def _check_image(image: Path, place: Path, made: Made | None, key_of: Callable[[Path], str]) -> None:
    """Stop where an image would replace one that an earlier run did not put there. key_of: a mask's key with this image.

    Raises:
        ValueError: it would.
    """
    if not os.path.lexists(place) or _is_same(place, image) or as_put(place, made):
        return
    older = made is not None and not made.item and place.is_file() and not place.is_symlink()
    if made is None or not older or key_of(place) != made.key:
        raise Malformed(f"another file than this image is in its place, and is kept: remove or rename {place}")


def as_put(place: Path, made: Made | None) -> bool:
    """Whether an image is the one that a mask says was put beside it; disks round its time, FAT to two seconds."""
    if made is None or not made.item or place.is_symlink() or not place.is_file():
        return False
    stat = place.stat()
    return stat.st_size == made.file[0] and abs(stat.st_mtime_ns - made.file[1]) < _ROUNDED


def _is_same(place: Path, image: Path) -> bool:
    """Whether a place has the image already, be it as a copy with another time."""
    try:
        if not place.is_file():
            return False
        here, there = place.stat(), image.stat()
        if here.st_size != there.st_size:
            return False
        return here.st_mtime_ns == there.st_mtime_ns or place.samefile(image) or cmp(place, image, shallow=False)
    except OSError:
        return False


def _give(image: Path, place: Path, made: Made | None) -> None:
    """A hard link to the image, or a copy where the disk cannot link; a copy that somebody made of it stays."""
    try:
        real = image.resolve()
        if _is_same(place, real):
            here, there = place.stat(), real.stat()
            old = made is not None and here.st_mtime_ns != there.st_mtime_ns and here.st_mtime_ns == made.file[1]
            if not old:
                return
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(real, place)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        with open_file(real) as source, atomic(place) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        with contextlib.suppress(PermissionError):  # disks without owners
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
        before: Any = json.loads(read_bytes(out / REPORT).decode())
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
