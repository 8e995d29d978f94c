"""The fuzz harness in small: files that are read hold by default, records of runs with -m slow, and the harness sees what it is there to see."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fuzz.campaign import Campaign
from tests.fuzz.seeds import make_apart
from tests.fuzz.targets import TARGETS, damaged

READ = ("checkpoint", "recipe", "foreign", "packed", "sbd", "cocostuff", "mask", "png")
CONTINUED = ("metrics", "environment", "last")  # of a run that is trained first, and continued for each case
CASES = 3  # of each

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cage is made of Linux's tools")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The valid files, and PyTorch on one thread as the harness has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fuzz") / "seeds"
    make_apart(folder, exports=False, trained=False)
    yield folder
    torch.set_num_threads(threads)


def campaign(seeds: Path, tmp_path: Path, limit: float = 60) -> Campaign:
    return Campaign(seeds, tmp_path / "work", tmp_path / "kept", seed=1, limit=limit)


@pytest.mark.parametrize("targets", [READ, pytest.param(CONTINUED, marks=pytest.mark.slow)], ids=["read", "continued"])
def test_damaged_files_are_refused_or_read_right(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """Protects from strangers' files: no bug, no crash, nothing run, no hang, no wrong result behind a digest.

    In a process of its own: a fork of this one would have its threads' locks and autograd's state.
    """
    numbers = ["--cases", str(CASES), "--minutes", "4", "--jobs", "1", "--limit", "60"]
    command = [sys.executable, "-m", "tests.fuzz", *numbers, "--targets", ",".join(targets), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_is_a_function_of_its_number(seeds: Path) -> None:
    """Protects the promise that --case runs a finding again; number 0 is the valid file."""
    for name in TARGETS:
        if not (seeds / TARGETS[name].file).exists():
            continue
        assert damaged(name, 0, 1, seeds)[0] == (seeds / TARGETS[name].file).read_bytes()
        for number in range(1, 4):
            assert damaged(name, number, 1, seeds) == damaged(name, number, 1, seeds)
        assert damaged(name, 1, 1, seeds) != damaged(name, 1, 2, seeds) != damaged(name, 2, 2, seeds)


EVIL = {
    1: ("executed: os.system", lambda: os.system("true")),
    2: ("executed: subprocess.Popen", lambda: subprocess.run(["true"], check=True)),
    3: ("executed: open /", lambda: Path("../outside").write_text("x")),
    4: ("executed: socket.connect", lambda: socket.socket().connect_ex(("127.0.0.1", 9))),
    5: ("exit 70", lambda: 70),
    6: ("died: -11", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    7: ("hang", lambda: any(iter(int, 1))),
    8: ("exit 999", lambda: {}["x"]),
    9: ("control character", lambda: print("\x1b[31m")),
    10: ("exit 3 without a word", lambda: 3),
    11: ("executed: exec", lambda: exec(compile("pass", "stranger", "exec"))),  # noqa: S102
    12: ("silent", lambda: print("another result")),
    13: ("executed: os.rename", lambda: os.rename("weights.pt", "../moved.pt")),
}


def test_the_harness_sees_what_must_not_be(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a blind harness: a command that does each forbidden thing, one a case, is found out every time."""
    numbers = {damaged("checkpoint", number, 1, seeds)[0]: number for number in EVIL}

    def command(arguments: list[str]) -> int:
        number = numbers.get(Path(arguments[3]).read_bytes(), 0)
        code = EVIL[number][1]() if number else 0
        return code if number in (5, 10) else 0

    monkeypatch.setattr(importlib.import_module("emaseg.cli"), "main", command)
    watched = campaign(seeds, tmp_path, limit=1)
    watched.run(["checkpoint"], seconds=120, most=max(EVIL), jobs=2)
    tally = watched.tallies["checkpoint"]
    assert tally.cases == len(EVIL)
    kept = {int(path.name.split("-")[1]): (path / "finding.txt").read_text() for path in watched.kept.iterdir()}
    for number, (word, _) in EVIL.items():
        assert word in kept[number], (number, word)
        assert f"--case checkpoint {number} --seed 1" in kept[number]
