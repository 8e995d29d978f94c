"""Names of images and masks: without their extensions, in one Unicode form, and what one says of the other.

Room: data/sets.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MASK_EXTENSIONS", "Naming", "form", "listed_names", "stem_of"]

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True, slots=True)
class Naming:
    """How a mask is called after its image, in the last part of the path; "" = nothing there."""

    image_prefix: str
    mask_prefix: str
    suffix: str
    image_suffix: str = ""

    @property
    def words(self) -> str:
        begins = f"begin with {self.mask_prefix} (data.mask_prefix)" if self.mask_prefix else ""
        ends = f"end in {self.suffix} (data.mask_suffix)" if self.suffix else ""
        return " and ".join(filter(None, (begins, ends)))

    @property
    def plain(self) -> bool:
        """Whether a mask has its image's name."""
        return not (self.image_prefix or self.mask_prefix or self.suffix or self.image_suffix)

    def mask(self, stem: str) -> str:
        """The mask's path without its extension, of an image's; both in the form of stem_of."""
        if self.plain:
            return stem
        folder, slash, name = stem.rpartition("/")
        core = name.removeprefix(self.image_prefix).removesuffix(self.image_suffix)
        return f"{folder}{slash}{self.mask_prefix}{core}{self.suffix}"

    def is_mask(self, file: str) -> bool:
        if self.plain:
            return file.lower().endswith(MASK_EXTENSIONS)
        stem = stem_of(file).rpartition("/")[2]
        named = stem.startswith(self.mask_prefix) and stem.endswith(self.suffix)
        return named and file.lower().endswith(MASK_EXTENSIONS)


def stem_of(name: str) -> str:
    """The relative path without its extension, in one Unicode form: macOS takes accents apart, other systems do not."""
    dot = name.rfind(".")
    if name.rfind("/") + 1 < dot < len(name) - 1:  # a name that only begins or ends with a dot has no extension
        name = name[:dot]
    return form(name)


def form(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def listed_names(line: str, top: Path) -> list[str]:
    """What a line of a list may mean below the folder `top`: the line itself, or what follows the folder's name in it."""
    name = form(line.replace("\\", "/").removeprefix("./"))
    _, folder, after = f"/{name}".rpartition(f"/{form(top.name)}/")
    return [name, after] if folder else [name]
