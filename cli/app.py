"""The `emaseg` command: its sub-commands, the one error boundary, the exit codes.

Room: cli. Imports typer, the command modules (which import the engine lazily) and emaseg.errors.

    0 done                                    4 the machine: disk, memory, device, network
    1 ran, but the result is not acceptable   5 training diverged
    2 usage or recipe; nothing was started   70 a bug
    3 data or weights                        75 interrupted, a checkpoint is there: --resume
                                        130/143 interrupted (Ctrl-C, SIGTERM) without one
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emaseg import __version__
from emaseg.errors import PeerFailed, RecipeError, SystemFault, UserError, nearest
from emaseg.files import append_text
from emaseg.files import fault as file_fault

from .bench import bench
from .check_data import check_data
from .convert import convert
from .doctor import doctor
from .download_weights import download_weights
from .eval import evaluate
from .export import export
from .init import init
from .options import INTERRUPTED, Command, Session
from .predict import predict
from .ranks import RankEnd
from .recipes import recipes
from .runs import runs
from .streams import Streams, guarded
from .train import train

NOT_ACCEPTABLE = 1
BUG = 70
_COMPLETION = "_EMASEG_COMPLETE"  # the variable by which a shell asks for completions
_MACHINES = (  # errors of the system that are the machine's, also where no file is named
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE),
)

WELCOME = """\
emaseg trains, evaluates and runs EMANet and MemoryNet semantic segmentation from TOML recipes.

  emaseg train demo --out runs/first                a small network on drawn shapes; nothing to download
  emaseg eval runs/first                            its scores, class by class
  emaseg predict photo.jpg --weights runs/first     label an image of yours
  emaseg predict photo.jpg                          ... with the best released EMANet (downloads it once)
  emaseg recipes                                    every shipped recipe
  emaseg train --help                               options and more examples
"""

HELP = """\
EMANet and MemoryNet semantic segmentation from TOML recipes.

\b
Examples:
  emaseg train demo --out runs/first
  emaseg eval runs/first
  emaseg predict photo.jpg --weights runs/first
"""

app = typer.Typer(
    name="emaseg",
    help=HELP,
    rich_markup_mode=None,  # plain help: instant, and the same in a pipe
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", short_help="Train a recipe.")(train)
app.command("eval", short_help="Score a trained model on a labelled split.")(evaluate)
app.command("predict", short_help="Label images with a trained model.")(predict)
app.command("export", short_help="Write a trained model as ONNX, a .pt2 or plain weights, and compare.")(export)
app.command("download-weights", short_help="Download released weights.")(download_weights)
app.command("recipes", short_help="List the shipped recipes, print one, explain its keys.")(recipes)
app.command("runs", short_help="List the runs in a folder, and what to do next.")(runs)
app.command("check-data", short_help="Find everything that is wrong with a data set.")(check_data)
app.command("init", short_help="Write a recipe for a folder of images and masks.")(init)
app.command("convert", short_help="Make masks from what annotation tools export.")(convert)
app.command("doctor", short_help="Check whether this machine can do the work.")(doctor)
app.command("bench", short_help="Measure how fast a network runs or trains here.")(bench)
for _command in app.registered_commands:
    _command.cls = Command  # help without types and braces


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emaseg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(WELCOME, nl=False)


@functools.cache
def _program() -> Any:
    """The command line, put together once in a process, however often `main` is called there."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: this process's) and return its exit code; never raises for a user's error."""
    if arguments is None:  # this process is the program's own
        if _COMPLETION in os.environ:
            return _complete()
        _share_cores()
        end = RankEnd()
        end.code = run(_program(), sys.argv[1:])
        return end.code
    return run(_program(), list(arguments))


def _complete() -> int:
    """Answer the shell that asks for completions, as the script of --show-completion makes it do."""
    try:
        _program().main(args=[], prog_name="emaseg")
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else 1
    return 0


def _share_cores() -> None:
    """Let threads that wait for others of this process sleep after some microseconds, unless the user says how.

    GNU's OpenMP, PyTorch's on Linux, reads this when it is loaded. By itself a waiting thread spins for milliseconds;
    on a machine that others use, too, it spins away the time of the thread that it waits for: training steps took
    between 1.5 and 9 times as long (tests/benchmarks/bench_busy.py). Alone on a machine it makes no difference.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def run(command: Any, arguments: list[str]) -> int:
    """Run one click command inside the error boundary.

    Args:
        command: what `typer.main.get_command` returns; its functions return their exit code, None meaning 0.
        arguments: the command line after the program's name.

    Returns:
        The exit code.
    """
    with guarded() as streams:
        session = Session(tuple(arguments))
        try:
            with command.make_context("emaseg", arguments, obj=session) as context:
                code = command.invoke(context)
            sys.stdout.flush()  # of a stream that is not ours: a full disk or a closed pipe shows here
        except typer.Exit as finished:
            code = finished.exit_code
        except SystemExit as finished:
            code = finished.code
        except BaseException as error:  # noqa: BLE001  (this is the boundary: nothing passes it)
            code = _report(error, session, streams)
        code = code if isinstance(code, int) else 0
        failure = streams.failure()
        return code if failure is None else _undelivered(failure, code, session)


def _undelivered(failure: OSError, code: int, session: Session) -> int:
    """The exit code when results could not be written to stdout; the work itself is done and ended with `code`."""
    if isinstance(failure, BrokenPipeError):  # the reader closed the pipe early
        return code or (0 if session.keeps_files else NOT_ACCEPTABLE)
    from .render import print_error

    if failure.errno == errno.EBADF:
        fault = SystemFault("stdout is closed: the results could not be printed", "leave >&- out")
    else:
        fault = file_fault(failure, Path("stdout"), "writing the results")
    kept = "; what the command writes to files is complete" if session.keeps_files and not code else ""
    print_error(fault.message + kept, fault.hint)
    return code or fault.exit_code


# typer may carry its own click, whose classes have no public name; BadParameter's bases are them in every version
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _report(error: BaseException, session: Session, streams: Streams) -> int:
    """Tell `error` on stderr; returns the exit code."""
    if isinstance(error, BrokenPipeError) and streams.results is None:
        return _leave_quietly()
    from .render import print_error, print_traceback  # rich is worth its import only now

    if isinstance(error, PeerFailed):  # the other process has said why
        return error.exit_code
    if session.verbose:
        print_traceback(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        print_error("interrupted", "")
        return INTERRUPTED
    if isinstance(error, _UsageError):
        print_error(*_usage(error))
        return UserError.exit_code
    known = error if isinstance(error, UserError) else _system_fault(error, session.memory_hint)
    if known is not None:
        if known is not error and session.log is not None:  # perhaps a bug: a run's log can tell
            _write_log(error, session.log)
        print_error(known.message, known.hint)
        return known.exit_code
    log = _write_log(error, session.log)
    print_error(
        f"this is a bug in emaseg ({type(error).__name__}: {_first_line(error)})",
        f"please report it with the traceback in {log}" if log else "run again with -v and report the traceback",
    )
    return BUG


def _usage(error: Any) -> tuple[str, str]:
    """Message and hint of a click usage error."""
    context = error.ctx
    help_line = f"{context.command_path} --help" if context is not None else "emaseg --help"
    message = str(error.format_message()).rstrip(".")
    unknown = getattr(error, "option_name", None)
    if unknown is not None and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        message, suggestion = f"no such option: {unknown}", nearest(unknown, known)
    elif context is not None and context.parent is None and "No such command" in message:
        unknown = message.split("'")[1] if "'" in message else ""
        message, suggestion = f"no such command: {unknown}", nearest(unknown, context.command.commands)
    else:
        message, suggestion = message[:1].lower() + message[1:], ""
    return message, f"{suggestion} see {help_line}".strip()


def _system_fault(error: BaseException, memory_hint: str) -> UserError | None:
    """The machine's failures that reach this boundary raw: no memory, a full disk, a name that no file can have, nowhere
    to put temporary files (torch asks for a place as soon as it builds an optimiser)."""
    from emaseg.free_memory import is_out_of_memory

    text = str(error)
    if is_out_of_memory(error) or type(error).__name__ == "OutOfMemoryError":
        return SystemFault(f"out of memory ({_first_line(error) or type(error).__name__})", memory_hint)
    if isinstance(error, RuntimeError) and "busy or unavailable" in text:
        return SystemFault(
            f"the GPU cannot be used ({_first_line(error)})", "another program has it: wait, or --device cpu"
        )
    if isinstance(error, OSError) and ((name := _named(error)) or error.errno in _MACHINES):
        if error.errno == errno.ENAMETOOLONG:
            return RecipeError(f"{name}: is longer than the name of a file can be", "give a shorter one")
        return file_fault(error, Path(name or "a file"), "reading or writing it")
    if isinstance(error, FileNotFoundError) and "temporary directory" in text:  # of tempfile, which tries several
        return SystemFault(
            f"no folder for temporary files can be written ({error.strerror})",
            "free some space there, or name another folder: TMPDIR=/path",
        )
    return None


def _named(error: OSError) -> str:
    """The file that the system says it of; "" where it names none, or where the error is no answer of the system."""
    name = error.filename  # of an open file its number
    return os.fsdecode(name) if isinstance(error.errno, int) and isinstance(name, str | bytes | os.PathLike) else ""


def _write_log(error: BaseException, log: Path | None) -> Path | None:
    """Append the traceback to the run's log, or to a fresh temporary file; None when neither can be written."""
    from .render import traceback_lines

    text = "\n".join([*traceback_lines(error), ""])
    try:
        if log is not None and log.parent.is_dir():
            append_text(log, text)
            return log
    except (OSError, SystemFault):  # full, or a link to another file
        pass
    try:
        handle, name = tempfile.mkstemp(prefix="emaseg-", suffix=".log")
        os.close(handle)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
        return Path(name)
    except OSError:
        return None


def _leave_quietly() -> int:
    """The reader of our output is gone: say nothing, also not when the interpreter flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return NOT_ACCEPTABLE


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
