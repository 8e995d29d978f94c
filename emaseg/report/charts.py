"""Line charts as SVG.

Room: report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from emaseg.report.page import text

Point = tuple[float, float]

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 26, 30
_MOST_POINTS = 400  # of a line; more are averaged in equal groups
_MOST = 1e100  # what is larger, infinite or no number is left out
_EXACT = 1e15  # below this a float tells whole numbers apart
_LEAST = 1e-100  # what is smaller is 0
_FEW = 40  # points that are worth a dot each


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart. name: from outside. points: by growing x. dashed: a level to compare with. colour: which of
    the style's six; given by its place among the lines."""

    name: str
    points: Sequence[Point]
    dashed: bool = False
    colour: int = 1


def chart(title: str, lines: Sequence[Line], unit: str = "step") -> str:
    """Lines over training steps, with axes, a title and a legend. title, unit: our own words.

    Returns "" where there is nothing to draw.
    """
    coloured = [
        replace(
            line, points=[p for p in line.points if abs(p[0]) <= _MOST and abs(p[1]) <= _MOST], colour=number % 6 + 1
        )
        for number, line in enumerate(lines)
    ]
    shown = [replace(line, points=_thinned(line.points)) for line in coloured if line.points]
    values = [y for line in shown for _, y in line.points]
    if not values:
        return ""
    right = max(x for line in shown for x, _ in line.points) or 1
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks), max(ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / right
        up = (min(max(y, low), high) - low) / (high - low)
        return round(across, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up, 1)

    parts = [f'<text x="{_LEFT}" y="15" font-size="13" font-weight="600" style="fill:var(--ink)">{title}</text>']
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" font-size="11" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, right):
        if tick <= right:
            x, _ = place(tick, low)
            anchor = "end" if tick == right else "middle"
            label = f'<text x="{x}" y="{_HEIGHT - 15}" font-size="11" text-anchor="{anchor}">{counted(tick)}</text>'
            parts.append(label)
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" font-size="10" text-anchor="end">{unit}</text>')
    for line in shown:
        parts += _drawn(line, f"var(--series{line.colour})", [place(x, y) for x, y in line.points])
    parts += _names(shown)
    return (
        f'<div class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{title}</title>{''.join(parts)}</svg></div>"
    )


def counted(number: float) -> str:
    """A number of steps: with all of its digits, where it is a whole one."""
    return f"{number:,.0f}" if number == round(number) and abs(number) < _EXACT else f"{number:g}"


def _drawn(line: Line, colour: str, places: Sequence[Point]) -> list[str]:
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dash}/>']
    if len(places) <= _FEW and not line.dashed:
        for (x, y), (step, value) in zip(places, line.points, strict=True):
            tip = f"{text(line.name)}, step {counted(step)}: {value:.4g}"
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{colour}"><title>{tip}</title></circle>')
    return parts


def _names(lines: Sequence[Line]) -> list[str]:
    """The legend, right of the title; none for a single line."""
    if len(lines) < 2:
        return []
    parts, x = [], float(_WIDTH - _RIGHT)
    for line in reversed(lines):
        name = line.name if len(line.name) <= 24 else f"{line.name[:22]}…"
        parts.append(
            f'<text x="{x:g}" y="15" font-size="11" text-anchor="end" style="fill:var(--series{line.colour})">'
            f"{text(name)}</text>"
        )
        x -= 7 * len(name) + 12
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose low..high."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > max(_LEAST, 1e-9 * size) else size if size > _LEAST else 1.0
    raw = span / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{n * step:.12g}") for n in range(first, max(last, first + 1) + 1)]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most so many points: the means of equal groups."""
    if len(points) <= _MOST_POINTS:
        return points
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
