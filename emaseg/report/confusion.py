"""Which class is taken for which: the confusion matrix as SVG, and its largest errors in words.

Room: report. Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from emaseg.report.page import percent, table, text
from emaseg.words import printable

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_CELLS = ((12, 40), (25, 27), (60, 16), (255, 12))  # up to so many classes, pixels of a cell
_NUMBERS_UP_TO = 25  # classes, so that a number fits into a cell
_SHADES = 8
_LEAST = 0.003  # share of a row that shows as a shade
_NAME = 20  # letters of a name beside the matrix
_LARGEST = 12  # errors in words


def matrix(counts: Int64, classes: Sequence[str]) -> str:
    """The matrix (K, K), label by prediction, as an SVG that keeps its size.

    Rows are shares of the labelled pixels. Classes stand in the order of their labelled pixels, the most first; those
    that are neither labelled nor predicted are left out.
    """
    present = [k for k in range(len(classes)) if counts[k].any() or counts[:, k].any()]
    present.sort(key=lambda k: (-int(counts[k].sum()), k))
    chosen = counts[np.ix_(present, present)]
    shares: Float64 = chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
    n = len(present)
    cell = next(size for most, size in _CELLS if n <= most)
    font = min(12, cell - 1)
    left = top = round(min(max(len(classes[k]) for k in present), _NAME) * font * 0.62) + 14
    parts = [f"<g transform='translate({left} {top})'>"]
    parts += _shaded(shares, cell)
    parts.append(f"<rect width='{n * cell}' height='{n * cell}' fill='none' stroke='var(--line)'/>")
    if n <= _NUMBERS_UP_TO:
        parts += _numbers(shares, cell)
    for place, k in enumerate(present):
        middle, name = (place + 0.5) * cell, text(_short(classes[k]))
        tip = f"<title>{text(classes[k])}</title>"
        parts.append(
            f"<text x='-6' y='{middle + font / 3:.1f}' font-size='{font}' text-anchor='end'>{tip}{name}</text>"
            f"<text transform='translate({middle + font / 3:.1f} -6) rotate(-90)' font-size='{font}'>{tip}{name}</text>"
        )
    parts.append("</g>")
    width, height = left + n * cell + 4, top + n * cell + 4
    return (
        f"<div class='scroll'><svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img' "
        f"xmlns='http://www.w3.org/2000/svg'><title>confusion matrix</title>{''.join(parts)}</svg></div>"
    )


def _shaded(shares: Float64, cell: int) -> list[str]:
    """One path for each shade: a page of 171 classes has 29,241 cells."""
    parts = []
    shade = np.ceil(np.sqrt(shares) * _SHADES).astype(int) * (shares >= _LEAST)
    own = np.eye(len(shares), dtype=bool)
    for colour, where in (("--good", own), ("--bad", ~own)):
        for level in range(1, _SHADES + 1):
            rows, columns = np.nonzero((shade == level) & where)
            path = "".join(
                f"M{x * cell} {y * cell}h{cell}v{cell}h-{cell}z"
                for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
            )
            if path:
                parts.append(f"<path d='{path}' fill='var({colour})' fill-opacity='{level / _SHADES:.3f}'/>")
    return parts


def _numbers(shares: Float64, cell: int) -> list[str]:
    size = 12 if cell > 30 else 10
    return [
        f"<text x='{(x + 0.5) * cell:.1f}' y='{(y + 0.5) * cell + size / 3:.1f}' font-size='{size}' text-anchor='middle' "
        f"style='fill:var(--ink)'>{100 * shares[y, x]:.0f}</text>"
        for y, x in zip(*(found.tolist() for found in np.nonzero(shares >= 0.005)), strict=True)
    ]


def largest_errors(counts: Int64, classes: Sequence[str]) -> str:
    """The pairs of classes between which most pixels go wrong, as a table; "" where none does."""
    wrong = counts - np.diag(np.diagonal(counts))
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:_LARGEST].tolist():
        true, taken = divmod(flat, len(classes))
        pixels = int(wrong[true, taken])
        if pixels:
            share = pixels / int(counts[true].sum())
            rows.append((text(classes[true]), text(classes[taken]), percent(share), f"{pixels:,}"))
    if not rows:
        return ""
    return table(("labelled as", "taken for", "% of the class", "pixels"), rows, numbers=(2, 3))


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME else f"{shown[: _NAME - 1]}…"
