"""Reading many files at once, with a word on how far it is, or the next one ahead of its use.

Room: threads.

The threads are daemons, and nobody waits for one that is at work: a file on a network disk that hangs must not keep
Ctrl-C from ending the program, as the standard library's pool would.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 16
_WRITE_TIMEOUT = 30.0  # seconds that a file which is being written gets to be whole
_JOIN_TIMEOUT = 1.0  # seconds that threads get to end when nobody wants their results any more


@dataclass(frozen=True, slots=True)
class Reading:
    """Some more files of a job are read. `what`: the job; images_per_second: so far, on the average."""

    what: str
    done: int
    total: int
    images_per_second: float
    seconds_left: float


def read_all(
    what: str, read: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Reading, None, list[Result]]:
    """`read` of every item, in order, by a thread for each core: Pillow decodes without holding Python's lock.

    The first exception of `read` ends it.
    """
    results: list[Result] = []
    start = time.monotonic()
    with warnings.catch_warnings():  # the readers' own filters belong to the process, and threads mix them up
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        for result in _in_threads(read, items, min(core_count(), _MOST_THREADS), len(items), "read"):
            results.append(result)
            rate = len(results) / max(time.monotonic() - start, 1e-6)
            yield Reading(what, len(results), len(items), rate, (len(items) - len(results)) / rate)
    return results


def read_ahead(read: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
    """`read` of every item, in order; the next one is read by a thread while the caller works on this one."""
    return _in_threads(read, items, 1, 1, "read-ahead")


def write_behind(
    write: Callable[[Item], Result], items: Iterable[Item], waits: Callable[[Item], bool] = lambda _: False
) -> Generator[Result, None, None]:
    """`write` of every item, in order, by a thread, while the caller's thread makes the next item.

    One item is made ahead at most. Whoever ends this early waits for the one that is being written.

    Args:
        waits: of an item, whether it must be written before the next one is made.
    """
    tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    pending: deque[Future[Result]] = deque()
    thread = threading.Thread(target=_work, args=[tasks, write], name="write-behind", daemon=True)
    thread.start()
    try:
        for item in items:
            future: Future[Result] = Future()
            pending.append(future)
            most = 0 if waits(item) else 1
            tasks.put((future, item))
            del item
            while len(pending) > most or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        tasks.put(None)
        thread.join(_WRITE_TIMEOUT)


def _in_threads(
    read: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int, name: str
) -> Generator[Result, None, None]:
    """`read` of every item, in order, by so many threads; at most `ahead` are read or waiting to be beside the one in
    use. A wait for a result obeys signals."""
    tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    futures: deque[Future[Result]] = deque()
    rest = iter(items)

    def submit(count: int) -> None:
        for item in itertools.islice(rest, count):
            future: Future[Result] = Future()
            futures.append(future)
            tasks.put((future, item))

    pool = [
        threading.Thread(target=_work, args=[tasks, read], name=f"{name}_{number}", daemon=True)
        for number in range(threads)
    ]
    for thread in pool:
        thread.start()
    try:
        submit(ahead)
        while futures:
            result = futures.popleft().result()
            submit(1)
            yield result
    finally:
        for future in futures:
            future.cancel()
        for _ in pool:
            tasks.put(None)
        deadline = time.monotonic() + _JOIN_TIMEOUT
        for thread in pool:
            thread.join(max(0.0, deadline - time.monotonic()))


def _work(tasks: SimpleQueue[tuple[Future[Result], Item] | None], read: Callable[[Item], Result]) -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = read(item)
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is asked for)
            future.set_exception(error)
        else:
            future.set_result(result)
        del future, item, task  # a thread that waits keeps no image in memory


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
