"""Other systems: everything imports, lists, forecasts and trains where Python lacks what Windows and macOS lack.

A process of its own hides the modules, functions and signals before anything is imported. That is no Windows, but every
place that takes one of them for granted fails here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import TINY

HIDDEN_MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
HIDDEN = {
    "os": (
        *("fork", "forkpty", "register_at_fork", "geteuid", "getuid", "getgid", "fchmod", "fchown", "pread", "pwrite"),
        *("sched_getaffinity", "sched_setaffinity", "sysconf", "posix_fadvise", "mkfifo"),
        *("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "killpg", "getpgid", "setsid", "nice"),
    ),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGSTOP", "setitimer"),
}

# Python's own library and PyTorch decide by sys.platform what they use, so they are imported first.
PREAMBLE = """
import multiprocessing.util, pathlib, shutil, subprocess, tempfile, tarfile, zipfile, asyncio, selectors, importlib
import numpy, torch, PIL.Image, h5py, typer, rich.console, signal, os, sys
multiprocessing.set_start_method("spawn")
for name in {modules!r}:
    sys.modules[name] = None
for module, names in {names!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
"""

EVERYTHING = """
import pkgutil, emaseg, importlib
for found in pkgutil.walk_packages(emaseg.__path__, "emaseg."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
import emaseg.cli
"""

RUN = """
main = importlib.import_module("emaseg.cli").main
codes = [main([text.format(folder={folder!r}) for text in line.split()]) for line in {lines!r}]
print("codes", codes)
"""

COMMANDS = (
    "recipes --json",
    "train {folder}/tiny.toml --dry-run",
    "train {folder}/tiny.toml --out {folder}/run --device cpu",
    "runs {folder} --json",
    "predict {folder}/run/samples.png --weights {folder}/run --out {folder}/out",
)


def hidden(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    preamble = PREAMBLE.format(modules=HIDDEN_MODULES, names=HIDDEN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EMASEG_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-c", preamble + code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(os.name == "nt", reason="hides what Windows does not have")
def test_all_modules_import_and_forecast_without_what_linux_alone_has(tmp_path: Path) -> None:
    """Protects macOS and Windows from file locks, signals, resource limits and fork that are taken for granted."""
    (tmp_path / "tiny.toml").write_text(TINY)
    commands = COMMANDS[:2]
    done = hidden(EVERYTHING + RUN.format(folder=str(tmp_path), lines=commands), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"codes {[0] * len(commands)}", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="hides what Windows does not have")
def test_training_with_loading_processes_runs_without_what_linux_alone_has(tmp_path: Path) -> None:
    """Protects the same: loading processes start anew instead of being forked, and a whole run comes to its end."""
    text = TINY.replace("iterations = 12", "iterations = 2").replace("workers = 0", "workers = 1")
    (tmp_path / "tiny.toml").write_text(text)
    done = hidden(EVERYTHING + RUN.format(folder=str(tmp_path), lines=COMMANDS), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"codes {[0] * len(COMMANDS)}", done.stderr
    (run,) = next(
        json.loads(line)["runs"] for line in done.stdout.splitlines() if line.startswith('{"schema": 1, "runs"')
    )
    assert (run["state"], run["step"]) == ("complete", 2)
    assert (tmp_path / "out" / "samples_mask.png").is_file()
