"""A run in TensorBoard: the rows of metrics.csv as curves, and the IoU of each class.

Room: runs. Imports the optional package only when a run asks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emaseg.errors import SystemFault
from emaseg.events import Evaluated, Logged, TrainEvent, TrainingStarted
from emaseg.extras import install
from emaseg.files import fault
from emaseg.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

INSTALL = install("tensorboard")


def check_tensorboard() -> None:
    """
    Raises:
        SystemFault: the package is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise SystemFault("train.tensorboard: the package tensorboard is not installed", INSTALL)


@contextmanager
def drawn(run: RunFolder, wanted: bool) -> Iterator[Callable[[TrainEvent], None]]:
    """Within the block, what to call with each event of a run: a TensorBoard where it is wanted, else nothing.

    Raises:
        SystemFault: as TensorBoard.
    """
    if not wanted:
        yield _ignore
        return
    with contextlib.closing(TensorBoard(run)) as board:
        yield board


def _ignore(event: TrainEvent) -> None:
    """No TensorBoard."""


class TensorBoard:
    """Writes the events of a run to RUN/tensorboard; call it with each of them, as any callback.

    A resumed run goes on in a new file, which takes back the points after its first step: each step is drawn once.

    Raises:
        SystemFault: the package is not installed; disk full, no permission.
    """

    def __init__(self, run: RunFolder) -> None:
        check_tensorboard()
        self._run = run
        self._writer: SummaryWriter | None = None

    def __call__(self, event: TrainEvent) -> None:
        with self._faults():
            if isinstance(event, TrainingStarted):
                self._open(event.step)
            elif isinstance(event, Logged):
                self._draw(event.step, {name: value for name, value in event.values.items() if name != "epoch"})
            elif isinstance(event, Evaluated) and event.step is not None:
                classes = event.scores.per_class
                self._draw(event.step, {f"iou/{c.name}": c.iou for c in classes if c.iou is not None})

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._run.tensorboard), purge_step=step + 1)

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run loses no point before its checkpoint

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise fault(error, self._run.tensorboard, "writing it") from error
