"""Packed files that are damaged, forged or of an earlier version, and sources that change: never other bytes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emaseg.data.sets import packed_hdf5, packed_index
from emaseg.data.sets.packed import _about, open_packed, pack, partial_path, verify
from emaseg.data.sets.packed_index import HEADER, INDEX_AT, STATE_AT, checksum
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import DataError
from tests.data.sets.test_packed import CLASSES, files, packed_file


def old_file(dataset: PairedFiles, path: Path, **changes: Any) -> None:
    """As earlier versions wrote it; `changes` replace a table or an attribute."""
    stored = [[path.read_bytes() for path in pair] for pair in dataset.items]
    sizes = np.array([[len(content) for content in pair] for pair in stored])
    ends = np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    names = [[str(path) for path in pair] for pair in dataset.items]
    content = b"".join(b"".join(pair) for pair in stored)
    digest = hashlib.sha256(
        _about(dataset).encode() + json.dumps(names).encode() + sizes.astype("<i8").tobytes() + content
    )
    state = len(names).to_bytes(8, "little") + digest.digest()
    with h5py.File(path, "w") as file:
        tables = {
            "spans": np.stack([ends - sizes, sizes], axis=-1).reshape(-1, 4),
            "names": np.array(names, dtype=h5py.string_dtype()),
            "state": np.frombuffer(state, np.uint8),
            "bytes": np.frombuffer(content, np.uint8),
        }
        for name, table in (tables | {key: value for key, value in changes.items() if key in tables}).items():
            if table is None:
                file.create_group(name)
            else:
                file[name] = table
        file.attrs["format"] = changes.get("format", "emaseg packed 1")
        file.attrs["about"] = changes.get("about", _about(dataset))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_packed(path)
    assert caught.value.hint
    for word in (str(path), *words):
        assert word in caught.value.message


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its structure by HDF5's library, in a process of its own; its samples have no checksums of their own."""
    dataset = files(tmp_path / "files")
    old_file(dataset, tmp_path / "old.h5")
    found = open_packed(tmp_path / "old.h5")
    assert (len(found), found.classes, found.rule) == (5, CLASSES, dataset.rule)
    for i, (image, label) in enumerate(dataset.items):
        assert found.stored(i) == (image.read_bytes(), label.read_bytes())
    verify(tmp_path / "old.h5")


def about(**changes: object) -> Callable[[PairedFiles], dict[str, object]]:
    def changed(dataset: PairedFiles) -> dict[str, object]:
        content = json.loads(_about(dataset))
        content["rule"] |= {key: value for key, value in changes.items() if key in content["rule"]}
        content |= {key: value for key, value in changes.items() if key not in content["rule"] or key == "rule"}
        return {"about": json.dumps(content)}

    return changed


SPANS = np.array([[0, 9, 9, 9]] * 5)
DAMAGE: dict[str, Callable[[PairedFiles], dict[str, object]]] = {
    "no JSON": lambda _: {"about": "{"},
    "another JSON value": lambda _: {"about": "[1, 2]"},
    "deep JSON": lambda _: {"about": "[" * 20_000},
    "a number as attribute": lambda _: {"about": 3},
    "no rule": about(rule=None),
    "classes that are numbers": about(classes=[1, 2, 3]),
    "no classes": about(classes=[]),
    "a table that is no text": about(lut=5),
    "a table that is too short": about(lut="00"),
    "a table of strange digits": about(lut="zz" * 256),
    "MATLAB names that are numbers": about(mat=[1]),
    "a flag that is text": about(empty_ok="yes"),
    "colours beyond 255": about(ignore_colours=[[1, 2, 300]]),
    "colours of two numbers": about(ignore_colours=[[1, 2]]),
    "overlapping samples": lambda _: {"spans": SPANS},
    "negative sizes": lambda _: {"spans": -SPANS},
    "huge sizes": lambda _: {"spans": np.full((5, 4), 2**62)},
    "spans of another shape": lambda _: {"spans": np.zeros((5, 3), np.int64)},
    "spans that are fractions": lambda _: {"spans": np.zeros((5, 4))},
    "fewer spans than names": lambda _: {"spans": SPANS[:2]},
    "names that are a group": lambda _: {"names": None},
    "names that are numbers": lambda _: {"names": np.zeros((5, 2))},
    "one name a sample": lambda _: {"names": np.array(["a"] * 5, dtype=h5py.string_dtype())},
    "a short state": lambda _: {"state": np.zeros(3, np.uint8)},
    "a state of other numbers": lambda _: {"state": np.zeros(40)},
    "bytes of other numbers": lambda _: {"bytes": np.zeros(2000, np.int32)},
    "bytes of two dimensions": lambda _: {"bytes": np.zeros((40, 50), np.uint8)},
    "fewer bytes": lambda _: {"bytes": np.zeros(10, np.uint8)},
    "another format": lambda _: {"format": "emaseg packed 9"},
}


@pytest.mark.parametrize(
    "kind", ["deep JSON", "overlapping samples", "names that are a group", "fewer bytes", "no rule"]
)
def test_a_damaged_structure_of_an_earlier_version(kind: str, tmp_path: Path) -> None:
    """In the process that reads it, and in what it answers."""
    old_file(files(tmp_path / "files"), tmp_path / "old.h5", **DAMAGE[kind](files(tmp_path / "files")))
    refused(tmp_path / "old.h5")


def test_every_damaged_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a process for each: HDF5's library is sound with files that it wrote itself."""

    def here(path: Path, most: int) -> bytes:
        answer = json.dumps(packed_hdf5.answer(str(path))).encode()
        assert len(answer) <= most
        return answer

    monkeypatch.setattr(packed_index, "_answer", here)
    dataset = files(tmp_path / "files")
    old_file(dataset, tmp_path / "old.h5")
    assert len(open_packed(tmp_path / "old.h5")) == 5
    for number, change in enumerate(DAMAGE.values()):
        path = tmp_path / f"{number}.h5"
        old_file(dataset, path, **change(dataset))
        refused(path)


def test_names_that_unfold_to_more_than_the_file(tmp_path: Path) -> None:
    """Protects the memory of the process that asks: of a small file that unfolds to very much it takes a little."""
    path = tmp_path / "old.h5"
    old_file(files(tmp_path / "files"), path)
    with h5py.File(path, "a") as file:
        del file["names"]
        file.create_dataset("names", data=np.full((40, 2), b"a" * 500_000), chunks=(4, 2), compression="gzip")
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        refused(path, "damaged, or not a packed file")
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["virtual", "external", "link", "large"])
def test_tables_that_lie_elsewhere_or_are_huge(kind: str, tmp_path: Path) -> None:
    """Protects other files from being read through a packed one, and the memory of the process that reads its structure."""
    path, other = tmp_path / "old.h5", tmp_path / "other.h5"
    for place in (path, other):
        old_file(files(tmp_path / "files"), place)
    assert "error" not in packed_hdf5.answer(str(path))
    with h5py.File(path, "a") as file:
        spans, key = file["spans"][()], "names" if kind == "large" else "spans"
        del file[key]
        if kind == "virtual":
            layout = h5py.VirtualLayout(spans.shape, spans.dtype)
            layout[:] = h5py.VirtualSource(other, "spans", spans.shape)
            file.create_virtual_dataset("spans", layout)
        elif kind == "external":
            (tmp_path / "raw").write_bytes(spans.tobytes())
            file.create_dataset("spans", spans.shape, spans.dtype, external=[(tmp_path / "raw", 0, spans.nbytes)])
        elif kind == "link":
            file["spans"] = h5py.ExternalLink(str(other), "spans")
        else:
            file.create_dataset("names", (5, 2), "S200000000", compression="gzip", chunks=(1, 1))
    assert packed_hdf5.answer(str(path)).keys() == {"error"}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; time.sleep(60)", "could not be read in 0.5 seconds"),
        ("import os, time; os.close(1); time.sleep(60)", "could not be read in 0.5 seconds"),
        ("while True: print('a' * 10_000)", "hold more than the file"),
        ("import sys; sys.stderr.write('a' * 1_000_000); sys.exit(3)", "fails to read"),
    ],
)
def test_a_library_that_does_not_end_or_fails(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects from waiting for ever, from an answer without an end, and from a process that is left behind."""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(packed_hdf5, "__file__", str(tmp_path / "program.py"))
    if "60" in program:
        monkeypatch.setattr(packed_index, "_SECONDS", 0.5)
    old_file(files(tmp_path / "files"), tmp_path / "old.h5")
    refused(tmp_path / "old.h5", words)


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    """Wherever it lies: what is read is what was packed or an error, and --verify refuses the file."""
    path = tmp_path / "train.h5"
    found = packed_file(files(tmp_path / "files"), path)
    whole, samples = path.read_bytes(), [found.stored(i) for i in range(5)]
    places = [*range(HEADER.size), *range(INDEX_AT, len(whole), len(whole) // 150)]
    for place in places:
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 0x41,)) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"train\.h5"):
            verify(path)
        try:
            changed = open_packed(path)
            for i, sample in enumerate(samples):
                assert changed.stored(i) == sample
            assert (changed.names, changed.rule) == (found.names, found.rule)
        except DataError:
            pass


def test_a_damaged_sample_is_named_when_it_is_read(tmp_path: Path) -> None:
    """Without --verify: a flipped bit in raw pixels would decode without an error."""
    path = tmp_path / "train.h5"
    found = packed_file(files(tmp_path / "files"), path)
    content = bytearray(path.read_bytes())
    content[int(found.spans[2, 0]) + 20] ^= 1
    path.write_bytes(content)
    assert found.stored(1)
    for read in (found.stored, found.open):
        with pytest.raises(DataError, match=r"train\.h5: damaged where it holds .*2\.png"):
            read(2)


def signed(content: bytes, **places: int) -> bytes:
    """A file with another header whose checksum is right."""
    names = ("block", "length", "sums", "start", "total")
    values = list(HEADER.unpack_from(content))
    for name, value in places.items():
        values[1 + names.index(name)] = value
    values[6] = checksum(HEADER.pack(*values), content[INDEX_AT : INDEX_AT + min(values[2], len(content))])
    return HEADER.pack(*values) + content[HEADER.size :]


def test_a_forged_header_reads_nothing_beyond_the_file(tmp_path: Path) -> None:
    """Its author can make the checksum right; places and sizes are compared with the file all the same."""
    path = tmp_path / "train.h5"
    packed_file(files(tmp_path / "files"), path)
    whole = path.read_bytes()
    path.write_bytes(signed(whole))
    assert len(open_packed(path)) == 5
    for name in ("block", "length", "sums", "start", "total"):
        for value in (0, 7, len(whole), 2**63, 2**64 - 1):
            path.write_bytes(signed(whole, **{name: value}))
            refused(path)
    length = struct.unpack_from("<Q", whole, 24)[0]
    index = json.loads(whole[INDEX_AT : INDEX_AT + length])
    for key, value in (("sizes", []), ("sizes", [[1, 2]] * 5), ("names", [[1, 2]] * 5), ("times", None), ("about", 3)):
        forged = json.dumps(index | {key: value}).encode().ljust(length)[:length]
        path.write_bytes(signed(whole[:INDEX_AT] + forged + whole[INDEX_AT + length :]))
        refused(path)
    path.write_bytes(signed(whole[:INDEX_AT] + b"[" * length + whole[INDEX_AT + length :]))
    refused(path)


def test_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    packed_file(files(tmp_path / "files"), path)
    whole = path.read_bytes()
    for end in (0, 7, 100, INDEX_AT, len(whole) // 2):
        path.write_bytes(whole[:end])
        refused(path)


def test_hdf5s_structure_is_not_needed_to_read(tmp_path: Path) -> None:
    """A wrong byte there, at which the library may loop for ever, changes nothing; --verify finds it."""
    path = tmp_path / "train.h5"
    found = packed_file(files(tmp_path / "files"), path)
    content = bytearray(path.read_bytes())
    block, start = struct.unpack_from("<Q", content, 16)[0], int(found.spans[0, 0])
    content[block:start] = bytes(start - block)
    path.write_bytes(content)
    assert open_packed(path).stored(3) == found.stored(3)
    with pytest.raises(DataError, match="checksum"):
        verify(path)


# ------------------------------------------------------------------------------------------- sources that change
def changed(path: Path) -> bytes:
    """The same size and another last byte, at another time."""
    content = path.read_bytes()[:-1] + bytes((path.read_bytes()[-1] ^ 1,))
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    return content


def test_a_source_that_changed_after_packing_is_found_by_verify(tmp_path: Path) -> None:
    """Also at equal size; sources that are gone do not matter."""
    dataset, path = files(tmp_path / "files"), tmp_path / "train.h5"
    packed_file(dataset, path)
    dataset.items[0][0].unlink()
    verify(path)
    changed(dataset.items[3][1])
    with pytest.raises(DataError, match=r"3_mask\.png has changed since it was packed"):
        verify(path)


def test_continuing_notices_sources_that_changed_at_equal_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it starts again: what was packed before is no longer what is there."""
    monkeypatch.setattr("emaseg.data.sets.packed._STEP", 1)
    dataset, path = files(tmp_path / "files"), tmp_path / "train.h5"
    stopped = pack(dataset, path)
    assert [next(stopped) for _ in range(3)][-1] == (3, 5)
    stopped.close()  # type: ignore[attr-defined]
    content = changed(dataset.items[0][0])
    assert next(iter(pack(dataset, path))) == (1, 5)
    assert packed_file(dataset, path).stored(0)[0] == content
    verify(path)


def test_a_source_that_changes_while_it_is_packed(tmp_path: Path) -> None:
    dataset, path = files(tmp_path / "files"), tmp_path / "train.h5"
    packing = pack(dataset, path)
    next(packing)
    changed(dataset.items[2][1])
    with pytest.raises(DataError, match="changed while it was packed"):
        list(packing)


def test_a_part_whose_samples_are_damaged_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one whose count of samples is wrong."""
    monkeypatch.setattr("emaseg.data.sets.packed._STEP", 1)
    dataset, path = files(tmp_path / "files"), tmp_path / "train.h5"
    stopped = pack(dataset, path)
    assert [next(stopped) for _ in range(3)][-1] == (3, 5)
    stopped.close()  # type: ignore[attr-defined]
    part = partial_path(path)
    whole = part.read_bytes()
    start = struct.unpack_from("<Q", whole, 40)[0]
    for place, value in ((start + 5, whole[start + 5] ^ 1), (STATE_AT, 5), (STATE_AT + 3, 1)):
        part.write_bytes(whole[:place] + bytes((value,)) + whole[place + 1 :])
        assert next(iter(pack(dataset, path))) == (1, 5)
