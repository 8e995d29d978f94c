"""Several processes train one network step by step together: rank 0 says what comes next, the others do the same.

Room: distributed.

Before each action all ranks exchange one message of four integers: what rank 0 does next, whether a rank has failed (its
exit code), whether one was asked to stop, and the steps of the run, which rank 0 may have shortened. Rank 0 alone looks
at the clock, writes files and talks to people. A rank that cannot go on, because an image is damaged, says so in that
message, where nobody is in the middle of a step: rank 0 saves what there is, and only then all end. A rank that dies
otherwise closes its connections; the others notice at the next message and end without a word (`PeerFailed`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from emaseg.distributed.collectives import BUG, largest_over_ranks, peers, world_size
from emaseg.errors import PeerFailed


class Action(IntEnum):
    """What comes next."""

    NONE = 0  # what others than rank 0 say
    START = 1  # receive recipe and step, and prepare
    READY = 2  # make the networks one
    STEP = 3
    EVALUATE = 4
    END = 5


@dataclass(slots=True)
class Lead:
    """Rank 0's side; on a single process nothing happens.

    between: nobody is in the middle of an action, so that END will be heard. action: the last one that was begun.
    """

    stop: threading.Event
    between: bool = True
    action: Action = Action.NONE

    @property
    def whole(self) -> bool:
        """Whether nobody is in the middle of a step: what an evaluation that failed leaves can be saved."""
        return self.between or self.action == Action.EVALUATE

    @contextlib.contextmanager
    def doing(self, action: Action, total: int = 0) -> Iterator[None]:
        """Tell the others to do as the block does.

        Args:
            total: steps of the run, as they are known now.

        Raises:
            PeerFailed: one cannot.
        """
        if world_size() == 1:
            yield
            return
        self._say(action, total)
        self.between, self.action = False, action
        with peers():
            yield
        self.between = True

    def end(self) -> None:
        """Let the others go, if they can hear it."""
        if world_size() > 1 and self.between:
            self.between = False
            with contextlib.suppress(PeerFailed):
                self._say(Action.END, 0)

    def _say(self, action: Action, total: int) -> None:
        self.between, before = False, self.between
        with peers():
            _, failed, stop, _ = largest_over_ranks([action, 0, int(self.stop.is_set()), total])
        self.between = before
        if stop:
            self.stop.set()
        if failed and action != Action.END:
            raise PeerFailed(failed)


@dataclass(slots=True)
class Followed:
    """The side of any other rank."""

    stop: threading.Event
    total: int = 0  # steps of the run, as rank 0 said last

    def next(self) -> Action:
        """What rank 0 does next.

        Raises:
            PeerFailed: it is gone.
        """
        action, failed = self._exchange(0)
        if failed and action != Action.END:  # another one's; rank 0 saves, then says END
            action, _ = self._exchange(0)
        return action

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What this rank does alone between two actions. An error waits until rank 0 has saved what there is."""
        try:
            yield
        except Exception as error:
            code = int(getattr(error, "exit_code", BUG))
            with contextlib.suppress(PeerFailed):
                action, _ = self._exchange(code)
                if action != Action.END:
                    self._exchange(0)
            raise

    def _exchange(self, failed: int) -> tuple[Action, int]:
        with peers():
            action, code, _, total = largest_over_ranks([Action.NONE, failed, int(self.stop.is_set()), 0])
        self.total = total or self.total
        return Action(action), code
