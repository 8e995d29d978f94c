"""One image in training and in evaluation: the same file, or one that looks the same.

Room: duplicates. Legend: H W image height and width.

Near-duplicates are found by the signs of the differences between neighbours in a small grey picture (dHash, 16 x 16
signs). Two pictures that differ in few signs share a whole stretch of them, so only pictures with an equal stretch are
compared: a million images need no million comparisons each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.files import open_file, sha256_of

_SIDE = 16  # signs in a row, and rows
_MOST_DIFFERENT = 10  # of the 256 signs of two pictures that look the same
_STRETCHES = _MOST_DIFFERENT + 1  # so that one of them is equal
_FLAT = 6.0  # grey levels of standard deviation, below which the signs are noise
_CROWD = 200  # pictures with one stretch, above which it says nothing


def fingerprint(image: npt.NDArray[np.uint8]) -> int | None:
    """The 256 signs of an image (H, W, 3) as a number; None where it is too flat to be told from others."""
    small = Image.fromarray(image).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    if grey.std() < _FLAT:
        return None
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def same_files(ours: Iterable[Path], theirs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with one content, sorted. Only files of one length can be: the others are never read."""
    own, other = _by_length(ours), _by_length(theirs)
    pairs = []
    for length in own.keys() & other.keys():
        known = {_digest(path): path for path in reversed(own[length])}
        found = ((known.get(_digest(path)), path) for path in other[length])
        pairs += [(one, path) for one, path in found if one is not None]
    return sorted(pairs)


def look_alikes(ours: Sequence[int | None], theirs: Sequence[int | None]) -> list[tuple[int, int]]:
    """Positions (in `ours`, in `theirs`) of fingerprints that look the same: for each of `theirs` the nearest of `ours`."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, signs in enumerate(ours):
        for stretch in _stretches(signs):
            places[stretch].append(position)
    pairs = []
    for position, signs in enumerate(theirs):
        if signs is None:
            continue
        near = {one for stretch in _stretches(signs) if len(places[stretch]) <= _CROWD for one in places[stretch]}
        away = ((((ours[one] or 0) ^ signs).bit_count(), one) for one in near)
        distance, nearest = min(away, default=(_MOST_DIFFERENT + 1, -1))
        if distance <= _MOST_DIFFERENT:
            pairs.append((nearest, position))
    return pairs


def _stretches(signs: int | None) -> Iterator[tuple[int, int]]:
    """Number and signs of each stretch."""
    if signs is None:
        return
    bits = _SIDE * _SIDE
    width = -(-bits // _STRETCHES)
    for number in range(_STRETCHES):
        yield number, signs >> number * width & (1 << width) - 1


def _by_length(files: Iterable[Path]) -> Mapping[int, list[Path]]:
    lengths: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        try:
            lengths[path.stat().st_size].append(path)
        except OSError:  # reported as an image that cannot be read
            continue
    return lengths


def _digest(path: Path) -> str:
    try:
        with open_file(path) as file:
            return sha256_of(file)
    except OSError:
        return str(path)
