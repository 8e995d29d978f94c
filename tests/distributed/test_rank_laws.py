"""Any number of processes is one: the same batch gives the same network, whoever computes which part of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emaseg.models import build_model
from emaseg.training.scaling import traffic
from tests.distributed.rank_laws import CASES, FEW, cases

ROOT = Path(__file__).parents[2]
TOO_LONG = 240  # seconds


def run(command: list[str]) -> None:
    """Run a program of this folder to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TOO_LONG, check=False
    )
    assert done.returncode == 0, done.stderr


def kind(key: str) -> str:
    """What a tensor is one of."""
    last = key.split(".")[-1]
    kinds = {"running_mean": "means", "running_var": "variances", "bases": "bases", "features": "memory", "age": "ages"}
    return kinds.get(last, key.split()[0] if " " in key else "counts" if last == "num_batches_tracked" else "weights")


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Length of the difference of some tensors, as a share of their length."""
    a, b = (torch.cat([x.double().flatten() for x in some]) for some in (found, expected))
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def check(folder: Path, name: str, world: int, dtype: torch.dtype) -> list[str]:
    """What differs between so many ranks and one process, and between the ranks."""
    alone = torch.load(folder / f"{name}_1_0.pt", weights_only=True)
    parts = [torch.load(folder / f"{name}_{world}_{rank}.pt", weights_only=True) for rank in range(world)]
    assert all(part.keys() == alone.keys() for part in parts)
    found = unlike_forecast(name, parts[0], dtype) if dtype == torch.float32 or "parts" in name else []
    alone = {key: value for key, value in alone.items() if not key.startswith("sent ")}
    found += [
        f"{name} {key}: rank {rank} differs"
        for rank, part in enumerate(parts)
        for key in alone
        if not torch.equal(part[key], parts[0][key])
    ]
    groups = [[key] for key in alone]
    limit = 1e-10
    if dtype == torch.float32:  # a bias that begins with 0 is the sum of a few rounded gradients: look at all weights
        groups, limit = [[key for key in alone if kind(key) == one] for one in {kind(key) for key in alone}], 1e-5
    for keys in groups:
        size = error([parts[0][key] for key in keys], [alone[key] for key in keys])
        if size > (limit if kind(keys[0]) != "momentum" else 10 * limit):
            found.append(f"{name} on {world}: {kind(keys[0])} {keys[0]}...: {size:.1e}")
    return found


def unlike_forecast(name: str, part: dict[str, torch.Tensor], dtype: torch.dtype) -> list[str]:
    """Where the messages of a step are not those that the dry run's forecast counts, in number and size."""
    recipe = CASES[name][1]
    forecast = traffic(build_model(recipe).to(dtype), recipe)
    sizes, gradient = sorted(message.size for message in forecast.messages), int(part["sent gradient"])
    found = (
        []
        if sizes == part["sent messages"].tolist()
        else [f"{name}: {part['sent messages'].tolist()} sent, not {sizes}"]
    )
    return found if gradient == forecast.gradient else [*found, f"{name}: gradient {gradient}, not {forecast.gradient}"]


LAW = """Protects the promise of model.norm = "sync" and of "by_count": weights, momentum, norm statistics, EM bases, class
memory and losses after five steps (by default three) are those of one process (1e-10 in float64, 1e-5 in float32), with a
class on one rank only and with unevenly ignored pixels; buffers and weights are equal to the bit between ranks. And of
train.ranks: the plain means of four published processes, also by fewer that stand for several each. And of the forecast
of a dry run: number and bytes of the messages of a step are those that real ranks send; with train.accumulate the
gradient goes once."""


@pytest.mark.parametrize(
    ("world", "which"),
    [(2, "few"), pytest.param(2, "all", marks=pytest.mark.slow), pytest.param(4, "all", marks=pytest.mark.slow)],
)
def test_ranks_learn_what_one_process_learns(tmp_path: Path, world: int, which: str) -> None:
    """See LAW; the processes are forks of one, which takes a fraction of the time of torchrun."""
    run([sys.executable, "-m", "tests.distributed.rank_laws", str(tmp_path), which, "1", str(world)])
    wanted = cases(world, FEW if which == "few" else CASES)
    found = [x for name, (dtype, _) in wanted.items() for x in check(tmp_path, name, world, dtype)]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_of_torchrun_learn_what_one_process_learns(tmp_path: Path, world: int) -> None:
    """See LAW; by torch's own launcher."""
    run([sys.executable, "-m", "tests.distributed.rank_laws", str(tmp_path), "all", "1"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    run([*launcher, "tests.distributed.rank_laws", str(tmp_path)])
    found = [x for name, (dtype, _) in cases(world).items() for x in check(tmp_path, name, world, dtype)]
    assert not found, "\n".join(found)
