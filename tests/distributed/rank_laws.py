"""A few training steps of small networks on several processes: what the tests of test_rank_laws.py start.

    torchrun --nproc-per-node 2 -m tests.distributed.rank_laws FOLDER     two ranks of torch's launcher
    python -m tests.distributed.rank_laws FOLDER all 1 2 4                one, two and four ranks: forks, so that torch loads once;
                                                                          "few" instead of "all": the cases of FEW, in fewer steps

A whole batch of four images is fixed: class 3 lies in the last image alone, class 4 in none, and each image ignores
another number of pixels. Every process takes its share, and writes what it has learnt to FOLDER/<case>_<world>_<rank>.pt.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed.collectives import joined, rank_number, world_size
from emaseg.distributed.lockstep import Action, Followed, Lead
from emaseg.distributed.ranks import Rank, this_rank
from emaseg.models import build_model
from emaseg.recipe import Recipe
from emaseg.schedule import build_schedule
from emaseg.training.optim import build_optimizer
from emaseg.training.replicas import replicate
from emaseg.training.step import training_step
from tests.tiny import tiny

STEPS = 5
FEW_STEPS = 3  # the third is the first with a memory loss
IMAGES = 4  # of a whole batch
CPU = torch.device("cpu")
MEMORYNET = (
    'model={kind="memorynet", channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.05, dropout=0.0, '
    'aspp_dilations=[1, 2], memory_loss_weight=1.0, memory_loss_statistics="shared", memory_gradient="updated"%s}'
)
PLAIN = ('loss.ranks="plain_mean"', "train.ranks=4")
THIN = (
    "loss.class_weights=[1.0, 2.0, 0.5, 4.0, 3.0]",
    "loss.dice_weight=0.5",
    "loss.label_smoothing=0.1",
    "optim.clip_norm=0.5",
    "optim.warmup=3",
    "train.freeze='backbone_norms'",
)
PARTS = ("train.accumulate=2",)
EPOCHS = ("train.iterations=20", "data.train_images=8", "optim.lr=0.001")  # the memory loss begins with step 2

# In parts a norm averages over two images. MemoryNet's mean over each image then leaves it two values, whose gradient is
# mostly rounding in float32.
CASES: Mapping[str, tuple[torch.dtype, Recipe]] = {
    "emanet": (torch.float64, tiny("model.dropout=0.0", *EPOCHS)),
    "emanet_float32": (torch.float32, tiny("model.dropout=0.0", *EPOCHS)),
    "emanet_all_pixels": (torch.float64, tiny("model.dropout=0.0", 'loss.reduction="all_pixels"', *EPOCHS)),
    "emanet_thin": (torch.float64, tiny("model.dropout=0.0", *THIN, *EPOCHS)),
    "emanet_focal": (torch.float64, tiny("model.dropout=0.0", "loss.focal_gamma=2.0", THIN[0], *EPOCHS)),
    "emanet_plain_mean": (torch.float64, tiny("model.dropout=0.0", *PLAIN, *EPOCHS)),
    "memorynet": (torch.float64, tiny(MEMORYNET % "", *EPOCHS)),
    "memorynet_float32": (torch.float32, tiny(MEMORYNET % "", *EPOCHS)),
    "memorynet_plain_mean": (
        torch.float64,
        tiny(MEMORYNET % ', memory_ranks="plain_mean"', *PLAIN, *EPOCHS),
    ),
    "emanet_parts": (torch.float64, tiny("model.dropout=0.0", THIN[0], *PARTS, *EPOCHS)),
    "memorynet_parts": (torch.float64, tiny(MEMORYNET % "", *PARTS, *EPOCHS)),
}


# Each sum over ranks once; all_pixels, focal losses, float32 and EMANet in parts are held by the slow test alone.
FEW = (
    "emanet",
    "emanet_float32",
    "emanet_thin",
    "emanet_plain_mean",
    "memorynet",
    "memorynet_plain_mean",
    "memorynet_parts",
)


def cases(world: int, names: Collection[str] = CASES) -> Mapping[str, tuple[torch.dtype, Recipe]]:
    """Those of `names` that so many processes can share: a part has an image of each."""
    shared = {name: case for name, case in CASES.items() if world * case[1].train.accumulate <= IMAGES}
    return {name: case for name, case in shared.items() if name in names}


def whole_batch(step: int, dtype: torch.dtype) -> Batch:
    """Four images (4, 3, 32, 32) and their labels (4, 32, 32)."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 3, (4, 32, 32), generator=generator)
    labels[3, :10] = 3
    for image, rows in enumerate((0, 5, 28, 11)):
        labels[image, 32 - rows :] = 255
    return Batch(images, labels, tuple("abcd"))


def share(batch: Batch, parts: int) -> Batch:
    """This process's share, as the loader deals it out: in turn to each of four published processes.

    Norms average over a part (train.accumulate) of all ranks. One process's parts hold the images that two ranks' hold.
    """
    first, last = (rank * IMAGES // world_size() for rank in (rank_number(), rank_number() + 1))
    own = torch.arange(first, last)
    if parts > 1 and world_size() == 1:
        own = own.view(parts, -1).T.flatten()
    return Batch(batch.images[own], batch.labels[own], tuple(batch.names[i] for i in own))


@dataclass
class Sent:
    """What this rank has sent: bytes of each message that it waited for, and of each piece of the gradient."""

    messages: list[int] = field(default_factory=list)
    gradient: list[int] = field(default_factory=list)

    def hook(self, group, bucket):  # type: ignore[no-untyped-def]
        """Counts a piece of the gradient, and sends it as DistributedDataParallel does."""
        self.gradient.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(group, bucket)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Within the block, what Python code sends is counted."""
        reduce, gather = dist.all_reduce, dist.all_gather

        def counted_reduce(x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if x.dim() != 1 or x.numel() * x.element_size() not in self.gradient:  # the hook counts those
                self.messages.append(x.numel() * x.element_size())
            return reduce(x, *arguments, **named)

        def counted_gather(parts: list[torch.Tensor], x: torch.Tensor) -> Any:
            self.messages.append(x.numel() * x.element_size())
            return gather(parts, x)

        dist.all_reduce, dist.all_gather = counted_reduce, counted_gather
        try:
            yield
        finally:
            dist.all_reduce, dist.all_gather = reduce, gather


def agree() -> None:
    """What ranks say before a step (lockstep.py)."""
    stop = threading.Event()
    if rank_number():
        assert Followed(stop).next() == Action.STEP
    else:
        with Lead(stop).doing(Action.STEP):
            pass


def learn(recipe: Recipe, dtype: torch.dtype, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """What some steps make of the network: its state, the losses of each step, the optimiser's momentum, and what the last
    step sent."""
    torch.manual_seed(rank_number())  # other start weights on every process: rank 0's count
    model = build_model(recipe).to(dtype).train()
    optimizer = build_optimizer(model, recipe.optim)
    forward = replicate(model, recipe, CPU)
    schedule = build_schedule(recipe, 8)
    learnt = {}
    sent = Sent()
    if isinstance(forward, DistributedDataParallel):
        forward.register_comm_hook(None, sent.hook)
    for step in range(steps):
        batch = share(whole_batch(step, dtype), recipe.train.accumulate)
        sent.gradient.clear()
        with sent.counting() if step == steps - 1 else contextlib.nullcontext():
            agree()
            result = training_step(model, optimizer, batch, step, schedule, recipe, forward=forward)
        learnt[f"losses {step}"] = torch.tensor(list(result.losses.values()), dtype=torch.float64)
    learnt |= model.state_dict()
    learnt["sent messages"] = torch.tensor(sorted(sent.messages))
    learnt["sent gradient"] = torch.tensor(sum(sent.gradient))
    momenta = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    return {**learnt, **{f"momentum {i}": momentum for i, momentum in enumerate(momenta)}}


def learn_all(rank: Rank, folder: Path, names: Collection[str] = CASES) -> None:
    """Every case of `names`, as one of several processes."""
    torch.set_num_threads(1)
    with joined(rank, CPU):
        for name, (dtype, recipe) in cases(rank.world, names).items():
            steps = FEW_STEPS if names == FEW else STEPS
            torch.save(learn(recipe, dtype, steps), folder / f"{name}_{rank.world}_{rank.number}.pt")


def fork_all(world: int, folder: Path, names: Collection[str]) -> None:
    """So many processes, to their end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for number in range(world):
        child = os.fork()
        if not child:
            learn_all(Rank(number, world, number, "127.0.0.1", port), folder, names)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    build_optimizer(build_model(CASES["emanet"][1]), CASES["emanet"][1].optim)  # imports the rest of torch before forks
    gc.freeze()  # a fork that looks for garbage among all modules copies their pages
    if sys.argv[2:]:
        names = {"few": FEW, "all": tuple(CASES)}[sys.argv[2]]
        for count in map(int, sys.argv[3:]):
            fork_all(count, target, names)
    else:
        learn_all(this_rank(), target)
