"""One training step, the same for `train` and for the dry run that measures it.

Room: training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed.collectives import mean_over_ranks, world_size
from emaseg.errors import RecipeError, SystemFault
from emaseg.free_memory import is_out_of_memory
from emaseg.losses.terms import pixel_weights
from emaseg.models import Network
from emaseg.models.layers import Step
from emaseg.recipe import Recipe
from emaseg.schedule import Schedule
from emaseg.training.compute import LossScale, autocast, to_layout
from emaseg.training.optim import learning_rate, scheduled_rate, set_learning_rate
from emaseg.training.replicas import Forward, gradient_kept, own_shares

_NO_PIXELS = 1e-9  # below the weight of any labelled pixel: a batch without one has no loss to share


@dataclass(frozen=True, slots=True)
class StepResult:
    """The losses of a step by name; finite: they and the gradient are, so the optimiser took its step."""

    losses: dict[str, float]
    finite: bool


@dataclass(frozen=True, slots=True)
class _Shares:
    """Of a part in the whole batch: of losses that average over pixels, and of those that average over anything else.

    last: no part comes after it.
    """

    pixels: torch.Tensor | float
    others: float
    last: bool

    def of(self, losses: Mapping[str, torch.Tensor], over_pixels: Collection[str]) -> dict[str, torch.Tensor]:
        """What the part's losses (scalars) contribute to the whole batch's."""
        return {name: x * (self.pixels if name in over_pixels else self.others) for name, x in losses.items()}


def training_step(
    model: Network,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    schedule: Schedule,
    recipe: Recipe,
    *,
    forward: Forward | None = None,
    scale: LossScale | None = None,
) -> StepResult:
    """Losses at the schedule's learning rate, backward, and the optimiser's step unless something is not finite.

    With train.accumulate the batch is computed in parts, whose losses and gradients add up to those of the whole.

    Args:
        model: in training mode, on the device of the batch.
        step: its number, from 0.
        forward: of `replicate`; None on a single process.
        scale: of a recipe in fp16. A step that is not finite then leaves no trace in the network.

    Returns:
        The losses are those of the whole batch, on all processes.
    """
    optim = recipe.optim
    set_learning_rate(optimizer, learning_rate(step, schedule.total, optim))
    optimizer.zero_grad(set_to_none=True)
    rate = scheduled_rate(step, schedule.total, optim)  # a warm-up is for the optimiser, not for a class memory
    before = [buffer.clone() for buffer in model.buffers()] if scale is not None else []
    where = Step(step, schedule.epoch(step), rate)
    totals: dict[str, torch.Tensor] = {}
    for part, shares in _parts(model, batch, recipe.train.accumulate):
        with contextlib.nullcontext() if shares is None or shares.last else gradient_kept(forward):
            with autocast(recipe.train, batch.images.device):
                call = forward or model.training_step
                losses = dict(call(to_layout(part.images, recipe.train), part.labels, where))
            if shares is not None:
                losses = shares.of(losses, model.pixel_losses)
            total = torch.stack(list(losses.values())).sum()
            (total if scale is None else scale.scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            totals[name] = totals[name] + loss.detach() if name in totals else loss.detach()
    if scale is not None:
        scale.scaler.unscale_(optimizer)
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    *values, gradient = mean_over_ranks(torch.stack([*totals.values(), norm])).tolist()
    finite = all(map(math.isfinite, (*values, gradient)))
    if finite:
        if optim.clip_norm:
            clip_grads_with_norm_(model.parameters(), optim.clip_norm, norm)
        optimizer.step()
    elif before:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    if scale is not None:
        scale.update(finite)
    return StepResult(dict(zip(totals, values, strict=True)), finite)


def _parts(model: Network, batch: Batch, count: int) -> Iterator[tuple[Batch, _Shares | None]]:
    """The parts of a process's batch, and what share in its losses theirs have; while one is computed, `model.shares` is
    how many of the processes it stands for are in it.

    None where the batch is one part: its losses are the whole.
    """
    if count == 1:
        yield batch, None
        return
    shares, size = model.shares, len(batch.labels) // count
    plain = shares if model.loss.ranks == "plain_mean" else 1
    each = len(batch.labels) // plain  # images that a loss is divided by the pixels of
    model.shares = max(1, shares // count)
    firsts = range(0, len(batch.labels), size)
    pixels: list[torch.Tensor | float] = [1 / count] * count
    if size < each:
        weights = pixel_weights(batch.labels.chunk(count), model.loss).view(plain, -1)
        among = weights / weights.sum(1, keepdim=True).clamp(min=_NO_PIXELS) / plain
        pixels = list(among.flatten().to(torch.promote_types(batch.images.dtype, torch.float32)))
    try:
        for first, own in zip(firsts, pixels, strict=True):
            some = slice(first, first + size)
            part = Batch(batch.images[some], batch.labels[some], batch.names[some])
            yield part, _Shares(own, 1 / count, first == firsts[-1])
    finally:
        model.shares = shares


def smallest_batch(model: Network, crop: tuple[int, int]) -> int:
    """Fewest crops of this size (height, width) that leave every norm layer two values for a channel, or more."""
    return 1 if model.norm_values(1, *crop) >= 2 else 2


def check_batch(model: Network, recipe: Recipe, ranks: int | None = None) -> None:
    """Refuse a batch that leaves a norm layer a single value for a channel: its variance would be undefined.

    Args:
        ranks: processes that would train; None = those that do.

    Raises:
        RecipeError: with the remedy.
    """
    height, width = recipe.augment.crop
    images, parts = recipe.train.batch, recipe.train.accumulate
    world = ranks or world_size()
    shares = own_shares(recipe, world)
    if not _is_even(recipe, parts, world):
        of = f" of {shares} processes' plain means" if shares > 1 else ""
        raise RecipeError(
            f"train.accumulate = {parts} parts cannot be made of {images // world} images{of}",
            "use a divisor of them, such as --set train.accumulate=" + str(shares),
        )
    among = f", of {world} processes," if world > 1 else ""
    together = _together(recipe, world)
    if _is_too_small(model, recipe, parts, world):
        if parts > 1:
            fewer = next((n for n in range(parts - 1, 0, -1) if _divides(model, recipe, n, world)), 0)
            few = f"fewer parts, such as --set train.accumulate={fewer}" if fewer else "a larger batch"
            raise RecipeError(
                f"train.accumulate = {parts} parts of {images // world // parts} images with augment.crop = [{height}, "
                f"{width}]{among} leave one value for each channel of a norm layer",
                f"use {few}, or a larger crop",
            )
        among = among if together > 1 else ""
        raise RecipeError(
            f"train.batch = {images} with augment.crop = [{height}, {width}]{among} leaves one value for each "
            "channel of a norm layer",
            f"use a batch of at least {2 * together} (--set train.batch={2 * together}) or a larger crop",
        )


def _divides(model: Network, recipe: Recipe, parts: int, world: int) -> bool:
    """Whether `check_batch` accepts so many parts."""
    return _is_even(recipe, parts, world) and not _is_too_small(model, recipe, parts, world)


def _is_even(recipe: Recipe, parts: int, world: int) -> bool:
    """Whether so many parts are of one size, and each of whole plain means or in one of them."""
    shares = own_shares(recipe, world)
    return recipe.train.batch % (world * parts) == 0 and max(shares, parts) % min(shares, parts) == 0


def _is_too_small(model: Network, recipe: Recipe, parts: int, world: int) -> bool:
    """Whether a part leaves a norm layer a single value for a channel."""
    images = recipe.train.batch // _together(recipe, world) // parts
    return model.norm_values(images, *recipe.augment.crop) < 2


def _together(recipe: Recipe, world: int) -> int:
    """Processes that norm layers have statistics of their own in."""
    return 1 if recipe.model.norm == "sync" else world


@contextlib.contextmanager
def memory_errors(recipe: Recipe, model: Network, device: torch.device) -> Iterator[None]:
    """Raises SystemFault, with the ways out, for an allocation that is refused inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"{device}: out of memory with a batch of {recipe.train.batch}"
        raise SystemFault(message, less_memory(recipe, model)) from error


def less_memory(recipe: Recipe, model: Network) -> str:
    """What to change in a recipe whose step does not fit, in the order of how little it changes the result. All but
    recomputing makes another training of it, which a resume refuses.

    Args:
        model: as the recipe builds it; tells how many parts a batch can be made of.
    """
    train, world = recipe.train, world_size()
    counts = range(train.accumulate + 1, train.batch // world + 1)
    more = next((n for n in counts if _divides(model, recipe, n, world)), None)
    same = [] if train.recompute or train.compile else ["--set train.recompute=true, which gives the same result"]
    other = [f"--set train.accumulate={more}"] if more else []
    other += [*(["a smaller batch"] if train.batch > 1 else []), "a smaller augment.crop"]
    return (
        f"use {', or '.join([*same, 'for a new run ' + other[0], *other[1:]])}; --dry-run measures which of them fits"
    )
