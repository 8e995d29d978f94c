"""What a JPEG's header says, and the same file with fewer rows; and a way to see that its pixels end too early.

Room: data/files. Legend: H W image height, width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from emaseg.errors import DataError

START, END = b"\xff\xd8", b"\xff\xd9"

_MOST_SCANS = 100  # of a picture, which is libtiff's limit too
_SCAN, _RESTARTS = 0xDA, 0xDD
_SCAN_MARK = b"\xff\xda"
_ALONE = (START, b"\xff\x01")  # marks without a segment
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: with Huffman's code, as nearly all files
_EXIF_XMP, _ICC_MPF = 0xE1, 0xE2
_JFIF, _ADOBE = 0xE0, 0xEE
# Segments that say nothing about how to show the picture; besides these two Photoshop's, tables, a comment.
_SILENT = frozenset((_JFIF, _ADOBE, 0xED, 0xC4, 0xDB, 0xFE))
_JFIF_1, _ADOBE_100 = b"\x00\x10JFIF\x00\x01", b"\x00\x0eAdobe"  # their usual lengths and names
_GREY = range(120, 137)  # what a decoder makes up for pixels that are not there, in any colour space
_ALL = b"\x00\x3f"  # of a scan: it holds every frequency

_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the mark after a scan; 208 to 215 are marks between its rows
_MARK = re.compile(rb"\xff[^\x00\xff]")  # among pixels; 255 itself is followed by 0
_MORE = 8  # rows: colour of half or a quarter of the height is interpolated from the rows below, too
_WORTH = 64  # rows, more than the largest block has: a decoder that wants the rest of a block must not find the end


@dataclass(frozen=True, slots=True)
class Frame:
    """A JPEG of three components of 8 bits.

    at: its frame header's place in the file, which begins with the marker. scan: where its pixels begin.
    size: (H, W) as stored. bare: nothing in its header can turn it, or hold a second picture.
    in_order: its rows are stored one after the other, without marks between.
    """

    at: int
    scan: int
    size: tuple[int, int]
    bare: bool
    in_order: bool


def read_frame(content: bytes) -> Frame | None:
    """Of a file's bytes; None for every other kind of file, and for a header that is out of the ordinary."""
    at, found, size, bare, in_order = len(START), 0, (0, 0), True, True
    while content.startswith(START) and len(content) > at + 10 and content[at] == 0xFF:
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if end > len(content):
            return None
        if marker == _SCAN:
            in_order = in_order and content[at + 4] == 3 and content.startswith(_ALL, at + 11)
            return Frame(found, end, size, bare, in_order) if found else None
        if marker in _FRAMES:
            bits, components = content[at + 4], content[at + 9]
            height, width = int.from_bytes(content[at + 5 : at + 7]), int.from_bytes(content[at + 7 : at + 9])
            if found or bits != 8 or components != 3 or not height * width:
                return None
            found, size, in_order = at, (height, width), in_order and marker != _FRAMES[2]
        elif marker == _RESTARTS:
            in_order = False
        elif marker in (_EXIF_XMP, _ICC_MPF):
            bare = bare and content.startswith(b"ICC_PROFILE", at + 4)
        elif marker not in _SILENT or not _is_usual(content, at, marker):
            return None
        at = end
    return None


def _is_usual(content: bytes, at: int, marker: int) -> bool:
    """Whether a segment of a program's own is one that libjpeg has no word about."""
    if marker == _JFIF:
        return content.startswith(_JFIF_1, at + 2)
    return marker != _ADOBE or (content.startswith(_ADOBE_100, at + 2) and content[at + 15] <= 1)


def is_complete(content: bytes) -> bool:
    """Whether a JPEG's bytes end with its last mark; some programs append zeros."""
    return content.rstrip(b"\0").endswith(END)


def first_rows(content: bytes, frame: Frame, rows: int) -> bytes | None:
    """The file with a header that promises `rows` rows and a few more, and without the mark at its end.

    A decoder reads so far as it must for them. What follows is not looked at but for a mark, so there is none: a
    decoder that meets one complains of the bytes before it.

    Returns:
        None where the rows are not stored in order, where there is little to save, or where the file is not complete.
    """
    rows += _MORE
    if not frame.in_order or rows + _WORTH > frame.size[0]:
        return None
    mark = _MARK.search(content, frame.scan)
    if not mark or mark[0] != END or content[mark.end() :].strip(b"\0"):
        return None
    return b"".join((content[: frame.at + 5], rows.to_bytes(2), memoryview(content)[frame.at + 7 : mark.start()]))


# ------------------------------------------------------------------------------------------------ whole or not
def looks_short(corner: Iterable[float]) -> bool:
    """Whether the values of the last pixel are those that a decoder makes up where a scan ends too early."""
    return all(value in _GREY for value in corner)


def end_of(content: bytes) -> int | None:
    """Where the mark at the end of the first picture is; others may follow, or anything else. None: it has none."""
    return next((mark.start() for mark in _marks(content) if mark[0] == END), None)


def has_too_many_scans(content: bytes) -> bool:
    """Whether the first picture of a file has more than _MOST_SCANS: a scan may take a few hundred bytes of the file,
    and takes every decoder the time of all pixels."""
    frame = read_frame(content)  # what is in order has all in one scan, and a decoder looks no further
    if (frame and frame.in_order) or content.count(_SCAN_MARK) <= _MOST_SCANS:  # no mark stands among pixels
        return False
    count = 0
    for mark in _marks(content):
        count += mark[0] == _SCAN_MARK
        if count > _MOST_SCANS or mark[0] == END:
            break
    return count > _MOST_SCANS


def check_scans(content: bytes, name: str) -> None:
    """Stop at a file that would hold its reader for hours.

    Raises:
        DataError: its first picture has too many scans.
    """
    if has_too_many_scans(content):
        raise DataError(
            f"{name}: a JPEG in more than {_MOST_SCANS} scans, each of which takes the time of all pixels",
            "save it again as an ordinary JPEG, or as PNG",
        )


def _marks(content: bytes) -> Iterator[re.Match[bytes]]:
    """The marks of a file in order, as a decoder meets them: what segments hold is passed over."""
    at = len(START)
    while mark := _NEXT.search(content, at):
        yield mark
        at = mark.end()
        if mark[0] not in _ALONE:
            at += int.from_bytes(content[at : at + 2])


def lengthened(content: bytes, end: int) -> bytes:
    """The file with more coded bytes before the mark at its end, which is at `end`.

    Of a file that holds all its pixels a decoder makes the same picture: it needs no more of them. Where the scan ends
    too early (and decoders then make the rest up, grey, without an error) it makes another one.
    """
    noise = bytes((7 + 31 * i + i * i // 5) % 251 for i in range(1024))  # no 255, which begins a mark
    if b"\xff\xdd\x00\x04" in content[:end]:  # a decoder that waits for one of the marks between rows meets each
        noise += b"".join(bytes((0xFF, 0xD0 + i % 8)) + noise[i : i + 200] for i in range(16))
    return b"".join((content[:end].rstrip(b"\xff"), noise, content[end:]))
