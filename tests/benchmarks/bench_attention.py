"""MemoryNet's attention without its N x N maps, against the same network with them: time and peak memory.

    python tests/benchmarks/bench_attention.py [recipe [height width]...]

One image, no gradients; sizes 512 x 512 and 1024 x 2048 (N = 32,768 at stride 8: 4.3 GB a map; needs 12 GB free).
Both ways take turns in one run; prints medians, the ratio, the peak of a process that does only one, and the largest
difference of the logits. Above a million pixels the two are compared in memory alone.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import emaseg
from emaseg.models.pixel_attention import PixelAttention

ROUNDS = 5
THREADS = 2
TIMED = 1 << 20  # pixels
RECIPE = "memorynet_ade20k_r50_d8"
SIZES = ((512, 512), (1024, 2048))


def explicit(module: PixelAttention, queries: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The published computation: all weights of all pairs of pixels at once."""
    q, k, v = module.query(queries).flatten(2), module.key(source).flatten(2), module.value(source).flatten(2)
    weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=2)  # (B, N, N)
    gathered = (weights @ v.transpose(1, 2)).transpose(1, 2)
    out: torch.Tensor = module.out(gathered.reshape(*gathered.shape[:2], *queries.shape[2:]))
    return out


Forward = Callable[[PixelAttention, torch.Tensor, torch.Tensor], torch.Tensor]
WAYS: dict[str, Forward] = {"fused": PixelAttention.forward, "explicit": explicit}


def network(recipe: str) -> nn.Module:
    model = emaseg.build_model(emaseg.load_recipe(recipe, ["train.seed=0"])).eval()
    memory = model.get_buffer("memory.features")
    memory.normal_(generator=torch.Generator().manual_seed(0))  # not the zeros of an untrained one
    return model


@torch.inference_mode()
def logits(model: nn.Module, way: str, height: int, width: int) -> torch.Tensor:
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    plain = PixelAttention.forward
    PixelAttention.forward = WAYS[way]  # type: ignore[method-assign]
    try:
        result: torch.Tensor = model(image)
    finally:
        PixelAttention.forward = plain  # type: ignore[method-assign]
    return result


def peak(recipe: str, way: str, height: int, width: int) -> float:
    """MB at the highest of a process that does one forward pass; call it before this process grows (see --only)."""
    command = [sys.executable, __file__, "--only", recipe, way, str(height), str(width)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(model: nn.Module, height: int, width: int) -> None:
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    results = {way: logits(model, way, height, width) for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            began = time.perf_counter()
            logits(model, way, height, width)
            times[way].append(time.perf_counter() - began)
    ratio = statistics.median(a / b for a, b in zip(times["explicit"], times["fused"], strict=True))
    medians = ", ".join(f"{way} {statistics.median(times[way]):.3f} s" for way in WAYS)
    off = (results["fused"] - results["explicit"]).abs().max() / results["explicit"].abs().max()
    print(f"{height} x {width}: {medians}; explicit / fused {ratio:.3f}; logits differ by {off:.1e} of the largest")


def main() -> None:
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--only"]:
        recipe, way, height, width = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
        logits(network(recipe), way, height, width)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    recipe = sys.argv[1] if len(sys.argv) > 1 else RECIPE
    numbers = [int(a) for a in sys.argv[2:]]
    sizes = list(zip(numbers[::2], numbers[1::2], strict=True)) or SIZES
    # Linux hands the peak of a process down to its children: memory first.
    for height, width in sizes:
        peaks = {way: peak(recipe, way, height, width) for way in WAYS}
        text = ", ".join(f"{way} {mb:.0f} MB" for way, mb in peaks.items())
        print(f"{height} x {width}: {text}; explicit / fused {peaks['explicit'] / peaks['fused']:.2f}", flush=True)
    model = network(recipe)
    for height, width in sizes:
        if height * width <= TIMED:
            compare(model, height, width)


if __name__ == "__main__":
    main()
