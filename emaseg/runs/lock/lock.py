"""Taking, keeping and giving back the lock of a run folder; of many who take over from a dead owner one wins.

Room: runs/lock.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from emaseg.errors import RecipeError, SystemFault
from emaseg.files import fault
from emaseg.runs.lock.folders import kept_if_used
from emaseg.runs.lock.owner import (
    BEAT_SECONDS,
    STALE_SECONDS,
    Owner,
    is_alive,
    read_lock,
    remove,
    same_processes,
    this_process,
    write_lock,
)

NAME = "lock"
_ATTEMPTS = 50
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def hold(root: Path) -> Iterator[RunLock]:
    """The lock of a run folder within the block; folders that had to be made for it go again if they stay empty.

    Raises:
        RecipeError: somebody else trains there; says who, and what to do.
        SystemFault: the folder cannot be made or written.
    """
    with kept_if_used(root):
        lock = RunLock(root / NAME)
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()


def is_lock(name: str) -> bool:
    """Whether a file of a run folder belongs to its lock."""
    return name == NAME or name.startswith(f".{NAME}.")


def alive_owner(root: Path) -> str:
    """Who trains in a run folder now, as far as can be told from here; "" where nobody does. Nothing is changed."""
    path = root / NAME
    owner = read_lock(path)
    if owner is None:
        return ""
    try:
        age = abs(time.time() - os.lstat(path).st_mtime)
    except OSError:  # given back since
        return ""
    return str(owner) if is_alive(owner, path, this_process(), age) else ""


class RunLock:
    """A lock that this process holds; made by `hold`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.took_over = ""  # the dead owner before, for people
        self._owner = this_process()
        self._own_file = path.with_name(f".{NAME}.{self._owner.token}")
        self._handle = -1
        self._done = threading.Event()
        self._checking = threading.Lock()  # checkpoints are written by a thread of their own
        multiprocessing.util.register_after_fork(self, RunLock._close)  # a loading process keeps nothing

    def check(self) -> None:
        """Stop unless the lock is still ours: this process may have been asleep for so long that it counted as dead.

        Raises:
            SystemFault: it is another's; nothing must be written any more.
        """
        with self._checking:
            self._check()

    def _check(self) -> None:
        if self._is_ours(self.path):
            return
        holder = read_lock(self.path)
        if holder is None and self._restore():  # somebody deleted it
            return
        if not self.path.parent.is_dir():
            raise SystemFault(f"{self.path.parent}: the run folder is gone", "bring it back and continue with --resume")
        raise SystemFault(
            f"{self.path}: this run was taken over by {holder or 'another process'}; this process wrote nothing more",
            "leave it to that process, or stop that one and continue with --resume",
        )

    def acquire(self) -> None:
        """Take the lock, or say who has it.

        Raises:
            RecipeError: somebody alive has it.
            SystemFault: the folder cannot be written.
        """
        try:
            self._handle = write_lock(self._own_file, self._owner)
            try:
                holder = self._claim()
                if holder is None:
                    self._remove_leftovers()
                else:
                    raise self._taken(*holder)
            finally:
                remove(self._own_file)
        except OSError as error:
            self._close()
            raise fault(error, self.path, "locking the run") from error
        except BaseException:
            self._close()
            raise
        threading.Thread(target=self._keep_alive, name="run-lock", daemon=True).start()

    def release(self) -> None:
        """Give it back; nothing happens in a forked process, and when it is another's by now."""
        if os.getpid() != self._owner.pid or self._handle < 0:
            return
        self._done.set()
        if self._is_ours(self.path):
            remove(self.path)
        self._close()

    def _claim(self) -> tuple[Owner, float] | None:
        """Become the owner, or return a living one with the seconds since its last sign of life.

        A dead owner's lock is not removed (another one could remove the new owner's in its place) but inherited: the
        successor is who first creates the file called after the dead one's token; a dead successor is inherited from likewise. The
        successor then puts its own lock in the place of the old one. Who comes late and finds no trace of that any more
        creates the successor's file as well, but sees that the lock is no longer the dead one's.
        """
        for _ in range(_ATTEMPTS):
            if self._publish(self.path):
                return None
            first = holder = read_lock(self.path)
            if holder is None:  # just given back
                continue
            line: list[Path] = []
            while holder is not None:
                age = self._age(line[-1] if line else self.path)
                if is_alive(holder, line[-1] if line else self.path, self._owner, age):
                    return holder, age
                line.append(self.path.with_name(f".{NAME}.{holder.token}.next"))
                if self._publish(line[-1]):
                    break
                holder = read_lock(line[-1])
            if holder is not None and self._inherit(first, line):
                self.took_over = str(first)
                return None
        raise OSError(errno.EBUSY, "others take and give back the lock all the time")

    def _inherit(self, first: Owner | None, line: list[Path]) -> bool:
        """Put our lock in the place of the dead one's, unless it has gone; the files of the successors go last."""
        linked = os.path.lexists(
            self._own_file
        )  # else the disk has no links, and the file of the successor is all there is
        if read_lock(self.path) != first:
            if linked:
                remove(line[-1])
            else:
                os.replace(line[-1], self._own_file)
            return False
        os.replace(self._own_file if linked else line[-1], self.path)
        for path in line:
            remove(path)
        return True

    def _publish(self, path: Path) -> bool:
        """Whether our lock now also stands under `path`, which nobody had."""
        try:
            os.link(self._own_file, path)
        except FileExistsError:
            return self._is_ours(path)  # a network disk's answer to a request that it was sent twice
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._publish_exclusively(path)
        return True

    def _publish_exclusively(self, path: Path) -> bool:
        """The same where the disk has no links: for an instant the file is there and empty."""
        try:
            handle = write_lock(path, self._owner)
        except FileExistsError:
            return False
        os.close(self._handle)
        self._handle = handle
        remove(self._own_file)
        return True

    def _restore(self) -> bool:
        """Write the lock again that somebody deleted."""
        try:
            handle = write_lock(self.path, self._owner)
        except OSError:
            return False
        old, self._handle = self._handle, handle
        os.close(old)
        return True

    def _age(self, path: Path) -> float:
        """Seconds since the last sign of life, by the clock of the disk; a time that lies ahead counts the same way."""
        try:
            return abs(os.fstat(self._handle).st_mtime - os.lstat(path).st_mtime)
        except FileNotFoundError:
            return 0.0

    def _is_ours(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), os.lstat(path))
        except OSError:
            return False

    def _taken(self, holder: Owner, age: float) -> RecipeError:
        here = self._owner
        what = f"{self.path.parent}: is being trained by {holder} ({self.path})"
        if not holder.pid:
            hint = f"if nobody trains it, delete that file; it counts for nothing {_minutes()} after it was written"
            return RecipeError(f"{self.path.parent}: {holder} is there ({self.path})", hint)
        if same_processes(holder, here):
            return RecipeError(what, f"wait for it, or stop it (kill {holder.pid}), and continue with --resume")
        return RecipeError(
            f"{what}, last sign of life {age:.0f} s ago",
            f"wait for it, or stop it there; if that machine is gone, --resume takes the run over {_minutes()} after the "
            "last sign of life",
        )

    def _remove_leftovers(self) -> None:
        """Files of starts that were killed."""
        for path in self.path.parent.glob(f".{NAME}.*"):
            owner = None if path == self._own_file else read_lock(path)
            if owner is not None and not is_alive(owner, path, self._owner, self._age(path)):
                remove(path)

    def _keep_alive(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._handle if os.utime in os.supports_fd else self.path)

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)


def _minutes() -> str:
    return f"{STALE_SECONDS / 60:.0f} minutes"
