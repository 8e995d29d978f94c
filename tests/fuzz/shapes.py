"""Damage that knows the format: what gets past checksums and parsers."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from typing import Any

from tests.fuzz.mutate import PLAIN, Mutator

NUMBERS = ("0", "-1", "1", "1e9", "1e999", "-0.0", "nan", "inf", str(2**31), str(2**63), str(2**70), "9" * 400, "0.5")
VALUES = (
    *NUMBERS,
    *('""', '"x"', '"../../../../etc/passwd"', '"\\u001b[31mred"', '"a\\nb"', '"/dev/zero"', "true", "[]", "{}"),
    *("[1]", "[[[[]]]]", "[1, 1]", "[0, 0]", "[-1, 5]", "[100000, 100000]", "1979-05-27", '"' + "n" * 5000 + '"'),
)


# ---------------------------------------------------------------------------------------------------------- ZIP
def archive(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """One member damaged, with a right CRC; or the list of members."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    chosen = rng.randrange(len(members))
    small = [i for i, (name, _) in enumerate(members) if name.endswith((".pkl", ".json", "version", "byteorder"))]
    if small and rng.random() < 0.6:
        chosen = rng.choice(small)
    name, content = members[chosen]
    what = rng.choice(("content", "content", "content", "drop", "double", "rename", "bomb", "deflate"))
    if what == "content" and content:
        content, how = _member(rng, name, content)
        members[chosen] = (name, content)
        what = f"{name}: {how}"
    elif what == "drop":
        del members[chosen]
    elif what == "double":
        other = rng.choice(members)[1]
        members.insert(rng.randrange(len(members) + 1), (name, rng.choice((other, b"", content[:-1]))))
    elif what == "rename":
        top, _, rest = name.partition("/")
        new = rng.choice(
            (f"other/{rest}", f"{top}/../{rest}", f"/{rest}", name.upper(), f"{name}\x00", f"{top}//{rest}")
        )
        members.insert(rng.randrange(len(members) + 1), (new, content))
        if rng.random() < 0.5:
            members.remove((name, content))
    elif what == "bomb":
        members[chosen] = (name, content + bytes(rng.choice((10**6, 3 * 10**7))))
    packing = zipfile.ZIP_DEFLATED if what in ("bomb", "deflate") else zipfile.ZIP_STORED
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", packing, compresslevel=1) as file:
        for member, inside in members:
            info = zipfile.ZipInfo(member)
            info.filename = member  # with the NUL that the constructor would cut at
            info.compress_type = packing
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a name twice is what is wanted
                file.writestr(info, inside)
    return written.getvalue(), f"zip: {what}" if ":" in what else f"zip: {what} {name}"


def _member(rng: random.Random, name: str, content: bytes) -> tuple[bytes, str]:
    if name.endswith(".pkl"):
        return rng.choice((*PLAIN, pickled, pickled, pickled, pickled))(rng, content)
    if name.endswith(".json") and rng.random() < 0.7:
        return jsons(rng, content)
    return rng.choice(PLAIN)(rng, content)


_CALLS = (b"cposix\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"csubprocess\nPopen\n", b"cos\nremove\n")


def pickled(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Other globals, calls that run something, numbers and names replaced."""
    what = rng.choice(("global", "call", "number", "text", "protocol"))
    globals_ = list(re.finditer(rb"c[\w.]+\n[\w.]+\n", data))
    if what == "global" and globals_:
        found, call = rng.choice(globals_), rng.choice((*_CALLS, rng.choice(globals_).group()))
        return data[: found.start()] + call + data[found.end() :], f"pickle: {found.group()!r} becomes {call!r}"
    numbers = [at for at in range(len(data) - 5) if data[at : at + 1] in (b"K", b"M", b"J")]
    if what == "number" and numbers:
        at = rng.choice(numbers)
        width = {b"K": 1, b"M": 2, b"J": 4}[data[at : at + 1]]
        value = rng.choice((0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1)) % 256**width
        return data[: at + 1] + value.to_bytes(width, "little") + data[at + 1 + width :], f"pickle: {value} at {at}"
    texts = list(re.finditer(rb"X(....)([\x20-\x7e]{1,60})", data, re.DOTALL))
    if what == "text" and texts:
        found = rng.choice(texts)
        (size,) = struct.unpack("<I", found.group(1))
        text = rng.choice((b"", b"x", b"../../x", b"\x1b[31m", b"recipe", b"9" * 300, rng.choice(texts).group(2)))
        new = b"X" + struct.pack("<I", len(text)) + text
        return data[: found.start()] + new + data[found.start() + 5 + size :], f"pickle: text {text[:20]!r}"
    if what == "protocol":
        return b"\x80" + bytes([rng.choice((0, 1, 3, 4, 5, 6, 255))]) + data[2:], "pickle: another protocol"
    call = rng.choice(_CALLS)
    return data[:2] + call + b"X\x0a\x00\x00\x00touch ownd\x85R0" + data[2:], f"pickle: calls {call!r}"


# ------------------------------------------------------------------------------------------------ JSON and text
def jsons(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """One value replaced, removed or nested; sometimes the text as such is damaged."""
    try:
        content: Any = json.loads(data)
    except ValueError:
        return lines(rng, data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(content)
    if not places:
        return rng.choice((b"", b"[]", b"null", b"{" * 5000, b"\xff\xfe")), "json: another whole"
    parent, key = rng.choice(places)
    values = (None, 0, -1, 1.5, 2**63, 10**400, "", "x", "\x1b]0;x\x07", "a\nb", [], {}, True, [[]], "n" * 10**5)
    new = rng.choice((*values, rng.choice(places)[0]))
    what = f"json: {key!r} becomes {str(new)[:30]!r}"
    if rng.random() < 0.15:
        del parent[key]
        what = f"json: no {key!r}"
    else:
        parent[key] = json.loads(json.dumps(new))
    return json.dumps(content).encode(), what


def lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Lines of text lost, doubled, torn or with other numbers; another encoding."""
    rows = data.split(b"\n")
    at = rng.randrange(len(rows))
    what = rng.choice(("drop", "double", "tear", "number", "zeros", "encoding", "only", "long"))
    if what == "drop":
        del rows[at]
    elif what == "double":
        rows.insert(at, rows[at])
    elif what == "tear":
        return b"\n".join(rows[: at + 1])[: -rng.randrange(1, 10)], f"text: torn in line {at + 1}"
    elif what == "number":
        rows[at] = re.sub(rb"[\d.]+", rng.choice(NUMBERS).encode(), rows[at], count=rng.choice((0, 1)))
    elif what == "zeros":
        rows[at] = bytes(len(rows[at]))
    elif what == "encoding":
        return rng.choice(
            (data.decode("latin-1").encode("utf-16"), b"\xff" + data, b"\xef\xbb\xbf" + data)
        ), "text: utf"
    elif what == "only":
        return rng.choice((b"", b"\n", b"\r\n", b",,,,\n", b"\x00" * 100)), "text: nearly nothing"
    else:
        rows[at] += b"x" * 10**6
    return b"\n".join(rows), f"text: {what} line {at + 1}"


def toml(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A value or a key replaced by an extreme, in place."""
    text = data.decode()
    found = rng.choice(list(re.finditer(r"^([\w.]+) = (.*)$", text, re.MULTILINE)))
    value = rng.choice(VALUES)
    what = rng.choice((2, 2, 2, 2, 1))
    new = (
        value if what == 2 else rng.choice((f"{found.group(1)}x", '"\\u001b"', "a.b.c", "[x]", found.group(1).upper()))
    )
    start, end = found.span(what)
    return (text[:start] + new + text[end:]).encode(), f"toml: {found.group()[:40]!r} becomes {new[:40]!r}"


# ---------------------------------------------------------------------------------------------------------- PNG
def png(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Chunks damaged, lost, doubled or swapped, with right CRCs; pixels that end early or never."""
    chunks = _chunks(data)
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    what = rng.choice(("damage", "damage", "header", "drop", "double", "swap", "pixels", "pixels", "text"))
    if what == "damage" and content:
        chunks[at] = (kind, rng.choice(PLAIN)(rng, content)[0])
    elif what == "header":
        header = bytearray(chunks[0][1])
        place = rng.randrange(13)
        size = 4 if place < 8 and rng.random() < 0.5 else 1
        place = place // 4 * 4 if size == 4 else place
        header[place : place + size] = rng.choice((0, 1, 3, 16, 255, 65535, 2**31 - 1)).to_bytes(4, "big")[-size:]
        chunks[0] = (b"IHDR", bytes(header))
    elif what == "drop":
        del chunks[at]
    elif what == "double":
        chunks.insert(at, chunks[at])
    elif what == "swap":
        other = rng.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif what == "pixels":
        where = [i for i, (name, _) in enumerate(chunks) if name == b"IDAT"]
        if where:
            raw = zlib.decompress(b"".join(chunks[i][1] for i in where))
            raw = rng.choice((raw[: rng.randrange(len(raw))], b"", raw + bytes(10**6), rng.choice(PLAIN)(rng, raw)[0]))
            chunks[where[0] : where[-1] + 1] = [(b"IDAT", zlib.compress(raw))]
    elif what == "text":
        bomb = zlib.compress(bytes(rng.choice((100, 10**7))))
        chunks.insert(1, rng.choice(((b"zTXt", b"k\0\0" + bomb), (b"iCCP", b"k\0\0" + bomb), (b"acTL", bytes(8)))))
    written = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + written, f"png: {what} {kind.decode('latin-1')}"


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


STRUCTURE: dict[str, tuple[Mutator, ...]] = {
    "zip": (archive,),
    "json": (jsons, lines),
    "csv": (lines,),
    "toml": (toml, lines),
    "png": (png,),
    "": (),
}
