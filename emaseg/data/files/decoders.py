"""OpenCV's decoders, where it is installed and gives Pillow's values: the same pixels in less time.

Room: data/files. Legend: H W image height, width.

Both come with libjpeg-turbo and libpng or their like, but a distribution may build them otherwise: each decoder is
tried on a small picture before it is used. None of these functions raises for a damaged file.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from emaseg.data.dataset import UInt8
from emaseg.data.files import jpeg, png
from emaseg.data.files.opencv import opencv

Decoder = Callable[[bytes], UInt8 | None]  # a file's bytes to its pixels, or to None where they are refused


@functools.cache
def _noise() -> UInt8:
    """(H, W, 3): the picture that they are tried on."""
    return np.random.default_rng(0).integers(0, 256, (123, 70, 3), np.uint8)


@functools.cache
def jpeg_decoder() -> Decoder | None:
    """For complete RGB files, to (H, W, 3) as they are stored, and for what jpeg.first_rows gives of them. Of a
    progressive file that is cut short, OpenCV 4 makes the rest up."""
    decode = _decoder("IMREAD_COLOR_RGB")
    return decode if decode and all(_is_pillows(decode, s) for s in ("4:4:4", "4:2:2", "4:2:0")) else None


def _is_pillows(decode: Decoder, subsampling: str) -> bool:
    content, rows = _stored(Image.fromarray(_noise()), "JPEG", subsampling=subsampling), 21
    expected = np.asarray(Image.open(io.BytesIO(content)))
    frame = jpeg.read_frame(content)
    short = jpeg.first_rows(content, frame, rows) if frame else None
    first = decode(short) if short else None
    if first is None or not np.array_equal(first[:rows], expected[:rows]):
        return False
    return _gives(decode, content, expected)


@functools.cache
def png_decoder() -> Decoder | None:
    """For what png.bare gives of RGB files, to (H, W, 3)."""
    decode = _decoder("IMREAD_COLOR_RGB")
    return decode if decode and _gives(decode, _bare(Image.fromarray(_noise())), _noise()) else None


@functools.cache
def numbers_decoder() -> Decoder | None:
    """For what png.bare gives of grey files and of those with a palette, to (H, W)."""
    decode, numbers = _decoder("IMREAD_UNCHANGED"), _noise()[..., 0]
    grey, palette = Image.fromarray(numbers), Image.fromarray(numbers)
    palette.putpalette(_noise()[:, 0].tobytes())
    return decode if decode and all(_gives(decode, _bare(each), numbers) for each in (grey, palette)) else None


def _decoder(mode: str) -> Decoder | None:
    """mode: a name of OpenCV's; versions before 4.11 know their own order of colours only, and nothing of this one."""
    cv2 = opencv()
    if cv2 is None or not hasattr(cv2, mode):
        return None
    # "Unchanged" means that already, and is spoilt by any other flag.
    flags = getattr(cv2, mode) | (0 if mode == "IMREAD_UNCHANGED" else cv2.IMREAD_IGNORE_ORIENTATION)

    def decode(content: bytes) -> UInt8 | None:
        try:
            image: UInt8 | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:  # it has limits of its own, on width and height
            return None
        return image

    return decode


def _gives(decode: Decoder, content: bytes, expected: UInt8) -> bool:
    image = decode(content)
    return image is not None and np.array_equal(image, expected)


def _bare(picture: Image.Image) -> bytes:
    content = _stored(picture, "PNG")
    header = png.read_header(content)
    return png.bare(content, header) if header else content


def _stored(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
