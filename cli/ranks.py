"""Commands on several processes: which one this is, and starting the others.

Room: cli. torch is imported only where there are several.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from emaseg.distributed.ranks import ALONE, Rank, this_rank
from emaseg.errors import RecipeError

if TYPE_CHECKING:
    import torch


def rank_of(nproc: int | None) -> Rank:
    """Which rank this process is.

    Raises:
        RecipeError: a launcher has started several already, and --nproc asks for more.
    """
    rank = this_rank()
    if nproc is not None and rank.world > 1:
        raise RecipeError(
            f"--nproc {nproc}: torchrun or Slurm has started {rank.world} processes already", "leave --nproc out"
        )
    return rank


def launched(arguments: Sequence[str], nproc: int, device: str, *, saves: bool = False) -> int:
    """Run the command as so many ranks; its exit code.

    Args:
        arguments: as they were typed.
        device: as it was named.
        saves: rank 0 saves its state when another one fails.

    Raises:
        SystemFault: there are fewer GPUs than processes.
    """
    from emaseg.device import check_gpus
    from emaseg.distributed.launch import launch

    check_gpus(nproc, device)
    return launch(_without_nproc(arguments), nproc, saves=saves)


def _without_nproc(arguments: Sequence[str]) -> list[str]:
    rest = iter(arguments)
    kept: list[str] = []
    for argument in rest:
        if argument == "--":
            return [*kept, argument, *rest]
        if argument == "--nproc":
            next(rest, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


@contextlib.contextmanager
def as_rank(rank: Rank, device: str) -> Iterator[None]:
    """Within the block this process is one of several, if it is."""
    if rank.world == 1:
        yield
        return
    from emaseg.device import pick_device
    from emaseg.distributed.collectives import joined

    if rank.supervised:
        from emaseg.distributed.launch import end_with_launcher

        end_with_launcher()
    with joined(rank, pick_device(device)):
        yield


class RankEnd:
    """The end of a process that is one of several: exit handlers run and stdout and stderr are flushed, as ever, but the
    interpreter is not taken down. What only that would do is left out: other files must be closed by then.

    A gloo thread outlives its process group once DistributedDataParallel was made (PyTorch 2.15). One that has yet to
    drop the tensors of a finished message needs the interpreter for that; where it is down, Python before 3.14 ends the
    thread, and C++ the process, by SIGABRT: a complete run would count as killed.

    Attributes:
        code: the exit code; None, and Python ends as ever, until it is known.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        with contextlib.suppress(RecipeError):  # the command says what is wrong with the environment
            if this_rank() != ALONE:
                atexit.register(self._leave)  # before any other, so that it is called after them

    def _leave(self) -> None:
        if self.code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
                stream.flush()
        os._exit(self.code)


def tell_of_gpus(target: torch.device, asked: str, rank: Rank, command: str) -> None:
    """One line where a machine has more GPUs than are used."""
    if target.type != "cuda" or rank.world > 1 or ":" in asked:
        return
    import torch

    from .render import print_lines

    count = torch.cuda.device_count()
    if count > 1:
        print_lines([f"one of {count} GPUs is used; all of them: {command} --nproc {count}"])
