"""Several runs side by side: what differs in their recipes, and in what they score. Never torch.

Room: report. Legend: R runs, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from emaseg.errors import RecipeError
from emaseg.files import read_bytes
from emaseg.recipe import Recipe, load_recipe, toml_value
from emaseg.report.charts import Line, chart
from emaseg.report.history import History, number, read_history
from emaseg.report.page import bar, document, heading, percent, table, text
from emaseg.runs.folder import RunFolder, find_run

_PLAIN = ("schema", "title")  # of a recipe: they change nothing
_LONGEST = 60  # letters of a value
_LISTED = "`emaseg runs` lists the runs here, `emaseg runs FOLDER` those in another folder"


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run. best: the mIoU of its best evaluation, 0..1, and the step. iou: of each class at that evaluation."""

    path: Path
    recipe: Recipe
    history: History
    iou: dict[str, float | None]

    @property
    def miou(self) -> float | None:
        return self.history.best[1] if self.history.best else None

    @property
    def step(self) -> int | None:
        return int(self.history.best[0]) if self.history.best else None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """R runs; the others are held against the first.

    keys: (key, R values as TOML) where not all are equal; "" where a run has no such key. classes: (name, R IoUs).
    """

    runs: tuple[ComparedRun, ...]
    keys: tuple[tuple[str, tuple[str, ...]], ...]
    classes: tuple[tuple[str, tuple[float | None, ...]], ...]


def compare_runs(paths: Sequence[Path]) -> RunComparison:
    """Read and compare run folders; a folder of runs stands for its newest complete one.

    Raises:
        RecipeError: one does not exist or is no run folder, or its recipe cannot be read.
    """
    runs = tuple(map(_read, paths))
    values = [dict(_flat("", run.recipe)) for run in runs]
    every = dict.fromkeys(key for own in values for key in own)
    rows = [(key, tuple(own.get(key, "") for own in values)) for key in every if _comparable(key, values)]
    names = dict.fromkeys(name for run in runs for name in run.iou)
    return RunComparison(
        runs,
        tuple((key, row) for key, row in rows if len(set(row)) > 1),
        tuple((name, tuple(run.iou.get(name) for run in runs)) for name in names),
    )


def _read(path: Path) -> ComparedRun:
    """A run, of a folder of runs the newest complete one."""
    if not path.exists():
        raise RecipeError(f"{path}: no such folder", _LISTED)
    path, _ = find_run(path)
    run = RunFolder(path)
    if not run.recipe.is_file():
        raise RecipeError(f"{path}: is not a run: it holds no recipe.toml, and no complete run is in it", _LISTED)
    history = read_history(path)
    return ComparedRun(path, load_recipe(run.recipe), history, _class_scores(run))


def _class_scores(run: RunFolder) -> dict[str, float | None]:
    """The IoU of each class at the best evaluation: of metrics.jsonl, else of the newest `emaseg eval`."""
    found = _scored(_text(run.metrics_lines).splitlines())
    files = [] if found else sorted(run.root.glob("eval/*/metrics.json"), reverse=True)
    found = found or next(filter(None, (_scored([_text(file)]) for file in files)), [])
    best = max(found, key=lambda row: number(row.get("miou")) or 0.0, default=None)
    rows = [] if best is None else best["per_class"]
    return {str(row.get("name")): number(row.get("iou")) for row in rows if isinstance(row, dict)}


def _scored(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Those of JSON texts that hold scores of classes, on the images of the recipe."""
    rows = [row for text in texts if isinstance((row := _object(text)).get("per_class"), list)]
    return [row for row in rows if row["per_class"] and not row.get("split")]


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def _object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(prefix: str, section: object) -> Iterator[tuple[str, str]]:
    """Every key of a recipe with its value as TOML."""
    for field in fields(section):  # type: ignore[arg-type]
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from _flat(f"{key}.", value)
        elif value is not None and key not in _PLAIN:
            yield key, toml_value(value)


def _comparable(key: str, values: Sequence[dict[str, str]]) -> bool:
    """Whether a key means the same in every run: sections of another kind have other keys, and differ by kind alone."""
    kind = f"{key.rpartition('.')[0]}.kind"
    return key == kind or len({own.get(kind, "") for own in values}) == 1


# --------------------------------------------------------------------------------------------------------- the page
def comparison_page(comparison: RunComparison) -> str:
    """The comparison as one HTML file."""
    runs = comparison.runs
    return document(f"{len(runs)} runs compared", _body(comparison))


def _body(comparison: RunComparison) -> Iterator[str]:
    runs = comparison.runs
    names = [f"{number}" for number in range(1, len(runs) + 1)]
    yield f"<h1>{len(runs)} runs compared</h1>"
    first = runs[0].miou
    rows = [
        (
            number,
            text(run.path),
            text(run.recipe.name),
            percent(run.miou),
            _away(run.miou, first) if number != "1" else "",
            bar(run.miou),
            "" if run.step is None else f"{run.step:,}",
        )
        for number, run in zip(names, runs, strict=True)
    ]
    headings = ("", "run", "recipe", "best mIoU", "to run 1", "", "at step")
    yield heading("Runs") + table(headings, rows, numbers=(3, 4, 6))
    lines = [[(s, 100 * v) for s, v in run.history.mious] for run in runs]
    losses = [run.history.losses.get("loss", []) for run in runs]
    drawn = chart("mIoU in percent", [Line(f"run {n}", p) for n, p in zip(names, lines, strict=True)])
    drawn += chart("Loss", [Line(f"run {n}", p) for n, p in zip(names, losses, strict=True)])
    yield heading("Training") + f'<div class="charts">{drawn}</div>' if drawn else ""
    differing = [(text(key), *(text(_short(value)) for value in values)) for key, values in comparison.keys]
    same = "<p>The recipes are equal.</p>"
    yield heading("What differs in the recipes") + (table(("key", *names), differing) if differing else same)
    cells = [(text(name), *_class_cells(values)) for name, values in comparison.classes]
    if cells:
        remark = "IoU in percent at the best evaluation; in brackets the difference to run 1."
        yield heading("Classes", remark) + table(("class", *names), cells, numbers=range(1, len(runs) + 1))


def _class_cells(values: Sequence[float | None]) -> list[str]:
    first, *others = values
    return [percent(first), *(f"{percent(value)} ({_away(value, first)})" for value in others)]


def _away(value: float | None, first: float | None) -> str:
    if value is None or first is None:
        return "–"
    away = 100 * (value - first)
    kind = "better" if away > 0.005 else "worse" if away < -0.005 else ""
    return f'<span class="{kind}">{away:+.2f}</span>'


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
