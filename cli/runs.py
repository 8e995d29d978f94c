"""`emaseg runs`: what was trained here, and what to do next.

Room: cli. Needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emaseg.errors import RecipeError
from emaseg.words import excerpt

from .options import SCHEMA, Json, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.runs.listing import RunSummary

_TOLD = 3  # interrupted runs, beside the newest run, for which the next command is shown
_LONGEST = 28  # letters of a recipe's value beside others
_WIDE = 100  # columns of a terminal that show when a run was last written to


def runs(
    context: typer.Context,
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="FOLDER|RUN...", help="Where runs lie [default: runs], or runs to compare."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Of a comparison: also write it as a page, e.g. a.html."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List the runs in a folder, the newest first: what was trained, how far, how well, and what to do next. Of several
    runs, compare them: what differs in their recipes, their mIoU, and their classes.

    \b
    Examples:
      emaseg runs
      emaseg runs runs/voc_r50_d8
      emaseg runs --json
      emaseg runs runs/first runs/second
      emaseg runs runs/demo/* --out demos.html

    mIoU is the best so far, in percent. A run that was interrupted goes on with --resume.
    """
    session_of(context, verbose)
    from emaseg.resources import expanded
    from emaseg.runs.listing import list_runs

    from .render import console, print_json, print_line, print_table

    if folders and len(folders) > 1:
        return _compare([expanded(name) for name in folders], out, as_json)
    if out is not None:
        raise RecipeError("--out: a page is written of a comparison", "name two runs or more")
    folder = folders[0] if folders else "runs"
    found = list_runs(expanded(folder))
    if as_json:
        print_json({"schema": SCHEMA, "runs": [_entry(run) for run in found]})
        return 0
    headings: tuple[str, ...] = ("run", "recipe", "state", "progress", "best mIoU", "last written")
    rows = [_row(run) for run in found]
    if console(sys.stdout).width < _WIDE:
        headings, rows = (headings[0], *headings[2:5]), [(row[0], *row[2:5]) for row in rows]
    print_table(headings, rows, numbers=("best mIoU",), whole="run")
    waiting = [run for run in found[1:] if run.state == "interrupted"]
    for run in (found[0], *waiting[:_TOLD]):
        print_line()
        print_line(f"next, for {run.path}:")
        print_line(f"  {run.next}")
    return 0


def _compare(paths: Sequence[Path], out: Path | None, as_json: bool) -> int:
    """What differs between runs, on stdout and as a page."""
    from emaseg.files import write_text
    from emaseg.report.compare import compare_runs, comparison_page

    from .render import print_grid, print_json, print_line, print_path, print_table

    found = compare_runs(paths)
    if as_json:
        runs = [
            {"run": str(run.path), "recipe": run.recipe.name, "miou": run.miou, "step": run.step} for run in found.runs
        ]
        keys = [{"key": key, "values": list(values)} for key, values in found.keys]
        classes = [{"name": name, "iou": list(values)} for name, values in found.classes]
        print_json({"schema": SCHEMA, "runs": runs, "differing_keys": keys, "per_class": classes})
    else:
        numbers = [str(number) for number in range(1, len(found.runs) + 1)]
        print_grid([(number, str(run.path)) for number, run in zip(numbers, found.runs, strict=True)])
        print_line()
        print_table(("recipe key", *numbers), [(key, *map(_value, values)) for key, values in found.keys])
        print_line()
        rows = [("mIoU", [run.miou for run in found.runs]), *found.classes]
        print_table(("IoU, best evaluation", *numbers), [(name, *_scores(row)) for name, row in rows], numbers=numbers)
    if out is not None:
        write_text(out, comparison_page(found))
        if not as_json:
            print_path(out)
    return 0


def _value(toml: str) -> str:
    return excerpt(toml, _LONGEST)


def _scores(values: Sequence[float | None]) -> list[str]:
    """IoUs in percent, those after the first with their difference to it."""
    from .render import percent

    first, *others = values
    cells = [percent(first)]
    for value in others:
        away = "" if value is None or first is None else f" ({100 * (value - first):+.2f})"
        cells.append(percent(value) + away)
    return cells


def _row(run: RunSummary) -> tuple[str, ...]:
    from .render import percent

    return (
        str(run.path),
        run.recipe or "?",
        f"{run.state} by {run.owner}" if run.owner else run.state,
        _progress(run),
        percent(run.best_miou),
        f"{run.changed:%Y-%m-%d %H:%M:%S}",
    )


def _progress(run: RunSummary) -> str:
    """`step 400 of 1200`; `epoch 2 of 4`, where the recipe counts epochs."""
    if run.total is None:
        return f"step {run.step}"
    done = run.step if run.unit == "steps" else run.epoch
    return f"{run.unit.removesuffix('s')} {done} of {run.total}"


def _entry(run: RunSummary) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "recipe": run.recipe or None,
        "state": run.state,
        "step": run.step,
        "epoch": run.epoch,
        "total": run.total,
        "unit": run.unit,
        "best_miou": run.best_miou,
        "last_written": run.changed.astimezone().isoformat(timespec="seconds"),
        "owner": run.owner or None,
        "next": run.next,
    }
