"""Numbers as people say them, and text from outside as people may see it.

Room: words.

Threat: names of files and classes, servers' headers and checkpoints' keys are untrusted. Shown as they are, an ESC
moves the cursor or changes the terminal, a line break forges a line of ours, and U+202E turns "gpj.exe" round.
"""

from __future__ import annotations

import math
import os
import re
from typing import Self

# Spaces of other widths are no attack: macOS puts U+202F into the names of screenshots.
_SPACES = frozenset("\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
# Letters and marks without any ink, which str.isprintable takes for visible.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")


class Lines(str):
    """A message whose line breaks are our own; equal to its parts joined by line breaks.

    Every other line break in a message came with a name from outside and is shown as `\\n`. Joining or formatting
    forgets the parts, which is safe: the breaks are shown then.

    Attributes:
        parts: the lines.
    """

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Self:
        flat = tuple(line for part in parts for line in lines_of(part))
        self = super().__new__(cls, "\n".join(flat))
        self.parts = flat
        return self

    def __reduce__(self) -> tuple[type[Lines], tuple[str, ...]]:
        return Lines, self.parts  # survives the trip out of a data-loading worker


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a message: of Lines its parts, any other text is one line whatever it holds."""
    return text.parts if isinstance(text, Lines) else (text,)


def printable(text: str) -> str:
    """`text` on one line, with visible escapes for what a terminal obeys, hides or turns round.

    Escaped, as `\\x1b`, `\\n`, `\\u202e`: control characters (C0, DEL, C1), line and paragraph separators, characters
    for the direction of writing, characters of no width, lone surrogates, and code points without a character.
    Backslashes stay single, so the result is for reading, not for reading back.
    """
    if text.isprintable() and _INVISIBLE.isdisjoint(text):
        return text
    return "".join(char if _is_visible(char) else char.encode("unicode_escape").decode() for char in text)


def excerpt(text: object, most: int = 80) -> str:
    """The beginning of a text from outside, as messages show it: `printable`, and no more than `most` characters."""
    whole = printable(str(text)[: most + 1])
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of what an exception says, no more than `most` characters; the name of its class where it says
    nothing. Libraries put the reason there, and pages of their own code behind it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def _is_visible(char: str) -> bool:
    return (char.isprintable() and char not in _INVISIBLE) or char in _SPACES


def shown(text: str) -> str:
    """A message as a terminal may have it: every line printable, and no line breaks but those of Lines."""
    return "\n".join(map(printable, lines_of(text)))


def quoted(word: str) -> str:
    """One word of a command, to be pasted into a shell.

    Words with characters that cannot be shown are written as `$'...'`, which bash, zsh and ksh read.
    """
    if printable(word) == word:
        from shlex import quote

        return quote(word)
    return "$'" + "".join(map(_shell_escape, word)) + "'"


def quoted_path(path: str | os.PathLike[str]) -> str:
    """`quoted` for a file or folder: `./-x` is no option to our commands, and `./~` not the home folder."""
    text = os.fspath(path)
    return quoted(f"./{text}" if text.startswith(("-", "~")) else text)


def _shell_escape(char: str) -> str:
    """Inside $'...': bytes in octal have a fixed length, unlike \\x."""
    if char in "\\'":
        return f"\\{char}"
    return char if _is_visible(char) else "".join(f"\\{byte:03o}" for byte in os.fsencode(char))


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


def counted(number: int, noun: str) -> str:
    """1 mask, 2 masks, 12,000 masks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(per_second: float) -> str:
    """Of things counted by the second, without an exponent: 9.87, 123, 1390."""
    return f"{per_second:.3g}" if per_second < 999.5 else f"{per_second:.0f}"


def bytes_of(text: str) -> int | None:
    """A number of bytes as people write it: 3000000000, 3G, 3GB, 3GiB, 1.5g, 800M; None for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if not found:
        return None
    number, unit, binary = found.groups()
    count = float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " ")
    return int(count) if math.isfinite(count) else None


def size(count: float) -> str:
    """Bytes in decimal units, as servers and disks count them: 812 bytes, 45 kB, 3.2 MB, 240 MB, 1.48 GB."""
    if count < 1000:
        return f"{count:.0f} bytes"
    unit = 3 if count >= 999.5e6 else 2 if count >= 999.5e3 else 1
    value = count / 1000**unit
    digits = 2 if unit == 3 else 1 if unit == 2 and value < 10 else 0
    return f"{value:.{digits}f} {('kB', 'MB', 'GB')[unit - 1]}"
