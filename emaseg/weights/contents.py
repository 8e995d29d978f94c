"""What one of our checkpoints must hold, and what weights must be, before anything is done with them.

Room: weights.

Whoever resumes obeys every number in the file, so each is looked at: a wrong one is named here, with its key, instead of
becoming another error deep inside PyTorch, or another training without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import torch

from emaseg.errors import WeightsError
from emaseg.words import excerpt

MOST_STEPS = 10**12
MOST_TEXT = 1 << 20  # characters of the recipe
MOST_SEED = (1 << 64) - 1
_MOST_NAME = 80  # characters of a text in the sampler's table
_FEW = 6  # names that a message lists
_NEWER = ("maximize", "foreach", "differentiable", "fused")  # keys that older versions of PyTorch do not save
_CUDA_STATE = 16  # bytes
_CALLED = {"momentum_buffer": "momentum", "exp_avg": "momentum", "exp_avg_sq": "mean square"}
_SCALER = {
    *("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"),  # of torch.amp.GradScaler
    *("skipped", "in_a_row"),
}


def check_contents(content: Mapping[str, Any], source: str) -> None:
    """Hold the keys of a checkpoint to their types and ranges.

    Raises:
        WeightsError: one is missing or is not what it must be; says which and what it must be.
    """
    missing = [key for key in _RULES if key not in content]
    if missing:
        raise WeightsError(f"{source}: incomplete checkpoint, no {', '.join(missing)}", "use another checkpoint")
    wrong = [f"{key} must be {what}" for key, (what, holds) in _RULES.items() if not holds(content[key])]
    if not wrong and content["best"]:
        wrong += [
            f"best.{key} is after step {content['step']}"
            for key in ("step", "evaluated")
            if content["best"].get(key, 0) > content["step"]
        ]
    if wrong:
        raise WeightsError(f"{source}: not a checkpoint that can be used: {'; '.join(wrong)}", "use another checkpoint")


def _is_count(value: object, most: int = MOST_STEPS) -> bool:
    return type(value) is int and 0 <= value <= most


def is_table_of_tensors(value: object) -> TypeGuard[Mapping[str, torch.Tensor]]:
    """Whether a value is a dictionary of tensors by name."""
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items()
    )


def _is_optimizer(value: object) -> bool:
    """Empty, as in exported weights, or what an optimiser of torch saves; that it fits the network is `optimizer_faults`."""
    if not isinstance(value, Mapping) or not value:
        return isinstance(value, Mapping)
    state, groups = value.get("state"), value.get("param_groups")
    return (
        isinstance(state, Mapping)
        and all(_is_count(key) and isinstance(item, Mapping) for key, item in state.items())
        and isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
    )


def _is_best(value: object) -> bool:
    if not isinstance(value, Mapping) or not set(value) <= {"miou", "step", "evaluated"}:
        return False
    if ("miou" in value) != ("step" in value) or not all(_is_count(value.get(key, 0)) for key in ("step", "evaluated")):
        return False
    miou = value.get("miou", 0.0)
    return type(miou) in (int, float) and 0 <= miou <= 1


def _is_bytes(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 1


def _is_rng(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return isinstance(value, Mapping)
    cuda = value.get("cuda")
    return (
        {"cpu", "cuda"} <= set(value) <= {"cpu", "cuda", "mps"}
        and _is_bytes(value["cpu"])
        and isinstance(cuda, list)
        and all(map(_is_bytes, cuda))
        and _is_bytes(value.get("mps", value["cpu"]))
    )


def _is_sampler(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and (_is_count(item, MOST_SEED) or (isinstance(item, str) and len(item) <= _MOST_NAME))
        for key, item in value.items()
    )


def _is_running(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and type(item) in (int, float) and math.isfinite(item) for key, item in value.items()
    )


def _is_scaler(value: object) -> bool:
    """Empty, or what compute.LossScale keeps: finite numbers, none of which may be negative."""
    if not isinstance(value, Mapping) or not value:
        return isinstance(value, Mapping)
    return (
        set(value) == _SCALER
        and _is_running(value)
        and all(number >= 0 for number in value.values())
        and value["scale"] > 0
    )


_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "model": ("a table of tensors", is_table_of_tensors),
    "optimizer": ("an optimiser's state, or empty", _is_optimizer),
    "step": ("a whole number of steps", _is_count),
    "epoch": ("a whole number of epochs", _is_count),
    "best": ("miou from 0 to 1, step and evaluated, or empty", _is_best),
    "rng": ("the generators' states, or empty", _is_rng),
    "sampler": ("a table of whole numbers and short texts", _is_sampler),
    "running": ("a table of numbers", _is_running),
    "average": ("a table of tensors", is_table_of_tensors),
    "scaler": ("empty, or the loss scale's numbers", _is_scaler),
    "recipe": ("a recipe's text", lambda value: isinstance(value, str) and len(value) <= MOST_TEXT),
}


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights that make every prediction meaningless. One pass: a sum is finite only where its terms are.

    Raises:
        WeightsError: NaN, infinite values, or negative variances; names the tensors and how many of their values.
    """
    lines = []
    for key, value in state.items():
        if not value.is_floating_point() or not value.numel():
            continue
        negative = key.endswith("running_var") and bool((value < 0).any())
        if negative or not math.isfinite(float(value.sum())):  # halves may overflow in a sum: count to be sure
            bad = ~torch.isfinite(value) | (value < 0) if negative else ~torch.isfinite(value)
            count = int(bad.sum())
            if count:
                lines.append(f"{excerpt(key)} ({count:,} of {value.numel():,} values)")
    if lines:
        raise WeightsError(
            f"{source}: the weights are not finite: {', '.join(_few(lines))}",
            "use a checkpoint from before that, or copy or download the file again",
        )


def _few(lines: list[str]) -> list[str]:
    rest = len(lines) - _FEW
    return lines if rest <= 0 else [*lines[:_FEW], f"... and {rest} more"]


def optimizer_faults(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, step: int, skipped: int = 0
) -> list[str]:
    """What keeps a saved state, one that `check_contents` has passed, from going on with `optimizer` after `step`.

    skipped: steps that overflowed in fp16, before the first other one of which there is no momentum.
    """
    own, saved = optimizer.state_dict()["param_groups"], state["param_groups"]
    if [group["params"] for group in own] != [list(group["params"]) for group in saved]:
        return ["its parameter groups are those of another network"]
    faults = [f for i, (now, then) in enumerate(zip(own, saved, strict=True)) for f in _group_faults(i, now, then)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    faults += [
        f"momentum of a parameter {key} that the network has not" for key in state["state"] if key >= len(parameters)
    ]
    adamw = "betas" in own[0]
    names = ("exp_avg", "exp_avg_sq") if adamw else ("momentum_buffer",)
    states = {key: item for key, item in state["state"].items() if key < len(parameters)}
    kept = adamw or own[0]["momentum"]
    if step > skipped and kept and not any(_is_tensor(item.get(names[0])) for item in states.values()):
        faults.append("it has no momentum")
    for key, item in states.items():
        for name in names:
            fault = _momentum_fault(item.get(name), parameters[key])
            faults += [f"{_CALLED[name]} of parameter {key}: {fault}"] if fault else []
        if adamw and not _is_step(item.get("step"), step):
            faults.append(f"steps of parameter {key}: no whole number up to {step}")
        if adamw and not all(_is_tensor(item.get(name)) for name in names):
            faults.append(f"{_CALLED[names[0]]} of parameter {key}: incomplete")
    return faults


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _is_step(value: object, most: int) -> bool:
    """Whether AdamW's count of a parameter is one."""
    return (
        isinstance(value, torch.Tensor)
        and value.numel() == 1
        and value.is_floating_point()
        and 1 <= value.item() <= most
    )


def _group_faults(index: int, own: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterable[str]:
    """The learning rate is set before every step, and the device decides on fused kernels; everything else must be the
    recipe's."""
    for key, value in own.items():
        if key in ("params", "lr", "fused") or (key in _NEWER and key not in saved):
            continue
        if type(saved.get(key)) is not type(value) or saved[key] != value:
            yield f"{key} of parameter group {index} is {excerpt(saved.get(key, 'absent'))}, the recipe's is {value}"
    rate = saved.get("lr")
    if not isinstance(rate, int | float) or not 0 <= rate < math.inf:
        yield f"lr of parameter group {index} is not a learning rate"


def _momentum_fault(momentum: object, parameter: torch.Tensor) -> str:
    if momentum is None:
        return ""
    if not isinstance(momentum, torch.Tensor) or momentum.dtype != parameter.dtype:
        return "not numbers of the parameter's type"
    if momentum.shape != parameter.shape:
        return f"{tuple(momentum.shape)}, the parameter is {tuple(parameter.shape)}"
    return "" if bool(torch.isfinite(momentum).all()) else "not finite"


def rng_faults(rng: Mapping[str, Any]) -> list[str]:
    """What keeps saved generator states, which `check_contents` has passed, from being set."""
    try:
        torch.Generator().set_state(rng["cpu"])
    except (RuntimeError, TypeError):
        return ["its random generator's state is not one of this version of PyTorch"]
    if any(len(state) != _CUDA_STATE for state in rng["cuda"]):
        return ["its GPU generator's state is damaged"]
    if "mps" in rng and torch.backends.mps.is_available() and len(rng["mps"]) != len(torch.mps.get_rng_state()):
        return ["its Apple GPU generator's state is damaged"]
    return []
