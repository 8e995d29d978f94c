"""The weight files on this machine: finding them, and holding them to what they were when first seen.

Room: weights; never torch.

    <cache>/<file>           the weights, whole
    <cache>/<file>.sha256    what sha256sum -c reads; its first line also holds size and time of the file
    <cache>/<file>.part      what has arrived of a download so far (download.py)

Nobody publishes hashes of these files. So the first copy's is recorded, and any other content is refused from then on.
What cannot be the weights, by its size, is never recorded.

The cache may be shared between users. Who can write to the folder can replace a file and its record together, and
nothing here can tell; everybody else cannot. Between looking at a file and loading it, such a writer could replace it
too: a cache is as trustworthy as those who may write to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import Literal

from emaseg.errors import SystemFault, WeightsError
from emaseg.files import NO_LINK, READ, fault, is_file, make_folder, open_file, sha256_of
from emaseg.resources import cache_folder
from emaseg.signatures import HEAD
from emaseg.weights import opened
from emaseg.weights.kind import not_weights
from emaseg.weights.record import Record, forbidden, read_record, record_of, write_record
from emaseg.weights.released import Released
from emaseg.weights.weight_archive import check_members, read_archive
from emaseg.words import printable, size
from emaseg.zip_archive import DamagedError

State = Literal["absent", "here", "recorded"]


def locate(entry: Released, folder: Path | None = None) -> Path | None:
    """The entry's file in the cache, under any name it goes by; None when it is not there.

    Raises:
        SystemFault: the folder cannot be looked into.
    """
    folder = folder or cache_folder()
    return next((folder / name for name in entry.files if is_file(folder / name)), None)


def state(entry: Released, folder: Path | None = None) -> State:
    """Whether the file is in the cache, and with a recorded hash. Reads no weights."""
    path = locate(entry, folder)
    if path is None:
        return "absent"
    return "recorded" if record_of(path).is_file() else "here"


def verified(entry: Released, path: Path, *, full: bool = False) -> Record:
    """Check a cached file against its record and the manifest; records what had no record and can be the weights.

    The file is read only when its size or time differ from the record's, or when `full`.

    Raises:
        WeightsError: it has changed, or is not the published file.
    """
    before = read_record(path)
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            if before and not full and (status.st_size, status.st_mtime_ns) == (before.size, before.mtime_ns):
                return before
            now = Record(sha256_of(file), status.st_size, status.st_mtime_ns)
            unfit = _unfit(entry, file)
    except PermissionError as error:
        raise forbidden(path) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})", "check the disk") from error
    _compare(entry, now, before, path)
    if now != before and (before or not unfit):
        with contextlib.suppress(SystemFault):  # a cache that may only be read serves as well
            write_record(path, now)
    return now


def implausible(entry: Released, count: int) -> str:
    """Why a file of `count` bytes cannot be these weights; "" when it can."""
    if entry.size is None and count < entry.least:
        return f"has {size(count)}; the network's tensors alone take {size(entry.megabytes * 1e6)}"
    if entry.size is None and count > entry.most:
        return f"has {size(count)}, far more than the network's tensors ({size(entry.megabytes * 1e6)})"
    return ""


def unfit(entry: Released, path: Path) -> str:
    """Why a file cannot be these weights, as far as its first bytes and its size tell; "" when it can.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        return _unfit(entry, file)


def install(entry: Released, candidate: Path, final: Path, name: str) -> Record:
    """Make `candidate`, a file beside it, the weights `final`: check all that can be checked, then rename.

    Its bytes must have reached the disk. `name` stands for it in messages.

    Raises:
        WeightsError: not a weight file, damaged, not the published one, or not the one that was here before.
        SystemFault: the disk refuses.
    """
    try:
        with open_file(candidate, READ | NO_LINK) as file:
            status = os.fstat(file.fileno())
            reason = _unfit(entry, file) or _damage(file)
            if reason:
                raise WeightsError(f"{name}: {reason}")
            now = Record(sha256_of(file), status.st_size, status.st_mtime_ns)
            before = read_record(final)
            _compare(entry, now, before, final)
            after = os.fstat(file.fileno())
            same = (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
            if not (same and opened.is_at(file.fileno(), candidate)):
                raise WeightsError(f"{name}: changed while it was checked", "see who else writes to the folder")
            if os.name == "nt":  # which renames no open file
                file.close()
            os.replace(candidate, final)
            if not file.closed and not opened.is_at(file.fileno(), final):
                raise WeightsError(f"{final}: replaced while it was checked", "see who else writes to the folder")
    except OSError as error:
        raise fault(error, final, "putting the weights there") from error
    try:
        write_record(final, now)
    except SystemFault:
        if before is None:  # else another user's record says the same already
            raise
    return now


def import_from(entry: Released, source: Path, folder: Path | None = None) -> Path | None:
    """Bring the entry's file from the folder `source` into the cache, as a link where the disk allows it.

    Returns:
        Its place in the cache; None when `source` holds it under none of its names.

    Raises:
        WeightsError: not a weight file, damaged, or not the one that was here before.
        SystemFault: the disk refuses.
    """
    folder = folder or cache_folder()
    found = next((source / name for name in entry.files if is_file(source / name)), None)
    if found is None:
        return None
    final = folder / entry.file
    make_folder(folder)
    candidate: Path | None = None
    try:
        if reason := unfit(entry, found):  # before it is copied
            raise WeightsError(f"{found}: {reason}")
        if final.exists() and final.samefile(found):
            verified(entry, final)
            return final
        handle, name = tempfile.mkstemp(prefix=f".{entry.file}.", suffix=".part", dir=folder)
        os.close(handle)
        candidate = Path(name)
        _link_or_copy(found.resolve(), candidate)
        install(entry, candidate, final, str(found))
        return final
    except OSError as error:
        raise fault(error, final, f"copying {found}") from error
    finally:
        if candidate is not None:
            candidate.unlink(missing_ok=True)


def by_hand_advice(entry: Released, folder: Path | None = None) -> str:
    """How to get the file there by hand."""
    where = f"download {entry.url}" if entry.url else f"look for {entry.file} on {entry.page}, download it"
    return f"{where} and save it as {(folder or cache_folder()) / entry.file}"


def _compare(entry: Released, now: Record, before: Record | None, path: Path) -> None:
    if entry.size is not None and now.size != entry.size:
        raise WeightsError(
            f"{path}: has {now.size} bytes, the published file {entry.size}", "remove the file and download it again"
        )
    if entry.sha256 and now.sha256 != entry.sha256:
        raise WeightsError(
            f"{path}: its SHA-256 is {now.sha256}, the published one {entry.sha256}",
            "remove the file and download it again",
        )
    if before is not None and now.sha256 != before.sha256:
        raise WeightsError(
            f"{path}: not the content that was here first (SHA-256 {now.sha256}, recorded {before.sha256})",
            "the file is damaged, or its owner has replaced it; "
            f"to trust the new content, remove {record_of(path)} (and the file, to download it again)",
        )


def _unfit(entry: Released, file: BufferedReader) -> str:
    """Why a file cannot be these weights, as far as its first bytes and its size tell; "" when it can."""
    file.seek(0)
    return not_weights(file.read(HEAD)) or implausible(entry, os.fstat(file.fileno()).st_size)


def _damage(file: BufferedReader) -> str:
    """Why an archive is not whole; "" when it is, or when its format (a pickle) does not tell."""
    file.seek(0)
    if file.read(2) != b"PK":
        return ""
    try:
        archive = read_archive(file)
    except DamagedError as error:
        return f"a damaged or incomplete archive ({error})"
    if "data.pkl" not in archive.members:
        return "an archive, but not one that torch.save wrote (it has no data.pkl)"
    try:
        check_members(file, list(archive.members.values()))
    except DamagedError as error:
        return f"a damaged archive ({printable(str(error))})"
    return ""


def _link_or_copy(source: Path, target: Path) -> None:
    """Replace `target` by a link to `source`; by a copy where links are not possible, or others could not read it."""
    target.unlink()
    if os.name == "nt" or source.stat().st_mode & stat.S_IROTH:
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
    with source.open("rb") as old, os.fdopen(os.open(target, opened.NEW, opened.MODE), "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def free_bytes(folder: Path) -> int:
    """Free space of the disk that `folder` lies on."""
    return shutil.disk_usage(folder).free
