"""Which rank a process is, and what several can share: from the launcher's variables alone, without any process."""

from __future__ import annotations

import pytest
import torch

from emaseg.device import check_gpus, pick_device
from emaseg.distributed.ranks import ALONE, Rank, check_ranks, first_node, ranks_here, ranks_on_these_cores, this_rank
from emaseg.errors import RecipeError, SystemFault
from tests.helpers import emaseg

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-010],cpu1",
    "SLURM_JOB_ID": "123456",
}


def test_without_a_launcher_there_is_one_process() -> None:
    assert this_rank({}) == ALONE
    assert this_rank({"RANK": "0"}) == ALONE
    assert this_rank({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == ALONE


def test_torchrun_is_recognised() -> None:
    assert this_rank(TORCHRUN) == Rank(3, 8, 1, "node1", 29500)
    assert this_rank({**TORCHRUN, "TORCHELASTIC_RUN_ID": "emaseg-0"}).supervised
    assert not this_rank({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}).supervised


def test_slurm_is_recognised() -> None:
    rank = this_rank(SLURM)
    assert (rank.number, rank.world, rank.local, rank.address) == (5, 8, 1, "gpu007")
    assert 1024 < rank.port < 32768
    assert this_rank({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "7"}).address == "head"


def test_a_task_with_a_gpu_of_its_own_uses_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `srun --gpus-per-task 1`: each task sees one GPU, which is number 0 whatever its place on the node; without
    that option two tasks must not share a GPU in silence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    for seen, device in ((1, "cuda:0"), (4, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
        assert pick_device("auto") == torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("SLURM_GPUS_PER_TASK")
    with pytest.raises(
        SystemFault, match="process 1 of this machine has no GPU of its own: PyTorch sees 1 CUDA device"
    ):
        pick_device("auto")


def test_more_processes_than_gpus_are_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects people from one error for each missing GPU, which blames a --device that they did not write."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("emaseg.distributed.launch.launch", lambda *_, **__: 0)
    assert emaseg(capsys, "train", "demo", "--nproc", 2)[0] == 0
    assert emaseg(capsys, "train", "demo", "--nproc", 4, "--device", "cpu")[0] == 0
    for command in (("train", "demo", "--nproc", 4), ("eval", "runs/none", "--nproc", 4, "--device", "cuda")):
        code, _, err = emaseg(capsys, *command)
        assert code == 4
        assert "error: --nproc 4: each process needs a GPU of its own, and PyTorch sees 2 CUDA device(s) here" in err
        assert "try: --nproc 2, or --device cpu" in err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemFault) as caught:
        check_gpus(2, "cuda")
    assert caught.value.hint == "leave --nproc out, or use --device cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_gpus(4, "auto")
    with pytest.raises(SystemFault) as caught:
        check_gpus(2, "cuda")
    assert caught.value.hint == "use --device cpu"


def test_the_tasks_of_a_node_are_read_from_slurms_list() -> None:
    """Protects a node of eight tasks from loading processes that take eight times its memory; each task has cores of its own.
    torchrun's number wins, as where srun starts one torchrun on each node."""
    listed = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}
    assert [ranks_here({**listed, "SLURM_NODEID": str(node)}) for node in range(4)] == [8, 8, 4, 1]
    assert ranks_on_these_cores({**listed, "SLURM_NODEID": "0"}) == 1
    assert ranks_here(listed) == ranks_here(SLURM) == 1
    assert ranks_here({**listed, "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "many"}) == 1
    both = {**listed, **TORCHRUN, "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "LOCAL_WORLD_SIZE": "4"}
    assert ranks_here(both) == ranks_on_these_cores(both) == 4


def test_a_batch_script_is_no_rank() -> None:
    """Protects people who train from a batch script with several tasks but without srun: nobody else will come."""
    script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert this_rank(script) == ALONE


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("gpu[03-05,9],x", "gpu03"), ("n[1,3]-ib", "n1-ib"), ("x,n[1-2]", "x")],
)
def test_the_first_node_is_read_from_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_a_broken_variable_is_named() -> None:
    with pytest.raises(RecipeError, match='WORLD_SIZE = "two"'):
        this_rank({**TORCHRUN, "WORLD_SIZE": "two"})


def test_an_uneven_division_is_refused_with_the_nearest() -> None:
    check_ranks(16, 0, 8)
    check_ranks(16, 4, 2)
    with pytest.raises(RecipeError, match=r"train\.batch = 10 cannot be shared by 4 processes") as caught:
        check_ranks(10, 0, 4)
    assert caught.value.hint == "use 2 or 5 processes, or --set train.batch=8 or --set train.batch=12"
    with pytest.raises(RecipeError, match="cannot be shared by 3"):
        check_ranks(2, 0, 3)
    with pytest.raises(RecipeError, match=r"train\.ranks = 4: 8 processes cannot"):
        check_ranks(16, 4, 8)
