"""Two processes are one: the bases that EMANet keeps do not depend on how a batch is shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from emaseg.models.em_attention import EMAttention


def features() -> torch.Tensor:
    return torch.randn(4, 8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention() -> EMAttention:
    torch.manual_seed(0)
    return EMAttention(8, 4).double()


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module = attention()
    buffer = module.bases
    for _ in range(3):
        _, adapted = module(features()[2 * rank : 2 * rank + 2])
        module.update(adapted)
    assert module.bases is buffer  # updated in place: the buffer that is saved is the one that is used
    torch.save(module.bases, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Protects the saved bases of a run on several processes: bit-equal on every rank, and those of a single process."""
    mp.start_processes(rank_main, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    module = attention()
    for _ in range(3):
        _, adapted = module(features())
        module.update(adapted)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert torch.allclose(first, module.bases, atol=1e-14)
