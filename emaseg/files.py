"""Opening untrusted files without waiting, writing files whole or not at all, and saying plainly why neither worked.

Room: the ground.

Threat: a named pipe in a file's place makes the reader wait for ever, /dev/zero fills its memory, a terminal becomes
the process's own, a link leads what is written into another file, and a kill or a full disk leaves half a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedRandom, BufferedReader, FileIO
from pathlib import Path
from typing import Any

from emaseg.errors import SystemFault

READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
MOST_BYTES = 2 << 30  # of a file that is read into memory whole

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_ADD = READ | os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_LINK  # O_RDONLY is 0
_RIGHTS = 0o666  # of a new file, less the umask, which is the system's own affair
_CHUNK = 8 << 20  # bytes that are hashed at once; large, so that a second thread seldom waits for the first


def fault(error: OSError, path: Path, doing: str) -> SystemFault:
    """The reader's version of an operating-system error met while `doing` something to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemFault(f"{path}: the disk is full ({doing})", "free some space or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SystemFault(f"{path}: no permission ({doing})", "choose a folder you may write to")
    if error.errno == errno.EMFILE:
        return SystemFault(f"{path}: too many files are open at once ({doing})", "allow more of them: ulimit -n 65536")
    if error.errno == errno.ENFILE:
        return SystemFault(f"{path}: the system has too many files open ({doing})", "end other programs")
    return SystemFault(f"{path}: {error.strerror or error} ({doing})", "check the path and the disk")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over where files are searched for: what macOS packs into archives
    beside their content is, too."""
    return name[:1] == "." or name == "__MACOSX"


# ---------------------------------------------------------------------------------------------------------- reading
def open_regular(path: Path | str, flags: int = READ) -> int:
    """The descriptor of a regular file, made if `flags` say so; pipes, sockets and devices are refused and never waited
    for.

    Raises:
        OSError: it cannot be opened, is none, or has a name that no file can have; its `strerror` says it in words.
            IsADirectoryError for a folder.
    """
    try:
        handle = os.open(path, flags, _RIGHTS)
    except ValueError as error:  # a null character, or one that the system's encoding lacks
        raise OSError(errno.EINVAL, "no file can have this name") from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise _not_regular(path) from error
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _not_regular(path)


def _not_regular(path: Path | str) -> OSError:
    return OSError(errno.ENODEV, "a pipe, socket or device, not an ordinary file", str(path))


def open_file(path: Path | str, flags: int = READ) -> BufferedReader:
    """A regular file, opened for reading.

    Raises:
        OSError: as `open_regular`.
    """
    return BufferedReader(FileIO(open_regular(path, flags)))


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """A regular file's bytes.

    Raises:
        OSError: as `open_regular`, or it holds more than `most` bytes.
        MemoryError: they do not fit.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
        return file.read(size)


def sha256_of(file: FileIO | BufferedReader | BufferedRandom, start: int = 0, count: int | None = None) -> str:
    """SHA-256 of an open file's bytes from `start`, `count` of them or all, as 64 hexadecimal digits.

    Raises:
        OSError: they cannot be read.
    """
    digest = hashlib.sha256()
    left = file.seek(0, os.SEEK_END) - start if count is None else count
    buffer = memoryview(bytearray(max(0, min(left, _CHUNK))))
    file.seek(start)
    while left > 0 and (got := file.readinto(buffer[:left])):
        digest.update(buffer[:got])
        left -= got
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- writing
@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BufferedRandom]:
    """A binary file that appears under `path` only when the block ends well; otherwise nothing changes.

    It may also be read. The bytes go to a temporary file in the same folder, reach the disk, and are renamed over `path`.

    Raises:
        SystemFault: disk full, no permission, or another operating-system error; also where the block ends in an error
            of its own because of it, as with PyTorch's writers.
    """
    path = Path(path)
    temporary: Path | None = None
    raw: _Remembering | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path)
        raw = _Remembering(handle, "w+")
        with BufferedRandom(raw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if raw.error is not None:  # which the block has kept to itself
            raise raw.error
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except Exception as error:
        cause = error if raw is None or raw.error is None else raw.error
        if not isinstance(cause, OSError):
            raise
        raise fault(cause, path, "writing it") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


class _Remembering(FileIO):
    """Keeps the first error of the disk: who writes may replace it by one of its own (torch.save, zipfile)."""

    error: OSError | None = None

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, and its open handle.

    It has the rights of any new file from the start: to set them later is refused on disks without owners (FAT, some
    shares), and asks for the umask, which all threads have in common.
    """
    while True:
        place = path.parent / f".{path.name[:40]}.{os.urandom(4).hex()}.part"
        with contextlib.suppress(FileExistsError):
            return os.open(place, _NEW, _RIGHTS), place


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as file:
        file.write(text.encode("utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file; all of them or none.

    A disk that is nearly full takes a part of a write: the rest is tried again, and where that fails the file is cut
    back to what it was. A line that a crash left half written is ended first, so that it spoils no other.

    Raises:
        SystemFault: disk full, no permission, or another operating-system error; or `path` is a link, whose lines would
            come into another file, or no file.
    """
    try:
        handle = open_regular(path, _ADD)
        try:
            whole = os.fstat(handle).st_size
            data = text.encode("utf-8", "backslashreplace")
            if whole and not _ends_a_line(handle, whole):
                data = b"\n" + data
            try:
                while data:
                    data = data[os.write(handle, data) :]
            except BaseException:
                os.ftruncate(handle, whole)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        if os.path.islink(path):
            raise SystemFault(f"{path}: is a link, and lines are added to a file alone", "move it away") from error
        raise fault(error, path, "adding a line") from error


def _ends_a_line(handle: int, size: int) -> bool:
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) == b"\n"


def sync(path: Path) -> None:
    """Bring what was added to a file onto the disk; nothing happens where there is no such file.

    Raises:
        SystemFault: the disk does not take it.
    """
    try:
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return
    except OSError as error:
        raise fault(error, path, "writing it") from error


def set_aside(path: Path) -> Path:
    """Rename whatever is at `path` (a link itself, not what it leads to) to a free name beside it; returns that name.

    Raises:
        SystemFault: it cannot be renamed.
    """
    number = 1
    aside = path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        os.rename(path, aside)
    except OSError as error:
        raise fault(error, path, "moving it out of the way") from error
    return aside


def is_shared(path: Path) -> bool:
    """Whether writing into the file at `path` changes what another name leads to: it is a link, or has a second name."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(state.st_mode) or state.st_nlink > 1


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file or a link to one; False for what is not there, and for what cannot be a file.

    Raises:
        SystemFault: the folder does not let us look.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise fault(error, path, "looking at it") from error


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        SystemFault: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fault(error, path, "creating the folder") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
