"""The archive of a .pt2: read by one parser, and handed on as an archive of our own making.

Room: export; imports nothing of the rest; never torch.

Threat: a ZIP can be read in several ways (two directories, other names or sizes beside the data), so that one program
checks what another does not load. Here the directory is read once, strictly; the members that passed go into a new
archive with a new directory, and PyTorch sees nothing but that. It is never written out: `Joined` shows it as a file,
and the weights, which are most of it, are read from where they lie.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, BinaryIO, NoReturn

LARGEST = (1 << 32) - 2  # bytes of an archive: what its directory can say without extensions
MOST_MEMBERS = 20_000
LONGEST_TEXT = 1 << 26  # bytes of a member that is a text

WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_TABLE = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_TABLE = f"{CONSTANTS}model_constants_config.json"
PROGRAM, ABOUT, DIGEST = "models/model.json", "extra/emaseg.json", "extra/emaseg.sha256"
SAMPLES = "data/sample_inputs/model.pt"

_MEMBERS = re.compile(
    rf"{WEIGHTS}weight_\d{{1,6}}|{WEIGHTS_TABLE}|{CONSTANTS_TABLE}|{SAMPLES}|{PROGRAM}|{ABOUT}|{DIGEST}"
    r"|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|version",
    re.ASCII,
)
_END, _END64, _PLACE64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_STORED, _FLAGS = 0, 0x0808  # sizes after the data; names in UTF-8
_NEW = b"program/"  # the folder of the new archive; PyTorch wants one
_DATE = 0x0021  # 1980-01-01


class Refused(ValueError):
    """Something that `emaseg export` does not write; the text says what."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. name: without the archive's folder. start, size: of its bytes. crc: what they should be."""

    name: str
    start: int
    size: int
    crc: int


def read_directory(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive.

    Raises:
        ValueError: this is no archive, or it is damaged.
        Refused: it holds more than `emaseg export` writes, or can be read in more than one way.
    """
    length = file.seek(0, io.SEEK_END)
    if length > LARGEST:
        raise Refused("more than 4 GB")
    count, start, size = _find(file, length)
    if count > MOST_MEMBERS or start + size > length:
        raise ValueError("its directory is damaged")
    raw = _read(file, start, size)
    members: dict[str, Member] = {}
    folders: set[bytes] = set()
    places: list[tuple[int, int]] = [(start, length)]
    at = 0
    for _ in range(count):
        path, crc, length_, local, at = _entry(raw, at)
        folder, _, inner = path.partition(b"/")
        name = inner.decode("ascii", "backslashreplace")
        if not _MEMBERS.fullmatch(name):
            raise Refused(f"member {name[:60]!r}")
        if name in members:
            raise Refused(f"two members {name!r}")
        begin = _begin(file, local, path)
        folders.add(folder)
        places.append((local, begin + length_))
        members[name] = Member(name, begin, length_, crc)
    if at != len(raw) or len(folders) != 1:
        raise Refused("a directory of more than one archive")
    if any(end > begin for (_, end), (begin, _) in pairwise(sorted(places))):
        raise Refused("members that overlap")
    return members


def _find(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Number of members, start and size of the directory."""
    tail = _read(file, max(0, length - _END.size), min(length, _END.size))
    if len(tail) < _END.size or tail[:4] != b"PK\5\6":
        raise ValueError("its end is missing")
    _, disk, first, here, count, size, start, comment = _END.unpack(tail)
    if disk or first or comment or here != count:
        raise Refused("a comment, or several parts")
    end = length - _END.size
    place = _read(file, max(0, end - _PLACE64.size), _PLACE64.size)
    if place[:4] == b"PK\6\7":
        _, disk, at, _ = _PLACE64.unpack(place)
        end -= _PLACE64.size + _END64.size
        raw = _read(file, max(0, end), _END64.size)
        if at != end or disk or raw[:4] != b"PK\6\6":
            raise Refused("two directories")
        *_, here, wide, size64, start64 = _END64.unpack(raw)
        for short, limit, long in ((count, 0xFFFF, wide), (size, 0xFFFFFFFF, size64), (start, 0xFFFFFFFF, start64)):
            if short not in (limit, long):
                raise Refused("two directories")
        count, size, start = wide, size64, start64
    if start + size != end:
        raise Refused("bytes between the directory and its end")
    return count, start, size


def _entry(raw: bytes, at: int) -> tuple[bytes, int, int, int, int]:
    """Path, checksum, size and place of the directory's entry at `at`, and where the next begins."""
    if len(raw) - at < _ENTRY.size or raw[at : at + 4] != b"PK\1\2":
        raise ValueError("its directory is damaged")
    _, _, _, flags, method, _, _, crc, packed, size, name, extra, comment, disk, _, _, local = _ENTRY.unpack_from(
        raw, at
    )
    if flags & ~_FLAGS or method != _STORED or packed != size or comment or disk or 0xFFFFFFFF in (size, local):
        raise Refused("a member that is packed, encrypted, commented or larger than 4 GB")
    at += _ENTRY.size
    path = raw[at : at + name]
    if len(path) < name or b"\0" in path:
        raise ValueError("its directory is damaged")
    return path, crc, size, local, at + name + extra


def _begin(file: BinaryIO, local: int, path: bytes) -> int:
    """Where a member's bytes begin."""
    raw = _read(file, local, _LOCAL.size)
    if raw[:4] != b"PK\3\4":
        raise ValueError("its directory is damaged")
    name, extra = (int(size) for size in _LOCAL.unpack(raw)[-2:])
    if _read(file, local + _LOCAL.size, name) != path:
        raise Refused("a member of two names")
    return local + _LOCAL.size + name + extra


def content(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member that is a text.

    Raises:
        ValueError: they are damaged.
        Refused: it is far too long.
    """
    if member.size > LONGEST_TEXT:
        raise Refused(f"{member.name} of {member.size} bytes")
    data = _read(file, member.start, member.size)
    if zlib.crc32(data) != member.crc:
        raise ValueError(f"the checksum of {member.name} does not match")
    return data


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def read_json(raw: bytes, name: str) -> Any:
    """A JSON text, read strictly: no key twice, no NaN, no whole number beyond 64 bits.

    Raises:
        ValueError: it is no JSON.
        Refused: it can be read in more than one way.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise Refused(f"{name}: a key twice")
        return made

    def number(text: str) -> int:
        if len(text) > 20:
            raise Refused(f"{name}: a number of {len(text)} digits")
        return int(text)

    def constant(text: str) -> NoReturn:
        raise Refused(f"{name}: {text}")

    try:
        return json.loads(raw.decode(), object_pairs_hook=pairs, parse_int=number, parse_constant=constant)
    except RecursionError:
        raise Refused(f"{name}: nested too deep") from None
    except Refused:
        raise
    except ValueError:
        raise ValueError(f"{name} is damaged") from None


def digest_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 of an archive's content, from that of each member but the digest itself."""
    lines = (f"{value} {name}\n" for name, value in sorted(hashes.items()) if name != DIGEST)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_members(file: BinaryIO, members: Iterable[Member]) -> dict[str, str]:
    """SHA-256 of each member's bytes."""
    hashes = {}
    for member in members:
        hasher, left = hashlib.sha256(), member.size
        file.seek(member.start)
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise ValueError("it ends too early")
            hasher.update(piece)
            left -= len(piece)
        hashes[member.name] = hasher.hexdigest()
    return hashes


# ------------------------------------------------------------------------------------------------- the new archive
Piece = bytes | Member


def fresh(file: BinaryIO, pieces: Mapping[str, Piece]) -> Joined:
    """A new archive as a file that can be read.

    Args:
        file: where the members lie.
        pieces: the bytes of each member, or the member of `file` that is taken over.
    """
    parts: list[Piece] = []
    directory = b""
    at = 0
    for name, piece in pieces.items():
        path = _NEW + name.encode()
        size = len(piece) if isinstance(piece, bytes) else piece.size
        crc = zlib.crc32(piece) if isinstance(piece, bytes) else piece.crc
        shared = (20, 0, _STORED, 0, _DATE, crc, size, size, len(path))
        directory += _ENTRY.pack(b"PK\1\2", 20, *shared, 0, 0, 0, 0, 0, at) + path
        head = _LOCAL.pack(b"PK\3\4", *shared, 0) + path
        parts += [head, piece]
        at += len(head) + size
    end = _END.pack(b"PK\5\6", 0, 0, len(pieces), len(pieces), len(directory), at, 0)
    return Joined(file, [*parts, directory + end])


class Joined(io.RawIOBase):
    """Pieces one behind the other, as a file to read: bytes, and stretches of another file."""

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._file = file
        self._pieces = [piece for piece in pieces if not isinstance(piece, bytes) or piece]
        sizes = (len(piece) if isinstance(piece, bytes) else piece.size for piece in self._pieces)
        self._starts: list[int] = [0, *accumulate(sizes)]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the whole buffer, or as much of it as there is."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._starts[-1]:
            number = bisect_right(self._starts, self._at) - 1
            piece, skip = self._pieces[number], self._at - self._starts[number]
            most = min(len(view) - done, self._starts[number + 1] - self._at)
            if isinstance(piece, bytes):
                view[done : done + most] = piece[skip : skip + most]
            else:
                view[done : done + most] = _read(self._file, piece.start + skip, most)
            done += most
            self._at += most
        return done
