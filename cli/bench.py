"""`emaseg bench`: how fast a network runs or trains on this machine.

Room: cli.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emaseg.errors import RecipeError

from .options import SCHEMA, Compile, Device, Json, Overrides, Precision, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.bench import Measured, Part, TrainMeasured
    from emaseg.models import Network
    from emaseg.recipe import Recipe
    from emaseg.reference import Resolved

_WIDE = 100  # columns of a terminal that show every column of a table
_NARROW = 76  # below, a table would break numbers
_VARIANCE = (
    4.0  # of the norms of a network with drawn weights: as drawn, each block doubles the sum, and fp16 overflows
)


def bench(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="A recipe, a run folder or a checkpoint; a recipe needs no weights here."),
    ],
    shape: Annotated[
        str, typer.Option("--shape", metavar="HxW,...", help="Image sizes, height and width.")
    ] = "512x512",
    batch: Annotated[str, typer.Option("--batch", metavar="B,...", help="Images at once.")] = "1",
    threads: Annotated[str, typer.Option("--threads", metavar="N,...", help="CPU threads [default: every core].")] = "",
    passes: Annotated[int, typer.Option("--passes", metavar="N", min=1, help="Measured passes, or steps.")] = 10,
    warm_up: Annotated[int, typer.Option("--warm-up", metavar="N", min=0, help="Passes before them.")] = 3,
    train: Annotated[
        bool, typer.Option("--train", help="Measure a training step of the recipe, by its stages, with its data.")
    ] = False,
    precision: Precision = "auto",
    compile_: Compile = False,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Measure how fast a network runs or trains here: time, memory, multiply-adds, parameters.

    The network runs as eval and predict run it, with the resize to the image's size.

    \b
    Examples:
      emaseg bench voc_r50_d8
      emaseg bench voc_r50_d8 --shape 512x1024 --precision bf16 --threads 1,2
      emaseg bench paper_voc_val_r101_emanet512 --shape 513x513 --json
      emaseg bench demo --train
    """
    session = session_of(context, verbose)
    smaller = "smaller images or batch: --set augment.crop=[256,256] or --set train.batch=2"
    session.memory_hint = f"measure {smaller if train else 'a smaller --shape or --batch'}, or another --device"
    if train:
        _check_training(context)
    sizes = [_size(text) for text in shape.split(",")]
    batches = _counts("--batch", batch)
    wanted = _counts("--threads", threads) if threads else []
    from emaseg.reference import check_precision_name

    check_precision_name(precision)
    recipe, resolved, notes = _recipe(reference, overrides, precision)

    from emaseg.bench import Case, environment, measure, measure_training, parts
    from emaseg.device import keep_freed_memory, pick_device, slow_precision

    from .progress import Meter
    from .render import print_json, print_lines, print_notes

    print_notes(notes, quiet)
    target = pick_device(device)
    print_notes(slow_precision(recipe.train.precision if train else recipe.inference.precision, target), quiet)
    surroundings = environment(target)
    content: dict[str, Any] = {"schema": SCHEMA, "recipe": recipe.name, "environment": surroundings}
    if not quiet and not as_json:
        print_lines([", ".join(f"{key} {value}" for key, value in surroundings.items())])
    if train:
        keep_freed_memory()  # as `emaseg train` does
        trained = measure_training(recipe, target, steps=passes, warm_up=max(1, warm_up))
        content["train"] = _train_json(trained)
        print_json(content) if as_json else _tell_training(trained)
        return 0
    network = _network(recipe, resolved)
    counted = parts(recipe, *sizes[0])
    cases = [
        Case(images, *size, recipe.inference.precision, count)
        for size in sizes
        for images in batches
        for count in wanted or [_cores()]
    ]
    results: list[Measured] = []
    with Meter(quiet) as meter:
        for result in measure(network, cases, target, passes=passes, warm_up=warm_up, compiled=compile_):
            results.append(result)
            meter.update("bench", len(results), len(cases), "")
    content["parts"] = [
        {"name": part.name, "parameters": part.parameters, "multiply_adds": part.multiply_adds} for part in counted
    ]
    content["cases"] = [result.json() for result in results]
    print_json(content) if as_json else _tell(recipe, counted, sizes[0], results)
    return 0


def _check_training(context: typer.Context) -> None:
    """A training step is the recipe's own: what says otherwise is one of its keys.

    Raises:
        RecipeError: an option was given that --train does not heed.
    """
    for name, option, value in (
        ("shape", "--shape", "augment.crop=[512,512]"),
        ("batch", "--batch", "train.batch=4"),
        ("threads", "--threads", "train.threads=2"),
        ("precision", "--precision", "train.precision=bf16"),
        ("compile_", "--compile", "train.compile=true"),
    ):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise RecipeError(f"{option}: --train measures the step of the recipe, by its keys", f"--set {value}")


def _size(text: str) -> tuple[int, int]:
    """
    Raises:
        RecipeError: not HEIGHTxWIDTH.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise RecipeError(f"--shape {text}: is not a size", "write height and width like 512x1024")
    return int(found[1]), int(found[2])


def _counts(option: str, text: str) -> list[int]:
    """
    Raises:
        RecipeError: not whole numbers from 1.
    """
    words = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9]\d{0,3}\s*", word) for word in words):
        raise RecipeError(f"{option} {text}: must be whole numbers from 1", f"write one or several: {option} 1,2")
    return [int(word) for word in words]


def _cores() -> int:
    from emaseg.threads import core_count

    return core_count()


def _recipe(reference: str, overrides: list[str], precision: str) -> tuple[Recipe, Resolved | None, tuple[str, ...]]:
    """The recipe, the weights that the reference means, and the notes. None: a recipe, measured as it is written; weights
    change no figure, and a run of it may be of an earlier version.

    Raises:
        RecipeError, WeightsError: as `resolve`; but a recipe needs no weights.
    """
    from dataclasses import replace

    from emaseg.exported.info import is_exported
    from emaseg.recipe import load_recipe_with_origins
    from emaseg.reference import holds_weights, resolve, with_precision
    from emaseg.resources import shipped_recipes

    if not holds_weights(reference) and (reference in shipped_recipes() or reference.endswith(".toml")):
        loaded = load_recipe_with_origins(reference, overrides)
        recipe = loaded.recipe
        if precision != "auto":
            recipe = replace(recipe, inference=replace(recipe.inference, precision=precision))  # type: ignore[arg-type]
        return recipe, None, tuple(loaded.notes)
    resolved = with_precision(resolve(reference, overrides=overrides), precision)
    if is_exported(resolved.weights):
        raise RecipeError(f"{reference}: an exported file", "measure the checkpoint that it was made from")
    return resolved.recipe, resolved, resolved.notes


def _network(recipe: Recipe, resolved: Resolved | None) -> Network:
    from emaseg.reference import open_network

    if resolved is not None:
        return open_network(resolved)
    from emaseg.models import build_model

    network = build_model(recipe).eval()
    for name, values in network.named_buffers():
        if name.endswith("running_var"):
            values.fill_(_VARIANCE)
    return network


def _tell(recipe: Recipe, counted: list[Part], size: tuple[int, int], results: list[Measured]) -> None:
    from emaseg.words import rate
    from emaseg.words import size as bytes_

    from .render import print_grid, print_line

    columns = ("part", "parameters", f"multiply-adds at {size[0]}x{size[1]}")
    sizes = [(p.name, f"{p.parameters / 1e6:.2f} M", f"{p.multiply_adds / 1e9:.1f} G") for p in counted]
    _print_rows(columns, sizes, columns[1:])
    print_line()
    headings = ("images", "precision", "threads", "images/s", "ms p50", "p90", "p99", "CPU ms", "peak memory")
    rows: list[tuple[str, ...]] = []
    for result in results:
        case = result.case
        times = (f"{1000 * result.latency(p):.1f}" for p in (50, 90, 99))
        cpu = "-" if result.cpu_seconds is None else f"{1000 * result.cpu_seconds:.1f}"
        peak = "-" if result.peak is None else bytes_(result.peak)
        name = f"{case.batch} of {case.height}x{case.width}"
        rows.append((name, case.precision, str(case.threads), rate(result.images_per_second), *times, cpu, peak))
    _print_rows(headings, rows, headings[2:], spare=("p90", "p99", "CPU ms"))
    published = recipe.published
    if published is not None and published.images_per_second:
        text = f"{published.images_per_second:g} images/s, {published.memory_gb or 0:g} GB in training"
        print_grid([("published", f"{text}, on {published.hardware}")])


def _print_rows(
    headings: Sequence[str], rows: Sequence[tuple[str, ...]], numbers: Sequence[str], spare: Sequence[str] = ()
) -> None:
    """A table on stdout; on a narrow terminal without the `spare` columns, on a narrower one a block for each row."""
    from .render import console, print_grid, print_line, print_table

    width = console(sys.stdout).width
    if width < _NARROW:
        for row in rows:
            print_line(row[0])
            print_grid([(f"  {heading}", cell) for heading, cell in zip(headings[1:], row[1:], strict=True)])
        return
    kept = [place for place, heading in enumerate(headings) if width >= _WIDE or heading not in spare]
    shown = [tuple(row[place] for place in kept) for row in rows]
    print_table([headings[place] for place in kept], shown, numbers, whole=headings[0])


def _train_json(trained: TrainMeasured) -> dict[str, Any]:
    return {
        "seconds": trained.stages,
        "steps": trained.steps,
        "batch": trained.batch,
        "crop": list(trained.crop),
        "peak_memory": trained.peak,
    }


def _tell_training(trained: TrainMeasured) -> None:
    from emaseg.words import size as bytes_

    from .render import print_table, print_wrapped

    whole = sum(trained.stages.values())
    rows = [(name, f"{1000 * s:.1f}", f"{100 * s / whole:.0f} %") for name, s in trained.stages.items()]
    rows.append(("step", f"{1000 * whole:.1f}", "100 %"))
    print_table(("stage", "ms", "share"), rows, ("ms", "share"), whole="stage")
    peak = "" if trained.peak is None else f"; {bytes_(trained.peak)} at most"
    crop = "{}x{}".format(*trained.crop)
    speed = f"{trained.batch / whole:.3g} images/s"
    print_wrapped(f"{trained.batch} crops of {crop}, {speed}; median of {trained.steps}{peak}", "  ")
