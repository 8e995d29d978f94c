"""Recipes from files, shipped names and texts: strict, with file and line in every complaint.

Room: recipe.

    text -> tomllib -> renamed -> --set -> sections.read_section -> check -> Recipe
                 \\-> lines.key_lines, when a message, a note or an origin has to name a place
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emaseg.errors import RecipeError, nearest, need_type
from emaseg.files import open_file
from emaseg.recipe.check import BACKSLASHES, check
from emaseg.recipe.lines import dotted, key_lines
from emaseg.recipe.overrides import (
    HUGE,
    Override,
    apply_overrides,
    has_long_key,
    huge_number,
    nested,
    parse_overrides,
    replaced_kinds,
    with_rule_alone,
)
from emaseg.recipe.renamed import RENAMED, note, with_new_names
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Problem, read_section
from emaseg.resources import shipped_recipe_text, shipped_recipes
from emaseg.words import Lines

MOST_BYTES = 256 << 10  # of a recipe's text; the longest shipped one has 6 kB, one of 255 classes and colours 20 kB
_DEPTH = 8  # tables and arrays inside each other; the format has 4
_ROW = 100  # characters of a damaged line that a message repeats
_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from.

    source: the file (or what stands for it). notes: a line on each old name of a key that the user wrote.
    """

    recipe: Recipe
    source: str
    notes: tuple[str, ...]
    _places: _Places

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """Each dotted key -> "file:line", "default" or "--set"."""
        return {key: self._places.origin(key) for key in _leaf_keys(self.recipe, "")}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a shipped name ("voc_r50_d8"), or a path (ends in .toml, holds a separator, or is a Path).

    Args:
        overrides: `key.path=VALUE` texts, VALUE in TOML; they win over the file.

    Raises:
        RecipeError: unknown name, unreadable file, or anything wrong in it; all problems of a file at once.
    """
    return load_recipe_with_origins(name_or_path, overrides).recipe


def load_recipe_with_origins(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """`load_recipe`, for each key where its value came from, and notes on keys that have another name now."""
    need_type("recipe", name_or_path, (str, os.PathLike), "a shipped recipe's name or the path of a .toml file")
    return _read_recipe(*_text_of(name_or_path), overrides, noted=True)


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe from its text, such as the one inside a checkpoint; `source` is what messages call it.

    Its notes are those on the overrides: nobody is expected to edit the recipe inside a checkpoint.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return _read_recipe(text, source, overrides, noted=False)


def old_names(overrides: Sequence[str], recipe: str | Path | None = None) -> tuple[str, ...]:
    """The notes of a LoadedRecipe, without reading it whole.

    Args:
        recipe: as for `load_recipe`, where the user named one.
    """
    sets = parse_overrides(overrides)
    if recipe is None:
        return _notes(_Places("", "", sets), ())
    places = _Places(*_text_of(recipe), sets)
    return _notes(places, with_new_names(_parse_toml(places.text, places.source), "", [])[1])


def _read_recipe(text: str, source: str, overrides: Sequence[str], *, noted: bool) -> LoadedRecipe:
    """The recipe, checked. Where its keys stand costs as much again to work out, and is done when asked.

    noted: old names in the text are worth a note.
    """
    problems: list[Problem] = []
    sets = parse_overrides(overrides)
    file_table, old_keys = with_new_names(_parse_toml(text, source), "", problems)
    sets = with_rule_alone(file_table, sets)
    places = _Places(text, source, sets)
    table = apply_overrides(file_table, sets, problems)
    recipe = read_section(Recipe, table, "", problems, replaced_kinds(file_table, sets))
    if recipe is not None and not problems:
        problems.extend(check(recipe))
    if problems and not file_table:
        raise _no_recipe(text, source)
    if problems:
        raise RecipeError(Lines(*(text for _, text in sorted(map(places.report, problems), key=lambda pair: pair[0]))))
    return LoadedRecipe(recipe, source, _notes(places, old_keys if noted else ()), places)


def _no_recipe(text: str, source: str) -> RecipeError:
    """The error of a file that holds nothing, or comments alone: `emaseg init` leaves some where it fails."""
    said = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    what = Lines(f"{source}: holds no recipe, only this:", *(f"  {line[:_ROW]}" for line in said[:8]))
    hint = "emaseg init FOLDER prints a recipe for a folder of images and masks, emaseg recipes NAME a shipped one"
    return RecipeError(what if said else f"{source}: the file is empty", hint)


def _notes(places: _Places, old_keys: Sequence[str]) -> tuple[str, ...]:
    """A line on each old name: those in the file (`old_keys`), then those in `--set`."""
    in_file = (f"{places.source}:{places.lines[key]}: {note(key)}" for key in old_keys)
    in_sets = (f"--set {one.written}: {note(key)}" for one in places.sets for key in one.old_keys)
    return (*in_file, *in_sets)


# --------------------------------------------------------------------------------------------------- places
@dataclass(frozen=True)
class _Places:
    """Where keys came from: a line of the file or a `--set`."""

    text: str
    source: str
    sets: tuple[Override, ...]

    @cached_property
    def lines(self) -> Mapping[str, int]:
        """The line (from 1) of each dotted key of the file; one with an old name is there under both."""
        lines = {dotted(path): line for path, line in key_lines(self.text).items()}
        return {new: lines[old] for old, new in RENAMED.items() if old in lines} | lines

    def report(self, problem: Problem) -> tuple[int, str]:
        """The problem with its place in front, and what to sort by: `--set` first, then by line."""
        override = self._override(problem.key) or self._opener(problem.key)
        if override is not None:
            inside = "" if override.written == problem.key else f"{problem.key}: "
            return 0, f"--set {override.written}: {inside}{problem.text}"
        around = (problem.key, *_parents(problem.key))  # a key that is not there has its section's line
        line = next((self.lines[key] for key in around if key in self.lines), 1)
        return line, f"{self.source}:{line}: {problem.key}{self._old_name(problem.key)}: {problem.text}"

    def origin(self, key: str) -> str:
        if self._override(key) is not None:
            return "--set"
        return f"{self.source}:{self.lines[key]}" if key in self.lines else "default"

    def _old_name(self, key: str) -> str:
        """What the line of a key calls it, where that is not the key's name any more."""
        old = next((old for old, new in RENAMED.items() if new == key and old in self.lines), "")
        return f" ({old.rpartition('.')[2]} in this line)" if old else ""

    def _override(self, key: str) -> Override | None:
        """The `--set` that gave the key or a section around it."""
        around = {key, *_parents(key)}
        return next((one for one in reversed(self.sets) if one.key in around), None)

    def _opener(self, key: str) -> Override | None:
        """The `--set` below a section that the file does not have."""
        absent = [section for section in (key, *_parents(key)) if section not in self.lines]
        return next((one for one in self.sets for section in absent if one.key.startswith(f"{section}.")), None)


def _parents(key: str) -> Iterator[str]:
    """a.b and a for a.b.c."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _leaf_keys(section: Any, prefix: str) -> Iterator[str]:
    """The dotted keys of a recipe; an array of tables counts itself and the keys of its elements."""
    for field in dataclasses.fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaf_keys(value, f"{key}.")
            continue
        yield key
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _leaf_keys(item, f"{key}.{index}.")


# ---------------------------------------------------------------------------------------------------- files
def _text_of(name_or_path: str | Path) -> tuple[str, str]:
    """The text of a recipe that the user named, and what messages call it."""
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        return _read_file(Path(name_or_path)), str(name_or_path)
    if name_or_path not in shipped_recipes():
        raise _unknown_name(name_or_path)
    return shipped_recipe_text(name_or_path), f"{name_or_path}.toml"


def _is_path(name: str) -> bool:
    return name.endswith(".toml") or os.sep in name or bool(os.altsep and os.altsep in name)


def _read_file(path: Path) -> str:
    try:
        with open_file(path) as file:
            data = file.read(MOST_BYTES + 1) or b""
    except FileNotFoundError as error:
        if path.stem in shipped_recipes():
            raise RecipeError(f"`{path}` is not here", f"the shipped recipe is called `{path.stem}`") from error
        raise RecipeError(f"`{path}` is not here", _neighbours(path)) from error
    except IsADirectoryError as error:
        hint = f"its recipe is {path / 'recipe.toml'}" if (path / "recipe.toml").is_file() else "name a TOML file"
        raise RecipeError(f"`{path}` is a folder", hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"`{path}` cannot be read: {reason}", "check the path and its permissions") from error
    if len(data) > MOST_BYTES:
        raise _too_long(str(path))
    try:
        return data.decode("utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text"
        raise RecipeError(message, "save the file as UTF-8") from error


def _too_long(source: str) -> RecipeError:
    return RecipeError(f"{source}:1: has more than {MOST_BYTES >> 10} kB, which no recipe needs", "is it another file?")


def _neighbours(path: Path) -> str:
    """What could be meant by a path that is not there."""
    try:
        beside = [other.name for other in path.parent.glob("*.toml")]
    except OSError:
        beside = []
    return nearest(path.name, beside) or nearest(path.stem, shipped_recipes()) or "check the path"


def _unknown_name(name: str) -> RecipeError:
    if os.path.isfile(name) or os.path.isfile(f"{name}.toml"):
        file = name if os.path.isfile(name) else f"{name}.toml"
        return RecipeError(f"no shipped recipe is called `{name}`", f"the file here is ./{file}; write it so")
    hint = nearest(name, shipped_recipes()) or f"shipped: {', '.join(shipped_recipes())}"
    return RecipeError(f"no shipped recipe is called `{name}`", hint)


# ----------------------------------------------------------------------------------------------------- TOML
def _parse_toml(text: str, source: str) -> dict[str, Any]:
    if len(text) > MOST_BYTES:
        raise _too_long(source)
    if has_long_key(text):
        raise RecipeError(f"{source}:1: a key of more than 64 parts", "see `emaseg recipes`")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad_toml(text, source, str(error)) from error
    except ValueError as error:  # an integer of thousands of digits
        raise RecipeError(f"{source}:1: not valid TOML: a number is too long") from error
    except RecursionError as error:
        raise RecipeError(f"{source}:1: not valid TOML: brackets are nested too deeply") from error
    if nested(table, _DEPTH):
        raise RecipeError(f"{source}:1: tables and arrays are nested more than {_DEPTH} deep", "see `emaseg recipes`")
    place = huge_number(table)
    if place is not None:
        raise RecipeError(_Places(text, source, ()).report(Problem(dotted(place), HUGE))[1])
    return table


def _bad_toml(text: str, source: str, message: str) -> RecipeError:
    """tomllib's complaint with the file, the line and what stands there."""
    rows = text.split("\n")
    at = _AT.search(message)
    line = int(at[1]) if at and at[1] else max(1, len(text.rstrip().split("\n")))
    row = rows[line - 1].strip()
    first = _first_mention(rows[: line - 1], row)
    if first is not None:
        key, before = first
        return RecipeError(f"{source}:{line}: {key}: appears twice; first on line {before}", "keep one of them")
    what = message[: at.start()] if at else message
    row = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in row[: _ROW + 1])
    row = row if len(row) <= _ROW else f"{row[: _ROW - 3]}..."
    hint = "text needs double quotes; true and false are lower case; a # starts a comment"
    if "\\" in row and '"' in row:
        hint = BACKSLASHES
    return RecipeError(f"{source}:{line}: not valid TOML: {what}: {row}", hint)


def _first_mention(above: list[str], row: str) -> tuple[str, int] | None:
    """The key or section that the row repeats, and the line of its first mention in the rows above it."""
    key = re.match(r"([A-Za-z0-9_.-]+)\s*=", row)
    header = re.match(r"\[\s*([A-Za-z0-9_.-]+)\s*\]", row)
    here = "__here__"  # put under the last header, this key tells which table the row belongs to
    rows = "\n".join(above)
    try:
        tomllib.loads(rows)
        lines = {dotted(path): line for path, line in key_lines(f"{rows}\n{here} = 0").items()}
    except ValueError:
        return None
    if header:
        name = header[1]
    elif key:
        inside = next(path for path in lines if path.rpartition(".")[2] == here)
        name = inside.removesuffix(here) + key[1]
    else:
        return None
    return (name, lines[name]) if name in lines else None
