"""Text from outside: what of it a terminal, a shell and a log may get."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emaseg.errors import DataError
from emaseg.words import Lines, lines_of, printable, quoted, quoted_path, shown

ROOT = Path(__file__).parent.parent
ANY = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
NASTY = "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\xad\u061c\u200b\u200d\u200e\u2028\u2029\u202e\u2066\ufeff\ufff9\u3164\udcff"


@given(ANY)
@example(NASTY)
def test_printable_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    """Protects the terminal from every code point, and readers from a second escaping of what is escaped."""
    result = printable(text)
    assert all(
        char.isprintable() or char in "\u00a0\u1680\u202f\u205f\u3000" or 0x2000 <= ord(char) <= 0x200A
        for char in result
    )
    assert not set(result) & set(NASTY)
    assert printable(result) == result
    result.encode("utf-8")


@pytest.mark.parametrize("char", NASTY)
def test_what_is_escaped_stays_recognisable(char: str) -> None:
    """Protects the reader who looks for the file: the escape is Python's."""
    assert printable(f"a{char}b") == f"a{char.encode('unicode_escape').decode()}b"


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "日本 語.png", "C:\\new\\table", "Screenshot at 3.45\u202fPM.png", "[red]x[/red]", ""]
)
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    """Protects names of every script, Windows paths, and the narrow space in the names of macOS's screenshots."""
    assert printable(text) == text


@given(st.lists(ANY, min_size=1))
def test_only_our_own_line_breaks_survive(parts: list[str]) -> None:
    """Protects from forged lines: there are as many lines as we made, whatever names stand in them."""
    message = Lines(*parts)
    assert message == "\n".join(parts)
    assert shown(message).split("\n") == [printable(part) for part in parts]
    assert "\n" not in shown(str(f"{message}"))
    assert lines_of(Lines("first", message)) == ("first", *parts)


def test_lines_survive_a_loading_process() -> None:
    """Protects the layout of an error that a worker raised: it travels pickled."""
    error = pickle.loads(pickle.dumps(DataError(Lines("a\x1b", "b\nc"), "hint")))
    assert lines_of(error.message) == ("a\x1b", "b\nc")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))), min_size=20, max_size=60))
@example(
    ["-dash", "~", "~root", "--", "a b", "it's", '"', "$HOME", "`id`", "a\nb", "\x1b[31m", "\\", "!x", "*", "#", ""]
)
def test_a_pasted_word_is_the_same_word(words: list[str]) -> None:
    """Protects follow-up commands: a shell reads back what was meant, and nothing in it is run or invisible."""
    line = " ".join(map(quoted, words))
    assert printable(line) == line
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert shell.stdout == b"".join(word.encode() + b"\0" for word in words)


@pytest.mark.parametrize(
    ("path", "word"),
    [("-dash", "./-dash"), ("--out", "./--out"), ("-", "./-"), ("~", "'./~'"), ("a b", "'a b'"), ("a\nb", "$'a\\012b'"),
     ("runs/x", "runs/x"), ("\udcff", "$'\\377'"), ("é\x1b'", "$'é\\033\\''")],
)  # fmt: skip
def test_a_path_is_no_option_and_no_home_folder(path: str, word: str) -> None:
    """Protects from pasting `emaseg eval -dash`: such folders are written from here."""
    assert quoted_path(path) == word


# ------------------------------------------------------------------------------------------------------ in the source
ERRORS = {"UserError", "RecipeError", "DataError", "WeightsError", "SystemFault", "Diverged", "Note"}


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def test_messages_break_their_lines_with_lines() -> None:
    r"""Protects messages of several lines: a "\n" of our own outside of Lines is shown like one from a file's name."""
    wrong = []
    for path in (*(ROOT / "emaseg").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for call in _calls(ast.parse(path.read_text())):
            for node in ast.walk(call) if _name(call) in ERRORS else ():
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: use Lines(...) of emaseg.words")
    assert not wrong, "\n".join(wrong)


def test_the_terminal_has_one_door() -> None:
    """Protects the boundary from being passed by: only cli/render.py prints or builds rich's Text from anything."""
    allowed = {"render.py": {"print", "Text"}, "progress.py": {"Text"}}
    wrong = []
    for path in (ROOT / "cli").glob("*.py"):
        for call in _calls(ast.parse(path.read_text())):
            bare = isinstance(call.func, ast.Name) and call.func.id in {"print", "Text"}
            if bare and _name(call) not in allowed.get(path.name, set()):
                wrong.append(f"{path.name}:{call.lineno}: use print_line, print_path or print_lines")
            if _name(call) == "Text" and not all(_is_shown(argument) for argument in call.args[:1]):
                wrong.append(f"{path.name}:{call.lineno}: Text of something that was not made printable")
    assert not wrong, "\n".join(wrong)


def _is_shown(node: ast.expr) -> bool:
    """Whether `shown` is called in the expression, or it is a name that was assigned from such a call just before."""
    return any(_name(call) == "shown" for call in _calls(node)) or (isinstance(node, ast.Name) and node.id == "text")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX quoting")
def test_shell_words_are_quoted_in_one_place() -> None:
    """Protects follow-up commands: shlex knows nothing of `-dash`, `~` and control characters."""
    users = [p for folder in ("emaseg", "cli") for p in (ROOT / folder).rglob("*.py") if "shlex" in p.read_text()]
    assert [p.name for p in users] == ["words.py"]
