"""Reading a picture, whatever its file is like, as (H, W, 3) uint8 RGB.

Room: data/files; never torch or torchvision. Legend: H W image height and width.

What a file becomes:
  * EXIF (or XMP) orientation is applied: the array is what a viewer shows.
  * Grey becomes three equal channels; CMYK and YCbCr are converted as Pillow does, Adobe's inverted CMYK included.
  * Transparent pixels are composited on white, as they look on a page; opaque ones keep their exact colour.
  * 16-bit grey is divided by 257 and rounded, so that 65535 becomes 255; 16-bit colour keeps its high byte (Pillow's).
  * 32-bit integer and floating-point samples are refused: nothing in the file says which values are black and white.
  * Of several frames (GIF, APNG, MPO, TIFF) the first is read.

Files are untrusted. Only the decoders of FORMATS are tried, the number of pixels is limited, and whatever
Pillow raises on a damaged file (about ten exception types) becomes one DataError. So does a file whose pixels end too
early where Pillow shows black or grey instead: in PNG, JPEG and TIFF.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from emaseg.data.dataset import Box, Region, UInt8
from emaseg.data.files import jpeg, png, tiff
from emaseg.data.files.opencv import opencv
from emaseg.data.files.pillow_memory import part_of, words_of
from emaseg.errors import DataError, SystemFault, UserError
from emaseg.files import MOST_BYTES, open_file, read_bytes
from emaseg.signatures import BMP, GIF, GIT_LFS, GZIP, HEAD, HTML, JPEG, PNG, TIFF, WEBP, XML, ZIP, kind_of

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # JPEG opens MPO too; PPM its whole family
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo")
ARRAY = ".npy"  # read where a recipe declares its channels, or as RGB
ARRAY_START = b"\x93NUMPY"
MAX_PIXELS = 178_956_970  # where Pillow too calls a file a decompression bomb: 512 MiB of RGB

INVERTED = "white_is_zero"  # a key of a decoded picture's info
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_AGAIN = "copy or download it again"
_CONVERT = "convert it to PNG or JPEG"
_READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF and PPM files can be read"

# What to do about a file that no decoder accepts, by what it really is; the others must be converted.
_REMEDIES = {
    HTML: "the download was answered with a web page: check its address and sign-in",
    GIT_LFS: "run `git lfs pull` to fetch the real file",
    XML: _READABLE,
    ZIP: "unpack it first",
    GZIP: "unpack it first",
}
_OURS = (JPEG, PNG, WEBP, GIF, TIFF, BMP)


def read_image(source: Path | bytes | BinaryIO, name: str | None = None) -> UInt8:
    """Read a picture as a (H, W, 3) uint8 RGB array: writable, contiguous, oriented as a viewer shows it.

    Args:
        source: a file's path, its bytes, or an open binary file (read from where it stands to its end).
        name: what messages call it; the path, or the open file's own name, when not given.

    Raises:
        DataError: missing, not an image, damaged, too large, or of a kind that has no defined RGB values.
        SystemFault: it does not fit into memory.
    """
    name = name or name_of(source)
    picture, colours = _decoded(source, name, first_rows=False)
    with translated(name):
        if colours and picture.mode == "P" and np.asarray(picture).max() >= colours:
            raise DataError(f"{name}: a damaged image: pixels of colours beyond its palette of {colours}", _AGAIN)
        return np.require(_rgb(picture, name), requirements="W")


def read_box(content: bytes, name: str, box: Box, size: tuple[int, int]) -> Region:
    """At least the pixels of a box of an opaque RGB file, as read_image would give them, and not to be written to.

    Args:
        content: the file's bytes, or its beginning with the box. name: what messages call it.
        size: (H, W) of the picture, which has the box.

    Raises:
        DataError, SystemFault: as read_image.
    """
    picture, _ = _decoded(content, name, first_rows=True)
    with translated(name):
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        if opencv() is not None:  # it resizes, and reads packed pixels in a fifth of the time
            return Region(np.asarray(part_of(picture, box)), *box[:2], size)
        words, top, left = words_of(picture, box)
    pixels: UInt8 = words.view(np.uint8).reshape(*words.shape, -1)[..., :3]
    return Region(pixels, top, left, size, words)


def image_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(height, width) of the array that read_image gives, from the header alone wherever the format allows.

    Args:
        source, name: as read_image has them.

    Raises:
        DataError: missing, not an image, or its header is damaged.
    """
    name = name or name_of(source)
    with opened(source, name) as file, translated(name, file), Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        if picture.format == "TIFF":
            tiff.check_bands(picture, name)
        # Pillow reports the turned size of a TIFF itself. A PNG's orientation may follow its pixels: it is decoded.
        turned = picture.format != "TIFF" and _orientation(picture) >= 5
    return (width, height) if turned else (height, width)


@dataclass(frozen=True, slots=True)
class Header:
    """bits: of a sample, 1, 8 or 16. pages: of a TIFF, 2 = two or more. palette: of a palette picture, () of others.
    mode: Pillow's, of what it decodes.

    size: (H, W) as it is read. turn: its EXIF orientation, 1..8; 1 = as it is stored.
    """

    bits: int
    pages: int
    palette: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]
    turn: int
    mode: str


def image_header(source: Path | bytes, name: str | None = None) -> Header:
    """What the header of a picture says of its kind; nothing is decoded. source, name: as read_image has them.

    Raises:
        DataError: missing, not an image, or its header is damaged.
    """
    name = name or name_of(source)
    with opened(source, name) as file, translated(name, file), Image.open(file, formats=FORMATS) as picture:
        head, bits = _head(file), 16 if picture.mode.startswith("I;16") else 1 if picture.mode == "1" else 8
        pages, flat = 1, picture.getpalette() if picture.mode == "P" else None
        if picture.format == "TIFF":
            found: Any = picture
            depth = found.tag_v2.get(258, 8)
            bits = 16 if 16 in (depth if isinstance(depth, tuple) else (depth,)) else bits
            if found.is_animated:
                found.seek(1)  # not n_frames, whose time grows with the square of their number
                found.seek(0)
                pages = 2
        elif picture.format == "PNG" and head[24:25] == b"\x10":
            bits = 16
        palette = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)) if flat else ()
        turn, (width, height) = _orientation(picture, header=True), picture.size
        turned, mode = turn >= 5 and picture.format != "TIFF", picture.mode  # as in image_size
    return Header(bits, pages, palette, (width, height) if turned else (height, width), turn, mode)


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that read_image decodes and does nothing more to: RGB and upright.

    content: a file's bytes. None for anything else, and for a damaged header: read_image says what is wrong with it.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        with translated("JPEG"), Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
            width, height = picture.size
            plain = picture.format == "JPEG" and picture.mode == "RGB"  # an MPO has another format
            return (height, width) if plain and _orientation(picture) == 1 else None
    except UserError:
        return None


def image_names(names: Sequence[str]) -> list[str]:
    """Of the files of a folder those that are images, by their endings. Arrays (.npy) count where no other is there:
    beside pictures they are something else about them."""
    pictures = [name for name in names if name.lower().endswith(EXTENSIONS)]
    return pictures or [name for name in names if name.lower().endswith(ARRAY)]


def images_apart(names: Sequence[str], without: Sequence[str] = ()) -> tuple[list[str], tuple[str, ...]]:
    """The images among the files of a folder, and the other files. without: masks, which are neither."""
    left = set(without)
    chosen = image_names([name for name in names if name not in left])
    left.update(chosen)
    return chosen, tuple(name for name in names if name not in left)


def file_bytes(path: Path) -> bytes:
    """The file's bytes; none where it is no ordinary file or cannot be read, which read_image and decode explain."""
    try:
        return read_bytes(path)
    except (OSError, MemoryError):
        return b""


def decode(source: Path | bytes | BinaryIO, name: str | None = None) -> Image.Image:
    """The decoded first frame in its stored mode, with its orientation applied and its file closed.

    The building block of read_image, for readers that need the stored values (labels). One kind differs from them: a
    grey TIFF whose 0 is white arrives as it looks, 255 less what it stores, and its info has INVERTED.

    Raises:
        DataError, SystemFault: as read_image.
    """
    return _decoded(source, name or name_of(source), first_rows=False)[0]


def _decoded(source: Path | bytes | BinaryIO, name: str, *, first_rows: bool) -> tuple[Image.Image, int]:
    """The picture that `decode` gives, and the number of colours of a PNG's palette, else 0.

    first_rows: a PNG may hold more rows than its header says.
    """
    with opened(source, name) as file, translated(name, file):
        start, colours = file.read(8), 0
        file.seek(0)
        if start.startswith((png.START, jpeg.START)):
            content = file.read()
            if start.startswith(jpeg.START):
                jpeg.check_scans(content, name)
            file = io.BytesIO(content)
        with Image.open(file, formats=FORMATS) as picture:
            check_pixels(picture.size, name)
            if picture.format == "TIFF":
                _check_tiff(picture, name)
            picture.load()
            match picture.format:
                case "PNG":
                    colours = _check_png(file, picture, name, first_rows)
                case "JPEG" | "MPO":
                    _check_jpeg(file, picture, name)
                case "TIFF":
                    tiff.check_fourth(picture, name)
            turn = _TURNS.get(_orientation(picture))
            turned = picture.transpose(turn) if turn is not None else picture
            turned.format = picture.format  # transpose() forgets it
            if picture.format == "TIFF" and tiff.is_inverted(picture):
                turned.info[INVERTED] = True
            return turned, colours


# ------------------------------------------------------------------- files that end early, which Pillow does not say
def _check_png(file: BinaryIO, picture: Image.Image, name: str, first_rows: bool) -> int:
    """The number of colours of a PNG's palette, if the file is whole.

    Where rows are missing they stay black, so only a file whose last row is black can lack any: most files need no
    second look at their pixels, which takes half the time of decoding them.
    """
    file.seek(0)
    content = file.read()
    parts = png.read_parts(content)
    if isinstance(parts, str):
        raise DataError(f"{name}: a damaged image ({parts})", _AGAIN)
    if (parts.unusual or _ends_black(picture)) and not png.holds_rows(content, parts, more=first_rows):
        raise DataError(f"{name}: a damaged image: its pixels end early, or differ from their checksum", _AGAIN)
    return parts.colours


def _check_jpeg(file: BinaryIO, picture: Image.Image, name: str) -> None:
    """Stop if a JPEG's pixels end early. Missing ones are grey, so only a file with a grey end is decoded again."""
    file.seek(0)
    content = file.read()
    short = jpeg.looks_short(_last_pixel(picture))
    if not short and content.endswith(jpeg.END):  # as nearly all: where the first picture ends is of no interest
        return
    end = jpeg.end_of(content)
    if end is None:
        raise DataError(f"{name}: the image file is cut short (its end is missing)", _AGAIN)
    if not short:
        return
    with Image.open(io.BytesIO(jpeg.lengthened(content, end)), formats=("JPEG",)) as other:
        if other.tobytes() != picture.tobytes():
            raise DataError(f"{name}: a damaged image: its pixels end early", _AGAIN)


def _ends_black(picture: Image.Image) -> bool:
    """Whether the last row is black."""
    last_row = (0, picture.height - 1, *picture.size)
    return not any(_last_pixel(picture)) and not np.asarray(picture.crop(last_row)).any()


def _last_pixel(picture: Image.Image) -> tuple[float, ...]:
    """The values at the right end of the last row, a number for each band."""
    values = picture.getpixel((picture.width - 1, picture.height - 1))
    return values if isinstance(values, tuple) else (values or 0,)


def _check_tiff(picture: Any, name: str) -> None:
    """Stop if the strips of a TIFF, which is not yet decoded, do not reach its last pixel, or one of them lies nowhere."""
    tiff.check_bands(picture, name)
    end = picture.tag_v2.get(256), picture.tag_v2.get(257)  # its width and height before it is turned
    if all(tile[1][2:] != end for tile in picture.tile) or any(
        tile[0] == "raw" and tile[2] < 8 for tile in picture.tile
    ):
        raise DataError(f"{name}: a damaged image: some of its pixels are missing", _AGAIN)
    places = sorted(tile[2] for tile in picture.tile)
    if any(after - at > MOST_BYTES for at, after in pairwise(places)):  # Pillow would read all that lies between
        raise DataError(f"{name}: a damaged image: its pixels lie too far apart", _AGAIN)


def _rgb(picture: Image.Image, name: str) -> UInt8:
    """(H, W, 3) uint8 of a decoded picture of any mode; some may not be written to."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        kind = "floating-point" if picture.mode == "F" else "32-bit or signed integer"
        raise DataError(
            f"{name}: {kind} samples, and nothing says which values are black and white",
            "scale them to 0..255 and save the image with 8 bits",
        )
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _grey16(picture)
    if picture.has_transparency_data:
        picture = _on_white(picture)
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture)


def _grey16(picture: Image.Image) -> UInt8:
    """16-bit grey to RGB; the transparent value of a PNG, where there is one, to white."""
    raw = np.asarray(picture).astype(np.uint32)  # a PGM arrives in 32 bits, scaled to 0..65535 by Pillow
    grey = ((raw + 128) // 257).astype(np.uint8)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey[raw == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _on_white(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _orientation(picture: Image.Image, *, header: bool = False) -> int:
    """EXIF orientation 1..8; 1 when there is none or the EXIF block cannot be read, which must not cost the picture.

    header: nothing is decoded for it, so that one behind the pixels of a PNG is not seen.
    """
    try:
        exif = Image.Image.getexif(picture) if header else picture.getexif()
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (Pillow raises about ten types here)
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


# ------------------------------------------------------------------------------------------- what can go wrong
@contextlib.contextmanager
def translated(name: str, file: BinaryIO | None = None) -> Iterator[None]:
    """Run Pillow: its warnings are dropped, its exceptions become a DataError about `name`, which it reads from `file`.

    The filter names Pillow's modules only. Filters belong to the whole process: of two threads that read at once,
    one may at worst let a warning of Pillow's through. A lock would cure that and could hang a forked worker.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise _odd_tiff(name, file) or _not_an_image(name, _head(file)) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except MemoryError as error:
        raise SystemFault(f"{name}: not enough memory to decode it", "use a smaller image or free memory") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file", "check the path") from error
    except Exception as error:  # OSError, ValueError, SyntaxError, struct.error, EOFError, TypeError, ...
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{name}: cannot be read ({error.strerror})", "check the file's permissions and the disk")
    reason = str(error) or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in reason.lower():
        return DataError(f"{name}: the image file is cut short ({reason})", _AGAIN)
    return DataError(
        f"{name}: the image is damaged or of an unknown kind ({reason})", f"{_AGAIN}, or save it as PNG in an editor"
    )


def _not_an_image(name: str, head: bytes) -> DataError:
    """Say what a file that no decoder accepts looks like instead."""
    if not head:
        return DataError(f"{name}: the file is empty (0 bytes)", _AGAIN)
    kind = kind_of(head)
    if kind in _OURS:
        return DataError(f"{name}: a damaged image: it begins like {kind}, but cannot be read", _AGAIN)
    if kind:
        message = f"{name}: not an image that can be read: it looks like {kind}"
        return DataError(message, _REMEDIES.get(kind, _CONVERT))
    text = head[:32].decode("ascii", errors="replace")
    if all(character.isprintable() or character in "\t\r\n" for character in text) and "\ufffd" not in text:
        return DataError(f"{name}: not an image: it holds text, {' '.join(text.split())!r}", _READABLE)
    return DataError(f"{name}: not an image that can be read: it begins with the bytes {head[:8].hex(' ')}", _READABLE)


def _odd_tiff(name: str, file: BinaryIO | None) -> DataError | None:
    """The error of a whole TIFF whose bands or samples Pillow does not know."""
    if file is None or not _head(file).startswith(tiff.STARTS):
        return None
    odd = tiff.odd_samples(file)
    return tiff.BandsError(f"{name}: {odd[0]}", odd[1]) if odd else None


def _head(file: BinaryIO | None) -> bytes:
    if file is None:
        return b""
    file.seek(0)
    return file.read(HEAD)


def _too_large(name: str) -> DataError:
    return DataError(f"{name}: more than {MAX_PIXELS:,} pixels", "cut it into tiles or scale it down first")


def _too_long(name: str) -> DataError:
    return DataError(f"{name}: a file of more than {MOST_BYTES >> 30} GiB", "save it as TIFF, or cut it into tiles")


def check_pixels(size: tuple[int, int], name: str) -> None:
    """The limits on the pixel count, whatever Pillow's own have been set to by the calling program."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    if width < 1 or height < 1:
        raise DataError(f"{name}: the image has no pixels ({height} x {width})", _AGAIN)


def opened(source: Path | bytes | BinaryIO, name: str) -> BinaryIO:
    """A file at its start; a folder, a pipe or a device is refused, for it could keep us waiting for ever, and so is a
    file that is larger than what is read whole."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if isinstance(source, (str, Path)):
            return _bounded(open_file(source), name)
        content = source.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file", "check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder, not an image", "name a file in it") from error
    except MemoryError as error:
        raise SystemFault(f"{name}: not enough memory to read it", "use a smaller image or free memory") from error
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):
            raise DataError(f"{name}: {error.strerror}", "copy the image into an ordinary file first") from error
        raise _damaged(name, error) from error
    if len(content) > MOST_BYTES:
        raise _too_long(name)
    return io.BytesIO(content)


def _bounded(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """The file, unless more than MOST_BYTES of it would be read. Of a TIFF, which may be larger, only pixels and tags
    are read, and an array is as long as its header says (arrays.py)."""
    if os.fstat(file.fileno()).st_size <= MOST_BYTES:
        return file
    try:
        start = file.read(8)
        if not start.startswith((ARRAY_START, *tiff.STARTS)):
            raise _too_long(name)
        if start.startswith(tiff.STARTS) and tiff.promises_much(file):
            raise DataError(f"{name}: a damaged image: its header promises more than a picture needs", _AGAIN)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def name_of(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "name", "image"))
