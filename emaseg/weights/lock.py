"""One process at a time: a lock file that its owner's death releases, between users too.

Room: weights; never torch.

Why not the library filelock: it needs write access to the lock file of another user, which shared folders do not give.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from emaseg.files import NO_LINK, READ, open_regular
from emaseg.weights import opened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_SECONDS = 300.0  # without a sign of life, where the system has no locks that die with their owner


class UnusableError(Exception):
    """What lies in the lock's place can be no lock of ours; says why."""


class Lock:
    """A lock on `path`. `acquire` never waits; the file is gone after `release`.

    The system's own lock (flock) is used where there is one; reading the file is enough for it, so another user's
    does as well. Elsewhere, and on network disks without it, the file's existence is the lock: then `renew` must be
    called now and then, for a lock without a sign of life is taken over.

    It saves work and guards nothing: who loses it, or finds it unusable, may still continue with files of its own.
    """

    def __init__(self, path: Path, *, portable: bool = fcntl is None) -> None:
        self.path = path
        self._portable = portable
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Whether the lock is ours now.

        Raises:
            UnusableError: a link, a folder or an unreadable file is in its place.
            OSError: the file cannot be created.
        """
        if not self._portable:
            try:
                return self._acquire_system()
            except _NoSystemLockError:
                self._portable = True
        return self._acquire_portable()

    def renew(self) -> None:
        """A sign of life for those who wait."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.utime(self._handle if os.utime in os.supports_fd else self.path)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not ours."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if opened.is_at(self._handle, self.path):  # and not that of one who thought us dead
                os.unlink(self.path)  # while we hold it: who opened it meanwhile sees that it is gone
        os.close(self._handle)
        self._handle = None

    def _acquire_system(self) -> bool:
        found = self._open()
        if found is None:
            return False
        handle, writable = found
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if opened.is_at(handle, self.path):  # else its last owner has removed it since
                self._handle, handle = handle, -1
                return True
        except BlockingIOError:
            pass
        except OSError as error:
            if not writable:  # NFS locks only what can be written
                raise UnusableError(error.strerror) from error
            raise _NoSystemLockError from error
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def _open(self) -> tuple[int, bool] | None:
        """A handle of the lock file, made if need be, and whether it can be written to; None when it just vanished.

        Not O_CREAT for what is there: in a folder like /tmp Linux refuses that for another user's file.
        """
        with contextlib.suppress(FileExistsError):
            handle = os.open(self.path, opened.NEW, opened.MODE)
            opened.let_others_read(handle)  # and lock it
            return handle, True
        try:
            try:
                handle, writable = open_regular(self.path, opened.WRITE | NO_LINK), True
            except PermissionError:
                handle, writable = open_regular(self.path, READ | NO_LINK), False
        except FileNotFoundError:
            return None
        except OSError as error:
            link = error.errno in (errno.ELOOP, getattr(errno, "EMLINK", -1))
            raise UnusableError("it is a link" if link else error.strerror or str(error)) from error
        if os.fstat(handle).st_nlink > 1:  # a file of somebody's, whose time `renew` would change
            os.close(handle)
            raise UnusableError("it is a link")
        return handle, writable

    def _acquire_portable(self) -> bool:
        try:
            self._handle = os.open(self.path, opened.NEW, opened.MODE)
        except FileExistsError:
            self._remove_stale()
            return False
        return True

    def _remove_stale(self) -> None:
        """Remove a lock that nobody has touched for long; of several who try, one succeeds.

        A lock is known by inode and time. Who creates the file named after both may remove that lock, and looks once more
        whether it is still there: a faster one's new lock has another name, and stays.
        """
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if not _is_stale(found):
                return
            right = self.path.with_name(f"{self.path.name}.{found.st_ino:x}-{found.st_mtime_ns:x}")
            try:
                os.close(os.open(right, opened.NEW, opened.MODE))
            except FileExistsError:  # its owner is at it, or died doing it
                if _is_stale(os.lstat(right)):
                    os.unlink(right)
                return
            try:
                now = os.lstat(self.path)
                if (now.st_ino, now.st_mtime_ns) == (found.st_ino, found.st_mtime_ns):
                    os.unlink(self.path)
            finally:
                os.unlink(right)


def _is_stale(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > STALE_SECONDS


class _NoSystemLockError(Exception):
    """This disk has no flock."""
