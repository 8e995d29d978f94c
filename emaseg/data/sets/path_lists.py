"""Millions of paths in the memory of their letters: as Path objects they would take a gigabyte.

Room: data/sets.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 16  # names that are encoded at once


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Files below one folder. top: the folder, with a separator at its end; "" = the names are whole. letters: their relative paths, one after the other, as the system writes
    them. ends: (N,) int64, where each one ends."""

    top: str
    letters: bytes
    ends: npt.NDArray[np.int64]

    @staticmethod
    def of(top: Path | None, names: Iterable[str]) -> Names:
        """Of POSIX paths below `top`; None = they are whole."""
        rest, pieces, lengths = iter(names), list[bytes](), list[npt.NDArray[np.int64]]()
        while chunk := [os.fsencode(name) for name in islice(rest, _CHUNK)]:
            pieces.append(b"".join(chunk))
            lengths.append(np.fromiter(map(len, chunk), np.int64, len(chunk)))
        ends = np.cumsum(np.concatenate(lengths)) if lengths else np.zeros(0, np.int64)
        folder = "" if top is None or top == Path() else f"{top}{os.sep}".replace(os.sep * 2, os.sep)
        return Names(folder, b"".join(pieces), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """As str(top / name)."""
        start = self.ends[index - 1] if index else 0
        name = os.fsdecode(self.letters[start : self.ends[index]])
        return self.top + (name if os.sep == "/" else name.replace("/", os.sep))

    def paths(self) -> Iterator[str]:
        """All of them in order, each as `path` has it."""
        ends, start = self.ends, 0
        for first in range(0, len(ends), _CHUNK):
            for end in ends[first : first + _CHUNK].tolist():
                name = os.fsdecode(self.letters[start:end])
                yield self.top + (name if os.sep == "/" else name.replace("/", os.sep))
                start = end


@dataclass(frozen=True, slots=True, eq=False)
class PathList(Sequence[Path]):
    """The files of some folders one after the other; a folder may be there several times, which takes no memory."""

    parts: tuple[Names, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Path(self.path(index))

    def path(self, index: int) -> str:
        """As str(self[index])."""
        if len(self.parts) == 1 and 0 <= index < len(self.parts[0].ends):
            return self.parts[0].path(index)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        ends = list(accumulate(map(len, self.parts)))
        part = bisect_right(ends, index)
        return self.parts[part].path(index - (ends[part - 1] if part else 0))

    def paths(self) -> Iterator[str]:
        """All of them in order, each as `path` has it."""
        for part in self.parts:
            yield from part.paths()


@dataclass(frozen=True, slots=True, eq=False)
class PathPairs(Sequence[tuple[Path, Path]]):
    """(image, mask) paths."""

    images: PathList
    masks: PathList

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> tuple[Path, Path]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Path, Path]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Path, Path] | list[tuple[Path, Path]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.images[index], self.masks[index]
