"""Whether a resumed run meets the images that it was started with: counts, names, and what is cheap to know of contents.

Room: training.

To read 200,000 images before each start would take minutes. So every file is asked for its size, and of files evenly
spread over the set some bytes are read: that finds a set that was made again, converted, resized or mended, in about a
second. One image changed at equal size between those is not found; but its time is, and that is said. Of a set of more
than 25,000 images 10,000 are asked, evenly spread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import islice
from pathlib import Path

from emaseg.data.dataset import Dataset
from emaseg.data.sets.pairs import PairedFiles
from emaseg.events import Note
from emaseg.files import open_regular

_SAMPLED = 256  # files of which bytes are read
_PIECES = 16  # places of a file that are read
_PIECE = 8192  # bytes of each
_ALL = 25_000  # images of which every file is asked for size and time
_SOME = 10_000  # images whose files are asked where there are more; and names that are hashed at once
_THREADS = 16  # a network disk answers many questions at once as fast as one

_SPLITS = {"training": "", "evaluation": "eval_"}  # and how their keys begin
_FURTHER = "from here on the run is no longer bit for bit the uninterrupted one"
_STALE = "; scores before and after are not of the same images, so best.pt may be stale"


def image_state(train_set: Dataset, eval_set: Dataset) -> dict[str, int | str]:
    """What a checkpoint remembers of the data, for each split:

    images (their number), names (SHA-256 of the names in order, counted from the folder that all of a split share, so
    that a data set that was moved as a whole is the same), files (SHA-256 of the sizes of images and labels and of
    sampled bytes; "" for drawn shapes), newest (the time of the newest file, in whole seconds; 0 where unknown). Where
    not all images are asked, `some_files` stands in the place of `files`.
    """
    state: dict[str, int | str] = dict(image_lists(train_set, eval_set))
    for begin, dataset in zip(_SPLITS.values(), (train_set, eval_set), strict=True):
        files = _files(dataset)
        contents, newest = _contents(files) if files else ("", 0)
        key = "files" if len(dataset) <= _ALL else "some_files"
        state |= {f"{begin}{key}": contents, f"{begin}newest": newest}
    return state


def image_lists(train_set: Dataset, eval_set: Dataset) -> dict[str, int | str]:
    """`images` and `names` of `image_state`: what ranks of one training must have in common, on each machine."""
    state: dict[str, int | str] = {}
    for begin, dataset in zip(_SPLITS.values(), (train_set, eval_set), strict=True):
        state |= {f"{begin}images": len(dataset), f"{begin}names": _names(dataset)}
    return state


def changed_images(then: Mapping[str, int | str], now: Mapping[str, int | str]) -> list[Note]:
    """What to say where a resumed run meets other images than those it was saved with; both as `image_state` has them.

    Silent for checkpoints from before these were kept.
    """
    if "names" not in then:
        return []
    listed = _splits_where(then, now, "names")
    if listed:
        text = (
            f"not the same {listed} images as when this run was saved: {then.get('images')} to train on and "
            f"{then.get('eval_images')} to evaluate then, {now['images']} and {now['eval_images']} now; {_FURTHER}"
        )
        return [Note(text + (_STALE if "evaluation" in listed else ""), warning=True)]
    changed = _splits_where(then, now, "files", "some_files")
    if changed:
        text = f"{changed} images or labels have other contents than when this run was saved; {_FURTHER}"
        return [Note(text + (_STALE if "evaluation" in changed else ""), warning=True)]
    written = [
        split
        for split, begin in _SPLITS.items()
        if int(then.get(f"{begin}newest", now[f"{begin}newest"])) < int(now[f"{begin}newest"])
    ]
    if not written:
        return []
    return [
        Note(
            f"some {' and '.join(written)} images or labels were written again since this run was saved; their names, "
            "sizes and a sample of their bytes are the same"
        )
    ]


def _splits_where(then: Mapping[str, int | str], now: Mapping[str, int | str], *keys: str) -> str:
    """The splits of which one of `keys` is another now; what only one of the two knows is no difference."""
    names = {split: [f"{begin}{key}" for key in keys] for split, begin in _SPLITS.items()}
    return " and ".join(
        split
        for split, own in names.items()
        if any(name in then and name in now and then[name] != now[name] for name in own)
    )


def _names(dataset: Dataset) -> str:
    folders = {name[: max(name.rfind(os.sep), 0)] for name in _each_name(dataset)}
    try:
        shared = len(os.path.commonpath(folders))
    except ValueError:  # no names, or on two drives
        shared = 0
    digest, between, names = hashlib.sha256(), "", _each_name(dataset)
    while some := [name[shared:].replace(os.sep, "/").lstrip("/") for name in islice(names, _SOME)]:
        digest.update((between + "\n".join(some)).encode("utf-8", "surrogateescape"))
        between = "\n"
    return digest.hexdigest()


def _each_name(dataset: Dataset) -> Iterator[str]:
    return dataset.names() if isinstance(dataset, PairedFiles) else map(dataset.name, range(len(dataset)))


def _files(dataset: Dataset) -> list[Path]:
    """The files that a data set reads, in order, or those of images evenly spread over it; [] for one that is drawn."""
    count = len(dataset) if len(dataset) <= _ALL else _SOME
    chosen = (place * len(dataset) // count for place in range(count))
    return [*(path for index in chosen for path in dataset.files(index)), *dataset.common_files]


def _contents(files: Sequence[Path]) -> tuple[str, int]:
    """SHA-256 of all sizes and of sampled bytes, and the newest time in whole seconds."""
    step = max(1, -(-len(files) // _THREADS))
    groups = [files[start : start + step] for start in range(0, len(files), step)]
    count = min(_SAMPLED, len(files))
    sampled = [files[i * len(files) // count] for i in range(count)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="image-state") as pool:
        states = [state for group in pool.map(_sizes_and_times, groups) for state in group]
        samples = list(pool.map(_sample, sampled))
    digest = hashlib.sha256(",".join(str(size) for size, _ in states).encode("ascii"))
    for sample in samples:
        digest.update(sample)
    return digest.hexdigest(), max(0, *(seconds for _, seconds in states))  # some disks date back to 1601


def _sizes_and_times(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Size and time of change of each; what is wrong with a file is said when it is read."""
    found = []
    for path in files:
        try:
            state = os.stat(path)
            found.append((state.st_size, int(state.st_mtime)))
        except OSError:
            found.append((-1, 0))
    return found


def _sample(path: Path) -> bytes:
    """SHA-256 of some pieces of a file, evenly spread, its start and its end among them; small files are read whole."""
    digest = hashlib.sha256()
    try:
        with FileIO(open_regular(path)) as file:
            size = os.fstat(file.fileno()).st_size
            for i in range(_PIECES):
                file.seek(max(0, size - _PIECE) * i // (_PIECES - 1))
                digest.update(file.read(_PIECE))
                if size <= _PIECE:
                    break
    except OSError:
        pass
    return digest.digest()
