"""The error boundary: every failure becomes an exit code and one readable message on stderr, stdout stays clean."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from emaseg.errors import DataError, Diverged, RecipeError, SystemFault, UserError, WeightsError
from emaseg.words import Lines

app_module = importlib.import_module("emaseg.cli.app")
options = importlib.import_module("emaseg.cli.options")


def run(body: Callable[[], int | None], *arguments: str, log: Path | None = None) -> int:
    """The boundary around a throw-away command that runs `body`."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @app.command()
    def command(context: typer.Context, verbose: options.Verbose = False) -> int | None:
        options.session_of(context, verbose).log = log
        return body()

    code: int = app_module.run(typer.main.get_command(app), list(arguments))
    return code


def raising(error: BaseException) -> Callable[[], int | None]:
    def body() -> int | None:
        raise error

    return body


@pytest.mark.parametrize(
    ("kind", "code"),
    [(UserError, 2), (RecipeError, 2), (DataError, 3), (WeightsError, 3), (SystemFault, 4), (Diverged, 5)],
)
def test_a_users_error_is_told_in_two_lines_with_its_own_code(
    kind: type[UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(kind("a.toml:3: no such key", 'did you mean "lr"?'))) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == 'error: a.toml:3: no such key\n  try: did you mean "lr"?\n'


def test_an_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(DataError("gone")))
    assert capsys.readouterr().err == "error: gone\n"


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup is read into a message, and a long path is not broken into lines when it is piped."""
    path = "/data/[bold]x[/bold]/" + "very_long_folder/" * 30 + ":smile:.png"
    run(raising(DataError(f"{path}: crop = [3, 4]", "[/]")))
    assert capsys.readouterr().err == f"error: {path}: crop = [3, 4]\n  try: [/]\n"


def test_our_own_line_breaks_stay_and_those_of_names_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects messages of several lines, and their readers from lines that a file's name forges; also with -v."""
    error = DataError(Lines("a\nerror: forged", "  b\x1b[2J"), Lines("c\r", "d"))
    assert run(raising(error)) == 3
    expected = "error: a\\nerror: forged\n  b\\x1b[2J\n  try: c\\r\nd\n"
    assert capsys.readouterr().err == expected
    assert run(raising(error), "-v") == 3
    err = capsys.readouterr().err
    assert err.endswith(expected)
    assert all(line.startswith("  ") and "\x1b" not in line for line in err.removesuffix(expected).splitlines())


def test_names_that_the_terminal_cannot_encode_do_not_break_the_message() -> None:
    code = (
        "import importlib, sys, typer\n"
        "from emaseg.errors import DataError\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def command():\n    raise DataError('caf\\u00e9 \\udcff.png')\n"
        "run = importlib.import_module('emaseg.cli.app').run\n"
        "sys.exit(run(typer.main.get_command(app), []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == b"error: caf\\xe9 \\udcff.png\n"


def test_a_commands_return_value_is_the_exit_code() -> None:
    assert run(lambda: None) == 0
    assert run(lambda: 1) == 1
    assert run(lambda: 75) == 75


def test_a_second_signal_ends_with_the_signals_code() -> None:
    assert run(raising(SystemExit(143))) == 143


def test_ctrl_c_is_130_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        type("AcceleratorError", (RuntimeError,), {})("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("could not create a primitive"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_the_machines_fault_with_a_remedy(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory")
    assert "--set train.batch=" in err


def test_a_gpu_that_another_program_holds_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects people on shared machines from a request to report what only their neighbour can mend."""
    text = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be"
    assert run(raising(type("AcceleratorError", (RuntimeError,), {})(text))) == 4
    assert capsys.readouterr().err.startswith(
        "error: the GPU cannot be used (CUDA error: CUDA-capable device(s) is/are busy"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_forbidden_disk_is_the_machines_fault(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(OSError(number, os.strerror(number), "/mnt/x.pt"))) == 4
    assert capsys.readouterr().err.startswith("error: /mnt/x.pt: ")


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EACCES]
)
def test_what_the_system_says_of_no_name_is_the_machines_fault(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from "this is a bug" where a read or a write fails: the system names no file there."""
    assert run(raising(OSError(number, os.strerror(number)))) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: a file: ")
    assert ("ulimit -n" in err) == (number == errno.EMFILE)


@pytest.mark.parametrize("name", ["/mnt/x.pt", b"/mnt/x.pt", Path("/mnt/x.pt")])
def test_whatever_the_system_says_of_a_file_is_the_machines_fault(
    name: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from "this is a bug" on disks that have errors of their own."""
    assert run(raising(OSError(errno.ENOTCONN, "Transport endpoint is not connected", name))) == 4
    assert capsys.readouterr().err.startswith("error: /mnt/x.pt: Transport endpoint is not connected (")


def test_a_name_that_no_file_can_have_is_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from "this is a bug" for a slip of the hand: usage, exit 2, with the name."""
    with pytest.raises(OSError, match="too long") as caught:
        os.stat("x" * 300)
    assert run(raising(caught.value)) == 2
    assert capsys.readouterr().err == (
        f"error: {'x' * 300}: is longer than the name of a file can be\n  try: give a shorter one\n"
    )


def test_errors_that_are_no_answer_of_the_system_stay_bugs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects reports of bugs: a closed descriptor, or a library's own kind of OSError, is not the disk's fault."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    odd = OSError("odd")
    odd.filename = "http://x.org/a"
    for error in (odd, OSError(errno.EBADF, "Bad file descriptor", 5), OSError(errno.EBADF, "Bad file descriptor")):
        assert run(raising(error)) == 70
        assert "this is a bug" in capsys.readouterr().err


def test_disks_without_room_for_temporary_files_are_the_machines_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects people whose disks are all full from being told of a bug: the standard library's own error."""
    resource = pytest.importorskip("resource")

    def body() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            tempfile._get_default_tempdir()  # type: ignore[attr-defined]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert run(body) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: no folder for temporary files can be written (No usable temporary directory")
    assert "TMPDIR=" in err


def test_a_bug_is_70_and_its_traceback_goes_to_the_runs_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text("12:00 started\n")
    assert run(raising(ZeroDivisionError("division by zero")), log=log) == 70
    err = capsys.readouterr().err
    assert err.startswith("error: this is a bug in emaseg (ZeroDivisionError: division by zero)\n")
    assert str(log) in err
    assert "Traceback" not in err
    assert log.read_text().startswith("12:00 started\nTraceback")


def test_a_traceback_is_not_added_to_what_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects files elsewhere from a run folder of somebody's: its log.txt may be a link."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "log.txt").symlink_to("mine")
    assert run(raising(KeyError("k")), log=tmp_path / "log.txt") == 70
    (log,) = (tmp_path / "temporary").iterdir()
    assert str(log) in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine\n"


def test_a_bug_without_a_run_leaves_its_traceback_in_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(raising(KeyError("k")), log=tmp_path / "no_such_run" / "log.txt") == 70
    (log,) = tmp_path.iterdir()
    assert str(log) in capsys.readouterr().err
    assert "KeyError: 'k'" in log.read_text()


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(DataError("gone")), "-v") == 3
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: gone\n")


EMASEG = [sys.executable, "-m", "emaseg.cli"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_do_not_fit_on_the_disk_are_not_a_success() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*EMASEG, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 4
    assert "the disk is full" in done.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*EMASEG, "--help"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_colour_only_where_it_is_wanted() -> None:
    """Nothing but text in a pipe; FORCE_COLOR colours it, NO_COLOR wins over that."""

    def message(**env: str) -> str:
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        done = subprocess.run(
            [*EMASEG, "nonsense"],
            env={**plain, "TERM": "xterm", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stderr

    assert "\x1b" not in message()
    assert "\x1b[1;31m" in message(FORCE_COLOR="1")
    assert "\x1b[1;31m" not in message(FORCE_COLOR="1", NO_COLOR="1")
