"""What the ranks other than 0 do in a training: the same steps and evaluations, and no file, no word.

Room: training.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from emaseg.data.dataset import Dataset
from emaseg.data.pipeline.loading import batches, worker_count
from emaseg.distributed.collectives import from_rank_0, peers, rank_number, world_size
from emaseg.distributed.lockstep import Action, Followed
from emaseg.errors import DataError
from emaseg.evaluation.evaluate import evaluate
from emaseg.models import Network, build_model
from emaseg.open_datasets import open_datasets
from emaseg.recipe import Recipe
from emaseg.recipe.channels import ranges
from emaseg.schedule import build_schedule
from emaseg.training.compute import LossScale, evaluating, place, switches
from emaseg.training.image_state import image_lists
from emaseg.training.optim import build_optimizer, load_optimizer
from emaseg.training.replicas import evaluated_network, replicate, whole_batch
from emaseg.training.step import memory_errors, training_step


@dataclass(frozen=True, slots=True)
class Beginning:
    """What rank 0 tells the others before the first step. optimizer, scale: their states after a resume."""

    recipe: Recipe
    step: int
    total: int  # steps of the run
    fingerprint: Mapping[str, int | str]  # RunState's, of which `image_lists` is compared
    optimizer: dict[str, Any] | None = None
    scale: dict[str, float] | None = None


def follow(device: torch.device, stop: threading.Event) -> None:
    """Do what rank 0 does, to its end. Rank 0 sends the recipe.

    Args:
        stop: when set here, rank 0 stops as if it were set there.

    Raises:
        PeerFailed: another rank has failed.
        DataError and others: this one has; rank 0 has saved its state by then.
    """
    heard = Followed(stop)
    if heard.next() == Action.END:
        return
    with peers():
        beginning = from_rank_0(None)
    if not isinstance(beginning, Beginning):
        raise TypeError(f"rank 0 sent {type(beginning).__name__} for a beginning")
    recipe, step, total = beginning.recipe, beginning.step, beginning.total
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as ending:
        ending.callback(torch.set_num_threads, threads)
        torch.set_num_threads(recipe.train.threads or threads)
        with heard.preparing():
            train_set, eval_set, _ = open_datasets(recipe)
            _check_images(train_set, eval_set, beginning.fingerprint)
            schedule = build_schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
            model = build_model(recipe)
            model.loss = recipe.loss
            place(model, recipe.train, device)
            optimizer = build_optimizer(model, recipe.optim)
            if beginning.optimizer is not None:
                load_optimizer(optimizer, beginning.optimizer)
            scale = LossScale.of(recipe.train, device)
            if scale is not None:
                scale.restore(beginning.scale or {})
            del beginning  # else its copy of the optimiser's state stays to the end of the run
            stream = batches(
                train_set,
                recipe.augment,
                recipe.backbone.pixel_stats,
                batch=recipe.train.batch,
                start=step,
                total=total,
                seed=recipe.train.seed,
                workers=worker_count(recipe.train, device),
                rank=rank_number(),
                world=world_size(),
                ranks=recipe.train.ranks,
                device=device,
                floats=bool(ranges(recipe.data)),
            )
            ending.callback(stream.close)  # rank 0 may end before the last batch: its loading processes end now
        if heard.next() == Action.END:
            return
        with peers():
            forward = replicate(model, recipe, device)
        with switches(recipe.train, device), memory_errors(recipe, model, device):
            while True:
                with heard.preparing():
                    batch = next(stream, None)
                while (action := heard.next()) == Action.EVALUATE:
                    _evaluate(model, eval_set, recipe, device, stop)
                if action == Action.END or batch is None:
                    return
                schedule = replace(schedule, total=heard.total)
                with peers():
                    result = training_step(
                        model, optimizer, batch, step, schedule, recipe, forward=forward, scale=scale
                    )
                    if not result.finite:
                        whole_batch(batch)
                step += 1


def _check_images(train_set: Dataset, eval_set: Dataset, first: Mapping[str, int | str]) -> None:
    """
    Raises:
        DataError: other images than rank 0's: samples would be drawn and scored twice, and others never.
    """
    own = image_lists(train_set, eval_set)
    if all(first[key] == value for key, value in own.items()):
        return
    here, there = (f"{lists['images']} to train on and {lists['eval_images']} to evaluate" for lists in (own, first))
    raise DataError(
        f"rank {rank_number()} has other images than rank 0, or other names for them: {here} here, {there} there",
        "give each machine the same copy of the data",
    )


def _evaluate(model: Network, dataset: Dataset, recipe: Recipe, device: torch.device, stop: threading.Event) -> None:
    """This rank's part of an evaluation; rank 0 has the scores, too."""
    protocol = recipe.inference, recipe.backbone.pixel_stats, device
    model.eval()
    with peers(), evaluating(recipe.train, device), evaluated_network(model, recipe):
        for _ in evaluate(model, dataset, *protocol, shared=True, stop=stop):
            pass
    model.train()
