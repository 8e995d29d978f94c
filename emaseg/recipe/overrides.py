"""`--set key.path=VALUE`: TOML values that replace keys of a recipe before it is read.

Room: recipe. Values are parsed by tomllib; nothing is evaluated. Where the key holds a text, the value is that text as it
is typed, unless it begins as a TOML text, array or table does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emaseg.errors import RecipeError, need_type
from emaseg.recipe.renamed import RENAMED, new_name, with_new_names
from emaseg.recipe.sections import Problem, is_text, nearest_legal
from emaseg.recipe.writer import toml_value
from emaseg.words import Lines, quoted

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_IN_INFERENCE = re.compile(r"^\s*inference(?=\s*[.=])")
_EXAMPLE = "--set optim.lr=0.02"
_MOST = 64 << 10  # characters of one --set; all of a [data] section with 255 classes has less
_RULE, _WEIGHTS = "loss.class_balance", "loss.class_weights"
_DEPTH = 8  # parts of a key, and tables and arrays inside each other
_MOST_BITS = 1024  # of a whole number, as of the largest float; no key takes half of it
HUGE = f"a whole number of more than {_MOST_BITS} bits, which no key takes"
# Never back over what it has matched: a word of a megabyte is looked at once.
_PART = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?:{_PART}[ \t]*+\.[ \t]*+){{64}}")
_MOST_DIGITS = 9  # of an element's place
_SHOWN = 200  # characters of a text that a message repeats


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`: the dotted key and the TOML value, both under today's names.

    written: the key as the user wrote it. old_keys: the dotted keys, in it and in its value, that have another name now.
    problems: keys that are there under both names.
    """

    key: str
    value: object
    written: str
    old_keys: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse_overrides(items: Sequence[str]) -> tuple[Override, ...]:
    """Read `key.path=VALUE` texts, VALUE being TOML.

    Raises:
        RecipeError: naming every item that cannot be read, with what to type instead.
    """
    if isinstance(items, str):
        raise RecipeError("overrides: is one text", f"give a list of texts: [{items!r:.60}]")
    for item in items:
        need_type("overrides", item, str, 'a list of texts such as "train.batch=4"')
    read = [_parse(item) for item in items]
    failures = [one for one in read if isinstance(one, str)]
    if failures:
        raise RecipeError(Lines(*failures))
    return tuple(one for one in read if isinstance(one, Override))


def apply_overrides(table: dict[str, Any], overrides: Sequence[Override], problems: list[Problem]) -> dict[str, Any]:
    """A copy of `table` with the overrides in it, the last one of a key winning."""
    result: dict[str, Any] = _copy(table)
    for override in overrides:
        problems.extend(override.problems)
        _put(result, override, problems)
    return result


def for_tta(items: Sequence[str]) -> tuple[str, ...]:
    """`--set` texts as `--tta` means them: its protocol is [inference_tta], so a key of [inference] is one of that.

    Of `--set inference.flip=...` and `--set inference_tta.flip=...` the last one wins, as of any key.
    """
    return tuple(_IN_INFERENCE.sub("inference_tta", item) for item in items)


def replaced_kinds(table: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, str]:
    """Sections whose `kind` alone was set to another one, with the kind that the file gave."""
    whole = {override.key for override in overrides}
    kinds: dict[str, str] = {}
    for override in overrides:
        section, _, name = override.key.rpartition(".")
        given = table.get(section)
        if name == "kind" and section not in whole and isinstance(given, dict) and isinstance(given.get("kind"), str):
            kinds[section] = given["kind"]
    return kinds


def with_rule_alone(table: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[Override, ...]:
    """The overrides, and where they change loss.class_balance but no class weight, one that empties loss.class_weights:
    what the file has there, as a run's own recipe does, came from the rule before."""
    loss = table.get("loss")
    rules = [override for override in overrides if override.key == _RULE]
    given = any(override.key == "loss" or f"{override.key}.".startswith(f"{_WEIGHTS}.") for override in overrides)
    if not rules or given or not isinstance(loss, dict) or not loss.get("class_weights"):
        return tuple(overrides)
    before = loss.get("class_balance", "none")
    if before == "none" or rules[-1].value == before:  # without a rule they are somebody's own
        return tuple(overrides)
    return (*overrides, Override(_WEIGHTS, [], rules[-1].written))


def _parse(item: str) -> Override | str:
    """The override, or what is wrong with the text."""
    if len(item) > _MOST:
        return f"--set {item[:_SHOWN]}...: has more than {_MOST >> 10} kB, which no value needs"
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals:
        return f"--set {item}: no value; write key=VALUE, as in {_EXAMPLE}"
    if not _KEY.fullmatch(key) or key.count(".") >= _DEPTH:
        key = key if len(key) <= _SHOWN else f"{key[:_SHOWN]}..."
        item = item if len(item) <= _SHOWN else f"{item[:_SHOWN]}..."
        return f"--set {item}: `{key}` is not a key; write section.key=VALUE, as in {_EXAMPLE}"
    if not text:
        return f"--set {key}: the value is empty; {_instead_of_nothing(new_name(key))}"
    if text[0] not in "\"'[{" and text.isprintable() and is_text(new_name(key)):
        return _override(key, text)
    if has_long_key(text):
        return f"--set {key}: a key of more than 64 parts"
    try:
        document = tomllib.loads(f"x = {text}")
    except (ValueError, RecursionError):
        if len(text) > _SHOWN:
            return f"--set {key}: {text[:_SHOWN]}... is not a TOML value; put it into a recipe file"
        return f"--set {key}: {text} is not a TOML value; {_instead(new_name(key), text)}"
    if list(document) != ["x"]:
        return f"--set {key}: more than one value given"
    if nested(document["x"], _DEPTH):
        return f"--set {key}: tables and arrays are nested more than {_DEPTH} deep"
    if huge_number(document["x"]) is not None:
        return f"--set {key}: {HUGE}"
    return _override(key, document["x"])


def _override(written: str, value: object) -> Override:
    """The override under today's names."""
    old_keys = [written] if written in RENAMED else []
    problems: list[Problem] = []
    if isinstance(value, dict):
        value, inside = with_new_names(value, written, problems)
        old_keys += inside
    return Override(new_name(written), value, written, tuple(old_keys), tuple(problems))


def has_long_key(text: str) -> bool:
    """Whether a TOML text has a key such as a.a.a.a without end; asked before tomllib takes quadratic time over it."""
    return _LONG_KEY.search(text) is not None


def nested(value: object, most: int) -> bool:
    """Whether tables and arrays lie inside each other more than `most` deep; tomllib itself has no such limit.

    Threat: what walks such a value afterwards, one call a level, would run out of stack.
    """
    level = [value]
    for _ in range(most + 1):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def huge_number(value: object, path: tuple[str | int, ...] = ()) -> tuple[str | int, ...] | None:
    """Where in a value that is not `nested` too deep the first whole number of absurd size stands; None = nowhere.

    Threat: tomllib reads hexadecimal digits without end, and Python then refuses to write the number in a message.
    """
    if isinstance(value, int):
        return path if value.bit_length() > _MOST_BITS else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (huge_number(item, (*path, name)) for name, item in items)
    return next((place for place in found if place is not None), None)


def _instead_of_nothing(key: str) -> str:
    """What to type where the value was left out."""
    found = nearest_legal(key, "")
    takes, value = found or ("", "")
    return f"empty text is typed {_typed(key, '')}" if value == "" else f"it takes {takes}: {_typed(key, value)}"


def _instead(key: str, text: str) -> str:
    """What to type for a value that tomllib refuses: the same, spelt as TOML, where the key may hold that."""
    if text[0] in "\"'":
        return f"""type it with a closing quote: --set '{key}="..."'"""
    found = nearest_legal(key, text)
    same = _respelt(text)
    takes, value = found or ("", same)
    if text[0] in "[{" and (found is None or _holds_text(value)):
        return f"""type it in single quotes, with double quotes around text: --set '{key}=["a", "b"]'"""
    return f"type {_typed(key, same)}" if value == same else f"it takes {takes}: {_typed(key, value)}"


def _respelt(text: str) -> object:
    """What TOML would read if it were less strict: true and false in capitals, numbers that end or begin at the point."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    lax = re.fullmatch(r"[+-]?\.\d+([eE][+-]?\d+)?|[+-]?\d+\.([eE][+-]?\d+)?", text)
    return float(text) if lax else text


def _holds_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and any(map(_holds_text, value)))


def _typed(key: str, value: object) -> str:
    return "--set " + quoted(f"{key}={toml_value(value)}")


def _put(table: dict[str, Any], override: Override, problems: list[Problem]) -> None:
    """Walk down to the key, opening sections that are not there; digits choose an element of an array."""
    *parents, name = override.key.split(".")
    at: Any = table
    for depth, part in enumerate(parents, 1):
        if isinstance(at, dict):
            at = at.setdefault(part, {})
        elif _is_index(part, len(at)):
            at = at[int(part)]
        else:
            at = None
        if not isinstance(at, dict | list):
            problems.append(Problem(override.key, f"{'.'.join(parents[:depth])} is not a section of this recipe"))
            return
    if isinstance(at, dict):
        at[name] = override.value
    elif _is_index(name, len(at)):
        at[int(name)] = override.value
    else:
        problems.append(Problem(override.key, f"{'.'.join(parents)} has {len(at)} elements, counted from 0"))


def _is_index(part: str, count: int) -> bool:
    """Whether a part of a key is the place of one of `count` elements; Python reads no number of thousands of digits."""
    return part.isdigit() and len(part) <= _MOST_DIGITS and int(part) < count


def _copy(value: Any) -> Any:
    """The tables and arrays anew; the rest of tomllib's values cannot change."""
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
