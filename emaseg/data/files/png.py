"""What a PNG's header says, and the same file with fewer rows, or with numbers instead of colours; and whether a file
is whole, which decoders do not always say.

Room: data/files. Legend: H W image height, width.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

GREY, RGB, PALETTE = 0, 2, 3  # what a pixel is

START, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xae\x42\x60\x82"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, what a pixel is, compression, filter, interlacing
AFTER_HEADER = len(START) + 8 + _HEADER.size + 4  # where the second part begins
# Parts that change neither a stored value nor the orientation; texts under other keywords may.
_SILENT = frozenset((b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"bKGD"))
_TEXTS = frozenset(
    (
        *(b"Title", b"Author", b"Description", b"Copyright", b"Creation Time", b"Software", b"Disclaimer", b"Warning"),
        *(b"Source", b"Comment", b"date:create", b"date:modify", b"date:timestamp"),
    )
)
_LONGEST = 1 << 20  # pixels: OpenCV's limit for a side
_BLOCK = 1 << 13  # bytes that libpng looks at together; Pillow a multiple of it
_TAIL = 64  # bytes: more than the end of a stream and its checksum take


@dataclass(frozen=True, slots=True)
class Header:
    """A PNG of 8 bits with all its parts, its rows stored from top to bottom, which nothing in the file turns.

    size: (H, W). kind: GREY, RGB or PALETTE. see_through: one of its colours is transparent.
    pixels: (start, end) of the parts of the file with pixels, which follow one another. unusual: a decoder may not
    notice that the checksum at the end of their stream is wrong.
    """

    size: tuple[int, int]
    kind: int
    see_through: bool
    pixels: tuple[int, int]
    unusual: bool


def read_header(content: bytes) -> Header | None:
    """Of a file's bytes; None for every other kind of file, and for a PNG that is out of the ordinary.

    All checksums are compared: in half a hundredth of the time of decoding the pixels.
    """
    if not content.startswith(START) or len(content) < AFTER_HEADER or content[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, bits, kind, *others = _HEADER.unpack_from(content, 16)
    if bits != 8 or kind not in (GREY, RGB, PALETTE) or any(others) or not height or not width:
        return None
    if max(height, width) > _LONGEST or not _is_sound(content, len(START), AFTER_HEADER):
        return None
    at, see_through, start, stop, last = AFTER_HEADER, False, 0, 0, 0
    while (part := content[at + 4 : at + 8]) != b"IEND":
        end = at + int.from_bytes(content[at : at + 4]) + 12
        if not _is_sound(content, at, end):
            return None
        if part == b"IDAT":
            if start and at != stop:
                return None
            start, stop, last = start or at, end, end - at - 12
        elif part == b"tRNS":
            see_through = True
        elif part not in _SILENT and not (part == b"tEXt" and content[at + 8 : end].split(b"\0", 1)[0] in _TEXTS):
            return None
        at = end
    if not start or not _is_sound(content, at, at + 12):
        return None
    return Header((height, width), kind, see_through, (start, stop), _has_loose_end(last))


def _has_loose_end(size: int) -> bool:
    """Whether the end of a stream is in a block that a decoder needs no byte of, by the size of the last part."""
    return size % _BLOCK < _TAIL


def _is_sound(content: bytes, at: int, end: int) -> bool:
    """Whether a part is there to its end, with the right checksum."""
    return end <= len(content) and zlib.crc32(content[at + 4 : end - 4]).to_bytes(4) == content[end - 4 : end]


def first_rows(content: bytes, header: Header, rows: int) -> bytes:
    """The file with a header that promises only `rows` rows: a decoder reads no further."""
    return _rebuilt((rows, header.size[1]), header.kind, memoryview(content)[AFTER_HEADER:])


def bare(content: bytes, header: Header) -> bytes:
    """The file without all that is not pixels; of a palette the numbers, as grey: a decoder shows them untouched."""
    kind = GREY if header.kind == PALETTE else header.kind
    start, end = header.pixels
    return _rebuilt(header.size, kind, memoryview(content)[start:end], _END)


def palette(content: bytes) -> tuple[tuple[int, int, int], ...]:
    """The colours of a file whose header `read_header` has read; () of one without."""
    at = AFTER_HEADER
    while (part := content[at + 4 : at + 8]) not in (b"IDAT", b"IEND", b""):
        end = at + int.from_bytes(content[at : at + 4]) + 12
        if part == b"PLTE":
            flat = content[at + 8 : end - 4]
            return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=False))
        at = end
    return ()


def looks_plain(content: bytes, header: Header) -> bool:
    """Whether the first rows of a file of one channel are stored as they are, as in most files with a palette."""
    start, width = header.pixels[0] + 8, 1 + header.size[1]
    try:
        rows = zlib.decompressobj().decompress(content[start : start + _BLOCK], 4 * width)
    except zlib.error:
        return False
    return not any(rows[::width])


def unfolded(content: bytes, header: Header) -> bytes | None:
    """The rows of a file of one channel, each after the byte that says how it is stored; None unless the compressed
    stream holds just these and agrees with its checksum."""
    at, (height, width) = header.pixels[0], header.size
    stored = []
    while at < header.pixels[1]:
        end = at + int.from_bytes(content[at : at + 4]) + 12
        stored.append(content[at + 8 : end - 4])
        at = end
    unfold, needed = zlib.decompressobj(), height * (1 + width)
    try:
        rows = unfold.decompress(b"".join(stored), needed + 1)
    except zlib.error:
        return None
    return rows if len(rows) == needed and unfold.eof else None


def _rebuilt(size: tuple[int, int], kind: int, *rest: bytes | memoryview) -> bytes:
    return b"".join((START, chunk(b"IHDR", _HEADER.pack(size[1], size[0], 8, kind, 0, 0, 0)), *rest))


def chunk(kind: bytes, content: bytes) -> bytes:
    """One part of a PNG: its length, kind, content and checksum."""
    return b"".join((len(content).to_bytes(4), kind, content, zlib.crc32(kind + content).to_bytes(4)))


# ------------------------------------------------------------------------------------------------ whole or not
_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by what it is
_SEE_THROUGH = (4, 6)  # of which the last sample is transparency
# The passes of an interlaced file: first row, first column, steps between rows and columns.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a PNG that is sound outside its pixels.

    size: (H, W). bits: of a sample. kind: what a pixel is. interlaced: stored in seven passes. colours: of its palette.
    pixels: (start, end) of the compressed bytes of each part with pixels.
    """

    size: tuple[int, int]
    bits: int
    kind: int
    interlaced: bool
    colours: int
    pixels: tuple[tuple[int, int], ...]

    @property
    def unusual(self) -> bool:
        """Whether a decoder may have stopped before the end of the stream without noticing."""
        start, end = self.pixels[-1]
        return self.interlaced or _has_loose_end(end - start)


def read_parts(content: bytes) -> Parts | str:
    """The parts of a PNG whose pixels have been decoded, or what is wrong with it.

    Decoders compare some of the checksums, take the end of a file for its last part, and pass over what they do not
    know. Here the checksums of all parts count: a wrong one may hide an orientation or a transparent colour.
    """
    at, order, header, colours = len(START), [], None, 0
    pixels: list[tuple[int, int]] = []
    while True:
        end, kind = at + int.from_bytes(content[at : at + 4]) + 12, content[at + 4 : at + 8]
        if end > len(content):
            return "cut short"
        if not _is_sound(content, at, end):
            return f"wrong checksum in its part {kind!r}"
        if kind in _CRITICAL:
            order.append(kind)
        elif not kind[0] & 32:  # a small letter says that a decoder may do without the part
            return f"unknown part {kind!r}"
        if kind == b"IHDR" and end - at == 12 + _HEADER.size:
            header = _HEADER.unpack_from(content, at + 8)
        elif kind == b"PLTE":
            colours = (end - at - 12) // 3
        elif kind == b"IDAT":
            if pixels and at != pixels[-1][1] + 4:
                return "pixels in several places"
            pixels.append((at + 8, end - 4))
        elif kind == b"IEND":
            break
        at = end
    if not header or order[0] != b"IHDR" or order.count(b"IHDR") > 1 or order.count(b"PLTE") > 1 or not pixels:
        return "parts missing or doubled"
    width, height, bits, what, _, _, interlaced = header
    return Parts((height, width), bits, what, bool(interlaced), colours, tuple(pixels))


def holds_rows(content: bytes, parts: Parts, *, more: bool) -> bool:
    """Whether the compressed stream holds the rows that the header promises, and its checksum is right; or more rows.

    A decoder that meets the end of a stream between two rows may leave the other rows black, without a word.
    """
    needed, unfold = _unfolded_bytes(parts), zlib.decompressobj()
    try:
        for start, end in parts.pixels:
            stored = content[start:end]
            while stored and not unfold.eof:
                needed -= len(unfold.decompress(stored, 1 << 20))
                stored = unfold.unconsumed_tail
                if needed < 0:
                    return more
    except zlib.error:
        return False
    return needed == 0 and unfold.eof


def is_black(content: bytes, parts: Parts) -> bool:
    """Whether all samples of a whole file of 16 bits are 0, transparency aside.

    No row needs to be decoded for it: each byte is stored as the difference to what others of its channel foretell,
    which is 0 where these are.
    """
    samples = _SAMPLES[parts.kind]
    pixel, shown = 2 * samples, 2 * (samples - (parts.kind in _SEE_THROUGH))  # bytes
    stored = zlib.decompressobj().decompress(
        b"".join(content[start:end] for start, end in parts.pixels), _unfolded_bytes(parts)
    )
    at = 0
    for rows, columns in _tables(parts):
        length = 1 + columns * pixel
        for row in range(at, at + rows * length, length):
            if any(stored[row + 1 + byte : row + length : pixel].count(0) < columns for byte in range(shown)):
                return False
        at += rows * length
    return True


def _tables(parts: Parts) -> Iterator[tuple[int, int]]:
    """(rows, columns) of each pass that has pixels."""
    for top, left, down, across in _PASSES if parts.interlaced else ((0, 0, 1, 1),):
        rows = (parts.size[0] - top + down - 1) // down
        columns = (parts.size[1] - left + across - 1) // across
        if rows > 0 and columns > 0:
            yield rows, columns


def _unfolded_bytes(parts: Parts) -> int:
    """Of all rows, each with the byte that says how it is stored."""
    pixel = parts.bits * _SAMPLES[parts.kind]
    return sum(rows * (1 + (columns * pixel + 7) // 8) for rows, columns in _tables(parts))
