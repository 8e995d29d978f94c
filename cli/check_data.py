"""`emaseg check-data`: everything that is wrong with a data set, before it is trained on.

Room: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emaseg.errors import RecipeError

from .options import SCHEMA, Json, Overrides, Quiet, Verbose, recipe_names, session_of

if TYPE_CHECKING:
    from emaseg.check_data import DataReport, Finding

_SHOWN = 3  # examples of a finding; --json has more


def check_data(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="A shipped recipe's name or a TOML file."),
    ],
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Read N images of each split, evenly spread; 0 = all."),
    ] = 0,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Write samples in class colours: a page (.html) or a picture (.png)."
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Read all images and labels of a recipe's data set and tell everything that is wrong, with its remedy.

    \b
    Examples:
      emaseg check-data my.toml
      emaseg check-data voc_r50_d8 --set 'data.root="/data/VOC2012"' --sample 200
      emaseg check-data my.toml --sheet my.html
      emaseg check-data my.toml --json

    Exit code 1 when training would fail; 0 when it would not, warnings or none.
    """
    session_of(context, verbose)
    if sheet is not None:
        _check_ending(sheet)
    from emaseg.recipe import load_recipe_with_origins

    loaded = load_recipe_with_origins(recipe, overrides)

    from emaseg.check_data import check_data as check
    from emaseg.check_data import report_json

    from .progress import Meter, show_reading
    from .render import print_json, print_notes

    print_notes(loaded.notes, quiet)
    with Meter(quiet) as meter:
        report = show_reading(check(loaded.recipe, sample), meter)
    if as_json:
        print_json({"schema": SCHEMA, **report_json(report)})
    else:
        _print(report)
    if sheet is not None:
        _write_sheet(report, sheet, quiet)
    return 0 if report.ok else 1


def _check_ending(sheet: Path) -> None:
    if sheet.suffix.lower() not in (".html", ".png"):
        raise RecipeError(f"--sheet {sheet}: neither a page nor a picture", "let its name end in .html or .png")
    if not sheet.parent.is_dir():
        raise RecipeError(f"--sheet {sheet}: there is no folder {sheet.parent}", "make it, or choose another place")


def _write_sheet(report: DataReport, sheet: Path, quiet: bool) -> None:
    from emaseg.files import atomic, write_text
    from emaseg.report.data import data_page, data_sheet, thumbnails

    from .render import print_lines

    pictures = thumbnails(report)
    if sheet.suffix.lower() == ".html":
        write_text(sheet, data_page(report, pictures))
    else:
        with atomic(sheet) as file:
            data_sheet(report, pictures).save(file, format="PNG")
    if not quiet:
        print_lines([f"{sheet}: {len(pictures)} images with their labels"])


def _print(report: DataReport) -> None:
    from emaseg.check_data import WORDS

    from .render import print_line, print_table

    _print_classes(report)
    if report.findings:
        print_line()
        rows = [(f.level, WORDS[f.phase], f"{f.count:,}", _title(f)) for f in report.findings]
        print_table(("", "split", "number", "finding"), rows, numbers=("number",))
    for finding in report.findings:
        _print_finding(finding)
    print_line()
    print_line(_verdict(report))


def _title(finding: Finding) -> str:
    from emaseg.check_data import KINDS

    return KINDS[finding.kind]


def _print_classes(report: DataReport) -> None:
    """Share and number of masks of each class, a pair of columns for each phase."""
    from emaseg.check_data import WORDS, class_shares

    from .render import percent, print_grid, print_line, print_table

    phases = [one for one in report.phases if one.labels is not None]
    columns: list[tuple[str, ...]] = []
    headings = ["class"]
    for one in phases:
        if one.labels is None:
            continue
        headings += [f"{WORDS[one.phase]} %", "masks"]
        columns.append(tuple(map(percent, class_shares(one.labels))))
        columns.append(tuple(f"{count:,}" for count in one.labels.class_images))
    if phases:
        print_table(headings, zip(phases[0].classes, *columns, strict=True), numbers=headings[1:])
        print_line()
    lines = []
    for one in report.phases:
        read = f"{one.images:,} images" if one.chosen == one.images else f"{one.chosen:,} of {one.images:,} images"
        labels = one.labels
        none = "its labels are not published" if one.dataset.withheld_by else "no mask could be read"
        ignored = f", {percent(labels.ignored_share)} % of the pixels ignored" if labels else f", {none}"
        lines.append((WORDS[one.phase], f"{read} read{ignored}"))
    print_grid(lines)


def _print_finding(finding: Finding) -> None:
    """What, where (the first few), and the remedy."""
    from emaseg.check_data import WORDS

    from .render import print_finding

    more = finding.count - _SHOWN
    lines = list(finding.examples[:_SHOWN]) + ([f"and {more:,} more"] if more > 0 else [])
    print_finding(finding.level, f"{WORDS[finding.phase]}: {_title(finding)}", lines, finding.remedy)


def _verdict(report: DataReport) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    warned = len(report.findings) - errors
    if errors:
        return f"{report.recipe}: training would fail: {errors} error{'s' * (errors > 1)}, {_warnings(warned)}"
    return f"{report.recipe}: ready to train, {_warnings(warned)}"


def _warnings(count: int) -> str:
    return f"{count or 'no'} warning{'s' * (count != 1)}"
