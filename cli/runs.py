"""`emaseg runs`: what was trained here, and what to do next.

Room: cli. Needs no torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emaseg.errors import RecipeError

from .options import SCHEMA, Json, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.runs import RunSummary

_TOLD = 3  # interrupted runs, beside the newest run, for which the next command is shown
_WIDE = 100  # columns of a terminal that show when a run was last written to


def runs(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Where runs lie [default: runs].")] = "runs",
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List the runs in a folder, the newest first: what was trained, how far, how well, and what to do next.

    \b
    Examples:
      emaseg runs
      emaseg runs runs/voc_r50_d8
      emaseg runs --json

    mIoU is the best so far, in percent. A run that was interrupted goes on with --resume.
    """
    session_of(context, verbose)
    from emaseg.resources import expanded
    from emaseg.runs import list_runs

    from .render import console, print_json, print_line, print_table

    if folder == "":
        raise RecipeError("FOLDER: an empty name was given", "is it a shell variable that is not set?")
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


def _row(run: RunSummary) -> tuple[str, ...]:
    from .render import percent

    return (
        str(run.path),
        run.recipe or "?",
        f"{run.state} by {run.owner}" if run.owner else run.state,
        _progress(run),
        percent(run.best_miou),
        f"{run.changed:%Y-%m-%d %H:%M}",
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
