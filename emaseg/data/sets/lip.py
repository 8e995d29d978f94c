"""Look Into Person: 20 classes, stored as 0..19; nothing is ignored.

Room: data/sets.

    its owners' archives                                          sssegmentation
    root/TrainVal_images/<split>_images/<id>.jpg                  root/<split>_images/<id>.jpg
    root/TrainVal_images/<split>_id.txt                           root/<split>_id.txt
    root/TrainVal_parsing_annotations/<split>_segmentations/<id>.png  root/<split>_segmentations/<id>.png

30,462 images in train, 10,000 in val; the labels of test are not published. Without a list file every image of the
folder is taken. The owners' mirrored labels (*_rev) are not needed: augment.flip_pairs swaps left and right.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import index_rule
from emaseg.data.label_sets import label_set
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import (
    Files,
    UnlabelledFiles,
    files_below,
    first_folder,
    known_split,
    listed_ids,
    pairs,
    top_folder,
)
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import LIPData

SPLITS = ("train", "val", "test")
_IMAGES = ("TrainVal_images", "TrainVal_images/TrainVal_images", ".")  # some archives hold their own name once more
_LABELS = ("TrainVal_parsing_annotations", "TrainVal_parsing_annotations/TrainVal_parsing_annotations", ".")
_HINT = "unpack TrainVal_images.zip and TrainVal_parsing_annotations.zip below data.root"


def lip(data: LIPData, phase: Phase) -> PairedFiles | UnlabelledFiles:
    """The images of data.train_split or data.eval_split with their masks, in the order of the list or by id.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, images or masks are missing; says what was expected, what is there, and the remedy.
    """
    split = known_split(data, phase, SPLITS)
    labels = label_set(data)
    root = data_root(data.root)
    if split == "test":
        top = top_folder(
            root, ("LIP",), ("Testing_images|testing_images",), "LIP's test set", "unpack Testing_images.zip"
        )
        return UnlabelledFiles(_test_images(top), labels.classes, labels.palette, "the server of LIP's owners")
    expected = (f"TrainVal_images|{split}_images", f"TrainVal_parsing_annotations|{split}_segmentations")
    top = top_folder(root, ("LIP",), expected, "LIP", _HINT)
    folder = first_folder(top, [f"{place}/{split}_images" for place in _IMAGES], f"the images of split {split}", _HINT)
    masks = first_folder(top, [f"{place}/{split}_segmentations" for place in _LABELS], f"the masks of {split}", _HINT)
    images = files_below(folder, ".jpg")
    chosen = _listed(top, split, images)
    whose = "sssegmentation's layout" if folder.parent == top else "its owners' layout"
    return PairedFiles(
        items=pairs(images, files_below(masks, ".png"), _HINT, chosen=chosen),
        rule=index_rule(labels.classes, (), layout="LIP"),
        palette=labels.palette,
        layout=f"LIP in {whose}: {top}" + ("" if chosen else f"; no {split}_id.txt, so every image in {folder.name}"),
    )


def _listed(top: Path, split: str, images: Files) -> list[str] | None:
    """The ids of the first list file there is."""
    for place in _IMAGES:
        ids = listed_ids(top / place / f"{split}_id.txt", images, ".jpg")
        if ids is not None:
            return ids
    return None


def _test_images(top: Path) -> tuple[Path, ...]:
    places = ("Testing_images/testing_images", "Testing_images", "testing_images")
    images = files_below(first_folder(top, places, "the images of split test", "unpack Testing_images.zip"), ".jpg")
    chosen = _listed(top, "test", images)
    return tuple(images.files[name] for name in chosen or images.files)
