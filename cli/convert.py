"""`emaseg convert`: annotations of any tool into masks of class numbers.

Room: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from emaseg.errors import DataError, RecipeError, nearest
from emaseg.words import quoted_path

from .options import SCHEMA, Json, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emaseg.convert import Conversion, Left

_SHOWN = 8  # of what is skipped; convert.json has all
_MANY = 40  # classes; of more, those without an object get no line


def convert(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The folder of annotations and images, or one annotation file in it."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Write images/, masks/ and classes.txt there.")],
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="The annotations' format [default: recognised].")
    ] = "",
    overlap: Annotated[
        Literal["later", "earlier", "smaller", "ignore"],
        typer.Option(
            "--overlap",
            metavar="later|earlier|smaller|ignore",
            help="Which object lies on top; ignore = 255 where classes overlap.",
        ),
    ] = "later",
    unlabelled: Annotated[
        Literal["background", "ignore"],
        typer.Option(
            "--unlabelled", metavar="background|ignore", help="What pixels without an object are: class 0, or 255."
        ),
    ] = "background",
    empty: Annotated[
        Literal["background", "skip"],
        typer.Option(
            "--empty", metavar="background|skip", help="Images on which nothing is drawn: all background, or skipped."
        ),
    ] = "background",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make one mask of class numbers for each image from what annotation tools export, ready for `emaseg init`.

    \b
    Examples:
      emaseg convert annotated --out mine
      emaseg convert coco/instances.json --out mine --overlap smaller
      emaseg init mine --out mine.toml

    \b
    Formats:
      labelme, cvat (XML), supervisely, via, labelstudio (JSON), yolo (polygons)
      coco                polygons, run lengths, panoptic
      labelstudio-brush   PNGs
      masks               one binary mask for each class
      colours             RGB masks

    Nothing is resized. Images are hard links where the disk allows it, else copies. A second run goes on where one
    ended. Exit code 3 if an image had to be skipped because of an error; each is named, and all are in convert.json.
    """
    session_of(context, verbose, keeps_files=True)

    from emaseg.convert import FORMATS, Options
    from emaseg.convert import convert as run

    from .progress import Meter, show_reading
    from .render import print_json

    if form and form not in FORMATS:
        raise RecipeError(f"--format {form}: not a format; there are {', '.join(FORMATS)}", nearest(form, FORMATS))
    with Meter(quiet) as meter:
        done = show_reading(run(folder, out, Options(form, overlap, unlabelled, empty)), meter)
    if as_json:
        from emaseg.convert import report_json

        print_json({"schema": SCHEMA, **report_json(done)})
    else:
        _print(done, quiet)
    return 0 if done.ok else DataError.exit_code


def _print_left(done: Conversion, left: Sequence[Left], level: Literal["error", "warning"], remedy: str) -> None:
    """The first of what was skipped, with the reasons."""
    from .render import print_finding

    if left:
        more = [f"and {len(left) - _SHOWN:,} more, all in {done.out / 'convert.json'}"] * (len(left) > _SHOWN)
        lines = [f"{one.name}: {one.reason}" for one in left[:_SHOWN]]
        print_finding(level, f"skipped: {len(left):,}", [*lines, *more], remedy)


def _print(done: Conversion, quiet: bool) -> None:
    from .render import print_line, print_lines, print_table

    if not quiet:
        print_lines([f"{done.folder}: {done.format}", *done.notes])
    shown = [one for one in done.classes if one.pixels or one.objects or len(done.classes) <= _MANY]
    rows = [(str(c.value), c.name, f"{c.images:,}", f"{c.pixels:,}", f"{c.objects:,}") for c in shown]
    if len(shown) < len(done.classes):
        rows.append(("", f"({len(done.classes) - len(shown)} classes without an object)", "", "", ""))
    print_table(
        ("value", "class", "images", "pixels", "objects"), rows, numbers=("value", "images", "pixels", "objects")
    )
    _print_left(done, [one for one in done.left if one.fault], "error", "fix them and run again; the rest is kept")
    _print_left(
        done, [one for one in done.left if not one.fault], "warning", "convert them only if you want to train on them"
    )
    print_line()
    parts = ", ".join(f"{count:,} {split}" for split, count in sorted(done.splits.items()) if split)
    before = f", {done.kept:,} of them from before" if done.kept else ""
    print_line(f"{done.out}: {done.images:,} images with masks{f' ({parts})' if parts else ''}{before}")
    print_line(f"next: emaseg init {quoted_path(done.out)} --out {quoted_path(f'{done.out.resolve().name}.toml')}")
