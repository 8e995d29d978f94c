"""A real HTTP server on the loopback interface that serves weight files, well or in any of the ways servers fail."""

from __future__ import annotations

import functools
import io
import random
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from emaseg.weights.released import Released, by_name
from emaseg.weights.transfer import Patience

Fault = Callable[[Any, bytes], None]

# The pauses are short; the timeout is not, for a busy machine is no silent server.
QUICK = Patience(timeout=60.0, tries=3, pause=0.01, longest_pause=0.02, poll=0.02, every=0.0)


def weights(seed: int = 0, size: int = 300_000) -> bytes:
    """An archive of the kind that torch.save writes: stored, not compressed."""
    return _archive(random.Random(seed).randbytes(size))


@functools.lru_cache(maxsize=2)
def plausible(name: str) -> bytes:
    """An archive as large as the smallest file that may pass for the released weights `name`: mostly zeros."""
    return _archive(random.Random(name).randbytes(1000) + bytes(by_name(name).least))


def _archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; takes the next of `server.faults`, if any, in place of a proper answer."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        content = self.server.files.get(self.path)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None:
            fault(self, content or b"")
        elif content is None:
            self.send_error(404)
        else:
            proper(self, content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: a test's output is its own."""


class Server(ThreadingHTTPServer):
    """`files`: path -> content. `faults`: what to do with the next requests. `requests`: (path, headers) so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault | None] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests are about."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(server: Server, name: str = "net", mirrors: tuple[str, ...] = (), **changes: Any) -> Released:
    """A manifest entry whose owner is `server`."""
    values: dict[str, Any] = {
        "name": name, "kind": "network", "row": "Net, some data", "file": f"{name}.pth", "miou": 50.0, "megabytes": 0,
        "url": server.url(f"/owner/{name}.pth"), "mirrors": tuple(map(server.url, mirrors)), "format": "ssseg",
        "backbone": "",
    }  # fmt: skip
    return Released(**values | changes)


def etag(content: bytes) -> str:
    return f'"{hash(content):x}"'


def proper(handler: Any, content: bytes, *, stop: int | None = None, pause: float = 0.0) -> None:
    """Ranges, ETag, If-Range as the standard has them. `stop`: break the connection at this byte of the file."""
    start = 0
    asked = handler.headers.get("Range")
    if asked and handler.headers.get("If-Range", etag(content)) == etag(content):
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.send_header("ETag", etag(content))
    handler.end_headers()
    body = content[start:] if stop is None else content[start:stop]
    for i in range(0, len(body), 50_000):
        handler.wfile.write(body[i : i + 50_000])
        time.sleep(pause)
    if stop is not None:
        hang_up(handler)


def hang_up(handler: Any) -> None:
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def drop_at(offset: int) -> Fault:
    """Break the connection once `offset` bytes of the file are sent, wherever the request began."""
    return lambda handler, content: proper(handler, content, stop=offset)


def slowly(pause: float) -> Fault:
    """50 kB, a pause, 50 kB, ..."""
    return lambda handler, content: proper(handler, content, pause=pause)


def status(code: int) -> Fault:
    return lambda handler, content: handler.send_error(code)


def page(handler: Any, content: bytes) -> None:
    """The login page of a hotel."""
    _plain(handler, b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")


def compressed(handler: Any, content: bytes) -> None:
    _plain(handler, content, "application/octet-stream", {"Content-Encoding": "gzip"})


def to_itself(handler: Any, content: bytes) -> None:
    handler.server.faults.append(to_itself)  # before the answer: after it, the test may be on its next request
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def another_range(handler: Any, content: bytes) -> None:
    """206, but not from where it was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 10-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - 10))
    handler.end_headers()
    handler.wfile.write(content[10:])


def stall(handler: Any, content: bytes) -> None:
    """Half of the file, then silence, the connection open."""
    _begin(handler, content)
    time.sleep(1.5)
    hang_up(handler)


def held(until: threading.Event) -> Fault:
    """The first half, then nothing before `until` is set."""

    def fault(handler: Any, content: bytes) -> None:
        _begin(handler, content)
        until.wait(240)
        handler.wfile.write(content[len(content) // 2 :])

    return fault


def without_length(handler: Any, content: bytes) -> None:
    """As HTTP/1.0 did: the end of the connection is the end of the file."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content)
    hang_up(handler)


def cut_without_length(handler: Any, content: bytes) -> None:
    without_length(handler, content[: len(content) // 2])


def raw(*pieces: bytes, pause: float = 0.0) -> Fault:
    """Exactly these bytes in the place of an answer, then the end of the connection."""

    def fault(handler: Any, content: bytes) -> None:
        for piece in pieces:
            handler.connection.sendall(piece)
            time.sleep(pause)
        hang_up(handler)

    return fault


def endless(first: bytes, again: bytes, pause: float = 0.0) -> Fault:
    """`first`, then `again` until the client goes away (or after 20 s, so that a test fails and does not hang)."""

    def fault(handler: Any, content: bytes) -> None:
        handler.close_connection = True
        end = time.monotonic() + 20
        with suppress(OSError):  # the client went away
            handler.connection.sendall(first)
            while time.monotonic() < end:
                handler.connection.sendall(again)
                time.sleep(pause)

    return fault


def instead(other: bytes) -> Fault:
    """Other content than the file's."""
    return lambda handler, content: proper(handler, other)


def _begin(handler: Any, content: bytes) -> None:
    """The headers of the whole file, and its first half."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.send_header("ETag", etag(content))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()


def _plain(handler: Any, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
    handler.send_response(200)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
