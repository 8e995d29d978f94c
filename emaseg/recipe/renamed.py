"""Keys that once had another name. Recipes, checkpoints and exported files that have the old one are read all the same.

Room: recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emaseg.recipe.sections import Problem
from emaseg.recipe.writer import toml_key

# The old dotted key and today's. A key inside an array of tables cannot be renamed here.
RENAMED = {
    "model.stages": "model.em_iterations",
    "model.stages_eval": "model.em_iterations_eval",
    "model.stage1_weight": "model.coarse_weight",
}


def new_name(key: str) -> str:
    """A dotted key, or one below it, under today's name."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def with_new_names(table: Mapping[str, Any], section: str, problems: list[Problem]) -> tuple[dict[str, Any], list[str]]:
    """A copy of a table under today's names, and the old dotted keys that it had.

    Args:
        section: dotted key of the table; "" for a whole recipe.
        problems: grows where a key is there under both names.
    """
    renamed: dict[str, Any] = {}
    old_keys: list[str] = []
    for name, value in table.items():
        key = f"{section}.{toml_key(name)}" if section else toml_key(name)
        new = RENAMED.get(key, key)
        new_last = new.rpartition(".")[2] if new != key else name
        if new != key:
            old_keys.append(key)
            if new_last in table:
                problems.append(Problem(key, f"is the old name of {new}, which is there too; keep {new}"))
                continue
        if isinstance(value, dict):
            value, inside = with_new_names(value, key, problems)
            old_keys += inside
        renamed[new_last] = value
    return renamed, old_keys


def note(key: str) -> str:
    """One line on an old dotted key."""
    return f"{key} is called {new_name(key)} now"
