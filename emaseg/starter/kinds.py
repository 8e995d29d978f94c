"""Arrangements beyond one folder of images with one of masks: several such pairs, lists of pairs, images that show
nothing, frames of videos.

Room: starter.

    site_a/images + site_a/masks, site_b/images + site_b/masks     one training of all
    train.txt + val.txt, or pairs.csv, with `image mask` lines      names of any kind
    images/ + masks/ + negatives/                                  negatives/ holds images without objects and masks
    images/clip1_0001.jpg, clip1_0002.jpg, ..., clip2_0001.jpg     whole clips are held out
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from emaseg.data.files.images import ARRAY, EXTENSIONS, image_names
from emaseg.data.sets.folder import walk
from emaseg.data.sets.holdout import group_count
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, stem_of
from emaseg.data.sets.pair_lists import PairList, mostly_there, read_pair_list
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.files import is_hidden
from emaseg.starter.arrangements import EVAL_NAMES, IMAGE_NAMES, MASK_NAMES, TRAIN_NAMES, common_folders, folders_in
from emaseg.starter.layout import (
    APART,
    ARRANGE,
    HOLDOUT,
    LIST_FOLDERS,
    Layout,
    NotRecognised,
    alike_in,
    check_place,
    find_layout,
    layout_of,
)
from emaseg.starter.naming import Place, naming_of
from emaseg.starter.unused import with_unused

__all__ = ["any_layout", "images_in", "named_layout"]

_NOTHING = ("background", "backgrounds", "negative", "negatives", "empty", "no_objects", "without_objects")
_FRAMES = r"^(.*?)[0-9]+$"  # all of a name but the number at its end
_CLIPS, _LENGTH = 4, 3  # so many clips, and images of each on the average, are taken for videos


def any_layout(folder: Path) -> Layout:
    """The arrangement of a folder, of any kind.

    Raises:
        DataError: none is recognised; or images have several masks, or masks cannot be read.
    """
    root = folder.resolve()
    refused: list[DataError] = []
    stated = _listed_pairs(root, refused) or _sites(root)  # these say more than names that happen to fit
    try:
        return stated or with_unused(_with_groups(_with_nothing(find_layout(folder))))
    except NotRecognised as error:
        raise refused[0] if refused and error.hint == ARRANGE else error from None


def named_layout(folder: Path, images: str, masks: str) -> Layout:
    """The arrangement where people say which folder holds the images and which the masks.

    Args:
        images, masks: below `folder`, or from here; with train and val folders in both, or a split by lists or none.

    Raises:
        DataError: there is no such folder, or hardly any image has a mask.
    """
    root = folder.resolve()
    place = Place(_named(root, images, "--images"), _named(root, masks, "--masks"))
    splits = {"": place}
    for one, other in common_folders(root / place.images, root / place.masks):
        if one.lower() in TRAIN_NAMES + EVAL_NAMES:
            splits[one.lower()] = Place(f"{place.images}/{one}", f"{place.masks}/{other}")
    paired = {name: at for name, at in splits.items() if naming_of(root, at) is not None}
    train = next((paired[name] for name in (*TRAIN_NAMES, "") if name in paired), None)
    if train is not None:
        return with_unused(_with_groups(layout_of(root, train, paired, f"{images} with {masks}", chosen=True)))
    check_place(root, place)
    first, second = (sorted(images_in(root / one)) for one in (place.images, place.masks))
    if place.images == place.masks and (alike := alike_in(first)):
        raise DataError(
            f"{root / place.images}: images and masks are in one folder and nothing tells them apart: {alike}", APART
        )
    raise DataError(
        f"hardly any image in {images} has a mask in {masks}: images such as {first_few(first, 2) or 'none'}, "
        f"masks such as {first_few(second, 2) or 'none'}",
        "a mask is called as its image is, but for what all masks (data.mask_prefix, data.mask_suffix) or all images "
        "(data.image_prefix, data.image_suffix) begin or end with",
    )


def _named(root: Path, text: str, option: str) -> str:
    """A folder as data.train_images has it: relative to the root where it lies below.

    Raises:
        DataError: there is no such folder.
    """
    for path in (root / text, Path(text).resolve()):
        if path.is_dir():
            found = path.resolve()
            return found.relative_to(root).as_posix() if found.is_relative_to(root) else str(found)
    raise DataError(f"{option} {text}: no such folder, neither in {root} nor here", "name a folder")


def images_in(folder: Path) -> Iterator[str]:
    """The files of a folder and its sub-folders that end as images do."""
    return iter(image_names(walk(folder, None)))


# ------------------------------------------------------------------------------------------------- several folders
def _sites(root: Path) -> Layout | None:
    """Sub-folders that each hold images and masks, named alike, where the folder itself has no images."""
    found = []
    if any(name.lower() in IMAGE_NAMES for name in folders_in(root)):
        return None
    for name in folders_in(root):
        inner = {child.lower(): child for child in folders_in(root / name)}
        images = next((inner[word] for word in IMAGE_NAMES if word in inner), None)
        masks = next((inner[word] for word in MASK_NAMES if word in inner), None)
        if name.lower() in TRAIN_NAMES + EVAL_NAMES or not images or not masks:
            continue
        place = Place(f"{name}/{images}", f"{name}/{masks}")
        if (naming := naming_of(root, place)) is not None:
            found.append((place, naming))
    if len(found) < 2:
        return None
    other = next(((place, naming) for place, naming in found if naming != found[0][1]), None)
    if other is not None:
        ways = [
            f"those in {place.masks} {naming.words or 'have the names of their images'}"
            + ("" if naming.plain or naming.words else " without what all images begin or end with")
            for place, naming in (found[0], other)
        ]
        raise DataError(
            f"{root}: its folders name the masks in different ways: {ways[0]}, {ways[1]}",
            "name them alike in all folders, or write a list file of lines `image mask`, pairs.csv for example",
        )
    first, *more = [place for place, _ in found]
    others = [name for name in folders_in(root) if not any(place.images.startswith(f"{name}/") for place, _ in found)]
    largest = max(len(_stems(root / place.images)) for place, _ in found)
    notes = ["There is no split: every n-th image of each folder (data.holdout) is for evaluation and not trained on."]
    notes += [f"Not read: {first_few(others)}."] if others else []
    words = f"{len(found)} folders, each with images and masks: {first_few(place.images for place, _ in found)}"
    return _with_groups(
        Layout(root, first, first, found[0][1], min(HOLDOUT, largest), words, tuple(notes), more=tuple(more))
    )


# --------------------------------------------------------------------------------------------------- lists of pairs
def _listed_pairs(root: Path, refused: list[DataError]) -> Layout | None:
    """A training and an evaluation list of pairs, or one list of all. refused: gets the errors of those not taken.

    Raises:
        DataError: most lines of a list name an image and its mask, and another line does not.
    """
    lists = dict(_pair_lists(root, refused))
    by_name = {Path(name).stem.lower(): name for name in lists}
    train = next((by_name[word] for word in TRAIN_NAMES if word in by_name), None)
    evaluation = next((by_name[word] for word in EVAL_NAMES if word in by_name), None)
    naming = Naming("", "", "")
    if train and evaluation:
        words = f"pairs of images and masks in {train} and {evaluation}"
        notes = _unlisted(root, [lists[train], lists[evaluation]])
        return Layout(root, Place(".", ".", train), Place(".", ".", evaluation), naming, 0, words, notes)
    if len(lists) != 1:
        return None
    name, pairs = next(iter(lists.items()))
    place = Place(".", ".", name)
    note = "There is no split: every n-th image of the list (data.holdout) is for evaluation and not trained on."
    count = len(pairs.pairs) + len(pairs.background)
    notes = (note, *_unlisted(root, [pairs]))
    return Layout(root, place, place, naming, min(HOLDOUT, count), f"pairs of images and masks in {name}", notes)


def _unlisted(root: Path, lists: Sequence[PairList]) -> tuple[str, ...]:
    """A note on pictures beside those of the lists that no list names."""
    named = {path for one in lists for pair in one.pairs for path in pair} | {
        path for one in lists for path in one.background
    }
    folders = sorted({image.parent for one in lists for image, _ in one.pairs})
    others = [
        path for folder in folders for path in sorted(folder.iterdir()) if _is_picture(path) and path not in named
    ]
    if not others:
        return ()
    return (
        f"{len(others):,} images are in no list and are not used: {first_few(p.relative_to(root) for p in others)}.",
    )


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith((*EXTENSIONS, ARRAY)) and not is_hidden(path.name) and path.is_file()


def _pair_lists(root: Path, refused: list[DataError]) -> Iterator[tuple[str, PairList]]:
    for folder in LIST_FOLDERS:
        for path in sorted((root / folder).glob("*")) if (root / folder).is_dir() else ():
            if path.suffix.lower() in (".txt", ".csv", ".tsv", ".lst") and path.is_file():
                try:
                    found = read_pair_list(path, root, root, root)
                except DataError as error:
                    if mostly_there(path, root):
                        raise
                    refused.append(error)
                    continue
                if found is not None and found.pairs:
                    yield path.relative_to(root).as_posix(), found


# ------------------------------------------------------------------------------------------------ nothing to be seen
def _with_nothing(layout: Layout) -> Layout:
    """With a folder of images that show no object: its name says so, and no mask has a name of theirs."""
    top = Path(layout.train.images).parent
    known = _stems(layout.root / layout.train.images) | _stems(layout.root / layout.train.masks)
    for name in folders_in(layout.root / top):
        path = (top / name).as_posix()
        stems = _stems(layout.root / path)
        if name.lower() in _NOTHING and stems and not stems & known and not layout.train.listing:
            note = f"The images in {path} have no masks: all of their pixels are taken for the background."
            return replace(layout, more=(*layout.more, Place(path, "")), notes=(*layout.notes, note))
    return layout


# ------------------------------------------------------------------------------------------------------------ frames
def _with_groups(layout: Layout) -> Layout:
    """With whole clips held out, where the names of the images are those of frames: running numbers in each clip."""
    if not layout.holdout or layout.train.listing:
        return layout
    stems = sorted(
        stem
        for place in (layout.train, *layout.more)
        if place.masks
        for stem in _stems(layout.root / place.images)
        if place.images != place.masks or not layout.naming.is_mask(f"{stem}.png")
    )
    clips = defaultdict(list)
    for stem in stems:
        match = re.search(r"([0-9]+)$", stem)
        if match is None:
            return layout
        clips[stem[: match.start()]].append(match[1])
    if len(clips) < _CLIPS or len(stems) < _LENGTH * len(clips) or 2 * sum(map(_runs, clips.values())) < len(clips):
        return layout
    few = first_few(f"{clip or 'unnamed'}..." for clip in clips)
    note = f"The images look like frames of {len(clips)} clips ({few}): whole clips are held out (data.holdout_group)."
    kept = tuple(text for text in layout.notes if "data.holdout" not in text)
    count = min(HOLDOUT, group_count(stems, _FRAMES))
    return replace(layout, group=_FRAMES, holdout=count, notes=(*kept, note))


def _runs(numbers: Sequence[str]) -> bool:
    """Whether numbers rise in even steps, as those of frames do."""
    steps = {second - first for first, second in pairwise(sorted(map(int, numbers)))}
    return len(steps) <= 1 and 0 not in steps


# -------------------------------------------------------------------------------------------------------- the folder
def _stems(top: Path) -> set[str]:
    """The relative paths of the pictures in a folder, without their extensions."""
    if not top.is_dir():
        return set()
    return {stem_of(name) for name in walk(top, None) if name.lower().endswith((*EXTENSIONS, ARRAY, *MASK_EXTENSIONS))}
