"""`emaseg init`: a recipe for a folder of images and masks.

Room: cli.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emaseg.errors import RecipeError
from emaseg.words import quoted_path

from .options import Device, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.starter import Machine


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the images and the masks.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the recipe there [default: to stdout].")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The recipe's name [default: the folder's].")
    ] = "",
    device: Device = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Look through a folder of images and masks and print a complete recipe that `emaseg train` runs as it is.

    \b
    Examples:
      emaseg init photos > photos.toml
      emaseg init /data/cracks --out cracks.toml --device cuda
      emaseg train cracks.toml

    Classes come from the values or colours of the masks and, where there is one, from a file such as classes.txt.
    The split comes from train and val folders or lists, else every fifth image is for evaluation. What was found and
    guessed is told on stderr and stands in the recipe's comments. Sizes suit --device: a GPU if there is one.
    """
    session_of(context, verbose, keeps_files=out is not None)
    if out is not None and os.path.lexists(out):
        raise RecipeError(f"--out {out}: is there already", "choose another name, or remove it")
    if out is not None and out.suffix != ".toml":
        raise RecipeError(f"--out {out}: a recipe's file ends in .toml", f"--out {quoted_path(f'{out}.toml')}")
    if name:
        _check_name(name)
    machine = _machine(device)

    from emaseg.files import write_text
    from emaseg.starter import start_recipe

    from .progress import Meter, show_reading
    from .render import print_lines, print_path, print_toml

    with Meter(quiet) as meter:
        started = show_reading(start_recipe(folder, machine, name, "" if out is None else str(out)), meter)
    if not quiet:
        print_lines(started.notes)
    if out is None:
        print_toml(started.text)
    else:
        write_text(out, started.text)
        print_path(out)
    return 0


def _check_name(name: str) -> None:
    import re

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise RecipeError(f"--name {name}: letters, digits and _ - + . only", "the run folder carries it")


def _machine(device: str) -> Machine:
    """What there is to train on."""
    from emaseg.device import pick_device
    from emaseg.starter import Machine

    target = pick_device(device)
    if target.type == "cuda":
        import torch

        return Machine(memory_gb=torch.cuda.get_device_properties(target).total_memory / 1e9)
    return Machine(memory_gb=8.0 if target.type == "mps" else 0.0)
