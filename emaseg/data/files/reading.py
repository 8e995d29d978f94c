"""Opening files that strangers may have put in place of data: never waiting for one, never reading without end.

Room: data. Imports nothing of it.

A data set's folder may hold a FIFO, a socket or a link to /dev/zero under an image's name. An ordinary open() waits on
the first for ever and an ordinary read() of the last fills the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST = 2 << 30  # bytes of a file that is read into memory whole


def open_ordinary(path: Path | str) -> BinaryIO:
    """A file opened for reading.

    Raises:
        OSError: it cannot be opened, is no ordinary file, or has a name that no file can have; strerror says which.
    """
    try:
        file = open(path, "rb", opener=_at_once)  # noqa: SIM115 (the caller closes it)
    except ValueError as error:  # a null character, or one that the system's encoding lacks
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not an ordinary file")
    return file


def read_ordinary(path: Path | str, most: int = LARGEST) -> bytes:
    """A file's bytes.

    Raises:
        OSError: as open_ordinary, or it holds more than `most` bytes.
        MemoryError: they do not fit.
    """
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
        return file.read(size)


def _at_once(path: str, flags: int) -> int:
    """The file's descriptor, without waiting for the other end of a FIFO, and without making a terminal ours."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
