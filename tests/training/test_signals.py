"""Signals to `emaseg train`: a lost terminal saves, nohup stays deaf, the second signal keeps what is saved."""

from __future__ import annotations

import importlib
import os
import pty
import signal
import sys
from pathlib import Path

import pytest

from emaseg.checkpoint import read_checkpoint
from tests.helpers import main, run, tiny
from tests.stress.common import ended, small_recipe, spawn

train = importlib.import_module("emaseg.cli.train")

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="POSIX signals"), pytest.mark.usefixtures("one_thread")]


def code_of(arguments: tuple[object, ...], log: Path, *, hook: str, signals: tuple[int, ...]) -> int:
    """Exit code of a training that gets signals when the function `module:name` is called."""

    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        module, _, name = hook.partition(":")
        target = importlib.import_module(module)
        whole = getattr(target, name)

        def interrupted(*given: object, **named: object) -> object:
            for signum in signals:
                os.kill(os.getpid(), signum)
            return whole(*given, **named)

        setattr(target, name, interrupted)

    code = ended(spawn(arguments, log, before))
    assert code is not None
    return code


@pytest.mark.parametrize("hook", ["emaseg.recipe:load_recipe_with_origins", "emaseg.training.train:open_datasets"])
@pytest.mark.parametrize(
    ("signum", "times"),
    [(signal.SIGHUP, 1), (signal.SIGHUP, 2), (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)],
)
def test_signals_while_it_starts(tmp_path: Path, signum: int, times: int, hook: str) -> None:
    """Protects the exit code: with a checkpoint there it is 75 from the first moment on, however often it is asked, and
    the checkpoint is untouched; without one a second signal is 130 or 143."""
    arguments = (*small_recipe(tmp_path), "--out", tmp_path / "run", "--resume")
    if times == 2 and signum != signal.SIGHUP:
        code = 130 if signum == signal.SIGINT else 143
        assert code_of(arguments, tmp_path / "log", hook=hook, signals=(signum,) * times) == code
        assert not (tmp_path / "run").exists()
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(checkpoint())
    assert code_of(arguments, tmp_path / "log", hook=hook, signals=(signum,) * times) == 75, (
        tmp_path / "log"
    ).read_text()
    assert (folder / "last.pt").read_bytes() == checkpoint()
    assert not (tmp_path / "run" / "lock").exists()


_SAVED: list[bytes] = []


def checkpoint() -> bytes:
    """The bytes of a checkpoint of the small recipe at step 1."""
    if not _SAVED:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            recipe = tiny("train.iterations=12", "train.threads=1")
            run(recipe, Path(folder) / "run", stop_after=1)
            _SAVED.append((Path(folder) / "run/checkpoints/last.pt").read_bytes())
    return _SAVED[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_a_checkpoint_is_written(tmp_path: Path, signum: int) -> None:
    """Protects the file and the exit code: the checkpoint is whole and new, nothing half-written stays, no exit 70."""
    arguments = (*small_recipe(tmp_path), "--out", tmp_path / "run", "--set", "train.save_seconds=1e9")

    def before() -> None:
        checkpoint_module = importlib.import_module("emaseg.checkpoint")
        writer = checkpoint_module._Writer.write
        sent: list[int] = []

        def write(self: object, data: object) -> object:
            if len(sent) < 2:
                sent.append(signum)
                os.kill(os.getpid(), signum)
            return writer(self, data)

        checkpoint_module._Writer.write = write

    assert ended(spawn(arguments, tmp_path / "log", before)) == 75, (tmp_path / "log").read_text()
    folder = tmp_path / "run/checkpoints"
    assert all(read_checkpoint(path).step > 0 for path in folder.glob("*.pt"))
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not (tmp_path / "run" / "lock").exists()


def test_nohup_stays_deaf(tmp_path: Path) -> None:
    """Protects runs that were started to outlive their terminal: an ignored SIGHUP stays ignored, the others do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.flag.is_set()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.flag.wait(5)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_hang_up_is_told_twice(tmp_path: Path) -> None:
    """Protects the save from a shell that repeats the system's SIGHUP: only another signal ends the command at once."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with train.stop_on_signals() as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.flag.wait(5)
            with pytest.raises(SystemExit) as leaving:
                os.kill(os.getpid(), signal.SIGTERM)
            assert leaving.value.code == 143
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_away(tmp_path: Path) -> None:
    """Protects a run whose window is closed, with bars being drawn on it: SIGHUP, every write fails, and the run saves
    after its step, is exit 75, and goes on with --resume."""
    arguments = [str(a) for a in small_recipe(tmp_path) if a != "-q"]
    arguments += ["--out", str(tmp_path / "run"), "--set", "train.iterations=500", "--set", "train.save_seconds=1e9"]
    child, terminal = pty.fork()
    if not child:
        code = 99
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            code = main(["train", *arguments])
        finally:
            os._exit(code)
    seen = b""
    while b"train" not in seen or b"/500" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    code = ended(child, 60)
    assert code == 75
    step = read_checkpoint(tmp_path / "run/checkpoints/last.pt").step
    assert step > 0
    assert f"interrupted after step {step}" in (tmp_path / "run/log.txt").read_text()
    assert not (tmp_path / "run" / "lock").exists()


def test_messages_that_find_no_room_do_not_end_a_run(tmp_path: Path) -> None:
    """Protects a run whose messages go to a full disk: it trains on without a word and is done."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    arguments = tuple(a for a in small_recipe(tmp_path) if a != "-q")

    def before() -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 2)

    code = ended(spawn((*arguments, "--out", tmp_path / "run"), tmp_path / "log", before))
    assert (tmp_path / "run/samples.png").is_file()
    assert code != 70
