"""A network on several processes: each computes its share of a batch, and what they learn from it is the same.

Room: training. Legend: B batch of this process.

DistributedDataParallel averages the gradients while the backward pass goes on. Everything else that a step of the whole
batch would have in common is shared where it is computed: norm statistics (models/sync_norm.py), EM bases
(models/em_attention.py), class memory (models/memory_update.py), the pixels that the loss is divided by (losses/terms.py).
Buffers are therefore equal to the bit on all processes and are not sent; only batch norm that is not shared has others.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed.collectives import gathered, rank_number, world_size
from emaseg.events import Note
from emaseg.models import Network
from emaseg.models.layers import Step
from emaseg.models.sync_norm import share_norms
from emaseg.recipe import Recipe

Forward = Callable[[torch.Tensor, torch.Tensor, Step], Mapping[str, torch.Tensor]]


def own_shares(recipe: Recipe, ranks: int | None = None) -> int:
    """How many processes of train.ranks one stands for, of those that train, or of `ranks` that would."""
    return max(1, recipe.train.ranks // (ranks or world_size()))


def replicate(model: Network, recipe: Recipe, device: torch.device) -> Forward:
    """Make a network, on its device, one of `world_size()` that learn the same; they start from rank 0's weights.

    Returns:
        What to call instead of model.training_step; that itself on a single process.
    """
    model.shares = own_shares(recipe)
    if world_size() == 1:
        return model.training_step
    if recipe.model.norm == "sync":
        share_norms(model, device)
    for buffer in model.buffers():  # without broadcast_buffers the wrapper sends parameters alone
        dist.broadcast(buffer, src=0)
    kept = keeps_order(recipe, device)
    step = _Step(model, recipe.train.seed)
    if kept:  # one that is not used, of no elements: the wrapper warns everybody where it looks for such and finds none
        step.unused = nn.Parameter(next(model.parameters()).new_empty(0))
    # Later versions of torch call it by another name. Buffers are equal; nothing has to be sent before each step.
    named = inspect.signature(DistributedDataParallel).parameters
    sync: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers": False}
    # The graph is the same in every step, unless a loss begins later. Of a graph that is declared static, torch would
    # send the gradient with the first part of the first batch, and never with its last (see `gradient_kept`).
    static = not kept and not model.graph_changes and recipe.train.accumulate == 1
    return DistributedDataParallel(
        step, gradient_as_bucket_view=True, static_graph=static, find_unused_parameters=kept, **sync
    )


def keeps_order(recipe: Recipe, device: torch.device) -> bool:
    """Whether more than two processes add their gradients in one order from the first step on.

    Sums of three depend on the order, and that on the place of a parameter in its bucket. The wrapper moves parameters
    between buckets after its first pass, so after a resume the first step adds in another order than that step did in a
    run that was not interrupted. While it looks for unused parameters it moves none. That takes a little time, so on
    GPUs it is done with train.deterministic alone.
    """
    return world_size() > 2 and (device.type == "cpu" or recipe.train.deterministic)


def order_note(recipe: Recipe, device: torch.device) -> list[Note]:
    """A line where a resumed run differs in the rounding of its sums from one that was not interrupted."""
    if world_size() <= 2 or keeps_order(recipe, device):
        return []
    text = f"{world_size()} processes add the gradients of the next step in another order than without an interruption"
    return [Note(f"{text}, so the last bits differ; a run with train.deterministic = true is the same to the bit")]


@contextlib.contextmanager
def gradient_kept(forward: Forward | None) -> Iterator[None]:
    """Within the block a pass, forward and backward, adds to this process's gradient and sends nothing of it: another part
    of the batch follows, and the gradient of all parts is sent with the last."""
    with forward.no_sync() if isinstance(forward, DistributedDataParallel) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def evaluated_network(model: Network, recipe: Recipe) -> Iterator[None]:
    """Within the block all processes have the network that rank 0 has, to evaluate it together; then their own again.

    Theirs differ where norm statistics are not shared, and where rank 0 has put an average in the place of the weights.
    """
    if world_size() == 1 or (recipe.model.norm == "sync" and not recipe.optim.average_decay):
        yield
        return
    state = list(model.state_dict().values())
    own = [value.clone() for value in state] if rank_number() else []
    for value in state:
        dist.broadcast(value, src=0)
    try:
        yield
    finally:
        for value, before in zip(state, own, strict=False):
            value.copy_(before)


def whole_batch(batch: Batch) -> Batch:
    """The batch of all processes; the names are this one's."""
    return batch if world_size() == 1 else Batch(gathered(batch.images), gathered(batch.labels), batch.names)


class _Step(nn.Module):
    """A training step as the forward pass of a module, which is what DistributedDataParallel wraps.

    Dropout draws from a generator that (seed, step, rank) decide: nothing of it belongs in a checkpoint, and a run goes
    on with another number of processes. Of several passes in a step each has its own.
    """

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        self.network = network
        self.unused: nn.Parameter | None = None
        self._seed = seed
        self._step, self._passes = -1, 0

    def forward(self, images: torch.Tensor, labels: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        self._passes = self._passes + 1 if step.step == self._step else 0
        self._step = step.step
        mixed = np.random.SeedSequence((self._seed, step.step, rank_number(), self._passes))
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]) >> 1)  # NumPy 1 shifts no uint64 by an int
        return self.network.training_step(images, labels, step)
