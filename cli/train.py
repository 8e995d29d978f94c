"""`emaseg train`: a recipe in, a run folder out.

Room: cli. Signals are caught here: the engine only looks at the flag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from emaseg.distributed.ranks import Rank, check_ranks
from emaseg.words import duration, quoted, quoted_path

from .options import SCHEMA, Device, Json, Nproc, Overrides, Quiet, Verbose, recipe_names, session_of
from .ranks import as_rank, launched, rank_of, tell_of_gpus

if TYPE_CHECKING:
    from emaseg.events import Finished, Forecast, Measuring, TrainEvent
    from emaseg.recipe import LoadedRecipe, Recipe
    from emaseg.recipe.data import Data

INTERRUPTED_WITH_CHECKPOINT = 75


def train(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help="A shipped recipe's name or a .toml file."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Run folder [default: runs/<recipe>/<time>].")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue RUN, or without --out the recipe's run that was written to last (the run of a RUN/recipe.toml).",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would happen.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="REF",
            help="Start from this model: a recipe's name (its released weights; if its row has none, its newest complete "
            "run), a run folder, a checkpoint or a weight file. The same as --set train.init_from.",
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Repeat to the bit on CUDA, too; slower. The same as --set train.deterministic=true.",
        ),
    ] = False,
    nproc: Nproc = None,
    overrides: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a recipe; Ctrl-C saves a checkpoint and --resume continues from it.

    \b
    Examples:
      emaseg train demo
      emaseg train voc_r50_d8 --dry-run
      emaseg train my.toml --out runs/mine --set optim.lr=0.005
      emaseg train my.toml --out runs/mine --resume
      emaseg train my.toml --init-from runs/first
      emaseg train voc_r50_d8 --nproc 8

    The run folder's path is the last line on stdout. Several nodes: torchrun ... -m emaseg.cli train RECIPE, or srun.
    """
    session = session_of(context, verbose, keeps_files=not dry_run)
    if deterministic:
        overrides = [*overrides, "train.deterministic=true"]
    rank = rank_of(nproc)
    output = Output(recipe, overrides, as_json, quiet, rank, device)
    if nproc and nproc > 1 and not dry_run:
        steps = _loaded(recipe, overrides, init_from, resume, verbose=False, quiet=True).recipe.train
        check_ranks(steps.batch, steps.ranks, nproc)
        return launched(session.arguments, nproc, device, saves=True)
    if not rank.leads:
        return 0 if dry_run else _follow(rank, device)  # rank 0 forecasts alone
    if dry_run:
        plain = _loaded(recipe, overrides, init_from, resume, verbose, quiet).recipe
        run = out or _known_run(recipe, plain.name) if resume else None
        return _dry_run(plain, run, device, output, nproc or rank.world)
    with stop_on_signals() as stop:  # before anything that takes long
        run, others = out, False
        try:
            others = out is not None and not resume and _can_resume(out)  # a run that this command will not touch
            with as_rank(rank, device):
                loaded = _loaded(recipe, overrides, init_from, resume, verbose, quiet)
                with _run_folder(out, recipe, loaded.recipe.name, resume, quiet) as run:
                    session.log = run / "log.txt"
                    return _train(loaded.recipe, run, resume, device, stop, output)
        except SystemExit:  # a second signal
            if run is None and resume:
                run = _known_run(recipe, Path(recipe).stem)
            if run is not None and not others and _can_resume(run):
                return INTERRUPTED_WITH_CHECKPOINT
            raise


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """The command as it was typed, for commands to continue with, and how to print."""

    recipe: str
    overrides: Sequence[str]
    as_json: bool
    quiet: bool
    rank: Rank
    device: str = "auto"


def _follow(rank: Rank, device: str) -> int:
    """Train as a rank that only computes: it reads no recipe and writes no file."""
    with stop_on_signals(quiet=True) as stop, as_rank(rank, device):
        from emaseg.device import keep_freed_memory, pick_device
        from emaseg.training.follow import follow

        keep_freed_memory()
        follow(pick_device(device), stop.flag)
    return 0


def _loaded(
    recipe: str, overrides: list[str], init_from: str | None, resume: bool, verbose: bool, quiet: bool
) -> LoadedRecipe:
    """The recipe; with -v the origin of every key is shown."""
    from emaseg.recipe import ShapesData, load_recipe_with_origins, toml_value
    from emaseg.resources import data_root

    from .render import print_grid, print_notes

    if init_from is not None:
        overrides = [*overrides, f"train.init_from={toml_value(init_from)}"]
    loaded = load_recipe_with_origins(recipe, overrides)
    print_notes(loaded.notes, quiet)
    # Before torch is imported: a wrong name is told at once.
    if loaded.recipe.train.init_from and not resume:
        from emaseg.weights.init_from import init_from_file

        init_from_file(loaded.recipe.train.init_from)
    if not isinstance(loaded.recipe.data, ShapesData):
        data_root(loaded.recipe.data.root)
    if verbose:
        print_grid(_origins(loaded), sys.stderr)
    return loaded


def _train(recipe: Recipe, run: Path, resume: bool, device: str, stop: Stop, output: Output) -> int:
    """Train, tell the result, and return the exit code."""
    from emaseg.device import keep_freed_memory, pick_device
    from emaseg.training.train import train as train_engine

    keep_freed_memory()
    target = pick_device(device)
    if not output.quiet:
        tell_of_gpus(target, device, output.rank, f"emaseg train {quoted(output.recipe)}")
    events = train_engine(recipe, run, resume=resume, device=target, stop=stop.flag)
    with contextlib.closing(events):
        finished = _show(events, output.quiet)
    if not finished.interrupted:
        _report(finished, recipe.data, output)
        return 0
    with _streams_may_fail():
        _report(finished, recipe.data, output)
    return INTERRUPTED_WITH_CHECKPOINT if _can_resume(run) else 128 + stop.signum  # without one: while it downloaded


def _can_resume(run: Path) -> bool:
    from emaseg.runs.folder import can_resume

    return can_resume(run)


def _show(events: Iterator[TrainEvent], quiet: bool) -> Finished:
    """Draw a run to its end. One whose terminal is gone, or whose messages find no room, goes on without a word."""
    from emaseg.events import Finished

    from .progress import show_training

    try:
        return show_training(events, quiet)
    except OSError:
        for event in events:  # nothing comes where the error was the run's own
            if isinstance(event, Finished):
                return event
        raise


@contextlib.contextmanager
def _streams_may_fail() -> Iterator[None]:
    """Within the block, and at the program's end, it does not matter whether anybody can read what is printed."""
    try:
        yield
        sys.stdout.flush()
    except (OSError, ValueError):
        for stream in (1, 2):
            _silence(stream)


def _report(finished: Finished, data: Data, output: Output) -> None:
    from .render import print_json, print_lines, print_path

    if not output.quiet:
        print_lines(_closing_lines(finished, output, data))
    if output.as_json:
        content = {"steps": finished.step, "best_miou": finished.best_miou, "interrupted": finished.interrupted}
        print_json({"schema": SCHEMA, "run": str(finished.run), **content})
    else:
        print_path(finished.run)


def _origins(loaded: LoadedRecipe) -> Iterator[tuple[str, str, str]]:
    """Every key of the recipe with its value and where that came from."""
    from emaseg.recipe import toml_value

    for key, origin in loaded.origins.items():
        value: object = loaded.recipe
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
        plain = dataclasses.is_dataclass(value) or value is None  # a section that was left out
        yield key, "-" if plain else toml_value(value), origin


def _dry_run(recipe: Recipe, run: Path | None, device: str, output: Output, ranks: int) -> int:
    """Show each finding of a dry run as soon as it is known.

    Raises:
        SystemFault: a step does not fit into the memory; the forecast is shown before.
    """
    from emaseg.device import keep_freed_memory, pick_device
    from emaseg.errors import SystemFault
    from emaseg.events import Forecast, Measuring, Note
    from emaseg.training.dry_run import dry_run

    from .render import print_grid, print_json, print_lines

    keep_freed_memory()
    gc.collect()
    gc.freeze()  # the collection before each measured step then need not look at all modules: half a second
    target = pick_device(device)
    plan: dict[str, str] = {}
    notes: list[str] = []
    forecast = Forecast((), 0)
    for event in dry_run(recipe, device=target, run=run, ranks=ranks):
        if isinstance(event, Note | Measuring):
            text = event.text if isinstance(event, Note) else _measuring_line(event)
            notes += [text] if isinstance(event, Note) else []
            if not output.quiet:
                print_lines([text])
            continue
        plan.update(event.lines)
        if not output.as_json:
            print_grid(event.lines)
            sys.stdout.flush()
        forecast = event if isinstance(event, Forecast) else forecast
    if output.as_json:
        print_json({"schema": SCHEMA, "recipe": recipe.name, "plan": plan, "notes": notes, **_forecast_json(forecast)})
    if forecast.fits is False:
        hint = forecast.remedy or "use a smaller augment.crop"
        raise SystemFault(f"{target}: a batch of {recipe.train.batch} does not fit into the memory", hint)
    return 0


def _measuring_line(event: Measuring) -> str:
    crops = f"{event.crops} crop{'s' * (event.crops > 1)} of {event.crop[0]}x{event.crop[1]}"
    how = ", activations recomputed" if event.recomputed else ""
    return f"measuring a step with {crops}{how}" + (f": about {duration(event.seconds)}" if event.seconds else "")


def _forecast_json(forecast: Forecast) -> dict[str, object]:
    memory = {"needed_bytes": forecast.needed, "available_bytes": forecast.available, "fits": forecast.fits}
    seconds = forecast.seconds_per_step
    return {
        "steps_left": forecast.steps_left,
        "seconds_per_step": seconds,
        "seconds_left": None if seconds is None else seconds * forecast.steps_left,
        "memory": {
            **memory,
            "measured": forecast.measured,
            "remedy": forecast.remedy,
            "less": [{"options": w.options, "needed_bytes": w.needed, "fits": w.fits} for w in forecast.less_memory],
        },
    }


@contextlib.contextmanager
def _run_folder(out: Path | None, recipe: str, name: str, resume: bool, quiet: bool) -> Iterator[Path]:
    """The folder to train in: the one given; to resume, the run whose own recipe was named, or else the one there that
    was written to last, if there is any; else a new one below runs/<recipe>, which another start cannot get as well."""
    known = out or (_known_run(recipe, name) if resume else None)
    if known is not None:
        yield known
        return
    from emaseg.resources import default_run_folder, runs_folder
    from emaseg.runs.lock import reserve

    if resume:
        from .render import print_notes

        print_notes((f"no run of {name} in {runs_folder(name)} to continue; for one elsewhere, add --out RUN",), quiet)
    with reserve(default_run_folder(name, datetime.now())) as run:
        yield run


def _known_run(recipe: str, name: str) -> Path | None:
    from emaseg.resources import runs_folder
    from emaseg.runs.folder import run_of, runs_by_time

    own = run_of(Path(recipe))
    if own is not None:
        return own
    return next(iter(runs_by_time(runs_folder(name))), None)


def _closing_lines(finished: Finished, output: Output, data: Data) -> list[str]:
    """How it ended, and commands to go on with."""
    from emaseg.evaluation.submit import layout_of

    run = quoted_path(finished.run)
    if finished.interrupted:
        changes = "".join(f" --set {quoted(change)}" for change in output.overrides)
        typed = quoted_path(output.recipe) if output.recipe.startswith("-") else quoted(output.recipe)
        ranks = f" --nproc {output.rank.world}" if output.rank.supervised else ""
        device = "" if output.device == "auto" else f" --device {quoted(output.device)}"
        again = f"emaseg train {typed} --out {run} --resume{ranks}{device}{changes}"
        return [f"interrupted after step {finished.step}; continue with:", f"  {again}"]
    best = "" if finished.best_miou is None else f"; best mIoU {100 * finished.best_miou:.2f}"
    state = "was complete already" if finished.already else "done"
    submit = not finished.scored and layout_of(data) is not None
    return [
        f"{state}: {finished.step} steps{best}",
        f"  emaseg eval {run}{'' if finished.scored else ' --split val'}",
        *([f"  emaseg eval {run} --submit results.zip"] if submit else []),
        f"  emaseg predict IMAGE --weights {run}",
        f"  samples: {finished.run / 'samples.png'}",
        *([f"  report: {page}"] if (page := finished.run / "report.html").is_file() else []),
    ]


@dataclasses.dataclass(slots=True)
class Stop:
    """The flag that the engine looks at after every step, and the signal that set it."""

    flag: threading.Event = dataclasses.field(default_factory=threading.Event)
    signum: int = signal.SIGTERM


@contextlib.contextmanager
def stop_on_signals(quiet: bool = False) -> Iterator[Stop]:
    """Within the block, Ctrl-C, SIGTERM and SIGUSR1 (Slurm's early warning) ask the run to save and end.

    So does SIGHUP, a lost terminal: nothing more is written there. Where it is ignored (nohup), it stays ignored.
    A second signal ends the command at once, by SystemExit so that half-written files are removed; a third kills it.
    SIGHUP is no second one: shell and system both send it for one terminal, and nobody who lost it can mean more.
    """
    stop = Stop()
    owner = os.getpid()
    hang_up = getattr(signal, "SIGHUP", None)
    terminals = [stream for stream in (1, 2) if _is_terminal(stream)]

    def ask(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked loading process: Ctrl-C reaches it too, but its parent decides
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        again = stop.flag.is_set() and signum != hang_up
        if signum == hang_up:
            for stream in terminals:  # to write there fails from now on
                _silence(stream)
        stop.signum = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        stop.flag.set()
        if again:
            signal.signal(signum, signal.SIG_DFL)
            raise SystemExit(128 + stop.signum)
        if quiet:
            return
        with contextlib.suppress(OSError):  # print is not safe in a handler; nobody may be reading
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    wanted = [signum for signum in wanted if signum != hang_up or signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, ask) for signum in wanted}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _is_terminal(stream: int) -> bool:
    try:
        return os.isatty(stream)
    except OSError:  # closed
        return False


def _silence(stream: int) -> None:
    """Send what is written to a file descriptor from now on nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != stream:  # else it was closed, and is open now
            os.dup2(nowhere, stream)
            os.close(nowhere)
