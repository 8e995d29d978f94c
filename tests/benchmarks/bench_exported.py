"""Time for an image of a checkpoint and of the files exported from it, alternating in one run.

    python -m tests.benchmarks.bench_exported HEIGHTxWIDTH CHECKPOINT FILE...

Each is given the same normalised image; prints the median of ROUNDS passes, and the share of the checkpoint's time.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn

from emaseg.reference import open_model, resolve

ROUNDS = 15
THREADS = 2


def once(model: nn.Module, image: torch.Tensor) -> float:
    """Seconds of one pass."""
    began = time.perf_counter()
    with torch.inference_mode():
        model(image)
    return time.perf_counter() - began


def main(size: str, references: list[str]) -> None:
    torch.set_num_threads(THREADS)
    height, width = map(int, size.split("x"))
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    models = {name: open_model(resolve(name), torch.device("cpu")) for name in references}
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 2):
        for name, model in models.items():
            seconds = once(model, image)
            if round_ >= 2:  # the first passes allocate
                times[name].append(seconds)
    whole = statistics.median(times[references[0]])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name}: {1000 * middle:.1f} ms, {100 * middle / whole:.0f}%")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
