"""What commands print: messages on stderr, results on stdout, both plain text when they are not a terminal.

Room: cli. Imports rich; engine types for annotations only, so that printing an error never imports torch.
Legend: scores arrive as fractions in 0..1 and are shown in percent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import IO, TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from emaseg.words import Lines, lines_of, printable, shown

if TYPE_CHECKING:
    from emaseg.evaluation.evaluate import Comparison
    from emaseg.events import Note
    from emaseg.metrics import Details, Scores

_ERROR, _TRY = "error: ", "  try: "
_TYPED = re.compile(r"\b(emaseg|pip|python3?) |--set |https?://")  # what people copy from a message
_PIPE_WIDTH = 10_000  # a table in a pipe or file is as wide as its content
_NARROWEST, _WIDEST = 20, 1000  # columns that a terminal is taken to have, whatever it or COLUMNS says

_STATUS = {
    "ok": "",
    "absent": "not in this set",
    "never_predicted": "never predicted",
    "only_predicted": "predicted, but not in this set",
    "never_right": "predicted, but never where it is",
}
_WIDE_SCORES = 100  # columns of a terminal that has room for every score of a class
_EDGE = 1  # which of the radii near borders the table shows: 3 pixels


# Threat: names of files, classes, servers and keys are a stranger's (emaseg/words.py). All that this program prints goes
# through this file: plain lines through print_line, paths through print_path, the rest through _text.


def print_line(text: str = "") -> None:
    """One line for people on stdout."""
    print(printable(text), flush=True)


def print_wrapped(text: str, rest: str) -> None:
    """One paragraph on stdout: on a terminal broken between words, and going on after `rest`; else one line."""
    out = console(sys.stdout)
    if out.is_terminal:
        lines = TextWrapper(out.width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)
        for line in lines.wrap(printable(text)):
            print_line(line)
    else:
        print_line(text)


def print_path(path: Path) -> None:
    """A path on stdout, for scripts: its exact bytes; on a terminal, where they could do harm, as `print_line`."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None or os.name == "nt" or sys.stdout.isatty():
        print_line(str(path))
        return
    sys.stdout.flush()
    buffer.write(os.fsencode(path) + b"\n")
    buffer.flush()


def print_toml(text: str) -> None:
    """A whole TOML file on stdout: UTF-8, as TOML must be, wherever it goes; a terminal gets its own encoding."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None or sys.stdout.isatty():
        print(text, end="", flush=True)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8"))
    buffer.flush()


class _Console(Console):
    """A console whose reader may go away (`| head`, a killed `tee`): it falls silent, and the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    @property
    def size(self) -> ConsoleDimensions:
        """A terminal of 1 or of 1e9 columns would be drawn for hours."""
        width, height = super().size
        return ConsoleDimensions(_bounded(width), max(height, 2))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    @property
    def draws(self) -> bool:
        """Whether it is a terminal on which lines can be drawn again, as bars are. FORCE_COLOR makes none."""
        return self.is_terminal and self.file.isatty() and not (self.is_dumb_terminal or _no_term())


def console(stream: IO[str] | None = None) -> _Console:
    """A console on `stream` (default stderr) that prints text as it is: no markup, no wrapping of long lines.

    Colour follows the terminal and NO_COLOR. FORCE_COLOR colours messages in a pipe, results never: programs read them.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    columns, lines = shutil.get_terminal_size()  # takes any COLUMNS and LINES, unlike rich
    return _Console(
        file=stream,
        width=_PIPE_WIDTH if not terminal else _bounded(columns) if "COLUMNS" in os.environ else None,
        height=lines if "LINES" in os.environ else None,
        force_terminal=False if stream is sys.stdout and not terminal else None,
        color_system=None if _no_term() else "auto",
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
    )


def _bounded(columns: int) -> int:
    return min(max(columns, _NARROWEST), _WIDEST)


def _no_term() -> bool:
    """Whether nothing says what the terminal can do."""
    return os.name != "nt" and not os.environ.get("TERM")


def _text(text: str, style: str = "") -> Text:
    """Text for the terminal: every name in it made printable, line breaks only where we broke the line."""
    return Text(shown(text), style=style)


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
    text = Text(fitted(shown(message), out, _ERROR))
    text.stylize("bold red", 0, len(_ERROR))
    out.print(text.append_text(_remedy(hint, out)) if hint else text)


def _remedy(hint: str, out: Console) -> Text:
    text = Text("\n" + fitted(shown(hint), out, _TRY, " " * len(_TRY)))
    text.stylize("bold", 0, len(_TRY) + 1)
    return text


def print_traceback(error: BaseException) -> None:
    """The traceback on stderr, indented: no line in it can be taken for one of ours."""
    console().print(_text(Lines(*(f"  {line}" for line in traceback_lines(error)))))


def traceback_lines(error: BaseException) -> list[str]:
    """The traceback without anything that a terminal would obey."""
    return [printable(line) for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n")]


def print_note(note: Note, out: Console) -> None:
    """One line for people; warnings stand out."""
    text = fitted(shown(note.text), out, "warning: " if note.warning else "")
    out.print(Text(text, style="yellow" if note.warning else ""))


def print_notes(notes: Sequence[str], quiet: bool) -> None:
    """Lines on old names of keys that the user wrote, on stderr."""
    if notes and not quiet:
        print_lines(notes)


def print_lines(lines: Iterable[str]) -> None:
    """Lines for people on stderr."""
    out = console()
    out.print(Text("\n".join(fitted(shown(line), out) for line in lines)))


def print_json(content: Mapping[str, Any]) -> None:
    """One object on one line of stdout, in ASCII: JSON in every locale, with every name."""
    print(json.dumps(content, allow_nan=False), flush=True)


def print_grid(rows: Iterable[Sequence[str]], stream: IO[str] | None = None) -> None:
    """Labels and what belongs to them in columns without headings (default on stdout).

    On a terminal the last column is broken between words; a path that is longer than the line stays whole.
    """
    out = console(sys.stdout if stream is None else stream)
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*(row[:-1] for row in cells), strict=True)]
    for row in cells:
        before = "".join(cell + " " * (width - cell_len(cell) + 2) for cell, width in zip(row, widths, strict=False))
        text = Text(shown(Lines(*fitted(row[-1], out, before, " " * cell_len(before)).split("\n"))))
        text.stylize("bold", 0, len(row[0]))
        out.print(text)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = (), whole: str = ""
) -> None:
    """A table on stdout; the columns named in `numbers` are aligned to the right, the one named `whole` is not broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(
            _text(heading),
            justify="right" if heading in numbers else "left",
            overflow="fold",  # lose no name
            no_wrap=heading == whole,
        )
    for row in rows:
        table.add_row(*map(_text, row))
    console(sys.stdout).print(table)


def print_finding(level: Literal["error", "warning"], title: str, lines: Iterable[str], remedy: str) -> None:
    """A problem on stdout after an empty line: what it is, where, and the remedy."""
    out = console(sys.stdout)
    head = f"{level}: "
    text = Text("\n" + fitted(shown(title), out, head))
    text.stylize("bold red" if level == "error" else "yellow", 0, len(head) + 1)
    for line in (part for example in lines for part in lines_of(example)):
        text.append("\n").append_text(_text(f"  {line}"))
    out.print(text.append_text(_remedy(remedy, out)))


def print_check(name: str, value: str, state: Literal["ok", "warning", "error"], remedy: str) -> None:
    """A line on stdout of something that was looked at, and below it what to do."""
    out = console(sys.stdout)
    begin, style = f"{state:<8}{name:<18}", {"ok": "green", "warning": "yellow", "error": "bold red"}[state]
    text = Text(fitted(shown(value), out, begin, " " * len(begin)))
    text.stylize(style, 0, len(state))
    if remedy:
        text.append("\n" + fitted(shown(remedy), out, f"{'':<8}try: ", " " * 13), style="bold")
    out.print(text)
    sys.stdout.flush()


def print_scores(
    scores: Scores,
    comparison: Comparison,
    protocol: str,
    remarks: Sequence[tuple[str, str]] = (),
    details: Details | None = None,
    split: str = "",
) -> None:
    """A line for each class, then the means, with the published mIoU beside the measured one or why there is none.

    split: the one the images belong to. `remarks` are label and value pairs that the network adds about itself. Of `details` the table shows what fits.
    """
    headings = ["IoU", "accuracy", *_detail_headings(details)]
    rows = []
    for k, c in enumerate(scores.per_class):
        values = {"IoU": c.iou, "accuracy": c.accuracy, **_detail_values(details, k)}
        rows.append((c.name, *(percent(values[heading]) for heading in headings), _STATUS[c.status]))
    print_table(("class", *headings, ""), rows, numbers=headings)
    print_line()
    beside = "" if comparison.miou is None else f"  (published {percent(comparison.miou)})"
    missing = [("published", comparison.reason)] if comparison.reason else []
    print_grid(
        [
            ("mIoU", percent(scores.miou) + beside),
            *missing,
            *_detail_means(scores, details),
            ("pixel accuracy", percent(scores.pixel_accuracy)),
            ("mean accuracy", percent(scores.mean_accuracy)),
            ("images", f"{scores.images}  ({split})" if split else str(scores.images)),
            ("protocol", protocol),
            *remarks,
        ]
    )


def _detail_headings(details: Details | None) -> list[str]:
    if details is None:
        return []
    out = console(sys.stdout)
    wide = not out.is_terminal or out.width >= _WIDE_SCORES
    return ["precision", "Dice", f"edge IoU {details.boundary[_EDGE].pixels} px"] if wide else ["precision"]


def _detail_values(details: Details | None, k: int) -> dict[str, float | None]:
    if details is None:
        return {}
    own, edge = details.per_class[k], details.boundary[_EDGE]
    return {"precision": own.precision, "Dice": own.dice, f"edge IoU {edge.pixels} px": edge.boundary_iou[k]}


def _detail_means(scores: Scores, details: Details | None) -> list[tuple[str, str]]:
    """Label and value pairs of the whole set."""
    if details is None:
        return []
    rows = []
    if (interval := details.interval) is not None:
        span = f"{percent(interval.low)} to {percent(interval.high)}"
        rows.append((f"  {100 * interval.level:g} % interval", f"{span}  (bootstrap over the images)"))
    if details.miou_labelled != scores.miou:
        rows.append(
            ("  labelled classes", f"{percent(details.miou_labelled)}  (without classes that are not in this set)")
        )
    pixels = "/".join(str(row.pixels) for row in details.boundary)
    rows += [
        ("boundary IoU", f"{_percents(row.boundary_miou for row in details.boundary)}  (borders {pixels} px wide)"),
        ("trimap mIoU", f"{_percents(row.trimap_miou for row in details.boundary)}  (within {pixels} px of a border)"),
        ("weighted IoU", f"{percent(details.frequency_weighted_iou)}  (by the pixels of each class)"),
        ("mean Dice", percent(details.mean_dice)),
        ("mean precision", percent(details.mean_precision)),
    ]
    if details.calibration is not None:
        rows.append(("calibration", f"{percent(details.calibration.error)}  (expected error of the confidence)"))
    return rows


def _percents(fractions: Iterable[float | None]) -> str:
    return " / ".join(map(percent, fractions))


def percent(fraction: float | None) -> str:
    """0.45321 -> "45.32"; "-" where there is no value."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"
