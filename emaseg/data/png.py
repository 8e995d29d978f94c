"""What a PNG's header says, and the same file with fewer rows, or with numbers instead of colours.

Room: data. Imports nothing of it. Legend: H W image height, width.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

GREY, RGB, PALETTE = 0, 2, 3  # what a pixel is

_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, what a pixel is, compression, filter, interlacing
_DATA_AT = len(_START) + 8 + _HEADER.size + 4
# Parts that change neither a stored value nor the orientation; of texts, those with another keyword than these two.
_SILENT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"bKGD", b"tEXt"))
_ORIENTING = (b"Raw profile", b"XML:")


@dataclass(frozen=True, slots=True)
class Header:
    """A complete PNG of 8 bits, its rows stored from top to bottom, which nothing in the file turns.

    size: (H, W). kind: GREY, RGB or PALETTE. see_through: one of its colours is transparent.
    pixels: (start, end) of each part of the file with pixels.
    """

    size: tuple[int, int]
    kind: int
    see_through: bool
    pixels: tuple[tuple[int, int], ...]


def read_header(content: bytes) -> Header | None:
    """Of a file's bytes; None for every other kind of file, and for a PNG that is out of the ordinary."""
    if not content.startswith(_START) or len(content) < _DATA_AT or content[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, bits, kind, *others = _HEADER.unpack_from(content, 16)
    if bits != 8 or kind not in (GREY, RGB, PALETTE) or any(others):
        return None
    at, see_through, pixels = len(_START), False, []
    while (part := content[at + 4 : at + 8]) != b"IEND":
        end = at + int.from_bytes(content[at : at + 4]) + 12
        if part == b"IDAT":
            pixels.append((at, end))
        elif part == b"tRNS":
            see_through = True
        elif part not in _SILENT or (part == b"tEXt" and content.startswith(_ORIENTING, at + 8)):
            return None
        at = end
    return Header((height, width), kind, see_through, tuple(pixels))


def first_rows(content: bytes, header: Header, rows: int) -> bytes:
    """The file with a header that promises only `rows` rows: a decoder reads no further."""
    return _rebuilt(content, (rows, header.size[1]), header.kind, [(_DATA_AT, len(content))])


def bare(content: bytes, header: Header) -> bytes:
    """The file without all that is not pixels; of a palette the numbers, as grey: a decoder shows them untouched."""
    kind = GREY if header.kind == PALETTE else header.kind
    return _rebuilt(content, header.size, kind, header.pixels) + b"\0\0\0\0IEND\xae\x42\x60\x82"


def _rebuilt(content: bytes, size: tuple[int, int], kind: int, parts: Sequence[tuple[int, int]]) -> bytes:
    head = b"IHDR" + _HEADER.pack(size[1], size[0], 8, kind, 0, 0, 0)
    checksum = zlib.crc32(head).to_bytes(4)
    view = memoryview(content)
    return b"".join((_START, _HEADER.size.to_bytes(4), head, checksum, *(view[start:end] for start, end in parts)))
