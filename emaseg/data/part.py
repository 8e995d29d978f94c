"""Reading what a training crop needs of a picture: the values of read_image, to the bit, in less time.

Room: data. Imports images, opencv, sample, numpy and Pillow. Legend: H W image height, width.

An ordinary PNG is decoded as far as it is needed: its rows are stored from the top, so a header that promises fewer of
them makes the decoder stop there. An ordinary RGB JPEG goes through OpenCV, if it is there: the same library as
Pillow's, without Pillow's copies into another layout and back. Everything else, and whatever these two refuse, is
read_image's; so are all messages.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from emaseg.data.images import plain_jpeg_size, read_image
from emaseg.data.opencv import opencv
from emaseg.data.sample import Box, Part, UInt8

_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">4sIIBBBBB")  # its name, width, height, bits, colour type, compression, filter, interlacing
_IHDR_AT = len(_PNG) + 4
_RGB = (8, 2, 0, 0, 0)  # eight bits, no alpha, rows from top to bottom
# Chunks that change neither a value nor the orientation; of texts, those with another keyword than these two.
_HARMLESS = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"bKGD", b"tEXt")
)
_ORIENTING = (b"Raw profile", b"XML:")


def read_part(source: Path | bytes, name: str, box: Box) -> Part:
    """At least the pixels of a box of what read_image gives for a file or its bytes.

    Args:
        name: what messages call it.
        box: all or some of the picture. Where it reaches beyond, the whole picture is read.

    Raises:
        DataError, SystemFault: as read_image; damage below the box may go unseen.
    """
    content = source if isinstance(source, bytes) else _content(source)
    top, left, height, width = box
    png, jpeg = _plain_png_size(content), plain_jpeg_size(content)
    if jpeg and (decode := _jpeg_decoder()) and (image := decode(content)) is not None:
        return Part.whole(image)
    size = png or jpeg
    if not size or top + height > size[0] or left + width > size[1]:
        return Part.whole(read_image(content or source, name))
    return Part(read_image(_shortened(content, top + height) if png else content, name, box), top, left, size)


def _content(path: Path) -> bytes:
    """The file's bytes; none where it is no ordinary file or cannot be read, which read_image then explains."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except (OSError, ValueError):
        return b""


@functools.cache
def _jpeg_decoder() -> Callable[[bytes], UInt8 | None] | None:
    """JPEG bytes to (H, W, 3) uint8 RGB, or to None where they are refused; None without an OpenCV that decodes as
    Pillow does (both come with libjpeg-turbo, but a distribution may build them otherwise)."""
    cv2 = opencv()
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", None)  # versions before 4.11 know their own order of colours only
    if cv2 is None or rgb is None:
        return None

    def decode(content: bytes) -> UInt8 | None:
        # OpenCV goes on where a file is cut short, in grey; every complete one ends with this mark.
        if not content.rstrip(b"\0").endswith(b"\xff\xd9"):
            return None
        image: UInt8 | None = cv2.imdecode(np.frombuffer(content, np.uint8), rgb | cv2.IMREAD_IGNORE_ORIENTATION)
        return image

    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", subsampling="4:2:0")
    known = decode(file.getvalue())
    return decode if known is not None and np.array_equal(known, np.asarray(Image.open(file))) else None


def _plain_png_size(content: bytes) -> tuple[int, int] | None:
    """(H, W) of a complete 8-bit RGB PNG in which nothing but the header tells how its rows are to be shown."""
    if not content.startswith(_PNG) or len(content) < _IHDR_AT + _IHDR.size:
        return None
    chunk, width, height, *kind = _IHDR.unpack_from(content, _IHDR_AT)
    if chunk != b"IHDR" or tuple(kind) != _RGB:
        return None
    at = len(_PNG)
    while (chunk := content[at + 4 : at + 8]) in _HARMLESS:
        if chunk == b"tEXt" and content.startswith(_ORIENTING, at + 8):
            return None
        at += int.from_bytes(content[at : at + 4]) + 12
    return (height, width) if chunk == b"IEND" else None


def _shortened(content: bytes, height: int) -> bytes:
    """The PNG with `height` in its header, and the header's checksum to match."""
    header = bytearray(content[_IHDR_AT : _IHDR_AT + _IHDR.size])
    struct.pack_into(">I", header, 8, height)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"".join((content[:_IHDR_AT], header, checksum, memoryview(content)[_IHDR_AT + _IHDR.size + 4 :]))
