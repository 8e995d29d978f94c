"""What commands print: messages on stderr, results on stdout, both plain text when they are not a terminal.

Room: cli. Imports rich; engine types for annotations only, so that printing an error never imports torch.
Legend: scores arrive as fractions in 0..1 and are shown in percent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import TextWrapper
from typing import IO, TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from emaseg.evaluate import Comparison
    from emaseg.events import Note
    from emaseg.metrics import Scores

_ERROR, _TRY = "error: ", "  try: "
_TYPED = re.compile(r"\b(emaseg|pip|python3?) |--set |https?://")  # what people copy from a message
_PIPE_WIDTH = 10_000  # a table in a pipe or file is as wide as its content

_STATUS = {
    "ok": "",
    "absent": "not in this set",
    "never_predicted": "never predicted",
    "only_predicted": "predicted, but not in this set",
}


def print_result(text: str) -> None:
    """One line on stdout; when its reader is gone, nothing, and the command's exit code stands."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    """A console whose reader may go away (`| head`, a killed `tee`): it falls silent, and the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (default stderr) that prints text as it is: no markup, no wrapping of long lines.

    Colour follows the terminal and NO_COLOR.
    """
    stream = sys.stderr if stream is None else stream
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def fitted(text: str, out: Console, first: str = "", rest: str = "  ") -> str:
    """`text` after the words `first`; on a terminal its long lines are broken between words and go on after `rest`.

    Indented lines and those with something to type stay whole: what the terminal itself breaks can still be copied.
    """
    if not out.is_terminal:
        return first + text
    lines: list[str] = []
    for line in text.split("\n"):
        begin = "" if lines else first
        whole = line.startswith(" ") or _TYPED.search(line)
        wrapper = TextWrapper(
            max(out.width, 20),
            initial_indent=begin,
            subsequent_indent=rest,
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [begin + line] if whole or not line else wrapper.wrap(line)
    return "\n".join(lines)


def print_error(message: str, hint: str, out: Console | None = None) -> None:
    """`error: message` and, where there is one, `  try: hint` on `out` (default stderr)."""
    out = out or console()
    text = Text(fitted(message, out, _ERROR))
    text.stylize("bold red", 0, len(_ERROR))
    out.print(text.append_text(_remedy(hint, out)) if hint else text)


def _remedy(hint: str, out: Console) -> Text:
    text = Text("\n" + fitted(hint, out, _TRY, " " * len(_TRY)))
    text.stylize("bold", 0, len(_TRY) + 1)
    return text


def print_note(note: Note, out: Console) -> None:
    """One line for people; warnings stand out."""
    out.print(Text(fitted(note.text, out, "warning: " if note.warning else ""), style="yellow" if note.warning else ""))


def print_lines(lines: Iterable[str]) -> None:
    """Lines for people on stderr."""
    out = console()
    out.print(Text("\n".join(fitted(line, out) for line in lines)))


def print_json(content: Mapping[str, Any]) -> None:
    """One object on one line of stdout."""
    print_result(json.dumps(content, ensure_ascii=False, allow_nan=False))


def print_grid(rows: Iterable[Sequence[str]], stream: IO[str] | None = None) -> None:
    """Labels and what belongs to them in columns without headings (default on stdout)."""
    table = Table.grid(padding=(0, 2))
    for label, *values in rows:
        table.add_row(Text(label, style="bold"), *map(Text, values))
    console(sys.stdout if stream is None else stream).print(table)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = (), whole: str = ""
) -> None:
    """A table on stdout; the columns named in `numbers` are aligned to the right, the one named `whole` is not broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            overflow="fold",  # lose no name
            no_wrap=heading == whole,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console(sys.stdout).print(table)


def print_finding(level: Literal["error", "warning"], title: str, lines: Iterable[str], remedy: str) -> None:
    """A problem on stdout after an empty line: what it is, where, and the remedy."""
    out = console(sys.stdout)
    head = f"{level}: "
    text = Text("\n" + fitted(title, out, head))
    text.stylize("bold red" if level == "error" else "yellow", 0, len(head) + 1)
    for line in lines:
        text.append(f"\n  {line}")
    out.print(text.append_text(_remedy(remedy, out)))


def print_scores(
    scores: Scores, comparison: Comparison, protocol: str, remarks: Sequence[tuple[str, str]] = ()
) -> None:
    """A line for each class, then the means, with the published mIoU beside the measured one or why there is none.

    `remarks` are label and value pairs that the network adds about itself.
    """
    print_table(
        ("class", "IoU", "accuracy", ""),
        [(c.name, percent(c.iou), percent(c.accuracy), _STATUS[c.status]) for c in scores.per_class],
        numbers=("IoU", "accuracy"),
    )
    print()
    beside = "" if comparison.miou is None else f"  (published {percent(comparison.miou)})"
    missing = [("published", comparison.reason)] if comparison.reason else []
    print_grid(
        [
            ("mIoU", percent(scores.miou) + beside),
            *missing,
            ("pixel accuracy", percent(scores.pixel_accuracy)),
            ("mean accuracy", percent(scores.mean_accuracy)),
            ("images", str(scores.images)),
            ("protocol", protocol),
            *remarks,
        ]
    )


def percent(fraction: float | None) -> str:
    """0.45321 -> "45.32"; "-" where there is no value."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"
