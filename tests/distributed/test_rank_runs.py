"""Runs on several processes, started as people start them: the same result, one message, no process left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emaseg.data.pipeline.loading import epoch_order
from emaseg.data.sets.build import build_dataset
from emaseg.recipe import load_recipe, recipe_to_toml
from tests.data.made import real
from tests.helpers import TINY, equal, tiny
from tests.training.test_resume import own_data

pytestmark = pytest.mark.slow

TOO_LONG = 280.0  # seconds; imports take long on a machine at work
AFTER = 10.0  # seconds in which nothing is left
EXACT = ("--set=model.dropout=0.0", "--set=optim.lr=0.001")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def start(*arguments: object, python: tuple[str, ...] = ("-m", "emaseg.cli")) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; nothing of it is left soon after."""
    family = list(descendants(process.pid))
    out, err = process.communicate(timeout=TOO_LONG)
    end = time.monotonic() + AFTER
    while any(map(alive, family)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, family))
    return process.returncode, out, err


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rank_pid(process: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank, once it is there."""
    end = time.monotonic() + TOO_LONG
    while time.monotonic() < end:
        for pid in descendants(process.pid):
            if (
                f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{pid}/environ").read_text()
                and b"emaseg.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                return pid
        time.sleep(0.1)
    raise AssertionError(f"no rank {rank}")


def wait_for(path: Path) -> None:
    end = time.monotonic() + TOO_LONG
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert path.exists()


def messages(err: str) -> list[str]:
    return re.findall(r"^error: .*", err, re.MULTILINE)


def last(run: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
    return model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[key].double(), b[key].double(), rtol=1e-3, atol=1e-4) for key in a)


@pytest.mark.parametrize("launcher", ["nproc", "torchrun"])
def test_two_ranks_train_what_one_does(tmp_path: Path, recipe: Path, launcher: str) -> None:
    """Protects the command: one run folder, one last line, and the weights and scores of a single process."""
    run, alone = tmp_path / "two", tmp_path / "one"
    if launcher == "nproc":
        process = start("train", recipe, "--out", run, "--nproc", 2, *EXACT)
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "emaseg.cli")
        process = start("train", recipe, "--out", run, *EXACT, python=torchrun)
    code, out, err = finish(process)
    assert code == 0, err
    assert out.splitlines()[-1] == str(run)
    assert err.count("12/12") == 1
    assert finish(start("train", recipe, "--out", alone, *EXACT))[0] == 0
    assert same(last(run), last(alone))
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (run, alone)]
    scores = [[row.split(",")[-3:] for row in some if not row.split(",")[3]] for some in rows]
    assert scores[0] == scores[1]


def test_ranks_that_are_done_end_well(tmp_path: Path, recipe: Path) -> None:
    """Protects complete runs from counting as killed (cli/ranks.py, RankEnd): where threads of Python take turns only when
    one waits, as on a machine at work, gloo's still has tensors to drop when the others are done. Two runs in five failed,
    so four miss a return of that once in eight times; tests/cli/test_rank_end.py never does."""
    slow_turns = tmp_path / "turns"
    slow_turns.mkdir()
    (slow_turns / "sitecustomize.py").write_text("import sys; sys.setswitchinterval(1000)")
    for attempt in range(4):
        done = subprocess.run(
            [sys.executable, "-m", "emaseg.cli", "train", recipe, "--nproc=2", "--out", tmp_path / f"run{attempt}"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(slow_turns)},
            capture_output=True,
            text=True,
            timeout=TOO_LONG,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path: Path, recipe: Path) -> None:
    """Protects runs that move: begun on two ranks, continued by one and then by four."""
    run, alone = tmp_path / "run", tmp_path / "one"
    steps = ("--set=train.save_every=1", *EXACT)
    process = start("train", recipe, "--out", run, "--nproc", 2, *steps)
    wait_for(run / "checkpoints/last.pt")
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code in (0, 75), err
    for ranks in (1, 4):
        process = start("train", recipe, "--out", run, "--resume", "--nproc", ranks, *steps)
        if ranks == 1:
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err
    assert finish(start("train", recipe, "--out", alone, *EXACT))[0] == 0
    assert same(last(run), last(alone))


@pytest.mark.parametrize("option", ["train.accumulate=1", "train.accumulate=2", "train.recompute=true"])
def test_three_ranks_go_on_to_the_bit(option: str, tmp_path: Path, recipe: Path) -> None:
    """Protects the promise of a resume where sums depend on their order: a run of three ranks that was stopped after a
    step ends with the weights of one that was not, and nobody reads a warning of the wrapper's."""
    options = (
        "--nproc",
        3,
        "--set=train.batch=6",
        f"--set={option}",
        "--set=train.save_every=1",
        "--set=train.evaluate_every=0",
    )
    code, _, err = finish(start("train", recipe, "--out", tmp_path / "whole", "--set=train.keep_every=4", *options))
    assert code == 0, err
    assert "unused" not in err
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / "samples.png").unlink()
    for name in ("last.pt", "previous.pt", "best.pt", "step_00000008.pt", "step_00000012.pt"):
        (cut / "checkpoints" / name).unlink(missing_ok=True)
    code, _, err = finish(start("train", recipe, "--out", cut, "--resume", "--set=train.keep_every=4", *options))
    assert code == 0, err
    assert "continuing at step 4 of 12" in err
    assert "bit for bit" not in err
    assert equal(last(cut), last(tmp_path / "whole"))


def test_ctrl_c_reaches_all_ranks_once(tmp_path: Path, recipe: Path) -> None:
    """Protects the step in hand: all finish it, one saves, exit 75 and the command to continue with."""
    run = tmp_path / "run"
    process = start(
        "train", recipe, "--out", run, "--nproc", 2, "--set=train.iterations=5000", "--set=train.save_every=1"
    )
    wait_for(run / "checkpoints/last.pt")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 75, err
    assert "--nproc 2" in out + err
    assert err.count("stopping after this step") == 1
    assert messages(err) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_with_one_message(tmp_path: Path, recipe: Path, rank: int) -> None:
    """Protects the others from waiting for it: exit 4, and the message names the rank."""
    run = tmp_path / "run"
    process = start(
        "train", recipe, "--out", run, "--nproc", 2, "--set=train.iterations=5000", "--set=train.save_every=1"
    )
    wait_for(run / "checkpoints/last.pt")
    os.kill(rank_pid(process, rank), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 4, err
    assert messages(err) == [f"error: rank {rank} of 2 was killed by SIGKILL; the others have ended"]


def test_rank_0s_error_is_told_once(tmp_path: Path, recipe: Path) -> None:
    """Protects people from two copies of a message: the run folder cannot be written."""
    (tmp_path / "run").write_text("")
    code, _, err = finish(start("train", recipe, "--out", tmp_path / "run", "--nproc", 2))
    assert code == 2
    assert len(messages(err)) == 1
    assert "is a file" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_image_costs_no_step(tmp_path: Path, rank: int) -> None:
    """Protects the steps since the last checkpoint: whichever rank meets the image, all are saved first, exit 3.
    The command to continue with has as many processes."""
    data, run = tmp_path / "data", tmp_path / "run"
    recipe = own_data(data, 23)
    path = tmp_path / "own.toml"
    path.write_text(recipe_to_toml(recipe))
    batch, seed = recipe.train.batch, recipe.train.seed
    dataset = build_dataset(recipe.data, "train")
    index = int(epoch_order(len(dataset), seed, 0)[2 * batch + rank])
    image = next(data.rglob(Path(dataset.name(index)).name))
    image.write_bytes(image.read_bytes()[:200])
    code, _, err = finish(start("train", path, "--out", run, "--nproc", 2, "--device=cpu"))
    assert code == 3, err
    assert len(messages(err)) == 1
    assert rank or "--resume --nproc 2 --device cpu" in err  # rank 1 does not know the folder
    assert image.name in err
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["step"] == 2


def test_a_full_disk_ends_all(tmp_path: Path, recipe: Path) -> None:
    """Protects from a hang where rank 0 cannot save: exit 4, one message. The limit stands for the disk's end."""
    program = (
        "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "sys.argv[0] = 'emaseg'; runpy.run_module('emaseg.cli', run_name='__main__')"
    )
    limited = ("-c", program)
    code, _, err = finish(start("train", recipe, "--out", tmp_path / "run", "--nproc", 2, python=limited))
    assert code == 4, err
    assert len(messages(err)) == 1


def test_rank_1s_full_disk(tmp_path: Path, recipe: Path) -> None:
    """Protects from a hang where only rank 1's disk is full. Of a training it writes no file, so that this goes on; of a
    prediction it writes its share of the masks: one message, and rank 0's masks are there. torchrun ends with 1; it ends
    the others as soon as one fails, so rank 1 begins its share when rank 0 has written its own."""
    program = tmp_path / "limited.py"
    program.write_text(
        "import os, pathlib, resource, runpy, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        f"    while 'predict' in sys.argv and len(list(pathlib.Path({str(tmp_path / 'masks')!r}).glob('*_mask.png'))) < 3:\n"
        "        time.sleep(0.1)\n"
        "sys.argv[0] = 'emaseg'\n"
        "runpy.run_module('emaseg.cli', run_name='__main__')\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program))
    code, out, err = finish(start("train", recipe, "--out", tmp_path / "run", python=torchrun))
    assert code == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "run")
    own_data(tmp_path / "data", 5)
    predict = ("predict", tmp_path / "data/images", "--weights", tmp_path / "run", "--save", "mask")
    code, _, err = finish(start(*predict, "--out", tmp_path / "masks", python=torchrun))
    assert code == 1
    assert len(messages(err)) == 1
    assert "_mask.png: File too large" in err
    assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 3


def test_a_machine_with_other_images_is_told(tmp_path: Path) -> None:
    """Protects trainings over several machines from a copy of the data that lacks an image: the ranks would draw other
    samples, and score some images twice and others never."""
    recipe = own_data(tmp_path / "first/data", 23)
    own_data(tmp_path / "second/data", 22)
    path = tmp_path / "mine.toml"
    path.write_text(recipe_to_toml(replace(recipe, data=replace(recipe.data, root="data"))))
    program = tmp_path / "machine.py"
    program.write_text(
        "import os, runpy, sys\n"
        f"os.environ['EMASEG_DATA'] = {str(tmp_path)!r} + ('/second' if os.environ['RANK'] == '1' else '/first')\n"
        "sys.argv[0] = 'emaseg'\n"
        "runpy.run_module('emaseg.cli', run_name='__main__')\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program))
    code, _, err = finish(start("train", path, "--out", tmp_path / "run", python=torchrun))
    assert code == 1
    (message,) = messages(err)
    assert "rank 1 has other images than rank 0" in message
    assert "18 to train on and 4 to evaluate here, 18 to train on and 5 to evaluate there" in message


def test_ranks_score_what_one_process_scores(tmp_path: Path, recipe: Path) -> None:
    """Protects the scores of `eval --nproc`: every image once, also where ranks have unevenly many, and the same counts of
    pixels; predicting by torchrun writes every mask once."""
    run = tmp_path / "run"
    assert finish(start("train", recipe, "--out", run, "--set=train.iterations=2"))[0] == 0
    more = "--set=data.eval_images=7"
    for ranks in (1, 4):
        code, out, err = finish(start("eval", run, "--nproc", ranks, "--out", tmp_path / f"eval{ranks}", more))
        assert code == 0, err
        assert out.splitlines()[-1] == str(tmp_path / f"eval{ranks}/metrics.json")
    for name in ("metrics.json", "images.csv", "confusion.csv"):
        assert (tmp_path / "eval1" / name).read_bytes() == (tmp_path / "eval4" / name).read_bytes()
    own_data(tmp_path / "data", 5)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "emaseg.cli")
    predict = ("predict", tmp_path / "data/images", "--weights", run, "--out", tmp_path / "masks", "--save", "mask")
    code, out, err = finish(start(*predict, "--json", python=torchrun))
    assert code == 0, err
    assert len(out.splitlines()) == 5
    assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 5


@pytest.mark.realdata
def test_four_ranks_count_camvids_pixels_as_one_does(tmp_path: Path) -> None:
    """Protects the scores of a real test set, 233 images, which four ranks cannot share evenly."""
    data = replace(load_recipe("camvid_r50_d16").data, root=str(real("camvid")))
    path, run = tmp_path / "camvid.toml", tmp_path / "run"
    path.write_text(recipe_to_toml(replace(tiny("train.iterations=1"), data=data)))
    code, _, err = finish(start("train", path, "--out", run))
    assert code == 0, err
    split = ("--set", 'data.eval_images="test"', "--set", 'data.eval_masks="testannot"')
    for ranks in (1, 4):
        code, _, err = finish(start("eval", run, "--nproc", ranks, "--out", tmp_path / f"eval{ranks}", *split))
        assert code == 0, err
    assert json.loads((tmp_path / "eval4/metrics.json").read_text())["images"] == 233
    for name in ("confusion.csv", "images.csv", "metrics.json"):
        assert (tmp_path / "eval1" / name).read_bytes() == (tmp_path / "eval4" / name).read_bytes()
