"""Where a pass of each network's engine spends its time: shares of PyTorch's operators, on one core, as a Markdown table.

    python -m tests.benchmarks.bench_profile [--side 512] [--precision fp32|bf16] [NETWORK ...]

Products are matrix products: those of Winograd's convolutions, EM iterations, and a transformer's layers. Sums are all operators
that go through a map once, value by value: Winograd's transforms, activations, norms. One thread, as the profiler sees no others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from emaseg.engine import Precision
from tests.benchmarks.peers.ours import NETWORKS, drawn_engine

# Kind -> parts of the operators' names; the first kind of which one occurs.
KINDS = {
    "direct convolutions": ("convolution",),
    "attention": ("attention", "softmax"),
    "products": ("linear", "addmm", "::mm", "bmm", "baddbmm", "matmul"),
    "resizes": ("upsample",),
    "copies": ("copy", "cat", "pad", "fill", "zero", "clone", "contiguous", "empty", "resize"),
}
SUMS = "sums"


def shares(name: str, side: int, precision: Precision) -> tuple[float, dict[str, float]]:
    """Seconds of one pass, and the share of each kind of operator, 0..1."""
    run = drawn_engine(NETWORKS[name], torch.randn(1, 3, side, side), precision)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    times = dict.fromkeys((*KINDS, SUMS), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), SUMS)
        times[kind] += event.self_cpu_time_total / 1e6
    total = sum(times.values())
    return total, {kind: seconds / total for kind, seconds in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"| {options.side} x {options.side}, {options.precision} | s | {' | '.join((*KINDS, SUMS))} |")
    print("| --- " * (len(KINDS) + 3) + "|")
    for name in options.networks or NETWORKS:
        seconds, parts = shares(name, options.side, options.precision)
        print(
            f"| {name} | {seconds:.2f} | {' | '.join(f'{100 * part:.1f} %' for part in parts.values())} |", flush=True
        )


if __name__ == "__main__":
    main()
