"""How masks are called after their images, as the names in two folders, or in one, show.

Room: starter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emaseg.data.files.images import image_names
from emaseg.data.sets.folder import walk
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, stem_of
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.starter.mask_kinds import Kinds, by_ending, frequent, is_word, two_of_one
from emaseg.starter.several import SeveralMasks

__all__ = ["Place", "files_in", "kinds_by_ending", "naming_of", "pictures_of_masks", "stems_in"]

_MASK_PREFIX = re.compile(r"(mask|label|seg|gt|annot|target)", re.IGNORECASE)
_MASK_ENDING = re.compile(r"(masks?|labels?|seg|gt|annot[a-z]*|targets?)$", re.IGNORECASE)
_PICTURE = re.compile(r"[\W_]+(viz|vis|visuali[sz]ations?|colou?rs?|overlays?)$", re.IGNORECASE)  # of a mask
_SUFFIX = re.compile(r"[^A-Za-z0-9]?.*[A-Za-z].*")  # of a mask beside its image: 1 and 10 are two images
_LISTED = "list the pairs in a file pairs.csv, one `image,mask` on each line"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one phase lie, below the root: its image and mask folders, and a list file or ""."""

    images: str
    masks: str
    listing: str = ""


def naming_of(root: Path, place: Place) -> Naming | None:
    """How masks are called after their images; None where hardly any image has a mask.

    Raises:
        DataError: images have masks of several endings, or the masks are named in ways that no recipe states at once.
    """
    suffix = _suffix(root, place)
    return _affixes(root, place) if suffix is None else Naming("", "", suffix)


def _affixes(root: Path, place: Place) -> Naming | None:
    """Of image_001.jpg and mask_001.png what all names begin with, of 001_sat.jpg and 001_mask.png what they end in,
    where the rest is alike; in one folder only where masks have a word for masks there, in two the masks may have nothing
    but the rest, as 001.png has of img_001.jpg."""
    images, masks = stems_in(root, place)
    one_folder = place.images == place.masks
    drawn = one_folder and pictures_of_masks([stem_of(name) for name in files_in(root / place.masks)])
    for ends in (True, False) if drawn else (False, True):  # label_viz begins, but does not end, as label does
        some, others = images, masks
        if one_folder:
            word = _MASK_ENDING.search if ends else _MASK_PREFIX.match
            others = {stem for stem in masks if word(stem.rpartition("/")[2])}
            some = [stem for stem in images if stem not in others]
        if not some or not others:
            continue
        names = [[stem.rpartition("/")[2] for stem in stems] for stems in (some, others)]
        if ends:
            first, second = (part[::-1] for part in _beginnings(*([name[::-1] for name in part] for part in names)))
            naming = Naming("", "", second, first)
        else:
            first, second = _beginnings(*names)
            naming = Naming(first, second, "")
        found = sum(naming.mask(stem) in others for stem in some)
        told = second and (first or not ends) if one_folder else first or (second and not ends)
        if told and 2 * found >= max(len(some), len(others)):
            return naming
    return None


def _beginnings(images: list[str], masks: list[str]) -> tuple[str, str]:
    """What all images and what all masks begin with, without the same end of both."""
    first, second = _shared(images), _shared(masks)
    tail = _shared([first[::-1], second[::-1]])[::-1]
    first, second = first.removesuffix(tail), second.removesuffix(tail)
    if first[-1:].isalpha() and second[-1:].isalpha():  # a word that both end in belongs to both: img and seg
        word = re.match("[A-Za-z]*", tail)
        first, second = (text + (word[0] if word else "") for text in (first, second))
    return first, second


def _shared(names: list[str]) -> str:
    """What all names begin with."""
    low, high = min(names), max(names)
    return low[
        : next((place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    ]


def _suffix(root: Path, place: Place) -> str | None:
    """What follows an image's name in its mask's; None where hardly any image has a mask.

    Raises:
        DataError: images have masks of several endings, or the masks are named in several ways.
    """
    one_folder = place.images == place.masks
    images, masks = stems_in(root, place)
    if not images or not masks:
        return None
    if not one_folder and 2 * sum(name in masks for name in images) >= min(len(images), len(masks)):
        return ""
    found = kinds_by_ending(images, masks, one_folder=one_folder)
    if not found:
        return None
    _check_whole_names(root, place, found, len(images) - len(masks) if one_folder else min(len(images), len(masks)))
    suffix = min(found, key=lambda kind: (-len(found[kind]), len(kind), kind))
    usual = frequent(found, len(images) - len(masks) if one_folder else len(images))
    alike = [kind for kind in usual if is_word(kind)] if is_word(suffix) else []
    count = len({image for kind in (suffix, *alike) for image in found[kind]})
    total = len(images) - count if one_folder else min(len(images), len(masks))
    if one_folder and len(usual) > 1:
        total = len(images) - sum(len(found[kind]) for kind in usual)
    if 2 * count < total:
        return None
    kinds: Kinds = {suffix: found[suffix]}
    if len(usual) > 1:
        kinds = found
    elif one_folder:  # where a mask that ends otherwise would be taken for an image
        kinds = {kind: of for kind, of in found.items() if kind == suffix or not kind.endswith(suffix)}
    if len(kinds) > 1 and all(map(is_word, kinds)) and not two_of_one(kinds):
        raise DataError(
            f"{root / place.masks}: the masks end in {first_few(kinds)}, no image has two of them: a recipe adds "
            "the same ending to the names of all images (data.mask_suffix)",
            f"rename the masks so that all end alike, or {_LISTED}",
        )
    if one_folder:
        kinds = {**kinds, **_further(images, masks, kinds)}
    if len(kinds) > 1:
        raise SeveralMasks(root, root / place.images, root / place.masks, kinds, "ending")
    return suffix


def kinds_by_ending(images: Collection[str], masks: Collection[str], *, one_folder: bool) -> Kinds:
    """The kinds of masks by their endings; in one folder an ending has a letter, and what has a mask is an image."""
    found = by_ending(images, masks)
    if not one_folder:
        return found
    found = {kind: of for kind, of in found.items() if _SUFFIX.fullmatch(kind)}
    most = max(map(len, found.values()), default=0)
    usual = [kind for kind, of in found.items() if 2 * len(of) >= most]
    known = set(images)
    kept = {
        kind: {
            image: mask
            for image, mask in of.items()
            if not any(mask + ending in masks for ending in usual)
            and (_MASK_ENDING.search(kind) or not _is_mask(image, known))  # a mask has no mask of its own
        }
        for kind, of in found.items()
    }
    return {kind: of for kind, of in kept.items() if of}


def _is_mask(stem: str, known: Collection[str]) -> bool:
    """Whether what is taken for an image is a mask by its name: `label`, or `1_label` beside `1`. known: all names."""
    match = _MASK_ENDING.search(stem)
    rest = stem[: match.start()] if match else stem
    return match is not None and (not rest or rest.endswith("/") or rest.rstrip("_-. ") in known)


def pictures_of_masks(stems: Collection[str]) -> set[str]:
    """Of names without extensions those that are a mask's and a word for how it looks: `1_label_viz` beside `1_label`.

    What has a mask of its own is an image: `target_0_color` beside `target_0_color_mask`.
    """
    known, found = set(stems), set()
    masked = {stem[: match.start()].rstrip("_-. ") for stem in known if (match := _MASK_ENDING.search(stem))}
    for stem in known:
        match = _PICTURE.search(stem)
        mask = stem[: match.start()] if match else ""
        name = mask.rpartition("/")[2]
        if mask in known and stem not in masked and (_MASK_ENDING.search(name) or _MASK_PREFIX.match(name)):
            found.add(stem)
    return found


def _check_whole_names(root: Path, place: Place, found: Kinds, total: int) -> None:
    """Stop at masks that are named after the whole file of their image, a.jpg.png, where images end in several ways.

    Args:
        total: images that could have a mask.

    Raises:
        DataError: they are.
    """
    endings = defaultdict[str, set[str]](set)
    for name in files_in(root / place.images):
        endings[stem_of(name)].add(PurePosixPath(name).suffix)
    if len(set[str]().union(*endings.values())) < 2:
        return
    whole: dict[str, tuple[str, str]] = {}
    count = 0
    for kind, of in found.items():
        for image, mask in of.items():
            own = [end for end in endings[image] if end and re.match(rf"{re.escape(end)}(?![A-Za-z0-9])", kind)]
            count += len(own) > 0
            whole |= {end: (mask, image + kind.removeprefix(end)) for end in own}
    if len(whole) > 1 and 2 * count >= total:
        mask, wanted = whole[min(whole)]
        raise DataError(
            f"{root / place.masks}: the masks are named after the whole files of their images, and these end in "
            f"{first_few(sorted(whole))}: a recipe adds the same ending to the names of all images (data.mask_suffix)",
            f"take the images' endings out of the masks' names, so that {mask} becomes {wanted}, or {_LISTED}",
        )


def _further(images: list[str], masks: set[str], kinds: Kinds) -> dict[str, dict[str, str]]:
    """Further masks of an image by what they end in, where they lie among the images: _mask_1 beside _mask.

    A name of which there is a mask is an image's.
    """
    known, found = set(images), defaultdict[str, dict[str, str]](dict)
    numbered = re.compile(rf"(.+)({'|'.join(map(re.escape, kinds))})([\W_]*\d+)")
    for mask in masks:
        match = numbered.fullmatch(mask)
        if match is None or match[1] not in known or match[1] + match[2] not in masks:
            continue
        if not any(mask + kind in masks for kind in kinds):
            found[match[2] + match[3]][match[1]] = mask
    return {kind: found[kind] for kind in sorted(found) if kind not in kinds}


def stems_in(root: Path, place: Place) -> tuple[list[str], set[str]]:
    """The names of a place's images and masks, without their extensions; pictures of masks are neither."""
    masks = {stem_of(name) for name in files_in(root / place.masks) if name.lower().endswith(MASK_EXTENSIONS)}
    images = [stem_of(name) for name in files_in(root / place.images)]
    left = pictures_of_masks(masks)
    return [name for name in images if name not in left] if place.images == place.masks else images, masks - left


def files_in(folder: Path) -> list[str]:
    """Relative paths of the images and masks in a folder and in its sub-folders."""
    if not folder.is_dir():
        return []
    return image_names(walk(folder, None))
