"""The options that every command shares, and what the error boundary must know of a running command.

Room: cli. Imports typer and emaseg.errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from emaseg.errors import RecipeError

INTERRUPTED = 130  # exit code after Ctrl-C
SCHEMA = 1  # of the JSON objects that commands print
_NAMES = ("str", "text", "path")  # typer's names of the types that take any word


class Command(typer.core.TyperCommand):
    """A command that refuses empty names, and whose help has no types and no braces.

    `REF`, not `{REF}` or `REF <str>`; `0 to 1`, not `0.0<=x<=1.0`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # of the shell's completion
            _check_names(self.params, typed)
        return rest

    def get_help(self, ctx: Any) -> str:
        text: str = super().get_help(ctx)
        text = re.sub(r"\{([A-Z|.]+)\}", r"\1", text)
        text = re.sub(r" <[a-z]+(\[[a-z]+\])?>(?=\s)", lambda kind: " " * len(kind[0]), text)  # keeps the columns
        text = re.sub(r"([\d.]+)<=x<=([\d.]+)", lambda limits: f"{float(limits[1]):g} to {float(limits[2]):g}", text)
        return re.sub(r"x>=([\d.]+)", r"at least \1", text)


def _check_names(parameters: Iterable[Any], typed: Mapping[str, Any]) -> None:
    """An empty name would read as "not given", as everything, or as a path as the current folder.

    Args:
        typed: the values as they stand on the command line; a path is "." only later. --set has a rule of its own.

    Raises:
        RecipeError: one is empty.
    """
    for parameter in parameters:
        value = typed.get(parameter.name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        if parameter.name != "overrides" and parameter.type.name in _NAMES and "" in values:
            option = parameter.param_type_name == "option"
            name = parameter.opts[0] if option else parameter.metavar.strip("[].").partition("|")[0]
            raise RecipeError(f"{name}: an empty name was given", "is it a shell variable that is not set?")


@dataclass(slots=True)
class Session:
    """What a command tells the error boundary while it runs; travels as the context's `obj`."""

    arguments: tuple[str, ...] = ()  # as they were typed, after the program's name
    verbose: bool = False  # show tracebacks
    log: Path | None = None  # where the traceback of a bug goes; None = a temporary file
    memory_hint: str = (
        "smaller images or batch, e.g. --set train.batch=4 or --set augment.crop=[256,256]; or another --device"
    )
    keeps_files: bool = False  # its work is in files; without: what it prints is all there is


def session_of(context: typer.Context, verbose: bool, *, keeps_files: bool = False) -> Session:
    """The session of this invocation, with the verbosity that the command was given."""
    session: Session = context.obj
    session.verbose = verbose
    session.keeps_files = keeps_files
    return session


def recipe_names(incomplete: str) -> list[str]:
    """For the shell's completion: the shipped recipes that begin so. Files are the shell's own affair."""
    from emaseg.resources import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def recipe_keys(incomplete: str) -> list[str]:
    """For the shell's completion: the keys that `--set` takes and that begin so."""
    from emaseg.recipe.keys import described_keys

    keys = dict.fromkeys(key for one in described_keys() for key in one.keys if ".N" not in key)
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        autocompletion=recipe_keys,
        metavar="KEY=VALUE",
        help="Change a recipe key, e.g. optim.lr=0.005 or backbone.kind=resnet101; repeatable.",
    ),
]
EMIterations = Annotated[
    int | None,
    typer.Option(
        "--em-iterations",
        metavar="T",
        min=1,
        help="EM iterations for each image [default: the recipe's model.em_iterations_eval].",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="auto|fp32|bf16|fp16",
        help="What the network computes in; auto: the recipe's inference.precision, else fp32. With -v, predict and "
        "eval say how far results are from fp32.",
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: minutes once, kept in the cache; pays on a GPU.")
]
Nproc = Annotated[
    int | None,
    typer.Option("--nproc", metavar="N", min=1, help="Use N processes of this machine, e.g. one for each GPU."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto (CUDA, else the CPU), cpu, cuda, cuda:N or mps.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail, and the traceback of an error.")]
