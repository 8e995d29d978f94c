"""The class memory (memory bank) of MemoryNet: one feature for each class of the data set, gathered while training.

Paper: Jin et al., ICCV 2021, https://arxiv.org/abs/2108.11819.
Reference: SegmentationBLWX/sssegmentation at eb1878c1.

Room: models. Legend: B batch, C channels, H W labels, h w feature grid, N = h*w pixels, K classes.

A training step computes what the memory will be, reads what it was, and stores the former. In the published code the
product with the memory is differentiated after the memory was overwritten: the gradient with respect to the class
probabilities sees the updated rows. `gradient="updated"` is that behaviour, written down instead of happening.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from emaseg.distributed.collectives import mean_over_ranks
from emaseg.models.layers import as_precise_as, without_autocast
from emaseg.models.memory_update import Ranks, Strategy, updated_memory
from emaseg.models.network import Report
from emaseg.recipe.models import MemoryNetModel

Gradient = Literal["current", "updated"]

_UNKNOWN = -1  # age of a class that was not seen since counting began
_LABELS = 256  # values that an 8-bit label can have
_NAMED = 8  # classes that a line of the report names


class ClassMemory(nn.Module):
    """One feature for each class, a moving average over the training images.

    Buffers:
        features: (K, 1, C), zero until a class is seen.
        age: (K,) int64, training steps since the class was last seen, over all processes; -1 = not seen since
            counting began. No published file has it; it changes nothing but the report.
    """

    features: torch.Tensor
    age: torch.Tensor

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        hard: bool = False,
        strategy: Strategy = "cosine_similarity",
        ranks: Ranks = "by_count",
        gradient: Gradient = "current",
    ) -> None:
        super().__init__()
        self.hard = hard
        self.strategy = strategy
        self.ranks = ranks
        self.gradient = gradient
        self.register_buffer("features", torch.zeros(classes, 1, channels))
        self.register_buffer("age", torch.full((classes,), _UNKNOWN))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """What the memory holds for the classes that `logits` sees: (B, K, h, w) -> (B, C, h, w)."""
        memory = self.features[:, 0]
        return self._read(logits, memory, memory)

    def read_and_update(
        self, logits: torch.Tensor, pixels: torch.Tensor, labels: torch.Tensor, momentum: float, shares: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One training step: read the memory as it was, then store what this batch makes of it.

        Args:
            logits: (B, K, h, w) coarse prediction.
            pixels: (B, C, h, w) features of the batch; no gradient flows back through the memory.
            labels: (B, H, W) int64, 255 = ignore.
            momentum: weight of the new features.
            shares: parts of the batch, one after the other, that stand for a process each under "plain_mean".

        Returns:
            The features read (B, C, h, w), and the memory (shares * K, C) as each share of this process's batch alone
            updates it, (K, C) under "by_count": what the memory loss classifies. Stored is what all processes make of
            it.
        """
        before = self.features[:, 0].clone()
        shares = 1 if self.ranks == "by_count" else shares
        updated = [
            updated_memory(before, some, theirs, momentum=momentum, strategy=self.strategy, ranks=self.ranks)
            for some, theirs in zip(pixels.detach().chunk(shares), labels.chunk(shares), strict=True)
        ]
        locals_, stored = zip(*updated, strict=True)
        each = locals_[0] if shares == 1 else torch.stack(locals_).repeat_interleave(len(logits) // shares, dim=0)
        read = self._read(logits, before, each if self.gradient == "updated" else before)
        self.features.copy_((stored[0] if shares == 1 else torch.stack(stored).mean(dim=0))[:, None])
        self._update_ages(labels)
        return read, torch.cat(locals_)

    def _read(self, logits: torch.Tensor, memory: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if self.hard:
            rows = memory[logits.argmax(dim=1)].movedim(3, 1)  # one row a pixel; nothing to differentiate
            return as_precise_as(rows, logits)
        with without_autocast(logits):
            probabilities = torch.softmax(as_precise_as(logits, memory), dim=1)
            read: torch.Tensor = _WeightedSum.apply(probabilities, memory, gradient)
        return as_precise_as(read, logits)

    @torch.no_grad()
    def _update_ages(self, labels: torch.Tensor) -> None:
        present = torch.zeros(_LABELS, device=labels.device).index_fill_(0, labels.flatten(), 1.0)
        seen = mean_over_ranks(present[: len(self.age)]) > 0
        older = torch.where(self.age == _UNKNOWN, _UNKNOWN, self.age + 1)
        self.age.copy_(torch.where(seen, 0, older))

    def report(self, classes: Sequence[str]) -> Report:
        """Classes never written, lengths of the rows, and how long ago the classes were seen."""
        lengths = self.features[:, 0].norm(dim=1).tolist()
        ages = [age if age != _UNKNOWN else None for age in self.age.tolist()]
        written = [i for i, length in enumerate(lengths) if length != 0]
        content = {
            "never_written": [name for i, name in enumerate(classes) if i not in written],
            "row_length": _quantiles([lengths[i] for i in written]),
            "age": _quantiles([age for age in ages if age is not None]),
            "per_class": [
                {"name": name, "row_length": _finite(length), "age": age}
                for name, length, age in zip(classes, lengths, ages, strict=True)
            ],
        }
        return Report("memory", tuple(_lines(content, len(classes))), content)


class _WeightedSum(torch.autograd.Function):
    """probabilities (B, K, h, w) x memory (K, C) -> (B, C, h, w); its gradient is taken with another memory, (K, C) or one
    for each image, (B, K, C)."""

    @staticmethod
    def forward(
        ctx: Any, probabilities: torch.Tensor, memory: torch.Tensor, gradient_memory: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(gradient_memory)
        ctx.dtype = probabilities.dtype
        batch, _, height, width = probabilities.shape
        read = memory.t() @ probabilities.flatten(2).to(memory.dtype)
        return read.view(batch, -1, height, width).to(probabilities.dtype)

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (memory,) = ctx.saved_tensors
        batch, _, height, width = incoming[0].shape
        gradient = memory @ incoming[0].flatten(2).to(memory.dtype)
        return gradient.view(batch, -1, height, width).to(ctx.dtype), None, None


def memory_momentum(model: MemoryNetModel, lr: float) -> float:
    """Momentum of the memory (weight of the new features) in a step with learning rate `lr`; it never exceeds 1.

    The published schedule lets it follow the learning rate: memory_momentum at memory_base_lr.
    """
    if not model.memory_momentum_follows_lr:
        return model.memory_momentum
    return min(1.0, model.memory_momentum / model.memory_base_lr * lr)


def _quantiles(values: Sequence[float]) -> dict[str, float | None] | None:
    """Minimum, median and maximum; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return {"min": _finite(ordered[0]), "median": _finite(ordered[len(ordered) // 2]), "max": _finite(ordered[-1])}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(content: dict[str, Any], classes: int) -> list[tuple[str, str]]:
    never, lengths, ages = content["never_written"], content["row_length"], content["age"]
    rest = f" and {len(never) - _NAMED} more" if len(never) > _NAMED else ""
    missing = f"; never: {', '.join(never[:_NAMED])}{rest}" if never else ""
    lines = [("memory", f"{classes - len(never)} of {classes} classes written{missing}")]
    if lengths:
        least, middle, most = ("not finite" if x is None else f"{x:.3g}" for x in lengths.values())
        lines.append(("row lengths", f"{least} to {most}, median {middle}"))
    if ages:
        oldest = max((c for c in content["per_class"] if c["age"] is not None), key=lambda c: int(c["age"]))
        text = f"median {ages['median']}, longest {ages['max']} ({oldest['name']})"
        lines.append(("steps since seen", text))
    return lines
