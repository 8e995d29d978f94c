"""How many steps a run has: the recipe's, or fewer where train.hours or train.patience say so.

Room: training. Times are seconds.

train.hours shortens the schedule instead of cutting it. After DECIDES_AFTER steps of a start the pace is known. If the
rest would take longer than what is left, the run gets a smaller number of steps there and then: the learning rate falls
to its end within them, and evaluations keep their distance.

Whatever is decided is kept in every checkpoint from then on, so a resume repeats it instead of deciding again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from emaseg.recipe.training import Train
from emaseg.schedule import Schedule

DECIDES_AFTER = 20  # steps of a start: the pace is known to a few per cent then
_NOT_COUNTED = 2  # first steps, which start threads and fill caches
_SAFETY = 0.97  # of the time that is left
STALLED = "stalled"  # a checkpoint's sampler has it where the recipe has train.patience


@dataclass(slots=True)
class RunSteps:
    """The schedule of a run as far as it is known now.

    decided: steps that were decided on; 0 = the recipe's. Of several processes rank 0 alone decides.
    stalled: evaluations in a row without a better mIoU. They are counted, for a resume may change their distance.
    """

    schedule: Schedule
    train: Train
    decided: int = 0
    stalled: int = 0
    _began: float = field(default_factory=lambda: time.monotonic())
    _counted_from: float = 0.0
    _steps: int = 0

    def after_step(self, step: int, evaluation: Callable[[], float]) -> str:
        """Decide, once, how many steps fit into train.hours; to be called after every step.

        Args:
            step: steps done. evaluation: measures what one takes.

        Returns:
            What was changed, in a line, or "".
        """
        if not self.train.hours or self.decided:
            return ""
        self._steps += 1
        now = time.monotonic()
        if self._steps == _NOT_COUNTED:
            self._counted_from = now
        if self._steps < DECIDES_AFTER:
            return ""
        pace = (now - self._counted_from) / (self._steps - _NOT_COUNTED)
        each = evaluation() if self.schedule.scored else 0.0
        left = _SAFETY * (3600 * self.train.hours - (time.monotonic() - self._began))
        before = self.schedule.total
        self._end_at(shortened(self.schedule, step, pace, each, left).total)
        if self.decided == before:
            return ""
        return (
            f"train.hours = {self.train.hours:g}: {self.decided} steps instead of {before}, and the learning rate falls within "
            "them"
        )

    def after_evaluation(self, best: Mapping[str, float]) -> str:
        """End the run where train.patience evaluations in a row brought no better mIoU; to be called after each.

        Args:
            best: step: of the best mIoU; evaluated: last step that was evaluated.

        Returns:
            What was decided, in a line, or "".
        """
        patience = self.train.patience
        self.stalled = self.stalled + 1 if best["evaluated"] > best["step"] else 0
        if not patience or self.stalled < patience:
            return ""
        self._end_at(int(best["evaluated"]))
        return (
            f"no better mIoU than at step {best['step']:.0f} in {patience} evaluations: the run ends (train.patience)"
        )

    @property
    def remembered(self) -> dict[str, int]:
        """What a checkpoint's sampler keeps of it."""
        steps = {"steps": self.decided} if self.decided else {}
        return {**steps, STALLED: self.stalled} if self.train.patience else steps

    def restore(self, sampler: Mapping[str, int | str], best: Mapping[str, float], every: int) -> None:
        """Go on with what a checkpoint remembers.

        Args:
            best: as after_evaluation has it; {} before the first. every: steps between the evaluations until then, by
                which older checkpoints tell how many there were.
        """
        if "steps" in sampler:
            self._end_at(int(sampler["steps"]))
        stalled = sampler.get(STALLED)
        if type(stalled) is int:
            self.stalled = stalled
        elif every and "step" in best:
            self.stalled = int(best["evaluated"] - best["step"]) // every

    def _end_at(self, steps: int) -> None:
        self.schedule, self.decided = replace(self.schedule, total=steps), steps


def shortened(schedule: Schedule, step: int, pace: float, evaluation: float, left: float) -> Schedule:
    """The schedule with the most steps, one more than `step` at least, whose rest fits into `left`; never longer.

    Args:
        step: steps done. pace: what a step takes. evaluation: what an evaluation takes.
    """
    low, high = step + 1, max(schedule.total, step + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if time_after(replace(schedule, total=middle), step, pace, evaluation) <= left:
            low = middle
        else:
            high = middle - 1
    return replace(schedule, total=min(low, schedule.total))


def time_after(schedule: Schedule, step: int, pace: float, evaluation: float) -> float:
    """What is still to come after `step` steps takes, evaluations included."""
    total, every = schedule.total, schedule.every
    evaluations = (total // every - step // every if every else 0) + (not every or total % every > 0)
    return (total - step) * pace + (evaluations * evaluation if schedule.scored else 0.0)
