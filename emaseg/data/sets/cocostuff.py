"""COCO-Stuff: 91 things and 91 stuff classes; the 10k set (.mat files) and the 164k set (PNG pixelmaps).

Room: data/sets.

    10k    root/images/<id>.jpg, root/annotations/<id>.mat (variable S), root/imageLists/{train,test,all}.txt
    164k   root/images/{train2017,val2017}/<id>.jpg, root/annotations/{train2017,val2017}/<id>.png

The owners number 182 categories in both, but the 10k set stores 1..182 with 0 = unlabelled, the 164k set 0..181 with
255 = unlabelled. Eleven categories were never annotated: 182 classes keep them (sssegmentation), 171 leave them out.

Also read: mmsegmentation's converted PNGs (<id>_labelTrainIds.png, which number the 171; its 10k set has folders
train2014 and test2014 in place of the lists), and for 164k the archives unpacked as train2017, val2017 and
stuffthingmaps, or with labels beside the images (sssegmentation). Where both kinds of label are there, the owners' win.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import ILLEGAL, LabelRule
from emaseg.data.label_sets import cocostuff_ids, label_set
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import Files, files_below, first_folder, known_split, listed_ids, pairs, top_folder
from emaseg.errors import DataError
from emaseg.recipe.data import IGNORE
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import CocoStuffData

Storage = Literal["mat", "pixelmap", "mmseg10k", "mmseg164k"]

SPLITS_10K = {"train": ("train2014",), "test": ("test2014",), "all": ("train2014", "test2014")}
SPLITS_164K = {"train": "train2017", "val": "val2017"}
_CONVERTED = "_labelTrainIds"
_INNER_10K = ("COCOStuff10k", "coco_stuff10k", "cocostuff-10k-v1.1")
_INNER_164K = ("COCOStuff164k", "coco_stuff164k", "COCO", "coco", "dataset")
_HINT_10K = "unpack cocostuff-10k-v1.1.zip and set data.root to the folder that holds its images and imageLists"
_HINT_IMAGES = "unpack train2017.zip and val2017.zip into images, and set data.root to the folder above"
_HINT_LABELS = "unpack stuffthingmaps_trainval2017.zip into annotations"


def cocostuff(data: CocoStuffData, phase: Phase) -> PairedFiles:
    """The images of data.train_split or data.eval_split with their labels, as 182 or 171 classes.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, images or labels are missing; says what was expected, what is there, and the remedy.
    """
    root = data_root(data.root)
    if data.kind == "cocostuff10k":
        return _10k(data, known_split(data, phase, tuple(SPLITS_10K)), root)
    return _164k(data, known_split(data, phase, tuple(SPLITS_164K)), root)


def cocostuff_rule(classes: tuple[str, ...], stored: Storage) -> LabelRule:
    """What stored values mean as train ids of `classes`, all 182 or the 171 annotated ones.

    Stored values name a category each: all 182 (mat, pixelmap) or the annotated 171 (mmseg's); counted from 1 with 0 =
    unlabelled in the 10k set, from 0 with 255 = unlabelled in the 164k set. A category that has no train id is an error.
    """
    train_id = {category: position for position, category in enumerate(cocostuff_ids(len(classes)))}
    counted_from = 1 if stored in ("mat", "mmseg10k") else 0
    lut = [ILLEGAL] * 256
    lut[0 if counted_from else IGNORE] = IGNORE
    for value, category in enumerate(cocostuff_ids(182 if stored in ("mat", "pixelmap") else 171), counted_from):
        lut[value] = train_id.get(category, ILLEGAL)
    return LabelRule(
        classes,
        bytes(lut),
        layout="COCO-Stuff 10k" if counted_from else "COCO-Stuff 164k",
        empty_ok=True,
        mat=("S",) if stored == "mat" else (),
    )


def _dataset(data: CocoStuffData, items: tuple[tuple[Path, Path], ...], stored: Storage, layout: str) -> PairedFiles:
    labels = label_set(data)
    return PairedFiles(items, cocostuff_rule(labels.classes, stored), labels.palette, layout)


# ------------------------------------------------------------------------------------------------------------ 10k
def _10k(data: CocoStuffData, split: str, root: Path) -> PairedFiles:
    top = top_folder(root, _INNER_10K, ("images", "annotations", "imageLists"), "COCO-Stuff 10k", _HINT_10K)
    if any((top / "images" / folder).is_dir() for folder in SPLITS_164K.values()):
        raise DataError(
            f"{top}: this is COCO-Stuff 164k", 'set data.kind = "cocostuff164k" (and data.eval_split = "val")'
        )
    if not (top / "imageLists").is_dir() and (top / "images" / "train2014").is_dir():
        return _10k_converted(data, split, top)
    images = files_below(first_folder(top, ("images",), "the image folder", _HINT_10K), ".jpg")
    labels = files_below(first_folder(top, ("annotations",), "the label folder", _HINT_10K), ".mat")
    lists = first_folder(top, ("imageLists",), "the folder of the split lists", _HINT_10K)
    chosen = listed_ids(lists / f"{split}.txt", images, ".jpg")
    if chosen is None:
        found = ", ".join(sorted(path.name for path in lists.glob("*.txt")))
        raise DataError(f"{lists / f'{split}.txt'}: the list is missing; found {found or 'no lists'}", _HINT_10K)
    items = pairs(images, labels, _HINT_10K, chosen=chosen)
    return _dataset(data, items, "mat", f"COCO-Stuff 10k (images: {split}.txt; labels: .mat) in {top}")


def _10k_converted(data: CocoStuffData, split: str, top: Path) -> PairedFiles:
    items: tuple[tuple[Path, Path], ...] = ()
    for name in SPLITS_10K[split]:
        images = first_folder(top, (f"images/{name}",), f"the image folder of split {split}", _HINT_10K)
        labels = first_folder(top, (f"annotations/{name}",), f"the label folder of split {split}", _HINT_10K)
        items += pairs(files_below(images, ".jpg"), files_below(labels, f"{_CONVERTED}.png"), _HINT_10K)
    return _dataset(data, items, "mmseg10k", f"COCO-Stuff 10k (converted by mmsegmentation) in {top}")


# ----------------------------------------------------------------------------------------------------------- 164k
def _164k(data: CocoStuffData, split: str, root: Path) -> PairedFiles:
    name = SPLITS_164K[split]
    holds = (
        f"images/{name}|{name}",
        f"annotations/{name}|stuffthingmaps/{name}|stuffthingmaps_trainval2017/{name}|{name}",
    )
    if (root / "imageLists").is_dir():
        raise DataError(
            f"{root}: this is COCO-Stuff 10k", 'set data.kind = "cocostuff10k" (and data.eval_split = "test")'
        )
    top = top_folder(root, _INNER_164K, holds, "COCO-Stuff 164k", _HINT_IMAGES)
    folder = first_folder(top, (f"images/{name}", name), f"the image folder of split {split}", _HINT_IMAGES)
    images = files_below(folder, ".jpg")
    labels, stored = _164k_labels(top, name, folder)
    items = pairs(images, labels, _HINT_LABELS)
    kind = "pixelmaps" if stored == "pixelmap" else "converted by mmsegmentation"
    return _dataset(data, items, stored, f"COCO-Stuff 164k (images: {folder}; labels: {kind}, {labels.pattern})")


def _164k_labels(top: Path, name: str, images: Path) -> tuple[Files, Storage]:
    """The first folder with labels: the owners' pixelmaps before converted ones."""
    places = (f"annotations/{name}", f"stuffthingmaps/{name}", f"stuffthingmaps_trainval2017/{name}", name)
    folders = [folder for folder in (*(top / place for place in places), images) if folder.is_dir()]
    for folder in folders:
        every = files_below(folder, ".png")
        own = {key: path for key, path in every.files.items() if not key.endswith(_CONVERTED)}
        if own:
            return Files(own, every.pattern), "pixelmap"
    for folder in folders:
        converted = files_below(folder, f"{_CONVERTED}.png")
        if converted.files:
            return converted, "mmseg164k"
    return files_below(first_folder(top, places[:1], "the label folder", _HINT_LABELS), ".png"), "pixelmap"
