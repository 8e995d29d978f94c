"""Fetching released weights: resumed, retried, from mirrors, checked, and put into place whole or not at all.

Room: weights; imports errors, events, files, resources and the rest of the room; never torch. Yields events, prints
nothing. Sizes are bytes, times seconds.

What has arrived lies in <file>.part, with <file>.part.json saying of which address and version it is. A later try
continues there when the server confirms that version (Range with If-Range), and starts again when it does not.
Standard proxy variables and SSL_CERT_FILE are obeyed; EMASEG_OFFLINE and EMASEG_MIRROR are ours (resources.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path

from emaseg.errors import SystemFault, UserError, WeightsError
from emaseg.events import Downloading, Note
from emaseg.files import fault, make_folder
from emaseg.resources import cache_folder, mirror, offline
from emaseg.signatures import HEAD
from emaseg.weights.address import Source, mirrored
from emaseg.weights.cache import by_hand_advice, free_bytes, implausible, install, locate, verified
from emaseg.weights.kind import not_weights
from emaseg.weights.lock import STALE_SECONDS, Lock, UnusableError
from emaseg.weights.part import Part, Version, claim
from emaseg.weights.released import Released, file_name
from emaseg.weights.web import Answer, DroppedError, StaleError, UselessError, ask
from emaseg.words import Lines, excerpt, printable, size

Events = Generator[Downloading | Note, None, Path]

_SPARE = 16 << 20  # bytes that a download leaves free on the disk
_MOST_TRIES = 1000  # for one address, however much each of them brings
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server, and how to ask a disk for its free space.

    timeout: of one wait for data. tries: in a row that bring next to nothing. pause: before the second try, then
    doubled up to longest_pause. slowest: bytes per second below which a server counts as silent. poll: between looks at
    another process's lock; stale: without a sign of life from it. every: between two Downloading events.
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0
    longest_pause: float = 30.0
    slowest: float = 2000.0
    poll: float = 0.2
    stale: float = STALE_SECONDS
    every: float = 0.2
    free: Callable[[Path], int] = free_bytes


# ------------------------------------------------------------------------------------------------------- the way in
def fetch(entry: Released, folder: Path | None = None, patience: Patience | None = None) -> Events:
    """Bring released weights into the cache, unless they are there.

    Several processes may do this at once: one downloads, the others wait.

    Args:
        folder: the cache; None = the usual one.

    Yields:
        Note and Downloading events.

    Returns:
        The file.

    Raises:
        WeightsError: it is not here and EMASEG_OFFLINE is set; no address has it; what arrived is something else.
        SystemFault: network or disk.
        RecipeError: EMASEG_MIRROR or a proxy variable is no address.
    """
    folder = folder or cache_folder()
    patience = patience or Patience()
    path = locate(entry, folder)
    if path is not None:
        verified(entry, path)
        return path
    urls = sources(entry)
    if offline():
        raise WeightsError(
            f"{entry.name}: not on this machine, and EMASEG_OFFLINE forbids to download it",
            f"unset EMASEG_OFFLINE, or {by_hand_advice(entry, folder)}",
        )
    if not urls:
        raise WeightsError(
            f"{entry.name}: its owners give no address to download it from", by_hand_advice(entry, folder)
        )
    make_folder(folder)
    final = folder / entry.file
    if final.is_dir():
        raise SystemFault(f"{final}: a folder is in the place of the weights", "move or remove it")
    lock = Lock(folder / f".{entry.file}.lock")
    yield from _wait_for(lock, entry, patience)
    try:
        path = locate(entry, folder)  # another process may have been faster
        if path is not None:
            return path
        part = claim(final)
        try:
            yield from _from_any(entry, urls, part, final, patience, lock)
        finally:
            part.close()
        return final
    finally:
        lock.release()


def sources(entry: Released) -> tuple[Source, ...]:
    """The addresses to try, in order: the owner's, or with EMASEG_MIRROR that place alone (the files by name).

    Raises:
        RecipeError: EMASEG_MIRROR is no http(s) address.
    """
    base = mirror()
    if base:
        return mirrored(base, entry.files)
    urls = (entry.url, *entry.mirrors) if entry.url else ()
    return tuple(Source(url, url, file_name(url)) for url in urls)


def _wait_for(lock: Lock, entry: Released, patience: Patience) -> Generator[Note, None, None]:
    """Until the lock is ours, or is no use: then the download goes on without it, into a file of its own."""
    told, seen, since = False, frozenset[tuple[str, int, int]](), time.monotonic()
    while True:
        try:
            if lock.acquire():
                return
        except UnusableError as error:
            reason = f"{lock.path}: cannot be locked ({error})"
            yield Note(f"{reason}; other processes may download {entry.name} too", warning=True)
            return
        except OSError as error:
            raise fault(error, lock.path, "locking the download") from error
        if not told:
            yield Note(f"{entry.name}: another process is downloading it; waiting")
            told = True
        now = _traces(lock.path.parent, entry)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience.stale:
            yield Note(f"{entry.name}: nothing is heard of the other process any more; no longer waiting", warning=True)
            return
        time.sleep(patience.poll)


def _traces(folder: Path, entry: Released) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of what lies there for the entry: what changes while another process is at work."""
    found = set()
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if entry.file in item.name:
                    status = item.stat(follow_symlinks=False)
                    found.add((item.name, status.st_size, status.st_mtime_ns))
    except OSError:
        pass
    return frozenset(found)


def _from_any(
    entry: Released, urls: tuple[Source, ...], part: Part, final: Path, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """The file from the first address that has it."""
    failures: list[tuple[str, str]] = []
    refused: WeightsError | None = None  # it answered, but with something else than the weights
    for source in urls:
        if failures:
            yield Note(f"{failures[-1][0]}: {failures[-1][1]}; trying {source.shown}", warning=True)
        try:
            yield from _from(entry, source, part, patience, lock)
            if os.name == "nt":
                part.release()
            install(entry, part.path, final, source.shown)
        except UselessError as error:
            failures.append((source.shown, str(error)))
            if error.content:
                refused = WeightsError(str(error))
                part.clear()
        except WeightsError as error:
            failures.append((source.shown, error.message.removeprefix(f"{source.shown}: ")))
            refused = error
            part.clear()
        else:
            other = "" if source.name == entry.file else f" (from its newer name {source.name})"
            yield Note(f"{entry.name}: {final}{other}")
            return
    tried = [f"  {shown}: {reason}" for shown, reason in failures]
    by_hand = f"{by_hand_advice(entry, final.parent)}; or run emaseg download-weights {entry.name} --from FOLDER_THAT_HOLDS_IT"
    kind: type[UserError] = WeightsError if refused else SystemFault
    hint = refused.hint if refused else "try again later"
    message = Lines(f"{entry.name}: could not be downloaded", *tried)
    raise kind(message, f"{hint}; or {by_hand}" if hint else by_hand)


# ------------------------------------------------------------------------------------------------------ one address
def _from(
    entry: Released, source: Source, part: Part, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """All bytes of one address in `part`, in as many tries as it takes."""
    failed, pause = 0, patience.pause
    for _ in range(_MOST_TRIES):
        before, begun = part.length, time.monotonic()
        try:
            yield from _one_try(entry, source, part, patience, lock)
        except DroppedError as error:
            if isinstance(error, StaleError):
                part.clear()
            # A byte from time to time is no progress: over the tries, too, it must be faster than the slowest line.
            seconds = time.monotonic() - begun + pause
            gained = part.length - before > patience.slowest * seconds
            failed, pause = (1, patience.pause) if gained else (failed + 1, pause)
            if failed >= patience.tries:
                raise UselessError(f"{error} (tried {failed} times)") from error
            yield Note(f"{entry.name}: {error}; trying again")
            lock.renew()
            time.sleep(pause)
            pause = min(2 * pause, patience.longest_pause)
        else:
            return
    raise UselessError(f"the connection broke {_MOST_TRIES} times")


def _one_try(
    entry: Released, source: Source, part: Part, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """From what is there to the end, or DroppedError on the way."""
    version = part.version(source.shown) if part.length <= entry.most else None
    start = part.length if version else 0
    if version and version.total is not None and start == version.total:
        return
    headers = {"User-Agent": "emaseg", "Accept-Encoding": "identity", "Accept": "*/*"}
    if version and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.mark}
    with ask(source, headers, patience.timeout) as answer:
        resumed, total = _agree(answer, start, version)
        _check_answer(entry, answer, total)
        if not resumed:
            if start:
                yield Note(f"{entry.name}: the file has changed on the server, or it cannot resume; starting again")
            start = 0
            part.begin(Version(source.shown, _mark(answer.headers), total))
        _check_space(entry, part, start, total, patience)
        yield Note(_announcement(entry, answer.host, start, total))
        yield from _receive(entry, answer, part, start, total, patience, lock)


def _agree(answer: Answer, start: int, version: Version | None) -> tuple[bool, int | None]:
    """Whether the answer continues at `start`, and the whole file's length, where the server says it."""
    if answer.status != 206:
        return False, answer.length
    stated = answer.headers.get("Content-Range", "").strip()
    match = _RANGE.fullmatch(stated)
    total = int(match[3]) if match and match[3] != "*" else None
    mark = _mark(answer.headers)
    same = version is not None and mark in ("", version.mark) and total in (None, version.total)
    if start and match and same and int(match[1]) == start:
        whole = version.total if version else total
        rest = int(match[2]) + 1 - start
        if (whole is None or start + rest == whole) and answer.length in (None, rest):
            return True, whole
    message = f"the server sent another part of the file than asked for ({excerpt(stated)})"
    raise StaleError(message) if start else UselessError(message, content=True)


def _check_answer(entry: Released, answer: Answer, total: int | None) -> None:
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise UselessError(f"sent {excerpt(encoding)}-encoded although asked not to", content=True)
    if entry.size is not None and total is not None and total != entry.size:
        raise UselessError(f"has {total} bytes, the published file {entry.size}", content=True)
    if total is not None and total > entry.most:
        raise UselessError(implausible(entry, total), content=True)


def _check_space(entry: Released, part: Part, start: int, total: int | None, patience: Patience) -> None:
    try:
        free = patience.free(part.path.parent)
    except OSError as error:
        raise fault(error, part.path.parent, "looking for free space") from error
    needed = (entry.least if total is None else total) - start
    if free < needed + _SPARE:
        raise SystemFault(
            f"{part.path.parent}: {size(needed)} are needed, {size(free)} are free on this disk",
            "free some space, or choose another disk: export EMASEG_CACHE=/path",
        )


def _receive(
    entry: Released, answer: Answer, part: Part, start: int, total: int | None, patience: Patience, lock: Lock
) -> Generator[Downloading, None, None]:
    """Append the answer's body to `part` until it is complete and on the disk."""
    begun, next_event = time.monotonic(), 0.0
    looked, had = begun, start
    chunk = b"" if start else _beginning(entry, answer, total)
    while chunk := chunk or answer.read():
        if part.length + len(chunk) > (entry.most if total is None else total):
            excess = "sends more bytes than it said" if total is not None else f"sends more than {size(entry.most)}"
            raise UselessError(f"{excess}, which these weights cannot have", content=True)
        part.write(chunk)
        chunk, now = b"", time.monotonic()
        if now >= next_event or part.length == total:
            rate = (part.length - start) / max(now - begun, 1e-6)
            left = None if total is None else (total - part.length) / rate
            yield Downloading(entry.name, part.length, total, rate, left)
            lock.renew()
            next_event = now + patience.every
        if now - looked >= patience.timeout:
            if part.length - had < patience.slowest * (now - looked):
                raise DroppedError(f"the server sends less than {size(patience.slowest)} a second")
            looked, had = now, part.length
    part.sync()
    if total is not None and part.length != total:
        raise DroppedError(f"the connection ended after {size(part.length)} of {size(total)}")


def _beginning(entry: Released, answer: Answer, total: int | None) -> bytes:
    """The first bytes of a file, when they are those of weights and it is long enough for them."""
    head = b""
    while len(head) < HEAD and (chunk := answer.read()):
        head += chunk
    reason = not_weights(head, answer.headers.get("Content-Type", ""))
    if not reason and total is not None:
        reason = implausible(entry, total)
    if reason:
        raise UselessError(reason, content=True)
    return head


# -------------------------------------------------------------------------------------------------------- speaking
def _mark(headers: HTTPMessage) -> str:
    """What tells one version of a file from the next: a strong ETag, else the time of its last change, else ""."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _announcement(entry: Released, host: str, start: int, total: int | None) -> str:
    """What is downloaded, how large it is, and from where."""
    if start:
        return f"{entry.name}: continuing after {size(start)}" + (f" of {size(total)}" if total else "")
    how_large = f"at least {entry.megabytes} MB" if total is None else size(total)
    return f"downloading {entry.name} ({entry.what}): {how_large} from {printable(host)}"
