"""`emaseg export`: a trained model as a file for other programs, compared with the model before it is kept.

Room: cli.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import SCHEMA, Json, Overrides, Quiet, Verbose, recipe_names, session_of

if TYPE_CHECKING:
    from emaseg.exporting.export import Exported
    from emaseg.exporting.verify import Check, Tolerance


def export(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            autocompletion=recipe_names,
            help="A run folder, a checkpoint, or a recipe: its released weights, else its newest run, or --weights.",
        ),
    ],
    format_: Annotated[
        str,
        typer.Option("--format", metavar="onnx|torch|weights", help="ONNX, torch.export's .pt2 or a plain checkpoint."),
    ],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE", help="Weight file for a recipe; also others' formats.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="HxW", help="The only image size that the file will take.")
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Any image size [the default without --shape].")] = False,
    precision: Annotated[
        str, typer.Option("--precision", metavar="fp32|fp16|bf16|int8", help="What the file computes in.")
    ] = "fp32",
    include: Annotated[
        str,
        typer.Option(
            "--include", metavar="LIST", help="normalize: uint8 RGB goes in; argmax: class ids come out; or both."
        ),
    ] = "",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="DIR", help="Images that int8 learns its ranges from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="What to write [default: <recipe>.onnx, .pt2 or .pt].")
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option("--snippet", metavar="FILE", help="Write a Python program that runs the file without emaseg."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write a trained model as a file for other programs, or another system's weights as a checkpoint of ours.

    The written file is run and compared with the model; where they differ it is not kept (exit code 1).

    \b
    Examples:
      emaseg export runs/first --format onnx
      emaseg export runs/first --format onnx --include normalize,argmax --out model.onnx --snippet run.py
      emaseg export runs/first --format onnx --precision int8 --calibrate photos/ --out model_int8.onnx
      emaseg export runs/first --format torch --shape 512x1024
      emaseg export voc_r50_d8 --weights voc_r50_d8.pth --format weights
    """
    session = session_of(context, verbose, keeps_files=True)
    session.memory_hint = "free memory, or export for a smaller --shape"
    from emaseg.exporting.request import check_windows, make_request, snippet_target, target

    request = make_request(format_, precision, shape, dynamic=dynamic, include=include, calibrate=calibrate)

    from emaseg.reference import open_network, resolve

    from .render import print_json, print_notes

    resolved = resolve(reference, weights=weights, overrides=overrides)
    print_notes(resolved.notes, quiet)
    check_windows(request, resolved.recipe.inference)
    path = target(request, out, resolved.recipe.name)
    place = snippet_target(request, program, path)
    network = open_network(resolved)

    from emaseg.exporting.export import Exported
    from emaseg.exporting.export import export as export_engine

    from .progress import Meter

    with Meter(quiet) as meter:
        for event in export_engine(network, resolved.recipe, request, path):
            if isinstance(event, Exported):
                done = event
            else:
                meter.note(event)
    if done.passed and place is not None:
        _write_snippet(done, place)
    if as_json:
        print_json(_json(done, place))
    else:
        _tell(done, place, quiet)
    return 0 if done.passed else 1


def _write_snippet(done: Exported, place: Path) -> None:
    from emaseg.exporting.usage import snippet
    from emaseg.files import atomic

    assert done.info is not None  # snippet_target has refused --format weights
    with atomic(place) as file:
        file.write(f"{snippet(done.path, done.info)}\n".encode())


def _tell(done: Exported, place: Path | None, quiet: bool) -> None:
    """The comparisons, what to do with the file, and its path on stdout; or why there is none."""
    import textwrap

    from emaseg.exporting.usage import command, snippet
    from emaseg.words import quoted_path, size

    from .render import percent, print_error, print_lines, print_path

    if not done.passed:
        limits = _limits(done.tolerance)
        print_lines(_line(check, done.tolerance) for check in done.checks)
        print_error(
            f"{done.path}: not written: the exported network differs from the model by more than {limits}",
            "try a higher --precision, or more images for --calibrate; at fp32 this is a bug worth reporting",
        )
        return
    if not quiet:
        print_lines(_line(check, done.tolerance) for check in done.checks)
        if done.cost is not None:
            full, int8 = done.cost.full or 0.0, done.cost.quantised or 0.0
            measured = f"(fp32 {percent(full)}, int8 {percent(int8)}) on {done.cost.images} images"
            print_lines([f"8 bits cost {percent(full - int8)} points of mIoU {measured}"])
        lines = [f"{size(done.size)}, compared with the model and kept"]
        if done.info is not None:
            lines += [f"run it:  {command(done.path, done.info)}"]
            if place is not None:
                lines += [f"or without emaseg:  python {quoted_path(place)} IMAGE"]
            else:
                lines += ["or without emaseg (--snippet FILE writes this to a file):", ""]
                lines += [*textwrap.indent(snippet(done.path, done.info), "    ").split("\n"), ""]
        print_lines(lines)
    print_path(done.path)


def _line(check: Check, tolerance: Tolerance) -> str:
    """check 2 x 200 x 264: logits differ by 1.2e-06 of their range, 100.0000% of the pixels agree"""
    logits = "" if check.difference is None else f"logits differ by {check.difference:.1e} of their range, "
    verdict = "" if check.within(tolerance) else "  (too far)"
    size = f"{check.batch} x {check.height} x {check.width}"
    return f"check {size}: {logits}{100 * check.agreement:.4f}% of the pixels agree{verdict}"


def _limits(tolerance: Tolerance) -> str:
    return f"{tolerance.difference:g} of the logits' range, or in over {100 * (1 - tolerance.agreement):.2g}% of the pixels"


def _json(done: Exported, place: Path | None) -> dict[str, Any]:
    from emaseg.exporting.usage import command, snippet

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return {
        "schema": SCHEMA,
        "file": str(done.path) if done.passed else None,
        "bytes": done.size,
        "passed": done.passed,
        "checks": [
            {
                "batch": check.batch,
                "height": check.height,
                "width": check.width,
                "difference": finite(check.difference),
                "agreement": check.agreement,
            }
            for check in done.checks
        ],
        "tolerance": {"difference": done.tolerance.difference, "agreement": done.tolerance.agreement},
        "cost": None
        if done.cost is None
        else {"fp32_miou": done.cost.full, "int8_miou": done.cost.quantised, "images": done.cost.images},
        "command": None if done.info is None else command(done.path, done.info),
        "snippet": None if done.info is None else snippet(done.path, done.info),
        "snippet_file": str(place) if done.passed and place is not None else None,
    }
