"""One training step, the same for `train` and for the dry run that measures it.

Room: training_step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed import mean_over_ranks, world_size
from emaseg.errors import RecipeError
from emaseg.models import Network
from emaseg.models.layers import Step
from emaseg.optim import learning_rate, scheduled_rate, set_learning_rate
from emaseg.recipe import Recipe
from emaseg.recipe.training import Optim
from emaseg.replicas import Forward
from emaseg.schedule import Schedule


@dataclass(frozen=True, slots=True)
class StepResult:
    """The losses of a step by name; finite: they and the gradient are, so the optimiser took its step."""

    losses: dict[str, float]
    finite: bool


def training_step(
    model: Network,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    schedule: Schedule,
    optim: Optim,
    forward: Forward | None = None,
) -> StepResult:
    """Losses at the schedule's learning rate, backward, and the optimiser's step unless something is not finite.

    Args:
        model: in training mode, on the device of the batch.
        step: its number, from 0.
        forward: of `replicate`; None on a single process.

    Returns:
        The losses are those of the whole batch, on all processes.
    """
    set_learning_rate(optimizer, learning_rate(step, schedule.total, optim))
    optimizer.zero_grad(set_to_none=True)
    rate = scheduled_rate(step, schedule.total, optim)  # a warm-up is for the optimiser, not for a class memory
    losses = (forward or model.training_step)(batch.images, batch.labels, Step(step, schedule.epoch(step), rate))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    results = torch.stack([*(loss.detach() for loss in losses.values()), norm])
    *values, gradient = mean_over_ranks(results).tolist()
    finite = all(map(math.isfinite, (*values, gradient)))
    if finite:
        if optim.clip_norm:
            clip_grads_with_norm_(model.parameters(), optim.clip_norm, norm)
        optimizer.step()
    return StepResult(dict(zip(losses, values, strict=True)), finite)


def smallest_batch(model: Network, crop: tuple[int, int]) -> int:
    """Fewest crops of this size (height, width) that leave every norm layer two values for a channel, or more."""
    return 1 if model.norm_values(1, *crop) >= 2 else 2


def check_batch(model: Network, recipe: Recipe) -> None:
    """Refuse a batch that leaves a norm layer a single value for a channel: its variance would be undefined.

    Raises:
        RecipeError: with the remedy.
    """
    height, width = recipe.augment.crop
    world = 1 if recipe.model.norm == "sync" else world_size()
    if model.norm_values(recipe.train.batch // world, height, width) < 2:
        among = f", of {world} processes," if world > 1 else ""
        raise RecipeError(
            f"train.batch = {recipe.train.batch} with augment.crop = [{height}, {width}]{among} leaves one value for each "
            "channel of a norm layer",
            f"use a batch of at least {2 * world} (--set train.batch={2 * world}) or a larger crop",
        )
