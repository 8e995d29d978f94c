"""A command in a fork of this process: its own streams, signals and end, without the seconds that importing PyTorch takes.

What needs a fresh interpreter is no case for it: what is imported when, and training, whose threads a fork has not.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, NoReturn

import pytest

from tests.helpers import main

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@dataclass(frozen=True, slots=True)
class Forked:
    """A command that runs. stdout, stderr: what it writes, as it comes."""

    pid: int
    stdout: IO[bytes]
    stderr: IO[bytes]

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        os.kill(self.pid, signal.SIGINT)

    def ended(self) -> tuple[int, bytes, bytes]:
        """Wait; the exit code, and the rest of what it wrote (less than a pipe holds)."""
        with self.stdout, self.stderr:
            out, err = self.stdout.read(), self.stderr.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), out, err


def forked(arguments: Sequence[object], stdin: bytes = b"") -> Forked:
    """Start `emaseg` with these arguments; `stdin` is less than a pipe holds."""
    pipes = [os.pipe() for _ in range(3)]
    os.write(pipes[0][1], stdin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the test runner's receives messages, no more
        pid = os.fork()
    if not pid:
        run_to_the_end([str(argument) for argument in arguments], partial(_take, pipes))
    for descriptor in (*pipes[0], pipes[1][1], pipes[2][1]):
        os.close(descriptor)
    return Forked(pid, open(pipes[1][0], "rb"), open(pipes[2][0], "rb"))


def run_to_the_end(arguments: Sequence[str], before: Callable[[], None]) -> NoReturn:
    """In a fork: `before`, then the command, to the end of the process; 99 where it ends in an exception."""
    code = 99
    try:
        before()
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  (this is the end of the process)
        traceback.print_exc()
    finally:
        os._exit(code)


def _take(pipes: list[tuple[int, int]]) -> None:
    """Make these the streams of this process."""
    gc.freeze()  # else a collection copies the pages of all that the tests have made
    for number, end in enumerate((pipes[0][0], pipes[1][1], pipes[2][1])):
        os.dup2(end, number)
    for pipe in pipes:
        for descriptor in pipe:
            os.close(descriptor)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is deaf to it
