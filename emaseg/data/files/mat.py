"""Label maps in MATLAB files, as some data sets publish them.

Room: data/files. Legend: H W image height and width.

A file of MATLAB 5 to 7.2 is a header of 128 bytes and then variables. Each is an element: a tag with the kind and the
number of bytes, then these; an element may be a zlib stream with another one inside. A matrix is made of elements too:
flags, shape, name and numbers, or for a structure the names of its fields and a matrix for each. A file of MATLAB 4 is
variables only, each with a header of 20 bytes.

Files are untrusted, so this is a reader of its own and small: it looks only at the variable and the fields that
it was asked for, steps over all others by their length, never follows what nests, and unfolds no more bytes than the
declared shape can need. (A general reader builds everything that a file holds, and can be made to crash by it.)
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emaseg.data.files.images import MAX_PIXELS
from emaseg.errors import DataError, SystemFault, nearest
from emaseg.files import read_bytes

_AGAIN = "unpack or download it again"
_MOST = 512 << 20  # bytes of a file, and of one variable when it is unfolded

# The kinds of elements that hold numbers; 14 is a matrix, 15 a zlib stream.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _ZLIB, _UTF8 = 1, 2, 5, 6, 14, 15, 16
# The classes of matrices; 6 to 15 are full matrices of numbers.
_STRUCTURE, _OBJECT, _OPAQUE = 2, 3, 17
_NUMERIC = range(6, 16)
_CLASSES = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "a sparse matrix", 16: "a function"}
_COMPLEX = 0x0800

_NUMBERS_4 = ("f8", "f4", "i4", "i2", "u2", "u1")
_HEAD = 512  # bytes: a matrix's flags, shape and name take less
_MANY = 10_000  # variables; a file of empty ones would take minutes
_LONG = 1 << 20  # bytes of all the names of a structure's fields


class _Damaged(Exception):
    """What is wrong with a file's bytes."""


def read_mat(path: Path, variable: str, *fields: str, content: bytes | None = None) -> npt.NDArray[np.integer]:
    """The (H, W) integer matrix `variable` of a MATLAB 4 to 7.2 file; whole numbers stored as floats are converted.

    fields: where the variable is a structure, the field that holds the matrix (and its field, and so on).
    content: the file's bytes where they are not at `path`, which then only names them.

    Raises:
        DataError: missing, damaged, without that variable or field, or that is not a matrix of whole numbers.
        SystemFault: it does not fit into memory.
    """
    try:
        stored = read_bytes(path, _MOST) if content is None else content
        matrix, name = _variable(stored, path, variable), variable
        for field in fields:
            name = f"{name}.{field}"
            matrix = _field(matrix, field, path, name)
        return _whole_numbers(matrix, path, name)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error
    except MemoryError as error:
        raise SystemFault(f"{path}: does not fit into memory", "check the file, or free memory") from error
    except _Damaged as error:
        raise DataError(f"{path}: not a .mat file, or a damaged one ({error})", _AGAIN) from error


def _not_there(path: Path, name: str, names: Sequence[str]) -> DataError:
    return DataError(
        f'{path}: holds no "{name}"; found {", ".join(names[:8]) or "nothing there"}',
        nearest(name.rpartition(".")[2], names) or "this is not a label file of the data set; check the label folder",
    )


# ------------------------------------------------------------------------------------------------- elements
class _Bytes:
    """Elements of a file, read from the front and never beyond the end. order: of a number's bytes, `<` or `>`."""

    __slots__ = ("at", "order", "view")

    def __init__(self, content: bytes | memoryview, order: str) -> None:
        self.view, self.order, self.at = memoryview(content), order, 0

    def take(self, size: int) -> memoryview:
        if size > len(self.view) - self.at:
            raise _Damaged("it ends too early")
        self.at += size
        return self.view[self.at - size : self.at]

    def number(self) -> int:
        value: int = struct.unpack(self.order + "I", self.take(4))[0]
        return value

    def element(self, *kinds: int) -> tuple[int, memoryview]:
        """Kind and bytes of the next element, which must be one of `kinds`."""
        kind = self.number()
        if kind >> 16:  # few bytes, stored in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise _Damaged("an element of a wrong size")
            content = self.take(4)[:size]
        else:
            content = self.take(self.number())
            if kind != _MATRIX:
                self.take(min(-len(content) % 8, len(self.view) - self.at))  # the last one may go unfilled
        if kind not in kinds:
            raise _Damaged(f"an element of kind {kind} in a wrong place")
        return kind, content


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of which the beginning has been read. of: its class, a MATLAB number. rest: what follows its name."""

    name: str
    of: int
    is_complex: bool
    shape: tuple[int, ...]
    rest: _Bytes

    @property
    def words(self) -> str:
        """For messages: `a structure of shape (1, 1)`."""
        numbers = "complex numbers" if self.is_complex else "numbers"
        kind = numbers if self.of in _NUMERIC else _CLASSES.get(self.of, "something else")
        return f"{kind} of shape {self.shape}"


def _matrix(content: bytes | memoryview, order: str) -> _Matrix:
    """A matrix from the bytes of its element."""
    if not len(content):  # MATLAB's way to store nothing
        return _Matrix("", _NUMERIC[0], False, (0, 0), _Bytes(b"", order))
    rest = _Bytes(content, order)
    flags = rest.element(_UINT32)[1]
    if len(flags) != 8:
        raise _Damaged("a matrix with wrong flags")
    (word,) = struct.unpack_from(order + "I", flags)
    of, shape = word & 0xFF, ()
    if of != _OPAQUE:
        stored = rest.element(_INT32, _UINT32)[1]
        if len(stored) % 4 or not 8 <= len(stored) <= 128:
            raise _Damaged("a matrix without a shape")
        shape = struct.unpack(f"{order}{len(stored) // 4}i", stored)
        if min(shape) < 0:
            raise _Damaged(f"a matrix of shape {shape}")
    name = rest.element(_INT8, _UINT8, _UTF8)[1]
    return _Matrix(_text(name), of, bool(word & _COMPLEX), shape, rest)


def _text(stored: bytes | memoryview) -> str:
    return bytes(stored[:_HEAD]).split(b"\0", 1)[0].decode("utf-8", "replace")


# ------------------------------------------------------------------------------------------------- variables
def _variable(content: bytes, path: Path, wanted: str) -> _Matrix:
    """The first variable of this name."""
    names = []
    for name, matrix in _variables(content, path, wanted):
        if matrix is not None:
            return matrix
        names.append(name)
        if len(names) > _MANY:
            raise _Damaged(f"more than {_MANY:,} variables")
    raise _not_there(path, wanted, list(filter(None, names)))  # one without a name holds MATLAB's own notes


def _variables(content: bytes, path: Path, wanted: str) -> Iterator[tuple[str, _Matrix | None]]:
    """The names of the variables in their order; with the matrix where it is the wanted one."""
    if 0 in content[:4]:  # later files begin with text
        yield from _variables_4(content, wanted)
        return
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise _Damaged("it does not begin like one")
    version = content[125 if order == "<" else 124]
    if version == 2:
        raise DataError(f"{path}: a MATLAB 7.3 (HDF5) file", "save it in the format -v7")
    if version != 1:
        raise _Damaged(f"an unknown version, {version}")
    file = _Bytes(content, order)
    file.take(128)
    while file.at < len(content):
        kind, stored = file.number(), file.take(file.number())
        if kind == _ZLIB:
            name = _unfolded_head(stored, order).name
            yield name, _unfolded(stored, order) if name == wanted else None
        elif kind == _MATRIX:
            matrix = _matrix(stored, order)
            yield matrix.name, matrix if matrix.name == wanted else None
        else:
            raise _Damaged(f"an element of kind {kind} in place of a variable")


def _unfolded_head(stored: memoryview, order: str) -> _Matrix:
    """A matrix out of a zlib stream, without its numbers."""
    try:
        start = zlib.decompressobj().decompress(stored[: 4 * _HEAD], _HEAD)
    except zlib.error as error:
        raise _Damaged(str(error)) from error
    tag = _Bytes(start, order)
    if tag.number() != _MATRIX:
        raise _Damaged("a stream without a matrix")
    return _matrix(start[8 : 8 + tag.number()], order)


def _unfolded(stored: memoryview, order: str) -> _Matrix:
    """A matrix out of a zlib stream, whose checksum is compared. A few bytes can unfold to gigabytes: what the shape
    does not need is refused before."""
    head = _unfolded_head(stored, order)
    most = _HEAD + 16 * math.prod(head.shape) if head.of in _NUMERIC else _MOST
    unfold = zlib.decompressobj()
    try:
        tag = _Bytes(unfold.decompress(stored, 8), order)
        tag.number()
        size = tag.number()
        if size > min(most, _MOST):
            raise _Damaged(f"it unfolds to {size:,} bytes")
        content = unfold.decompress(unfold.unconsumed_tail, size + 1)
    except zlib.error as error:
        raise _Damaged(str(error)) from error
    if len(content) != size or not unfold.eof:
        raise _Damaged("a stream of another length than it says")
    return _matrix(content, order)


def _variables_4(content: bytes, wanted: str) -> Iterator[tuple[str, _Matrix | None]]:
    """_variables of a MATLAB 4 file. Its kinds of numbers become elements of the later format."""
    order = "<" if int.from_bytes(content[:4], "little") <= 5000 else ">"
    file = _Bytes(content, order)
    while file.at < len(content):
        how, rows, columns, imaginary, length = (file.number() for _ in range(5))
        numbers, form = how // 10 % 10, how % 10
        # The thousands say the order of bytes; those beyond 1 were VAX's and Cray's.
        if how // 100 != (0 if order == "<" else 10) or numbers >= len(_NUMBERS_4) or form > 2 or imaginary > 1:
            raise _Damaged("a header that is none of MATLAB 4")
        name = _text(file.take(length))
        dtype = np.dtype(_NUMBERS_4[numbers])
        stored = file.take(rows * columns * dtype.itemsize * (1 + imaginary))
        if name != wanted:
            yield name, None
            continue
        kind = next(kind for kind, of in _NUMBERS.items() if of == dtype.str[1:])
        rest = _Bytes(struct.pack(order + "II", kind, len(stored)) + stored, order)
        yield name, _Matrix(name, (_NUMERIC[0], 4, 5)[form], bool(imaginary), (rows, columns), rest)


# ------------------------------------------------------------------------------------------- what is in a matrix
def _field(matrix: _Matrix, wanted: str, path: Path, name: str) -> _Matrix:
    """A field of a structure's first element."""
    if matrix.of not in (_STRUCTURE, _OBJECT):
        raise _not_there(path, name, ())
    rest = matrix.rest
    if matrix.of == _OBJECT:
        rest.element(_INT8, _UINT8, _UTF8)  # the name of its class
    length = rest.element(_INT32, _UINT32)[1]
    width = struct.unpack(rest.order + "i", length)[0] if len(length) == 4 else 0
    names = rest.element(_INT8, _UINT8, _UTF8)[1]
    if width < 1 or len(names) % width or len(names) > _LONG:
        raise _Damaged("a structure without names")
    known = [_text(names[at : at + width]) for at in range(0, len(names), width)]
    if wanted not in known or not math.prod(matrix.shape):
        raise _not_there(path, name, known)
    for _ in range(known.index(wanted)):
        rest.element(_MATRIX)
    return _matrix(rest.element(_MATRIX)[1], rest.order)


def _whole_numbers(matrix: _Matrix, path: Path, name: str) -> npt.NDArray[np.integer]:
    height, *others = matrix.shape or (0,)
    if matrix.of in _NUMERIC and not matrix.is_complex and len(others) == 1 and height * others[0]:
        if height * others[0] > MAX_PIXELS:
            raise DataError(f"{path}: {name} has more than {MAX_PIXELS:,} pixels", "cut image and mask into tiles")
        kind, stored = matrix.rest.element(*_NUMBERS)
        dtype = np.dtype(matrix.rest.order + _NUMBERS[kind])
        if len(stored) != height * others[0] * dtype.itemsize:
            raise _Damaged(f"{len(stored):,} bytes for a matrix of {height} x {others[0]}")
        values = np.frombuffer(stored, dtype).reshape(matrix.shape, order="F")
        if dtype.kind != "f":
            return values.astype(dtype.newbyteorder("="))
        with np.errstate(invalid="ignore"):  # what is no whole number of 32 bits differs afterwards
            whole = values.astype(np.int32)
        if (whole == values).all():  # MATLAB's default number is a double
            return whole
        raise DataError(f"{path}: {name} holds fractions or huge numbers: not a map of class numbers", _AGAIN)
    raise DataError(f"{path}: {name} is {matrix.words}, not a map of class numbers", _AGAIN)
