"""MATLAB files: what SciPy reads is read alike, and no file's bytes can crash the reader, fill the memory or hold it up."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import loadmat, savemat

from emaseg.data.files.mat import read_mat
from emaseg.errors import DataError
from tests.data.made import fails, real

PATH = Path("a.mat")
KINDS = [f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)] + ["f4", "f8", "?"]
LABEL = np.arange(12, dtype=np.uint16).reshape(3, 4)


def saved(content: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


def same(read: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype or expected.dtype.kind == "f"
    assert read.dtype.kind in "iu"


matrices = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(
        kind, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 1 if kind == "?" else 99)
    )
)


@settings(max_examples=60, deadline=None)
@given(matrix=matrices, folded=st.booleans(), old=st.booleans(), between=st.booleans())
def test_any_matrix_is_read_as_scipy_reads_it(matrix: np.ndarray, folded: bool, old: bool, between: bool) -> None:
    """Every type of number, zlib streams or none, the format of MATLAB 4, and other variables before it."""
    if old and matrix.dtype.kind + str(matrix.dtype.itemsize) not in ("f4", "f8", "i4", "i2", "u2", "u1"):
        old = False
    others = {"A": np.array([[1.5, 2]])} if between else {}
    content = saved({**others, "S": matrix}, **({"format": "4"} if old else {"do_compression": folded}))
    same(read_mat(PATH, "S", content=content), loadmat(io.BytesIO(content))["S"])


@pytest.mark.parametrize("folded", [False, True])
def test_a_field_is_found_behind_whatever_else(folded: bool) -> None:
    """Cells, text, sparse matrices, complex numbers and structures are stepped over by their length."""
    from scipy.sparse import csc_matrix

    others = {
        "cells": np.array([[np.eye(3), "text"], [np.zeros((2, 0)), {"x": 1}]], object),
        "sparse": csc_matrix(np.eye(40)),
        "text": "words",
        "complex": np.array([[1j]]),
        "nothing": np.zeros((0, 0)),
    }
    content = saved({**others, "G": {**others, "inner": {"S": LABEL, "t": 1}}, "z": 1}, do_compression=folded)
    same(read_mat(PATH, "G", "inner", "S", content=content), LABEL)
    for name in (*others, "G"):
        fails(lambda name=name: read_mat(PATH, name, content=content), DataError, "not a map of class numbers")
        if name != "G":
            fails(lambda name=name: read_mat(PATH, "G", name, content=content), DataError, "not a map of class numbers")
    fails(lambda: read_mat(PATH, "S", content=content), DataError, "found cells, sparse, text, complex, nothing, G, z")


# ------------------------------------------------------------------------------------------------ files made by hand
def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "II", kind, len(content)) + content + bytes(-len(content) % 8)


def small(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "I", len(content) << 16 | kind) + content.ljust(4, b"\0")


def matrix(name: str, of: int, shape: tuple[int, ...], *parts: bytes, order: str = "<") -> bytes:
    flags = element(6, struct.pack(order + "II", of, 0), order)
    dims = element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    text = small(1, name.encode(), order) if 0 < len(name) <= 4 else element(1, name.encode(), order)
    content = b"".join((flags, dims, text, *parts))
    return struct.pack(order + "II", 14, len(content)) + content


def file(*variables: bytes, order: str = "<") -> bytes:
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + mark + b"".join(variables)


def folded(variable: bytes, claimed: int | None = None) -> bytes:
    stream = zlib.compress(variable)
    return struct.pack("<II", 15, len(stream) if claimed is None else claimed) + stream


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_stored_in_less_space_and_both_byte_orders(order: str) -> None:
    """MATLAB stores a matrix of doubles whose values are small as bytes, and few bytes in the tag itself."""
    stored = np.arange(6, dtype=np.uint8)
    content = file(matrix("S", 6, (2, 3), element(2, stored.tobytes(), order), order=order), order=order)
    same(read_mat(PATH, "S", content=content), loadmat(io.BytesIO(content))["S"])
    content = file(matrix("S", 6, (1, 2), small(4, struct.pack(order + "2H", 5, 700), order), order=order), order=order)
    assert read_mat(PATH, "S", content=content).tolist() == [[5, 700]]
    values = np.arange(6, dtype=order + "f8").tobytes()
    content = file(matrix("long_name", 6, (2, 3), element(9, values, order), order=order), order=order)
    assert read_mat(PATH, "long_name", content=content).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_cells_in_cells_cost_nothing() -> None:
    """20,000 deep they made SciPy's parser exhaust the stack and the process crash."""
    deep = b""
    for _ in range(3000):
        deep = matrix("", 1, (1, 1), deep or element(14, b""))
    numbers = element(4, LABEL.tobytes(order="F"))
    for variable in (deep, folded(deep)):
        assert read_mat(PATH, "S", content=file(variable, matrix("S", 11, (3, 4), numbers))).tolist() == LABEL.tolist()
    fields = small(5, struct.pack("<i", 2)), element(1, b"D\0S\0")
    content = file(matrix("G", 2, (1, 1), *fields, deep, matrix("", 11, (3, 4), numbers)))
    assert read_mat(PATH, "G", "S", content=content).tolist() == LABEL.tolist()


@pytest.mark.timeout(30)
def test_a_stream_that_unfolds_to_gigabytes_is_refused() -> None:
    """By what it says of itself, and by what it really holds; whole numbers of a huge matrix too."""
    shape, many = (40_000, 40_000), 16 << 20
    head = matrix("S", 9, shape)[8:]
    for claimed in (shape[0] * shape[1], many, 0xFFFFFFF0):
        bomb = struct.pack("<II", 14, claimed & 0xFFFFFFFF) + head + struct.pack("<II", 2, many) + bytes(many)
        fails(lambda bomb=bomb: read_mat(PATH, "S", content=file(folded(bomb))), DataError, "a.mat")
    little = struct.pack("<II", 14, many) + matrix("S", 9, (2, 2))[8:] + struct.pack("<II", 2, many) + bytes(many)
    fails(lambda: read_mat(PATH, "S", content=file(folded(little))), DataError, "unfolds to 16,777,216 bytes")


def test_sizes_and_kinds_that_are_not_true() -> None:
    """Lengths beyond the end, shapes without numbers for them, wrong kinds, streams cut short or with a wrong sum."""
    numbers = element(4, LABEL.tobytes(order="F"))
    sound = matrix("S", 11, (3, 4), numbers)
    stream = folded(sound)
    wrong = [
        matrix("S", 11, (3, 5), numbers),
        matrix("S", 11, (-3, -4), numbers),
        matrix("S", 11, (2**31 - 1, 2**31 - 1), numbers),
        matrix("S", 11, (3, 4), element(17, LABEL.tobytes())),
        matrix("S", 11, (3, 4), struct.pack("<II", 4, 1 << 30)),
        matrix("S", 11, (3, 4)),
        matrix("S", 11, tuple([1] * 40), numbers),
        matrix("S", 2, (1, 1), small(5, struct.pack("<i", 0)), element(1, b"ab")),
        matrix("S", 2, (1, 1)),
        element(15, b"no stream at all"),
        stream[:-4] + b"sums",
        stream[:-4],
        folded(sound, 1 << 31),
        folded(sound[:-8]),
        folded(sound + bytes(8)),
        folded(element(9, bytes(8))),
        folded(folded(sound)),
        element(7, bytes(8)),
        element(14, bytes(8)) * 3,
        element(14, b"") * 10_002,
        b"\1",
    ]
    for variable in wrong:
        fails(lambda variable=variable: read_mat(PATH, "S", content=file(variable)), DataError, "a.mat")
        fails(lambda variable=variable: read_mat(PATH, "S", "T", content=file(variable)), DataError, "a.mat")
    four = struct.pack("<5i", 0, 1 << 30, 1 << 30, 0, 2) + b"S\0"
    for content in (four, four[:10], struct.pack("<5i", 1000, 1, 1, 0, 2) + b"S\0" + bytes(8), bytes(500)):
        fails(lambda content=content: read_mat(PATH, "S", content=content), DataError, "a.mat")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), inside=st.booleans())
def test_damaged_bytes_read_or_give_a_data_error(data: st.DataObject, inside: bool) -> None:
    """Nothing else comes out, wherever a byte is changed: in the file, or before the stream is made."""
    fields = {"B": np.zeros((2, 1), object), "Segmentation": LABEL}
    content = bytearray(saved({"GTcls": fields}, do_compression=not inside))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    whole = bytes(content[:128]) + (folded(bytes(content[128:])) if inside else bytes(content[128:]))
    outcome: object
    try:
        outcome = read_mat(PATH, "GTcls", "Segmentation", content=whole).ndim
    except DataError as error:
        outcome = error.message[:5]
    assert outcome in (2, "a.mat")


@pytest.mark.realdata
def test_real_files_are_read_as_scipy_reads_them() -> None:
    """Of SBD, COCO-Stuff (labels and the annotation tool's), and CrackForest."""
    count = 0
    for folder, names in (
        ("reconstructed_mat/sbd", ("GTcls", "Segmentation")),
        ("reconstructed_mat/cocostuff-10k-v1.1", ("S",)),
        ("cocostuff10k/annotator_input/regions", ("regionMap",)),
        ("cocostuff10k/annotator_input/things", ("labelMapThings",)),
        ("crackforest", ("groundTruth", "Segmentation")),
    ):
        for path in real(folder).rglob("*.mat"):
            expected = loadmat(path)[names[0]]
            for name in names[1:]:
                expected = expected[0, 0][name]
            same(read_mat(path, *names), expected)
            count += 1
    assert count >= 18
