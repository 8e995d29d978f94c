"""A training step beside other programs, with the waiting that `emaseg` sets for its threads and with OpenMP's own.

    python -m tests.benchmarks.bench_busy [rounds]

A step is a ResNet-50's, two images of 224 x 224, on all cores that this process may use (Linux). It runs alone, then
beside as many programs as there are cores, which only keep these busy. Every figure is the median wall time of 8 steps
in a process of its own; the two settings take turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

STEPS = """
import statistics, time, torch, torchvision
model, images = torchvision.models.resnet50(weights=None).train(), torch.randn(2, 3, 224, 224)
times = []
for _ in range(9):
    began = time.perf_counter()
    model.zero_grad()
    model(images).sum().backward()
    times.append(time.perf_counter() - began)
print(statistics.median(times[1:]))
"""
SETTINGS: dict[str, dict[str, str]] = {"emaseg's": {"GOMP_SPINCOUNT": "3000"}, "OpenMP's own": {}}


def seconds(setting: dict[str, str]) -> float:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    process = [sys.executable, "-c", STEPS]
    result = subprocess.run(process, env=inherited | setting, check=True, capture_output=True, text=True)
    return float(result.stdout)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"{'seconds a step':32}{''.join(f'{name:>14}' for name in SETTINGS)}{'ratio':>8}")
    for others in (0, len(os.sched_getaffinity(0))):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            rows = [[seconds(setting) for setting in SETTINGS.values()] for _ in range(rounds)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        for row in rows:
            figures = "".join(f"{value:14.3f}" for value in row)
            print(f"{f'beside {others} busy programs':32}{figures}{row[1] / row[0]:8.2f}", flush=True)
        print(f"{'  median ratio':32}{statistics.median(row[1] / row[0] for row in rows):36.2f}", flush=True)


if __name__ == "__main__":
    main()
