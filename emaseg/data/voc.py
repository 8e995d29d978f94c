"""PASCAL VOC 2012, alone or with the SBD labels: 21 classes, 255 = the border between objects.

Room: data. Imports errors, resources, the schema and the data room's readers.

    root/JPEGImages/<id>.jpg
    root/SegmentationClass/<id>.png      the 2,913 official masks; palette PNGs, read as indices
    root/SegmentationClassAug/<id>.png   masks made from SBD, for the 10,582 images of trainaug
    root/ImageSets/Segmentation/<split>.txt, one id a line

Each image takes its mask from the first of data.label_folders that holds one. sssegmentation's repackaged set (all
masks in SegmentationClass, mode L) and the EMANet authors' (all in SegmentationClassAug) are read the same way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emaseg.data.label_files import index_rule
from emaseg.data.labels import label_set
from emaseg.data.pairs import PairedFiles, first_few, need_folder, read_names
from emaseg.errors import DataError, nearest
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.schema import VOCData

_IMAGES = "JPEGImages"
_LISTS = Path("ImageSets", "Segmentation")
_ROOT_HINT = "set data.root to the VOC2012 folder, the one that holds JPEGImages"


def voc(data: VOCData, part: Literal["train", "eval"]) -> PairedFiles:
    """The images of data.train_split or data.eval_split with their masks, in the order of the list.

    Raises:
        DataError: root, list, images or masks are missing; says what was expected, what is there, and the remedy.
    """
    root = _checked_root(data_root(data.root))
    split, key = (data.train_split, "train_split") if part == "train" else (data.eval_split, "eval_split")
    ids = _read_split(root / _LISTS, split, key)
    images = _by_stem(root / _IMAGES, ".jpg")
    masks: dict[str, Path] = {}
    for folder in reversed(data.label_folders):  # so that the first folder has the last word
        masks |= _by_stem(root / folder, ".png")
    _check_all_there(
        ids, images, f"images ({root / _IMAGES}/<id>.jpg)", split, "unpack VOCtrainval_11-May-2012.tar again"
    )
    folders = " or ".join(f"{root / folder}/<id>.png" for folder in data.label_folders) or "data.label_folders is empty"
    _check_all_there(ids, masks, f"masks ({folders})", split, _masks_hint(split))
    labels = label_set(data)
    return PairedFiles(
        items=tuple((images[name], masks[name]) for name in ids),
        rule=index_rule(labels.classes, layout="PASCAL VOC"),
        palette=labels.palette,
    )


def _checked_root(root: Path) -> Path:
    if not (root / _IMAGES).is_dir():
        for inner in ("VOC2012", "VOCdevkit/VOC2012", "VOC2012_trainval/VOCdevkit/VOC2012"):
            if (root / inner / _IMAGES).is_dir():
                raise DataError(
                    f"{root}: no {_IMAGES} here, but in {inner}", f'set data.root = "{(root / inner).as_posix()}"'
                )
    need_folder(root / _IMAGES, "the image folder", _ROOT_HINT)
    need_folder(root / _LISTS, "the folder of the split lists", _ROOT_HINT)
    return root


def _read_split(folder: Path, split: str, key: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        available = sorted(entry.stem for entry in folder.glob("*.txt"))
        hint = nearest(split, available) or f"set data.{key} to one of them"
        if split == "trainaug":
            hint = f'trainaug.txt comes with the SBD labels, not with VOC; without them set data.{key} = "train"'
        raise DataError(f"{path}: no such split; available: {', '.join(available) or 'none'}", hint)
    names = read_names(path)
    wrong = next((name for name in names if len(name.split()) > 1 or "/" in name or "." in name), None)
    if wrong is not None:
        raise DataError(f'{path}: "{wrong}" is not an image id', "write one id a line, such as 2007_000032")
    return names


def _by_stem(folder: Path, extension: str) -> dict[str, Path]:
    """Stem -> path of the files of a folder; empty when there is none. One listing beats ten thousand look-ups."""
    if not folder.is_dir():
        return {}
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})", "check its permissions") from error
    return {name[: -len(extension)]: folder / name for name in names if name.endswith(extension)}


def _check_all_there(ids: list[str], found: dict[str, Path], what: str, split: str, hint: str) -> None:
    missing = [name for name in ids if name not in found]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(ids):,} {what} of split {split} are missing: {first_few(missing)}", hint
        )


def _masks_hint(split: str) -> str:
    if split == "trainaug":
        return "trainaug needs the SBD masks: unpack SegmentationClassAug beside SegmentationClass"
    return "unpack VOCtrainval_11-May-2012.tar again, or name the folder in data.label_folders"
