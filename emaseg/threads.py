"""Reading many files at once, with a word on how far it is, or the next one ahead of its use.

Room: data. Imports nothing of it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        pool = ThreadPoolExecutor(_threads())
        try:
            for result in pool.map(read, items):
                results.append(result)
                rate = len(results) / max(time.monotonic() - start, 1e-6)
                yield Reading(what, len(results), len(items), rate, (len(items) - len(results)) / rate)
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def read_ahead(read: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`read` of every item, in order; the next one is read by a thread while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        ahead = reader.submit(read, items[0])
        for item in items[1:]:
            result = ahead.result()
            ahead = reader.submit(read, item)
            yield result
        yield ahead.result()


def _threads() -> int:
    """One for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)
