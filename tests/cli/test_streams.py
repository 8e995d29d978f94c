"""Standard streams that are closed, full or without a reader: the work is done, the exit code tells of the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emaseg.cli.app import main
from PIL import Image

from tests.helpers import run, tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a POSIX shell"),
]

EMASEG = f"{sys.executable} -m emaseg.cli"
STATES = {
    "2>&-": "2>&-",
    "2>full": "2>/dev/full",
    "1>&-": ">&-",
    "1>full": ">/dev/full",
    "both": ">&- 2>&-",
    "all": "<&- >&- 2>&-",
    "0": "<&-",
}

# Runs commands as a fresh process would run them, each in a fork of one process that has imported PyTorch already:
# argv: a JSON list of [descriptors that are closed or full, arguments]. Prints the exit codes.
FORKS = """
import gc, json, os, sys
import numpy.ma, PIL.Image, torch, torch.utils.serialization
import torch._dynamo  # an optimizer's first step imports it
import emaseg.inference.predict_files, emaseg.training.train, emaseg.evaluation.evaluate, emaseg.reference
import emaseg.cli.progress, emaseg.cli.render, emaseg.engine
from emaseg.cli import main
torch.set_num_threads(1)
PIL.Image.init()

def apply(state, child):
    streams = {0: "stdin", 1: "stdout", 2: "stderr"}
    for number in (0, 1, 2):
        what = state.get(str(number))
        if what == "closed":
            os.close(number)
            setattr(sys, streams[number], None)
            setattr(sys, f"__{streams[number]}__", None)
        elif what is not None:
            os.dup2(what, number)

gc.freeze()
codes = []
full = os.open("/dev/full", os.O_WRONLY)
read, gone = os.pipe()
os.close(read)
null = os.open("/dev/null", os.O_RDWR)
for state, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        apply({"1": null, "2": null} | {k: {"full": full, "gone": gone}.get(v, v) for k, v in state.items()}, child)
        try:
            code = main(arguments)
        except BaseException:
            code = 99
        os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=1"), out)
    return out


def shell(line: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "EMASEG_OFFLINE": "1"},
    )  # fmt: skip


def picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("state", STATES)
def test_a_listing(state: str) -> None:
    """Protects scripts: results that nobody got are exit 4, whatever becomes of the messages, and never 70."""
    done = shell(f"{EMASEG} recipes --json {STATES[state]}")
    assert done.returncode == (4 if state in ("1>&-", "1>full", "both", "all") else 0)
    if state == "1>&-":
        assert done.stderr == "error: stdout is closed: the results could not be printed\n  try: leave >&- out\n"
    if state in ("2>&-", "2>full", "0"):
        assert len(json.loads(done.stdout)["recipes"]) > 40


@pytest.mark.parametrize("state", ["2>&-", "2>full", "both"])
def test_an_error_has_its_own_exit_code(state: str) -> None:
    """Protects from a usage error that looks like a broken disk because it could not be told."""
    assert shell(f"{EMASEG} train nonsense {STATES[state]}").returncode == 2


def test_work_is_done_whatever_happened_to_the_streams(trained: Path, tmp_path: Path) -> None:
    """Protects hours of work from `2>&-`, a full disk under the log, and a terminal that was closed."""
    pictures = tmp_path / "in"
    for name in ("a.png", "b.png", "c.png"):
        picture(pictures / name)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text((trained / "recipe.toml").read_text())
    states: list[tuple[dict[str, str], int, tuple[str, ...]]] = [
        ({"2": "closed"}, 0, ("train", "eval", "predict")),
        ({"2": "full"}, 0, ("predict",)),
        ({"2": "gone"}, 0, ("predict",)),
        ({"1": "closed"}, 4, ("eval", "predict")),
        ({"1": "full"}, 4, ("predict",)),
        ({"1": "gone"}, 0, ("predict",)),
        ({"0": "closed", "1": "closed", "2": "closed"}, 4, ("train", "eval", "predict")),
    ]
    jobs: list[tuple[dict[str, str], list[str]]] = []
    expected: list[int] = []
    files: list[Path] = []
    for number, (state, code, commands) in enumerate(states):
        for command in commands:
            out = tmp_path / f"{command}{number}"
            arguments, made = {
                "train": ([str(recipe), "--set", "train.iterations=1"], ["samples.png"]),
                "eval": ([str(trained)], ["metrics.json"]),
                "predict": ([str(pictures), "--weights", str(trained)], ["c_mask.png", "c_overlay.png"]),
            }[command]
            jobs.append((state, [command, *arguments, "--out", str(out), "--device", "cpu"]))
            expected.append(code)
            files += [out / name for name in made]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(jobs)], capture_output=True, text=True, timeout=280, check=True
    )
    assert json.loads(done.stdout) == expected
    assert [file for file in files if not file.is_file()] == []


def test_no_file_gets_the_number_of_a_closed_stream(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects results from messages: the first file to be opened would have got descriptor 1 or 2."""
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    arguments = f"predict a.png missing.png --weights {trained} --device cpu --out"
    assert main([*arguments.split(), "out"]) == 1
    assert shell(f"{EMASEG} {arguments} closed <&- >&- 2>&-", tmp_path).returncode == 1
    for name in ("a_mask.png", "a_overlay.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "closed" / name).read_bytes()


def test_a_file_of_the_calling_program_is_not_written_to(tmp_path: Path) -> None:
    """Protects a program that runs ours in its own process, with stdout closed and a file of its own in that place."""
    code = "f = open('own', 'w'); assert f.fileno() == 1; from emaseg.cli import main; import os; os._exit(main(['recipes']))"
    assert shell(f'{sys.executable} -c "{code}" >&-', tmp_path).returncode == 4
    assert (tmp_path / "own").read_bytes() == b""


def test_a_stream_that_cannot_wait_loses_nothing(tmp_path: Path) -> None:
    """Protects from BlockingIOError: programs in Node and ssh leave pipes behind that refuse instead of waiting."""
    code = (
        "import os, subprocess, sys, time\n"
        "read, write = os.pipe()\n"
        "os.set_blocking(write, False)\n"
        "command = [sys.executable, '-m', 'emaseg.cli', 'download-weights', '--list', '--json']\n"
        "child = subprocess.Popen(command, stdout=write)\n"
        "os.close(write)\n"
        "time.sleep(1)\n"
        "sys.stdout.write(open(read).read())\n"
        "sys.exit(child.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["weights"]


@pytest.mark.parametrize("columns", ["1", "0", "garbage", "1000000000", "²"])
def test_any_width_of_a_terminal(columns: str) -> None:
    """Protects tables and messages from a COLUMNS that rich cannot read or would draw for hours."""
    code = (
        "import os, pty, sys\n"
        "sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, '-m', 'emaseg.cli', 'recipes'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": columns, "LINES": columns, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:]
    assert b"voc_r50_d8" in done.stdout


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_that_can_do_nothing_gets_text(term: str | None) -> None:
    """Protects editors and logs that show a terminal without its codes."""
    code = (
        "import os, pty, sys\n"
        "sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, '-m', 'emaseg.cli', 'train', 'nonsense'])))"
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("TERM", "FORCE_COLOR")}
    env = inherited if term is None else {**inherited, "TERM": term}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 2
    assert b"error: no shipped recipe" in done.stdout
    assert b"\x1b" not in done.stdout


def test_ctrl_c_writes_nothing_twice(tmp_path: Path) -> None:
    """Protects lines of results from standing there twice: the interrupt comes right after the system took the bytes."""
    code = (
        "import importlib, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "streams = importlib.import_module('emaseg.cli.streams')\n"
        "with streams.guarded():\n"
        "    sys.setprofile(lambda frame, event, arg: event == 'c_return' and arg.__name__ == 'write'\n"
        "        and isinstance(arg.__self__, streams.Guarded) and (sys.setprofile(None), os.kill(os.getpid(), signal.SIGINT)))\n"
        "    try:\n"
        "        print('once', flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("once\ninterrupted\n", "")
