"""Draw how the time of an EMANet R-50-D8 grows, from the part `growth` of a results file, and say why.

    python -m tests.benchmarks.peers.plot results.json growth.svg

Both axes are logarithmic and relative to the first value, so the slope of a line is its exponent. The lines for the
README go to stdout.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 56, 230, 52, 48
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00")
WHY = {
    "side": "2 would be proportional to the number of pixels: convolutions and EM iterations cost the same for each",
    "classes": "only the classifier and the resize of its logits know of classes",
    "batch": "1 would be the same time per image; less means that a batch shares the fixed cost of a pass",
    "threads": "-1 is a perfect division",
    "EM iterations": "an iteration is two thin matrix products, beside some 60 convolutions",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One quantity: its values and the seconds of a pass, and the exponent that was fitted to them."""

    name: str
    values: list[float]
    seconds: list[float]
    exponent: float

    @property
    def points(self) -> list[tuple[float, float]]:
        """Powers of two, of both relative to the first."""
        first = self.values[0], self.seconds[0]
        return [
            (math.log2(v / first[0]), math.log2(s / first[1])) for v, s in zip(self.values, self.seconds, strict=True)
        ]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.values[0]:g} to {self.values[-1]:g}: exponent {self.exponent:.2f}"


def lines_of(rows: list[Row]) -> list[Line]:
    lines = []
    for what, group in groupby(rows, lambda row: row["what"]):
        own = list(group)
        name = what.removeprefix("growth with ")
        values, seconds = ([float(row[key]) for row in own] for key in ("way", "seconds"))
        lines.append(Line(name, values, seconds, own[0]["exponent"]))
    return lines


def drawing(lines: list[Line], title: str) -> str:
    """The SVG."""
    points = [point for line in lines for point in line.points]
    right = max(x for x, _ in points)
    low, high = math.floor(min(y for _, y in points)), math.ceil(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / right * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', _text(LEFT, 22, title, "#222", size=14)]
    for y in range(low, high + 1):
        (start, height), (end, _) = place(0, y), place(right, y)
        parts.append(_path([(start, height), (end, height)], "#ddd", 1))
        parts.append(_text(LEFT - 8, height + 4, _times(y), "#555", anchor="end"))
    for x in range(math.floor(right) + 1):
        (across, _), bottom = place(x, low), HEIGHT - BOTTOM
        parts.append(_path([(across, TOP), (across, bottom)], "#eee", 1))
        parts.append(_text(across, bottom + 18, _times(x), "#555", anchor="middle"))
    parts.append(
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "value, as a multiple of the first", "#555", anchor="middle")
    )
    parts.append(_text(LEFT - 8, TOP - 12, "time", "#555", anchor="end"))
    ends = _apart([place(*line.points[-1])[1] for line in lines])
    for line, colour, height in zip(lines, COLOURS, ends, strict=False):
        places = [place(*point) for point in line.points]
        parts.append(_path(places, colour, 2))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_path([places[-1], (WIDTH - RIGHT + 14, height)], colour, 0.6))
        first, _, last = line.label.partition(": ")
        parts.append(_text(WIDTH - RIGHT + 18, height, first, colour))
        parts.append(_text(WIDTH - RIGHT + 18, height + 13, last, colour))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    font = 'font-family="Helvetica, Arial, sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {font}>\n' + "\n".join(parts) + "\n</svg>\n"


def _apart(heights: list[float], least: float = 30) -> list[float]:
    """Heights of labels, moved until none covers another, in the order that they had."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    over = max(0.0, max(moved) - (HEIGHT - BOTTOM - 14))
    return [height - over for height in moved]


def _times(power: int) -> str:
    return f"x{2**power}" if power >= 0 else f"x1/{2**-power}"


def _path(places: list[tuple[float, float]], colour: str, width: float) -> str:
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def main() -> None:
    results, target = map(Path, sys.argv[1:3])
    part = json.loads(results.read_text("utf-8"))["growth"]
    lines = lines_of(part["rows"])
    target.write_text(drawing(lines, "EMANet R-50-D8 in fp32: how the time of a pass grows"), "utf-8")
    for line in lines:
        why = next(reason for name, reason in WHY.items() if line.name.startswith(name))
        seconds = f"{line.seconds[0]:.3g} to {line.seconds[-1]:.3g} s"
        print(f"- {line.label} ({seconds}): {why}.")


if __name__ == "__main__":
    main()
