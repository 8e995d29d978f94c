"""The names of classes in JSON and YAML files: names.json, data.yaml, ...

Room: starter.

Of YAML the part is read in which names are written: `names:` (or `classes:`, `labels:`) at the left margin, with a
list or a map of plain or quoted names, in one line or one a line. Anything else there is an error, never a guess.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from emaseg.data.files.mask_values import MASK_VALUES, Colour
from emaseg.errors import DataError
from emaseg.starter.class_files import MOST_NAMES, Entry, Names, clean, distinct, text_of
from emaseg.words import excerpt

_KEYS = ("names", "classes", "labels", "categories", "id2label", "label2id")
_NAME_KEYS = ("name", "label", "title", "class", "class_name")
_VALUE_KEYS = ("id", "value", "index", "class_id", "pixel_value")
_COLOUR_KEYS = ("color", "colour", "rgb")
_LARGEST_JSON = 64 << 20  # bytes; COCO's categories stand beside all of its annotations
_SHOWN = 200  # characters in a message of what is not read
_REMEDY = "write the names as a list, or as a map from value to name; or put them into classes.txt, one a line"


def read_json(path: Path) -> Names | None:
    """The classes of a JSON file; None where it holds something else.

    Raises:
        DataError: unreadable, no JSON, or names in a form that is not known.
    """
    try:
        text = text_of(path, _LARGEST_JSON)
        content = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})", "correct the file, or remove it") from error
    if isinstance(content, dict):
        key = next((key for key in _KEYS if isinstance(content.get(key), list | dict)), None)
        content = content[key] if key else content
    return _names(path, content)


def read_yaml(path: Path) -> Names | None:
    """The classes of a YAML file; None where it has no such key.

    Raises:
        DataError: unreadable, or names in a part of YAML that is not read.
    """
    lines = list(enumerate((text_of(path) or "").splitlines(), 1))
    start = next((place for place, (_, line) in enumerate(lines) if _key(line)), None)
    if start is None:
        return None
    number, line = lines[start]
    rest = _bare(line.partition(":")[2]).strip()
    if rest[:1] in ("[", "{"):
        return _names(path, _flow(path, number, rest, (_bare(text) for _, text in lines[start + 1 :])))
    if rest:
        raise _not_read(path, number, line)
    return _names(path, _block(path, lines[start + 1 :]))


def read_literal(path: Path) -> Names | None:
    """The classes of a text file that holds a list or a map in brackets; None where it holds something else.

    Raises:
        DataError: unreadable, or in brackets but in a form that is not read.
    """
    text = (text_of(path) or "").strip()
    if not re.match(r"\{|\[\s*['\"]", text) or text[-1] not in "]}":
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return _names(path, json.loads(text))
    first, *more = (_bare(line) for line in text.splitlines())
    return _names(path, _flow(path, 1, first, iter(more)))


# ------------------------------------------------------------------------------------------------------ contents
def _names(path: Path, content: Any) -> Names | None:
    """A list of names or of tables, or a map between values and names or from names to colours."""
    if not isinstance(content, list | dict) or not content:
        return None
    if len(content) > MOST_NAMES:
        return None
    rows = list(content.items()) if isinstance(content, dict) else [(None, item) for item in content]
    entries = [_entry(key, item) for key, item in rows]
    good = [entry for entry in entries if entry is not None]
    if not good:
        return None
    stated = {entry.value is None for entry in good}
    if len(good) < len(entries) or len(stated) > 1:
        place = entries.index(None) if len(good) < len(entries) else 0
        odd = excerpt(repr(rows[place]), _SHOWN)
        raise DataError(f"{path}: entry {place + 1} of the class names is unlike the others: {odd}", _REMEDY)
    titled = all(isinstance(item, dict) and "title" in item for _, item in rows)
    if titled and any(entry.value is not None and entry.value >= MASK_VALUES for entry in good):
        good = [replace(entry, value=None) for entry in good]  # Supervisely's numbers of its own records
    return Names(path.name, distinct(path, good))


def _entry(key: Any, item: Any) -> Entry | None:
    """One class; None where it is in none of the known forms."""
    if key is None and isinstance(item, str):
        return Entry(clean(item))
    if key is None and isinstance(item, dict):
        return _from_table(item)
    if key is None:
        return None
    value = _whole(key)
    if value is not None and isinstance(item, str):
        return Entry(clean(item), value)
    if value is not None and isinstance(item, dict) and (found := _from_table(item)):
        return Entry(found.name, value, found.colour)
    if value is None and (number := _whole(item)) is not None:
        return Entry(clean(key), number)
    if value is None and (colour := _colour(item)) is not None:
        return Entry(clean(key), None, colour)
    return None


def _from_table(table: dict[str, Any]) -> Entry | None:
    name = next((table[key] for key in _NAME_KEYS if isinstance(table.get(key), str)), None)
    value = next((_whole(table[key]) for key in _VALUE_KEYS if key in table), None)
    colour = next((_colour(table[key]) for key in _COLOUR_KEYS if key in table), None)
    return None if name is None else Entry(clean(name), value, colour)


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}", value.strip()):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _colour(value: Any) -> Colour | None:
    if isinstance(value, str) and (match := re.fullmatch(r"#(\w\w)(\w\w)(\w\w)", value)):
        try:
            return int(match[1], 16), int(match[2], 16), int(match[3], 16)
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) and part >= 0 for part in value):
        return value[0], value[1], value[2]
    return None


# ---------------------------------------------------------------------------------------------------------- YAML
_KEY = re.compile(rf"({'|'.join(_KEYS)})\s*:(\s|$)")
_PAIR = re.compile(r"('[^']*'\s*|\"[^\"]*\"\s*|[^\s:'\"][^:]*):\s+(\S.*)")  # value: name
_MARK = re.compile(r"""'[^']*'|"[^"]*"|[^,'"]+|,""")  # of a list in brackets


def _key(line: str) -> bool:
    return _KEY.match(line) is not None


def _not_read(path: Path, number: int, line: str) -> DataError:
    odd = excerpt(repr(line), _SHOWN)
    return DataError(f"{path}:{number}: these class names are not in the part of YAML that is read: {odd}", _REMEDY)


def _bare(line: str) -> str:
    """The line without its comment."""
    quote = before = ""  # before: the last mark that is no blank
    for place, mark in enumerate(line):
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "'\"" and before in ("", *"-:,[{"):
            quote = mark
        elif mark == "#" and (place == 0 or line[place - 1] in " \t"):
            return line[:place].rstrip()
        before = before if mark.isspace() else mark
    return line.rstrip()


def _block(path: Path, lines: list[tuple[int, str]]) -> list[str] | dict[str, str]:
    """`- name` or `value: name` a line, until the next key at the left margin."""
    items: list[str] = []
    table: dict[str, str] = {}
    for number, line in lines:
        text = _bare(line)
        if not text.strip() or text.strip() == "---":
            continue
        if text.startswith("\t"):
            raise _not_read(path, number, line)
        if not text.startswith((" ", "-")):
            break
        item = re.fullmatch(r"\s*-\s+(\S.*)", text)
        pair = None if text.startswith("-") else _PAIR.fullmatch(text.lstrip())
        if item and not table:
            items.append(_scalar(path, number, item[1]))
        elif pair and not items and _scalar(path, number, pair[1]) not in table:
            table[_scalar(path, number, pair[1])] = _scalar(path, number, pair[2])
        else:
            raise _not_read(path, number, line)
    return items or table


def _flow(path: Path, number: int, rest: str, more: Iterator[str]) -> list[str] | dict[str, str]:
    """[a, b] or {0: a, 1: b}, which may go on in the next lines."""
    close = "]" if rest[0] == "[" else "}"
    lines = [rest]
    while not lines[-1].endswith(close):
        following = next(more, None)
        if following is None:
            raise _not_read(path, number, " ".join(lines))
        if following.strip():
            lines.append(following.strip())
    rest = " ".join(lines)
    parts = _parts(rest[1:-1])
    if parts is None:
        raise _not_read(path, number, rest)
    if close == "]":
        return [_scalar(path, number, part) for part in parts]
    table: dict[str, str] = {}
    for part in parts:
        pair = _PAIR.fullmatch(part)
        if pair is None or _scalar(path, number, pair[1]) in table:
            raise _not_read(path, number, part)
        table[_scalar(path, number, pair[1])] = _scalar(path, number, pair[2])
    return table


def _parts(inside: str) -> list[str] | None:
    """What stands between commas, but for those in quotes; None: between two is nothing, or a quote does not end."""
    parts, start, at = list[str](), 0, 0
    while mark := _MARK.match(inside, at):
        at = mark.end()
        if mark[0] == ",":
            parts.append(inside[start : mark.start()].strip())
            start = at
    parts.append(inside[start:].strip())
    while parts and not parts[-1]:  # behind the last name there may be a comma
        parts.pop()
    return None if at < len(inside) or "" in parts else parts


def _scalar(path: Path, number: int, text: str) -> str:
    """A plain or quoted text without escapes, anchors, tags and the like."""
    text = text.strip()
    if match := re.fullmatch(r"'([^']*)'|\"([^\"\\]*)\"", text):
        return match[1] if match[1] is not None else match[2]
    if text[:1] in "&*!|>%@`\"'[]{},?" or ": " in text or text.endswith(":"):
        raise _not_read(path, number, text)
    return text
