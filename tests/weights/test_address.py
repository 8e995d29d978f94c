"""Mirrors and proxies: passwords reach their host and nobody else; malformed values are said at once."""

from __future__ import annotations

import base64
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from emaseg.errors import RecipeError, UserError
from emaseg.weights.address import mirrored, proxy, target
from emaseg.weights.download import fetch
from tests.helpers import emaseg
from tests.weights import server as faulty
from tests.weights.server import QUICK, Server, entry, running, weights

CONTENT = weights()
SECRET = "p@ss/w:rd#%é"
ESCAPED = "p%40ss%2Fw%3Ard%23%25%C3%A9"
BASIC = f"Basic {base64.b64encode(f'user:{SECRET}'.encode()).decode()}"
SECRETS = (SECRET, ESCAPED, "p@ss", "ss%2F", BASIC[6:], "t0ken")

MALFORMED = {
    "http://[::1": "brackets",
    "http://[x]/": "brackets",
    "http://[fe80::1%25eth0]/": "zone",
    "host/weights": "not an http",
    "/mnt/weights": "not an http",
    "http:/host/weights": "not an http",
    "//host/weights": "not an http",
    "file:///mnt/weights": "not an http",
    "ftp://host/": "not an http",
    "http://": "names no host",
    "http:///weights": "names no host",
    "http://user:t0ken@/weights": "names no host",
    "http://host:0/": "port",
    "http://host:65536/": "port",
    "http://host:-1/": "port",
    "http://host:t0ken/": "port",
    "http://user:t0ken/x@host/": "port",
    "http://ho st/": "blank",
    "http://host/a b": "blank",
    " http://host/": "blank",
    "http://host/\n": "blank",
    "http://host/\x1b[31m": "control",
    "http://ho\u200bst/": "control",
    "http://user:t0ken@host/\udcff": "control",
    "http:\\\\host\\weights": "backslash",
    "http://a..b/": "not a name",
    f"http://{'a' * 64}.example/": "not a name",
    "http://ho*st/": "not a name",
    "http://h\u2100st/": "host",
    "http://host/x#t0ken": "fragment",
    "http://host/x#": "fragment",
    "http://us%3Aer:t0ken@host/": "colon",
}


def shown(error: BaseException) -> str:
    """All that -v could print of an error."""
    parts = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    return parts + getattr(error, "hint", "")


def assert_secret(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_mirror_is_a_usage_error_at_once(value: str) -> None:
    """Protects from 25 s of retries and from a traceback; of the value itself nothing is shown."""
    with pytest.raises(RecipeError, match="EMASEG_MIRROR") as caught:
        mirrored(value, ["net.pth"])
    assert MALFORMED[value] in caught.value.message
    assert caught.value.hint
    assert_secret(shown(caught.value))


def test_the_command_ends_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the exit code of all commands that download, also with -v."""
    for value in ("http://[::1", "http://user:t0ken/x@host:y/", "host"):
        monkeypatch.setenv("EMASEG_MIRROR", value)
        begun = time.monotonic()
        code, out, err = emaseg(capsys, "download-weights", "resnet50_v1c", "-v")
        assert (code, out) == (2, "")
        assert "error: EMASEG_MIRROR" in err
        assert time.monotonic() - begun < 5
        assert_secret(err)


def test_what_a_mirror_is_asked_for() -> None:
    """Protects the address: the name goes before the query, hosts and paths may hold any script, escapes stay."""
    (source,) = mirrored(f"https://user:{ESCAPED}@Bücher.example:8443/ä%20/?token=t0ken&a=ü%", ["a b.pth"])
    assert source.url == "https://xn--bcher-kva.example:8443/%C3%A4%20/a%20b.pth?token=t0ken&a=%C3%BC%25"
    assert source.shown == "https://xn--bcher-kva.example:8443/%C3%A4%20/a%20b.pth"
    assert source.authorization == BASIC
    assert_secret(repr(source))
    assert mirrored("http://[::1]:80", ["n"])[0].url == "http://[::1]:80/n"
    assert mirrored("http://token@host/", ["n"])[0].authorization == f"Basic {base64.b64encode(b'token:').decode()}"
    assert mirrored("HTTP://host", ["n"])[0].url == "http://host/n"


def test_a_redirections_target_is_checked() -> None:
    """Protects from addresses that servers invent."""
    assert target("http://h/a b\xe9?x=[1]|2#f") == "http://h/a%20b%E9?x=[1]|2"
    for url in ("http://u:p@h/", "http://h:0/", "file:///etc", "http://h/\x1b", "http://[::1", "//", "http://\xe9/"):
        with pytest.raises(ValueError, match=r"not an|user name|port|control|not a name"):
            target(url)


def record(wanted: Any) -> tuple[list[str], BaseException | None]:
    """All texts of the events, and the error."""
    texts: list[str] = []
    error: BaseException | None = None
    try:
        for event in fetch(wanted, None, QUICK):
            texts.append(repr(event))
    except UserError as caught:
        error = caught
    return texts, error


@pytest.fixture
def private(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A mirror with user, password and token."""
    address = server.url("/folder/?token=t0ken").replace("http://", f"http://user:{ESCAPED}@")
    monkeypatch.setenv("EMASEG_MIRROR", address)
    server.files["/folder/net.pth?token=t0ken"] = CONTENT
    return server


def test_the_password_arrives_and_is_told_to_nobody(private: Server, cache: Path) -> None:
    """Protects user:password: header and query reach the server; no event and no file holds them, nor after a break."""
    private.faults = [faulty.drop_at(100_000), faulty.status(500)]
    texts, error = record(entry(private))
    assert error is None
    assert len(private.requests) == 3
    assert {headers["Authorization"] for _, headers in private.requests} == {BASIC}
    assert {path for path, _ in private.requests} == {"/folder/net.pth?token=t0ken"}
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert_secret("".join(texts) + (cache / "net.pth.sha256").read_text())


@pytest.mark.parametrize(
    "fault",
    [
        faulty.drop_at(100_000),
        faulty.status(401),
        faulty.status(403),
        faulty.status(500),
        faulty.page,
        faulty.to_itself,
        faulty.raw(b"nonsense\r\n\r\n"),
        faulty.raw(b"HTTP/1.1 302 Go\r\nLocation: http://user:x@[bad\r\n\r\n"),
    ],
)
def test_no_failure_tells_the_password(private: Server, cache: Path, fault: faulty.Fault) -> None:
    """Protects logs and tickets: messages, hints, -v tracebacks and what is left in the cache."""
    private.faults = [fault] * 9
    texts, error = record(entry(private))
    kept = "".join(file.read_text("latin-1") for file in cache.iterdir() if file.suffix != ".part")
    assert error is not None
    assert_secret("".join(texts) + shown(error) + kept)


def test_the_password_does_not_follow_to_another_host(private: Server, cache: Path) -> None:
    """Protects the password from a mirror that sends one elsewhere; on its own host it stays."""
    with running() as other:
        other.files["/there.pth"] = CONTENT
        private.faults = [
            faulty.raw(b"HTTP/1.1 302 Go\r\nLocation: /moved\r\n\r\n"),
            faulty.raw(f"HTTP/1.1 307 Go\r\nLocation: {other.url('/there.pth')}\r\n\r\n".encode()),
        ]
        _, error = record(entry(private))
        assert error is None
        assert [path for path, _ in private.requests] == ["/folder/net.pth?token=t0ken", "/moved"]
        assert [headers.get("Authorization") for _, headers in private.requests] == [BASIC, BASIC]
        assert "Authorization" not in other.requests[0][1]


# ---------------------------------------------------------------------------------------------------------- proxies
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://user:t0ken/x@proxy:3128", "port"),
        ("http://[::1", "brackets"),
        ("http://user:t0ken@", "no host"),
        ("http://proxy:99999", "port"),
        ("socks5://user:t0ken@proxy:1080", "not an http"),
        ("http://user:t0 ken@proxy:3128", "blank"),
        ("http://user:t0#ken@proxy:3128", "not a name|port|[?] or #"),
        ("user:t0ken@:3128", "no host"),
    ],
)
def test_a_malformed_proxy_is_named_at_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    """Protects from retries through a proxy that cannot be: exit 2 with the variable's name, no password."""
    monkeypatch.setenv("http_proxy", value)
    server.files["/owner/net.pth"] = CONTENT
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(RecipeError, match=f"http_proxy: .*({said})") as caught:
        list(fetch(entry(server), None, QUICK))
    assert_secret(shown(caught.value))
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert record(entry(server))[1] is None  # where it is not needed, it may be anything


@pytest.mark.parametrize("form", ["http://user:{}@{}", "user:{}@{}", "http://user:{}@{}/"])
def test_a_proxys_password_is_for_the_proxy(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Protects HTTPS_PROXY's password: sent to the proxy, never shown, and not along a redirection past it."""
    address = server.url("").removeprefix("http://")
    monkeypatch.setenv("http_proxy", form.format(ESCAPED, address))
    with running() as other:
        monkeypatch.setenv("no_proxy", other.url("").removeprefix("http://"))
        other.files["/there.pth"] = CONTENT
        server.faults = [faulty.raw(f"HTTP/1.1 302 Go\r\nLocation: {other.url('/there.pth')}\r\n\r\n".encode())]
        texts, error = record(entry(server, url="http://owner.invalid/net.pth"))
        assert error is None
        assert server.requests[0][1]["Proxy-Authorization"] == BASIC
        assert "Proxy-Authorization" not in other.requests[0][1]
    assert_secret("".join(texts))


def test_a_proxy_that_refuses_a_tunnel(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects https through a proxy: its refusal is shown escaped; 407 says where a password goes, without retries."""
    monkeypatch.setenv("https_proxy", server.url("").replace("http://", f"http://user:{ESCAPED}@"))
    monkeypatch.setenv("no_proxy", "")
    wanted = entry(server, url="https://owner.invalid/net.pth")
    for answer, said in (("407 No\x1b[31m", "wants a password"), ("403 No\x1b[31m", r"403 No\x1b[31m")):
        monkeypatch.setattr(
            faulty.Handler, "do_CONNECT", lambda self, a=answer: faulty.raw(f"HTTP/1.1 {a}\r\n\r\n".encode())(self, b""),
            raising=False,
        )  # fmt: skip
        texts, error = record(wanted)
        assert error is not None
        assert said in str(error)
        assert "\x1b" not in "".join(texts) + shown(error)
        assert_secret("".join(texts) + shown(error))


def test_proxies_are_normalised() -> None:
    assert proxy("proxy:3128", "http") == "http://proxy:3128"
    assert proxy("//u:p%40@[::1]:3128/", "https") == "http://u:p%40@[::1]:3128"
    with pytest.raises(RecipeError, match="the system's proxy"):
        proxy("http://a b", "gopher")
