"""`emaseg init`: a recipe for a folder of images and masks.

Room: cli.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emaseg.errors import RecipeError, UserError
from emaseg.words import lines_of, printable, quoted_path

from .options import Device, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.starter import Machine


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the images and the masks.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the recipe there [default: to stdout].")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", metavar="DIR", help="The folder of the images, where it is not found.")
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option("--masks", metavar="DIR", help="The folder of the masks; --images and --masks go together."),
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
      emaseg init scans --images tiles/raw --masks tiles/annotated > scans.toml
      emaseg init /data/cracks --out cracks.toml --device cuda
      emaseg train cracks.toml

    Classes come from the values or colours of the masks and, where there is one, from a file such as classes.txt.
    The split comes from train and val folders or lists, else every fifth image is for evaluation. What was found and
    guessed is told on stderr and stands in the recipe's comments. Sizes suit --device: a GPU if there is one.
    """
    session_of(context, verbose, keeps_files=out is not None)
    if out is not None and os.path.lexists(out):
        raise RecipeError(f"--out {out}: already exists", "remove it, or name another file with --out")
    if out is not None and out.suffix != ".toml":
        raise RecipeError(f"--out {out}: a recipe's file ends in .toml", f"--out {quoted_path(f'{out}.toml')}")
    for option, value, other in (("--images", images, masks), ("--masks", masks, images)):
        if value == "" or (value is not None and other is None):
            raise RecipeError(f"{option} {value}: --images and --masks go together", "name both folders")
    if name:
        _check_name(name)

    from emaseg.files import write_text
    from emaseg.starter import start_recipe

    from .progress import Meter, show_reading
    from .render import print_lines, print_path, print_toml

    with _said_in_file(out), Meter(quiet) as meter:
        look, file = partial(_machine, device), "" if out is None else str(out)
        started = show_reading(start_recipe(folder, look, name, file, images or "", masks or ""), meter)
    if not quiet:
        print_lines(started.notes)
    if out is None:
        print_toml(started.text)
    else:
        write_text(out, started.text)
        print_path(out)
    return 0


@contextlib.contextmanager
def _said_in_file(out: Path | None) -> Iterator[None]:
    """`emaseg init FOLDER > file` has made an empty file before this program starts: where it fails, the file says why."""
    try:
        yield
    except UserError as error:
        if out is None and _into_a_file():
            from .render import print_toml

            lines = ["emaseg init failed, so there is no recipe here:", *lines_of(error.message)]
            lines += [f"try: {line}" for line in lines_of(error.hint) if line]
            print_toml("".join(f"# {printable(line)}\n" for line in lines))
        raise


def _into_a_file() -> bool:
    """Whether stdout is an ordinary file."""
    try:
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file of the system's
        return False


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
