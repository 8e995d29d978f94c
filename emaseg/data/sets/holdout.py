"""Dividing one folder between training and evaluation: every n-th image, or every n-th group of images.

Room: data/sets.

Frames of one video are nearly the same image: with some of them in each phase the scores would be too good. Groups are
counted in the order of their first images; the first that is held out is in mid-group (the third of five). A group
may go through several folders: where one does, or where a folder has too few for both phases, groups are counted over
all folders of a phase; else, and single images always, in each folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from emaseg.errors import DataError

__all__ = ["Part", "group_count", "group_of", "group_total", "held", "held_in_all", "held_places"]

Part = tuple[
    Path, Sequence[str], bool
]  # an image folder, its images without their extensions, and whether it has masks


def held_in_all(parts: Sequence[Part], every: int, group: str, *, train: bool) -> list[list[str]]:
    """The images of one phase in each of its folders, by their stems.

    Args:
        every, group, train: as `held_places` has them.

    Raises:
        DataError: the regular expression fits no image of a folder with masks.
    """
    if not every or not group or len(parts) < 2:
        return [held(stems, every, group, images, train=train) for images, stems, _ in parts]
    for images, stems, masked in parts:
        if masked:
            _check_fits(stems, group, images)
    names = [_names(part, group) for part in parts]
    alone = len(set(chain.from_iterable(names))) == sum(len(set(found)) for found in names) and all(
        len(set(found)) > every // 2 for found, (_, _, masked) in zip(names, parts, strict=True) if masked
    )  # then each folder is divided by itself
    whole = _numbers(chain.from_iterable(names))
    found_stems = []
    for (_, stems, _), found in zip(parts, names, strict=True):
        number = _numbers(found) if alone else whole
        found_stems.append(
            [stem for stem, name in zip(stems, found, strict=True) if (number[name] % every != every // 2) == train]
        )
    return found_stems


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """The number of each group, in the order of their first images."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def group_total(parts: Sequence[Part], group: str) -> int:
    """How many groups there are in all folders; of single images, in the folder that has most."""
    if not group:
        return max(len(stems) for _, stems, _ in parts)
    return len(set(chain.from_iterable(_names(part, group) for part in parts)))


def _names(part: Part, group: str) -> list[str]:
    """The group of each image of a folder. A sub-folder, and an image that does not fit, is this folder's own."""
    top, stems, _ = part
    found = [(stem, group_of(stem, group)) for stem in stems]
    return [f"{top}/{name}" if group == "folder" or name == f"={stem}" else name for stem, name in found]


def held(stems: Sequence[str], every: int, group: str, images: Path, *, train: bool) -> list[str]:
    """The images of one phase, as `held_places`, by their stems."""
    return [stems[place] for place in held_places(stems, every, group, images, train=train)]


def held_places(stems: Sequence[str], every: int, group: str, images: Path, *, train: bool) -> list[int]:
    """The images of one phase: all, or those that every `every`-th is, or is not; as their places in `stems`.

    Args:
        stems: relative paths without their extensions, in order.
        every: of how many images or groups one is for evaluation; 0 = all images are in both phases.
        group: data.holdout_group; "" = each image is a group of its own.
        images: the folder, for messages.
        train: the training images, else those of the evaluation.

    Raises:
        DataError: the regular expression fits no image.
    """
    if not every:
        return list(range(len(stems)))
    if not group:
        return [place for place in range(len(stems)) if (place % every != every // 2) == train]
    groups = [group_of(stem, group) for stem in stems]
    _check_fits(stems, group, images)
    number = _numbers(groups)
    return [place for place, name in enumerate(groups) if (number[name] % every != every // 2) == train]


def _check_fits(stems: Sequence[str], group: str, images: Path) -> None:
    if group != "folder" and not any(re.search(group, stem) for stem in stems):
        raise DataError(
            f"{images}: data.holdout_group = {group!r} fits none of the names, such as {stems[0]}",
            "it is searched in the path below the image folder, without the extension",
        )


def group_of(stem: str, group: str) -> str:
    """The group of an image: its sub-folder, or what the regular expression's first group, or else all of it, fits.

    An image that does not fit is a group of its own.
    """
    if group == "folder":
        return stem.rpartition("/")[0]
    match = re.search(group, stem) if group else None
    return f"={stem}" if match is None else (match[1] or "") if match.re.groups else match[0]


def group_count(stems: Sequence[str], group: str) -> int:
    """How many groups there are."""
    return len(stems) if not group else len({group_of(stem, group) for stem in stems})
