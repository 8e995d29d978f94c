"""The side of emaseg in the comparison, and the published way of MemoryNet where no package has it.

python -m tests.benchmarks.peers.ours forward|step WAY HEIGHT WIDTH     a pass for each line on stdin
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import emaseg
from emaseg.data.pipeline.transforms import Batch
from emaseg.engine import Precision, prepare
from emaseg.exporting.export import export
from emaseg.exporting.request import make_request
from emaseg.free_memory import peak_memory
from emaseg.models import Network, memory, pixel_attention
from emaseg.recipe import load_recipe
from emaseg.reference import Resolved, open_network
from tests.benchmarks.bench_memory_update import direct
from tests.benchmarks.bench_training import Trained

NETWORKS = {
    "EMANet R-50-D8": "voc_r50_d8",
    "MemoryNet R-50-D8": "memorynet_ade20k_r50_d8",
    "MemoryNet HRNet-W48": "memorynet_cocostuff10k_hrnetv2p_w48",
    "MemoryNet S-101-D8": "memorynet_cityscapes_s101_d8",
    "MemoryNet ViT-L": "memorynet_ade20k_vit_large",
}
# Ways through a training step: the keys that make them.
STEPS = {
    "published": (),
    "emaseg fp32": (),
    "emaseg fp32, recompute": ("train.recompute=true",),
    "emaseg bf16": ('train.precision="bf16"',),
    "emaseg bf16, recompute": ("train.recompute=true", 'train.precision="bf16"'),
}
Pass = Callable[[], Any]


def engine_pass(row: str, weights: Path, image: Tensor, precision: Precision) -> Callable[[], Tensor]:
    """One pass of the engine and the resize to the input's size."""
    recipe = load_recipe(row)
    engine = prepare(open_network(Resolved(recipe, weights, None, recipe)), precision)
    return functools.partial(_resized, engine, image)


def export_onnx(row: str, weights: Path, path: Path) -> Path:
    """What ONNX Runtime and OpenVINO are given: emaseg's own export, norms folded, for any size."""
    recipe = load_recipe(row)
    network = open_network(Resolved(recipe, weights, None, recipe))
    for _ in export(network, recipe, make_request("onnx"), path):
        pass
    return path


@torch.inference_mode()
def _resized(model: Any, image: Tensor) -> Tensor:
    return F.interpolate(model(image), size=image.shape[2:], mode="bilinear", align_corners=bool(model.align_corners))


def _drawn(recipe: str, *overrides: str) -> Network:
    """A network with drawn weights whose norms keep signals at their size."""
    torch.manual_seed(0)
    model = emaseg.build_model(load_recipe(recipe, overrides)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("memory.features"):
            buffer.normal_()
    return model


def plain_and_engines(recipe: str, image: Tensor) -> dict[str, Pass]:
    """The network as it is trained, and its engines."""
    ways: dict[str, Pass] = {"plain": functools.partial(_resized, _drawn(recipe), image)}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        ways[f"engine {precision}"] = drawn_engine(recipe, image, precision)
    for way in ways.values():
        way()
    return ways


def drawn_engine(recipe: str, image: Tensor, precision: Precision) -> Pass:
    """A pass of the engine of a network with drawn weights."""
    return functools.partial(_resized, prepare(_drawn(recipe), precision), image)


def growing(side: float) -> dict[str, tuple[Sequence[int], list[Callable[[], Pass]]]]:
    """Quantity -> its values and, for each, what makes a pass."""

    def build(size: int = 512, batch: int = 1, threads: int = 2, *overrides: str) -> Pass:
        torch.set_num_threads(threads)
        engine = prepare(_drawn("voc_r50_d8", *overrides))
        pixels = max(64, round(size * side / 32) * 32)
        return functools.partial(_resized, engine, torch.randn(batch, 3, pixels, pixels))

    def classes(count: int) -> Callable[[], Pass]:
        names = ", ".join(f'"{k}"' for k in range(count))
        folders = 'train_images="i", train_masks="m", eval_images="i", eval_masks="m", root="."'
        return functools.partial(build, 512, 1, 2, f'data={{kind="folder", classes=[{names}], {folders}}}')

    sides, numbers, batches = (256, 512, 1024, 2048), (19, 59, 182), (1, 2, 4, 8, 16)
    iterations = (1, 2, 4, 8)
    return {
        "side": (sides, [functools.partial(build, s) for s in sides]),
        "classes": (numbers, [classes(k) for k in numbers]),
        "batch (256x256)": (batches, [functools.partial(build, 256, b) for b in batches]),
        "threads": ((1, 2), [functools.partial(build, 512, 1, n) for n in (1, 2)]),
        "EM iterations": (
            iterations,
            [functools.partial(build, 512, 1, 2, f"model.em_iterations_eval={t}") for t in iterations],
        ),
    }


# ------------------------------------------------------------------------------------- MemoryNet's published way
def _attention_held_whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(A)) v with all N x N weights in memory, as the published system computes it."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


def _update_on_upsampled(before: Tensor, pixels: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    stored = direct(before, pixels, labels)
    return stored, stored


def _as_published() -> None:
    """Exchange, in this process, the two parts whose published way holds large arrays."""

    class Functions:
        scaled_dot_product_attention = staticmethod(_attention_held_whole)

    pixel_attention.F = Functions  # type: ignore[assignment, misc]
    memory.updated_memory = _update_on_upsampled  # type: ignore[assignment]


def _forward(published: bool, height: int, width: int) -> Pass:
    model: nn.Module = _drawn(NETWORKS["MemoryNet R-50-D8"])
    image = torch.randn(1, 3, height, width)
    return functools.partial(_resized, model if published else prepare(model), image)  # type: ignore[arg-type]


def _step(height: int, width: int, keys: tuple[str, ...]) -> Pass:
    trained = Trained(NETWORKS["MemoryNet R-50-D8"], 2, height, keys)
    blocks = torch.randint(0, 150, (2, -(-height // 16), -(-width // 16)))
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
    trained.batch = Batch(torch.randn(2, 3, height, width), labels, ("", ""))
    return trained.step


def main() -> None:
    what, way, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
    torch.set_num_threads(2)
    published = way == "published"
    if published:
        _as_published()
    run = _forward(published, height, width) if what == "forward" else _step(height, width, STEPS[way])
    run()
    print(json.dumps({"ways": [way]}), flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        run()
        taken = {"wall": time.perf_counter() - began, "cpu": time.process_time() - used}
        print(json.dumps({**taken, "peak": peak_memory(torch.device("cpu"))}), flush=True)


if __name__ == "__main__":
    main()
