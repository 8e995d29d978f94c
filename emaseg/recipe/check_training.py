"""Rules between the keys of [loss], [optim] and [train].

Room: recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Problem
from emaseg.recipe.training import Loss, Optim, Train

_ADAMW = Optim(lr=1.0)  # what AdamW's keys hold where nobody set them


def training_problems(recipe: Recipe, classes: int) -> Iterator[Problem]:
    """What the keys that say how a network of so many classes is trained contradict each other in."""
    yield from _loss(recipe.loss, classes, recipe.augment.crop)
    yield from _optim(recipe.optim, recipe.train)
    yield from _train(recipe.train)


def _loss(loss: Loss, classes: int, crop: tuple[int, int]) -> Iterator[Problem]:
    if loss.class_weights and len(loss.class_weights) != classes:
        yield Problem("loss.class_weights", f"{len(loss.class_weights)} weights for {classes} classes; give one each")
    elif loss.class_weights and not any(loss.class_weights):
        yield Problem("loss.class_weights", "are all 0: nothing would be learnt")
    if loss.focal_gamma and loss.label_smoothing:
        yield Problem("loss.label_smoothing", f"has no meaning with focal_gamma = {loss.focal_gamma}; write 0")
    if loss.ohem_threshold < 1 and loss.ohem_min_kept >= crop[0] * crop[1]:
        text = f"{loss.ohem_min_kept} is no less than the pixels of augment.crop: OHEM would keep them all"
        yield Problem("loss.ohem_min_kept", f"{text}; a fifth of them is {max(1, crop[0] * crop[1] // 5)}")


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


def _train(train: Train) -> Iterator[Problem]:
    if train.patience and not train.evaluate_every:
        yield Problem("train.patience", "counts evaluations, and evaluate_every = 0 has one at the end only")
    if train.batch % train.accumulate:
        close = min(
            (n for n in range(1, train.batch + 1) if train.batch % n == 0), key=lambda n: abs(n - train.accumulate)
        )
        text = f"{train.accumulate} parts do not divide a batch of {train.batch}; the nearest that does is {close}"
        yield Problem("train.accumulate", text)
    if train.compile and train.recompute:
        yield Problem("train.compile", "cannot be combined with recompute, whose blocks are not compiled; choose one")
