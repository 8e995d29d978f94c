"""The manifest of released weights: what others have published, under which addresses and file names.

Room: weights; never torch. The data are in released.toml, which also explains each key.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from emaseg.errors import RecipeError, nearest


@dataclass(frozen=True, slots=True)
class Released:
    """One published file: the network of a results row, or an ImageNet backbone.

    Attributes:
        name: the row's recipe, or the backbone's own name. row: what it is, for people.
        file: its name in the cache. url: "" where there is no address; `page` then says where to look.
        mirrors: addresses of the same weights under newer names.
        backbone: of a network, the name of the backbone it was trained from; of a backbone, the recipe's kind.
        megabytes: the least size it can have, from its tensors. size (bytes) and sha256: None, "" = not published.
        miou, miou_flip, miou_ms_flip: published, percent.
    """

    name: str
    kind: Literal["network", "backbone"]
    row: str
    file: str
    url: str
    format: str
    backbone: str
    megabytes: int
    mirrors: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    dataset: str = ""
    model: str = ""
    miou: float | None = None
    miou_flip: float | None = None
    miou_ms_flip: float | None = None
    size: int | None = None
    sha256: str = ""
    page: str = ""
    note: str = ""

    @property
    def least(self) -> int:
        """Bytes below which a file cannot be these weights: their tensors' size, with a little room for rounding."""
        return self.megabytes * 950_000

    @property
    def most(self) -> int:
        """Bytes above which it is not worth storing: the tensors four times (an optimiser's state may be with them)
        and 100 MB for what else there may be, but never more than 16 GB."""
        return self.size if self.size is not None else min(self.megabytes * 4_000_000 + 100_000_000, 16_000_000_000)

    @property
    def files(self) -> tuple[str, ...]:
        """Every name that the file goes by, the cache's first."""
        return tuple(dict.fromkeys((self.file, *(file_name(url) for url in self.mirrors))))

    @property
    def what(self) -> str:
        """The row and its published mIoU, for messages."""
        return f"{self.row}, published mIoU {self.score}" if self.score else self.row

    @property
    def score(self) -> str:
        """The published mIoU of one scale, else the next best with its protocol; "" where there is none."""
        for value, protocol in ((self.miou, ""), (self.miou_flip, " flip"), (self.miou_ms_flip, " ms+flip")):
            if value is not None:
                return f"{value:.2f}{protocol}"
        return ""


@cache
def _manifest() -> tuple[str, tuple[Released, ...]]:
    """The default's name and all entries, networks first."""
    text = importlib.resources.files("emaseg.weights").joinpath("released.toml").read_text("utf-8")
    content = tomllib.loads(text)
    networks = tuple(_entry("network", table) for table in content["network"])
    return content["default"], networks + tuple(_entry("backbone", table) for table in content["backbone"])


def _entry(kind: Literal["network", "backbone"], table: dict[str, Any]) -> Released:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Released(**{"kind": kind, "file": file_name(table["url"]), **plain})


def released() -> tuple[Released, ...]:
    """Every entry, networks first, in the order of the published tables."""
    return _manifest()[1]


def default() -> Released:
    """The network that predicts when none is named."""
    return by_name(_manifest()[0])


def by_name(name: str) -> Released:
    """The entry of a recipe's or a backbone's name.

    Raises:
        RecipeError: nothing released has this name.
    """
    for entry in released():
        if entry.name == name:
            return entry
    hint = nearest(name, [entry.name for entry in released()]) or "see emaseg download-weights --list"
    raise RecipeError(f"{name}: no released weights of this name", hint)


def by_reference(text: str) -> Released | None:
    """The entry that a recipe means by an address, a file name or an entry's name; None when it is none of ours.

    An address must be the owner's: another one with the same last part is another file.
    """
    for entry in released():
        known = (entry.url, *entry.mirrors) if "://" in text else (entry.name, *entry.files)
        if text and text in known:
            return entry
    return None


def file_name(url: str) -> str:
    """The last part of an address's path."""
    return PurePosixPath(urlsplit(url).path).name
