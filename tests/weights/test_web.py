"""Servers that mean harm: whatever they send ends soon, in little memory, with a reason that can be read."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from emaseg.errors import UserError
from emaseg.events import Note
from emaseg.weights.download import fetch
from emaseg.weights.released import Released
from emaseg.weights.transfer import Patience
from tests.weights import server as faulty
from tests.weights.server import Fault, Server, endless, entry, etag, raw, weights

CONTENT = weights()
HASTY = Patience(timeout=0.3, tries=2, pause=0.01, longest_pause=0.02, poll=0.02, every=0.0)
LONGEST = 4.0  # seconds for one refusal, on a busy machine
MOST_MEMORY = 60 << 20
OK = b"HTTP/1.1 200 OK\r\n"
HEAD = b"PK\x03\x04" + bytes(60)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def frugal() -> Iterator[None]:
    """No answer here is worth memory or time."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MOST_MEMORY


@pytest.fixture
def net(server: Server) -> Released:
    server.files["/owner/net.pth"] = CONTENT
    return entry(server)


def refused(wanted: Released, patience: Patience = HASTY) -> tuple[str, str]:
    """The refusal's message, and everything else that could be shown."""
    texts: list[str] = []
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        texts.extend(event.text for event in fetch(wanted, None, patience) if isinstance(event, Note))
    assert time.monotonic() - begun < LONGEST
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.hint + "".join(texts)
    return caught.value.message, shown


ANSWERS: dict[str, tuple[Fault, str]] = {
    "a byte of the status now and then": (endless(b"HTTP/1.1 2", b"0", 0.05), "does not answer any more"),
    "a byte of the headers now and then": (endless(OK, b"X", 0.05), "does not answer any more"),
    "a byte of the body now and then": (endless(OK + b"\r\n" + HEAD, b"x", 0.05), "less than 2 kB a second"),
    "a byte of a chunk's length now and then": (endless(CHUNKED, b"0", 0.05), "does not answer any more"),
    "a status line without end": (endless(b"HTTP/1.1 200 ", b"x" * 10_000), "headers without end"),
    "headers without end": (endless(OK, b"X-A: b\r\n" * 100), "headers without end"),
    "a header without end": (endless(OK + b"X-A: ", b"b" * 10_000), "headers without end"),
    "100 Continue without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "headers without end"),
    "100 Continue now and then": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05), "does not answer any more"),
    "trailers without end": (
        endless(CHUNKED + b"40\r\n" + HEAD + b"\r\n0\r\n", b"X-A: b\r\n" * 1000),
        "the connection broke",
    ),
    "a chunk extension without end": (endless(CHUNKED + b"5;", b"x" * 10_000), "the connection broke"),
    "a chunk of 10^300 bytes": (endless(CHUNKED + b"f" * 300 + b"\r\n" + HEAD, b"x" * 100_000), "more than 1.0 MB"),
    "a chunk of a negative length": (endless(CHUNKED + b"-5\r\n" + HEAD, b"x" * 100_000), "more than 1.0 MB"),
    "a chunk of no length": (raw(CHUNKED + b"zz\r\n" + HEAD), "the connection broke"),
    "a body without length and end": (endless(OK + b"\r\n" + HEAD, b"x" * 100_000), "more than 1.0 MB"),
    "a length of 10^30": (raw(OK + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n" + HEAD), "impossible length"),
    "a length of 10^6000": (raw(OK + b"Content-Length: 1" + b"0" * 6000 + b"\r\n\r\n" + HEAD), "impossible length"),
    "a negative length": (raw(OK + b"Content-Length: -5\r\n\r\n" + HEAD), "impossible length"),
    "a length in words": (raw(OK + b"Content-Length: many\r\n\r\n" + HEAD), "impossible length"),
    "a length with a plus": (raw(OK + b"Content-Length: +64\r\n\r\n" + HEAD), "impossible length"),
    "two lengths": (raw(OK + b"Content-Length: 64\r\nContent-Length: 65\r\n\r\n" + HEAD), "impossible length"),
    "two lengths in one": (raw(OK + b"Content-Length: 64, 65\r\n\r\n" + HEAD), "impossible length"),
    "a length far beyond": (raw(OK + b"Content-Length: 5400000000\r\n\r\n" + HEAD), "has 5.40 GB, far more"),
    "an encoding within the chunks": (raw(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"), "unknown encoding"),
    "two transfer encodings": (
        raw(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n"),
        "unknown encoding",
    ),
    "gzip": (raw(OK + b"Content-Encoding: gzip\r\nContent-Length: 64\r\n\r\n" + HEAD), "gzip-encoded although"),
    "HTTP/0.9": (raw(CONTENT), "not HTTP/1"),
    "HTTP/2": (raw(b"HTTP/2.0 200 OK\r\n\r\n"), "not HTTP/1"),
    "SSH": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "not HTTP/1"),
    "a status of 99999": (raw(b"HTTP/1.1 99999 OK\r\n\r\n"), "not HTTP/1"),
    "no content": (raw(b"HTTP/1.1 204 No\r\n\r\n"), "an empty file"),
    "300": (raw(b"HTTP/1.1 300 Many\r\n\r\n"), "not followed"),
    "101": (raw(b"HTTP/1.1 101 Switch\r\n\r\n"), "answers 101"),
    "a redirection to nowhere": (raw(b"HTTP/1.1 302 Go\r\n\r\n"), "in a circle"),
    "a redirection to a file": (raw(b"HTTP/1.1 302 Go\r\nLocation: file:///etc/passwd\r\n\r\n"), "not followed"),
    "a redirection to nonsense": (raw(b"HTTP/1.1 302 Go\r\nLocation: http://[::1\r\n\r\n"), "not followed"),
    "a redirection with a password": (raw(b"HTTP/1.1 302 Go\r\nLocation: http://u:p@h/\r\n\r\n"), "not followed"),
    "a redirection with a body without end": (
        endless(b"HTTP/1.1 302 Go\r\nLocation: http://[::1\r\n\r\n", b"x" * 100_000),
        "not followed",
    ),
    "206 unasked": (raw(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-63/64\r\n\r\n" + HEAD), "another part"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_means_harm(net: Released, server: Server, cache: Path, name: str) -> None:
    """Protects time, memory and disk: refused in seconds with a reason, and nothing stays under the final name."""
    fault, said = ANSWERS[name]
    server.faults = [fault] * 4
    message, _ = refused(entry(server, size=1_000_000) if "1.0 MB" in said else net)
    assert said in message
    assert not (cache / "net.pth").exists()
    server.faults = []
    list(fetch(net, None, faulty.QUICK))  # and it is no obstacle to the next try
    assert (cache / "net.pth").read_bytes() == CONTENT


def test_without_a_published_size_the_tensors_bound_it(server: Server, cache: Path) -> None:
    """Protects the disk: four times the tensors and 100 MB, never more than 16 GB; and the least is their own size."""
    wanted = entry(server, megabytes=200)
    assert (wanted.least, wanted.most) == (190_000_000, 900_000_000)
    assert entry(server, megabytes=100_000).most == 16_000_000_000
    server.faults = [raw(OK + b"Content-Length: 900000001\r\n\r\n" + HEAD)]
    assert "far more than" in refused(wanted)[0]
    server.faults = [raw(OK + b"Content-Length: 64\r\n\r\n" + HEAD)]
    assert "has 64 bytes; the network's tensors alone take 200 MB" in refused(wanted)[0]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "stated",
    [
        "bytes 5-3/300118", "bytes 100000-299999/99", "bytes 99999-300117/300118", "bytes */300118", "100000-300117",
        "bytes 100000-200000/300118", f"bytes 100000-{'9' * 5000}/*", "bytes 100000-300117/300119",
    ],
)  # fmt: skip
def test_a_wrong_range_starts_again(net: Released, server: Server, cache: Path, stated: str) -> None:
    """Protects from files of two parts that do not belong together."""
    answer = f"HTTP/1.1 206 P\r\nContent-Range: {stated}\r\nETag: {etag(CONTENT)}\r\n\r\n".encode() + CONTENT[100_000:]
    server.faults = [faulty.drop_at(100_000), raw(answer)]
    list(fetch(net, None, faulty.QUICK))
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=100000-", None]


def test_more_than_was_said_is_not_stored(net: Released, server: Server, cache: Path) -> None:
    """Protects from a range that goes on beyond the whole file."""
    head = f"HTTP/1.1 206 P\r\nContent-Range: bytes 100000-{len(CONTENT) - 1}/{len(CONTENT)}\r\n"
    server.faults = [
        faulty.drop_at(100_000),
        endless(f"{head}ETag: {etag(CONTENT)}\r\n\r\n".encode() + CONTENT[100_000:], b"x" * 10_000),
    ]
    assert "more bytes than it said" in refused(net)[0]


def test_redirections_without_end(server: Server, net: Released) -> None:
    """Protects from a chain that never repeats: eleven requests, then it is over."""
    server.faults = [raw(f"HTTP/1.1 302 Go\r\nLocation: /{i}\r\n\r\n".encode()) for i in range(50)]
    assert "in a circle" in refused(net)[0]
    assert len(server.requests) == 11


def test_a_byte_per_connection_is_no_progress(net: Released, server: Server) -> None:
    """Protects from a server that brings one byte more each time: as many tries as without any."""
    server.faults = [faulty.drop_at(20_000 + i) for i in range(50)]
    patience = Patience(timeout=60, tries=3, pause=0.02, longest_pause=0.02)
    assert "tried 3 times" in refused(net, patience)[0]


EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J"
HIDDEN = b"\x1b", b"\x07", b"\x9b"


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 403 {EVIL}\r\n\r\n", f"HTTP/1.1 503 {EVIL}\r\n\r\n", f"HTTP/1.1 {EVIL}\r\n\r\n", f"{EVIL}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {EVIL}\r\n\r\n", f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {EVIL}\r\n\r\n",
        f"HTTP/1.1 206 OK\r\nContent-Range: {EVIL}\r\n\r\n", f"HTTP/1.1 302 Go\r\nLocation: http://{EVIL}/\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {EVIL}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{EVIL}: 1\r\n\r\n{EVIL}",
        f"HTTP/1.1 404 {'long ' * 2000}\r\n\r\n", f"HTTP/1.1 403 {'long ' * 2000}\r\n\r\n",
    ],
)  # fmt: skip
def test_what_servers_say_is_shown_escaped(net: Released, server: Server, answer: str) -> None:
    """Protects the terminal: no control character of a server's in messages, hints, events or -v tracebacks."""
    server.faults = [raw(answer.encode("latin-1"))] * 4
    message, shown = refused(net)
    assert not any(character in shown for character in "\x1b\x07\x9b")
    assert len(message) < 1000


@pytest.mark.parametrize("mark", [b'"a\r\n b"', b'"\xe9"', b'"' + b"a" * 5000 + b'"', b'"\x1b[31m"'])
def test_a_mark_that_no_header_holds(net: Released, server: Server, cache: Path, mark: bytes) -> None:
    """Protects resuming from ETags that would break the next request: they are not used."""
    length = str(len(CONTENT)).encode()
    answer = OK + b"ETag: " + mark + b"\r\nContent-Length: " + length + b"\r\n\r\n" + CONTENT[:100_000]
    server.faults = [raw(answer)]
    list(fetch(net, None, faulty.QUICK))
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert "Range" not in server.requests[1][1]
