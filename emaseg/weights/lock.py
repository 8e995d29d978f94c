"""One process at a time: a lock file that its owner's death releases.

Room: weights; imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_SECONDS = 300.0  # without a sign of life, where the system has no locks that die with their owner


class Lock:
    """A lock on `path`. `take` never waits; the file is gone after `drop`.

    The system's own lock (flock) is used where there is one. Elsewhere, and on network disks without it, the file's
    existence is the lock: then `alive` must be called now and then, for a lock without a sign of life is taken over.
    """

    def __init__(self, path: Path, *, portable: bool = fcntl is None) -> None:
        self.path = path
        self._portable = portable
        self._handle: int | None = None

    def take(self) -> bool:
        """Whether the lock is ours now.

        Raises:
            OSError: the file cannot be created.
        """
        if not self._portable:
            try:
                return self._take_system()
            except _NoSystemLockError:
                self._portable = True
        return self._take_portable()

    def alive(self) -> None:
        """A sign of life for those who wait."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def drop(self) -> None:
        """Give the lock back; nothing happens when it is not ours."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if self._is_ours(self._handle):  # and not that of one who thought us dead
                os.unlink(self.path)
        os.close(self._handle)
        self._handle = None

    def _take_system(self) -> bool:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_ours(handle):  # else its last owner has removed it since
                self._handle, handle = handle, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            raise _NoSystemLockError from error
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def _is_ours(self, handle: int) -> bool:
        """Whether the file that is there now is the open one."""
        return os.path.samestat(os.fstat(handle), os.stat(self.path))

    def _take_portable(self) -> bool:
        try:
            self._handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            self._remove_stale()
            return False
        return True

    def _remove_stale(self) -> None:
        """Move a lock out of the way that nobody has touched for long; of several who try, one succeeds."""
        away = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            if time.time() - self.path.stat().st_mtime > STALE_SECONDS:
                os.rename(self.path, away)
                os.unlink(away)


class _NoSystemLockError(Exception):
    """This disk has no flock."""
