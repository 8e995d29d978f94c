"""Several processes as one: reductions that are no-ops on a single process.

Room: distributed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Element-wise mean of `x` over all processes, in a new tensor; `x` itself on a single process."""
    world = world_size()
    if world == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total.div_(world)
