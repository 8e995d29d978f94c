"""The archive of a .pt2: the only members it may have, and its texts read in one way.

Room: exported; never torch.

Threat: PyTorch unpickles, compiles or writes what members of other names hold, and of a JSON text with a key twice one
reader sees the first and another the last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from emaseg.exported.refused import Refused
from emaseg.files import sha256_of
from emaseg.zip_archive import File, Member, Pieces, read_member, read_members, rebuilt

LONGEST_TEXT = 1 << 26  # bytes of a member that is a text

WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_TABLE = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_TABLE = f"{CONSTANTS}model_constants_config.json"
PROGRAM, ABOUT, DIGEST = "models/model.json", "extra/emaseg.json", "extra/emaseg.sha256"
SAMPLES = "data/sample_inputs/model.pt"

_MEMBERS = re.compile(
    rf"{WEIGHTS}weight_\d{{1,6}}|{WEIGHTS_TABLE}|{CONSTANTS_TABLE}|{SAMPLES}|{PROGRAM}|{ABOUT}|{DIGEST}"
    r"|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|version",
    re.ASCII,
)


def read_directory(file: File) -> dict[str, Member]:
    """The members of an archive.

    Raises:
        DamagedError: this is no archive, it is damaged, or it can be read in more than one way.
        Refused: it holds more than `emaseg export` writes.
    """
    members = read_members(file)
    for name in members:
        if not _MEMBERS.fullmatch(name):
            raise Refused(f"member {name[:60]!r}")
    return members


def content(file: File, member: Member) -> bytes:
    """The bytes of a member that is a text.

    Raises:
        DamagedError: they are damaged.
        Refused: it is far too long.
    """
    if member.size > LONGEST_TEXT:
        raise Refused(f"{member.name} of {member.size} bytes")
    return read_member(file, member)


def read_json(raw: bytes, name: str) -> Any:
    """A JSON text, read strictly: no key twice, no NaN, no whole number beyond 64 bits.

    Raises:
        ValueError: it is no JSON.
        Refused: it can be read in more than one way.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise Refused(f"{name}: a key twice")
        return made

    def number(text: str) -> int:
        if len(text) > 20:
            raise Refused(f"{name}: a number of {len(text)} digits")
        return int(text)

    def constant(text: str) -> NoReturn:
        raise Refused(f"{name}: {text}")

    try:
        return json.loads(raw.decode(), object_pairs_hook=pairs, parse_int=number, parse_constant=constant)
    except RecursionError:
        raise Refused(f"{name}: nested too deep") from None
    except Refused:
        raise
    except ValueError:
        raise ValueError(f"{name} is damaged") from None


def digest_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 of an archive's content, from that of each member but the digest itself."""
    lines = (f"{value} {name}\n" for name, value in sorted(hashes.items()) if name != DIGEST)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_members(file: File, members: Iterable[Member]) -> dict[str, str]:
    """SHA-256 of each member's bytes."""
    return {member.name: sha256_of(file, member.start, member.size) for member in members}


def program_archive(file: File, members: Mapping[str, bytes | Member]) -> Pieces:
    """A new archive of the members, as a file that PyTorch can read."""
    return rebuilt(file, {f"program/{name}": content for name, content in members.items()})
