"""Images that a second annotation file describes, too: told once for each file, not for each image.

Room: convert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emaseg.convert.export import Left
from emaseg.convert.source import split_of_file
from emaseg.data.sets.pairs import first_few

__all__ = ["Again", "by_split"]


@dataclass(slots=True)
class Again:
    """Images by the file that is passed over and the one that is used; other: those that have other objects there."""

    same: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    other: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, image: str, objects: Sequence[Any], file: str, used: str, known: Sequence[Any]) -> None:
        """Note that `file` describes an image with `objects`, and that those are used that are `known` from `used`."""
        (self.same if all(one in known for one in objects) else self.other)[file, used].append(image)

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
                f"{len(images):,} images that {used} describes, too, have other objects here, and those of {used} are "
                f"used: {first_few(images)}; keep the file that is right, or convert them one by one",
            )
            for (file, used), images in self.other.items()
        ]


def by_split(names: Sequence[str]) -> list[str]:
    """Annotation files, those first that state a split: of two that describe an image the first is used."""
    return sorted(names, key=lambda name: not split_of_file(name))
