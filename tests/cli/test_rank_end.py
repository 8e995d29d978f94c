"""How a process that is one of several ends: its exit handlers run, its interpreter is not taken down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys

class Kept:
    def __del__(self, write=os.write):
        write(1, b"interpreter taken down\\n")

kept = Kept()
from emaseg.cli import main
code = main()
atexit.register(print, "exit handler")  # of a library that was imported by the command, say
sys.stdout.write("not flushed;")
sys.exit(code)
"""
TWO_RANKS = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ONE_RANK = {**TWO_RANKS, "RANK": "0", "WORLD_SIZE": "1"}
WRONG = {**TWO_RANKS, "WORLD_SIZE": "two"}


def end(variables: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command in a process with these variables of a launcher."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("arguments", "code"), [(("--version",), 0), (("trian",), 2)])
@pytest.mark.parametrize(("variables", "down"), [({}, True), (ONE_RANK, True), (WRONG, True), (TWO_RANKS, False)])
def test_only_a_rank_ends_with_its_interpreter_up(
    variables: dict[str, str], down: bool, arguments: tuple[str, ...], code: int
) -> None:
    """Protects complete runs from counting as killed: a gloo thread that still needs the interpreter aborts without it.
    The exit code is the command's, exit handlers run and what was printed is written, as ever."""
    found, out = end(variables, *arguments)
    assert found == code
    assert out.endswith("not flushed;exit handler\n" + ("interpreter taken down\n" if down else ""))
