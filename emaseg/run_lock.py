"""A run folder has one owner: RUN/lock while it is being trained.

Room: run_lock; imports files, errors. Threat: a second trainer on the same folder, here, in another container or on
another machine that shares the disk, would write over what the first one writes.

The lock is a file of a few lines of JSON: who holds it. It appears under its name complete (link, which is atomic on
network disks, too) and its owner renews its time every few seconds. Whether an owner is alive is asked of whoever can
know it: the table of processes here, the system's lock (flock) on this kernel, else the file's time. Of many who take
over from a dead owner one wins: see `_claim`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import multiprocessing.util
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from emaseg.errors import RecipeError, SystemFault
from emaseg.files import fault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_FLOCK = fcntl is not None
NAME = "lock"
BEAT_SECONDS = 15.0  # between two signs of life
STALE_SECONDS = 300.0  # without one, where nothing else tells whether the owner is alive
_ATTEMPTS = 50
_LONGEST = 4096  # bytes of a lock file
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    boot: of the machine, space: of the process ids (a container has its own), began: when the process did, by the
    system's clock; "" where the system does not tell. disk: the mounted file system. flocked: the owner also holds the
    system's lock on the file. token: differs for every lock. A file that cannot be understood has pid 0.
    """

    host: str
    pid: int
    since: str
    boot: str
    space: str
    began: str
    disk: str
    flocked: bool
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}" if self.pid else "a lock that is not readable"


class RunLock:
    """A lock that this process holds; made by `hold`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.took_over = ""  # the dead owner before, for people
        self._owner = _here()
        self._mine = path.with_name(f".{NAME}.{self._owner.token}")
        self._handle = -1
        self._done = threading.Event()
        multiprocessing.util.register_after_fork(self, RunLock._close)  # a loading process keeps nothing

    def check(self) -> None:
        """Stop unless the lock is still ours: this process may have been asleep for so long that it counted as dead.

        Raises:
            SystemFault: it is another's; nothing must be written any more.
        """
        if self._is_ours(self.path):
            return
        holder = _read(self.path)
        if holder is None and self._restore():  # somebody deleted it
            return
        if not self.path.parent.is_dir():
            raise SystemFault(f"{self.path.parent}: the run folder is gone", "bring it back and go on with --resume")
        raise SystemFault(
            f"{self.path}: this run was taken over by {holder or 'another process'}; this process wrote nothing more",
            "leave it to that process, or stop that one and go on with --resume",
        )

    def take(self) -> None:
        """Take the lock, or say who has it.

        Raises:
            RecipeError: somebody alive has it.
            SystemFault: the folder cannot be written.
        """
        try:
            self._handle = _write(self._mine, self._owner)
            try:
                holder = self._claim()
                if holder is None:
                    self._remove_leftovers()
                else:
                    raise self._taken(*holder)
            finally:
                _remove(self._mine)
        except OSError as error:
            self._close()
            raise fault(error, self.path, "locking the run") from error
        except BaseException:
            self._close()
            raise
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def release(self) -> None:
        """Give it back; nothing happens in a forked process, and when it is another's by now."""
        if os.getpid() != self._owner.pid or self._handle < 0:
            return
        self._done.set()
        if self._is_ours(self.path):
            _remove(self.path)
        self._close()

    def _claim(self) -> tuple[Owner, float] | None:
        """Become the owner, or return a living one with the seconds since its last sign of life.

        A dead owner's lock is not removed (another one could remove the new owner's in its place) but inherited: the
        heir is who first creates the file called after the dead one's token; a dead heir is inherited from likewise. The
        heir then puts its own lock in the place of the old one. Who comes late and finds no trace of that any more
        creates the heir's file as well, but sees that the lock is no longer the dead one's.
        """
        for _ in range(_ATTEMPTS):
            if self._publish(self.path):
                return None
            first = holder = _read(self.path)
            if holder is None:  # just given back
                continue
            line: list[Path] = []
            while holder is not None:
                age = self._age(line[-1] if line else self.path)
                if _alive(holder, line[-1] if line else self.path, self._owner, age):
                    return holder, age
                line.append(self.path.with_name(f".{NAME}.{holder.token}.next"))
                if self._publish(line[-1]):
                    break
                holder = _read(line[-1])
            if holder is not None and self._inherit(first, line):
                self.took_over = str(first)
                return None
        raise OSError(errno.EBUSY, "others take and give back the lock all the time")

    def _inherit(self, first: Owner | None, line: list[Path]) -> bool:
        """Put our lock in the place of the dead one's, unless it has gone; the files of the heirs go last."""
        linked = os.path.lexists(self._mine)  # else the disk has no links, and the file of the heir is all there is
        if _read(self.path) != first:
            if linked:
                _remove(line[-1])
            else:
                os.replace(line[-1], self._mine)
            return False
        os.replace(self._mine if linked else line[-1], self.path)
        for path in line:
            _remove(path)
        return True

    def _publish(self, path: Path) -> bool:
        """Whether our lock now also stands under `path`, which nobody had."""
        try:
            os.link(self._mine, path)
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
            handle = _write(path, self._owner)
        except FileExistsError:
            return False
        os.close(self._handle)
        self._handle = handle
        _remove(self._mine)
        return True

    def _restore(self) -> bool:
        """Write the lock again that somebody deleted."""
        try:
            handle = _write(self.path, self._owner)
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
        if _same_processes(holder, here):
            return RecipeError(what, f"wait for it, or stop it (kill {holder.pid}), and go on with --resume")
        return RecipeError(
            f"{what}, last sign of life {age:.0f} s ago",
            f"wait for it, or stop it there; if that machine is gone, --resume takes the run over {_minutes()} after the "
            "last sign of life",
        )

    def _remove_leftovers(self) -> None:
        """Files of starts that were killed."""
        for path in self.path.parent.glob(f".{NAME}.*"):
            owner = None if path == self._mine else _read(path)
            if owner is not None and not _alive(owner, path, self._owner, self._age(path)):
                _remove(path)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._handle if os.utime in os.supports_fd else self.path)

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)


@contextlib.contextmanager
def hold(root: Path) -> Iterator[RunLock]:
    """The lock of a run folder within the block; folders that had to be made for it go again if they stay empty.

    Raises:
        RecipeError: somebody else trains there; says who, and what to do.
        SystemFault: the folder cannot be made or written.
    """
    with _made(root):
        lock = RunLock(root / NAME)
        lock.take()
        try:
            yield lock
        finally:
            lock.release()


@contextlib.contextmanager
def reserve(root: Path) -> Iterator[Path]:
    """A folder of this name that nobody else has, `<name>-2` where somebody has; gone after the block if it is empty.

    Raises:
        SystemFault: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        path = None
        while path is None:  # again where another start that ends takes the folder above away
            stack.enter_context(_made(root.parent))
            path = _first_free(root)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _first_free(root: Path) -> Path | None:
    """A new folder of the first free name; None where the one above is gone."""
    path = root
    for number in itertools.count(2):
        try:
            path.mkdir()
            break
        except FileExistsError:
            path = root.with_name(f"{root.name}-{number}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise fault(error, path, "creating the folder") from error
    return path


def is_lock(name: str) -> bool:
    """Whether a file of a run folder belongs to its lock."""
    return name == NAME or name.startswith(f".{NAME}.")


@contextlib.contextmanager
def _made(root: Path) -> Iterator[None]:
    """A folder and those above it within the block; those that were not there go again if they are empty."""
    made: list[Path] = []
    try:
        while not root.is_dir():  # again where one is taken away by another start that ends
            for folder in reversed([root, *root.parents]):
                if folder.is_dir():
                    continue
                try:
                    folder.mkdir()
                    made.insert(0, folder)
                except FileExistsError:
                    if os.path.lexists(folder) and not folder.is_dir():
                        raise SystemFault(f"{folder}: is no folder, or a link to nowhere", "choose another") from None
                except FileNotFoundError:
                    break
                except OSError as error:
                    raise fault(error, folder, "creating the folder") from error
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def _here() -> Owner:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    began = _began(os.getpid()) or ""
    boot = _first_line(Path("/proc/sys/kernel/random/boot_id"))
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return Owner(socket.gethostname(), os.getpid(), since, boot, space, began, "", False, secrets.token_hex(8))


def _write(path: Path, owner: Owner) -> int:
    """A new lock file, complete and on the disk; returns its open handle, which holds the system's lock if it can.

    Raises:
        FileExistsError: there is one.
        OSError: the disk does not take it; nothing is left.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        disk, flocked = str(os.fstat(handle).st_dev), _flock(handle, exclusive=True)
        content = {**asdict(owner), "disk": disk, "flocked": flocked}
        data = (json.dumps(content, indent=2) + "\n").encode()
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except BaseException:
        os.close(handle)
        _remove(path)
        raise
    return handle


def _read(path: Path) -> Owner | None:
    """Who holds a lock; None where there is none."""
    try:  # never through a link, never waiting for who writes into a pipe
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    except OSError:
        return _unreadable(path)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return _unreadable(path)
        content = json.loads(os.read(handle, _LONGEST))
        owner = Owner(**{key: content[key] for key in Owner.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _unreadable(path)
    finally:
        os.close(handle)
    texts = (owner.host, owner.since, owner.boot, owner.space, owner.began, owner.disk, owner.token)
    sound = all(isinstance(text, str) and text.isprintable() for text in texts) and owner.token.isalnum()
    return owner if sound and type(owner.pid) is int and 0 < owner.pid < 2**31 else _unreadable(path)


def _unreadable(path: Path) -> Owner:
    """Stands for a file that says nothing: its own time is all that is known."""
    try:
        state = os.lstat(path)
    except OSError:
        return Owner("", 0, "", "", "", "", "", False, "0")
    return Owner("", 0, "", "", "", "", "", False, f"{state.st_ino}x{state.st_mtime_ns}")


def _alive(owner: Owner, path: Path, here: Owner, age: float) -> bool:
    """Whether the owner of a lock lives, as far as can be told from here.

    Args:
        path: the owner's file. here: this process. age: seconds since the last sign of life.
    """
    if owner.pid and _same_processes(owner, here):
        began = _began(owner.pid)
        if began == "gone" or (began and owner.began and began != owner.began):
            return False  # ended, or its number is another process's now
        if began and owner.began:
            return True
    if owner.pid and owner.boot and owner.boot == here.boot and owner.flocked and owner.disk == _disk(path):
        return not _lock_is_free(path)  # another container, the same kernel and the same mounted disk
    if owner.pid and owner.host == here.host and owner.boot != here.boot and _before_this_boot(path):
        return False
    return age <= STALE_SECONDS


def _same_processes(owner: Owner, here: Owner) -> bool:
    """Whether a process number of the owner's means the same here."""
    if owner.boot or here.boot:  # a laptop changes its name with the network, but not its boot
        return (owner.boot, owner.space) == (here.boot, here.space)
    return owner.host == here.host


def _disk(path: Path) -> str:
    try:
        return str(os.lstat(path).st_dev)
    except OSError:
        return "gone"


def _began(pid: int) -> str:
    """When a process began, by the kernel's clock; "gone" if there is none, "" where it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "gone" if text[0] in (b"Z", b"X") else text[19].decode("ascii")
    except (OSError, IndexError, UnicodeDecodeError):
        pass
    if os.name != "posix":
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:  # another user's
        pass
    return ""


def _before_this_boot(path: Path) -> bool:
    """Whether a file was last touched before this machine started: then its owner went with the start before.

    Two machines of one name would look the same, but that the other one's lock is renewed.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/stat").read_text("ascii").splitlines()
        booted = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
        return os.lstat(path).st_mtime < min(booted, time.time() - BEAT_SECONDS)
    return False


def _flock(handle: int, *, exclusive: bool) -> bool:
    """Take the system's lock without waiting; False also where the disk has none."""
    if not HAS_FLOCK:
        return False
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_is_free(path: Path) -> bool:
    """Whether nobody on this kernel holds the system's lock on a file; asked together with others, none blocks another."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return _flock(handle, exclusive=False)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text("ascii").strip()
    return ""


def _minutes() -> str:
    return f"{STALE_SECONDS / 60:.0f} minutes"
