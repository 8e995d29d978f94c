"""Images that a second annotation file describes, too: told once for each file, not for each image.

Room: convert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emaseg.convert.export import Item, Left
from emaseg.convert.source import split_of_file
from emaseg.data.sets.pairs import first_few
from emaseg.words import counted

__all__ = ["Again", "by_split"]


@dataclass(slots=True)
class Again:
    """Images by the file that is passed over and the one that is used; other: those that have other objects there.

    bare: images of which the file that would be used has no object, and another one has: nobody says which is right.
    """

    same: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    other: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    bare: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, image: str, objects: Sequence[Any], file: str, used: str, known: Sequence[Any]) -> None:
        """Note that `file` describes an image with `objects`, and that those are used that are `known` from `used`."""
        there = set(map(repr, known))
        if objects and not known:
            self.bare[image] = file, used
        else:
            (self.same if all(repr(one) in there for one in objects) else self.other)[file, used].append(image)

    def clear(self, items: Iterable[Item]) -> tuple[Item, ...]:
        """The items without those of `bare` images."""
        return tuple(item for item in items if item.image not in self.bare)

    def notes(self) -> list[str]:
        """On files that say nothing new."""
        return [
            f"{file} describes {len(images):,} of the images of {used} again, with no other objects."
            for (file, used), images in self.same.items()
        ]

    def left(self) -> list[Left]:
        """The files with other objects."""
        return [
            Left(
                file,
                f"objects of {counted(len(images), 'image')} differ from those of {used}, which are used: "
                f"{first_few(images)}; keep the file that is right, or convert them one by one",
            )
            for (file, used), images in self.other.items()
        ] + [
            Left(image, f"{used} has no object of it, and {file} has: remove the one that is wrong")
            for image, (file, used) in self.bare.items()
        ]


def by_split(names: Sequence[str]) -> list[str]:
    """Annotation files, those first that state a split: of two that describe an image the first is used."""
    return sorted(names, key=lambda name: not split_of_file(name))
