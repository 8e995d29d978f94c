"""Where in a TOML text each key stands: tomllib gives values but no positions.

Room: recipe.

The scanner trusts that tomllib accepts the text; it follows headers, keys, strings and brackets and looks at no
value. A path is a tuple of key names and, inside arrays, positions: ("optim", "groups", 0, "match").
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

from emaseg.recipe.writer import toml_key

Path = tuple[str | int, ...]

# A closing quote run may be one or two quotes longer than the delimiter: """a"""" holds a".
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?""""{0,2}|\'\'\'.*?\'\'\'\'{0,2}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) of every key, table and array element of a text that tomllib accepts."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def dotted(path: Path) -> str:
    """The path as people write it: optim.groups.0.match."""
    return ".".join(toml_key(str(part)) for part in path)


class _Scanner:
    """One pass over `text`; `lines` grows on the way."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._newlines = [index for index, char in enumerate(text) if char == "\n"]
        self._last_element: dict[Path, int] = {}  # arrays of tables: position of the element that is open

    def document(self) -> None:
        table: Path = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:  # only on a text that tomllib refuses
            raise ValueError(f"line {self._line()}: not TOML")
        self.at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_left(self._newlines, self.at) + 1

    def _note(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)  # the first mention counts

    def _header(self) -> Path:
        """[a.b] or [[a.b]]; below an array of tables the path goes on in the element that is open."""
        line = self._line()
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        keys = self._key()
        self.at += brackets
        path: Path = ()
        for position, part in enumerate(keys, 1):
            path += (part,)
            self._note(path, line)
            if position == len(keys):
                if brackets == 2:
                    self._last_element[path] = self._last_element.get(path, -1) + 1
                else:
                    self.lines[path] = line  # its own header beats a mention in [a.b.c] above it
            if path in self._last_element:
                path += (self._last_element[path],)
                self._note(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path += (part,)
            self._note(path, line)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        """The parts of a dotted key; leaves the cursor on what follows it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            if self.text[self.at] in "\"'":
                parts.append(next(iter(tomllib.loads(f"{self._skip(_STRING)} = 0"))))
            else:
                parts.append(self._skip(_BARE_KEY))
            self._skip(_SPACE)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self._skip(_STRING)
        elif opening == "[":
            self._items(path, "]")
        elif opening == "{":
            self._items(path, "}")
        else:
            self._skip(_SCALAR)

    def _items(self, path: Path, closing: str) -> None:
        """The inside of an array or of an inline table."""
        self.at += 1
        count = 0
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == closing:
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._note((*path, count), self._line())
                self._value((*path, count))
                count += 1
