"""What a large data set's folders held the last time, kept in the cache and used as long as they have not changed.

Room: data/sets.

To list two million files, pair them by name and check them takes seconds at each start, on a network disk minutes. A
folder's times change whenever a file in it appears, vanishes or is renamed; so the result is stored with the identity
and the times of every folder that was looked into, and of the list file, and used only while all of these are the same.
What changed within the last seconds before the listing is not stored: a later change in the same tick of the disk's
clock would not show. Pixels are never looked at here: a file that is written again under its name is found as ever.

Threat: the cache may be damaged or another program's. A file's digest is compared before anything in it is used, and
whatever cannot be read is no index: the folders are then listed, as they are without one.

    <cache>/folders/<key>.index    a line of JSON, then for each list of names: ends (int64), letters
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emaseg.data.sets.path_lists import Names, PathList, PathPairs
from emaseg.errors import SystemFault
from emaseg.files import atomic, read_bytes
from emaseg.resources import cache_folder

FORMAT = "emaseg folders 3"
LEAST = 10_000  # pairs; a smaller set is listed in a moment
_SETTLED = 3.0  # seconds for which a folder must not have changed: FAT counts in twos
_LONGEST = 4 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds for a phase: (image, mask) pairs, images that are all of the first class, and a word on files
    that are not read. groups: of images, in both phases."""

    pairs: PathPairs
    background: PathList = field(default_factory=lambda: PathList(()))
    left: tuple[str, ...] = ()
    groups: int = 0


def found_files(pairs: Sequence[tuple[Path, Path]], background: Sequence[Path], groups: int) -> Found:
    """Of paths that are whole."""
    images, masks = (_whole(pair[side] for pair in pairs) for side in (0, 1))
    return Found(PathPairs(images, masks), _whole(background), groups=groups)


def _whole(paths: Iterable[Path]) -> PathList:
    return PathList((Names.of(None, map(str, paths)),))


@dataclass(slots=True)
class Visited:
    """The folders and lists that a result depends on, as they were before they were read."""

    states: dict[str, list[int]] = field(default_factory=dict)
    newest: float = 0.0  # time of the last change among them

    def add(self, path: str | os.PathLike[str]) -> None:
        """Remember a folder or file that is about to be read."""
        state = _state(path)
        if state is not None:
            self.states[os.path.abspath(path)] = state
            self.newest = max(self.newest, *(nanoseconds / 1e9 for nanoseconds in state[2:4]))


def _state(path: str | os.PathLike[str]) -> list[int] | None:
    """Device, number and times: both, since programs that copy folders set one of them back."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size]


def index_file(*parts: object) -> Path:
    """Where the result that follows from `parts` (paths, options) is kept."""
    text = json.dumps([FORMAT, os.path.abspath("."), *map(str, parts)])
    return cache_folder() / "folders" / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}.index"


def read_index(path: Path) -> list[Found] | None:
    """What was stored, if it is whole and no folder has changed since; else None."""
    try:
        data = read_bytes(path, _LONGEST)
        digest, body = data[:32], memoryview(data)[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        length = int.from_bytes(body[:8], "little")
        about = json.loads(bytes(body[8 : 8 + length]))
        if about["format"] != FORMAT or any(_state(name) != state for name, state in about["folders"].items()):
            return None
        return list(_read_found(about["found"], body, 8 + length))
    except (OSError, MemoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_index(path: Path, found: Sequence[Found], visited: Visited) -> None:
    """Store a result, if it is large and settled; a cache that cannot be written is done without."""
    many = sum(len(one.pairs) + len(one.background) for one in found) >= LEAST
    if not many or time.time() - visited.newest < _SETTLED:
        return
    lists = [names for one in found for names in _lists(one)]
    about = {
        "format": FORMAT,
        "folders": visited.states,
        "found": [
            {
                "left": one.left,
                "groups": one.groups,
                "names": [{"top": n.top, "count": len(n), "bytes": len(n.letters)} for n in _lists(one)],
            }
            for one in found
        ],
    }
    head = json.dumps(about).encode("ascii")
    pieces = [len(head).to_bytes(8, "little"), head]
    for names in lists:
        pieces += [names.ends.astype("<i8").tobytes(), names.letters]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    with contextlib.suppress(SystemFault), atomic(path) as file:
        file.write(digest.digest())
        file.writelines(pieces)


def _lists(one: Found) -> list[Names]:
    """Images, masks and images without a mask: each of one folder."""
    return [_only(paths) for paths in (one.pairs.images, one.pairs.masks, one.background)]


def _only(paths: PathList) -> Names:
    return paths.parts[0] if paths.parts else Names.of(None, ())


def _read_found(rows: Sequence[Mapping[str, Any]], body: memoryview, at: int) -> Iterator[Found]:
    for row in rows:
        lists = []
        for names in row["names"]:
            middle, end = at + 8 * names["count"], at + 8 * names["count"] + names["bytes"]
            lists.append(
                PathList((Names(names["top"], bytes(body[middle:end]), np.frombuffer(body[at:middle], "<i8")),))
            )
            at = end
        images, masks, background = lists
        yield Found(PathPairs(images, masks), background, tuple(row["left"]), row["groups"])
