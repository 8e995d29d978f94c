"""A data set packed into one HDF5 file for each part: for file systems on which many small files are slow.

Room: data. Imports errors, files, resources, the schema, h5py and the data room's readers. Legend: H W image height
and width, K classes, N samples.

    bytes   (total,) uint8   the image and label files one after the other, byte for byte
    spans   (N, 4) int64     of each sample: image offset, image bytes, label offset, label bytes
    names   (N, 2) text      its image's and its label's path where they were packed; messages use them
    state   (40,) uint8      samples written so far (8 bytes, little endian), then the SHA-256 of it all
    about   attribute, JSON: classes, palette, what the labels' values mean, layout

The structure is complete before the first sample is written and never changes afterwards: packing then fills `bytes`
and `state` in place, by plain writes. A process killed half-way therefore leaves a sound .part file that the next run
continues, and readers need no HDF5 library in their inner loop.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import h5py
import numpy as np
import numpy.typing as npt

from emaseg.data.files.label_files import LabelRule, read_label
from emaseg.data.files.sample import FileSample
from emaseg.data.labels import label_set
from emaseg.data.sample import Dataset, Sample, UInt8
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import DataError, RecipeError
from emaseg.files import fault
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.schema import PackedData

FORMAT = "emaseg packed 1"
_STEP = 64 << 20  # bytes between two notes of progress on the disk, and of one reading of the checksum
_AGAIN = "pack it again with data_scripts/pack.py"


class _Handle:
    """The packed file, opened once by each process and thread that reads it; pickled without its open files."""

    __slots__ = ("files", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[tuple[int, int], BinaryIO] = {}  # a position that two of them share would be anyone's

    def read(self, offset: int, size: int) -> bytes:
        who = os.getpid(), threading.get_ident()
        if who not in self.files:
            self.files[who] = self.path.open("rb")
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
    """Images with labels out of one packed file; satisfies sample.Dataset.

    spans: (N, 4) int64, counted from the file's start. names: (image, label) paths at packing. rule: what the labels'
    values mean. palette: (K, 3) uint8 RGB.
    """

    path: Path
    spans: npt.NDArray[np.int64]
    names: tuple[tuple[str, str], ...]
    rule: LabelRule
    palette: UInt8
    layout: str
    handle: _Handle
    withheld_by: ClassVar[str] = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.path}: {self.names[index][0]}"

    def stored(self, index: int) -> tuple[bytes, bytes]:
        """The image file and the label file of a sample, byte for byte.

        Raises:
            DataError: the packed file cannot be read, or is cut short.
        """
        offset, size, label_offset, label_size = self.spans[index].tolist()
        try:
            image, label = self.handle.read(offset, size), self.handle.read(label_offset, label_size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})", "check the disk") from error
        if (len(image), len(label)) != (size, label_size):
            raise DataError(f"{self.path}: the packed file is cut short", f"copy it again, or {_AGAIN}")
        return image, label

    def open(self, index: int) -> Sample:
        """Both files are fetched at once; they are decoded when they are asked for."""
        image, label = self.stored(index)
        label_path = Path(f"{self.path}: {self.names[index][1]}")
        return FileSample(image, self.name(index), partial(read_label, label_path, self.rule, label), str(label_path))


def packed(data: PackedData, part: Literal["train", "eval"]) -> PackedFiles:
    """The packed file of data.train_file or data.eval_file.

    Raises:
        DataError: it is missing, unfinished, damaged or not a packed file.
        RecipeError: it holds other classes than data.classes.
    """
    path = data_root(data.root) / (data.train_file if part == "train" else data.eval_file)
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
    if not path.is_file():
        part = part_of(path).is_file()
        raise DataError(
            f"{path}: no such file" + ("; packing it was not finished" if part else ""),
            "run data_scripts/pack.py again" if part else "check data.root, or make it with data_scripts/pack.py",
        )
    content = _structure(path)
    about = content.about
    if content.end > path.stat().st_size or content.done != len(content.names):
        raise DataError(f"{path}: the packed file is cut short", f"copy it again, or {_AGAIN}")
    return PackedFiles(
        path=path,
        spans=content.spans,
        names=content.names,
        rule=_rule(about["rule"]),
        palette=np.array(about["palette"], np.uint8),
        layout=f"{path}: packed from {about['layout'] or 'files'}",
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
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _continued(part, dataset) or _begun(part, dataset)
        yield from _filled(part, content, dataset)
        os.replace(part, path)
    except OSError as error:
        raise fault(error, path, "packing") from error


def part_of(path: Path) -> Path:
    """Where a file lies while it is packed."""
    return path.with_name(path.name + ".part")


def verify(path: Path) -> None:
    """Compare a packed file with its checksum.

    Raises:
        DataError: it is unfinished, or differs from what was packed.
    """
    open_packed(path)
    content = _structure(path)
    digest = _head(content)
    with path.open("rb") as file:
        for piece in _pieces(file, content.start, content.end):
            digest.update(piece)
        file.seek(content.state + 8)
        if file.read(32) != digest.digest():
            raise DataError(f"{path}: differs from its checksum: the file is damaged", f"copy it again, or {_AGAIN}")


@dataclass(frozen=True, slots=True)
class _Structure:
    """What a packed file says of itself. spans count from the file's start; start, end: of all stored bytes; state:
    place of the state; done: samples written."""

    text: str  # the attribute `about`
    spans: npt.NDArray[np.int64]
    names: tuple[tuple[str, str], ...]
    start: int
    end: int
    state: int
    done: int

    @property
    def about(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.text)
        return content


def _structure(path: Path) -> _Structure:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise DataError(f"{path}: an HDF5 file, but not one that data_scripts/pack.py made", _AGAIN)
            names = file["names"].asstr()[()].reshape(-1, 2).tolist()
            start, size = file["bytes"].id.get_offset(), file["bytes"].shape[0]
            spans = file["spans"][()]
            spans[:, ::2] += start
            return _Structure(
                text=str(file.attrs["about"]),
                spans=spans,
                names=tuple((image, label) for image, label in names),
                start=start,
                end=start + size,
                state=file["state"].id.get_offset(),
                done=int.from_bytes(file["state"][:8].tobytes(), "little"),
            )
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: damaged, or not a packed file ({error})", _AGAIN) from error


def _about(dataset: PairedFiles) -> str:
    rule = {**dataclasses.asdict(dataset.rule), "lut": dataset.rule.lut.hex()}
    content = {"rule": rule, "palette": dataset.palette.tolist(), "layout": dataset.layout}
    return json.dumps(content, sort_keys=True)


def _rule(stored: dict[str, Any]) -> LabelRule:
    def colours(rows: list[list[int]]) -> tuple[tuple[int, int, int], ...]:
        return tuple((r, g, b) for r, g, b in rows)

    return LabelRule(
        classes=tuple(stored["classes"]),
        lut=bytes.fromhex(stored["lut"]),
        palette=colours(stored["palette"]),
        ignore_colours=colours(stored["ignore_colours"]),
        layout=stored["layout"],
        empty_ok=stored["empty_ok"],
        mat=tuple(stored["mat"]),
    )


def _sizes(dataset: PairedFiles) -> npt.NDArray[np.int64]:
    """(N, 2) bytes of each image and label file."""
    sizes = np.empty((len(dataset), 2), np.int64)
    for row, paths in zip(sizes, dataset.items, strict=True):
        for column, path in enumerate(paths):
            try:
                row[column] = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})", "check the data set") from error
    return sizes


def _begun(part: Path, dataset: PairedFiles) -> _Structure:
    """A new file with everything but the samples."""
    sizes = _sizes(dataset)
    ends = np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    spans = np.stack([ends - sizes, sizes], axis=-1).reshape(-1, 4)
    with h5py.File(part, "w") as file:
        file.attrs["format"], file.attrs["about"] = FORMAT, _about(dataset)
        file["spans"] = spans
        file["names"] = np.array([[str(path) for path in pair] for pair in dataset.items], dtype=h5py.string_dtype())
        for name, size in (("state", 40), ("bytes", int(ends[-1, -1]))):
            kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            kind.set_layout(h5py.h5d.CONTIGUOUS)
            kind.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # its place in the file is known from now on
            kind.set_fill_time(h5py.h5d.FILL_TIME_NEVER if name == "bytes" else h5py.h5d.FILL_TIME_ALLOC)
            space = h5py.h5s.create_simple((size,))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_UINT8, space, kind)
    return _structure(part)


def _continued(part: Path, dataset: PairedFiles) -> _Structure | None:
    """The unfinished file of an earlier run, if it was of the same files."""
    if not part.is_file():
        return None
    try:
        found = _structure(part)
    except DataError:  # killed before the structure was complete
        return None
    names = tuple((str(image), str(label)) for image, label in dataset.items)
    same = found.text == _about(dataset) and found.names == names
    return found if same and np.array_equal(found.spans[:, 1::2], _sizes(dataset)) else None


def _filled(part: Path, content: _Structure, dataset: PairedFiles) -> Iterator[tuple[int, int]]:
    """Write the samples from content.done on, then the checksum."""
    digest, total, unsaved = _head(content), len(dataset), 0
    with part.open("r+b") as file:
        first = int(content.spans[content.done, 0]) if content.done < total else content.end
        for piece in _pieces(file, content.start, first):
            digest.update(piece)
        for index in range(content.done, total):
            file.seek(first)
            for path, size in zip(dataset.items[index], content.spans[index, 1::2].tolist(), strict=True):
                stored = _bytes_of(path, size)
                file.write(stored)
                digest.update(stored)
                first, unsaved = first + size, unsaved + size
            if unsaved >= _STEP or index + 1 == total:
                _note(file, content.state, (index + 1).to_bytes(8, "little"))
                unsaved = 0
            yield index + 1, total
        _note(file, content.state, total.to_bytes(8, "little") + digest.digest())


def _note(file: BinaryIO, place: int, state: bytes) -> None:
    """Write `state` after the samples that it speaks of have reached the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.seek(place)
    file.write(state)
    file.flush()
    os.fsync(file.fileno())


def _bytes_of(path: Path, size: int) -> bytes:
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the data set") from error
    if len(stored) != size:
        raise DataError(f"{path}: changed while it was packed", "let nobody write to the data set, and start again")
    return stored


def _head(content: _Structure) -> hashlib._Hash:
    """The checksum's beginning: everything but the stored bytes."""
    digest = hashlib.sha256(content.text.encode())
    digest.update(json.dumps(content.names).encode())
    digest.update((content.spans[:, 1::2]).astype("<i8").tobytes())
    return digest


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (piece := file.read(min(_STEP, end - start))):
        start += len(piece)
        yield piece
