"""Cityscapes, fine annotations: 19 of its 34 classes; the others are ignored.

Room: data/sets.

    root/leftImg8bit/<split>/<city>/<id>_leftImg8bit.png           2,975 train, 500 val, 1,525 test
    root/gtFine/<split>/<city>/<id>_gtFine_labelIds.png            the owners' ids 0..33
    root/gtFine/<split>/<city>/<id>_gtFine_labelTrainIds.png       0..18 and 255, made by the owners' or mmseg's script

labelIds are read where every image has them, labelTrainIds otherwise. Split trainval is train and val together;
sssegmentation's copied folders of that name are read where these two are missing, as are its lists (root/<split>.txt,
one image a line). City folders may be missing. The test labels hold the car and the borders only: test is images only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import ILLEGAL, LabelRule, index_rule
from emaseg.data.label_sets import cityscapes_label_ids, label_set
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import (
    Files,
    Pairs,
    UnlabelledFiles,
    files_below,
    first_folder,
    known_split,
    listed_ids,
    pairs,
    top_folder,
)
from emaseg.recipe.data import IGNORE
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import CityscapesData

SPLITS = ("train", "val", "trainval", "test")
LABEL_KINDS = ("labelIds", "labelTrainIds")
_IDS = 34  # labelIds run from 0 to 33
_ENDING = "_leftImg8bit.png"
_IMAGES = ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit")
_LABELS = ("gtFine", "gtFine_trainvaltest/gtFine")
_INNER = ("cityscapes", "CityScapes", "Cityscapes")
_IMAGES_HINT = "unpack leftImg8bit_trainvaltest.zip, and set data.root to the folder that holds leftImg8bit"
_LABELS_HINT = "unpack gtFine_trainvaltest.zip beside leftImg8bit"


def cityscapes(data: CityscapesData, phase: Phase) -> PairedFiles | UnlabelledFiles:
    """The images of data.train_split or data.eval_split with their labels, by id or in the order of a list file.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, images or labels are missing; says what was expected, what is there, and the remedy.
    """
    split = known_split(data, phase, SPLITS)
    root = data_root(data.root)
    top = top_folder(root, _INNER, ("|".join(_IMAGES), "|".join(_LABELS)), "Cityscapes", _IMAGES_HINT)
    image_top = first_folder(top, _IMAGES, "the image folder", _IMAGES_HINT)
    labels = label_set(data)
    if split == "test":
        folder = first_folder(image_top, ("test",), "the test images", _IMAGES_HINT)
        return UnlabelledFiles(
            images=tuple(files_below(folder, _ENDING, groups=True).files.values()),
            classes=labels.classes,
            palette=labels.palette,
            withheld_by="the benchmark's server",
            layout=f"Cityscapes' test images, without labels, in {folder}",
        )
    label_top = first_folder(top, _LABELS, "the label folder", _LABELS_HINT)
    copied = split == "trainval" and (image_top / "trainval").is_dir() and not (image_top / "train").is_dir()
    folders = ("train", "val") if split == "trainval" and not copied else (split,)
    images = [_images(image_top / folder) for folder in folders]
    lists = [_listed(top, name, found) for name, found in zip(folders, images, strict=True)]
    kind = _label_kind(images, [label_top / folder for folder in folders])
    items: Pairs = ()
    for name, found, chosen in zip(folders, images, lists, strict=True):
        items += pairs(found, _labels(label_top / name, kind), _LABELS_HINT, chosen=chosen)
    source = ", ".join(f"{name}.txt" for name, chosen in zip(folders, lists, strict=True) if chosen) or "all"
    return PairedFiles(
        items=items,
        rule=label_rule(labels.classes, kind),
        palette=labels.palette,
        layout=f"Cityscapes (folders {', '.join(folders)}; images: {source}; labels: {kind}) in {top}",
    )


def label_rule(classes: tuple[str, ...], kind: str) -> LabelRule:
    """What the values of a kind of label file mean; anything else is an error, 255 in labelIds too."""
    if kind == "labelTrainIds":
        return index_rule(classes, layout="Cityscapes' labelTrainIds")
    meaning = {raw: train_id for train_id, raw in enumerate(cityscapes_label_ids())}
    lut = bytes(meaning.get(raw, IGNORE) if raw < _IDS else ILLEGAL for raw in range(256))
    return LabelRule(classes, lut, layout="Cityscapes' labelIds")


def _images(folder: Path) -> Files:
    where = first_folder(folder.parent, (folder.name,), f"the image folder of split {folder.name}", _IMAGES_HINT)
    return files_below(where, _ENDING, groups=True)


def _labels(folder: Path, kind: str) -> Files:
    where = first_folder(folder.parent, (folder.name,), f"the label folder of split {folder.name}", _LABELS_HINT)
    return files_below(where, f"_gtFine_{kind}.png", groups=True)


def _listed(top: Path, split: str, images: Files) -> list[str] | None:
    return listed_ids(top / f"{split}.txt", images, ".png", "_leftImg8bit")


def _label_kind(images: list[Files], folders: list[Path]) -> str:
    """The first kind that every image has; that of which most are there when none is complete."""
    missing = {
        kind: sum(
            len(found.files.keys() - _labels(folder, kind).files.keys())
            for found, folder in zip(images, folders, strict=True)
        )
        for kind in LABEL_KINDS
    }
    return min(LABEL_KINDS, key=lambda kind: missing[kind])
