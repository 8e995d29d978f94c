"""What has arrived of a download: <file>.part, and <file>.part.json that says of which address and version it is.

Room: weights; never torch.

In a shared cache <file>.part may be another user's, or a trap (opened.py). Then <file>.<user>.part serves, and when
that is not ours either, a temporary file that does not outlive the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from emaseg.errors import SystemFault
from emaseg.files import NO_LINK, READ, fault, open_regular, write_text
from emaseg.weights import opened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MARK = re.compile(r"[\x20-\x7e]{1,500}")  # what may stand in a header
_DOING = "saving the download"


@dataclass(frozen=True, slots=True)
class Version:
    """What the bytes in a .part file are of: the address, the server's mark of the version, the whole length."""

    url: str
    mark: str
    total: int | None


class Partial:
    """A .part file, open for this process alone; what is written is written through this handle, never by name."""

    def __init__(self, path: Path, handle: int, *, lasting: bool) -> None:
        self.path = path
        self._handle = handle
        self._lasting = lasting
        self._note = path.with_name(f"{path.name}.json")
        self.length = os.lseek(handle, 0, os.SEEK_END)

    def version(self, url: str) -> Version | None:
        """Of which version the bytes are; None when they are of no use for `url`."""
        try:
            text = opened.read_text(self._note, READ | NO_LINK, owner=opened.user())
            version = Version(**json.loads(text))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        if version.url != url or not isinstance(version.mark, str) or not _MARK.fullmatch(version.mark):
            return None
        whole = version.total is None or (isinstance(version.total, int) and self.length <= version.total < 10**18)
        return version if whole else None

    def begin(self, version: Version) -> None:
        """Empty it for a version; the note is written only then, so it is never of other bytes."""
        self.clear()
        if _MARK.fullmatch(version.mark):
            with contextlib.suppress(SystemFault):  # without a note it cannot be resumed, that is all
                write_text(self._note, json.dumps(asdict(version)))

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            SystemFault: the disk refuses.
        """
        view = memoryview(chunk)
        try:
            while view:
                count = os.write(self._handle, view)
                self.length += count
                view = view[count:]
        except OSError as error:
            raise fault(error, self.path, f"{_DOING}; what has arrived is kept") from error

    def sync(self) -> None:
        """Wait until all of it is on the disk.

        Raises:
            SystemFault: the disk refuses.
        """
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise fault(error, self.path, _DOING) from error

    def release(self) -> None:
        """Close it, that it may be renamed where the system renames no open file (Windows)."""
        os.close(self._handle)
        self._handle = -1

    def clear(self) -> None:
        """Forget what has arrived.

        Raises:
            SystemFault: the disk refuses.
        """
        with contextlib.suppress(OSError):
            self._note.unlink()
        try:
            if self._handle < 0:
                self.path.unlink(missing_ok=True)
                self._handle = os.open(self.path, opened.NEW, opened.MODE)
            os.ftruncate(self._handle, 0)
            self.length = os.lseek(self._handle, 0, os.SEEK_SET)
        except OSError as error:
            raise fault(error, self.path, _DOING) from error

    def close(self) -> None:
        """Close it; it stays when a later try can continue it; otherwise it is removed, with its note."""
        there = self._handle >= 0 and opened.is_at(self._handle, self.path)  # else it has become the weights
        if not (there and self.length and self._lasting):
            for file in (self._note, self.path) if there else (self._note,):
                with contextlib.suppress(OSError):
                    file.unlink()
        with contextlib.suppress(OSError):
            os.close(self._handle)


def claim(final: Path) -> Partial:
    """The .part file of the weights `final` that this process writes to, until it is closed.

    Raises:
        SystemFault: the folder cannot be written to.
    """
    try:
        for name in (f"{final.name}.part", f"{final.name}.{opened.user()}.part"):
            handle = _own(final.with_name(name))
            if handle is not None:
                return Partial(final.with_name(name), handle, lasting=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
        opened.let_others_read(handle)
        return Partial(Path(temporary), handle, lasting=False)
    except OSError as error:
        raise fault(error, final, _DOING) from error


def _own(path: Path) -> int | None:
    """A handle of the file, made if need be; None when it is another's, a trap, or another process writes to it.

    Raises:
        OSError: it is not there and cannot be made.
    """
    try:
        handle, made = os.open(path, opened.NEW, opened.MODE), True
    except FileExistsError:
        try:
            handle, made = open_regular(path, opened.WRITE | NO_LINK), False
        except OSError:
            return None
    # What is ours is asked of the open file, for the name may change hands meanwhile. The lock on it keeps two
    # processes apart also where the lock file was removed under them.
    if (made or opened.is_ours_alone(handle)) and _locked(handle) and opened.is_at(handle, path):
        opened.forbid_others(handle)
        return handle
    os.close(handle)
    return None


def _locked(handle: int) -> bool:
    """Whether no other process has the file locked; true where the system has no such locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True
