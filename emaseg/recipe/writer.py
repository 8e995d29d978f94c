"""Recipes and single values as TOML text.

Room: recipe.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from emaseg.errors import RecipeError
from emaseg.recipe.schema import Recipe
from emaseg.words import printable

_WIDTH = 110  # arrays on longer lines are written one element a line
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def recipe_to_toml(recipe: Recipe, origins: Mapping[str, str] | None = None) -> str:
    """The whole recipe as TOML that the reader turns into an equal recipe.

    Left out are keys that hold None, and extra ones (rule.py) at their default, which no published row knows. With `origins` (of LoadedRecipe) the keys that no file states are marked `# default` or `# --set`.

    Raises:
        RecipeError: a text holds a lone surrogate, as names of files do whose bytes are no UTF-8; TOML cannot say it.
    """
    _check_text(recipe, "")
    origins = origins or {}
    top: list[str] = []
    sections: list[str] = []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            sections += ["", f"[{field.name}]", *_pairs(value, f"{field.name}.", origins)]
        elif value is not None:
            top.append(_pair(field.name, value, field.name, origins))
    return "\n".join([*top, *sections, ""])


def _check_text(value: object, where: str) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecipeError(
                f"{where} = {printable(value)}: holds bytes that are not UTF-8, which a recipe cannot say",
                "rename the file or folder, or the class",
            ) from error
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item, where)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_text(name, where)
            _check_text(item, f"{where}.{name}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _check_text(getattr(value, field.name), f"{where}.{field.name}".lstrip("."))


def toml_value(value: object) -> str:
    """One value as TOML on one line, with no character that cannot be seen; a section becomes an inline table.

    A lone surrogate, which TOML cannot say, is shown as an escape that no reader accepts.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)  # JSON's escapes are TOML's
        return text if printable(text) == text else "".join(map(_escape, text))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = [f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return toml_value(_stated(value))
    return str(value)  # int; float: repr is TOML; the dates that tomllib returns


def _escape(char: str) -> str:
    """What TOML forbids (DEL), what breaks a line elsewhere (U+2028), what a terminal obeys or hides."""
    if printable(char) == char:
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def toml_key(name: str) -> str:
    """The key name, in quotes where TOML wants them."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def _stated(section: Any) -> dict[str, Any]:
    """The keys of a section that hold something, as TOML cannot say None; extra ones where they differ from the default."""
    stated = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value is not None and not (field.metadata["rule"].extra and value == field.default):
            stated[field.name] = value
    return stated


def _pairs(section: Any, prefix: str, origins: Mapping[str, str]) -> list[str]:
    return [_pair(name, value, prefix + name, origins) for name, value in _stated(section).items()]


def _pair(name: str, value: object, dotted: str, origins: Mapping[str, str]) -> str:
    text = toml_value(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(f"{name} = {text}") > _WIDTH:
        text = "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
    origin = origins.get(dotted, "")
    return f"{name} = {text}" + (f"  # {origin}" if origin in ("default", "--set") else "")
