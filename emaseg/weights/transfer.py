"""One address of a released file: asked as often as it takes, resumed, and its bytes checked as they arrive.

Room: weights; never torch.

Threat: a server that sends something else than it says, a byte from time to time, more than the disk holds, or the
middle of another version. Every answer is held to what was asked for before a byte of it is kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path

from emaseg.errors import SystemFault
from emaseg.events import Downloading, Note
from emaseg.files import fault
from emaseg.signatures import HEAD
from emaseg.weights.address import Source
from emaseg.weights.cache import free_bytes, implausible
from emaseg.weights.kind import not_weights
from emaseg.weights.lock import STALE_SECONDS, Lock
from emaseg.weights.partial import Partial, Version
from emaseg.weights.released import Released
from emaseg.weights.web import Answer, DroppedError, StaleError, UselessError, ask
from emaseg.words import excerpt, printable, size

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


def transfer(
    entry: Released, source: Source, partial: Partial, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """All bytes of one address in `partial`, in as many tries as it takes."""
    failed, pause = 0, patience.pause
    for _ in range(_MOST_TRIES):
        before, begun = partial.length, time.monotonic()
        try:
            yield from _one_try(entry, source, partial, patience, lock)
        except DroppedError as error:
            if isinstance(error, StaleError):
                partial.clear()
            # A byte from time to time is no progress: over the tries, too, it must be faster than the slowest line.
            seconds = time.monotonic() - begun + pause
            gained = partial.length - before > patience.slowest * seconds
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
    entry: Released, source: Source, partial: Partial, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """From what is there to the end, or DroppedError on the way."""
    version = partial.version(source.shown) if partial.length <= entry.most else None
    start = partial.length if version else 0
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
            partial.begin(Version(source.shown, _mark(answer.headers), total))
        _check_space(entry, partial, start, total, patience)
        yield Note(_announcement(entry, answer.host, start, total))
        yield from _receive(entry, answer, partial, start, total, patience, lock)


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


def _check_space(entry: Released, partial: Partial, start: int, total: int | None, patience: Patience) -> None:
    try:
        free = patience.free(partial.path.parent)
    except OSError as error:
        raise fault(error, partial.path.parent, "looking for free space") from error
    needed = (entry.least if total is None else total) - start
    if free < needed + _SPARE:
        raise SystemFault(
            f"{partial.path.parent}: {size(needed)} are needed, {size(free)} are free on this disk",
            "free some space, or choose another disk: export EMASEG_CACHE=/path",
        )


def _receive(
    entry: Released, answer: Answer, partial: Partial, start: int, total: int | None, patience: Patience, lock: Lock
) -> Generator[Downloading, None, None]:
    """Append the answer's body to `partial` until it is complete and on the disk."""
    begun, next_event = time.monotonic(), 0.0
    looked, had = begun, start
    chunk = b"" if start else _beginning(entry, answer, total)
    while chunk := chunk or answer.read():
        if partial.length + len(chunk) > (entry.most if total is None else total):
            excess = "sends more bytes than it said" if total is not None else f"sends more than {size(entry.most)}"
            raise UselessError(f"{excess}, which these weights cannot have", content=True)
        partial.write(chunk)
        chunk, now = b"", time.monotonic()
        if now >= next_event or partial.length == total:
            rate = (partial.length - start) / max(now - begun, 1e-6)
            left = None if total is None else (total - partial.length) / rate
            yield Downloading(entry.name, partial.length, total, rate, left)
            lock.renew()
            next_event = now + patience.every
        if now - looked >= patience.timeout:
            if partial.length - had < patience.slowest * (now - looked):
                raise DroppedError(f"the server sends less than {size(patience.slowest)} a second")
            looked, had = now, partial.length
    partial.sync()
    if total is not None and partial.length != total:
        raise DroppedError(f"the connection ended after {size(partial.length)} of {size(total)}")


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
