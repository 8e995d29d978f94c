"""Files that say they were written by this program, and are as it wrote them; nothing else is ever replaced by one.

Room: data/files.

Threat: `photo_mask.png` beside photo.png may be hours of somebody's drawing. Only what we wrote ourselves, and nobody
has touched since, may be replaced without asking. The mark of a PNG is a text part right after the header that holds
the SHA-256 of all other bytes: a picture that was edited, even by a program that copies texts, does not carry it. A
NumPy archive has the mark in its comment, a JSON file in its last key, with the SHA-256 of the bytes before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Literal

from emaseg.data.files import png
from emaseg.errors import DataError
from emaseg.files import NO_LINK, READ, open_file, sha256_of

Identity = tuple[int, int]  # device and number of a file
Writer = Literal["predict", "convert"]  # neither replaces what the other wrote

_KIND, _TEXT = b"tEXt", b"Software\0emaseg "
_NAME, _JSON_END = b"emaseg predict ", b'"\n}\n'
_NO_COMMENT = b"\0\0"  # the last two bytes of a ZIP archive: the length of its comment
_ENDS = (b"", _JSON_END)  # what comes after the mark of an archive, of a JSON file


def signed(content: bytes | memoryview, by: Writer = "predict") -> bytes:
    """The PNG file with our mark."""
    view = memoryview(content)  # the file of a large picture is not copied twice
    head, rest = bytes(view[: png.AFTER_HEADER]), view[png.AFTER_HEADER :]
    return b"".join((head, _mark(head, rest, by), rest))


def sign_archive(file: BufferedRandom) -> None:
    """Give a ZIP archive, which has no comment yet, our mark as its comment. It may be larger than the memory."""
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    if file.read() != _NO_COMMENT:
        raise ValueError("not a ZIP archive without a comment")
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write((len(_NAME) + 64).to_bytes(2, "little"))
    mark = _NAME + sha256_of(file).encode()
    file.seek(0, os.SEEK_END)
    file.write(mark)


def signed_json(content: bytes) -> bytes:
    """The JSON object, not empty, with our mark as its last key."""
    content = content.rstrip().removesuffix(b"}").rstrip() + b',\n  "written_by": "'
    return b"".join((content, _NAME, hashlib.sha256(content).hexdigest().encode(), _JSON_END))


def is_signed(path: Path, by: Writer = "predict") -> bool:
    """Whether an ordinary file, no link, is as `signed` made it; for `predict`, `sign_archive` or `signed_json`, too.

    Raises:
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open_file(path, READ | NO_LINK) as file:
        if (written := _is_signed_png(file, by)) is not None or by == "convert":
            return bool(written)
        size = os.fstat(file.fileno()).st_size
        for end in _ENDS:
            start = size - len(end) - len(_NAME) - 64
            if start > 0:
                file.seek(start)
                tail = file.read()
                if tail.startswith(_NAME) and tail.endswith(end):
                    return tail == _NAME + sha256_of(file, 0, start).encode() + end
        return False


def identities(sources: Iterable[Path | bytes]) -> frozenset[Identity]:
    """Of all sources that are files, by whatever name."""
    found = set()
    for source in sources:
        if isinstance(source, Path):
            with contextlib.suppress(OSError, ValueError):
                status = source.stat()
                found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def check_place(path: Path, taken: Collection[Identity], overwrite: bool = False) -> None:
    """Whether a result may appear under `path`; links are not followed, they would be replaced themselves.

    Args:
        taken: the inputs, which results must not replace before or after they are read.
        overwrite: any other ordinary file may be replaced, whoever wrote it.

    Raises:
        DataError: it would replace what is not ours.
    """
    hint = "move it away, or choose another folder with --out"
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) in taken:
            problem = "is an input itself, where its result or another's belongs"
        elif stat.S_ISDIR(status.st_mode):
            problem = "a folder is in the place of the result"
        elif not stat.S_ISREG(status.st_mode):
            problem = "a link, pipe or device is in the place of the result"
        elif overwrite or status.st_size == 0 or is_signed(path):
            return
        else:
            problem = "already exists, and it is not as predict wrote it, so it is kept"
            hint += "; --overwrite replaces it"
    except (FileNotFoundError, NotADirectoryError):
        return  # atomic() says what is wrong with the folder
    except OSError as error:
        problem = f"no result can be called that ({error.strerror})"
    raise DataError(f"{path}: {problem}", hint)


def _is_signed_png(file: BufferedReader, by: Writer) -> bool | None:
    """None: it does not say so, or is no PNG."""
    head = file.read(png.AFTER_HEADER)
    mark = file.read(len(_mark(b"", b"", by)))
    if not mark[4:].startswith(_KIND + _text(by)):
        return None
    return mark == _mark(head, file.read(), by)


def _text(by: Writer) -> bytes:
    return _TEXT + by.encode() + b" "


def _mark(head: bytes, rest: bytes | memoryview, by: Writer) -> bytes:
    digest = hashlib.sha256(head)
    digest.update(rest)
    return png.chunk(_KIND, _text(by) + digest.hexdigest().encode())
