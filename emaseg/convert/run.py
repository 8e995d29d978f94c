"""A whole conversion: recognise, read, paint, write, and say what became of everything.

Room: convert. Legend: K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from emaseg.convert.classes import ClassList, class_list, numbered, write_names
from emaseg.convert.earlier import Swept, check_names, sweep
from emaseg.convert.export import Export, Item, Left
from emaseg.convert.formats import Format, recognise
from emaseg.convert.lists import with_lists
from emaseg.convert.output import Done, Job, Place, check_out, convert_item, places, write_report
from emaseg.convert.painting import Overlap
from emaseg.convert.source import Source, check_no_archive, scan
from emaseg.data.sets.folder import count_endings
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.files import make_folder
from emaseg.recipe.data import IGNORE
from emaseg.threads import Reading, read_all
from emaseg.words import counted

__all__ = ["ClassTotal", "Conversion", "Options", "convert", "report_json"]

_RULES: dict[Overlap, str] = {
    "later": "the object that was drawn later lies on top",
    "earlier": "the object that was drawn first lies on top",
    "smaller": "the smaller object lies on top",
    "ignore": "such pixels are ignored (255)",
}


@dataclass(frozen=True, slots=True)
class Options:
    """format: "" = the one that is recognised. overlap: which object lies on top. unlabelled: what pixels without an
    object are. empty: what an image without objects is."""

    format: str = ""
    overlap: Overlap = "later"
    unlabelled: Literal["background", "ignore"] = "background"
    empty: Literal["background", "skip"] = "background"


@dataclass(frozen=True, slots=True)
class ClassTotal:
    """What all masks hold of a class, or of 255."""

    value: int
    name: str
    images: int
    pixels: int
    objects: int


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written and what not. format: in words. classes: K totals, then 255's if it occurs. notes: for people.
    left: what is not converted. splits: images of each split, {"": n} without."""

    folder: Path
    out: Path
    format: str
    images: int
    kept: int
    classes: tuple[ClassTotal, ...]
    left: tuple[Left, ...]
    notes: tuple[str, ...]
    splits: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether nothing had to be left out for being wrong."""
        return not any(one.fault for one in self.left)


def convert(folder: Path, out: Path, options: Options) -> Generator[Reading, None, Conversion]:
    """Write one label map for each annotated image of `folder` to `out`. A second call goes on where one ended.

    Raises:
        RecipeError: `out` is in use for something else, or there is nothing to convert.
        DataError: no format is recognised, its files cannot be used, or no image could be converted.
        SystemFault: the disk is full, or `out` cannot be written.
    """
    check_no_archive(folder)  # before --out, which would lie in the folder of the archive
    check_out(out, folder)
    source = scan(folder)
    kind, files = recognise(source, options.format)
    export = yield from kind.read(source, files)
    if not export.items:
        raise _nothing(source, kind, export)
    export = with_lists(source, export, frozenset(files))
    unlabelled = "ignore" if export.complete else options.unlabelled
    job = Job(source.root, out, class_list(export.labels, unlabelled=unlabelled), options.overlap, options.empty)
    targets, split_note = places(export.items)
    about = {"source": str(folder.resolve()), "format": kind.words, "done": False}
    renamed = check_names(out, job.classes.names)
    make_folder(out)
    write_report(out, about)
    write_names(out, job.classes.names)

    def work(pair: tuple[Item, Place]) -> Done | Left:
        return convert_item(job, *pair)

    results = yield from read_all("masks", work, list(zip(export.items, targets, strict=True)))
    done = [one for one in results if isinstance(one, Done)]
    left = (*export.left, *(one for one in results if isinstance(one, Left)))
    if not done:
        raise _nothing(source, kind, Export((), (), tuple(left)))
    if not any(one.objects for one in done) and (without := _without_area(done)):
        raise DataError(
            f"{source.root}: {kind.words} without an outline ({without}): a mask cannot be drawn from these",
            "export polygons or masks; where boxes are all there is, draw outlines first",
        )
    swept = sweep(job, done, left, [source.root / name for name in source.images.values()], renamed=renamed)
    notes = (
        *export.notes,
        *([split_note] if split_note else []),
        *_class_notes(job.classes, export),
        *_notes(source, export, done, options),
    )
    notes += (*_kept_notes(done, swept), *_link_notes(job, export.items, targets))
    splits = Counter(_split(one.place, targets) for one in done)
    conversion = Conversion(
        folder,
        out,
        f"{kind.words} ({first_few(files, 2)})",
        len(done),
        sum(one.kept for one in done),
        _totals(job.classes, done),
        left,
        notes,
        dict(splits),
    )
    write_report(out, about | {"done": True} | report_json(conversion))
    return conversion


def _split(place: Place, targets: Sequence[Place]) -> str:
    """The split of a place, by its folder; "" where the places have none."""
    tops = {PurePosixPath(one.image).parts[1] for one in targets}
    return PurePosixPath(place.image).parts[1] if tops <= {"train", "val", "test"} else ""


def _nothing(source: Source, kind: Format, export: Export) -> DataError:
    reasons = [f"{one.name}: {one.reason}" for one in export.left]
    missing = not reasons or any("no image" in reason for reason in reasons)
    return DataError(
        f"{source.root}: {kind.words}, but no image could be converted"
        + (f": {first_few(reasons)}" if reasons else ""),
        "put the images into the folder, under the names that the annotations give them"
        if missing
        else "correct what is named here; or say with --format that the folder is to be read in another way",
    )


def _totals(classes: ClassList, done: Sequence[Done]) -> tuple[ClassTotal, ...]:
    images, pixels, objects = Counter[int](), Counter[int](), Counter[int]()
    for one in done:
        images.update(one.pixels.keys())
        pixels.update(one.pixels)
        objects.update(one.objects)
    rows = [*enumerate(classes.names), *([(IGNORE, "(ignored)")] if pixels[IGNORE] or objects[IGNORE] else [])]
    return tuple(ClassTotal(value, name, images[value], pixels[value], objects[value]) for value, name in rows)


def _notes(source: Source, export: Export, done: Sequence[Done], options: Options) -> list[str]:
    """What people should know of the whole."""
    notes = []
    contested = sum(one.contested for one in done)
    if contested:
        count = sum(one.contested > 0 for one in done)
        notes.append(
            f"Objects of different classes overlap: {_RULES[options.overlap]} (--overlap). Pixels: {contested:,}; "
            f"images: {count:,}."
        )
    bare = sum(not one.objects and not one.own for one in done)
    if bare:
        word = "class 0" if options.unlabelled == "background" else "ignored (255)"
        notes.append(
            f"Images with nothing drawn on them: {bare:,}; their pixels are all {word}; --empty skip leaves them out."
        )
    if empty := sum(one.empty for one in done):
        notes.append(f"Objects that cover no pixel, being thinner than one or outside of their image: {empty:,}.")
    if without := _without_area(done):
        notes.append(f"Not drawn, for they have no area: {without}.")
    if turned := [one.place.image for one in done if one.turned and not export.masks]:
        notes.append(
            f"Images that are turned when they are read, as their EXIF orientation says: {len(turned):,} ({first_few(turned)}). "
            "The annotations do not say which way up they were drawn, and are taken for those of the turned images: "
            "look at them with check-data --sheet."
        )
    known = {item.image for item in export.items} | export.masks
    named = {PurePosixPath(one.name).stem for one in export.left}
    others = (name for name in source.images.values() if name not in known)
    alone = [name for name in others if PurePosixPath(name).stem not in named]
    if alone:
        notes.append(f"Images without annotations, skipped: {len(alone):,} ({first_few(alone)}).")
    if unread := count_endings((name for name in source.files), texts=False):
        notes.append(f"Files that are not read: {unread}.")
    return notes


def _class_notes(classes: ClassList, export: Export) -> list[str]:
    """On labels that may be meant as one class."""
    notes = []
    names = sorted({label.name for label in export.labels})
    if alike := [name for name in names if [other.lower() for other in names].count(name.lower()) > 1]:
        notes.append(f"Labels that differ in capitals only are different classes: {first_few(alike, 6)}.")
    if twins := numbered(export.labels, classes):
        notes.append(
            f"Labels of one name stay different classes, told apart by a number: {first_few(twins, 6)}. If they are one "
            "class, give them one label in the annotations."
        )
    return notes


def _kept_notes(done: Sequence[Done], swept: Swept) -> list[str]:
    """What became of an earlier run's files."""
    notes = []
    if swept.gone:
        notes.append(f"Removed, for their images or annotations are gone: {first_few(swept.gone)}.")
    if own := [one.place.mask for one in done if one.own]:
        notes.append(
            f"Kept as they are, for they were changed since they were written: {counted(len(own), 'mask')} ({first_few(own)}). "
            "Remove a mask to have it drawn again."
        )
    if swept.failed:
        notes.append(
            f"Still there from an earlier run, though not converted this time: {first_few(swept.failed)}. Remove them "
            "with their images where they are not to be trained on."
        )
    if swept.foreign:
        notes.append(
            f"Kept, though of no annotation here: {counted(len(swept.foreign), 'file')} not as a conversion wrote them, or "
            f"without their original ({first_few(swept.foreign)}). Remove what is not to be trained on."
        )
    return notes


def _link_notes(job: Job, items: Sequence[Item], targets: Sequence[Place]) -> list[str]:
    """A word on the images that are their originals."""
    pairs = [(job.root / item.image, job.out / place.image) for item, place in zip(items, targets, strict=True)]
    count = sum(place.is_file() and original.is_file() and place.samefile(original) for original, place in pairs)
    if not count:
        return []
    where = f"Hard links to the originals: {counted(count, 'file')} in {job.out / 'images'}."
    return [
        f"{where} A program that edits one of them in place also edits the original; copy the folder (cp -r) before that."
    ]


def _without_area(done: Sequence[Done]) -> str:
    """The objects that have no area, by kind; "" = there is none."""
    without = Counter[str]()
    for one in done:
        without.update(one.without_area)
    return ", ".join(f"{count:,} {kind}" for kind, count in without.most_common())


def report_json(conversion: Conversion) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "out": str(conversion.out),
        "format": conversion.format,
        "images": conversion.images,
        "kept": conversion.kept,
        "splits": conversion.splits,
        "classes": [
            {"value": one.value, "name": one.name, "images": one.images, "pixels": one.pixels, "objects": one.objects}
            for one in conversion.classes
        ],
        "left_out": [{"name": one.name, "reason": one.reason, "fault": one.fault} for one in conversion.left],
        "notes": list(conversion.notes),
    }
