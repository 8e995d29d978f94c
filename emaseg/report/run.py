"""report.html: one run on one page, or one evaluation where there is no run.

Room: report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from emaseg.data.dataset import Dataset
from emaseg.errors import UserError
from emaseg.evaluation.evaluate import compare_with_published, on_images, protocol, split_name
from emaseg.events import Evaluated, Note
from emaseg.files import write_text
from emaseg.metrics import details_of
from emaseg.recipe import Recipe, recipe_to_toml
from emaseg.report.charts import Line, chart, counted
from emaseg.report.history import History, read_history
from emaseg.report.page import block, document, facts, heading, text
from emaseg.report.sections import (
    Result,
    class_table,
    confusion_section,
    examples_section,
    headline,
    more_scores,
)
from emaseg.runs.folder import RunFolder, append_log
from emaseg.visual import UInt8
from emaseg.words import quoted


def result_of(recipe: Recipe, evaluated: Evaluated, classes: Sequence[str], palette: UInt8) -> Result | None:
    """What a page shows of an evaluation during training; None where nothing was counted."""
    if evaluated.tally is None:
        return None
    recipe = replace(recipe, inference=replace(recipe.inference, precision="fp32"))  # see compute.evaluating
    compared = on_images(compare_with_published(recipe, recipe), recipe.data, "eval", evaluated.scores.images)
    return Result(
        evaluated.scores,
        details_of(evaluated.tally),
        evaluated.tally,
        classes,
        palette,
        compared,
        protocol(recipe.inference),
        split=split_name(recipe.data, "eval"),
    )


def write_report(
    path: Path, recipe: Recipe, result: Result | None, run: Path | None = None, step: int | None = None
) -> None:
    """Write the page. run: the folder whose history it tells; None: there is none. step: that was evaluated.

    Raises:
        SystemFault: disk full, no permission.
    """
    history = History() if run is None else read_history(run)
    write_text(path, run_page(recipe, result, history, run.name if run else "", step))


def report_training(
    run: RunFolder, recipe: Recipe, dataset: Dataset, evaluated: Evaluated | None, step: int
) -> Iterator[Note]:
    """RUN/report.html as training goes on; evaluated: None where the images have no labels.

    Hours of training are worth more than a page: whatever goes wrong with it is a line in the log and a warning.
    """
    path = run.report
    try:
        result = None if evaluated is None else result_of(recipe, evaluated, dataset.classes, dataset.palette)
        write_report(path, recipe, result, run.root, step)
    except Exception as error:  # noqa: BLE001  (see above)
        problem = f"{path}: the page could not be written ({type(error).__name__}: {error})"
        with contextlib.suppress(UserError):  # a full disk takes no line either
            append_log(run, problem)
        yield Note(problem, warning=True)


def run_page(recipe: Recipe, result: Result | None, history: History, name: str, step: int | None) -> str:
    """The page as HTML. name: of the run's folder."""
    title = f"{recipe.name} · {name}" if name else recipe.name
    return document(title, _body(recipe, result, history, name, step))


def _body(recipe: Recipe, result: Result | None, history: History, name: str, step: int | None) -> Iterator[str]:
    yield f"<h1>{text(recipe.title or recipe.name)}</h1>"
    where = f", run {text(name)}" if name else ""
    at = f", evaluated after step {step:,}" if step is not None else ""
    yield f'<p class="soft">recipe {text(recipe.name)}{where}{at}</p>'
    if result is not None:
        yield headline(result)
    yield _curves(result, history)
    if result is None:
        yield '<p class="soft">The evaluation images have no labels here, so nothing is scored.</p>'
    else:
        yield class_table(result)
        yield confusion_section(result)
        yield examples_section(result)
        yield more_scores(result)
    yield _about(recipe, history)
    now = datetime.now().astimezone().isoformat(" ", timespec="seconds")
    yield f"<footer>Written by emaseg {text(now)}. This file holds everything that it shows.</footer>"


def _curves(result: Result | None, history: History) -> str:
    losses = [Line("all" if key == "loss" else key, points) for key, points in history.losses.items()]
    if len(losses) == 2:  # the sum and its only term
        losses = losses[:1]
    mious = [Line("measured", [(step, 100 * miou) for step, miou in history.mious])]
    published = None if result is None else result.comparison.miou
    if published is not None and history.mious:
        last = history.mious[-1][0]
        mious.append(Line("published", [(0, 100 * published), (last, 100 * published)], dashed=True))
    drawn = chart("Loss", losses) + chart("mIoU in percent", mious)
    return heading("Training") + f'<div class="charts">{drawn}</div>' if drawn else ""


def _about(recipe: Recipe, history: History) -> str:
    """What the run was."""
    pairs = [
        ("recipe", text(recipe.name)),
        ("data", text(f"{recipe.data.kind}, {getattr(recipe.data, 'root', 'drawn')}")),
    ]
    if recipe.published is not None:
        pairs.append(("published row", text(recipe.published.table)))
    if (best := history.best) is not None:
        pairs.append(("best mIoU", f"{100 * best[1]:.2f} after step {counted(best[0])}"))
    for number, start in enumerate(history.starts, start=1):
        pairs += _start(start, f"{number}. start" if len(history.starts) > 1 else "started")
    source = f"<details><summary>The whole recipe</summary>{block(recipe_to_toml(recipe))}</details>"
    return heading("What this was") + facts(pairs) + source


def _start(start: dict[str, Any], label: str) -> list[tuple[str, str]]:
    """When, with what command, on what machine, with which versions."""
    command, packages = start.get("command"), start.get("packages")
    words = " ".join(quoted(str(word)) for word in command) if isinstance(command, list) else ""
    versions = packages.items() if isinstance(packages, dict) else []
    machine = [start.get("gpu") or start.get("device"), f"{start.get('threads')} threads", start.get("platform")]
    return [
        (label, text(start.get("started", ""))),
        ("command", text(words)),
        ("machine", text(", ".join(str(part) for part in machine if part))),
        ("versions", text(", ".join(f"{name} {version}" for name, version in versions if version))),
    ]
