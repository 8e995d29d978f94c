"""What a file is, by its first bytes: for messages about one that was given in another kind's place.

Room: the ground.
"""

from __future__ import annotations

import re

HEAD = 64  # bytes of a file that tell what it is

HTML, GIT_LFS = "an HTML page", "a Git LFS pointer"
JPEG, PNG, WEBP, GIF = "a JPEG image", "a PNG image", "a WebP image", "a GIF image"
TIFF, BMP = "a TIFF image", "a BMP image"
ZIP, GZIP, XML, SAFETENSORS = "a ZIP archive", "a gzip file", "an XML file", "a safetensors file"

# Of two that match, the first counts. A text may open with a byte-order mark and blanks.
_SIGNATURES = (
    (HTML, rb"(?:\xef\xbb\xbf)?\s*(?i:<!doctype html|<html)"),
    (GIT_LFS, rb"(?:\xef\xbb\xbf)?\s*version https://git-lfs"),
    (XML, rb"(?:\xef\xbb\xbf)?\s*(?i:<\?xml)"),
    ("an SVG drawing", rb"(?:\xef\xbb\xbf)?\s*(?i:<svg)"),
    (JPEG, rb"\xff\xd8\xff"),
    (PNG, rb"\x89PNG"),
    (GIF, rb"GIF8"),
    (WEBP, rb"RIFF....WEBP"),
    ("a sound or video file", rb"RIFF"),
    (TIFF, rb"II\*\0|MM\0\*"),
    (BMP, rb"BM....\0\0\0\0"),
    ("a JPEG 2000 image", rb"\0\0\0\x0cjP"),
    ("a HEIC image", rb"....ftyphei"),
    ("a HEIF image", rb"....ftypmif1"),
    ("an AVIF image", rb"....ftypavif"),
    ("a video or HEIF file", rb"....ftyp"),
    ("an icon file (ICO)", rb"\0\0\x01\0"),
    ("a Photoshop file", rb"8BPS"),
    ("a PDF document", rb"\s*%PDF"),
    ("a PostScript file", rb"\s*%!PS"),
    (ZIP, rb"PK\x03\x04"),
    (GZIP, rb"\x1f\x8b"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("an HDF5 file", rb"\x89HDF"),
    (SAFETENSORS, rb'.{5}\0\0\0\{"'),
)
_PATTERNS = tuple((words, re.compile(pattern, re.DOTALL)) for words, pattern in _SIGNATURES)


def kind_of(head: bytes) -> str:
    """What a file is that begins with `head`, with an article: "a JPEG image"; "" where its first bytes do not tell."""
    return next((words for words, pattern in _PATTERNS if pattern.match(head)), "")
