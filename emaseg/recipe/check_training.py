"""Rules between the keys of [loss], [optim] and [train].

Room: recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Problem
from emaseg.recipe.training import Optim, Train

_ADAMW = Optim(lr=1.0)  # what AdamW's keys hold where nobody set them


def training_problems(recipe: Recipe) -> Iterator[Problem]:
    """What the keys that say how a network is trained contradict each other in."""
    yield from _optim(recipe.optim, recipe.train)


def _optim(optim: Optim, train: Train) -> Iterator[Problem]:
    if optim.min_lr > optim.lr:
        yield Problem("optim.min_lr", f"{optim.min_lr} is above lr = {optim.lr}")
    if optim.nesterov and optim.momentum == 0:
        yield Problem("optim.nesterov", "needs a momentum above 0")
    if optim.kind == "adamw" and optim.nesterov:
        yield Problem("optim.nesterov", 'is SGD\'s; kind is "adamw"')
    if optim.kind == "sgd":
        for name, changed in (("betas", optim.betas != _ADAMW.betas), ("eps", optim.eps != _ADAMW.eps)):
            if changed:
                yield Problem(f"optim.{name}", f'is AdamW\'s; kind is "{optim.kind}"')
    if train.iterations and optim.warmup >= train.iterations:
        yield Problem("optim.warmup", f"{optim.warmup} is no less than train.iterations = {train.iterations}")
