"""A data set packed into one HDF5 file for each phase: for file systems on which many small files are slow.

Room: data/sets. Legend: H W image height and width, K classes, N samples.

    bytes   (total,) uint8   the image and label files one after the other, byte for byte
    spans   (N, 4) int64     of each sample: image offset, image bytes, label offset, label bytes
    names   (N, 2) text      its image's and its label's path where they were packed; messages use them
    about   attribute, JSON: classes, palette, what the labels' values mean, layout

That is for other programs. This one reads only the header of its own that lies in front of the HDF5 structure, with
checksums of everything that decides which bytes are read (packed_index).

The structure is complete before the first sample is written and never changes afterwards: packing then fills `bytes`
and the header's state in place, by plain writes. A process killed half-way therefore leaves a sound .part file that the
next run continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import Dataset, Phase, Sample, UInt8
from emaseg.data.files.bands import Bands
from emaseg.data.files.file_sample import FileSample
from emaseg.data.files.label_files import LabelRule, read_label
from emaseg.data.label_sets import label_set
from emaseg.data.sets.packed_index import (
    AGAIN,
    HEADER,
    INDEX_AT,
    MAGIC,
    STATE_AT,
    STATE_END,
    Content,
    checksum,
    read_about,
    read_content,
)
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import DataError, RecipeError
from emaseg.files import fault, open_file
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import PackedData

FORMAT = "emaseg packed 2"
_STEP = 64 << 20  # bytes between two notes of progress on the disk, and of one reading of the checksum


class _Handle:
    """The packed file, opened once by each process and thread that reads it; pickled without its open files."""

    __slots__ = ("files", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[tuple[int, int], BinaryIO] = {}  # a position that two of them share would be anyone's

    def read(self, offset: int, size: int) -> bytes:
        who = os.getpid(), threading.get_ident()
        if who not in self.files:
            self.files[who] = open_file(self.path)
        file = self.files[who]
        file.seek(offset)
        return file.read(size)

    def __reduce__(self) -> tuple[type[_Handle], tuple[Path]]:
        return _Handle, (self.path,)

    def __del__(self) -> None:
        for file in self.files.values():
            file.close()


@dataclass(frozen=True, slots=True, eq=False)
class PackedFiles:
    """Images with labels out of one packed file; satisfies data.dataset.Dataset.

    spans: (N, 4) int64, counted from the file's start. sums: (N, 2) uint32, CRC-32 of image and label file; None in old
    files. names: (image, label) paths at packing. rule: what the labels' values mean. palette: (K, 3) uint8 RGB.
    bands: how images are read; None = as 8-bit RGB.
    """

    path: Path
    spans: npt.NDArray[np.int64]
    sums: npt.NDArray[np.uint32] | None
    names: tuple[tuple[str, str], ...]
    rule: LabelRule
    palette: UInt8
    layout: str
    handle: _Handle
    bands: Bands | None = None
    withheld_by: ClassVar[str] = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    @property
    def common_files(self) -> tuple[Path, ...]:
        return (self.path,)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def name(self, index: int) -> str:
        return f"{self.path}: {self.names[index][0]}"

    def stored(self, index: int) -> tuple[bytes, bytes]:
        """The image file and the label file of a sample, byte for byte.

        Raises:
            DataError: the packed file cannot be read, is cut short, or other bytes were packed there.
        """
        offset, size, label_offset, label_size = self.spans[index].tolist()
        try:
            image, label = self.handle.read(offset, size), self.handle.read(label_offset, label_size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})", "check the disk") from error
        if (len(image), len(label)) != (size, label_size):
            raise DataError(f"{self.path}: the packed file is cut short", f"copy it again, or {AGAIN}")
        if self.sums is not None:
            for stored, wanted, name in zip((image, label), self.sums[index], self.names[index], strict=True):
                if zlib.crc32(stored) != wanted:
                    raise DataError(f"{self.path}: damaged where it holds {name}", f"copy it again, or {AGAIN}")
        return image, label

    def open(self, index: int) -> Sample:
        """Both files are fetched at once; they are decoded when they are asked for."""
        image, label = self.stored(index)
        label_path = Path(f"{self.path}: {self.names[index][1]}")
        read = partial(read_label, label_path, self.rule, label)
        return FileSample(image, self.name(index), read, str(label_path), self.bands)


def packed(data: PackedData, phase: Phase) -> PackedFiles:
    """The packed file of data.train_file or data.eval_file.

    Raises:
        DataError: it is missing, unfinished, damaged or not a packed file.
        RecipeError: it holds other classes than data.classes.
    """
    path = data_root(data.root) / (data.train_file if phase == "train" else data.eval_file)
    found = open_packed(path)
    if found.classes != data.classes:
        raise RecipeError(
            f"{path}: {len(found.classes)} classes ({', '.join(found.classes[:3])}, ...), but data.classes names "
            f"{len(data.classes)} ({', '.join(data.classes[:3])}, ...)",
            "copy the [data] section that data_scripts/pack.py printed",
        )
    return dataclasses.replace(found, palette=label_set(data).palette) if data.palette else found


def open_packed(path: Path) -> PackedFiles:
    """A finished packed file.

    Raises:
        DataError: as `packed`.
    """
    if not os.path.lexists(path):
        partial = os.path.lexists(partial_path(path))
        raise DataError(
            f"{path}: no such file" + ("; packing it was not finished" if partial else ""),
            "run data_scripts/pack.py again" if partial else "check data.root, or make it with data_scripts/pack.py",
        )
    content = read_content(path)
    if not content.sealed:
        raise DataError(
            f"{path}: the packed file is unfinished, or its table of checksums damaged", f"copy it again, or {AGAIN}"
        )
    rule, palette, layout = read_about(content.about, path)
    return PackedFiles(
        path=path,
        spans=content.spans,
        sums=content.sums,
        names=content.names,
        rule=rule,
        palette=palette,
        layout=f"{path}: packed from {layout or 'files'}",
        handle=_Handle(path),
    )


# ---------------------------------------------------------------------------------------------------- packing
def pack(dataset: Dataset, path: Path) -> Iterator[tuple[int, int]]:
    """Pack a data set of image and label files; what an earlier run of the same files left unfinished is continued.

    Yields:
        (samples done, samples in all), after each sample.

    Raises:
        DataError: the data set's labels are not files, a file cannot be read, or changed while it was packed.
        SystemFault: `path` cannot be written.
    """
    if not isinstance(dataset, PairedFiles):
        raise DataError(
            "this data set has no label file for each image, so there are no stored bytes to pack",
            "data sets with an image file and a label file for each sample can be packed",
        )
    if dataset.background:
        raise DataError(
            f"{len(dataset.background):,} images have no mask file to pack, such as {dataset.background[0]}",
            "give them masks of the first class, for example with emaseg convert",
        )
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _continued(partial, dataset) or _begun(partial, dataset)
        yield from _filled(partial, content, dataset)
        os.replace(partial, path)
    except OSError as error:
        raise fault(error, path, "packing") from error


def partial_path(path: Path) -> Path:
    """Where a file lies while it is packed."""
    return path.with_name(path.name + ".part")


def verify(path: Path) -> None:
    """Compare a packed file with its checksum, and the files that it was packed from with it, where they are there.

    Raises:
        DataError: it is unfinished, differs from what was packed, or a source has changed since.
    """
    found, content = open_packed(path), read_content(path)
    try:
        with open_file(path) as file:
            if content.digest != _digest(file, content):
                raise DataError(f"{path}: differs from its checksum: the file is damaged", f"copy it again, or {AGAIN}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the disk") from error
    for index, names in enumerate(found.names):
        for name, stored in zip(names, found.stored(index), strict=True):
            if Path(name).is_absolute() and not _is_same(Path(name), stored):
                raise DataError(f"{path}: {name} has changed since it was packed", f"{AGAIN}, or restore that file")


def _is_same(source: Path, stored: bytes) -> bool:
    """Whether a file holds these bytes, or is not there (any more)."""
    try:
        with open_file(source) as file:
            return file.read(len(stored) + 1) == stored
    except OSError:
        return True


def _digest(file: BinaryIO, content: Content) -> bytes:
    """The SHA-256 of a finished file, as it was computed when it was packed."""
    if content.sums is None:  # an old file: about, names, sizes, and the stored bytes
        digest = hashlib.sha256(content.about.encode())
        digest.update(json.dumps(content.names).encode())
        digest.update((content.spans[:, 1::2]).astype("<i8").tobytes())
        stretches = [(content.start, content.end)]
    else:
        digest, stretches = hashlib.sha256(), [(0, STATE_AT), (STATE_END, content.size)]
    for start, end in stretches:
        for piece in _pieces(file, start, end):
            digest.update(piece)
    return digest.digest()


def _about(dataset: PairedFiles) -> str:
    rule = {**dataclasses.asdict(dataset.rule), "lut": dataset.rule.lut.hex()}
    content = {"rule": rule, "palette": dataset.palette.tolist(), "layout": dataset.layout}
    return json.dumps(content, sort_keys=True)


def _states(dataset: PairedFiles) -> npt.NDArray[np.int64]:
    """(N, 2, 2): bytes and time of change of each image and label file."""
    states = np.empty((len(dataset), 2, 2), np.int64)
    for row, paths in zip(states, dataset.items, strict=True):
        for column, path in enumerate(paths):
            try:
                found = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})", "check the data set") from error
            row[column] = found.st_size, found.st_mtime_ns
    return states


def _begun(partial: Path, dataset: PairedFiles) -> Content:
    """A new file with everything but the samples."""
    import h5py

    states = _states(dataset)
    sizes = states[..., 0]
    ends = np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    total = int(ends[-1, -1])
    names = [[str(path) for path in pair] for pair in dataset.items]
    content = {"about": _about(dataset), "names": names, "sizes": sizes.tolist(), "times": states[..., 1].tolist()}
    index = json.dumps(content).encode()
    block = INDEX_AT
    while block < INDEX_AT + len(index) + 8 * len(names):
        block *= 2  # as HDF5 wants it
    with h5py.File(partial, "w", userblock_size=block) as file:
        file.attrs["format"], file.attrs["about"] = FORMAT, content["about"]
        file["spans"] = np.stack([ends - sizes, sizes], axis=-1).reshape(-1, 4)
        file["names"] = np.array(names, dtype=h5py.string_dtype())
        kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        kind.set_layout(h5py.h5d.CONTIGUOUS)
        kind.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # its place in the file is known from now on
        kind.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        stored = h5py.h5d.create(file.id, b"bytes", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((total,)), kind)
        start = stored.get_offset()
    places = block, len(index), INDEX_AT + len(index), start, total
    signed = checksum(HEADER.pack(MAGIC, *places, b"", 0, b"", b""), index)
    with partial.open("r+b") as file:
        file.seek(INDEX_AT)
        file.write(index)
        file.seek(0)
        file.write(HEADER.pack(MAGIC, *places, signed, 0, b"", b""))
    return read_content(partial)


def _continued(partial: Path, dataset: PairedFiles) -> Content | None:
    """The unfinished file of an earlier run, if it was of the same files and none of them has changed since."""
    if not partial.is_file():
        return None
    try:
        found = read_content(partial)
    except DataError:  # killed before the structure was complete, damaged, or of an earlier version
        return None
    if found.times is None or found.sums is None:
        return None
    names = tuple((str(image), str(label)) for image, label in dataset.items)
    states = np.stack([found.spans[:, 1::2], found.times], axis=-1)
    same = found.about == _about(dataset) and found.names == names and np.array_equal(states, _states(dataset))
    return found if same and _holds_its_samples(partial, found) else None


def _holds_its_samples(partial: Path, content: Content) -> bool:
    """Whether what an earlier run wrote agrees with its checksums."""
    sums = np.zeros((0, 2), np.uint32) if content.sums is None else content.sums
    with partial.open("rb") as file:
        for span, wanted in zip(content.spans[: content.done].tolist(), sums[: content.done].tolist(), strict=True):
            file.seek(span[0])
            if [zlib.crc32(file.read(span[1])), zlib.crc32(file.read(span[3]))] != wanted:
                return False
    return True


def _filled(partial: Path, content: Content, dataset: PairedFiles) -> Iterator[tuple[int, int]]:
    """Write the samples from content.done on, then the checksums."""
    total, unsaved, noted = len(dataset), 0, content.done
    sums = np.zeros((total, 2), "<u4")
    times = np.zeros((total, 2), np.int64) if content.times is None else content.times
    if content.sums is not None:
        sums[:noted] = content.sums[:noted]
    with partial.open("r+b") as file:
        for index in range(noted, total):
            file.seek(int(content.spans[index, 0]))
            for side, path in enumerate(dataset.items[index]):
                stored = _bytes_of(path, int(content.spans[index, 1 + 2 * side]), int(times[index, side]))
                file.write(stored)
                sums[index, side] = zlib.crc32(stored)
                unsaved += len(stored)
            if unsaved >= _STEP or index + 1 == total:
                _write(file, content.sums_at + 8 * noted, sums[noted : index + 1].tobytes())
                noted, unsaved = index + 1, 0
                _write(file, STATE_AT, noted.to_bytes(8, "little"))
            yield index + 1, total
        _write(file, content.sums_at, sums.tobytes())
        digests = hashlib.sha256(sums.tobytes()).digest() + _digest(file, content)
        _write(file, STATE_AT, total.to_bytes(8, "little") + digests)


def _write(file: BinaryIO, place: int, content: bytes) -> None:
    """Write after everything before has reached the disk, and see that this reaches it, too."""
    file.flush()
    os.fsync(file.fileno())
    file.seek(place)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _bytes_of(path: Path, size: int, changed: int) -> bytes:
    try:
        with open_file(path) as file:
            stored, time = file.read(size + 1), os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the data set") from error
    if len(stored) != size or time != changed:
        raise DataError(f"{path}: changed while it was packed", "let nobody write to the data set, and start again")
    return stored


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (piece := file.read(min(_STEP, end - start))):
        start += len(piece)
        yield piece
