"""Several processes as one: reductions that are no-ops on a single process, and meeting and losing the others.

Room: distributed.

Messages between the ranks' networks travel where the tensors are: by NCCL between GPUs, by gloo otherwise. What ranks
tell each other beside (lockstep.py) always travels by gloo, which notices at once when a rank is gone; NCCL waits.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from emaseg.distributed.ranks import Rank
from emaseg.errors import PeerFailed, SystemFault

Content = TypeVar("Content")

BUG = 70  # exit code of an exception that has none of its own
_FAILED = "emaseg/failed"  # key of the ranks' common store: how many have failed; the first one tells people
_CODE = "emaseg/code"  # the exit code of the first one
_WAIT = datetime.timedelta(seconds=2)  # for that code
# With a rank that sends nothing: it may be downloading, or writing to a slow disk.
_PATIENCE = datetime.timedelta(hours=2)


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank_number() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


# ------------------------------------------------------------------------------------------------- reductions
def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Element-wise mean of `x` over all processes, in a new tensor; `x` itself on a single process."""
    world = world_size()
    return x if world == 1 else sum_over_ranks(x).div_(world)


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of `x` over all processes, in a new tensor; `x` itself on a single process."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


def differentiable_sum(x: torch.Tensor) -> torch.Tensor:
    """As `sum_over_ranks`, for a loss that every process computes from the sum, so that the mean of the processes'
    gradients is that loss's gradient."""
    total: torch.Tensor = x if world_size() == 1 else _Sum.apply(x)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> torch.Tensor:
        return incoming[0] * world_size()  # the same on every process


def largest_over_ranks(values: list[int]) -> list[int]:
    """Element-wise maximum of a few integers over all processes."""
    if world_size() == 1:
        return values
    largest = torch.tensor(values)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [int(value) for value in largest.tolist()]


def from_rank_0(content: object) -> object:
    """What rank 0 has; of the others' arguments nothing is used."""
    box = [content]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def from_all_ranks(content: Content) -> list[Content]:
    """What each rank has, in their order."""
    if world_size() == 1:
        return [content]
    box: list[Content | None] = [None] * world_size()
    dist.all_gather_object(box, content)
    return [one for one in box if one is not None]


def gathered(x: torch.Tensor) -> torch.Tensor:
    """The `x` of all ranks, one after the other along the first dimension. Shapes must agree."""
    world = world_size()
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


# --------------------------------------------------------------------------------------- meeting and losing others
@contextlib.contextmanager
def joined(rank: Rank, device: torch.device) -> Iterator[None]:
    """Within the block this process is one of `rank.world`; nothing happens where it is alone, or is that already.

    Of several that fail for one reason, such as missing memory, one tells people: the first. The errors of the others
    become PeerFailed.

    Raises:
        SystemFault: the others cannot be reached.
        PeerFailed: another rank failed before.
    """
    if rank.world == 1 or dist.is_initialized():
        yield
        return
    _meet(rank, device)
    try:
        yield
    except (PeerFailed, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        code = int(getattr(error, "exit_code", BUG))
        if not _is_first_to_fail(code):
            raise PeerFailed(code) from error
        raise
    finally:
        if device.type == "cpu":  # NCCL would wait for ranks that are gone; it ends with the process
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _meet(rank: Rank, device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        # env:// knows whether the launcher or rank 0 keeps the store in which they meet.
        how = "env://" if dist.is_torchelastic_launched() else f"tcp://{rank.address}:{rank.port}"
        dist.init_process_group(backend, init_method=how, rank=rank.number, world_size=rank.world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SystemFault(
            f"rank {rank.number} cannot meet the other processes at {rank.address}:{rank.port} ({_first_line(error)})",
            "can this machine reach that address? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network card",
        ) from error


def _is_first_to_fail(exit_code: int) -> bool:
    """Whether no other rank has failed before. The others then learn its exit code."""
    try:
        store = _store()
        first = bool(store.add(_FAILED, 1) == 1)
        if first:
            store.set(_CODE, str(exit_code))
    except RuntimeError:  # the process that kept it is gone: nobody knows, so better twice than not at all
        return True
    return first


def _code_of_the_first() -> int | None:
    """The exit code of the rank that failed first; None where none has told it (it was killed)."""
    try:
        store = _store()
        store.wait([_CODE], _WAIT)
        return int(store.get(_CODE))
    except (RuntimeError, ValueError):
        return None


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Within the block, a message that fails because another rank is gone becomes PeerFailed.

    Raises:
        PeerFailed: with the other one's exit code, where that told it.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's errors are plain RuntimeErrors, or DistBackendError below it
        if world_size() == 1 or not _is_of_a_message(error):
            raise
        code = _code_of_the_first()
        raise (PeerFailed() if code is None else PeerFailed(code)) from error


def _is_of_a_message(error: RuntimeError) -> bool:
    text = str(error)
    marks = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe", "Socket")
    return isinstance(error, dist.DistError) or any(mark in text for mark in marks)


def _store() -> torch._C._distributed_c10d.Store:
    return dist.distributed_c10d._get_default_store()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
