"""What a PNG's header says, and the same file with fewer rows, or with numbers instead of colours.

Room: data. Imports nothing of it. Legend: H W image height, width.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

GREY, RGB, PALETTE = 0, 2, 3  # what a pixel is

_START, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xae\x42\x60\x82"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, what a pixel is, compression, filter, interlacing
_DATA_AT = len(_START) + 8 + _HEADER.size + 4
# Parts that change neither a stored value nor the orientation; texts under other keywords may.
_SILENT = frozenset((b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"bKGD"))
_TEXTS = frozenset(
    (
        *(b"Title", b"Author", b"Description", b"Copyright", b"Creation Time", b"Software", b"Disclaimer", b"Warning"),
        *(b"Source", b"Comment", b"date:create", b"date:modify", b"date:timestamp"),
    )
)
_LONGEST = 1 << 20  # pixels: OpenCV's limit for a side


@dataclass(frozen=True, slots=True)
class Header:
    """A PNG of 8 bits with all its parts, its rows stored from top to bottom, which nothing in the file turns.

    size: (H, W). kind: GREY, RGB or PALETTE. see_through: one of its colours is transparent.
    pixels: (start, end) of the parts of the file with pixels, which follow one another.
    """

    size: tuple[int, int]
    kind: int
    see_through: bool
    pixels: tuple[int, int]


def read_header(content: bytes) -> Header | None:
    """Of a file's bytes; None for every other kind of file, and for a PNG that is out of the ordinary.

    Checksums are compared, but not those of RGB pixels, which would take a tenth of the time of decoding them.
    """
    if not content.startswith(_START) or len(content) < _DATA_AT or content[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, bits, kind, *others = _HEADER.unpack_from(content, 16)
    if bits != 8 or kind not in (GREY, RGB, PALETTE) or any(others) or not height or not width:
        return None
    if max(height, width) > _LONGEST or not _is_sound(content, len(_START), _DATA_AT):
        return None
    at, see_through, start, stop = _DATA_AT, False, 0, 0
    while (part := content[at + 4 : at + 8]) != b"IEND":
        end = at + int.from_bytes(content[at : at + 4]) + 12
        if (part != b"IDAT" or kind != RGB) and not _is_sound(content, at, end):
            return None
        if part == b"IDAT":
            if start and at != stop:
                return None
            start, stop = start or at, end
        elif part == b"tRNS":
            see_through = True
        elif part not in _SILENT and not (part == b"tEXt" and content[at + 8 : end].split(b"\0", 1)[0] in _TEXTS):
            return None
        at = end
    return Header((height, width), kind, see_through, (start, stop)) if start else None


def _is_sound(content: bytes, at: int, end: int) -> bool:
    """Whether a part is there to its end, with the right checksum."""
    return end <= len(content) and zlib.crc32(content[at + 4 : end - 4]).to_bytes(4) == content[end - 4 : end]


def first_rows(content: bytes, header: Header, rows: int) -> bytes:
    """The file with a header that promises only `rows` rows: a decoder reads no further."""
    return _rebuilt((rows, header.size[1]), header.kind, memoryview(content)[_DATA_AT:])


def bare(content: bytes, header: Header) -> bytes:
    """The file without all that is not pixels; of a palette the numbers, as grey: a decoder shows them untouched."""
    kind = GREY if header.kind == PALETTE else header.kind
    start, end = header.pixels
    return _rebuilt(header.size, kind, memoryview(content)[start:end], _END)


def _rebuilt(size: tuple[int, int], kind: int, *rest: bytes | memoryview) -> bytes:
    head = b"IHDR" + _HEADER.pack(size[1], size[0], 8, kind, 0, 0, 0)
    return b"".join((_START, _HEADER.size.to_bytes(4), head, zlib.crc32(head).to_bytes(4), *rest))
