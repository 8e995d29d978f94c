"""Opening files in a folder that others can write to, too.

Room: weights; never torch.

Threat: in a shared cache somebody may have put a link to a file of ours, a FIFO or a device under a name that we are
about to use. Nothing is written through a link or into a file that also has another name, and no open waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from emaseg.files import READ, open_file

WRITE = READ | os.O_RDWR  # O_RDONLY is 0
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
MODE = 0o644  # of what we make, less the umask: others read it, nobody else changes it

_MOST_TEXT = 1 << 16  # bytes of a hash record or of a note; ours have less than a thousand


def user() -> int:
    """The number of the user whose rights we have; 0 where users have none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def read_text(path: Path, flags: int = READ, *, owner: int | None = None) -> str:
    """A small text file.

    Args:
        owner: whose it must be; None = anybody's.

    Raises:
        OSError: it cannot be read, is no regular file, too large for a text of ours, or not of `owner`.
        UnicodeDecodeError: not UTF-8.
    """
    with open_file(path, flags) as file:
        if owner is not None and os.fstat(file.fileno()).st_uid != owner:
            raise PermissionError(errno.EPERM, "Somebody else's file", str(path))
        content = file.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise OSError(errno.EFBIG, "Too large for a text", str(path))
    return content.decode("utf-8")


def is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one that `path` itself names now, not by way of a link."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    return False


def is_ours_alone(handle: int) -> bool:
    """Whether the open file is a regular one of this user's, without a second name somewhere else."""
    status = os.fstat(handle)
    return stat.S_ISREG(status.st_mode) and status.st_uid == user() and status.st_nlink == 1


def forbid_others(handle: int) -> None:
    """Take from others the right to change the open file, where the disk has such rights."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(handle, os.fstat(handle).st_mode & MODE)


def let_others_read(handle: int) -> None:
    """Let everybody read the open file, whatever our umask; a disk without owners (FAT, some shares) refuses, and has
    rights of its own."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(handle, MODE)
