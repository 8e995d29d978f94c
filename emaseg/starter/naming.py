"""How masks are called after their images, as the names in two folders, or in one, show.

Room: starter.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.files.images import image_names
from emaseg.data.sets.folder import walk
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, stem_of
from emaseg.starter.several import SeveralMasks, endings, rival_endings

__all__ = ["Place", "files_in", "naming_of", "stems_in"]

_MASK_PREFIX = re.compile(r"(mask|label|seg|gt|annot|target)", re.IGNORECASE)
_MASK_ENDING = re.compile(r"(masks?|labels?|seg|gt|annot[a-z]*|targets?)$", re.IGNORECASE)
_SUFFIX = re.compile(r"[^A-Za-z0-9]?.*[A-Za-z].*")  # of a mask beside its image: 1 and 10 are two images


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one phase lie, below the root: its image and mask folders, and a list file or ""."""

    images: str
    masks: str
    listing: str = ""


def naming_of(root: Path, place: Place) -> Naming | None:
    """How masks are called after their images; None where hardly any image has a mask.

    Raises:
        DataError: images have masks of several endings.
    """
    suffix = _suffix(root, place)
    return _affixes(root, place) if suffix is None else Naming("", "", suffix)


def _affixes(root: Path, place: Place) -> Naming | None:
    """Of image_001.jpg and mask_001.png what all names begin with, of 001_sat.jpg and 001_mask.png what they end in,
    where the rest is alike; in one folder only where masks have a word for masks there."""
    images, masks = stems_in(root, place)
    for ends in (False, True):
        some, others = images, masks
        if place.images == place.masks:
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
        if second and (first or not ends) and 2 * found >= max(len(some), len(others)):
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
        DataError: images have masks of several endings.
    """
    one_folder = place.images == place.masks
    images, masks = stems_in(root, place)
    if not images or not masks:
        return None
    if not one_folder and 2 * sum(name in masks for name in images) >= min(len(images), len(masks)):
        return ""
    counts = endings(images, masks)
    if one_folder:
        counts = Counter({ending: count for ending, count in counts.items() if _SUFFIX.fullmatch(ending)})
    if not counts:
        return None
    suffix, count = min(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
    total = len(images) - count if one_folder else min(len(images), len(masks))
    several = rival_endings(counts, len(images) - len(masks) if one_folder else len(images))
    if one_folder and len(several) > 1:
        total = len(images) - sum(counts[ending] for ending in several)
    if 2 * count < total:
        return None
    kinds = several if len(several) > 1 else [suffix]
    if one_folder:
        kinds = [*kinds, *_further(images, masks, kinds)]
    if len(kinds) > 1:
        raise SeveralMasks(root, root / place.images, root / place.masks, kinds, "ending")
    return suffix


def _further(images: list[str], masks: set[str], kinds: list[str]) -> list[str]:
    """What further masks of an image end in, where they lie among the images: _mask_1 beside _mask.

    A name of which there is a mask is an image's.
    """
    known, found = set(images), set[str]()
    numbered = re.compile(rf"(.+)({'|'.join(map(re.escape, kinds))})([\W_]*\d+)")
    for mask in masks:
        match = numbered.fullmatch(mask)
        if match is None or match[1] not in known or match[1] + match[2] not in masks:
            continue
        if not any(mask + kind in masks for kind in kinds):
            found.add(match[2] + match[3])
    return sorted(found - set(kinds))


def stems_in(root: Path, place: Place) -> tuple[list[str], set[str]]:
    """The names of a place's images and masks, without their extensions."""
    masks = {stem_of(name) for name in files_in(root / place.masks) if name.lower().endswith(MASK_EXTENSIONS)}
    return [stem_of(name) for name in files_in(root / place.images)], masks


def files_in(folder: Path) -> list[str]:
    """Relative paths of the images and masks in a folder and in its sub-folders."""
    if not folder.is_dir():
        return []
    return image_names(walk(folder, None))
