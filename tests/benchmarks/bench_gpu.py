"""Training and inference on a graphics card: images/s, peak memory and share of the card's peak, as one table.

    python -m tests.benchmarks.bench_gpu [--minutes 7] [--device cuda|cpu] [--tiny]

Three networks; training at 512x512 with batch 16, inference at 1024x2048; in float32, TF32 and bf16, then with channels
last, compiled, and as a CUDA graph of the compiled network, each on top of the one before. What takes longest comes
last, and what the time does not reach is shown as "-". Needs torch and NumPy alone, no installed package: run it at the
top of the repository. `--device cpu --tiny` tries it out without a card, on small networks and images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from emaseg.free_memory import is_out_of_memory
from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from emaseg.recipe import Recipe, parse_recipe
from emaseg.training.compute import autocast, place, switches, to_layout
from emaseg.training.optim import build_optimizer

RECIPES = Path(__file__).parents[2] / "recipes"
NETWORKS = {
    "EMANet R-50-D8": "voc_r50_d8",
    "EMANet R-101-D8": "voc_r101_d8",
    "MemoryNet R-50-D8, 150 classes": "memorynet_ade20k_r50_d8",
}
SMALL = (
    'backbone.kind="resnet14"',
    "backbone.width=8",
    *("model.auxiliary_channels=8", "model.attention_channels=8"),
)
PLAIN = ('backbone.weights="none"', "train.seed=0")
TF32, BF16 = "train.tf32=true", 'train.precision="bf16"'
LAST, COMPILE = "train.channels_last=true", "train.compile=true"
# name, recipe keys, replayed as a CUDA graph
VARIANTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("fp32", (), False),
    ("TF32", (TF32,), False),
    ("bf16", (BF16,), False),
    ("bf16, channels last", (BF16, LAST), False),
    ("+ compiled", (BF16, LAST, COMPILE), False),
    ("+ CUDA graph", (BF16, LAST, COMPILE), True),
)
# Dense peaks of the makers' data sheets in TFLOP/s: float32, TF32, bf16.
PEAKS = {
    "H200": (67, 495, 989),
    "H100 PCIe": (51, 378, 756),
    "H100": (67, 495, 989),
    "A100": (19.5, 156, 312),
    "L40S": (91.6, 183, 362),
    "L4": (30.3, 60, 121),
    "RTX 4090": (82.6, 82.6, 165),
    "RTX 3090": (35.6, 35.6, 71),
}
ROUNDS, LEAST_SECONDS = 3, 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """What goes through a network at once, as (height, width)."""

    batch: int
    height: int
    width: int


@dataclass(slots=True)
class Row:
    """A line of the table; note says why there are no figures."""

    network: str
    phase: str
    variant: str
    images_per_second: float = 0.0
    peak_bytes: int = 0
    flops: float = 0.0  # of one image
    note: str = "-"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long to measure."""

    device: torch.device
    tiny: bool
    until: float
    rows: list[Row] = field(default_factory=list)

    def recipe(self, name: str, keys: tuple[str, ...]) -> Recipe:
        path = RECIPES / f"{name}.toml"
        small = SMALL if self.tiny else ()
        if self.tiny:
            emanet = ("model.bottleneck_channels=8", "model.decoder_channels=8")
            small += emanet if "memorynet" not in name else ("model.channels=8",)
        return parse_recipe(path.read_text("utf-8"), str(path), [*PLAIN, *small, *keys]).recipe

    def size(self, phase: str) -> Size:
        if phase == "training":
            return Size(2, 32, 32) if self.tiny else Size(16, 512, 512)
        return Size(1, 32, 64) if self.tiny else Size(1, 1024, 2048)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


Work = Callable[[], object]


def inference(model: Network, recipe: Recipe, size: Size, device: torch.device) -> Work:
    """A forward pass as a function without arguments."""
    model.eval()
    images = to_layout(torch.randn(size.batch, 3, size.height, size.width, device=device), recipe.train)

    def work() -> object:
        with torch.inference_mode(), autocast(recipe.train, device):
            return model(images)

    return work


def training(model: Network, recipe: Recipe, size: Size, device: torch.device) -> Work:
    """A training step, without the look at its losses that makes the host wait, as a function without arguments."""
    optimizer = build_optimizer(model, recipe.optim)
    images = to_layout(torch.randn(size.batch, 3, size.height, size.width, device=device), recipe.train)
    labels = torch.randint(0, model.num_classes, (size.batch, size.height, size.width), device=device)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def work() -> object:
        for parameter in parameters:
            parameter.grad = None
        with autocast(recipe.train, device):
            losses = model.training_step(images, labels, Step(100, 9, 0.01))
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return total.detach()

    return work


PHASES = {"inference": inference, "training": training}


def measure(bench: Bench, row: Row, name: str, keys: tuple[str, ...], graph: bool) -> None:
    """Fill a row."""
    recipe, size = bench.recipe(name, keys), bench.size(row.phase)
    torch.manual_seed(0)
    with switches(recipe.train, bench.device):
        model = build_model(recipe)
        place(model, recipe.train, bench.device)
        work = PHASES[row.phase](model, recipe, size, bench.device)
        bench.empty()
        for _ in range(1 if bench.tiny else 3):
            work()
        if graph:
            work = replayed(work, bench.device)
        bench.wait()
        row.images_per_second = size.batch / best_seconds(bench, work)
    row.peak_bytes, row.note = bench.peak(), ""


def replayed(work: Work, device: torch.device) -> Work:
    """`work` as a CUDA graph."""
    if device.type != "cuda":
        raise RuntimeError("CUDA graphs need CUDA")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def best_seconds(bench: Bench, work: Work) -> float:
    """Of one call: the best of some rounds, each long enough for the clock."""
    best = float("inf")
    for _ in range(ROUNDS):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < (0.0 if bench.tiny else LEAST_SECONDS) or not count:
            for _ in range(1 if bench.tiny else 5):
                work()
                count += 1
            bench.wait()
        best = min(best, (time.perf_counter() - began) / count)
    return best


def flops(bench: Bench, name: str, phase: str) -> float:
    """Floating-point operations of one image, of convolutions and matrix products, two for each multiply-add."""
    recipe, size = bench.recipe(name, ()), bench.size(phase)
    with torch.device("meta"):
        model = build_model(recipe)
    images = torch.empty(2, 3, size.height, size.width, device="meta")
    with FlopCounterMode(display=False) as counter:
        if phase == "inference":
            with torch.no_grad():
                model.eval()(images)
            return counter.get_total_flops() / 2
        logits: torch.Tensor = model.train()(images)
        extra = getattr(model, "auxiliary", None)
        loss = logits.sum()
        if extra is not None:
            loss = loss + extra(model.backbone(images)[-2]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / 2


def peak_of(card: str, variant: str) -> float | None:
    """TFLOP/s of the card in the variant's number format; None where the table has no such card."""
    for name, peaks in PEAKS.items():
        if all(word in card for word in name.split()):
            return peaks[0 if variant == "fp32" else 1 if variant == "TF32" else 2]
    return None


def run(bench: Bench) -> None:
    """Every row; what is quick first."""
    for _, (variant, keys, graph) in sorted(enumerate(VARIANTS)):
        for network, name in NETWORKS.items():
            for phase in PHASES:
                row = Row(network, phase, variant)
                bench.rows.append(row)
                if time.monotonic() > bench.until:
                    continue
                try:
                    row.flops = next(
                        (r.flops for r in bench.rows if (r.network, r.phase) == (network, phase) and r.flops), 0.0
                    ) or flops(bench, name, phase)
                    measure(bench, row, name, keys, graph)
                except (MemoryError, RuntimeError) as error:
                    row.note = "out of memory" if is_out_of_memory(error) else first_line(error)
                if COMPILE in keys:
                    torch.compiler.reset()
                print(f"  {network}, {phase}, {variant}: {row.images_per_second:.2f} images/s {row.note}", flush=True)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:60]


def table(rows: list[Row], card: str) -> list[str]:
    """Markdown."""
    lines = ["| network | phase | computed in | images/s | peak memory | TFLOP/s | of the peak |", "|" + "---|" * 7]
    order = {name: i for i, name in enumerate(NETWORKS)}
    for row in sorted(rows, key=lambda r: (order[r.network], r.phase)):
        start = f"| {row.network} | {row.phase} | {row.variant} |"
        if row.note:
            lines.append(f"{start} {row.note} | | | |")
            continue
        rate, peak = row.flops * row.images_per_second / 1e12, peak_of(card, row.variant)
        share = "" if peak is None else f"{100 * rate / peak:.0f} %"
        memory = f"{row.peak_bytes / 2**30:.1f} GiB" if row.peak_bytes else ""
        lines.append(f"{start} {row.images_per_second:.1f} | {memory} | {rate:.1f} | {share} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=7.0)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(4, "PyTorch sees no CUDA device here; --device cpu --tiny tries this program out\n")
    device = torch.device(given.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    bench = Bench(device, given.tiny, time.monotonic() + 60 * given.minutes)
    print(f"{card}, torch {torch.__version__}", flush=True)
    run(bench)
    train, infer = bench.size("training"), bench.size("inference")
    print(f"\n{card}, torch {torch.__version__}; training {train.height}x{train.width}, batch {train.batch}; ", end="")
    print(f"inference {infer.height}x{infer.width}, batch {infer.batch}\n")
    print("\n".join(table(bench.rows, card)))


if __name__ == "__main__":
    main()
