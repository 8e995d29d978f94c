"""Addresses that may hold a password: EMASEG_MIRROR, proxies, and the targets of redirections.

Room: weights; never torch.

Threat: a password in a message ends up in logs and tickets. So a password, and a query (often a token), go into the
request alone. Of a malformed value nothing is shown, because any part of it may be the password.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from emaseg.errors import RecipeError
from emaseg.words import printable

_EXAMPLE = "e.g. https://host/weights or https://user:password@host/weights"
_ESCAPES = (
    "the special characters of a password are written as in addresses: %40 for @, %2F for /, %3A for :, %23 for #"
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RAW = re.compile("[ \x80-\xff]")  # what servers leave unescaped in a header, against the standard
_KEPT = "/%:@!$&'()*+,;=~"  # characters of a path that are sent as they are; letters, digits and _.- are too


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file is served.

    Attributes:
        url: what is asked for, without user and password; never shown, for its query may be a secret.
        shown: the same without its query. name: the file's. authorization: the header's value, "" = none.
    """

    url: str = field(repr=False)
    shown: str
    name: str
    authorization: str = field(default="", repr=False)


def mirrored(base: str, names: Iterable[str]) -> tuple[Source, ...]:
    """The files `names` in the folder whose address EMASEG_MIRROR gives; its query stays behind each name.

    Raises:
        RecipeError: no http(s) address, or one with a fragment.
    """
    try:
        parts = _split(base)
        host, authorization = _netloc(parts), _basic(parts)
        if "#" in base:
            raise ValueError("it has a fragment (#...), which no server ever sees")
    except ValueError as error:
        hint = _ESCAPES if "@" in base else _EXAMPLE
        raise RecipeError(f"EMASEG_MIRROR: {error}", hint) from None
    folder = f"{parts.scheme}://{host}{_quoted(parts.path).rstrip('/')}"
    query = f"?{_quoted(parts.query, '?')}" if parts.query else ""
    places = [(f"{folder}/{quote(name)}", name) for name in names]
    return tuple(Source(place + query, place, name, authorization) for place, name in places)


def proxy(value: str, scheme: str) -> str:
    """The proxy for http or https as urllib takes it: http://user:password@host:port.

    Raises:
        RecipeError: no address of a proxy, or of a kind that is not supported; names the variable.
    """
    whole = value if "://" in value else f"http://{value.removeprefix('//')}"
    try:
        parts = _split(whole, "http", "https")
        host = _netloc(parts)
        if parts.query or parts.fragment:
            raise ValueError("it has a ? or #")
    except ValueError as error:
        hint = _ESCAPES if "@" in value else "e.g. http://host:3128 or http://user:password@host:3128"
        raise RecipeError(f"{_variable(scheme)}: {error}", hint) from None
    user, at, _ = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}{at}{host}"


def target(url: str) -> str:
    """The address that a redirection leads to, fit to be asked for; no fragment.

    Raises:
        ValueError: it is no http(s) address, or holds a user or password.
    """
    parts = _split(_RAW.sub(lambda match: quote(match[0], encoding="latin-1"), url))
    if "@" in parts.netloc:
        raise ValueError("it holds a user name")
    return f"{parts.scheme}://{_netloc(parts)}{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a checked address: what a password is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _split(value: str, *schemes: str) -> SplitResult:
    """The parts of an address without blanks and other characters that no address has.

    Raises:
        ValueError: says what is wrong, and nothing of the value.
    """
    for place, character in enumerate(value, start=1):
        if character.isspace() or character == "\\" or printable(character) != character:
            raise ValueError(f"a blank, backslash or control character at place {place}")
    schemes = schemes or ("http", "https")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError("not an address (its host or its brackets are wrong)") from None
    if parts.scheme not in schemes or not value[len(parts.scheme) :].startswith("://"):
        raise ValueError(f"not an {' or '.join(f'{scheme}://' for scheme in schemes)} address")
    return parts


def _netloc(parts: SplitResult) -> str:
    """host:port in ASCII, without user and password.

    Raises:
        ValueError: no host, or one that no name system knows; no port from 1 to 65535.
    """
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is not a number from 1 to 65535")
    host = parts.hostname or ""
    if not host:
        raise ValueError("it names no host")
    if "[" in parts.netloc.rpartition("@")[2]:
        try:
            host = f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            raise ValueError("what stands in its brackets is not an IPv6 address") from None
        if "%" in host:
            raise ValueError("an IPv6 address with a zone is not supported")
    else:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("its host is not a name of a computer") from None
        if not _HOST.fullmatch(host):
            raise ValueError("its host is not a name of a computer")
    return host if port is None else f"{host}:{port}"


def _basic(parts: SplitResult) -> str:
    """The value of the Authorization header (RFC 7617, in UTF-8); "" without a user.

    Raises:
        ValueError: a colon in the user's name, which the header cannot express.
    """
    if "@" not in parts.netloc:
        return ""
    user, password = (unquote_to_bytes(part or "") for part in (parts.username, parts.password))
    if b":" in user:
        raise ValueError("a user name cannot hold a colon")
    return f"Basic {base64.b64encode(user + b':' + password).decode('ascii')}"


def _quoted(text: str, more: str = "") -> str:
    """A path or a query with every character that may not stand there escaped; escapes that are there stay."""
    return quote(_LONE_PERCENT.sub("%25", text), safe=_KEPT + more)


def _variable(scheme: str) -> str:
    """The name of the environment variable that gives the proxy; the lower-case one wins, as for urllib."""
    names = [name for name in os.environ if name.lower() == f"{scheme}_proxy" and os.environ[name]]
    return max(names, default=f"the system's proxy for {scheme}")  # lower case sorts last
