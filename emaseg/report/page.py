"""One HTML file that needs no other: its frame, its style, and text from outside as text.

Room: report.

Threat: names of classes and files, recipes and commands are a stranger's. All text goes through `text`, no attribute
but numbers and our own words holds any, and the page's policy forbids scripts and every request. The page is well-formed
XML as well as HTML, so that a parser of the standard library can hold it to that (tests/test_report.py).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

from emaseg.words import printable

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1f2328; --soft: #626a73; --line: #dcdcd6;
  --bar: #3b7dd8; --bar2: #c3c8ce; --good: #2e8b57; --bad: #d1495b; --series1: #3b7dd8; --series2: #d98324;
  --series3: #2e8b57; --series4: #8d63c9; --series5: #b5475d; --series6: #5f7a8a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1c2025; --ink: #e6e8ea; --soft: #9aa3ad;
  --line: #343a41; --bar: #6aa4f0; --bar2: #4a525b; --good: #2f9a66; --bad: #d9566a; --series1: #6aa4f0;
  --series2: #eca755; --series3: #4fbf86; --series4: #b592e6; --series5: #ef7788; --series6: #93adbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 2px; } h2 { font-size: 18px; margin: 38px 0 10px; }
p { margin: 6px 0 12px; } .soft { color: var(--soft); } .small { font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 18px 0 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card .main { color: var(--bar); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 14px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px 4px; }
svg { display: block; font-family: inherit; } .chart svg { width: 100%; height: auto; }
svg text { fill: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); vertical-align: middle;
  overflow-wrap: normal; }
th { font-weight: 600; font-size: 13px; color: var(--soft); white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; } td:first-child { min-width: 120px; }
.track { display: inline-block; vertical-align: middle; width: 110px; height: 9px; border-radius: 3px;
  background: color-mix(in srgb, var(--line) 60%, transparent); overflow: hidden; }
.track i { display: block; height: 100%; background: var(--bar); } .track i.second { background: var(--bar2); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px;
  border: 1px solid var(--line); vertical-align: -1px; }
.mark { color: var(--bad); } .better { color: var(--good); } .worse { color: var(--bad); }
.example { display: grid; grid-template-columns: repeat(4, minmax(0, 250px)); gap: 8px; margin: 4px 0 16px;
  break-inside: avoid; } .example figure { margin: 0; }
.example img { width: 100%; height: auto; display: block; border-radius: 4px; }
.example figure + figure img { image-rendering: pixelated; }
.pair { display: flex; flex-wrap: wrap; gap: 10px 40px; align-items: flex-start; }
.pair > * { min-width: 0; max-width: 100%; } .pair > div:last-child { flex: 1 1 360px; }
.pairs { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px 16px; margin: 4px 0 16px; }
.pairs figure { margin: 0; break-inside: avoid; }
.pairs img { width: 100%; height: auto; display: block; border-radius: 4px; }
.example figcaption, .pairs figcaption { font-size: 12px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; margin: 6px 0 14px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  font: 12.5px/1.45 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
summary { cursor: pointer; margin: 8px 0; font-weight: 600; } dl { display: grid; margin: 0;
  grid-template-columns: minmax(90px, max-content) 1fr; gap: 3px 18px; } dt { color: var(--soft); } dd { margin: 0; }
footer { margin-top: 46px; font-size: 13px; color: var(--soft); border-top: 1px solid var(--line); padding-top: 10px; }
@media (max-width: 640px) { body { padding: 16px 12px 40px; } .rare { display: none; } .track { width: 64px; }
  td:first-child .mark { display: block; font-size: 12px; white-space: nowrap; }
  .example { grid-template-columns: repeat(2, minmax(0, 1fr)); } .pairs { grid-template-columns: 1fr; } h1 { font-size: 22px; } }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; --bar: #3b7dd8; }
  body { max-width: none; padding: 0; font-size: 11px; } h2, p.small { break-after: avoid; } tr, .chart { break-inside: avoid; }
  .scroll { overflow: visible; } .scroll svg { max-width: 100%; height: auto; } * { print-color-adjust: exact; } }
"""


def text(value: object) -> str:
    """Text from anywhere, as HTML shows it: no markup, no invisible or turning characters."""
    return html.escape(printable(str(value)))


def block(value: str) -> str:
    """Lines of text as preformatted HTML."""
    return f"<pre>{chr(10).join(map(text, value.splitlines()))}</pre>"


def document(title: str, body: Iterable[str]) -> str:
    """The whole file. title: from outside; body: HTML."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en" xmlns="http://www.w3.org/1999/xhtml">',
        "<head>",
        '<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{text(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        *body,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def heading(words: str, remark: str = "") -> str:
    """A section's heading, both our own words or HTML, with a sentence that says how to read what follows."""
    return f"<h2>{words}</h2>" + (f'<p class="soft small">{remark}</p>' if remark else "")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table that scrolls sideways where it must. headings, cells: HTML; numbers: columns aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        parts = (
            f"<{tag}{' class=' + chr(34) + 'n' + chr(34) if i in numbers else ''}>{c}</{tag}>"
            for i, c in enumerate(cells)
        )
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(headings, "th")}</thead>\n<tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Labels of ours with what belongs to them, as HTML."""
    return f"<dl>{''.join(f'<dt>{label}</dt><dd>{value}</dd>' for label, value in pairs)}</dl>"


def bar(fraction: float | None, kind: str = "") -> str:
    """A horizontal bar for 0..1."""
    width = 0.0 if fraction is None else 100 * min(max(fraction, 0.0), 1.0)
    return f'<span class="track"><i class="{kind}" style="width:{width:.2f}%"></i></span>'


def swatch(rgb: Sequence[int]) -> str:
    """A small square of a colour."""
    red, green, blue = (int(value) for value in rgb)
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def picture(image: Image.Image, alternative: str, *, photograph: bool) -> str:
    """An image inside the page: a JPEG for photographs, else a PNG. alternative: our own words."""
    file = io.BytesIO()
    if photograph:
        image.convert("RGB").save(file, format="JPEG", quality=78)
    else:
        image.save(file, format="PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{alternative}" width="{image.width}" height="{image.height}"/>'
