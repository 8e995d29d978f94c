"""Time and memory of the loss: cross entropy with the gradient kept at logit resolution, against the plain graph.

    python -m tests.benchmarks.bench_loss [batch classes height width]

Without numbers: 4 crops of 512x512, and one image of 1024x2048, both with 150 classes; the logits are at stride 8. Both
ways take turns in one run; prints medians, the median of the paired ratios, and the peak memory of a process that does
only one of them, above what it held before.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from emaseg.free_memory import peak_memory, reset_peak
from emaseg.losses.cross_entropy import cross_entropy

ROUNDS = 5
STRIDE = 8
CASES = ((4, 150, 512, 512), (1, 150, 1024, 2048))
CPU = torch.device("cpu")
Case = tuple[int, int, int, int]


def lean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="valid_pixels")


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=255)


WAYS = {"lean": lean, "plain": plain}


def made(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    batch, classes, height, width = case
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, height // STRIDE, width // STRIDE, generator=generator).requires_grad_()
    return logits, torch.randint(0, classes, (batch, height, width), generator=generator)


def once(way: str, case: Case) -> tuple[float, float, float]:
    """Seconds, loss and gradient norm of one forward and backward pass."""
    logits, labels = made(case)
    began = time.perf_counter()
    loss = WAYS[way](logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    assert logits.grad is not None
    return seconds, loss.item(), logits.grad.norm().item()


def own_peak(way: str, case: Case) -> float:
    """Peak memory of one pass in this process, above what it held before, in MB."""
    once(way, (1, 2, 64, 64))  # threads and libraries
    logits, labels = made(case)
    reset_peak(CPU)
    before = peak_memory(CPU) or 0
    WAYS[way](logits, labels).backward()  # type: ignore[no-untyped-call]
    return ((peak_memory(CPU) or 0) - before) / 2**20


def extra_memory(way: str, case: Case) -> float:
    """`own_peak` of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_loss", "--only", way, *map(str, case)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(case: Case) -> None:
    batch, classes, height, width = case
    print(f"{batch} x {height}x{width}, {classes} classes")
    memory = {way: extra_memory(way, case) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            times[way].append(once(way, case)[0])
    for way in WAYS:
        _, loss, norm = once(way, case)
        seconds = statistics.median(times[way])
        print(f"  {way:6} {seconds:.3f} s  +{memory[way]:.0f} MB  loss {loss:.6f}  gradient norm {norm:.6e}")
    ratio = statistics.median(a / b for a, b in zip(times["lean"], times["plain"], strict=True))
    print(f"  lean / plain: time {ratio:.2f} (wanted: at most 1), memory {memory['lean'] / memory['plain']:.2f} (1/4)")


def main() -> None:
    if sys.argv[1:2] == ["--only"]:
        batch, classes, height, width = map(int, sys.argv[3:])
        print(own_peak(sys.argv[2], (batch, classes, height, width)))
        return
    numbers = [int(a) for a in sys.argv[1:]]
    for case in [(numbers[0], numbers[1], numbers[2], numbers[3])] if numbers else CASES:
        compare(case)


if __name__ == "__main__":
    main()
