"""The line scanner must know every key that tomllib finds, and the line it stands in."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emaseg.recipe.lines import Path, dotted, key_lines

# No text in these values looks like one of the generated key names.
SCALARS = [
    "1",
    "-0.5e3",
    "true",
    "1979-05-27 07:32:00Z",
    '"# no comment"',
    "'[no.header]'",
    '"\\"] , } ="',
    '""',
    "''",
    '"""two\n[lines]\nof = "text" # here"""',
    '"""quotes at the end"""""',
    "'''a\n\"\"\" = '' }\n'''",
    '"""\\\n  folded \\""" still in"""',
]


def tomllib_paths(value: object, path: Path = ()) -> Iterator[Path]:
    """Every key and array element of a parsed document."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for name, item in items:
        yield (*path, name)
        yield from tomllib_paths(item, (*path, name))


@st.composite
def documents(draw: st.DrawFn) -> str:
    """TOML texts in all of the format's styles; no key name is used twice."""
    numbers = itertools.count()

    def key() -> str:
        name = f"key{next(numbers)}_"
        return draw(st.sampled_from([name, f'"{name}"', f"'{name}'", f'"{name}.\\u00e9 ="']))

    def dotted_key() -> str:
        return draw(st.sampled_from([".", " . "])).join(key() for _ in range(draw(st.integers(1, 3))))

    def value(depth: int) -> str:
        style = draw(st.sampled_from(["scalar", "scalar", "array", "table"])) if depth else "scalar"
        if style == "array":
            gap = draw(st.sampled_from(["", " ", "\n  ", " # a ] comment\n"]))
            items = [value(depth - 1) for _ in range(draw(st.integers(0, 3)))]
            return f"[{gap}" + "".join(f"{item}{gap},{gap}" for item in items) + "]"
        if style == "table":
            return "{" + ", ".join(pair(depth - 1) for _ in range(draw(st.integers(0, 2)))) + "}"
        return draw(st.sampled_from(SCALARS))

    def pair(depth: int = 2) -> str:
        return f"{dotted_key()}{draw(st.sampled_from([' = ', '=']))}{value(depth)}"

    def body() -> list[str]:
        endings = st.sampled_from(["", "  # comment [x] = 1", "\n", "\n# [no.header]\n"])
        return [pair() + draw(endings) for _ in range(draw(st.integers(0, 3)))]

    rows = body()
    for _ in range(draw(st.integers(0, 3))):
        name = dotted_key()
        if draw(st.booleans()):
            rows += [f"[{name}]", *body(), f"[ {name}.{key()} ]", *body()]
        else:
            rows += [f"[[{name}]]", *body(), f"[{name}.{key()}]", *body(), f"[[ {name} ]]", *body()]
            rows += [f"[[{name}.{key()}]]", *body()]
    return "\n".join(rows) + draw(st.sampled_from(["", "\n"]))


@given(documents())
def test_the_scanner_finds_exactly_tomllibs_keys(text: str) -> None:
    assert set(key_lines(text)) == set(tomllib_paths(tomllib.loads(text)))


@given(documents())
def test_every_key_stands_in_the_line_named_for_it(text: str) -> None:
    rows = text.split("\n")
    for path, line in key_lines(text).items():
        if isinstance(path[-1], str):
            assert path[-1].partition("_")[0] + "_" in rows[line - 1]


@given(documents())
def test_windows_line_ends_change_nothing(text: str) -> None:
    assert key_lines(text.replace("\n", "\r\n")) == key_lines(text)


def test_elements_of_arrays_have_lines_of_their_own() -> None:
    text = "a = [\n  1,\n  [2,\n   3],\n  { b = 4 },\n]\n[[c.d]]\ne = 1\n\n[[c.d]]\ne = 2\n[c.d.f]\ng = 3\n"
    found = {dotted(path): line for path, line in key_lines(text).items()}
    array = {"a": 1, "a.0": 2, "a.1": 3, "a.1.0": 3, "a.1.1": 4, "a.2": 5, "a.2.b": 5}
    first_table = {"c": 7, "c.d": 7, "c.d.0": 7, "c.d.0.e": 8}
    second_table = {"c.d.1": 10, "c.d.1.e": 11, "c.d.1.f": 12, "c.d.1.f.g": 13}
    assert found == array | first_table | second_table


def test_a_section_is_where_its_own_header_stands() -> None:
    assert key_lines("[a.b]\n[a]\nc = 1\n")[("a",)] == 2


@pytest.mark.parametrize("text", ["", "\n", "# only a comment", "\r\n"])
def test_a_text_without_keys_has_no_lines(text: str) -> None:
    assert key_lines(text) == {}
