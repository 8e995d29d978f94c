"""What a packed file says of itself: the own header in front of its HDF5 structure, and the older files without one.

Room: data/sets. Legend: N samples, K classes.

HDF5 leaves the first 512 * 2^n bytes of a file to others (the user block). They hold here, numbers in little endian:

    at 0    16 bytes   "emaseg packed 2" and a newline
       16   5 uint64   bytes of the user block; of the index; place of the CRC table; place and number of stored bytes
       56   32 bytes   SHA-256 of the 56 bytes before and of the index
       88   uint64     samples written so far
       96   32 bytes   SHA-256 of the CRC table
      128   32 bytes   SHA-256 of the whole file but for bytes 88 to 160
      512   the index: JSON with the keys about, names, sizes and times (time of change of each source in nanoseconds)
            then the CRC table, (N, 2) uint32: CRC-32 of each image and label file

HDF5's library trusts the structure of a file: one wrong byte can make it loop for ever or answer nonsense. So a file is
read by this header only, and an older one without it is opened by the library in a process of its own, with limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import UInt8
from emaseg.data.files.label_files import MAX_CLASSES, LabelRule
from emaseg.data.sets import packed_hdf5
from emaseg.errors import DataError, SystemFault
from emaseg.files import open_file

MAGIC = b"emaseg packed 2\n"
HEADER = struct.Struct("<16s5Q32sQ32s32s")
INDEX_AT, STATE_AT, STATE_END = 512, 88, 160
AGAIN = "pack it again with data_scripts/pack.py"

_SIGNED = 56  # bytes of the header that its own checksum covers
_LARGEST = 1 << 30  # bytes of an index: millions of samples
_SECONDS = 30  # for HDF5's library to read an old file's structure
_ANSWER, _TIMES = 1 << 20, 8  # bytes of its answer: so many, and so many for each byte of the file, all plain
_PIECE = 1 << 20  # bytes of an answer that are read at once


@dataclass(frozen=True, slots=True)
class Content:
    """What a packed file says of itself, checked.

    about: JSON text of rule, palette and layout. spans: (N, 4) int64, counted from the file's start: image offset,
    image bytes, label offset, label bytes. names: (image, label) paths at packing. start, end: of all stored bytes.
    done: samples written. sealed: all are, and the CRC table agrees with its checksum. size: of the file. digest: the
    SHA-256 that the file gives of itself (packed._digest). sums: (N, 2) uint32 CRC-32; sums_at: the table's place;
    times: (N, 2) int64, when each source was changed; None in old files.
    """

    about: str
    spans: npt.NDArray[np.int64]
    names: tuple[tuple[str, str], ...]
    start: int
    end: int
    done: int
    sealed: bool
    size: int
    digest: bytes
    sums: npt.NDArray[np.uint32] | None = None
    sums_at: int = 0
    times: npt.NDArray[np.int64] | None = None


class _Wrong(Exception):
    """What is wrong with a packed file."""


def read_content(path: Path) -> Content:
    """What a packed file says of itself, whether finished or not.

    Raises:
        DataError: it cannot be read, is damaged or no packed file.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER.size)
            if head.startswith(MAGIC):
                return _own(file, head, size)
            if not head.startswith(b"\x89HDF\r\n\x1a\n"):
                raise _Wrong("it does not begin like one")
        return _old(path, size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the path and the disk") from error
    except MemoryError as error:
        raise SystemFault(f"{path}: its index does not fit into memory", "free memory, or check the file") from error
    except (_Wrong, ValueError, RecursionError) as error:  # ValueError: of JSON and Unicode too
        raise DataError(f"{path}: damaged, or not a packed file ({error})", AGAIN) from error


def checksum(header: bytes, index: bytes) -> bytes:
    """Of the header's first part and the index."""
    return hashlib.sha256(header[:_SIGNED] + index).digest()


# ------------------------------------------------------------------------------------------------- our own header
def _own(file: BinaryIO, head: bytes, size: int) -> Content:
    if len(head) < HEADER.size:
        raise _Wrong("cut short")
    _, block, length, sums_at, start, total, signed, done, sums_digest, digest = HEADER.unpack(head)
    if length > _LARGEST or block > size or start < block or start + total > size:
        raise _Wrong("cut short" if start + total > size else "wrong places")
    file.seek(INDEX_AT)
    index = file.read(length)
    if checksum(head, index) != signed:
        raise _Wrong("its index differs from its checksum")
    about, names, sizes, times = _parsed(json.loads(index), {"about": str, "names": list, "sizes": list, "times": list})
    spans = _spans(_integers(sizes, len(names)), start, total)
    if sums_at != INDEX_AT + length or sums_at + 8 * len(names) > block:
        raise _Wrong("wrong places")
    file.seek(sums_at)
    table = file.read(8 * len(names))
    if done > len(names):
        raise _Wrong("more samples than names")
    sealed = done == len(names) and hashlib.sha256(table).digest() == sums_digest
    sums = np.frombuffer(table, "<u4").astype(np.uint32).reshape(-1, 2)
    paths, changed = _names(names), _integers(times, len(names))
    return Content(about, spans, paths, start, start + total, done, sealed, size, digest, sums, sums_at, changed)


def _old(path: Path, size: int) -> Content:
    """Of a file without our header, as HDF5's library says."""
    found = json.loads(_answer(path, min(_LARGEST, _ANSWER + _TIMES * size)))
    if isinstance(found, dict) and isinstance(found.get("error"), str):
        raise _Wrong(found["error"])
    keys = {"about": str, "names": list, "spans": list, "start": int, "total": int, "state": list}
    about, names, stored, start, total, state = _parsed(found, keys)
    table = _integers(stored, len(names), 4)
    if start < 0 or start + total > size or total < 0:
        raise _Wrong("cut short")
    spans = _spans(table[:, 1::2], start, total)
    table[:, ::2] += start
    if not np.array_equal(spans, table):
        raise _Wrong("its samples do not lie one after the other")
    state_bytes = bytes(_integers(state, 40, 1).clip(0, 255).astype(np.uint8).tobytes())
    count = int.from_bytes(state_bytes[:8], "little")
    if count > len(names):
        raise _Wrong("more samples than names")
    return Content(about, spans, _names(names), start, start + total, count, count == len(names), size, state_bytes[8:])


def _answer(path: Path, most: int) -> bytes | bytearray:
    """The JSON that HDF5's library makes of a file, at most `most` bytes, in a process of its own: there it may hang,
    crash, fill memory or answer without an end."""
    command = [sys.executable, "-P", packed_hdf5.__file__, str(path.absolute())]
    answer, nothing, start = bytearray(), subprocess.DEVNULL, time.monotonic()
    with subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, bufsize=0) as process:
        end = threading.Timer(_SECONDS, process.kill)
        end.daemon = True
        end.start()
        try:
            while len(answer) <= most and process.stdout and (piece := process.stdout.read(_PIECE)):
                answer += piece
            if len(answer) <= most:
                process.wait()
        finally:
            end.cancel()
            process.kill()
    if time.monotonic() - start >= _SECONDS:
        raise _Wrong(f"its structure could not be read in {_SECONDS} seconds")
    if len(answer) > most:
        raise _Wrong("its tables hold more than the file can")
    if process.returncode != 0:
        raise _Wrong("HDF5's library fails to read its structure")
    return answer


# -------------------------------------------------------------------------------------------- what JSON may hold
def _parsed(found: object, keys: dict[str, type]) -> list[Any]:
    """The values of these keys, each of its type."""
    if not isinstance(found, dict) or any(type(found.get(key)) is not kind for key, kind in keys.items()):
        raise _Wrong("an index of another form")
    return [found[key] for key in keys]


def _integers(rows: list[Any], count: int, width: int = 2) -> npt.NDArray[np.int64]:
    """(count, width); or (count,) numbers for a width of 1."""
    flat = (
        rows if width == 1 else [value for row in rows if isinstance(row, list) and len(row) == width for value in row]
    )
    if len(rows) != count or len(flat) != count * width or any(type(v) is not int or abs(v) >= 1 << 62 for v in flat):
        raise _Wrong("numbers of another form")
    return np.array(flat, np.int64).reshape((count, width) if width > 1 else (count,))


def _names(rows: list[Any]) -> tuple[tuple[str, str], ...]:
    if not rows or any(type(row) is not list or [type(name) for name in row] != [str, str] for row in rows):
        raise _Wrong("names of another form")
    return tuple((image, label) for image, label in rows)


def _spans(sizes: npt.NDArray[np.int64], start: int, total: int) -> npt.NDArray[np.int64]:
    """(N, 4) from the sizes alone: files lie one after the other, so that nothing else can say where one is."""
    if (sizes < 0).any() or (sizes > total).any() or sum(sizes.reshape(-1).tolist()) != total:
        raise _Wrong("sizes that do not add up")
    offsets = start + np.cumsum(sizes.reshape(-1)).reshape(sizes.shape) - sizes
    return np.stack([offsets, sizes], axis=-1).reshape(-1, 4)


def read_about(text: str, path: Path) -> tuple[LabelRule, UInt8, str]:
    """What the labels' values mean, the palette (K, 3) and the layout.

    Raises:
        DataError: the text is not what pack.py writes.
    """
    try:
        rule, palette, layout = _parsed(json.loads(text), {"rule": dict, "palette": list, "layout": str})
        kinds: dict[str, type] = {"classes": list, "lut": str, "palette": list, "ignore_colours": list}
        kinds |= {"layout": str, "empty_ok": bool, "mat": list}
        classes, lut, colours, ignored, name, empty_ok, mat = _parsed(rule, kinds)
        table = bytes.fromhex(lut)
        texts = [*classes, *mat]
        if not 1 <= len(classes) <= MAX_CLASSES or not all(isinstance(text, str) for text in texts):
            raise _Wrong("classes of another form")
        if not 256 <= len(table) <= 1 << 16 or len(_colours(colours)) not in (0, len(classes)):
            raise _Wrong("a rule of another form")
        shown = np.array(_colours(palette), np.uint8).reshape(-1, 3)
        if len(shown) != len(classes):
            raise _Wrong("a palette of another length")
        made = LabelRule(tuple(classes), table, _colours(colours), _colours(ignored), name, empty_ok, tuple(mat))
    except (_Wrong, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, or not a packed file ({error})", AGAIN) from error
    return made, shown, layout


def _colours(rows: list[Any]) -> tuple[tuple[int, int, int], ...]:
    if any(type(v) is not int or not 0 <= v <= 255 for row in rows for v in (row if isinstance(row, list) else "?")):
        raise _Wrong("colours of another form")
    return tuple((r, g, b) for r, g, b in rows)
