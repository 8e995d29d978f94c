"""A weight file's content, read so that no file can do harm: tensors, numbers and text, checked before PyTorch sees it.

Room: weights.

    file -> archive.read_archive -> program.check_program -> torch.load(weights_only=True) -> plain values
                \\-> every checksum, and the SHA-256 of our own files in a second thread meanwhile

Files from before PyTorch 1.6 are no archives but programs, one behind the other, with the numbers behind them. They
have no checksums.
"""

from __future__ import annotations

import errno
import math
import pickle
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

import torch

from emaseg.errors import WeightsError
from emaseg.files import open_regular, sha256_of
from emaseg.weights.program import MOST_PROGRAM, RefusedError, check_program
from emaseg.weights.weight_archive import Archive, check_members, read_archive, without_extras
from emaseg.zip_archive import MOST_BYTES, DamagedError, read_member

_REMEDY = "check the path, or copy or download the file again"
_LEGACY_PROGRAMS = 5  # a magic number, a version, the machine, the content, the storages' keys
_SMALL = ("data.pkl", "version", "byteorder")
_TABLES = (dict, OrderedDict, Counter)
_SCALARS = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)

# What PyTorch and the standard library raise for files that are damaged in one way or another.
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, ImportError)
_MORE_DAMAGE = (AssertionError, MemoryError, OverflowError, DamagedError, pickle.UnpicklingError)


def read_content(path: Path) -> Mapping[str, Any]:
    """Content of a weight file: nested dictionaries, lists and tuples of strided CPU tensors, numbers and text.

    Raises:
        WeightsError: missing, truncated, damaged, not a weight file, or one that holds anything else.
    """
    with _in_words(path), FileIO(open_regular(path)) as file:
        size = file.seek(0, 2)
        if size > MOST_BYTES:
            raise WeightsError(
                f"{path}: has {size:,} bytes, more than any network here with its optimizer", "check the path"
            )
        file.seek(0)
        content = _archived(path, file) if file.read(4) == b"PK\3\4" else _legacy(file, size)
        content = _plain(content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights", _REMEDY)
    return content


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Every failure as one WeightsError."""
    try:
        yield
    except RefusedError as refused:
        raise WeightsError(f"{path}: refused: {refused.reason}", refused.remedy) from refused
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file", _REMEDY) from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder, not a weight file", _REMEDY) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to where a whole file would go on
            raise WeightsError(f"{path}: not a weight file, or damaged", _REMEDY) from error
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})", _REMEDY) from error
    except (*_DAMAGE, *_MORE_DAMAGE) as error:
        reason = f": {error}" if isinstance(error, DamagedError) else ""
        raise WeightsError(f"{path}: not a weight file, or damaged{reason}", _REMEDY) from error


def _archived(path: Path, file: FileIO) -> object:
    """The content of an archive, with its SHA-256 or else every member's checksum compared."""
    archive = read_archive(file)
    members = archive.members
    if "constants.pkl" in members:
        raise RefusedError("it is a TorchScript program, not plain weights", "use a file of plain weights")
    program = members.get("data.pkl")
    if program is None:
        raise DamagedError("an archive that torch.save did not write")
    if program.size > MOST_PROGRAM:
        raise RefusedError("it has more entries than any network", "use a file of plain weights")
    small = {name: read_member(file, members[name]) for name in _SMALL if name in members and members[name].size < 64}
    small["data.pkl"] = read_member(file, program)
    for key, length in check_program(small["data.pkl"]).storages.items():
        if f"data/{key}" not in members or members[f"data/{key}"].size != length:
            raise DamagedError("a tensor's numbers are missing, or not as many as it claims")
    rewritten = cast("IO[bytes]", without_extras(file, members, small))
    with ThreadPoolExecutor(1) as pool:  # a second core where there is one: PyTorch copies while this one compares
        verified = pool.submit(_verify, path, archive)
        try:
            content = _load(rewritten)
        finally:
            verified.result()
    return content


def _verify(path: Path, archive: Archive) -> None:
    """
    Raises:
        DamagedError: the bytes are not those that were written.
    """
    with FileIO(open_regular(path)) as file:
        if not archive.digest:
            check_members(file, list(archive.members.values()))
        elif sha256_of(file, 0, archive.covered) != archive.digest:
            raise DamagedError("its content is not what was written (SHA-256)")


def _legacy(file: FileIO, size: int) -> object:
    """The content of a file of the old layout, whose programs come first."""
    file.seek(0)
    head = file.read(min(size, MOST_PROGRAM)) or b""
    program = check_program(head, _LEGACY_PROGRAMS)
    if program.end + sum(8 + length for length in program.storages.values()) != size:
        raise DamagedError("not as many numbers as its tensors claim")
    file.seek(0)
    return _load(cast("IO[bytes]", file))


def _load(file: IO[bytes]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol of odd files
        return torch.load(file, map_location="cpu", weights_only=True)


def _plain(value: object) -> Any:
    """`value` with tables as plain dictionaries and tensors without hooks or gradients.

    Its depth and extent are bounded: `check_program` has measured them.

    Raises:
        RefusedError: a tensor that is not a plain array in memory, or something that is no value of a weight file.
    """
    if isinstance(value, torch.Tensor):
        return _plain_tensor(value)
    if type(value) in _TABLES:
        items = dict.items(cast("dict[Any, Any]", value))  # the object's own `items` may be anything
        return {key: _plain(item) for key, item in items}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, _SCALARS):
        return value
    raise RefusedError(f"it holds a {type(value).__name__}", "use a file of plain weights")


def _plain_tensor(value: torch.Tensor) -> torch.Tensor:
    odd = value.layout != torch.strided or value.is_quantized or value.device.type != "cpu"
    if odd or value.is_conj() or value.is_neg():
        raise RefusedError("tensors of a special kind, not plain numbers", "use a file of plain weights")
    # Threat: strides of 0 unfold a few bytes into terabytes as soon as somebody copies.
    if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
        raise RefusedError("a tensor that claims more numbers than it has", "use a file of plain weights")
    return value.detach()
