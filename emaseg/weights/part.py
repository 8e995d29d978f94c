"""What has arrived of a download: <file>.part, and <file>.part.json that says of which address and version it is.

Room: weights; imports files only.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from emaseg.files import fault, write_text


@dataclass(frozen=True, slots=True)
class Version:
    """What the bytes in a .part file are of: the address, the server's mark of the version, the whole length."""

    url: str
    mark: str
    total: int | None


def arrived(part: Path, url: str) -> Version | None:
    """Of which version the bytes in `part` are; None when they are of no use for `url`."""
    try:
        version = Version(**json.loads(_note_of(part).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    whole = version.total is None or (isinstance(version.total, int) and length(part) <= version.total)
    return version if whole and version.url == url and version.mark and isinstance(version.mark, str) else None


def begin(part: Path, version: Version) -> None:
    """An empty `part` for a version; the note is written only then, so it is never of other bytes."""
    try:
        part.open("wb").close()
    except OSError as error:
        raise fault(error, part, "saving the download") from error
    write_text(_note_of(part), json.dumps(asdict(version)))


def discard(part: Path) -> None:
    for file in (part, _note_of(part)):
        with contextlib.suppress(OSError):
            file.unlink()


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def length(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0
