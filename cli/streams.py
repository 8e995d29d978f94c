"""The three standard streams, which may be closed, full, without a reader, or not able to wait.

Room: cli. Imports nothing of it. What becomes of the results is the command's business: what cannot be written to
stdout is remembered for the exit code. What cannot be written to stderr is lost, and ends nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TextIO, cast

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Guarded(io.FileIO):
    """A descriptor to write to that never raises; it is not closed with this object.

    Attributes:
        failure: the first error. After it nothing more is written if `once`: results with a gap are worse than none.
    """

    failure: OSError | None

    def __init__(self, descriptor: int, *, once: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure = None
        self._once = once

    def write(self, content: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Write all of `content`, waiting where the other end set the stream to non-blocking."""
        rest = memoryview(content).cast("B")
        size = rest.nbytes
        if self.failure is not None and self._once:
            return size
        try:
            while rest:
                written = super().write(rest)
                if written is None:
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.failure = self.failure or error
        return size


@dataclass(frozen=True, slots=True)
class Streams:
    """What became of stdout; None where it is not the process's own, but one that a program or a test put there."""

    results: Guarded | None

    def failure(self) -> OSError | None:
        """Why results were not delivered, after everything was flushed."""
        if self.results is None:
            return None
        sys.stdout.flush()
        return self.results.failure


@contextlib.contextmanager
def guarded() -> Iterator[Streams]:
    """Within the block stdout and stderr can be written to whatever happened to them, and descriptors 0, 1, 2 are taken.

    Threat: were one of them free, the next file to be opened, a checkpoint perhaps, would get its number, and with it
    every message that a library in C writes there.
    """
    outer = sys.stdin, sys.stdout, sys.stderr
    places = [_place(descriptor, mode, own) for descriptor, mode, own in _own_streams()]
    results = None
    if _is_own(sys.stdout, sys.__stdout__):
        results = Guarded(places[_STDOUT], once=True)
        sys.stdout = _text(results, sys.__stdout__)
    if _is_own(sys.stderr, sys.__stderr__):
        sys.stderr = _text(Guarded(places[_STDERR], once=False), sys.__stderr__)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names hold characters that a terminal's encoding may lack
            stream.reconfigure(errors="backslashreplace")
    if sys.stdin is None:
        sys.stdin = open(places[_STDIN], encoding="utf-8", closefd=False)  # noqa: SIM115  (its reading fails)
    try:
        yield Streams(results)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = outer


def _own_streams() -> tuple[tuple[int, int, TextIO | None], ...]:
    """Descriptor, how to open what takes a closed one's place, and Python's stream, None where it was closed.

    Messages vanish in what is opened; reading from stdin, and writing results, still fails.
    """
    return (
        (_STDIN, os.O_WRONLY, sys.__stdin__),
        (_STDOUT, os.O_RDONLY, sys.__stdout__),
        (_STDERR, os.O_WRONLY, sys.__stderr__),
    )


def _place(descriptor: int, mode: int, own: TextIO | None) -> int:
    """The descriptor of a stream, which is its number, unless it was closed and another file has that already."""
    try:
        os.fstat(descriptor)
    except OSError:
        place = os.open(os.devnull, mode)  # the lowest free one: this
        os.set_inheritable(place, True)  # loading processes need it as much
        return place
    return descriptor if own is not None else os.open(os.devnull, mode)


def _is_own(stream: TextIO | None, original: TextIO | None) -> bool:
    """Whether `stream` is the one that Python began with, None where that was closed; a console of Windows stays."""
    return stream is original and not (os.name == "nt" and stream is not None and stream.isatty())


def _text(raw: Guarded, like: TextIO | None) -> TextIO:
    if like is not None:
        with contextlib.suppress(OSError, ValueError):
            like.flush()
    encoding = "utf-8" if like is None else like.encoding
    lines = True if like is None else bool(like.line_buffering)
    # No io.BufferedWriter between: Ctrl-C can arrive after the system took the bytes, and before it hears that; it
    # would write them again. The text's own buffer lets go of them first.
    return io.TextIOWrapper(cast(IO[bytes], raw), encoding, errors="backslashreplace", line_buffering=lines)
