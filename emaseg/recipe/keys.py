"""Every key of a recipe with what it may hold, its default and its meaning: the list that people look keys up in.

Room: recipe. All of it comes from schema.py and the sections' files; nothing is said twice.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass

from emaseg.errors import RecipeError, nearest
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Key, classes_below, expected, section_classes, section_keys
from emaseg.recipe.writer import toml_value


@dataclass(frozen=True, slots=True)
class Described:
    """One key.

    keys: dotted, `N` standing for a position in an array of tables; two where two sections are alike. kinds: the kinds of
    its section that have it; () where the section has one kind only, or all have it. takes: type and range in words.
    default: as TOML, "" where the key may be left out and has none, None where the recipe must state it. meaning: one
    line, with its source where it has one.
    """

    keys: tuple[str, ...]
    kinds: tuple[str, ...]
    takes: str
    default: str | None
    meaning: str


def described_keys(word: str = "") -> list[Described]:
    """All keys, or those with `word` in their name, kinds, values or meaning, in the order of a recipe.

    Raises:
        RecipeError: no key has the word; offers the nearest name.
    """
    every = _merged(_below(Recipe, ""))
    low = word.lower()
    found = [one for one in every if low in " ".join((*one.keys, *one.kinds, one.takes, one.meaning)).lower()]
    if not found:
        names = [part for one in every for part in (one.keys[0], one.keys[0].rpartition(".")[2])]
        hint = nearest(word, names) or "emaseg recipes --keys lists all"
        raise RecipeError(f"--keys {word}: no key has that in its name or meaning", hint)
    return found


def _below(section: type, path: str) -> Iterator[tuple[str, tuple[str, ...], Key]]:
    """(dotted key, the kinds of this dataclass, key) of everything inside a section."""
    keys = section_keys(section)
    kinds = typing.get_args(keys["kind"].type) if "kind" in keys else ()
    for name, key in keys.items():
        dotted = f"{path}.{name}" if path else name
        inner = classes_below(key.type)
        if not inner:
            yield dotted, tuple(map(str, kinds)), key
            continue
        place = dotted if section_classes(key.type) else f"{dotted}.N"
        for one in inner:
            yield from _below(one, place)


def _merged(keys: Iterator[tuple[str, tuple[str, ...], Key]]) -> list[Described]:
    """Keys that are the same in several kinds or sections, once; `kind` itself with all that it may be."""
    groups: dict[tuple[str, str, str | None, str], list[str]] = {}
    sections: dict[str, dict[str, None]] = {}
    for dotted, kinds, key in keys:
        section = dotted.rpartition(".")[0]
        sections.setdefault(section, {}).update(dict.fromkeys(kinds))
        takes, meaning = expected(key.type, key.rule), key.rule.doc
        if dotted.endswith(".kind"):
            takes, meaning = "", "which of the section's kinds; it decides which keys the section has"
        group = groups.setdefault((dotted, takes, _default(key), meaning), [])
        group += [kind for kind in kinds if kind not in group]
    made: dict[tuple[object, ...], Described] = {}
    for (dotted, takes, default, meaning), kinds_ in groups.items():
        known = tuple(sections[dotted.rpartition(".")[0]])
        if dotted.endswith(".kind"):
            takes = f"one of {', '.join(map(toml_value, known))}"
        kept = () if tuple(kinds_) == known else tuple(kinds_)
        alike = (dotted.rpartition(".")[2], kept, takes, default, meaning)
        before = made[alike].keys if alike in made else ()
        made[alike] = Described((*before, dotted), kept, takes, default, meaning)
    return list(made.values())


def _default(key: Key) -> str | None:
    if key.default is MISSING:
        return None
    return "" if key.default is None else toml_value(key.default)
