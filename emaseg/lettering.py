"""Words in pictures: a font that has them, and what to write where there is none.

Room: lettering.

Threat: a name may hold any character, and the current folder any file. Fonts are taken from the system's folders only.
"""

from __future__ import annotations

import functools
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Font", "lettered", "plain_font"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FILES = (  # of fonts with many characters, in the order in which they are tried; Linux, macOS, Windows
    *("dejavusans.ttf", "notosans-regular.ttf", "liberationsans-regular.ttf", "notosanscjk-regular.ttc"),
    *("arial unicode.ttf", "arial.ttf", "pingfang.ttc", "hiragino sans gb.ttc", "applesdgothicneo.ttc"),
    *("segoeui.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf"),
)
_LATIN = str.maketrans(  # letters without an accent to take away
    {
        "ß": "ss",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ı": "i",
    }
)
_NOWHERE = "\U0010fffd"  # a character of private use that no font has: drawn as what is missing
_SIDE = 24  # pixels of the pictures that characters are compared in


def plain_font(size: int) -> Font:
    """Pillow's own, which is everywhere and has ASCII and little else."""
    return ImageFont.load_default(size)


def lettered(text: str, size: int, instead: str) -> tuple[str, Font]:
    """A text as it can be drawn on one line, and the font for it.

    Pillow's own font, else one of the system's that has every character, else Pillow's without accents.

    Args:
        text: from outside, printable (words.py). instead: what to write where that is not enough; our own, in ASCII.
    """
    text = "".join(" " if char.isspace() else char for char in text)
    own = plain_font(size)
    if text.isascii() or all(_has("", char) for char in text):
        return text, own
    for path in _installed():
        if all(_has(path, char) for char in text):
            return text, _font(path, size)
    parts = unicodedata.normalize("NFKD", text).translate(_LATIN)
    if not all(_has("", char) or unicodedata.combining(char) for char in parts):
        return instead, own  # with some of its letters two names could read alike
    left = "".join(char for char in parts if _has("", char)).strip()
    return (left, own) if any(map(str.isalpha, left)) else (instead, own)


@functools.cache
def _installed() -> tuple[str, ...]:
    """The files of _FILES that the system has and that can be opened."""
    found: dict[str, str] = {}
    for folder in _folders():
        for above, _, names in os.walk(folder):
            found |= {name.lower(): os.path.join(above, name) for name in names if name.lower() in _FILES}
    return tuple(found[name] for name in _FILES if name in found and _opens(found[name]))


def _folders() -> Iterator[Path]:
    """Where the system keeps fonts."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    elif sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "fonts"
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts")


def _opens(path: str) -> bool:
    try:
        _font(path, _SIDE)
    except (OSError, ImportError):  # damaged; Pillow without FreeType
        return False
    return True


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else plain_font(size)


@functools.lru_cache(maxsize=4096)
def _has(path: str, char: str) -> bool:
    """Whether a font has a character: it draws it otherwise than one that no font has. path: "" = Pillow's own."""
    if char == " " or (char.isascii() and not path):
        return True
    drawn = _drawn(path, char)
    return drawn is not None and drawn != _drawn(path, _NOWHERE)


def _drawn(path: str, char: str) -> bytes | None:
    """The character as pixels; None where the font cannot even be asked for it."""
    picture = Image.new("L", (2 * _SIDE, 2 * _SIDE))
    try:
        ImageDraw.Draw(picture).text((_SIDE // 2, _SIDE // 4), char, 255, _font(path, _SIDE))
    except (ValueError, OSError):
        return None
    return picture.tobytes()
