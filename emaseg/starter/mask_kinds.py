"""The kinds of masks that images have: what their masks' names add to the images', or the folders that they are in.

Room: starter.

    a_car.png a_road.png     endings _car and _road         car_a.png road_a.png     beginnings car_ and road_
    car/a.png road/a.png     folders car and road

What is rare is a kind, too: rust in 5 of 100 images may be what the data set is about. How frequent kinds are says only
whether there are several.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

__all__ = ["Kinds", "by_beginning", "by_ending", "by_folder", "frequent", "is_word", "two_of_one"]

Kinds = Mapping[str, Mapping[str, str]]  # kind -> image -> its mask of this kind, without extensions

_MANY = 10  # a kind is frequent where one of so many images has a mask of it
_WORD = r"(masks?|labels?|segs?|segmentations?|gt|ground_?truth|annot[a-z]*|class|targets?)"
_WORDS = re.compile(rf"[\W_]*{_WORD}([\W_]+{_WORD})*[\W_]*", re.IGNORECASE)


def by_ending(images: Iterable[str], masks: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Masks by what follows the longest image name that theirs begins with."""
    return _joined(_behind(images, masks), front=False)


def by_beginning(images: Iterable[str], masks: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Masks by what stands before the longest image name that theirs ends with."""
    turned = _behind((name[::-1] for name in images), (name[::-1] for name in masks))
    found = {
        kind[::-1]: {image[::-1]: mask[::-1] for image, mask in of.items()}
        for kind, of in turned.items()
        if "/" not in kind
    }
    return _joined(found, front=True)


def _behind(images: Iterable[str], masks: Iterable[str]) -> dict[str, dict[str, str]]:
    known, found = set(images), defaultdict[str, dict[str, str]](dict)
    for mask in sorted(masks):
        for end in range(len(mask) - 1, 0, -1):
            if mask[:end] in known:
                found[mask[end:]][mask[:end]] = mask
                break
    return dict(found)


def by_folder(images: Iterable[str], masks: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Masks in sub-folders of a mask folder, by these, where they have the images' own names."""
    known, found = set(images), defaultdict[str, dict[str, str]](dict)
    for mask in sorted(masks):
        folder, _, name = mask.partition("/")
        if name in known:
            found[folder][name] = mask
    return {folder: found[folder] for folder in sorted(found)}


def frequent(kinds: Kinds, images: int) -> list[str]:
    """The kinds, sorted, of which at least a tenth of the images have a mask: two or more are several masks each."""
    return sorted(kind for kind, of in kinds.items() if len(of) >= max(1, images / _MANY))


def _joined(kinds: Kinds, *, front: bool) -> dict[str, Mapping[str, str]]:
    """Kinds, sorted, that meet the images' names as the usual ones do: with a letter, a digit, a slash or another sign.

    img_13_car.png without its image is none of img_1: 3_car meets the name with a digit, the usual _car with a sign.
    """
    most = max(map(len, kinds.values()), default=0)
    joints = {_joint(kind, front) for kind, of in kinds.items() if 2 * len(of) >= most}
    return {kind: kinds[kind] for kind in sorted(kinds) if _joint(kind, front) in joints}


def _joint(kind: str, front: bool) -> str:
    """What a kind meets the image's name with: a letter, a digit, the slash of a folder or another sign."""
    char = kind[-1 if front else 0]
    return "letter" if char.isalpha() else "digit" if char.isdigit() else "/" if char == "/" else "sign"


def is_word(kind: str) -> bool:
    """Whether an ending or beginning says no more than that it is a mask's: _mask, label_, -seg-mask."""
    return _WORDS.fullmatch(kind) is not None


def two_of_one(kinds: Kinds) -> bool:
    """Whether an image has masks of two kinds."""
    seen: set[str] = set()
    for of in kinds.values():
        if not seen.isdisjoint(of):
            return True
        seen.update(of)
    return False
