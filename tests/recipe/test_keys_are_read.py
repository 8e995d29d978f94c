"""No key of the recipe is there for nothing."""

from __future__ import annotations

import ast
import typing
from pathlib import Path

from emaseg.recipe.published import DOCUMENTATION
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import section_classes, section_keys

ROOT = Path(__file__).parent.parent.parent
READERS = {"inference_tta": "inference", "model": "model|config"}  # --tta puts one in the other's place


def attributes() -> set[str]:
    """Every `owner.name` that the engine and the commands read, with the last word of what stands before the name."""
    found = set()
    for path in (path for folder in ("emaseg", "cli") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                word = getattr(owner, "id", getattr(owner, "attr", ""))
                found.add(f"{word}.{node.attr}")
    return found


def keys() -> set[str]:
    """The keys of all sections that may hold more than one value."""
    return {
        f"{section}.{name}"
        for section, key in section_keys(Recipe).items()
        for cls in section_classes(key.type)
        for name, inner in section_keys(cls).items()
        if len(typing.get_args(inner.type)) != 1
    }


def test_every_key_is_read_or_said_to_be_documentation() -> None:
    """Protects people who change a key and wait for its effect."""
    read = attributes()
    unread = set()
    for key in keys():
        section, name = key.split(".")
        if not any(f"{owner}.{name}" in read for owner in READERS.get(section, section).split("|")):
            unread.add(key)
    assert unread == DOCUMENTATION
