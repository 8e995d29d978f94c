"""`emaseg predict`: label maps for images.

Room: cli.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from emaseg.errors import DataError, RecipeError, SystemFault, WeightsError, nearest
from emaseg.words import bytes_of, counted, quoted

from .options import (
    INTERRUPTED,
    Compile,
    Device,
    EMIterations,
    Json,
    Overrides,
    Precision,
    Quiet,
    Verbose,
    recipe_names,
    session_of,
)
from .ranks import rank_of

if TYPE_CHECKING:
    from emaseg.inference.image_inputs import ImageInput
    from emaseg.inference.predict import Predictor
    from emaseg.inference.predict_files import ImageDone


Output = Literal["mask", "overlay", "color", "values", "probabilities", "confidence", "json"]
SAVES: tuple[Output, ...] = get_args(Output)
LARGEST = 3  # classes named on an image's line


def predict(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Images, folders, globs, @list.txt (one a line), or - for an image on stdin."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="REF",
            help="A run folder, a checkpoint, an exported file, a recipe's name (its released weights, else its newest run), "
            "or with --recipe a weight file [default: a released EMANet].",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            autocompletion=recipe_names,
            help="The recipe for a weight file that contains none.",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder for the results; - writes one mask to stdout.")
    ] = "predictions",
    save: Annotated[
        str,
        typer.Option(
            "--save",
            metavar="LIST",
            help="What to write for each image: mask, overlay, color, values (as your own masks have them), "
            "probabilities (.npz), confidence, json.",
        ),
    ] = "mask,overlay",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes", metavar="LIST", help="Label these classes only, e.g. person,car; the rest is ignore."
        ),
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(
            "--min-confidence", metavar="X", min=0.0, max=1.0, help="Set pixels with lower confidence to 255 (ignore)."
        ),
    ] = 0.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="K",
            min=1,
            help="With --save probabilities: keep the K most likely classes of each pixel, with their indices.",
        ),
    ] = None,
    bases: Annotated[
        str | None,
        typer.Option(
            "--bases",
            metavar="N|LIST",
            help="Also draw what the N most used bases attend to at every EM iteration (MemoryNet: what is read from the "
            "class memory); or those listed, e.g. 0,7.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the images, for N processes."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip images whose results are there, recognised by name and size.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Also replace existing files that predict did not write; never an input."),
    ] = False,
    em_iterations: EMIterations = None,
    precision: Precision = "auto",
    compile_: Compile = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Memory to stay within, e.g. 3G; larger images are predicted in tiles, with a warning "
            "[default: what the machine has free].",
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Label images with a trained model; a line for each image says what is in it.

    \b
    Examples:
      emaseg predict photo.jpg
      emaseg predict photo.jpg --weights runs/first
      emaseg predict holidays/ --weights runs/first --out labelled --json
      emaseg predict photo.jpg --recipe voc_r50_d8 --weights voc_r50_d8.pth
      emaseg predict - --weights runs/first --out - < photo.jpg > mask.png
      emaseg predict street/ --save mask,confidence --classes person,car --min-confidence 0.8
      emaseg predict photo.jpg --weights runs/first --bases 6
      emaseg predict @images.txt --shard 2/4 --resume
    """
    session = session_of(context, verbose, keeps_files=out != "-")
    session.memory_hint = (
        "set a limit, so that large images are predicted in tiles: --max-memory 2G; or another --device"
    )
    most = _memory(max_memory)
    wanted = _what_to_save(save)
    reference = recipe or weights
    if reference is None:
        _check_default()
    if top_k is not None and "probabilities" not in wanted:
        raise RecipeError(f"--top-k {top_k}: no probabilities are saved", "add --save mask,overlay,probabilities")
    drawn = None if bases is None else _which_bases(bases)
    more = (
        *(("--save", wanted not in (("mask",), ("mask", "overlay"))), ("--top-k", top_k is not None)),
        *(("--bases", drawn is not None), ("--json", as_json), ("--resume", resume), ("--overwrite", overwrite)),
    )
    folder = _folder(out, len(images), [option for option, given in more if given])
    from emaseg.data.files.signed import identities
    from emaseg.inference.image_inputs import find_images, shard, unread_files
    from emaseg.reference import (
        check_precision_name,
        device_for,
        holds_weights,
        open_engine,
        resolve,
        with_em_iterations,
        with_precision,
    )

    from .render import print_lines, print_notes

    # A wrong name is told at once: a recipe is opened in a moment, then the images are found, and only then weights are read.
    check_precision_name(precision)
    beside = weights if recipe else None
    late = reference is not None and holds_weights(reference) and beside is None
    resolved = None if reference is None or late else resolve(reference, weights=beside, overrides=overrides)
    inputs = find_images(images, folder)
    every = inputs
    if part is None and (rank := rank_of(None)).world > 1:  # torchrun or srun: each predicts its part
        inputs = shard(inputs, f"{rank.number + 1}/{rank.world}")
        if not quiet:
            process = f"process {rank.number + 1} of {rank.world} (the launcher's variables)"
            print_lines([f"{process}: {len(inputs):,} of {counted(len(every), 'image')}"])
    elif part is not None:
        inputs = shard(inputs, part)
    if folder is None and len(inputs) != 1:
        raise RecipeError(
            f"--out -: {len(inputs)} images, but stdout holds one mask", "name one image, or a folder with --out DIR"
        )
    if reference is not None and late:
        resolved = resolve(reference, overrides=overrides)
    if not quiet and (left := unread_files(images, folder)):
        print_lines(left)
    from emaseg.device import pick_device, slow_precision
    from emaseg.engine import engine_lines
    from emaseg.inference.predict import Predictor
    from emaseg.inference.predict_files import first_probe, predict_files

    target = pick_device(device)  # before anything is downloaded
    resolved = resolved or resolve(_default_model(quiet), overrides=overrides)
    print_notes(resolved.notes, quiet)
    if em_iterations is not None:
        resolved = with_em_iterations(resolved, em_iterations)
    resolved = with_precision(resolved, precision)
    print_notes(slow_precision(resolved.recipe.inference.precision, target), quiet)
    target, notes = device_for(resolved, target, device)
    print_notes(notes, quiet)
    first = first_probe(inputs, resolved.recipe) if verbose else None
    model = open_engine(resolved, target, compiled=compile_, probe=first)
    if verbose:
        print_lines(engine_lines(model))
    predictor = Predictor(model, resolved.recipe, target, max_memory=most)
    if folder is None:
        return _mask_to_stdout(predictor, inputs[0], class_names(classes, predictor.classes), min_confidence, quiet)
    kept = class_names(classes, predictor.classes)
    predictor.check_limits(kept, min_confidence, top_k)  # before the first image
    done = predict_files(
        predictor,
        inputs,
        folder,
        wanted,
        resume,
        classes=kept,
        min_confidence=min_confidence,
        top_k=top_k,
        bases=drawn,
        overwrite=overwrite,
        kept=() if inputs is every else identities(item.source for item in every),  # those of other processes, too
    )
    return _tell_each(done, len(inputs), as_json, quiet)


def _memory(text: str | None) -> int | None:
    """The bytes of --max-memory.

    Raises:
        RecipeError: it is no size.
    """
    if text is None:
        return None
    count = bytes_of(text)
    if not count:
        raise RecipeError(f"--max-memory {text}: is not a size in bytes", "write it like 3G, 1.5GB or 800M")
    return count


def _folder(out: str, images: int, more: Sequence[str]) -> Path | None:
    """Where the results go, None for stdout; looked at before anything else, not after the work.

    Args:
        images: how many were named. more: the options that ask for more than a mask.

    Raises:
        RecipeError: a file stands in the way, or stdout cannot take the mask.
    """
    from emaseg.resources import expanded

    if out != "-":
        path = expanded(out)
        there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
        if os.path.lexists(there) and not there.is_dir():
            hint = "--out is the folder for the results"
            if images == 1 and not more and there == path:
                hint += f"; for one mask in a file of your choice: --out - > {quoted(out)}"
            what = "a link to nothing" if there.is_symlink() and not os.path.exists(there) else "a file"
            raise RecipeError(f"--out {out}: {there} is {what}, not a folder", hint)
        return path
    if more or images != 1:
        ways = [f"leave {' and '.join(more)} out"] if more else []
        ways += ["name one image"] if images != 1 else []
        said = f", nothing of {' and '.join(more)}" if more else ""
        hint = f"{', '.join(ways)}; or name a folder with --out DIR"
        raise RecipeError(f"--out -: writes the mask of one image to stdout{said}", hint)
    if sys.stdout.isatty():
        raise RecipeError("--out -: refusing to write a PNG to the terminal", "send it to a file: --out - > mask.png")
    return None


def _check_default() -> None:
    """Before anything else: without any weights named, the default's must be here or to be had.

    Raises:
        WeightsError: says every way out.
    """
    from emaseg.resources import offline
    from emaseg.weights.cache import by_hand_advice, locate
    from emaseg.weights.released import default

    entry = default()
    if offline() and locate(entry) is None:
        raise WeightsError(
            f"no weights given; the default's ({entry.name}) are not here, and EMASEG_OFFLINE forbids downloading them",
            "add --weights RUN (a run folder of emaseg train) or --weights FILE --recipe RECIPE; "
            f"or unset EMASEG_OFFLINE; or {by_hand_advice(entry)}",
        )


def _default_model(quiet: bool) -> str:
    """The recipe of the default model, whose released weights are in the cache then; fetched at the first use."""
    from emaseg.weights.download import fetch
    from emaseg.weights.released import default

    from .progress import Meter, show_download

    entry = default()
    try:
        with Meter(quiet) as meter:
            show_download(fetch(entry), meter)
    except SystemFault as fault:
        raise SystemFault(fault.message, f"name a model of yours: --weights RUN; or {fault.hint}") from fault
    return entry.name


def _tell_each(images: Iterator[ImageDone], total: int, as_json: bool, quiet: bool) -> int:
    """A line on stdout for each image that went well, the others on stderr; 1 if there were any."""
    from emaseg.events import Note

    from .progress import Meter
    from .render import print_error, print_json, print_lines, print_note, print_wrapped

    done = failed = 0
    told = total == 1 or sys.stdout.isatty()  # the lines on stdout are progress enough
    try:
        with Meter(quiet or told) as meter:
            for done, image in enumerate(images, start=1):
                if image.error is not None:
                    failed += 1
                    print_error(image.error, image.hint, meter.out)
                if as_json:
                    print_json(image.json())
                elif image.error is None:
                    print_wrapped(_line(image), "  ")
                if image.tiles is not None and not quiet:
                    text = _tiled(image.image, image.width, image.height, image.tiles)
                    print_note(Note(text, warning=True), meter.out)
                meter.update("predict", done, total, f"{failed} failed" if failed else "")
    except KeyboardInterrupt:
        if done == 0:
            raise
        # Not the whole command: the shell may have made thousands of names of one pattern.
        print_error(f"interrupted after {done} of {total} images", "go on with the same command and --resume")
        return INTERRUPTED
    if failed:
        print_lines([f"{failed} of {total} images failed"])
    return 1 if failed else 0


def _tiled(name: str, width: int | None, height: int | None, tiles: str) -> str:
    return (
        f"{name}: {width} x {height} pixels do not fit into memory whole; predicted in {tiles}, which is "
        "another protocol than the recipe's; more memory: --max-memory"
    )


def _line(image: ImageDone) -> str:
    """photo.jpg -> out/photo_mask.png  sky 61.2%  tree 30.0%  road 8.8%"""
    written = next(iter(image.files.values()))
    shares = "  ".join(f"{name} {100 * share:.1f}%" for name, share in image.shares[:LARGEST])
    return f"{image.image} -> {written}  {shares}{'  (was there)' if image.skipped else ''}".rstrip()


def _which_bases(text: str) -> int | list[int]:
    """A number, or a list of numbers.

    Raises:
        RecipeError: neither.
    """
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise RecipeError(f"--bases {text}: give a number or a list of numbers", "--bases 6, or --bases 0,7,12")
    found = [int(number) for number in numbers]
    return found if "," in text else found[0]


def class_names(text: str | None, known: Sequence[str]) -> list[str]:
    """The names of `--classes`, which are parted by commas; a name that holds a comma itself counts as one."""
    names: list[str] = []
    rest = [part.strip() for part in (text or "").split(",")]
    while rest:
        fits = (n for n in range(len(rest), 0, -1) if ", ".join(rest[:n]) in known or ",".join(rest[:n]) in known)
        count = next(fits, 1)
        whole = ", ".join(rest[:count])
        names.append(whole if whole in known else ",".join(rest[:count]))
        del rest[:count]
    return [name for name in names if name]


def _mask_to_stdout(
    predictor: Predictor, item: ImageInput, classes: Sequence[str], min_confidence: float, quiet: bool
) -> int:
    from emaseg.data.files.bands import read_pixels
    from emaseg.events import Note
    from emaseg.inference.outputs import mask_png
    from emaseg.inference.prediction import Decoded

    from .render import console, print_error, print_note

    try:
        image = Decoded(read_pixels(item.source, item.name, predictor.bands))
        prediction = predictor.predict(image, classes=classes, min_confidence=min_confidence)
    except DataError as error:
        print_error(error.message, error.hint)
        return 1  # as for every image that fails
    if prediction.tiles is not None and not quiet:
        height, width = prediction.labels.shape
        print_note(Note(_tiled(item.name, width, height, prediction.tiles), warning=True), console())
    sys.stdout.buffer.write(mask_png(prediction.labels, predictor.palette))
    return 0


def _what_to_save(text: str) -> tuple[Output, ...]:
    """The words of `--save`, each once.

    Raises:
        RecipeError: a word that is none of them.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in SAVES:
            raise RecipeError(f"--save {text}: {word!r} is none of {', '.join(SAVES)}", nearest(word, SAVES))
    if not words:
        raise RecipeError("--save: nothing to write", f"use {','.join(SAVES)}")
    return tuple(output for output in SAVES if output in words)
