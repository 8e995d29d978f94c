"""The moving average of a network's weights, which is evaluated and kept in their place: optim.average_decay.

Room: training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

_STATISTICS = ("running_mean", "running_var")  # of batch norms: they belong to the weights


class WeightAverage:
    """average = d * average + (1 - d) * weights after each step.

    d = min(decay, (1 + n) / (10 + n)) in step n from 1, as TensorFlow's ExponentialMovingAverage counts updates: so a
    short run is not ruled by its start values. Parameters and norm statistics are averaged. What a network gathers beside
    them (EM bases, class memory, counters) is an average of its own, or is none: it is taken as it is.

    Attributes:
        state: the averaged network, as `state_dict` has it, on the network's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, torch.Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}

    def __str__(self) -> str:
        return f"moving average of the weights (optim.average_decay = {self.decay:g})"

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the network after optimiser step `step`, from 1."""
        new = model.state_dict()
        parameters = dict(model.named_parameters())
        averaged = [key for key in new if key in parameters or key.rpartition(".")[2] in _STATISTICS]
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.state[key] for key in averaged], [new[key].detach() for key in averaged], share)
        for key in new.keys() - set(averaged):
            self.state[key].copy_(new[key])

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over an average that a checkpoint has."""
        for key, value in state.items():
            self.state[key].copy_(value)

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The network has the averaged values inside the block, and its own, to the bit, after it."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for key, value in model.state_dict().items():
            own = value.clone()
            value.copy_(self.state[key])
            self.state[key].copy_(own)


def average_of(model: nn.Module, decay: float) -> WeightAverage | None:
    """The average that begins with a network; None where `decay` is 0."""
    return WeightAverage(model, decay) if decay else None


def averaged(average: WeightAverage | None, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the network is what is evaluated and shown: the average of its weights, if there is one."""
    return contextlib.nullcontext() if average is None else average.in_place_of(model)
