"""Finding images, their masks and the split in a folder whose arrangement nobody declared.

Room: starter. What is looked for: arrangements.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emaseg.data.files.images import EXTENSIONS
from emaseg.data.sets.folder import TEXTS, count_endings, walk
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, form, listed_names, stem_of
from emaseg.data.sets.pair_lists import read_pair_list, without_heading
from emaseg.data.sets.pairs import first_few, read_names
from emaseg.errors import DataError
from emaseg.files import read_bytes
from emaseg.recipe import toml_value
from emaseg.starter.arrangements import (
    EVAL_NAMES,
    MASK_NAMES,
    TRAIN_NAMES,
    Found,
    arrangements,
    children_of,
    folders_in,
    is_of_split,
)
from emaseg.starter.mask_kinds import Kinds, by_beginning, by_folder, frequent, is_word
from emaseg.starter.naming import Place, files_in, kinds_by_ending, naming_of, stems_in
from emaseg.starter.several import How, SeveralMasks, check_exports, jpeg_masks, other_annotations
from emaseg.words import Lines, quoted, quoted_path

LIST_FOLDERS = ("", "splits", "lists", "ImageSets/Segmentation", "ImageSets")

_REPORT_BYTES = 256 << 20  # of what a conversion says of itself
_DEPTH = 4  # folders with nothing but a folder in them
ARRANGE = (
    "arrange the files like one of these; a mask has its image's name, but for what all masks, or all images, begin or "
    "end with; or name both folders: emaseg init FOLDER --images DIR --masks DIR"
)
APART = "give the masks a folder of their own, or an ending that tells them from the images, such as _mask"
TEST_UNUSED = "The test split is not used: data.eval_images and eval_masks say what is evaluated."
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


class NotRecognised(DataError):
    """Of a folder in which no images with masks were found."""


def find_layout(folder: Path) -> Layout:
    """The arrangement of `folder`, or of the only folder in it. Folders whose names say that they hold the masks, which
    cannot be used, are passed over where others of such names can.

    Raises:
        DataError: none is recognised; says what was looked for and what is there. Or images have several masks, or the
            masks cannot be used.
    """
    root = folder.resolve()
    _check_not_published(root)
    _check_converted(root)
    refused: list[tuple[Path, DataError]] = []  # the masks and why
    for top in (root, *_only_child(root)):
        for found in arrangements(top):
            places = [top / place.masks for place in found.splits.values()]
            if refused and (found.guessed or any(_within(one, other) for one in places for other, _ in refused)):
                continue
            layout = _fitting(top, found, refused)
            if layout is not None:
                passed = dict.fromkeys(f"Not used: {error.message}." for _, error in refused)
                return replace(layout, notes=(*layout.notes, *passed))
    raise refused[0][1] if refused else _not_recognised(root)


def _within(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _fitting(top: Path, found: Found, refused: list[tuple[Path, DataError]]) -> Layout | None:
    """The layout of an arrangement, if there are images with masks to train on. refused: gets the masks that cannot be
    used.

    Raises:
        DataError: images have several masks, or those of one split can be used and those of another not.
    """
    splits: dict[str, Place] = {}
    wrong: list[tuple[Path, DataError]] = []
    for name, place in found.splits.items():
        try:
            if naming_of(top, place) is not None:
                splits[name] = place
        except SeveralMasks:
            raise
        except DataError as error:
            wrong.append((top / place.masks, error))
    train = next((splits[name] for name in (*TRAIN_NAMES, "") if name in splits), None)
    if train is not None:
        if wrong:
            raise wrong[0][1]
        return layout_of(top, train, splits, found.words)
    for place in found.splits.values():
        try:
            check_place(top, place)
        except SeveralMasks:
            raise
        except DataError as error:
            wrong.append((top / place.masks, error))
    refused += wrong
    return None


def find_several(folder: Path) -> dict[str, SeveralMasks]:
    """Where images have several masks each, by the split ("" = there are no splits); {} = nowhere."""
    root = folder.resolve()
    for top in (root, *_only_child(root)):
        for found in arrangements(top):
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
    """The other splits, where they have masks of one of the kinds, or of others told apart alike: they are converted, too."""
    known = defaultdict[How, set[str]](set)
    for error in several.values():
        known[error.how].update(error.kinds)
    found = {}
    for split, place in splits.items():
        if split in several:
            continue
        images, masks = stems_in(top, place)
        for how, kinds in known.items():
            own = _kinds(images, masks, how, one_folder=place.images == place.masks)
            most = 2 * sum(map(len, own.values())) >= len(masks) > 0 and not any(map(is_word, own))
            if most or own.keys() & kinds:
                found[split] = SeveralMasks(top, top / place.images, top / place.masks, own, how)
    return found


def _kinds(images: Collection[str], masks: Collection[str], how: How, *, one_folder: bool) -> Kinds:
    if how == "ending":
        return kinds_by_ending(images, masks, one_folder=one_folder)
    return by_folder(images, masks) if how == "folder" else by_beginning(images, masks)


def _usable(top: Path, place: Place) -> bool:
    try:
        return naming_of(top, place) is not None
    except DataError:
        return False


def layout_of(root: Path, train: Place, splits: dict[str, Place], words: str, *, chosen: bool = False) -> Layout:
    """The layout of a place to train on. splits: all places with masks. chosen: people have named the mask folder.

    Raises:
        DataError: there are several mask folders, and the name of none says that it is the one.
    """
    naming = naming_of(root, train) or Naming("", "", "")
    notes = _other_masks(root, train, naming, chosen=chosen)
    name = next((name for name in EVAL_NAMES if name in splits and naming_of(root, splits[name]) == naming), None)
    if name is not None:
        if name in ("test", "testing"):
            notes.append("There is no validation split: the test split is the one evaluated.")
        elif any(other in splits for other in ("test", "testing")):
            notes.append(TEST_UNUSED)
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


# --------------------------------------------------------------------------------------------------------- lists
def _lists(root: Path, place: Place, notes: list[str]) -> tuple[str, str] | None:
    """A training and an evaluation list whose lines name images."""
    for folder in LIST_FOLDERS:
        names = {
            file.lower(): f"{folder}/{file}".lstrip("/") for file in children_of(root / folder) if file.endswith(".txt")
        }
        train = next((names[f"{name}.txt"] for name in TRAIN_NAMES if f"{name}.txt" in names), None)
        evaluation = next((names[f"{name}.txt"] for name in EVAL_NAMES if f"{name}.txt" in names), None)
        if train is None or evaluation is None:
            continue
        if read_pair_list(root / train, root, root / place.images, root / place.masks):
            return train, evaluation
        known = {form(name) for file in files_in(root / place.images) for name in (file, stem_of(file))}
        top = root / place.images
        lines = without_heading(read_names(root / train), top, known.__contains__)
        strange = [line for line in lines if known.isdisjoint(listed_names(line, top))]
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
    folders, beginnings = by_folder(images, masks), by_beginning(images, masks)
    usual, only = frequent(beginnings, len(images)), frequent(folders, len(images))
    if len(folders) > 1 and (only or 2 * sum(map(len, folders.values())) >= len(masks)):
        raise SeveralMasks(root, root / place.images, root / place.masks, folders, "folder")
    if len(usual) > 1 and not only:
        raise SeveralMasks(root, root / place.images, root / place.masks, beginnings, "beginning")
    if only:
        # two folders that are named are all that is read, so of a split's they would leave out the other splits
        of_split = any(is_of_split(part) for path in (place.images, place.masks) for part in Path(path).parts)
        naming = f"name both folders: emaseg init {quoted_path(root)} --images {quoted_path(place.images)} --masks "
        naming += f"{quoted_path(f'{place.masks}/{only[0]}')}; or "
        raise DataError(
            f"{root / place.masks}: the masks are in its folder {only[0]}, the images not in one of that name",
            f"{'' if of_split else naming}move the masks out of {only[0]}, or the images into a folder {only[0]}",
        )


def _other_masks(root: Path, place: Place, naming: Naming, *, chosen: bool = False) -> list[str]:
    """Notes on folders beside the mask folder that hold masks of the same images.

    Args:
        chosen: people have named the mask folder.

    Raises:
        DataError: the name of the mask folder does not say that it is the one, so each may be of one class.
    """
    images, masks = Path(place.images), Path(place.masks)
    names, own = stems_in(root, place)
    mask_of = {name: naming.mask(name) for name in names}
    others: dict[str, dict[str, str]] = {}
    for name in folders_in(root / masks.parent):
        path = masks.parent / name
        if is_of_split(name) or path in (images, masks) or path in (*images.parents, *masks.parents):
            continue
        files = {stem_of(file) for file in files_in(root / path) if file.lower().endswith(MASK_EXTENSIONS)}
        if found := {image: f"{name}/{mask}" for image, mask in mask_of.items() if mask in files}:
            others[name] = found
    known = any(part.lower() in MASK_NAMES for part in masks.parts) or is_of_split(masks.name)
    if others and not (known or chosen or place.images == place.masks):
        others[masks.name] = {image: f"{masks.name}/{mask}" for image, mask in mask_of.items() if mask in own}
        kinds = {name: others[name] for name in sorted(others)}
        raise SeveralMasks(root, root / images, root / masks.parent, kinds, "folder")
    half = [(masks.parent / name).as_posix() for name, found in others.items() if 2 * len(found) >= len(mask_of)]
    return [f"{first_few(half)} holds masks of the same images, too; {masks} is the one used."] if half else []


def _pairs(root: Path, place: Place, naming: Naming) -> Iterator[str]:
    images, masks = stems_in(root, place)
    return (name for name in images if naming.mask(name) in masks)


# --------------------------------------------------------------------------------------------------- the folder
def _only_child(root: Path) -> list[Path]:
    """The folders that archives were unpacked into: the only one, with no image beside it, and so on."""
    found = [root]
    while len(found) <= _DEPTH:
        folders = folders_in(found[-1])
        if len(folders) != 1 or any(name.lower().endswith(EXTENSIONS) for name in children_of(found[-1])):
            break
        found.append(found[-1] / folders[0])
    return found[1:]


def _check_not_published(root: Path) -> None:
    names = {name.lower() for name in folders_in(root)}
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
    folders = [f"{name}/ ({len(files_in(root / name)):,} images)" for name in folders_in(root)]
    files = [name for name in children_of(root) if (root / name).is_file()]
    there = first_few(folders, 12) or "no folders"
    there += f"; files: {first_few(files, 4)}" if files else "; no files"
    everything = list(walk(root, None))
    unread, alike = count_endings(everything), alike_in(everything)
    return NotRecognised(
        Lines(
            f"{root}: no images with masks were recognised",
            "  looked for: images/ + masks/ (or labels/, annotations/, ...), the same below or above train/ and val/,",
            "    train/ + trainannot/, or masks beside their images (a.jpg + a_mask.png); masks are PNG, TIFF, BMP or GIF",
            f"  found: {there}",
            *([f"  not read: {unread}"] if unread else []),
            *([f"  images and masks are in one folder and nothing tells them apart: {alike}"] if alike else []),
        ),
        other_annotations(root, everything) or (APART if alike else "") or _unread_twins(everything) or ARRANGE,
    )


def alike_in(files: Sequence[str]) -> str:
    """An image and a mask of one name in one folder, where many are so, in words; "" = they are not."""
    masks = {stem_of(name): name for name in files if name.lower().endswith(MASK_EXTENSIONS)}
    images = [
        name for name in files if name.lower().endswith(EXTENSIONS) and not name.lower().endswith(MASK_EXTENSIONS)
    ]
    pairs = [f"{name} and {masks[stem_of(name)]}" for name in images if stem_of(name) in masks]
    return pairs[0] if pairs and 2 * len(pairs) >= len(images) else ""


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
