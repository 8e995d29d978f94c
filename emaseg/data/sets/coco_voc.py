"""COCO's instances drawn as VOC's 21 classes, for pre-training.

Room: data/sets.

    root/<split>2017/<id>.jpg, or root/images/<split>2017/<id>.jpg
    root/annotations/instances_<split>2017.json

The published rule: categories outside VOC's twenty are not drawn and stay background; where instances overlap the one
that stands first in the file wins; crowds are drawn like the others; nothing is ignored; and an image is taken only
if more than 1,000 of its pixels are not background.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import ILLEGAL, LabelRule
from emaseg.data.label_sets import coco_voc_categories, label_set
from emaseg.data.sets.drawn import Drawing, DrawnFiles, check_size, open_index
from emaseg.data.sets.masks import paint
from emaseg.data.sets.pairs import first_few
from emaseg.data.sets.trees import files_below, first_folder, known_split, top_folder
from emaseg.errors import DataError
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import CocoVOCData

SPLITS = ("train", "val")
FEWEST_PIXELS = 1000  # of objects; an image must have more
_HINT = "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip below data.root"


def coco_voc(data: CocoVOCData, phase: Phase) -> DrawnFiles:
    """The images of data.train_split or data.eval_split that hold enough of VOC's classes, in the JSON file's order.

    The first call for a JSON file parses and draws it, which takes minutes; later ones read an index.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, images or annotations are missing; says what was expected, what is there, and the remedy.
        SystemFault: the cache folder cannot be written.
    """
    split = known_split(data, phase, SPLITS)
    folder_name = f"{split}2017"
    top = top_folder(data_root(data.root), ("COCO", "coco"), (f"{folder_name}|images", "annotations"), "COCO", _HINT)
    folder = first_folder(top, (folder_name, f"images/{folder_name}"), f"the images of split {split}", _HINT)
    notes = first_folder(top, ("annotations",), "the folder of the annotations", _HINT)
    source = notes / f"instances_{folder_name}.json"
    if not source.is_file():
        raise DataError(f"{source}: missing; {notes} holds {_json_files(notes)}", "unpack annotations_trainval2017.zip")
    index = open_index(source, "coco_voc21", drawings)
    files = files_below(folder, ".jpg").files
    missing = [name for name in index.names if Path(name).stem not in files]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(index.names):,} images of {source} that hold VOC's classes are missing "
            f"({folder}/<id>.jpg): {first_few(missing)}",
            f"unpack {folder_name}.zip again",
        )
    labels = label_set(data)
    return DrawnFiles(
        items=tuple((files[Path(name).stem], line) for line, name in enumerate(index.names)),
        index=index,
        rule=coco_voc_rule(labels.classes),
        palette=labels.palette,
        layout=f"COCO {folder_name} with more than {FEWEST_PIXELS:,} pixels of VOC's classes: {top}; index {index.path}",
    )


def coco_voc_rule(classes: tuple[str, ...]) -> LabelRule:
    """COCO's category ids -> VOC's classes; no other category is ever drawn."""
    lut = bytearray([ILLEGAL] * 256)
    for train_id, category in enumerate(coco_voc_categories()):
        lut[category] = train_id
    return LabelRule(classes, bytes(lut), layout="COCO")


def drawings(content: Mapping[str, Any]) -> Iterator[Drawing]:
    """The images of an instances JSON that hold enough of VOC's classes, in its order."""
    wanted = set(coco_voc_categories()[1:])
    notes: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for note in content["annotations"]:
        if note["category_id"] in wanted:
            notes[note["image_id"]].append(note)
    for image in content["images"]:
        size = (int(image["height"]), int(image["width"]))
        check_size(image["file_name"], size)
        found = notes.get(image["id"], [])
        if _covers_enough(found, size):
            shapes = tuple((note["category_id"], note["segmentation"]) for note in reversed(found))
            yield Drawing(str(image["file_name"]), "", size, shapes)  # the first is painted last


def _covers_enough(notes: list[Mapping[str, Any]], size: tuple[int, int]) -> bool:
    """Whether more than FEWEST_PIXELS of an image are drawn on; the largest first, as one is mostly enough."""
    label = np.zeros(size, np.uint8)
    for note in sorted(notes, key=lambda note: -float(note.get("area", 0))):
        paint(label, note["segmentation"], 1)
        if np.count_nonzero(label) > FEWEST_PIXELS:
            return True
    return False


def _json_files(folder: Path) -> str:
    return first_few(sorted(path.name for path in folder.glob("*.json")), 8) or "no JSON files"
