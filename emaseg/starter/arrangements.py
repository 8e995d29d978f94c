"""The arrangements of images and masks that the names of folders suggest.

Room: starter.

    images/ + masks/                    one of many names for each; a split by train.txt + val.txt where they exist
    images/train|val + masks/train|val  ... with sub-folders
    train|val/images + train|val/masks  ... the other way round
    train/ + trainannot/                CamVid's; also train_labels, train_masks, ...
    a.jpg + a_mask.png                  beside each other, in one folder or in train|val
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.sets.names import MASK_EXTENSIONS
from emaseg.errors import DataError
from emaseg.files import is_hidden
from emaseg.starter.naming import Place, files_in

__all__ = [
    "EVAL_NAMES",
    "IMAGE_NAMES",
    "MASK_NAMES",
    "OF_SPLIT",
    "TRAIN_NAMES",
    "Found",
    "arrangements",
    "children_of",
    "common_folders",
    "folders_in",
    "is_of_split",
]

IMAGE_NAMES = (
    "images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "rgb", "frames", "inputs", "input", "data", "x",
)  # fmt: skip
MASK_NAMES = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "segmentationclass",
    "segmentationclasspng", "gt", "groundtruth", "ground_truth", "segmentations", "segmentation", "segs", "seg", "targets",
    "target", "y",
)  # fmt: skip
TRAIN_NAMES = ("train", "training", "trn")
EVAL_NAMES = ("val", "valid", "validation", "eval", "dev", "test", "testing")
OF_SPLIT = re.compile(  # val, val2017, train_labels, testset; valve is a class
    rf"({'|'.join(TRAIN_NAMES + EVAL_NAMES)})[\W_]*(\d*|({'|'.join(IMAGE_NAMES + MASK_NAMES)}|set)\d*)", re.IGNORECASE
)

_BEGINS = re.compile(rf"({'|'.join(TRAIN_NAMES + EVAL_NAMES)})(?![^\W\d_])", re.IGNORECASE)


def is_of_split(name: str) -> bool:
    """Whether a folder is called after a split, with any other words behind a sign: val2017, train_lab, testset."""
    return OF_SPLIT.fullmatch(name) is not None or _BEGINS.match(name) is not None


@dataclass(frozen=True, slots=True)
class Found:
    """One arrangement: where each split lies ("" = there is none), by the split's name in lower case.

    guessed: the names of the folders say nothing, their files fit each other.
    """

    words: str
    splits: dict[str, Place]
    guessed: bool = False


def arrangements(top: Path) -> Iterator[Found]:
    """Everything that the names of the folders suggest, the plainest last."""
    folders = {name.lower(): name for name in folders_in(top)}
    image_folders = [folders[name] for name in IMAGE_NAMES if name in folders]
    mask_folders = [folders[name] for name in MASK_NAMES if name in folders]
    for images in image_folders:
        for masks in mask_folders:
            inner = common_folders(top / images, top / masks)
            yield Found(
                f"{images}/<split> with {masks}/<split>",
                {
                    split.lower(): Place(f"{images}/{split}", f"{masks}/{other}")
                    for split, other in inner
                    if split.lower() in TRAIN_NAMES + EVAL_NAMES
                },
            )
    yield from _by_split(top, folders)
    for images in image_folders:
        for masks in mask_folders:
            yield Found(f"{images} with {masks}", {"": Place(images, masks)})
    for images, masks in _twins(top, list(folders.values())):
        yield Found(f"{images} with {masks}", {"": Place(images, masks)}, guessed=True)
    yield Found("masks beside their images", {"": Place(".", ".")}, guessed=True)


def _by_split(top: Path, folders: dict[str, str]) -> Iterator[Found]:
    """Folders named after the splits: with images and masks inside, or with a second folder for the masks."""
    inside, beside, mixed = {}, {}, {}
    for split in TRAIN_NAMES + EVAL_NAMES:
        if split not in folders:
            continue
        name = folders[split]
        inner = {child.lower(): child for child in folders_in(top / name)}
        images = next((inner[n] for n in IMAGE_NAMES if n in inner), None)
        masks = next((inner[n] for n in MASK_NAMES if n in inner), None)
        if images and masks:
            inside[split] = Place(f"{name}/{images}", f"{name}/{masks}")
        partner = next(
            (
                folders[f"{split}{joint}{n}"]
                for n in MASK_NAMES
                for joint in ("", "_", "-")
                if f"{split}{joint}{n}" in folders
            ),
            None,
        )
        if partner:
            beside[split] = Place(name, partner)
        mixed[split] = Place(name, name)
    yield Found("<split>/images with <split>/masks", inside)
    words = ", ".join(f"{place.images} with {place.masks}" for place in list(beside.values())[:2])
    yield Found(words, beside)
    yield Found("masks beside their images, a folder for each split", mixed)


def _twins(top: Path, folders: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of other folders whose files have the same names, the first with photographs (JPEG)."""
    kinds = {name: {Path(file).suffix.lower() for file in files_in(top / name)} for name in folders}
    for images in folders:
        for masks in folders:
            if images != masks and kinds[images] & {".jpg", ".jpeg"} and kinds[masks] & set(MASK_EXTENSIONS):
                yield images, masks


# --------------------------------------------------------------------------------------------------- the folder
def children_of(folder: Path) -> list[str]:
    """Names in a folder, sorted, hidden ones left out; [] where there is none."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if not is_hidden(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})", "check its permissions") from error


def folders_in(top: Path) -> list[str]:
    return [name for name in children_of(top) if (top / name).is_dir()]


def common_folders(one: Path, other: Path) -> list[tuple[str, str]]:
    """Sub-folders of the same name, in any case."""
    theirs = {name.lower(): name for name in folders_in(other)}
    return [(name, theirs[name.lower()]) for name in folders_in(one) if name.lower() in theirs]
