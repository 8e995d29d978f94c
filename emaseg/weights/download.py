"""Fetching released weights: resumed, retried, from mirrors, checked, and put into place whole or not at all.

Room: weights; imports errors, events, files, resources and the rest of the room; never torch. Yields events, prints
nothing. Sizes are bytes, times seconds.

What has arrived lies in <file>.part, with <file>.part.json saying of which address and version it is. A later try
continues there when the server confirms that version (Range with If-Range), and starts again when it does not.
Standard proxy variables and SSL_CERT_FILE are obeyed; EMASEG_OFFLINE and EMASEG_MIRROR are ours (resources.py).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from emaseg.errors import RecipeError, SystemFault, UserError, WeightsError
from emaseg.events import Downloading, Note
from emaseg.files import fault, make_folder
from emaseg.resources import cache_folder, mirror, offline
from emaseg.weights.cache import accept, free_bytes, locate, manual, not_weights, trusted
from emaseg.weights.lock import Lock
from emaseg.weights.part import Version, arrived, begin, discard, length
from emaseg.weights.released import Released, file_name
from emaseg.words import Lines, size

Events = Generator[Downloading | Note, None, Path]

_CHUNK = 1 << 18
_HEAD = 16  # bytes that tell what a file is
_SPARE = 16 << 20  # bytes that a download leaves free on the disk
_MOST_TRIES = 1000  # for one address, however much each of them brings
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server, and how to ask a disk for its free space.

    timeout: of one wait for data. tries: in a row without a byte. pause: before the second try, then doubled up to
    longest_pause. poll: between looks at another process's lock. every: between two Downloading events.
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0
    longest_pause: float = 30.0
    poll: float = 0.2
    every: float = 0.2
    free: Callable[[Path], int] = free_bytes


class _DroppedError(Exception):
    """It may work when tried again."""


class _UselessError(Exception):
    """This address will not do; another may. `content`: the network works, but the weights are not what answers."""

    def __init__(self, reason: str, *, content: bool = False) -> None:
        super().__init__(reason)
        self.content = content


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
        RecipeError: EMASEG_MIRROR is no address.
    """
    folder = folder or cache_folder()
    patience = patience or Patience()
    path = locate(entry, folder)
    if path is not None:
        trusted(entry, path)
        return path
    urls = sources(entry)
    if offline():
        raise WeightsError(
            f"{entry.name}: not on this machine, and EMASEG_OFFLINE forbids to download it",
            f"unset EMASEG_OFFLINE, or {manual(entry, folder)}",
        )
    if not urls:
        raise WeightsError(f"{entry.name}: its owners give no address to download it from", manual(entry, folder))
    make_folder(folder)
    lock = Lock(folder / f".{entry.file}.lock")
    yield from _wait_for(lock, entry, patience)
    try:
        path = locate(entry, folder)  # another process may have been faster
        if path is None:
            path = yield from _from_any(entry, urls, folder / entry.file, patience, lock)
        return path
    finally:
        lock.drop()


def sources(entry: Released) -> tuple[str, ...]:
    """The addresses to try, in order: the owner's, or with EMASEG_MIRROR that place alone (the files by name).

    Raises:
        RecipeError: EMASEG_MIRROR is no http(s) address.
    """
    base = mirror()
    if not base:
        return (entry.url, *entry.mirrors) if entry.url else ()
    if urlsplit(base).scheme not in ("http", "https"):
        raise RecipeError(f"EMASEG_MIRROR={base}: not an http:// or https:// address", "e.g. https://host/weights")
    return tuple(f"{base.rstrip('/')}/{quote(name)}" for name in entry.files)


def _wait_for(lock: Lock, entry: Released, patience: Patience) -> Generator[Note, None, None]:
    told = False
    while True:
        try:
            if lock.take():
                return
        except OSError as error:
            raise fault(error, lock.path, "locking the download") from error
        if not told:
            yield Note(f"{entry.name}: another process is downloading it; waiting")
            told = True
        time.sleep(patience.poll)


def _from_any(
    entry: Released, urls: tuple[str, ...], final: Path, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, Path]:
    """The file from the first address that has it."""
    part = final.with_name(f"{final.name}.part")
    failures: list[tuple[str, str]] = []
    refused: WeightsError | None = None  # it answered, but with something else than the weights
    for url in urls:
        if failures:
            yield Note(f"{failures[-1][0]}: {failures[-1][1]}; trying {url}", warning=True)
        try:
            yield from _from(entry, url, part, patience, lock)
            accept(entry, part, final, url)
        except _UselessError as error:
            failures.append((url, str(error)))
            refused = WeightsError(str(error)) if error.content else refused
            if error.content or not length(part):
                discard(part)
        except WeightsError as error:
            failures.append((url, error.message.removeprefix(f"{url}: ")))
            refused = error
            discard(part)
        else:
            discard(part)  # what is left of it: the note on its version
            other = file_name(url)
            yield Note(f"{entry.name}: {final}" + (f" (from its newer name {other})" if other != entry.file else ""))
            return final
    tried = [f"  {url}: {reason}" for url, reason in failures]
    by_hand = f"{manual(entry, final.parent)}; or run emaseg download-weights {entry.name} --from FOLDER_THAT_HOLDS_IT"
    kind: type[UserError] = WeightsError if refused else SystemFault
    hint = refused.hint if refused else "try again later"
    message = Lines(f"{entry.name}: could not be downloaded", *tried)
    raise kind(message, f"{hint}; or {by_hand}" if hint else by_hand)


# ------------------------------------------------------------------------------------------------------ one address
def _from(
    entry: Released, url: str, part: Path, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """All bytes of one address in `part`, in as many tries as it takes."""
    failed, pause = 0, patience.pause
    for _ in range(_MOST_TRIES):
        before = length(part)
        try:
            yield from _one_try(entry, url, part, patience, lock)
        except _DroppedError as error:
            gained = length(part) > before
            failed, pause = (1, patience.pause) if gained else (failed + 1, pause)
            if failed >= patience.tries:
                raise _UselessError(f"{error} (tried {failed} times)") from error
            yield Note(f"{entry.name}: {error}; trying again")
            lock.alive()
            time.sleep(pause)
            pause = min(2 * pause, patience.longest_pause)
        else:
            return
    raise _UselessError(f"the connection broke {_MOST_TRIES} times")


def _one_try(
    entry: Released, url: str, part: Path, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """From what is there to the end, or _DroppedError on the way."""
    version = arrived(part, url)
    start = length(part) if version else 0
    if version and version.total is not None and start == version.total:
        return
    headers = {"User-Agent": "emaseg", "Accept-Encoding": "identity", "Accept": "*/*"}
    if version and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.mark}
    with _open(Request(url, headers=headers), part, patience) as response:
        resumed, total = _agree(response, start, version, part)
        _check_answer(entry, response, total)
        if not resumed:
            if start:
                yield Note(f"{entry.name}: the file has changed on the server, or it cannot resume; starting again")
            start = 0
            begin(part, Version(url, _mark(response.headers), total))
        _check_space(part, None if total is None else total - start, patience)
        yield Note(_announcement(entry, response.url, start, total))
        yield from _receive(entry, response, part, start, total, patience, lock)


def _open(request: Request, part: Path, patience: Patience) -> Any:
    """The server's answer; failures become _DroppedError (worth another try) or _UselessError."""
    try:
        return _opener().open(request, timeout=patience.timeout)
    except HTTPError as error:
        error.close()
        raise _refusal(error, part) from error
    except URLError as error:
        if isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_NONAME:
            raise _UselessError("no such host, or no network") from error
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted ({error.reason.verify_message}); behind a proxy set SSL_CERT_FILE"
            raise _UselessError(reason) from error
        if "unknown url type" in str(error.reason):
            raise _UselessError(str(error.reason)) from error
        raise _DroppedError(_said(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(_said(error)) from error
    except ValueError as error:  # http.client on an address that it cannot use
        raise _UselessError(f"not an address ({error})") from error


def _refusal(error: HTTPError, part: Path) -> Exception:
    if error.code == 416:  # what we have is not a beginning of what they have
        discard(part)
        return _DroppedError("the server has another file than before")
    if 300 <= error.code < 400:
        loop = "loop" in str(error.reason)
        reason = "redirects in a circle" if loop else f"a redirection that is not followed ({error.reason})"
        return _UselessError(reason, content=True)
    if error.code in _RETRIED:
        return _DroppedError(f"the server answers {error.code} {error.reason}")
    if error.code == 407:
        return _UselessError("the proxy wants a password (407): put user:password@ into HTTPS_PROXY")
    if error.code in (404, 410):
        return _UselessError(f"is not there any more ({error.code})", content=True)
    return _UselessError(f"the server answers {error.code} {error.reason}", content=True)


def _agree(response: Any, start: int, version: Version | None, part: Path) -> tuple[bool, int | None]:
    """Whether the answer continues at `start`, and the whole file's length, where the server says it."""
    stated = response.headers.get("Content-Length", "")
    if response.status != 206:
        return False, int(stated) if stated.isdecimal() else None
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    total = int(match[3]) if match and match[3] != "*" else None
    mark = _mark(response.headers)
    same = version is not None and mark in ("", version.mark) and total in (None, version.total)
    if start and match and int(match[1]) == start and same:
        return True, version.total if version else total
    discard(part)
    message = f"the server sent another part of the file than asked for ({response.headers.get('Content-Range')})"
    raise _DroppedError(message) if start else _UselessError(message, content=True)


def _check_answer(entry: Released, response: Any, total: int | None) -> None:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise _UselessError(f"sent {encoding}-encoded although asked not to", content=True)
    if entry.size is not None and total is not None and total != entry.size:
        raise _UselessError(f"has {total} bytes, the published file {entry.size}", content=True)


def _check_space(part: Path, needed: int | None, patience: Patience) -> None:
    free = patience.free(part.parent)
    if needed is not None and free < needed + _SPARE:
        raise SystemFault(
            f"{part.parent}: {size(needed)} are needed, {size(free)} are free on this disk",
            "free some space, or choose another disk: export EMASEG_CACHE=/path",
        )


def _receive(
    entry: Released, response: Any, part: Path, start: int, total: int | None, patience: Patience, lock: Lock
) -> Generator[Downloading, None, None]:
    """Append the answer's body to `part` until it is complete and on the disk."""
    done, begun, next_event = start, time.monotonic(), 0.0
    try:
        file: IO[bytes] = part.open("ab")
    except OSError as error:
        raise fault(error, part, "saving the download") from error
    with _closing(file, part):
        chunk = b"" if start else _beginning(response)
        while chunk := chunk or _read(response):
            _append(file, chunk, part)
            done += len(chunk)
            chunk, now = b"", time.monotonic()
            if now >= next_event or done == total:
                rate = (done - start) / max(now - begun, 1e-6)
                left = None if total is None else (total - done) / rate
                yield Downloading(entry.name, done, total, rate, left)
                lock.alive()
                next_event = now + patience.every
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise fault(error, part, "saving the download") from error
    if total is not None and done != total:
        raise _DroppedError(f"the connection ended after {size(done)} of {size(total)}")


def _beginning(response: Any) -> bytes:
    """The first bytes of a file, when they are those of weights."""
    head = b""
    while len(head) < _HEAD and (chunk := _read(response)):
        head += chunk
    reason = not_weights(head, response.headers.get("Content-Type", ""))
    if reason:
        raise _UselessError(reason, content=True)
    return head


def _read(response: Any) -> bytes:
    """The next bytes, as soon as there are any; b"" at the end."""
    try:
        chunk: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(_said(error)) from error
    return chunk


def _append(file: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise fault(error, part, "saving the download; what has arrived is kept") from error


@contextlib.contextmanager
def _closing(file: IO[bytes], part: Path) -> Generator[None, None, None]:
    """Close `file` at the end; a failure to write its last bytes counts only when nothing else went wrong."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    try:
        file.close()
    except OSError as error:
        raise fault(error, part, "saving the download; what has arrived is kept") from error


# -------------------------------------------------------------------------------------------------------- speaking
def _mark(headers: http.client.HTTPMessage) -> str:
    """What tells one version of a file from the next: a strong ETag, else the time of its last change, else ""."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _announcement(entry: Released, url: str, start: int, total: int | None) -> str:
    """What is downloaded, how large it is, and from where."""
    if start:
        return f"{entry.name}: continuing after {size(start)}" + (f" of {size(total)}" if total else "")
    how_large = f"at least {entry.megabytes} MB" if total is None else size(total)
    return f"downloading {entry.name} ({entry.what}): {how_large} from {urlsplit(url).hostname}"


def _said(error: object) -> str:
    """A network failure in plain words."""
    if isinstance(error, TimeoutError):
        return "the server does not answer any more"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    if isinstance(error, ConnectionError | http.client.HTTPException):
        return "the connection broke"
    if isinstance(error, OSError):
        return f"the network fails ({error.strerror or error})"
    return f"the network fails ({error})"


class _Redirects(HTTPRedirectHandler):
    """Follows redirections, but never from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise HTTPError(newurl, code, f"from https to {urlsplit(newurl).scheme}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """http and https alone; proxies as the environment says now."""
    opener = OpenerDirector()
    handlers = (ProxyHandler, HTTPHandler, HTTPSHandler, _Redirects, HTTPDefaultErrorHandler, HTTPErrorProcessor)
    for handler in (*handlers, UnknownHandler):
        opener.add_handler(handler())
    return opener
