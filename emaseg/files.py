"""Writing files whole or not at all, and saying plainly why one could not be written.

Room: next to errors; imports errors only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from emaseg.errors import SystemFault


def fault(error: OSError, path: Path, doing: str) -> SystemFault:
    """The reader's version of an operating-system error met while `doing` something to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemFault(f"{path}: the disk is full ({doing})", "free some space or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SystemFault(f"{path}: no permission ({doing})", "choose a folder you may write to")
    return SystemFault(f"{path}: {error.strerror or error} ({doing})", "check the path and the disk")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends well; otherwise nothing changes.

    The bytes go to a temporary file in the same folder, reach the disk, and are renamed over `path`.

    Raises:
        SystemFault: disk full, no permission, or another operating-system error.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise fault(error, path, "writing it") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as file:
        file.write(text.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        SystemFault: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fault(error, path, "creating the folder") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
