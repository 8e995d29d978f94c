"""One answer of a server, in bounded time and memory: proxies, redirections, and what http.client leaves open.

Room: weights; never torch.

Threat: a server, or who sits between, that sends headers without end, one byte every half minute, a redirection's
body without end, lengths that are none, or text that a terminal obeys. Every wait for the headers, or for the next
piece of the body, ends after the timeout as a whole; text from servers is shown escaped and cut.
"""

from __future__ import annotations

import errno
import http.client
import io
import re
import socket
import ssl
import time
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
    proxy_bypass,
)

from emaseg.weights.address import Source, origin, proxy, target
from emaseg.words import excerpt

CHUNK = 1 << 18
_HEADERS = 1 << 18  # bytes that the headers may take, all interim answers included
_FRAMING = 1 << 16  # bytes that chunked encoding may add to one piece
_HOPS = 10  # redirections in a row
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_FOLLOWED = frozenset({301, 302, 303, 307, 308})
_LENGTH = re.compile(r"[0-9]{1,18}")


class DroppedError(Exception):
    """It may work when tried again."""


class StaleError(DroppedError):
    """The server has not the file whose beginning we have."""


class UselessError(Exception):
    """This address will not do; another may. `content`: the network works, but the weights are not what answers."""

    def __init__(self, reason: str, *, content: bool = False) -> None:
        super().__init__(reason)
        self.content = content


class Answer:
    """A server's answer with a status of 2xx; a context manager.

    Attributes:
        status, headers: as sent. host: who sent it, after redirections. length: of the body in bytes; None = not said.
    """

    def __init__(self, response: _Response, url: str) -> None:
        self._response = response
        self.status: int = response.status
        self.headers = response.headers
        self.host = urlsplit(url).hostname or ""
        self.length = _length(response)

    def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; b"" at the end.

        Raises:
            DroppedError: the connection broke, or nothing came in time.
        """
        self._response.bounds.allow(CHUNK + _FRAMING)
        try:
            chunk: bytes = self._response.read1(CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DroppedError(_said(error)) from None
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def ask(source: Source, headers: dict[str, str], timeout: float) -> Answer:
    """Ask for a file and follow redirections; never from https to http.

    The password goes to the address's own host, and along redirections only while they stay there.

    Args:
        timeout: seconds for the headers of each answer, and later for each piece of the body.

    Raises:
        DroppedError, UselessError: worth another try, and not.
        RecipeError: the proxy that the environment names is none.
    """
    url, home, seen = source.url, origin(source.url), {source.url}
    at_home = True
    for _ in range(_HOPS + 1):
        request = Request(url, headers=headers)
        if source.authorization and at_home:
            request.add_unredirected_header("Authorization", source.authorization)
        response = _open(request, timeout)
        try:
            if response.status in _FOLLOWED:
                url = _next(url, response)
            elif 200 <= response.status < 300:
                return Answer(response, url)
            else:
                raise _refusal(response)
        except BaseException:
            response.close()
            raise
        response.close()  # its body is not read: it may have no end
        if url in seen:
            break
        seen.add(url)
        at_home = at_home and origin(url) == home
    raise UselessError("redirects in a circle", content=True)


def _open(request: Request, timeout: float) -> _Response:
    """The answer's status and headers. Causes are cut off: their text is the server's, for -v to print raw."""
    try:
        response: _Response = _opener().open(request, timeout=timeout)
    except URLError as error:
        raise _failure(error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error) from None
    except ValueError:  # what the host or the headers cannot hold
        raise UselessError("not an address") from None
    return response


def _failure(error: object) -> Exception:
    """What a failure before the answer means."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
        return UselessError("no such host, or no network")
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = excerpt(error.verify_message)
        return UselessError(f"its certificate is not trusted ({reason}); behind a proxy set SSL_CERT_FILE")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        foreign = isinstance(error, http.client.BadStatusLine | http.client.UnknownProtocol)
        return UselessError("its answer is not HTTP/1" if foreign else "sends headers without end", content=True)
    text = str(error)
    if "unknown url type" in text:
        return UselessError(excerpt(text))
    if text.startswith("Tunnel connection failed: 407"):
        return UselessError(_PROXY_PASSWORD)
    return DroppedError(_said(error))


_PROXY_PASSWORD = "the proxy wants a password (407): put user:password@ into HTTPS_PROXY"


def _refusal(response: _Response) -> Exception:
    """What a status beyond 2xx means."""
    code, reason = response.status, excerpt(response.reason)
    if code == 416:  # what we have is not a beginning of what they have
        return StaleError("the server has another file than before")
    if 300 <= code < 400:
        return UselessError(f"a redirection that is not followed ({code})", content=True)
    if code in _RETRIED:
        return DroppedError(f"the server answers {code} {reason}")
    if code == 407:
        return UselessError(_PROXY_PASSWORD)
    if code == 401:
        return UselessError("the server wants a user and password (401)", content=True)
    if code in (404, 410):
        return UselessError(f"is not there any more ({code})", content=True)
    return UselessError(f"the server answers {code} {reason}", content=True)


def _next(url: str, response: _Response) -> str:
    """Where a redirection leads to."""
    location = response.headers.get("Location", "")
    try:
        found = target(urljoin(url, location))
    except ValueError as error:
        raise UselessError(f"a redirection that is not followed ({error})", content=True) from None
    if url.startswith("https:") and not found.startswith("https:"):
        raise UselessError("a redirection that is not followed (from https to http)", content=True)
    return found


def _length(response: _Response) -> int | None:
    """The body's length as the headers state it.

    Raises:
        UselessError: several, or one that is none; an encoding that http.client does not undo.
    """
    encodings = [value.strip().lower() for value in response.headers.get_all("Transfer-Encoding", [])]
    if encodings not in ([], ["chunked"]):
        raise UselessError(f"sent in an unknown encoding ({excerpt(', '.join(encodings))})", content=True)
    stated = {value.strip() for value in response.headers.get_all("Content-Length", [])}
    if encodings or not stated:
        return None
    if len(stated) > 1 or not _LENGTH.fullmatch(value := stated.pop()):
        raise UselessError("states an impossible length", content=True)
    return int(value)


def _said(error: object) -> str:
    """A network failure in plain words."""
    if isinstance(error, TimeoutError):
        return "the server does not answer any more"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    if isinstance(error, ConnectionError | http.client.HTTPException | ValueError):
        return "the connection broke"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the network fails ({excerpt(reason)})"


# ------------------------------------------------------------------------------------------------- under http.client
class _Bounded(io.RawIOBase):
    """What a socket sends, until the time or the bytes that `allow` gave are used up.

    A socket's own timeout is of no use against a byte every now and then: it begins anew with each.
    """

    def __init__(self, connection: Any) -> None:
        self._socket = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._timeout: float = connection.gettimeout()
        self.allow(_HEADERS)

    def allow(self, count: int) -> None:
        self._until = time.monotonic() + self._timeout
        self._left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "too slow")
        if self._left <= 0:
            raise http.client.HTTPException("headers without end")
        self._socket.settimeout(left)
        count = self._raw.readinto(buffer)
        self._left -= count
        return int(count)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that is read through `bounds`."""

    def __init__(self, sock: Any, debuglevel: int = 0, method: str | None = None, url: str | None = None) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.fp.close()
        self.bounds = _Bounded(sock)
        self.fp = io.BufferedReader(self.bounds)


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Plain(HTTPHandler):
    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Secure(HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


class _Proxies(ProxyHandler):
    """Proxies as the environment says now, checked when one is needed."""

    def proxy_open(self, req: Request, value: str, type: str) -> Any:
        if req.host and proxy_bypass(req.host):
            return None
        return super().proxy_open(req, proxy(value, type), type)


def _opener() -> OpenerDirector:
    """http and https alone, answers of every status as they are."""
    opener = OpenerDirector()
    for handler in (_Proxies, _Plain, _Secure, UnknownHandler):
        opener.add_handler(handler())
    return opener
