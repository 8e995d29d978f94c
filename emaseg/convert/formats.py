"""The formats that can be converted, and which of them a folder holds.

Room: convert.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from emaseg.convert.coco import files as coco_files
from emaseg.convert.coco import read as read_coco
from emaseg.convert.colours import files as colours_files
from emaseg.convert.colours import read as read_colours
from emaseg.convert.cvat import files as cvat_files
from emaseg.convert.cvat import read as read_cvat
from emaseg.convert.export import Export
from emaseg.convert.labelme import files as labelme_files
from emaseg.convert.labelme import read as read_labelme
from emaseg.convert.labelstudio import brush_files, read_brushes
from emaseg.convert.labelstudio import files as labelstudio_files
from emaseg.convert.labelstudio import read as read_labelstudio
from emaseg.convert.masks import files as masks_files
from emaseg.convert.masks import read as read_masks
from emaseg.convert.source import Source
from emaseg.convert.supervisely import files as supervisely_files
from emaseg.convert.supervisely import read as read_supervisely
from emaseg.convert.via import files as via_files
from emaseg.convert.via import read as read_via
from emaseg.convert.yolo import files as yolo_files
from emaseg.convert.yolo import read as read_yolo
from emaseg.data.sets.folder import count_endings
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError, RecipeError, UserError
from emaseg.starter import Machine, start_recipe
from emaseg.starter.layout import NotRecognised
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
    "labelme": Format("labelme JSON", labelme_files, read_labelme),
    "coco": Format("COCO JSON", coco_files, read_coco),
    "cvat": Format("CVAT XML", cvat_files, read_cvat),
    "supervisely": Format("Supervisely JSON", supervisely_files, read_supervisely),
    "via": Format("VIA JSON or CSV", via_files, read_via),
    "labelstudio": Format("Label Studio JSON", labelstudio_files, read_labelstudio),
    "labelstudio-brush": Format("Label Studio brush PNGs", brush_files, read_brushes),
    "masks": Format("one binary mask for each class", masks_files, read_masks, pictures=True),
    "colours": Format("masks in the colours of the classes", colours_files, read_colours, pictures=True),
    "yolo": Format("YOLO text files", yolo_files, read_yolo),
}


def recognise(source: Source, wanted: str) -> tuple[Format, list[str]]:
    """The format of a folder with its files. wanted: the name of a format, for which all files are looked into; "" = the
    one that is there.

    Raises:
        DataError: there is none, or there are several.
        RecipeError: the masks can be trained on as they are.
    """
    if wanted:
        found = FORMATS[wanted].files(replace(source, thorough=True))
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
    """Why nothing is converted. Masks that `emaseg init` reads need no conversion; where it refuses them, its reason
    is the true one."""
    try:
        for _ in start_recipe(source.root, Machine):
            pass
    except NotRecognised:
        kinds = count_endings(source.files)
        return DataError(
            f"{source.root}: no annotations were recognised"
            + (f"; beside {len(source.images):,} images it holds {kinds}" if kinds else ""),
            f"formats: {', '.join(one.words for one in FORMATS.values())}; force one with --format",
        )
    except UserError as error:
        return error
    return RecipeError(
        f"{source.root}: its masks hold class numbers, one mask for each image: there is nothing to convert",
        f"emaseg init {quoted_path(source.root)}",
    )
