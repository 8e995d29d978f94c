"""Time and memory of the feature-memory update: on the grid, against the published rule on upsampled features.

    python tests/benchmarks/bench_memory_update.py [batch classes channels grid size]

Both in one run, alternating; prints medians, the ratio, and the extra peak memory of a process that does only one.
Labels are blocks of 16 x 16 pixels of one class, a tenth of the pixels is ignored.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from emaseg.models.memory_update import updated_memory

ROUNDS = 5
THREADS = 2


def lean(memory: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return updated_memory(memory, features, labels, momentum=0.9, strategy="cosine_similarity", ranks="plain_mean")[1]


def direct(memory: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The published rule; each class's pixels are taken once."""
    result = memory.clone()
    full = F.interpolate(features, size=labels.shape[1:], mode="bilinear", align_corners=False)
    pixels = full.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    flat = labels.flatten()
    for c in flat.unique().tolist():
        if c == 255:
            continue
        own = pixels[flat == c]
        weights = 1 - F.cosine_similarity(own, memory[c][None])
        result[c] = 0.1 * memory[c] + 0.9 * (weights / weights.sum()) @ own
    return result


WAYS = {"lean": lean, "direct": direct}


def inputs(batch: int, classes: int, channels: int, grid: int, size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, classes, (batch, -(-size // 16), -(-size // 16)), generator=generator)
    labels = blocks.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)[:, :size, :size].contiguous()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    features = torch.randn(batch, channels, grid, grid, generator=generator).relu_()
    return torch.randn(classes, channels, generator=generator), features, labels


def extra_memory(way: str, shape: list[int]) -> float:
    """MB above its inputs that a process of its own needs. Linux hands the peak of a process down to its children, so
    this comes before anything large in this one."""
    command = [sys.executable, __file__, "--only", way, *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def only(way: str, shape: list[int]) -> float:
    WAYS[way](*inputs(1, 4, 8, 4, 16))  # what a first call loads is not the rule's
    tensors = inputs(*shape)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
    WAYS[way](*tensors)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--only"]:
        print(only(sys.argv[2], [int(a) for a in sys.argv[3:]]))
        return
    shape = [int(a) for a in sys.argv[1:]] or [4, 150, 512, 64, 512]
    memory = {way: extra_memory(way, shape) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    results: dict[str, torch.Tensor] = {}
    tensors = inputs(*shape)
    for _ in range(ROUNDS):
        for way, run in WAYS.items():
            began = time.perf_counter()
            results[way] = run(*tensors)
            times[way].append(time.perf_counter() - began)
    for way in WAYS:
        print(f"{way:7} {statistics.median(times[way]):.3f} s  +{memory[way]:.1f} MB")
    ratio = statistics.median(a / b for a, b in zip(times["direct"], times["lean"], strict=True))
    print(f"direct / lean: time {ratio:.1f}, memory {memory['direct'] / memory['lean']:.0f}")
    print(f"largest difference {(results['direct'] - results['lean']).abs().max():.1e}")


if __name__ == "__main__":
    main()
