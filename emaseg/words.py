"""Numbers as people say them, and strangers' text as it can be shown.

Room: bottom; imports nothing of ours.
"""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidi and zero-width marks, lone halves, line separators


def printable(text: str) -> str:
    r"""`text` with every character that a terminal obeys or hides as a visible escape: \x1b, \n, \u202e.

    Threat: names and messages of strangers that colour, move or forge lines on the reader's terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


def duration(seconds: float) -> str:
    """42 s, 3 min, 2 h 05 min, 3 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


def rate(per_second: float) -> str:
    """Of things counted by the second, without an exponent: 9.87, 123, 1390."""
    return f"{per_second:.3g}" if per_second < 999.5 else f"{per_second:.0f}"


def size(count: float) -> str:
    """Bytes in decimal units, as servers and disks count them: 812 bytes, 45 kB, 3.2 MB, 240 MB, 1.48 GB."""
    if count < 1000:
        return f"{count:.0f} bytes"
    unit = 3 if count >= 999.5e6 else 2 if count >= 999.5e3 else 1
    value = count / 1000**unit
    digits = 2 if unit == 3 else 1 if unit == 2 and value < 10 else 0
    return f"{value:.{digits}f} {('kB', 'MB', 'GB')[unit - 1]}"
