"""The ZIP archive that a weight file is: its members, and the same members in an archive of our own.

Room: weights; imports the standard library only, never torch.

Threat: two readers may find two directories in one file, so that one is checked and the other is loaded. Here the file
is read by one parser, and PyTorch is given `Rewritten`: a new archive around the members that this parser found. What
the file says elsewhere is never seen.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

MOST_BYTES = (1 << 32) - (1 << 24)  # of a file; above 4 GiB an archive needs other records, and no network does
MOST_MEMBERS = 50_000  # the largest network here has about 4,000 tensors, momentum included
MOST_NAME = 512  # bytes of a member's name
MARK = b"emaseg sha256 "  # the archive's comment: this, and the SHA-256 of all bytes before the comment as hexadecimal
COMMENT = len(MARK) + 64

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_DIRECTORY = MOST_MEMBERS * 256
_KEPT = re.compile(r"data\.pkl|version|byteorder|data/[A-Za-z0-9_.-]{1,64}")
_GAP = 24  # bytes behind a member: its size and checksum once more
_CHUNK = 8 << 20  # large, so that the two threads seldom wait for each other


class DamagedError(Exception):
    """The file is not what torch.save writes; the text says in which way."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the file, how many there are and their CRC-32."""

    start: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class Archive:
    """Members by name, without the folder that they all lie in; digest: the recorded SHA-256, "" = none.

    covered: how many bytes from the start of the file the digest is of.
    """

    members: Mapping[str, Member]
    digest: str
    covered: int


def read_archive(file: FileIO, size: int) -> Archive:
    """The members of an archive that torch.save wrote.

    Args:
        file: open, without a buffer. size: its bytes.

    Raises:
        DamagedError: anything about it is not as torch.save writes it: compressed, overlapping or repeated members,
            something before the first member or behind the directory, two places that contradict each other.
    """
    digest = _digest(file, size)
    end = size - _END.size - (COMMENT if digest else 0)
    count, at, length, stop = _directory(file, end, COMMENT if digest else 0)
    if not 0 < count <= MOST_MEMBERS or length > _MOST_DIRECTORY:
        raise DamagedError(f"an archive of {count} members")
    if at + length != stop:
        raise DamagedError("its directory is not where its end says")
    entries = _entries(_bytes(file, at, length), count)
    return Archive(_located(file, entries, at), digest, size - (COMMENT if digest else 0))


def _digest(file: FileIO, size: int) -> str:
    tail = _bytes(file, max(0, size - COMMENT), COMMENT)
    found = re.fullmatch(re.escape(MARK) + rb"([0-9a-f]{64})", tail)
    return found[1].decode() if found else ""


def _directory(file: FileIO, end: int, comment: int) -> tuple[int, int, int, int]:
    """Member count, place and length of the directory, and where it must end."""
    if end < 0:
        raise DamagedError("it ends early")
    raw = _bytes(file, end, _END.size)
    if len(raw) < _END.size or raw[:4] != b"PK\5\6":
        raise DamagedError("its end is missing, or something follows it")
    _, disk, first, here, count, length, at, note = _END.unpack(raw)
    if (disk, first, note) != (0, 0, comment) or here != count:
        raise DamagedError("its end contradicts itself")
    stop = end
    raw = _bytes(file, end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size + _END64.size else b""
    if raw[:4] == b"PK\6\7":
        stop = end - _LOCATOR.size - _END64.size
        wide = _wide_end(_bytes(file, stop, _END64.size), raw, stop)
        for narrow, value, most in zip((count, length, at), wide, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True):
            if narrow not in (value, most):
                raise DamagedError("its two ends contradict each other")
        count, length, at = wide
    return count, at, length, stop


def _wide_end(raw: bytes, locator: bytes, place: int) -> tuple[int, int, int]:
    """Count, length and place of the directory, as the end for large archives has them."""
    _, disk, where, disks = _LOCATOR.unpack(locator)
    sign, rest, _, _, here, first, part, count, length, at = _END64.unpack(raw)
    if sign != b"PK\6\6" or (disk, disks, here, first) != (0, 1, 0, 0) or rest != _END64.size - 12 or part != count:
        raise DamagedError("its end contradicts itself")
    if where != place:
        raise DamagedError("its end points elsewhere")
    return count, length, at


def _entries(raw: bytes, count: int) -> list[tuple[bytes, int, int, int]]:
    """Name, place of the local header, size and CRC-32 of each member of the directory."""
    entries = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(raw):
            raise DamagedError("its directory ends early")
        sign, _, _, flags, method, _, _, crc, packed, size, n, m, k, disk, _, _, place = _ENTRY.unpack_from(raw, at)
        name = raw[at + _ENTRY.size : at + _ENTRY.size + n]
        extra = raw[at + _ENTRY.size + n : at + _ENTRY.size + n + m]
        at += _ENTRY.size + n + m + k
        if sign != b"PK\1\2" or disk or at > len(raw) or not 0 < n <= MOST_NAME:
            raise DamagedError("its directory is damaged")
        if flags & 0x2041:
            raise DamagedError("encrypted members")
        size, packed, place = _wide(extra, size, packed, place)
        if method or packed != size:
            raise DamagedError("compressed members, which torch.save does not write")
        entries.append((name, place, size, crc))
    if at != len(raw):
        raise DamagedError("its directory does not end where it should")
    return entries


def _wide(extra: bytes, *values: int) -> list[int]:
    """Sizes and place with those taken from the extra field that the entry itself has no room for."""
    if 0xFFFFFFFF not in values:
        return list(values)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            if len(wide) < values.count(0xFFFFFFFF):
                break
            return [wide.pop(0) if value == 0xFFFFFFFF else value for value in values]
        extra = extra[4 + length :]
    raise DamagedError("its directory is damaged")


def _located(file: FileIO, entries: Sequence[tuple[bytes, int, int, int]], stop: int) -> dict[str, Member]:
    """The members where their own headers say, each once, one behind the other, all in one folder."""
    members: dict[str, Member] = {}
    folders = set()
    behind = 0
    for name, place, size, crc in sorted(entries, key=lambda entry: entry[1]):
        raw = _bytes(file, place, _LOCAL.size + len(name)) if behind <= place < stop else b""
        if len(raw) < _LOCAL.size + len(name) or raw[:4] != b"PK\3\4" or raw[_LOCAL.size :] != name:
            raise DamagedError("members that overlap, or are not where the directory says")
        *_, n, m = _LOCAL.unpack_from(raw)
        start = place + _LOCAL.size + n + m
        gap = place - behind
        if n != len(name) or start + size > stop or gap > (_GAP if members else 0):
            raise DamagedError("members that overlap, or are not where the directory says")
        behind = start + size
        folder, _, rest = name.decode("utf-8", "replace").partition("/")
        folders.add(folder)
        if rest in members:
            raise DamagedError("two members of one name")
        members[rest] = Member(start, size, crc)
    if stop - behind > _GAP:
        raise DamagedError("something between its members and its directory")
    if len(folders) != 1:
        raise DamagedError("members outside its one folder")
    return members


def _bytes(file: FileIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count) or b""


def read_member(file: FileIO, member: Member) -> bytes:
    """
    Raises:
        DamagedError: its bytes are not those that were written.
    """
    data = _bytes(file, member.start, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise DamagedError("its content is not what was written (checksum)")
    return data


def check_members(file: FileIO, members: Sequence[Member]) -> None:
    """
    Raises:
        DamagedError: a member's bytes are not those that were written. PyTorch does not look.
    """
    buffer = bytearray(min(_CHUNK, max((member.size for member in members), default=0)))
    for member in members:
        crc, at, left = 0, member.start, member.size
        while left:
            file.seek(at)
            count = file.readinto(memoryview(buffer)[: min(left, _CHUNK)]) or 0
            if not count:
                raise DamagedError("it ends early")
            crc = zlib.crc32(memoryview(buffer)[:count], crc)
            at, left = at + count, left - count
        if crc != member.crc:
            raise DamagedError("its content is not what was written (checksum)")


class Rewritten(io.RawIOBase):
    """A new archive, readable like a file: headers made here, the members' bytes straight from the old one.

    Only the members that PyTorch needs for tensors are in it. `replaced` holds those that were read and checked before.
    """

    def __init__(self, file: FileIO, members: Mapping[str, Member], replaced: Mapping[str, bytes]) -> None:
        self._file = file
        self._parts: list[bytes | Member] = []
        self._starts: list[int] = []
        self._size = self._at = 0
        directory = b""
        kept = sorted((name for name in members if _KEPT.fullmatch(name)), key=lambda name: members[name].start)
        for name in kept:
            member, path = members[name], f"archive/{name}".encode()
            common = (0, 0, 0, 0, member.crc, member.size, member.size, len(path), 0)
            entry = _ENTRY.pack(b"PK\1\2", 20, 20, *common, 0, 0, 0, 0, self._size)
            directory += entry + path
            self._add(_LOCAL.pack(b"PK\3\4", 20, *common) + path)
            self._add(replaced.get(name, member))
        at = self._size
        self._add(directory)
        self._add(_END.pack(b"PK\5\6", 0, 0, len(kept), len(kept), len(directory), at, 0))

    def _add(self, part: bytes | Member) -> None:
        size = len(part) if isinstance(part, bytes) else part.size
        if size:
            self._starts.append(self._size)
            self._parts.append(part)
            self._size += size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size:
            index = bisect_right(self._starts, self._at) - 1
            part, inside = self._parts[index], self._at - self._starts[index]
            if isinstance(part, bytes):
                piece = part[inside : inside + len(view) - done]
                view[done : done + len(piece)] = piece
                count = len(piece)
            else:
                wanted = min(len(view) - done, part.size - inside)
                self._file.seek(part.start + inside)
                count = self._file.readinto(view[done : done + wanted]) or 0
            if not count:
                break
            done, self._at = done + count, self._at + count
        return done
