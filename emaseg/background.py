"""One piece of work in a thread of its own, which signals do not interrupt.

Room: background.

Python runs signal handlers in the main thread only. Work that must not stop half-way therefore runs in another thread:
an exception out of a handler would otherwise rise anywhere in it, also out of C++ code that answers with an error of
its own.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable


class Background:
    """Runs `work` at once, in a thread; its failure is raised where it is waited for."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._once, self._done = threading.Lock(), threading.Event()
        self._failure: BaseException | None = None
        self._start_failed = False
        try:
            _thread.start_new_thread(self._run, ())  # Thread.start waits, and would leave with a handler's exception
        except RuntimeError:  # the system gives no more threads
            self._start_failed = True

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._done.is_set()

    def wait(self) -> None:
        """Wait for the end, whatever signals come; then let an exception pass that a handler raised meanwhile.

        Raises:
            whatever the work raised, once; after that the work counts as done.
        """
        interruption: BaseException | None = None
        while not self._done.is_set():
            try:
                if self._start_failed:
                    self._run()
                self._done.wait()
            except BaseException as error:  # noqa: BLE001  (raised below)
                interruption = interruption or error
        failure, self._failure = self._failure, None
        if interruption is not None:
            raise interruption
        if failure is not None:
            raise failure

    def _run(self) -> None:
        if not self._once.acquire(blocking=False):
            return
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  (raised by `wait`, in the caller's thread)
            self._failure = error
        finally:
            self._done.set()
