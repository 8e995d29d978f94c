"""The formats that can be converted, and which of them a folder holds.

Room: convert.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from emaseg.convert import coco, colours, cvat, labelme, labelstudio, masks, supervisely, via, yolo
from emaseg.convert.export import Export
from emaseg.convert.source import Source
from emaseg.data.sets.folder import count_endings
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError, RecipeError, UserError
from emaseg.starter.layout import find_layout
from emaseg.threads import Reading
from emaseg.words import quoted_path

__all__ = ["FORMATS", "Format", "recognise"]


@dataclass(frozen=True, slots=True)
class Format:
    """words: its name for people. files: those in this form, [] = the folder holds none. read: what they say.

    pictures: it is known by its pictures alone, and looked for where nothing else is: a tool's JSON says more.
    """

    words: str
    files: Callable[[Source], list[str]]
    read: Callable[[Source, list[str]], Generator[Reading, None, Export]]
    pictures: bool = False


FORMATS: dict[str, Format] = {
    "labelme": Format("labelme JSON", labelme.files, labelme.read),
    "coco": Format("COCO JSON", coco.files, coco.read),
    "cvat": Format("CVAT XML", cvat.files, cvat.read),
    "supervisely": Format("Supervisely JSON", supervisely.files, supervisely.read),
    "via": Format("VIA JSON or CSV", via.files, via.read),
    "labelstudio": Format("Label Studio JSON", labelstudio.files, labelstudio.read),
    "labelstudio-brush": Format("Label Studio brush PNGs", labelstudio.brush_files, labelstudio.read_brushes),
    "masks": Format("one binary mask for each class", masks.files, masks.read, pictures=True),
    "colours": Format("masks in the colours of the classes", colours.files, colours.read, pictures=True),
    "yolo": Format("YOLO text files", yolo.files, yolo.read),
}


def recognise(source: Source, wanted: str) -> tuple[Format, list[str]]:
    """The format of a folder with its files. wanted: the name of a format; "" = the one that is there.

    Raises:
        DataError: there is none, or there are several.
        RecipeError: the masks can be trained on as they are.
    """
    if wanted:
        found = FORMATS[wanted].files(source)
        if not found:
            raise DataError(
                f"{source.root}: holds no {FORMATS[wanted].words}", "leave --format out to have it recognised"
            )
        return FORMATS[wanted], found
    there: dict[str, list[str]] = {}
    for pictures in (False, True):
        if not there:
            kinds = [name for name, one in FORMATS.items() if one.pictures == pictures]
            there = {name: files for name in kinds if (files := FORMATS[name].files(source))}
    if len(there) > 1:
        several = ", ".join(f"{FORMATS[name].words} ({first_few(files, 1)})" for name, files in there.items())
        raise DataError(
            f"{source.root}: holds annotations of {len(there)} formats: {several}",
            f"say which one to convert: --format {' or --format '.join(there)}",
        )
    if not there:
        raise _nothing(source)
    name, files = next(iter(there.items()))
    return FORMATS[name], files


def _nothing(source: Source) -> UserError:
    try:
        find_layout(source.root)
    except DataError:
        kinds = count_endings(source.files)
        return DataError(
            f"{source.root}: no annotations were recognised"
            + (f"; beside {len(source.images):,} images it holds {kinds}" if kinds else ""),
            f"formats: {', '.join(one.words for one in FORMATS.values())}; force one with --format",
        )
    return RecipeError(
        f"{source.root}: its masks hold class numbers, one mask for each image: there is nothing to convert",
        f"emaseg init {quoted_path(source.root)}",
    )
