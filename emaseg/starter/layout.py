"""Finding images, their masks and the split in a folder whose arrangement nobody declared.

Room: starter.

    images/ + masks/                    one of many names for each; a split by train.txt + val.txt where they exist
    images/train|val + masks/train|val  ... with sub-folders
    train|val/images + train|val/masks  ... the other way round
    train/ + trainannot/                CamVid's; also train_labels, train_masks, ...
    a.jpg + a_mask.png                  beside each other, in one folder or in train|val
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emaseg.data.files.images import EXTENSIONS
from emaseg.data.sets.folder import TEXTS, count_endings, walk
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, listed_names, stem_of
from emaseg.data.sets.pair_lists import read_pair_list
from emaseg.data.sets.pairs import first_few, read_names
from emaseg.errors import DataError
from emaseg.files import is_hidden, read_bytes
from emaseg.recipe import toml_value
from emaseg.starter.naming import Place, files_in, naming_of, stems_in
from emaseg.starter.several import (
    SeveralMasks,
    check_exports,
    class_folders,
    endings,
    jpeg_masks,
    other_annotations,
    rival_endings,
)
from emaseg.words import Lines, quoted, quoted_path

IMAGE_NAMES = (
    "images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "rgb", "frames", "inputs", "input", "data", "x",
)  # fmt: skip
MASK_NAMES = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "segmentationclass", "gt",
    "groundtruth", "ground_truth", "segmentations", "segmentation", "segs", "seg", "targets", "target", "y",
)  # fmt: skip
TRAIN_NAMES = ("train", "training", "trn")
EVAL_NAMES = ("val", "valid", "validation", "eval", "dev", "test", "testing")
LIST_FOLDERS = ("", "splits", "lists", "ImageSets/Segmentation", "ImageSets")

_REPORT_BYTES = 256 << 20  # of what a conversion says of itself
_DEPTH = 4  # folders with nothing but a folder in them
ARRANGE = "arrange the files like one of these; a mask has its image's name, or that name and an ending"
HOLDOUT = 5  # without a split every fifth image is for evaluation

# Folders by which published data sets are known that have a recipe kind of their own.
_PUBLISHED = (
    ({"leftimg8bit", "gtfine"}, "Cityscapes", "cityscapes_r50_d8"),
    ({"trainval_images", "trainval_parsing_annotations"}, "LIP", "memorynet_lip_r50_d8"),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """An arrangement. words: how it was recognised. notes: what people should know of it, one sentence each.

    more: further folders that are read in both phases with those of train and eval. group: data.holdout_group.
    unmasked: data.unmasked.
    """

    root: Path
    train: Place
    eval: Place
    naming: Naming
    holdout: int
    words: str
    notes: tuple[str, ...] = ()
    more: tuple[Place, ...] = ()
    group: str = ""
    unmasked: Literal["refuse", "leave_out"] = "refuse"


@dataclass(frozen=True, slots=True)
class _Found:
    """One arrangement: where each split lies ("" = there is none), by the split's name in lower case."""

    words: str
    splits: dict[str, Place]


class NotRecognised(DataError):
    """Of a folder in which no images with masks were found."""


def find_layout(folder: Path) -> Layout:
    """The arrangement of `folder`, or of the only folder in it.

    Raises:
        DataError: none is recognised; says what was looked for and what is there.
    """
    root = folder.resolve()
    _check_not_published(root)
    _check_converted(root)
    looked = [root, *_only_child(root)]
    for top in looked:
        for found in _arrangements(top):
            splits = {name: place for name, place in found.splits.items() if naming_of(top, place) is not None}
            train = next((splits[name] for name in (*TRAIN_NAMES, "") if name in splits), None)
            if train is None:
                for place in found.splits.values():
                    check_place(top, place)
            else:
                return layout_of(top, train, splits, found.words)
    raise _not_recognised(root)


def find_several(folder: Path) -> dict[str, SeveralMasks]:
    """Where images have several masks each, by the split ("" = there are no splits); {} = nowhere."""
    root = folder.resolve()
    for top in (root, *_only_child(root)):
        for found in _arrangements(top):
            several = {split: error for split, place in found.splits.items() if (error := _several(top, place))}
            if several:
                return several | _of_one_kind(top, found.splits, several)
            if any(_usable(top, place) for place in found.splits.values()):
                return {}
    return {}


def _several(top: Path, place: Place) -> SeveralMasks | None:
    try:
        naming = naming_of(top, place)
        if naming is None:
            check_place(top, place)
        else:
            _other_masks(top, place, naming)
    except SeveralMasks as error:
        return error
    except DataError:
        return None
    return None


def _of_one_kind(
    top: Path, splits: Mapping[str, Place], several: Mapping[str, SeveralMasks]
) -> dict[str, SeveralMasks]:
    """The other splits, where they have masks of one of the endings: they are converted, too."""
    kinds = {kind for error in several.values() if error.how == "ending" for kind in error.kinds}
    found = {}
    for split, place in splits.items():
        naming = naming_of(top, place) if split not in several and _usable(top, place) else None
        if naming is not None and naming.suffix in kinds:
            found[split] = SeveralMasks(top, top / place.images, top / place.masks, [naming.suffix], "ending")
    return found


def _usable(top: Path, place: Place) -> bool:
    try:
        return naming_of(top, place) is not None
    except DataError:
        return False


def layout_of(root: Path, train: Place, splits: dict[str, Place], words: str) -> Layout:
    naming = naming_of(root, train) or Naming("", "", "")
    notes = _other_masks(root, train, naming)
    name = next((name for name in EVAL_NAMES if name in splits and naming_of(root, splits[name]) == naming), None)
    if name is not None:
        if name in ("test", "testing"):
            notes.append("There is no validation split: the test split is the one evaluated.")
        elif any(other in splits for other in ("test", "testing")):
            notes.append("The test split is not used: data.eval_images and eval_masks say what is evaluated.")
        return Layout(root, train, splits[name], naming, 0, words, tuple(notes))
    lists = _lists(root, train, notes)
    if lists is not None:
        first, second = (Place(train.images, train.masks, name) for name in lists)
        return Layout(root, first, second, naming, 0, f"{words}, split by {lists[0]} and {lists[1]}", tuple(notes))
    count = sum(1 for _ in _pairs(root, train, naming))
    if count == 1:
        notes.append("There is one image only: it is trained on and evaluated too.")
        return Layout(root, train, train, naming, 0, words, tuple(notes))
    notes.append("There is no split: every n-th image (data.holdout) is for evaluation and not trained on.")
    notes.append("Neighbouring frames of one video belong on one side: data.holdout_group keeps such images together.")
    return Layout(root, train, train, naming, min(HOLDOUT, count), words, tuple(notes))


# ------------------------------------------------------------------------------------------------ arrangements
def _arrangements(top: Path) -> Iterator[_Found]:
    """Everything that the names of the folders suggest, the plainest last."""
    folders = {name.lower(): name for name in _folders(top)}
    image_folders = [folders[name] for name in IMAGE_NAMES if name in folders]
    mask_folders = [folders[name] for name in MASK_NAMES if name in folders]
    for images in image_folders:
        for masks in mask_folders:
            inner = common_folders(top / images, top / masks)
            yield _Found(
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
            yield _Found(f"{images} with {masks}", {"": Place(images, masks)})
    for images, masks in _twins(top, list(folders.values())):
        yield _Found(f"{images} with {masks}", {"": Place(images, masks)})
    yield _Found("masks beside their images", {"": Place(".", ".")})


def _by_split(top: Path, folders: dict[str, str]) -> Iterator[_Found]:
    """Folders named after the splits: with images and masks inside, or with a second folder for the masks."""
    inside, beside, mixed = {}, {}, {}
    for split in TRAIN_NAMES + EVAL_NAMES:
        if split not in folders:
            continue
        name = folders[split]
        inner = {child.lower(): child for child in _folders(top / name)}
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
    yield _Found("<split>/images with <split>/masks", inside)
    words = ", ".join(f"{place.images} with {place.masks}" for place in list(beside.values())[:2])
    yield _Found(words, beside)
    yield _Found("masks beside their images, a folder for each split", mixed)


def _twins(top: Path, folders: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of other folders whose files have the same names, the first with photographs (JPEG)."""
    kinds = {name: {Path(file).suffix.lower() for file in files_in(top / name)} for name in folders}
    for images in folders:
        for masks in folders:
            if images != masks and kinds[images] & {".jpg", ".jpeg"} and kinds[masks] & set(MASK_EXTENSIONS):
                yield images, masks


def _lists(root: Path, place: Place, notes: list[str]) -> tuple[str, str] | None:
    """A training and an evaluation list whose lines name images."""
    for folder in LIST_FOLDERS:
        names = {
            file.lower(): f"{folder}/{file}".lstrip("/") for file in _children(root / folder) if file.endswith(".txt")
        }
        train = next((names[f"{name}.txt"] for name in TRAIN_NAMES if f"{name}.txt" in names), None)
        evaluation = next((names[f"{name}.txt"] for name in EVAL_NAMES if f"{name}.txt" in names), None)
        if train is None or evaluation is None:
            continue
        if read_pair_list(root / train, root, root / place.images, root / place.masks):
            return train, evaluation
        known = {_form(name) for file in files_in(root / place.images) for name in (file, stem_of(file))}
        top = root / place.images
        strange = [line for line in read_names(root / train) if known.isdisjoint(listed_names(line, top))]
        if not strange:
            return train, evaluation
        notes.append(f"{train} is not used: it names images that are not in {place.images}, such as {strange[0]!r}.")
    return None


# ---------------------------------------------------------------------------------------------- what fits and what not
def check_place(root: Path, place: Place) -> None:
    """Stop at a place of images and masks that do not go together for a reason that is known.

    Raises:
        DataError: the masks are one for each class, JPEG files, or named after an annotation tool's tasks.
    """
    images, masks = stems_in(root, place)
    if not images:
        return
    check_exports(root, root / place.masks, files_in(root / place.masks))
    if place.images == place.masks or not masks:
        files = files_in(root / place.masks)
        error = jpeg_masks(root / place.masks, files_in(root / place.images), files, beside=place.images == place.masks)
        if error is not None:
            raise error
        return
    folders = class_folders(images, masks)
    if len(folders) > 1:
        raise SeveralMasks(root, root / place.images, root / place.masks, folders, "folder")
    if folders:
        raise DataError(
            f"{root / place.masks}: the masks are in its folder {folders[0]}, the images not in one of that name",
            f"move the masks out of {folders[0]}, or the images into a folder {folders[0]}",
        )
    beginnings = endings((name[::-1] for name in images), (name[::-1] for name in masks))
    kinds = [kind[::-1] for kind in rival_endings(beginnings, len(images)) if "/" not in kind]
    if len(kinds) > 1:
        raise SeveralMasks(root, root / place.images, root / place.masks, sorted(kinds), "beginning")


def _other_masks(root: Path, place: Place, naming: Naming) -> list[str]:
    """Notes on folders beside the mask folder that hold masks of the same images.

    Raises:
        DataError: the name of the mask folder does not say that it is the one, so each may be of one class.
    """
    images, masks = Path(place.images), Path(place.masks)
    names = {naming.mask(name) for name in stems_in(root, place)[0]}
    others = []
    for name in _folders(root / masks.parent):
        path = masks.parent / name
        split = name.lower().startswith(TRAIN_NAMES + EVAL_NAMES)
        if split or path in (images, masks) or path in (*images.parents, *masks.parents):
            continue
        files = {stem_of(file) for file in files_in(root / path) if file.lower().endswith(MASK_EXTENSIONS)}
        if 2 * len(names & files) >= len(names):
            others.append(path.as_posix())
    known = any(part.lower() in MASK_NAMES for part in masks.parts) or masks.name.lower().startswith(TRAIN_NAMES)
    if others and not known:
        kinds = sorted(Path(name).name for name in (masks.as_posix(), *others))
        raise SeveralMasks(root, root / images, root / masks.parent, kinds, "folder")
    return [f"{first_few(others)} holds masks of the same images, too; {masks} is the one used."] if others else []


def _pairs(root: Path, place: Place, naming: Naming) -> Iterator[str]:
    images, masks = stems_in(root, place)
    return (name for name in images if naming.mask(name) in masks)


def _form(name: str) -> str:
    """A name in one Unicode form: macOS takes accents apart."""
    return unicodedata.normalize("NFC", name)


# --------------------------------------------------------------------------------------------------- the folder
def _children(folder: Path) -> list[str]:
    """Names in a folder, sorted, hidden ones left out; [] where there is none."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if not is_hidden(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})", "check its permissions") from error


def _folders(top: Path) -> list[str]:
    return [name for name in _children(top) if (top / name).is_dir()]


def common_folders(one: Path, other: Path) -> list[tuple[str, str]]:
    """Sub-folders of the same name, in any case."""
    theirs = {name.lower(): name for name in _folders(other)}
    return [(name, theirs[name.lower()]) for name in _folders(one) if name.lower() in theirs]


def _only_child(root: Path) -> list[Path]:
    """The folders that archives were unpacked into: the only one, with no image beside it, and so on."""
    found = [root]
    while len(found) <= _DEPTH:
        folders = _folders(found[-1])
        if len(folders) != 1 or any(name.lower().endswith(EXTENSIONS) for name in _children(found[-1])):
            break
        found.append(found[-1] / folders[0])
    return found[1:]


def _check_not_published(root: Path) -> None:
    names = {name.lower() for name in _folders(root)}
    for marks, title, recipe in _PUBLISHED:
        if marks <= names:
            raise DataError(
                f"{root}: this looks like {title}, which has a reader of its own",
                f"use a recipe of it: emaseg train {recipe} --set {quoted(f'data.root={toml_value(str(root))}')}",
            )


def _check_converted(root: Path) -> None:
    """Stop at what `emaseg convert` left when it was interrupted: masks are missing."""
    try:
        said = json.loads(read_bytes(root / "convert.json", _REPORT_BYTES))
        unfinished = said["done"] is False and isinstance(said["source"], str)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return
    if unfinished:
        raise DataError(
            f"{root}: its conversion did not come to the end, so masks are missing",
            f"run it again, it goes on: emaseg convert {quoted_path(said['source'])} --out {quoted_path(root)}",
        )


def _not_recognised(root: Path) -> NotRecognised:
    """What was looked for, what is there, and where images and masks nearly matched."""
    folders = [f"{name}/ ({len(files_in(root / name)):,} images)" for name in _folders(root)]
    files = [name for name in _children(root) if (root / name).is_file()]
    there = first_few(folders, 12) or "no folders"
    there += f"; files: {first_few(files, 4)}" if files else "; no files"
    everything = list(walk(root, None))
    unread = count_endings(everything)
    return NotRecognised(
        Lines(
            f"{root}: no images with masks were recognised",
            "  looked for: images/ + masks/ (or labels/, annotations/, ...), the same below or above train/ and val/,",
            "    train/ + trainannot/, or masks beside their images (a.jpg + a_mask.png); masks are PNG, TIFF, BMP or GIF",
            f"  found: {there}",
            *([f"  not read: {unread}"] if unread else []),
        ),
        other_annotations(root, everything) or _unread_twins(everything) or ARRANGE,
    )


def _unread_twins(files: list[str]) -> str:
    """The remedy where files that are not read have the names of images or masks that are; "" = they have not."""
    names = [Path(name).name for name in files]
    read = {name.partition(".")[0].lower() for name in names if name.lower().endswith(EXTENSIONS)}
    others = [name for name in names if not name.lower().endswith((*EXTENSIONS, *TEXTS))]
    twins = [name for name in others if name.partition(".")[0].lower() in read]
    if not twins or 2 * len(twins) < len(read):
        return ""
    return (
        f"files such as {twins[0]} have the names of the others, but such files are not read: convert images to PNG or "
        "JPEG, and masks to PNG without changing their values"
    )
