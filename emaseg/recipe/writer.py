"""Recipes and single values as TOML text.

Room: recipe. Imports the schema only; never torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from emaseg.recipe.schema import Recipe

_WIDTH = 110  # arrays on longer lines are written one element a line
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def recipe_to_toml(recipe: Recipe, origins: Mapping[str, str] | None = None) -> str:
    """The whole recipe as TOML that the reader turns into an equal recipe; keys that hold None are left out.

    With `origins` (of LoadedRecipe) the keys that no file states are marked `# default` or `# --set`.
    """
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


def toml_value(value: object) -> str:
    """One value as TOML on one line; a section becomes an inline table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = [f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return toml_value(_stated(value))
    return str(value)  # int; float: repr is TOML; the dates that tomllib returns


def toml_key(name: str) -> str:
    """The key name, in quotes where TOML wants them."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def _stated(section: Any) -> dict[str, Any]:
    """The keys of a section that hold something; TOML cannot say None."""
    pairs = ((field.name, getattr(section, field.name)) for field in dataclasses.fields(section))
    return {name: value for name, value in pairs if value is not None}


def _pairs(section: Any, prefix: str, origins: Mapping[str, str]) -> list[str]:
    return [_pair(name, value, prefix + name, origins) for name, value in _stated(section).items()]


def _pair(name: str, value: object, dotted: str, origins: Mapping[str, str]) -> str:
    text = toml_value(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(f"{name} = {text}") > _WIDTH:
        text = "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
    origin = origins.get(dotted, "")
    return f"{name} = {text}" + (f"  # {origin}" if origin in ("default", "--set") else "")
