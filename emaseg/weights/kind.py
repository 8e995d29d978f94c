"""What a file is that was given in a weight file's place, by its first bytes.

Room: weights; imports weights.cache, files and errors; never torch.

PyTorch takes anything for a pickle. Of a photograph it says that loading it could run code, which is true of no
photograph and helps nobody; so this is asked first.
"""

from __future__ import annotations

from pathlib import Path

from emaseg.errors import WeightsError
from emaseg.files import open_file
from emaseg.weights.cache import not_weights

_HEAD = 64  # bytes that are looked at
_GIVE = "give a run folder or a checkpoint of `emaseg train`, or a recipe with its weight file (.pt, .pth)"

# (offset, first bytes, what the file is)
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"BM", "a BMP image"),
    (4, b"ftyp", "a HEIC image or a video"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (8, b'{"', "a safetensors file"),
)


def check_kind(path: Path) -> None:
    """Refuse what cannot be a file of torch.save, before it is loaded.

    What cannot be read, or is empty, passes: loading tells.

    Raises:
        WeightsError: an image, a web page, text or the like; says what it looks like and what to give instead.
    """
    try:
        with open_file(path) as file:
            head = file.read(_HEAD) or b""
    except OSError:
        return
    reason = not_weights(head)
    if not head or not reason:
        return
    for offset, signature, words in _SIGNATURES:
        if head.startswith(signature, offset):
            remedy = "load it with safetensors and keep it with torch.save" if "safetensors" in words else _GIVE
            raise WeightsError(f"{path}: {words}, not a weight file", remedy)
    raise WeightsError(f"{path}: {reason}", _GIVE)
