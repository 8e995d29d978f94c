"""TOML tables into the schema's dataclasses, strictly; every deviation becomes a Problem.

Room: recipe.

The code below knows no key by name but `kind`, which chooses among a section's dataclasses: types, limits and
choices all come from schema.py and the files of its sections.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any, Literal

from emaseg.errors import nearest
from emaseg.recipe.rule import Rule
from emaseg.recipe.schema import Recipe
from emaseg.recipe.writer import toml_key, toml_value

_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d{1,18}(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|\d{1,18}")
_SHOWN = 60  # characters of a given value that a message repeats
_MANY = 200  # items of a value, at most, that a message is made from
_FEW = 20  # unknown keys that are reported one by one


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the dotted key it belongs to ("" = the whole recipe) and what is the matter."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the schema: its type, its rule, and its default (MISSING = the recipe must state it)."""

    type: Any
    rule: Rule
    default: Any


@cache
def section_keys(section: type) -> Mapping[str, Key]:
    """The keys of a section's dataclass, in order."""
    hints = typing.get_type_hints(section)
    fields = dataclasses.fields(section)
    return {field.name: Key(hints[field.name], field.metadata["rule"], field.default) for field in fields}


@cache
def section_classes(type_: Any) -> tuple[type, ...]:
    """The dataclasses that a key of this type may hold; () for a key that is no section."""
    members = typing.get_args(type_) if isinstance(type_, types.UnionType) else (type_,)
    return tuple(member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member))


@cache
def section_kinds(type_: Any) -> Mapping[str, type]:
    """Each `kind` of a section with the dataclass it means."""
    classes = section_classes(type_)
    return {kind: cls for cls in classes for kind in typing.get_args(section_keys(cls)["kind"].type)}


def read_section(
    section: type, table: Mapping[str, object], path: str, problems: list[Problem], replaced: Mapping[str, str]
) -> Any:
    """Build `section` from `table`; None where `problems` grew.

    Args:
        path: dotted key of the table, "" for the whole recipe.
        replaced: sections whose kind the command line changed, with the kind that the file gave.
    """
    before = len(problems)
    keys = section_keys(section)
    values: dict[str, Any] = {}
    for name, key in keys.items():
        if name in table:
            values[name] = _read(key.type, key.rule, table[name], _join(path, name), problems, replaced)
        elif key.default is MISSING:
            problems.append(Problem(_join(path, name), f"is missing: {key.rule.doc} ({expected(key.type, key.rule)})"))
    _report_unknown([name for name in table if name not in keys], table, section, path, problems)
    return section(**values) if len(problems) == before else None


def nearest_legal(key: str, text: str) -> tuple[str, object] | None:
    """What a dotted key may hold, in words, and the legal value nearest to `text`, which need not be TOML.

    That is the text itself where it is legal; else what can be read in it; else the default or a small number. None
    where the schema has no such key, or has a section there, or nothing legal is near.
    """
    classes, name = _owners(key)
    keys = [section_keys(cls)[name] for cls in classes if name in section_keys(cls)]
    if key.rpartition(".")[2].isdigit():  # an element of an array
        arrays = [(one, member) for one in keys for member in _members(one.type) if typing.get_args(member)]
        keys = [Key(_array(member, one.rule)[0], one.rule, MISSING) for one, member in arrays]
    keys = [
        dataclasses.replace(one, type=member)
        for one in keys
        if not classes_below(one.type)
        for member in _members(one.type)
    ]
    choices = [choice for one in keys if typing.get_origin(one.type) is Literal for choice in typing.get_args(one.type)]
    defaults = [list(one.default) if isinstance(one.default, tuple) else one.default for one in keys]
    for value in (*_guesses(text, choices), *defaults, 1, 0.5, *choices):
        for one in keys:
            legal = (_tuple if typing.get_origin(one.type) is tuple else _scalar)(one.type, one.rule, value)
            if legal is not None:
                several = len(set(choices)) > 1
                words = f"one of {_listed(dict.fromkeys(choices))}" if several else expected(one.type, one.rule)
                return words, legal
    return None


def is_text(key: str) -> bool:
    """Whether a dotted key holds one text, whatever the kind of its section is."""
    classes, name = _owners(key)
    keys = [section_keys(cls)[name] for cls in classes if name in section_keys(cls)]
    types_ = [member for one in keys for member in _members(one.type)]
    if key.rpartition(".")[2].isdigit():  # an element of an array
        types_ = [typing.get_args(one)[0] for one in types_ if typing.get_args(one)]
    return bool(types_) and all(
        one is str or (typing.get_origin(one) is Literal and all(isinstance(c, str) for c in typing.get_args(one)))
        for one in types_
    )


def _owners(key: str) -> tuple[list[type], str]:
    """The dataclasses that could have a dotted key, one for each kind of the section, and its last name."""
    candidates: list[type] = [Recipe]
    *parents, name = [word for word in key.split(".") if not word.isdigit()] or [key]
    for parent in parents:
        opened = [section_keys(cls)[parent] for cls in candidates if parent in section_keys(cls)]
        candidates = [cls for one in opened for cls in classes_below(one.type)]
    return candidates, name


def _guesses(text: str, choices: Iterable[object]) -> Iterator[object]:
    """What a text may have meant, the likeliest first; `choices` are those of the key, if it has any."""
    yield text
    yield {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text.lower())
    numbers = [_number(found) for found in _NUMBER.findall(text)]
    if _NUMBER.fullmatch(text.replace(",", ".")):  # a decimal comma
        yield float(text.replace(",", "."))
    if len(numbers) == 1:
        yield numbers[0]
    yield from difflib.get_close_matches(text, [choice for choice in choices if isinstance(choice, str)], n=1)
    if numbers:
        yield numbers
    yield [word for word in re.split(r"[\[\]\s,\"']+", text) if word]


def _number(text: str) -> int | float:
    return float(text) if re.search(r"[.eE]", text) else int(text)


def expected(type_: Any, rule: Rule) -> str:
    """What a key may hold, in words: "an array of 0 or 3 whole numbers, each at least 1"."""
    if not section_classes(type_) and len(_members(type_)) > 1:
        return ", or ".join(expected(member, rule) for member in _members(type_))
    type_ = _members(type_)[0]
    if section_classes(type_):
        several = len(section_classes(type_)) > 1
        return f"a section whose kind is one of {_listed(section_kinds(type_))}" if several else "a section"
    if typing.get_origin(type_) is tuple:
        item, length = _array(type_, rule)
        limits = f", each {_limits(rule)}" if _limits(rule) else ""
        return f"an array of {length}{_noun(item, plural=True)}{limits}"
    choices = typing.get_args(type_) if typing.get_origin(type_) is Literal else rule.choices
    if choices:
        return ("one of " if len(choices) > 1 else "") + _listed(choices)
    return _noun(type_) + (f", {_limits(rule)}" if _limits(rule) else "")


# --------------------------------------------------------------------------------------------------- values
def _read(
    type_: Any, rule: Rule, value: object, path: str, problems: list[Problem], replaced: Mapping[str, str]
) -> Any:
    """`value` as the schema's type; problems grow (and the result means nothing) where it does not fit."""
    if section_classes(type_):
        return _read_table(type_, value, path, problems, replaced)
    whole, type_ = type_, _member(type_, value)
    if typing.get_origin(type_) is not tuple:
        result = _scalar(type_, rule, value)
        if result is None:
            problems.append(Problem(path, _refusal(whole, rule, value)))
        return result
    item, _ = _array(type_, rule)
    if section_classes(item):
        if not isinstance(value, list) or len(value) > (rule.most or len(value)):
            problems.append(Problem(path, f"got {_shown(value)}; must be an array of tables" + _too_many(rule, value)))
            return None
        tables = enumerate(value)
        return tuple(_read_table(item, table, f"{path}.{index}", problems, replaced) for index, table in tables)
    result = _tuple(type_, rule, value)
    if result is None:
        problems.append(Problem(path, _refusal(whole, rule, value)))
    return result


def _read_table(type_: Any, value: object, path: str, problems: list[Problem], replaced: Mapping[str, str]) -> Any:
    if not isinstance(value, dict):
        what = "a table: { key = value }" if path.rpartition(".")[2].isdigit() else f"a section: [{path}]"
        problems.append(Problem(path, f"got {_shown(value)}; must be {what}"))
        return None
    classes = section_classes(type_)
    if len(classes) == 1:
        return read_section(classes[0], value, path, problems, replaced)
    kinds, kind = section_kinds(type_), value.get("kind")
    if isinstance(kind, str) and kind in kinds:
        if replaced.get(path) in kinds:
            value = _without_left_over(kinds, kind, replaced[path], value, path, problems)
        return read_section(kinds[kind], value, path, problems, replaced)
    choices = f"one of {_listed(kinds)}"
    if "kind" in value:
        hint = nearest(kind, kinds) if isinstance(kind, str) else ""
        problems.append(Problem(f"{path}.kind", f"got {_shown(kind)}; must be {choices}" + _also(hint)))
    else:
        problems.append(Problem(f"{path}.kind", f"is missing: {choices}"))
    known = {name for cls in classes for name in section_keys(cls)}
    _report_unknown([name for name in value if name not in known], value, classes[0], path, problems)
    return None


def _report_unknown(
    names: list[str], table: Mapping[str, object], section: type, path: str, problems: list[Problem]
) -> None:
    """One problem for each of the first unknown keys: to look for similar names takes time."""
    for name in names[:_FEW]:
        problems.append(Problem(_join(path, name), _unknown(name, table[name], section, path)))
    if len(names) > _FEW:
        problems.append(Problem(_join(path, names[_FEW]), f"and {len(names) - _FEW} keys more are unknown"))


def _without_left_over(
    kinds: Mapping[str, type], kind: str, old: str, table: dict[str, object], path: str, problems: list[Problem]
) -> dict[str, object]:
    """The table without the old kind's keys, which are one problem together: the command line changed the kind."""
    foreign = [name for name in table if name not in section_keys(kinds[kind]) and name in section_keys(kinds[old])]
    if foreign:
        text = f"got {toml_value(kind)}, which does not take the keys that came with kind {toml_value(old)}: "
        text += f"{', '.join(foreign)}; give the whole section: --set '{path}={{kind = {toml_value(kind)}, ...}}'"
        problems.append(Problem(f"{path}.kind", text))
    return {name: value for name, value in table.items() if name not in foreign}


def _scalar(type_: Any, rule: Rule, value: object) -> Any:
    """The value as `type_` within the rule, or None. A whole number serves as a number; true and false as neither."""
    if typing.get_origin(type_) is Literal:
        same = (choice for choice in typing.get_args(type_) if choice == value and type(choice) is type(value))
        return next(same, None)
    if type_ is float and type(value) is int:
        value = _float(value)
    if type(value) is not type_ or (rule.choices and value not in rule.choices):
        return None
    if isinstance(value, str):
        return value if len(value) <= rule.longest else None
    return value if not isinstance(value, int | float) or _within(value, rule) else None


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _within(value: float, rule: Rule) -> bool:
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (rule.low is None or value >= rule.low)
        and (rule.high is None or value <= rule.high)
        and (rule.above is None or value > rule.above)
        and (rule.floor is None or value >= rule.floor)
        and (rule.ceiling is None or value <= rule.ceiling)
    )


def _tuple(type_: Any, rule: Rule, value: object) -> tuple[Any, ...] | None:
    """The array as a tuple of the right length whose items fit, or None."""
    if not isinstance(value, list):
        return None
    args = typing.get_args(type_)
    open_end = args[-1] is Ellipsis
    if not open_end and len(value) != len(args):
        return None
    if open_end and rule.lengths and len(value) not in rule.lengths:
        return None
    if open_end and rule.most is not None and len(value) > rule.most:
        return None
    inner = dataclasses.replace(rule, lengths=(), most=None)
    read = _tuple if typing.get_origin(args[0]) is tuple else _scalar
    items = [read(args[0], inner, item) for item in value]
    return None if any(item is None for item in items) else tuple(items)


# ---------------------------------------------------------------------------------------------------- words
def _refusal(type_: Any, rule: Rule, value: object) -> str:
    text = f"got {_shown(value)}; must be {expected(type_, _in_full(rule, value))}" + _too_many(rule, value)
    if any(len(one) > rule.longest for one in _leaves(value) if isinstance(one, str)):
        text += f", of at most {rule.longest} characters"
    if typing.get_origin(type_) is Literal and isinstance(value, str):
        text += _also(nearest(value, [choice for choice in typing.get_args(type_) if isinstance(choice, str)]))
    return text


def _in_full(rule: Rule, value: object) -> Rule:
    """The rule with its outer limits, where the value lies beyond them."""
    low = rule.floor if rule.low is None else rule.low
    high = rule.ceiling if rule.high is None else rule.high
    for one in _leaves(value):
        if not isinstance(one, int) and not (isinstance(one, float) and math.isfinite(one)):
            continue
        beyond = rule.ceiling is not None and one > rule.ceiling
        if beyond or (rule.floor is not None and one < rule.floor and (rule.above is None or one > rule.above)):
            above = None if rule.floor is not None else rule.above
            return dataclasses.replace(rule, low=low, high=high, above=above)
    return rule


def _too_many(rule: Rule, value: object) -> str:
    many = isinstance(value, list) and rule.most is not None and len(value) > rule.most
    return f", at most {rule.most} of them" if many else ""


def _leaves(value: object) -> Iterator[object]:
    """The values of an array, and of the arrays in it."""
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, list):
            yield from item
        else:
            yield item


def _unknown(name: str, value: object, section: type, path: str) -> str:
    """Why a key is unknown here: another section's, another kind's, misspelt, or nothing near it."""
    known = section_keys(section)
    place = f"[{path}]" if path else "a recipe"
    if path == "" and isinstance(value, dict | list):
        sections = [name for name, key in known.items() if section_classes(key.type)]
        return "is not a section of a recipe" + (_also(nearest(name, sections)) or f"; sections: {', '.join(sections)}")
    kinds = _kinds_with(name, path)
    if kinds:
        return f"is not for this kind; it belongs to kind {_listed(kinds)}"
    owners = [f"[{other}]" for other in _sections_with(name) if other != path]
    belongs = f"`{name}` belongs to {' or '.join(owners)}" if owners else ""
    hints = _also(belongs) + _also(nearest(name, known))
    return f"{place} has no such key" + (hints or f"; its keys: {', '.join(known)}")


def _kinds_with(name: str, path: str) -> list[str]:
    """The kinds of section `path` that take the key."""
    if path not in section_keys(Recipe):
        return []
    type_ = section_keys(Recipe)[path].type
    if len(section_classes(type_)) < 2:
        return []
    return [kind for kind, cls in section_kinds(type_).items() if name in section_keys(cls)]


def _sections_with(name: str) -> list[str]:
    """The sections that take the key; of two with the same keys (inference, inference_tta) the first."""
    found: dict[tuple[type, ...], str] = {}
    for section, key in section_keys(Recipe).items():
        classes = section_classes(key.type)
        if any(name in section_keys(cls) for cls in classes):
            found.setdefault(classes, section)
    return list(found.values())


def classes_below(type_: Any) -> tuple[type, ...]:
    """The dataclasses of a section or of an array of tables."""
    if typing.get_origin(type_) is tuple:
        return section_classes(typing.get_args(type_)[0])
    return section_classes(type_)


def _members(type_: Any) -> tuple[Any, ...]:
    """`(float,)` for `float | None`: TOML cannot say None, an absent key does. `(str, tuple[str, ...])` for one or several."""
    if isinstance(type_, types.UnionType) and not section_classes(type_):
        return tuple(member for member in typing.get_args(type_) if member is not types.NoneType)
    return (type_,)


def _member(type_: Any, value: object) -> Any:
    """The member that a value of this form is meant to be: of one or several, the array for an array."""
    members = _members(type_)
    arrays = [member for member in members if typing.get_origin(member) is tuple]
    return arrays[0] if arrays and isinstance(value, list) else members[0]


def _array(type_: Any, rule: Rule) -> tuple[Any, str]:
    """The item type of a tuple type and its length in words ("2 ", "0 or 3 ", "")."""
    args = typing.get_args(type_)
    lengths = rule.lengths if args[-1] is Ellipsis else (len(args),)
    return args[0], f"{' or '.join(map(str, lengths))} " if lengths else ""


def _noun(type_: Any, plural: bool = False) -> str:
    if typing.get_origin(type_) is tuple:
        return f"arrays of {len(typing.get_args(type_))} {_noun(typing.get_args(type_)[0], plural=True)}"
    if section_classes(type_):
        return "tables"
    one, many = {
        bool: ("true or false", "true or false"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("text in double quotes", "texts in double quotes"),
    }[type_]
    return many if plural else one


def _limits(rule: Rule) -> str:
    if rule.low is not None and rule.high is not None:
        return f"{_limit(rule.low)} to {_limit(rule.high)}"
    words = []
    if rule.above is not None:
        words.append(f"above {_limit(rule.above)}")
    if rule.low is not None:
        words.append(f"at least {_limit(rule.low)}")
    if rule.high is not None:
        words.append(f"at most {_limit(rule.high)}")
    return " and ".join(words)


def _limit(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shown(value: object) -> str:
    if isinstance(value, str | list | dict) and len(value) > _MANY:
        value = value[:_MANY] if isinstance(value, str | list) else dict(list(value.items())[:_MANY])
    text = toml_value(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(toml_value, values))


def _also(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{toml_key(name)}" if path else toml_key(name)
