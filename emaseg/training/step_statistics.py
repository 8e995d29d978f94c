"""Rates, time left, and the rows of metrics.csv, out of the steps of a run.

Room: training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from emaseg.events import Stepped
from emaseg.free_memory import peak_memory
from emaseg.recipe import Recipe
from emaseg.schedule import Schedule
from emaseg.training.optim import learning_rate

_WARM_UP = 2  # steps of a start that fill caches and start threads: nothing is forecast from them


@dataclass(slots=True)
class StepStatistics:
    """What is known about the pace and the losses of a run.

    running: sums since the last row of metrics.csv, which travel in the checkpoint so that a row after a resume means
    as many steps as one without: `steps` and their `loss`; for each term `sum_<term>` over its `count_<term>` steps.
    Plain sums in the order of the steps, so that a cut in between changes no bit.
    """

    recipe: Recipe
    schedule: Schedule
    running: dict[str, float]
    device: torch.device
    steps: int = 0  # since this start
    seconds: float = 0.0  # of one step, smoothed
    waiting: float = 0.0  # of it, for data
    evaluating: float = 0.0  # seconds of the last evaluation of this start

    def event(self, step: int, losses: Mapping[str, float], waited: float, took: float) -> Stepped:
        """The event of a step that is done.

        Args:
            step: steps done, this one included.
            losses: the losses of this step by name.
            waited: seconds it waited for data; took: seconds in all.
        """
        self.steps += 1
        fresh = self.steps <= _WARM_UP + 1  # each of the first steps counts for itself, and is forgotten
        self.seconds = took if fresh else 0.9 * self.seconds + 0.1 * took
        self.waiting = waited if fresh else 0.9 * self.waiting + 0.1 * waited
        loss = sum(losses.values())
        if math.isfinite(loss):  # in fp16 a step may overflow, and is left out then
            self._add("steps", 1)
            self._add("loss", loss)
            for name, value in losses.items():
                self._add(f"sum_{name}", value)
                self._add(f"count_{name}", 1)
        return Stepped(
            step=step,
            total_steps=self.schedule.total,
            epoch=self.schedule.epoch(step - 1),
            loss=loss,
            losses=losses,
            lr=learning_rate(step - 1, self.schedule.total, self.recipe.optim),
            images_per_second=self.recipe.train.batch / self.seconds,
            data_wait=min(1.0, self.waiting / self.seconds),
            seconds_left=None if self.steps <= _WARM_UP else self._seconds_after(step),
            epochs=self.schedule.epoch(max(0, self.schedule.total - 1)),
            peak_memory=peak_memory(self.device),
        )

    def _seconds_after(self, step: int) -> float:
        """Of the steps and, from the first one on, of the evaluations to come."""
        return (self.schedule.total - step) * self.seconds + self.schedule.evaluations_after(step) * self.evaluating

    def row(self, event: Stepped) -> dict[str, float] | None:
        """The row of metrics.csv that is due after a step; None where none is, or no step since the last row was finite.
        The sums then begin anew.

        Means over the steps since the last row; a loss that started in between, over the steps that had it.
        """
        if event.step % self.recipe.train.log_every and event.step != self.schedule.total:
            return None
        row = self._means(event.step, event.losses)
        if row is None:
            return None
        row["images_per_second"] = event.images_per_second
        row["data_wait"] = event.data_wait
        if event.peak_memory is not None:
            row["peak_memory"] = event.peak_memory
        return row

    def last_row(self, step: int) -> dict[str, float] | None:
        """The row of the steps since the last one where the run ends after so many, before a row is due; None where there
        are none. To be asked before the schedule is told that end: the learning rate is the one of the step."""
        return self._means(step, [key.removeprefix("sum_") for key in self.running if key.startswith("sum_")])

    def _means(self, step: int, losses: Iterable[str]) -> dict[str, float] | None:
        """Step, epoch, learning rate and the means of the sums, which begin anew."""
        sums = self.running
        if not sums:
            return None
        rate = learning_rate(step - 1, self.schedule.total, self.recipe.optim)
        row = {"step": step, "epoch": self.schedule.epoch(step - 1), "lr": rate, "loss": sums["loss"] / sums["steps"]}
        for name in losses:
            if f"count_{name}" in sums:
                row[f"loss_{name}"] = sums[f"sum_{name}"] / sums[f"count_{name}"]
        sums.clear()
        return row

    def _add(self, key: str, value: float) -> None:
        self.running[key] = self.running.get(key, 0) + value
