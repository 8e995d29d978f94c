"""A ZIP archive read in one way only, and a new archive made of its members.

Room: the ground; the archives of weight files (weights/) and of exported programs (exported/) are read here.

Threat: a ZIP can be read in several ways (two directories, other names or sizes beside the data), so that one program
checks what another one loads. Here the directory is read once, and everything that allows a second reading is refused.
What passed goes into a new archive with a new directory, and PyTorch sees nothing but that. It is never written out:
`Pieces` shows it as a file, and the members' bytes, which are most of it, are read from where they lie.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from itertools import accumulate
from typing import Any

MOST_BYTES = 8 << 30  # of a file; ViT-Large with both moments of AdamW and an average has 5.9 GB
MOST_MEMBERS = 50_000  # the largest network here has about 4,000 tensors, momentum included
MOST_NAME = 512  # bytes of a member's name

_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_WIDE_PLACE = struct.Struct("<2HQ")  # an extra field with nothing but a place beyond 4 GiB
_MOST_DIRECTORY = MOST_MEMBERS * 256
_FLAGS = 0x0808  # that a member may have: its size and checksum follow it; its name is UTF-8
_GAP = 24  # bytes behind a member: its size and checksum once more
_WIDE = 0xFFFFFFFF  # stands for a number that is too large for its field
_DATE = 0x0021  # 1980-01-01

File = FileIO | BufferedReader


class DamagedError(ValueError):
    """The archive is not whole; the text says in which way."""


class AmbiguousError(DamagedError):
    """The archive could be read in more than one way, or in one that PyTorch's writer does not use."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. name: without the archive's folder. start, size: of its bytes. crc: their CRC-32."""

    name: str
    start: int
    size: int
    crc: int


def read_members(file: File, comment: int = 0) -> dict[str, Member]:
    """The members of an archive by name, in the order in which they lie in the file.

    Args:
        comment: the length of the comment that the archive must end with.

    Raises:
        DamagedError: it is no archive, or not whole.
        AmbiguousError: it is not as PyTorch writes it: compressed, overlapping or repeated members, something before
            the first member or behind the directory, two places that contradict each other.
    """
    size = file.seek(0, os.SEEK_END)
    if size > MOST_BYTES:
        raise AmbiguousError(f"more than {MOST_BYTES >> 30} GiB")
    count, start, length, stop = _directory(file, size - comment - _END.size, comment)
    if not count:
        raise DamagedError("an archive without members")
    if count > MOST_MEMBERS or length > _MOST_DIRECTORY:
        raise DamagedError("more members than any network has")
    if start + length != stop:
        raise AmbiguousError("its directory is not where its end says, or there are two directories")
    return _located(file, _entries(_bytes(file, start, length), count), start)


def _directory(file: File, end: int, comment: int) -> tuple[int, int, int, int]:
    """Member count, place and length of the directory, and where it must end."""
    raw = _bytes(file, end, _END.size) if end >= 0 else b""
    if len(raw) < _END.size or raw[:4] != b"PK\5\6":
        raise DamagedError("its end is missing, or something follows it")
    _, disk, first, here, count, length, at, note = _END.unpack(raw)
    if (disk, first, note) != (0, 0, comment) or here != count:
        raise AmbiguousError("a comment, or several parts")
    place = end - _LOCATOR.size
    raw = _bytes(file, place, _LOCATOR.size) if place >= _END64.size else b""
    if raw[:4] != b"PK\6\7":
        return count, at, length, end
    stop = place - _END64.size
    wide = _wide_end(_bytes(file, stop, _END64.size), raw, stop)
    for narrow, value, most in zip((count, length, at), wide, (0xFFFF, _WIDE, _WIDE), strict=True):
        if narrow not in (value, most):
            raise AmbiguousError("two directories")
    count, length, at = wide
    return count, at, length, stop


def _wide_end(raw: bytes, locator: bytes, place: int) -> tuple[int, int, int]:
    """Count, length and place of the directory, as the end for large archives has them."""
    _, disk, where, disks = _LOCATOR.unpack(locator)
    sign, rest, _, _, here, first, part, count, length, at = _END64.unpack(raw)
    if where != place:
        raise AmbiguousError("two directories")
    if sign != b"PK\6\6" or (disk, disks, here, first) != (0, 1, 0, 0) or rest != _END64.size - 12 or part != count:
        raise AmbiguousError("its end contradicts itself")
    return count, length, at


def _entries(raw: bytes, count: int) -> list[tuple[bytes, int, int, int]]:
    """Path, place of the local header, size and CRC-32 of each member of the directory."""
    entries = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(raw):
            raise DamagedError("its directory ends early")
        sign, _, _, flags, method, _, _, crc, packed, size, n, m, k, disk, _, _, place = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        path, extra = raw[at : at + n], raw[at + n : at + n + m]
        at += n + m
        if sign != b"PK\1\2" or disk or k or at > len(raw) or not 0 < n <= MOST_NAME or b"\0" in path:
            raise DamagedError("its directory is damaged")
        size, packed, place = _wide_values(extra, size, packed, place)
        if flags & ~_FLAGS or method or packed != size:
            raise AmbiguousError("packed or encrypted members, which PyTorch does not write")
        if size >= _WIDE:
            raise AmbiguousError("a member of 4 GiB, larger than any tensor of a network")
        entries.append((path, place, size, crc))
    if at != len(raw):
        raise AmbiguousError("its directory does not end where it should")
    return entries


def _wide_values(extra: bytes, *values: int) -> list[int]:
    """Sizes and place with those taken from the extra field that the entry itself has no room for."""
    if _WIDE not in values:
        return list(values)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if len(extra) < 4 + length:
            break
        if kind == 1:
            wide = list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            if len(wide) < values.count(_WIDE):
                break
            return [wide.pop(0) if value == _WIDE else value for value in values]
        extra = extra[4 + length :]
    raise DamagedError("its directory is damaged")


def _located(file: File, entries: Sequence[tuple[bytes, int, int, int]], stop: int) -> dict[str, Member]:
    """The members where their own headers say, each once, one behind the other, all in one folder."""
    members: dict[str, Member] = {}
    folders = set()
    behind = 0
    for path, place, size, crc in sorted(entries, key=lambda entry: entry[1]):
        gap = place - behind
        raw = _bytes(file, place, _LOCAL.size + len(path)) if 0 <= gap <= (_GAP if members else 0) else b""
        if len(raw) < _LOCAL.size + len(path) or raw[:4] != b"PK\3\4":
            raise AmbiguousError("members that overlap, or are not where the directory says")
        *_, n, m = _LOCAL.unpack_from(raw)
        if n != len(path) or raw[_LOCAL.size :] != path:
            raise AmbiguousError("a member of two names")
        start = place + _LOCAL.size + n + m
        behind = start + size
        folder, _, name = path.decode("utf-8", "replace").partition("/")
        folders.add(folder)
        if name in members:
            raise AmbiguousError(f"two members of one name, {name!r:.60}")
        members[name] = Member(name, start, size, crc)
    if not 0 <= stop - behind <= _GAP:
        raise AmbiguousError("members that overlap their directory, or something between them")
    if len(folders) != 1:
        raise AmbiguousError("members outside its one folder")
    return members


def _bytes(file: File, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count) or b""


def read_member(file: File, member: Member) -> bytes:
    """
    Raises:
        DamagedError: its bytes are not those that were written.
    """
    data = _bytes(file, member.start, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise DamagedError(f"the content of {member.name} is not what was written (checksum)")
    return data


# ------------------------------------------------------------------------------------------------- the new archive
def rebuilt(file: File, members: Mapping[str, bytes | Member]) -> Pieces:
    """A new archive as a file that can be read.

    Args:
        file: where the members lie.
        members: by path, with a folder; their bytes, or the member of `file` that is taken over.
    """
    pieces: list[bytes | Member] = []
    directory = b""
    at = 0
    for name, content in members.items():
        path = name.encode()
        size = len(content) if isinstance(content, bytes) else content.size
        crc = zlib.crc32(content) if isinstance(content, bytes) else content.crc
        common = (20, 0, 0, 0, _DATE, crc, size, size, len(path))
        wide = _WIDE_PLACE.pack(1, 8, at) if at >= _WIDE else b""
        directory += _ENTRY.pack(b"PK\1\2", 20, *common, len(wide), 0, 0, 0, 0, min(at, _WIDE)) + path + wide
        header = _LOCAL.pack(b"PK\3\4", *common, 0) + path
        pieces += [header, content]
        at += len(header) + size
    count, length = len(members), len(directory)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, length, min(at, _WIDE), 0)
    if at >= _WIDE:
        wide_end = _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, length, at)
        end = wide_end + _LOCATOR.pack(b"PK\6\7", 0, at + length, 1) + end
    return Pieces(file, [*pieces, directory + end])


class Pieces(io.RawIOBase):
    """Pieces one behind the other, as a file to read: bytes, and members of another file."""

    def __init__(self, file: File, pieces: Sequence[bytes | Member]) -> None:
        super().__init__()
        self._file = file
        self._pieces = [piece for piece in pieces if not isinstance(piece, bytes) or piece]
        sizes = (len(piece) if isinstance(piece, bytes) else piece.size for piece in self._pieces)
        self._starts = [0, *accumulate(sizes)]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, or as much of it as there is."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._starts[-1]:
            number = bisect_right(self._starts, self._at) - 1
            piece, inside = self._pieces[number], self._at - self._starts[number]
            count = min(len(view) - done, self._starts[number + 1] - self._at)
            if isinstance(piece, bytes):
                view[done : done + count] = piece[inside : inside + count]
            else:
                self._file.seek(piece.start + inside)
                count = self._file.readinto(view[done : done + count]) or 0
            if not count:
                break
            done, self._at = done + count, self._at + count
        return done
