"""PASCAL VOC 2012, alone or with the SBD labels: 21 classes, 255 = the border between objects.

Room: data/sets.

    root/JPEGImages/<id>.jpg
    root/SegmentationClass/<id>.png      the 2,913 official masks; palette PNGs, read as indices
    root/SegmentationClassAug/<id>.png   masks made from SBD, for the 10,582 images of trainaug
    root/ImageSets/Segmentation/<split>.txt, one id a line
    benchmark_RELEASE/dataset/cls/<id>.mat   SBD as its owners publish it, in or beside root; mmsegmentation: VOCaug

Each image takes its mask from the first of data.label_folders that holds one, PNG or .mat, and else from SBD's .mat
files. sssegmentation's repackaged set (all masks in SegmentationClass, mode L) and the EMANet authors' (all in
SegmentationClassAug) are read the same way. Without trainaug.txt the split is made from SBD's lists, as it is defined:
VOC's train and SBD's train and val, less VOC's val.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import index_rule
from emaseg.data.label_sets import label_set
from emaseg.data.sets.pairs import PairedFiles, first_few, need_folder, read_names
from emaseg.data.sets.trees import UnlabelledFiles, files_below, named_split
from emaseg.errors import DataError, nearest
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import VOCData

_IMAGES = "JPEGImages"
_LISTS = Path("ImageSets", "Segmentation")
# Where benchmark.tgz may have been unpacked, seen from root; the last but two is mmsegmentation's place.
_SBD = (
    "benchmark_RELEASE/dataset",
    "dataset",
    "../benchmark_RELEASE/dataset",
    "../../benchmark_RELEASE/dataset",
    "../VOCaug/dataset",
    "../SBD",
    "../../SBD",
)
_ROOT_HINT = "set data.root to the VOC2012 folder, the one that holds JPEGImages"


def voc(data: VOCData, phase: Phase) -> PairedFiles | UnlabelledFiles:
    """The images of data.train_split or data.eval_split with their masks, in the order of the list.

    The split "test" (VOC2012test.tar, unpacked over the rest) has no masks and can be named for evaluation only.

    Raises:
        DataError: root, list, images or masks are missing; says what was expected, what is there, and the remedy.
    """
    root = _checked_root(data_root(data.root))
    split, key = named_split(data, phase)
    sbd = next((root / place for place in _SBD if (root / place / "cls").is_dir()), None)
    ids, made = _read_split(root / _LISTS, split, key, sbd)
    images = _by_stem(root / _IMAGES, ".jpg")
    labels = label_set(data)
    if split == "test" and phase == "eval":
        _check_all_there(ids, images, f"images ({root / _IMAGES}/<id>.jpg)", split, "unpack VOC2012test.tar again")
        server = "PASCAL VOC's evaluation server"
        return UnlabelledFiles(
            tuple(images[name] for name in ids), labels.classes, labels.palette, server, f"PASCAL VOC: {root}; no masks"
        )
    masks = _by_stem(sbd / "cls", ".mat") if sbd else {}
    for folder in reversed(data.label_folders):  # so that the first folder has the last word
        masks |= _by_stem(root / folder, ".mat") | _by_stem(root / folder, ".png")
    _check_all_there(
        ids, images, f"images ({root / _IMAGES}/<id>.jpg)", split, "unpack VOCtrainval_11-May-2012.tar again"
    )
    folders = " or ".join(f"{root / folder}/<id>.png" for folder in data.label_folders) or "data.label_folders is empty"
    _check_all_there(ids, masks, f"masks ({folders})", split, _masks_hint(split))
    return PairedFiles(
        items=tuple((images[name], masks[name]) for name in ids),
        rule=dataclasses.replace(index_rule(labels.classes, layout="PASCAL VOC"), mat=("GTcls", "Segmentation")),
        palette=labels.palette,
        layout=f"PASCAL VOC: {root}{made}; {_sources([masks[name] for name in ids], root)}",
    )


def _sources(masks: list[Path], root: Path) -> str:
    """`1,464 masks from SegmentationClass, 9,118 from benchmark_RELEASE/dataset/cls (.mat)`."""
    count = Counter((mask.parent, mask.suffix) for mask in masks)
    texts = []
    for (folder, suffix), number in sorted(count.items(), key=lambda item: -item[1]):
        place = Path(os.path.relpath(folder, root)).as_posix()
        texts.append(f"{number:,} from {place}{' (.mat)' if suffix == '.mat' else ''}")
    return f"masks: {', '.join(texts)}"


_PAIR = re.compile(r"(?:\S*/)?([^\s/.]+)\.jpg\s+(?:\S*/)?\1\.png")


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


def _read_split(folder: Path, split: str, key: str, sbd: Path | None) -> tuple[list[str], str]:
    """The ids of a split, and a remark if they come from other lists than its own."""
    path = folder / f"{split}.txt"
    if split == "trainaug" and not path.is_file() and sbd is not None:
        return _made_trainaug(folder, sbd), f"; trainaug made from the lists of {sbd.resolve()}"
    if not path.is_file():
        available = sorted(entry.stem for entry in folder.glob("*.txt"))
        hint = nearest(split, available) or f"set data.{key} to one of them"
        if split == "trainaug":
            hint = f'trainaug.txt comes with the SBD labels, not with VOC; without them set data.{key} = "train"'
        raise DataError(f"{path}: no such split; available: {', '.join(available) or 'none'}", hint)
    return _read_ids(path), ""


def _made_trainaug(folder: Path, sbd: Path) -> list[str]:
    """VOC's train, then what SBD adds to it, by id; VOC's val is held out."""
    train = _read_ids(folder / "train.txt")
    added = {*_read_ids(sbd / "train.txt"), *_read_ids(sbd / "val.txt")} - {*train, *_read_ids(folder / "val.txt")}
    return train + sorted(added)


def _read_ids(path: Path) -> list[str]:
    """Image ids, one a line; of a line that is a JPEG and its mask, as lists of trainaug have them, that of the JPEG."""
    names = [_PAIR.sub(r"\1", name) for name in read_names(path)]
    wrong = next((name for name in names if len(name.split()) > 1 or "/" in name or "." in name), None)
    if wrong is not None:
        raise DataError(f'{path}: "{wrong}" is not an image id', "write one id a line, such as 2007_000032")
    return names


def _by_stem(folder: Path, extension: str) -> dict[str, Path]:
    """Stem -> path of the files of a folder; empty when there is none. One listing beats ten thousand look-ups."""
    return files_below(folder, extension).files if folder.is_dir() else {}


def _check_all_there(ids: list[str], found: dict[str, Path], what: str, split: str, hint: str) -> None:
    missing = [name for name in ids if name not in found]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(ids):,} {what} of split {split} are missing: {first_few(missing)}", hint
        )


def _masks_hint(split: str) -> str:
    if split == "trainaug":
        return (
            "trainaug needs the SBD masks: unpack SBD's benchmark.tgz, or SegmentationClassAug, in or beside data.root"
        )
    return "unpack VOCtrainval_11-May-2012.tar again, or name the folder in data.label_folders"
