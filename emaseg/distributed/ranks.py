"""Which of several training processes this one is: what torchrun or Slurm tell it, read from the environment.

Room: distributed; never imports torch.

A rank is one of the processes that train one network together, counted from 0. torchrun and `emaseg train --nproc`
state RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun states SLURM_PROCID, SLURM_STEP_NUM_TASKS,
SLURM_LOCALID and the names of the nodes; the first of them is where the ranks meet, at a port that follows from the
job's number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from emaseg.errors import RecipeError

OWN_RUN = "emaseg-"  # how TORCHELASTIC_RUN_ID begins where `--nproc` started the ranks
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 20_000, 12_000  # below the range from which systems choose ports by themselves


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes of a run.

    number: from 0. world: how many there are. local: the number on this machine, from 0. address, port: where they
    meet. supervised: `--nproc` started it, and tells what became of the others. bound: Slurm shows it GPUs of its own only.
    """

    number: int
    world: int
    local: int
    address: str
    port: int
    supervised: bool = False
    bound: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and talks to people."""
        return self.number == 0


ALONE = Rank(0, 1, 0, "", 0)


def this_rank(environ: Mapping[str, str] | None = None) -> Rank:
    """The rank that the launcher's variables make of this process; `ALONE` without a launcher, or with one process.

    Raises:
        RecipeError: a variable does not hold what it must.
    """
    environ = os.environ if environ is None else environ
    if _by_torchrun(environ):
        number, world = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        local = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else number
        supervised = environ.get("TORCHELASTIC_RUN_ID", "").startswith(OWN_RUN)
        rank = Rank(number, world, local, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"), supervised)
    elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:  # a batch script has the first without the second
        rank = _of_slurm(environ)
    else:
        return ALONE
    return rank if rank.world > 1 else ALONE


def _by_torchrun(environ: Mapping[str, str]) -> bool:
    return all(name in environ for name in _TORCHRUN)


def ranks_here(environ: Mapping[str, str] | None = None) -> int:
    """How many of the processes that train are on this machine and share its memory; 1 where no launcher says.

    Raises:
        RecipeError: a variable does not hold what it must.
    """
    environ = os.environ if environ is None else environ
    if this_rank(environ) == ALONE:
        return 1
    if _by_torchrun(environ):
        return ranks_on_these_cores(environ)
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return tasks_of_node(tasks, _number(environ, "SLURM_NODEID")) if "SLURM_NODEID" in environ else 1


def ranks_on_these_cores(environ: Mapping[str, str] | None = None) -> int:
    """How many of the processes that train share the cores that this one sees; 1 where no launcher says, and with Slurm,
    which shows each task its own cores.

    Raises:
        RecipeError: a variable does not hold what it must.
    """
    environ = os.environ if environ is None else environ
    if this_rank(environ) == ALONE or "LOCAL_WORLD_SIZE" not in environ:
        return 1
    return max(1, _number(environ, "LOCAL_WORLD_SIZE"))


def tasks_of_node(tasks: str, node: int) -> int:
    """The number of tasks on a node, from 0, by Slurm's list of them: `8(x2),4` -> 8, 8 and 4; 1 where it does not say."""
    for part in tasks.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part.strip(), re.ASCII)
        if found is None:
            return 1
        node -= int(found[2] or 1)
        if node < 0:
            return max(1, int(found[1]))
    return 1


def _of_slurm(environ: Mapping[str, str]) -> Rank:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world = _number(environ, tasks) if tasks in environ else 1
    if world <= 1:
        return ALONE
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "localhost"
    address = environ.get("MASTER_ADDR") or first_node(nodes)
    port = _FIRST_PORT + _number(environ, "SLURM_JOB_ID") % _PORTS if "SLURM_JOB_ID" in environ else _FIRST_PORT
    if "MASTER_PORT" in environ:
        port = _number(environ, "MASTER_PORT")
    number, local = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
    bound = "SLURM_GPUS_PER_TASK" in environ or "SLURM_GPU_BIND" in environ
    return Rank(number, world, local, address, port, bound=bound)


def first_node(nodes: str) -> str:
    """The first name of Slurm's list of nodes: `gpu[03-05,9],login` -> `gpu03`."""
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.partition(",")[0]
    first = re.split(r"[,\]-]", rest, maxsplit=1)[0]
    suffix = rest.partition("]")[2].partition(",")[0]
    return f"{prefix}{first}{suffix}"


def check_division(batch: int, world: int) -> None:
    """Refuse a batch that several processes cannot share evenly.

    Raises:
        RecipeError: names the nearest batches and numbers of processes that fit.
    """
    if batch % world == 0:
        return
    below = batch // world * world
    batches = [f"--set train.batch={size}" for size in (below, below + world) if size]
    divisors = [number for number in range(1, batch + 1) if batch % number == 0]
    fewer = max(number for number in divisors if number < world)
    more = [number for number in divisors if number > world][:1]
    counts = " or ".join(f"{number}" for number in (fewer, *more))
    raise RecipeError(
        f"train.batch = {batch} cannot be shared by {world} processes",
        f"use {counts} processes, or {' or '.join(batches)}",
    )


def check_ranks(batch: int, published: int, world: int) -> None:
    """Refuse what so many processes cannot share.

    Args:
        batch: train.batch. published: train.ranks. world: processes that train.

    Raises:
        RecipeError: names the nearest that can be shared.
    """
    check_division(batch, world)
    if published:
        check_division(batch, published)
    if published % world:
        raise RecipeError(
            f"train.ranks = {published}: {world} processes cannot stand for so many",
            f"use {published} processes or a divisor of that",
        )


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isascii() or not text.isdecimal():
        raise RecipeError(f'{name} = "{text}": a launcher of several processes sets a number', f"unset {name}")
    return int(text)
