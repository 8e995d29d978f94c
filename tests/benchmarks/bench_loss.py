"""Time and memory of the loss: cross entropy with the gradient kept at logit resolution, against the plain graph.

    python tests/benchmarks/bench_loss.py [batch classes grid size]

Both in one run, alternating; prints medians, their ratio, and the peak memory of a process that does only one of them.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from emaseg.losses import cross_entropy

ROUNDS = 5


def lean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="valid_pixels")


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=255)


WAYS = {"lean": lean, "plain": plain}


def once(way: str, batch: int, classes: int, grid: int, size: int) -> tuple[float, float, float]:
    """Seconds, loss and gradient norm of one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, grid, grid, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (batch, size, size), generator=generator)
    began = time.perf_counter()
    loss = WAYS[way](logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    assert logits.grad is not None
    return seconds, loss.item(), logits.grad.norm().item()


def extra_memory(way: str, shape: list[int]) -> float:
    """Peak memory of one pass in a process of its own, above what the process had before, in MB."""
    command = [sys.executable, __file__, "--only", way, *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    if sys.argv[1:2] == ["--only"]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        once(sys.argv[2], *map(int, sys.argv[3:]))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    shape = [int(a) for a in sys.argv[1:]] or [4, 150, 64, 512]
    memory = {way: extra_memory(way, shape) for way in WAYS}  # first: a child starts with its parent's peak
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            seconds, loss, norm = once(way, *shape)
            times[way].append(seconds)
    for way in WAYS:
        _, loss, norm = once(way, *shape)
        seconds, extra = statistics.median(times[way]), memory[way]
        print(f"{way:6} {seconds:.3f} s  +{extra:.0f} MB  loss {loss:.6f}  gradient norm {norm:.6e}")
    ratio = statistics.median(a / b for a, b in zip(times["plain"], times["lean"], strict=True))
    print(f"plain / lean: {ratio:.2f}")


if __name__ == "__main__":
    main()
