"""What a shell offers after Tab: commands, options, recipes and recipe keys, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.test_startup import PROBE


def offered(shell: str, *words: str) -> tuple[list[str], bool]:
    """The completions of the last word, and whether torch was imported; by the protocol of the shell's script."""
    line = " ".join(("emaseg", *words))
    variables = {
        "_EMASEG_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,  # bash
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": line,  # zsh and fish
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("()()", "()()")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    *errors, torch = done.stderr.splitlines()
    assert not errors, done.stderr
    return done.stdout.splitlines(), torch == "True"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ev",), ["eval"]),
        (("predict", "--min"), ["--min-confidence"]),
        (("train", "camv"), ["camvid_r50_d16"]),
        (("train", "demo", "--set", "optim.mom"), ["optim.momentum="]),
    ],
)
def test_bash_completes_commands_options_recipes_and_keys(words: tuple[str, ...], expected: list[str]) -> None:
    assert offered("bash", *words) == (expected, False)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_same(shell: str) -> None:
    lines, torch = offered(shell, "train", "camv")
    assert "camvid_r50_d16" in "\n".join(lines)
    assert not torch


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_for_what_is_answered(shell: str) -> None:
    """The variable in the script is the one that the program looks for."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "--show-completion", shell],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},  # else it looks for a parent shell
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "_EMASEG_COMPLETE=complete_" in done.stdout
