"""How many steps a run has, and which epoch and evaluation a step belongs to.

Room: schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

from emaseg.errors import DataError
from emaseg.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a run.

    total: optimiser steps. per_epoch: steps of one pass over the data (a rest smaller than a batch is dropped).
    every: steps between evaluations; 0 = only at the end. scored: there are evaluations; a test set whose labels its
    owners keep has none.
    """

    total: int
    per_epoch: int
    every: int
    scored: bool = True

    def epoch(self, step: int) -> int:
        """Epoch, from 1, that step `step` (from 0) belongs to."""
        return step // self.per_epoch + 1

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        return self.scored and (step == self.total or bool(self.every and step and step % self.every == 0))

    def evaluations_after(self, step: int) -> int:
        """Evaluations that are due after more than `step` steps."""
        if not self.scored or step >= self.total:
            return 0
        return -(-self.total // self.every) - step // self.every if self.every else 1


def build_schedule(recipe: Recipe, train_images: int, *, scored: bool = True) -> Schedule:
    """Steps of a recipe on so many training images; `scored` as in Schedule.

    Raises:
        DataError: fewer images than one batch holds.
    """
    train = recipe.train
    per_epoch = steps_per_epoch(train_images, train.batch, train.ranks or 1)
    unit = per_epoch if train.epochs else 1
    total = train.epochs * per_epoch if train.epochs else train.iterations
    return Schedule(total, per_epoch, train.evaluate_every * unit, scored)


def steps_per_epoch(images: int, batch: int, world: int = 1) -> int:
    """Steps of one pass over the training images; a rest smaller than a batch is dropped.

    Images are first filled up to a multiple of `world` training processes, as DistributedSampler does.

    Raises:
        DataError: fewer images than one batch holds.
    """
    steps = -(-images // world) // (batch // world)
    if steps == 0:
        raise DataError(
            f"{images} training images do not fill one batch of {batch}",
            f"use a smaller batch (--set train.batch={max(1, images)}) or more images",
        )
    return steps
