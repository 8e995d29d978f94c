"""Optimiser and learning-rate schedule.

Room: training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from emaseg.events import Note
from emaseg.models.network import NORMS
from emaseg.recipe.training import Group, Optim


def learning_rate(step: int, total: int, optim: Optim) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`, before any group's factor: the schedule's, in a
    warm-up times a factor that rises in a line from optim.warmup_ratio to 1 (mmsegmentation's "linear" one).
    """
    rate = scheduled_rate(step, total, optim)
    if step >= optim.warmup:
        return rate
    return rate * (optim.warmup_ratio + (1 - optim.warmup_ratio) * step / optim.warmup)


def scheduled_rate(step: int, total: int, optim: Optim) -> float:
    """The polynomial schedule without a warm-up.

    (lr - min_lr) * (1 - i / total)^power + min_lr with i = step. With `lr_every` above 1 steps are counted from 1
    and rounded down to a multiple of it, as the EMANet authors' loop does (their steps 1 to 9 run at full rate).

    sssegmentation divides by `total`, and so did mmcv 1.x, which trained mmsegmentation's EMANet rows in 2020. mmengine,
    which mmsegmentation trains with today, divides by total - 1 and so reaches min_lr in the last step.
    """
    i = step if optim.lr_every == 1 else (step + 1) // optim.lr_every * optim.lr_every
    decay = float(max(0.0, 1 - i / total) ** optim.power)
    return (optim.lr - optim.min_lr) * decay + optim.min_lr


def short_warmup(total: int, optim: Optim) -> list[Note]:
    """A warning where a run ends in its warm-up; of a run in iterations the recipe itself is refused."""
    if optim.warmup < max(total, 1):
        return []
    text = f"optim.warmup: its {optim.warmup} steps are no fewer than the {total} of this run"
    return [Note(f"{text}, so the learning rate never comes to optim.lr = {optim.lr:g}", warning=True)]


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimiser of every trainable parameter; one parameter group for each distinct pair of factors.

    Each group carries `lr_scale`, which `set_learning_rate` applies. On CUDA a step is one fused kernel.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, kinds in _trainable(model):
        members.setdefault(_factors(kinds, optim.groups), []).append(parameter)
    groups = [
        {"params": parameters, "lr_scale": lr, "weight_decay": optim.weight_decay * decay}
        for (lr, decay), parameters in members.items()
    ]
    fused = True if all(p.is_cuda for parameters in members.values() for p in parameters) else None
    if optim.kind == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from a saved state; the kernels stay those of this device, not those of the one it was saved on.

    PyTorch asks the saved groups where AdamW's count of steps belongs, so they are told before.
    """
    fused = [group.get("fused") for group in optimizer.param_groups]
    groups = [{**group, "fused": own} for group, own in zip(state["param_groups"], fused, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _trainable(model: nn.Module) -> Iterator[tuple[nn.Parameter, set[str]]]:
    """Each trainable parameter once, with the group kinds it belongs to."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            kinds = {"backbone"} if path.split(".")[0] == "backbone" else set()
            if name == "bias":
                kinds.add("bias")
            elif isinstance(module, NORMS):
                kinds.add("norm_weight")
            yield parameter, kinds


def _factors(kinds: set[str], groups: tuple[Group, ...]) -> tuple[float, float]:
    factors = (1.0, 1.0)
    for group in groups:
        if group.match in kinds:
            factors = (group.lr_scale, group.weight_decay_scale)
    return factors
