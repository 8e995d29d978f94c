"""The weight files on this machine: finding them, and holding them to what they were when first seen.

Room: weights; imports errors, files, resources and the manifest; never torch.

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
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from emaseg.errors import SystemFault, WeightsError
from emaseg.files import NO_LINK, READ, fault, is_file, make_folder, open_file, sha256_of, write_text
from emaseg.resources import cache_folder
from emaseg.signatures import HEAD
from emaseg.weights import opened
from emaseg.weights.kind import not_weights
from emaseg.weights.released import Released
from emaseg.words import printable, size

State = Literal["absent", "here", "recorded"]

_LINE = re.compile(
    r"(?:# size ([0-9]{1,20}) mtime_ns ([0-9]{1,20})\n)?([0-9a-fA-F]{64})(?:[ \t]+.*)?\n?"
)  # also sha256sum's own
_MOST_DIRECTORY = 16 << 20  # bytes of an archive's directory: some 100,000 tensors


@dataclass(frozen=True, slots=True)
class Record:
    """What a file was when it was last hashed; size in bytes, time in nanoseconds."""

    sha256: str
    size: int
    mtime_ns: int


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


def record_of(path: Path) -> Path:
    """Where the hash of a weight file is recorded."""
    return path.with_name(f"{path.name}.sha256")


def read_record(path: Path) -> Record | None:
    """The record of the weight file `path`; None when there is none.

    Raises:
        WeightsError: there is one, but it is damaged, or we may not read it.
    """
    file = record_of(path)
    try:
        match = _LINE.fullmatch(opened.read_text(file))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise _forbidden(file, f", so {path.name} cannot be checked") from error
    except (OSError, UnicodeDecodeError):
        match = None
    if match is None:
        raise WeightsError(
            f"{file}: not a hash record, so {path.name} cannot be checked",
            f"remove {file} if you trust the weights; they are recorded afresh when next used",
        )
    return Record(match[3].lower(), int(match[1] or -1), int(match[2] or -1))


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
        raise _forbidden(path) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})", "check the disk") from error
    _compare(entry, now, before, path)
    if now != before and (before or not unfit):
        with contextlib.suppress(SystemFault):  # a cache that may only be read serves as well
            _write_record(path, now)
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
        _write_record(final, now)
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


def _unfit(entry: Released, file: IO[bytes]) -> str:
    """Why a file cannot be these weights, as far as its first bytes and its size tell; "" when it can."""
    file.seek(0)
    return not_weights(file.read(HEAD)) or implausible(entry, os.fstat(file.fileno()).st_size)


def _damage(file: IO[bytes]) -> str:
    """Why an archive is not whole; "" when it is, or when its format (a pickle) does not tell."""
    file.seek(0)
    if file.read(2) != b"PK":
        return ""
    try:
        if _directory_bytes(file) > _MOST_DIRECTORY:
            return "an archive of more parts than any weights have"
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "a compressed archive, not a file that torch.save wrote"
            if not any(member.filename.endswith("data.pkl") for member in members):
                return "an archive, but not one that torch.save wrote (it has no data.pkl)"
            if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                return "a damaged archive (its parts overlap)"  # reading them all could take for ever
            bad = archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        return "a damaged or incomplete archive"
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, struct.error, RuntimeError, ValueError):
        return "a damaged or incomplete archive"
    return f"a damaged archive ({printable(bad[:80])} is not what was written)" if bad else ""


def _directory_bytes(file: IO[bytes]) -> int:
    """How long the archive says that its directory is, where zipfile looks for it; 0 when there is none.

    Threat: zipfile makes an object of each of its entries, ten times their size: gigabytes of memory.
    """
    file.seek(-min(file.seek(0, os.SEEK_END), 1 << 17), os.SEEK_END)
    tail = file.read()
    plain = tail[-22:-18] == b"PK\x05\x06" and tail.endswith(b"\0\0")
    end = len(tail) - 22 if plain else tail.rfind(b"PK\x05\x06")
    if end < 0:
        return 0
    if tail[max(end - 20, 0) : end][:4] == b"PK\x06\x07" and (large := tail[end - 76 : end - 20])[:4] == b"PK\x06\x06":
        return int.from_bytes(large[40:48], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


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


def _write_record(path: Path, record: Record) -> None:
    comment = f"# size {record.size} mtime_ns {record.mtime_ns}"
    write_text(record_of(path), f"{comment}\n{record.sha256}  {path.name}\n")


def _forbidden(path: Path, consequence: str = "") -> WeightsError:
    """We may not read `path`."""
    hint = f"ask its owner to allow it (chmod a+r {path}), or use a cache of your own: export EMASEG_CACHE=/path"
    return WeightsError(f"{path}: no permission to read it{consequence}", hint)
