"""Reading what a training crop needs of a picture: the values of read_image, to the bit, in less time.

Room: data/files. Legend: H W image height, width.

An ordinary PNG or JPEG is decoded as far as it is needed: its rows are stored from the top, so a header that promises
fewer of them makes the decoder stop there. OpenCV, if it is there, takes the RGB JPEGs, and the PNGs of which nearly
all is needed: the same libraries as Pillow's, without Pillow's copies into another layout and back. Everything else,
and whatever these refuse, is read_image's; so are all messages.
"""

from __future__ import annotations

from pathlib import Path

from emaseg.data.dataset import Box, Region, UInt8
from emaseg.data.files import jpeg, png
from emaseg.data.files.bands import read_pixels
from emaseg.data.files.decoders import jpeg_decoder, png_decoder
from emaseg.data.files.images import MAX_PIXELS, file_bytes, plain_jpeg_size, read_box

_NEARLY_ALL = 7 / 8  # of a PNG's rows: OpenCV, which cannot stop, then decodes all in less time than Pillow these


def read_region(source: Path | bytes, name: str, box: Box) -> Region:
    """At least the pixels of a box of what read_image gives for a file or its bytes.

    Args:
        name: what messages call it.
        box: all or some of the picture. Where it reaches beyond, the whole picture is read.

    Raises:
        DataError, SystemFault: as read_image; damage below the box may go unseen.
    """
    content = source if isinstance(source, bytes) else file_bytes(source)
    for read in (_jpeg_region, _png_region):
        if (region := read(content, name, box)) is not None:
            return region
    return Region.whole(read_pixels(content or source, name))


def _jpeg_region(content: bytes, name: str, box: Box) -> Region | None:
    """read_region of an RGB JPEG with an ordinary header (OpenCV complains aloud of others); None for other files, boxes."""
    frame = jpeg.read_frame(content)
    if not frame or frame.size[0] * frame.size[1] > MAX_PIXELS:
        return None
    if not frame.in_order and jpeg.has_too_many_scans(content):  # read_pixels says so
        return None
    if not frame.bare and plain_jpeg_size(content) != frame.size:
        return None
    size = frame.size
    inside, rows = _lies_in(box, size), box[0] + box[2]
    short = jpeg.first_rows(content, frame, rows) if inside else None
    if jpeg.is_complete(content) and (decode := jpeg_decoder()):
        if short and (image := decode(short)) is not None and _ends_well(image):
            return Region(image[:rows], 0, 0, size)
        if (image := decode(content)) is not None:
            return Region.whole(image) if _ends_well(image) else None
    if not inside:
        return None
    # Pillow, for its part, wants the mark at the end, and does not complain.
    return read_box(short + jpeg.END if short else content, name, box, size)


def _ends_well(image: UInt8) -> bool:
    """Whether a JPEG's pixels do not look as if they ended too early; if they do, read_image finds out."""
    return not jpeg.looks_short(image[-1, -1].tolist())


def _png_region(content: bytes, name: str, box: Box) -> Region | None:
    """read_region of an ordinary RGB PNG; None for other files and boxes."""
    header = png.read_header(content)
    if not header or header.kind != png.RGB or header.see_through or not _lies_in(box, header.size):
        return None
    rows, (height, width) = box[0] + box[2], header.size
    if height * width > MAX_PIXELS:
        return None
    decode = png_decoder() if rows > _NEARLY_ALL * height and not header.unusual else None
    if decode and (image := decode(png.bare(content, header))) is not None:
        return Region.whole(image)
    return read_box(png.first_rows(content, header, rows), name, box, header.size)


def _lies_in(box: Box, size: tuple[int, int]) -> bool:
    top, left, height, width = box
    return top + height <= size[0] and left + width <= size[1]
