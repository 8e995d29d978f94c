"""Who holds a lock: what a process says of itself in its lock file, and whether it still lives.

Room: runs/lock. Threat: a process's number is soon another's, a container has numbers of its own, clocks of two machines
differ, and a lock file may be a link or a pipe. So the question whether it lives goes to whoever can know: the table of processes here,
the system's lock (flock) on this kernel, else the file's time by the disk's clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from emaseg.files import NO_LINK, READ, open_regular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_FLOCK = fcntl is not None
BEAT_SECONDS = 15.0  # between two signs of life
STALE_SECONDS = 300.0  # without one, where nothing else tells whether the owner is alive
_LONGEST = 4096  # bytes of a lock file


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


def this_process() -> Owner:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    began = _began(os.getpid()) or ""
    boot = _first_line(Path("/proc/sys/kernel/random/boot_id"))
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return Owner(socket.gethostname(), os.getpid(), since, boot, space, began, "", False, secrets.token_hex(8))


def write_lock(path: Path, owner: Owner) -> int:
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
        remove(path)
        raise
    return handle


def read_lock(path: Path) -> Owner | None:
    """Who holds a lock; None where there is none."""
    try:  # never through a link, never waiting for who writes into a pipe
        handle = open_regular(path, READ | NO_LINK)
    except FileNotFoundError:
        return None
    except OSError:
        return _unreadable(path)
    try:
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


def is_alive(owner: Owner, path: Path, here: Owner, age: float) -> bool:
    """Whether the owner of a lock lives, as far as can be told from here.

    Args:
        path: the owner's file. here: this process. age: seconds since the last sign of life.
    """
    if owner.pid and same_processes(owner, here):
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


def same_processes(owner: Owner, here: Owner) -> bool:
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
        handle = open_regular(path)
    except OSError:
        return False
    try:
        return _flock(handle, exclusive=False)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text("ascii").strip()
    return ""
