"""The archive that a weight file is: its members, and the SHA-256 that ends our own files.

Room: weights; never torch. Protects from bytes that changed on the disk: PyTorch compares no checksum.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emaseg.zip_archive import DamagedError, File, Member, Pieces, read_members, rebuilt

MARK = b"emaseg sha256 "  # the archive's comment: this, and the SHA-256 of all bytes before the comment as hexadecimal
COMMENT = len(MARK) + 64

_NEEDED = re.compile(r"data\.pkl|version|byteorder|data/[A-Za-z0-9_.-]{1,64}")  # what PyTorch needs for tensors
_CHUNK = 8 << 20  # large, so that the two threads seldom wait for each other


@dataclass(frozen=True, slots=True)
class Archive:
    """Members by name, without the folder that they all lie in; digest: the recorded SHA-256, "" = none.

    covered: how many bytes from the start of the file the digest is of.
    """

    members: Mapping[str, Member]
    digest: str
    covered: int


def read_archive(file: File) -> Archive:
    """The members of an archive that torch.save wrote.

    Raises:
        DamagedError: anything about it is not as torch.save writes it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - COMMENT))
    found = re.fullmatch(re.escape(MARK) + rb"([0-9a-f]{64})", file.read(COMMENT) or b"")
    comment = COMMENT if found else 0
    return Archive(read_members(file, comment), found[1].decode() if found else "", size - comment)


def check_members(file: File, members: Sequence[Member]) -> None:
    """
    Raises:
        DamagedError: a member's bytes are not those that were written.
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
            raise DamagedError(f"the content of {member.name} is not what was written (checksum)")


def without_extras(file: File, members: Mapping[str, Member], checked: Mapping[str, bytes]) -> Pieces:
    """A new archive of the members that PyTorch needs for tensors. checked: those that were read and compared before."""
    needed = [name for name in members if _NEEDED.fullmatch(name)]
    return rebuilt(file, {f"archive/{name}": checked.get(name, members[name]) for name in needed})
