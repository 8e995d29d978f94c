"""Training steps and runs on CUDA: half precision and compilation against float32, resuming, memory, transfers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from emaseg.data.pipeline.loading import batches
from emaseg.data.pipeline.transforms import Batch
from emaseg.events import Finished
from emaseg.models import Network, build_model
from emaseg.open_datasets import open_datasets
from emaseg.recipe import Recipe
from emaseg.schedule import Schedule
from emaseg.training.compute import LossScale, place, switches
from emaseg.training.optim import build_optimizer
from emaseg.training.replicas import replicate
from emaseg.training.step import StepResult, training_step
from emaseg.training.train import train
from tests.tiny import equal, tiny

pytestmark = pytest.mark.gpu

SCHEDULE = Schedule(total=1000, per_epoch=1, every=0, scored=True)
MEMORYNET = (
    'model={kind="memorynet", dropout=0.0, channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.05, '
    "aspp_dilations=[1, 2, 3], memory_loss_weight=1.0}"
)
NETWORKS = {"emanet": ("model.dropout=0.0",), "memorynet": (MEMORYNET,)}


def made(recipe: Recipe, device: torch.device) -> Network:
    torch.manual_seed(0)
    model = build_model(recipe)
    place(model, recipe.train, device)
    return model


def batch(device: torch.device) -> Batch:
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (4, 64, 64), generator=rng)
    labels[0, :30] = 255
    images = torch.randn(4, 3, 64, 64, generator=rng)
    return Batch(images.to(device), labels.to(device), ("a", "b", "c", "d"))


def steps(recipe: Recipe, device: torch.device, count: int) -> tuple[Network, list[StepResult]]:
    with switches(recipe.train, device):
        model = made(recipe, device)
        optimizer, scale = build_optimizer(model, recipe.optim), LossScale.of(recipe.train, device)
        given = batch(device)
        results = [training_step(model, optimizer, given, i, SCHEDULE, recipe, scale=scale) for i in range(count)]
    return model, results


def taken(results: list[StepResult]) -> list[float]:
    """The main losses; of fp16, whose first scales may be too large, those too."""
    return [result.losses["main"] for result in results]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.1), ("fp16", 0.1)])
def test_half_precision_is_near_single(network: str, precision: str, near: float, device: torch.device) -> None:
    """Protects AMP: the losses of three steps stay near those of float32; parameters and gradients are float32."""
    options = NETWORKS[network]
    _, single = steps(tiny(*options), device, 3)
    model, half = steps(tiny(*options, f'train.precision="{precision}"', "train.channels_last=true"), device, 3)
    assert taken(half)[0] == pytest.approx(taken(single)[0], rel=near)
    assert taken(half)[-1] == pytest.approx(taken(single)[-1], rel=0.5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_steps_are_the_plain_ones(network: str, device: torch.device) -> None:
    """Protects train.compile: the same losses up to rounding, before and after optimiser steps."""
    options = ("optim.lr=0.01", *NETWORKS[network])
    _, plain = steps(tiny(*options), device, 2)
    _, compiled = steps(tiny(*options, "train.compile=true"), device, 2)
    torch.compiler.reset()
    assert taken(compiled) == pytest.approx(taken(plain), rel=1e-2)
    assert taken(compiled)[0] == pytest.approx(taken(plain)[0], rel=1e-4)


def test_recomputing_is_exact_and_keeps_less(device: torch.device) -> None:
    """Protects train.recompute on CUDA: deterministic kernels give the plain step's bits, dropout included."""
    seen = []
    for recompute in ("false", "true"):
        recipe = tiny("train.deterministic=true", f"train.recompute={recompute}")
        model, results = steps(recipe, device, 3)
        seen.append((taken(results), {key: value.cpu() for key, value in model.state_dict().items()}))
    assert seen[0][0] == seen[1][0]
    assert equal(seen[0][1], seen[1][1])


def test_a_batch_in_parts(device: torch.device) -> None:
    """Protects train.accumulate on CUDA: it runs, and the losses are those of the batch but for norm statistics."""
    _, whole = steps(tiny("model.dropout=0.0"), device, 1)
    _, parts = steps(tiny("model.dropout=0.0", "train.accumulate=2"), device, 1)
    assert taken(parts) == pytest.approx(taken(whole), rel=0.3)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, device: torch.device) -> None:
    """Protects --resume on CUDA, with deterministic kernels: weights, momentum, statistics, generator."""
    recipe = tiny("train.iterations=6", "train.evaluate_every=0", "train.deterministic=true", "train.save_every=3")
    for _ in train(recipe, tmp_path / "whole", device=device):
        pass
    run = train(recipe, tmp_path / "cut", device=device)
    for event in run:
        if type(event).__name__ == "Saved":
            break
    run.close()
    ended = [
        event for event in train(recipe, tmp_path / "cut", resume=True, device=device) if isinstance(event, Finished)
    ]
    assert ended[-1].step == 6
    whole, cut = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "cut"))
    assert equal(whole["model"], cut["model"])
    assert equal(whole["optimizer"]["state"], cut["optimizer"]["state"])


def test_a_run_of_a_cpu_goes_on_here(tmp_path: Path, device: torch.device) -> None:
    """Protects --resume on another device, with the optimiser whose kernel wants its count of steps there."""
    recipe = tiny("train.iterations=4", "train.evaluate_every=0", "train.save_every=2", 'optim.kind="adamw"')
    run = train(recipe, tmp_path / "run", device=torch.device("cpu"))
    for event in run:
        if type(event).__name__ == "Saved":
            break
    run.close()
    *_, last = train(recipe, tmp_path / "run", resume=True, device=device)
    assert isinstance(last, Finished)
    assert last.step == 4


def test_mining_repeats_itself(device: torch.device) -> None:
    """Protects OHEM where only kernels that repeat their results are allowed: the same pixels are kept."""
    hard = ("loss.ohem_threshold=0.7", "loss.ohem_min_kept=100")
    _, plain = steps(tiny("model.dropout=0.0", *hard), device, 1)
    _, strict = steps(tiny("model.dropout=0.0", *hard, "train.deterministic=true"), device, 1)
    assert taken(strict) == pytest.approx(taken(plain), rel=1e-4)


@pytest.fixture
def one_rank(device: torch.device, tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_shared_norms_of_one_rank_are_plain_ones(device: torch.device) -> None:
    """Protects model.norm = "sync": on one rank SyncBatchNorm gives the plain step's losses and statistics."""
    recipe = tiny("model.dropout=0.0")
    _, (plain,) = steps(recipe, device, 1)
    with switches(recipe.train, device):
        model = made(recipe, device)
        forward = replicate(model, recipe, device)
        if device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
        optimizer = build_optimizer(model, recipe.optim)
        result = training_step(model, optimizer, batch(device), 0, SCHEDULE, recipe, forward=forward)
    assert result.losses == pytest.approx(plain.losses, rel=1e-5)


def test_batches_arrive_unchanged(device: torch.device) -> None:
    """Protects the transfer: 8-bit pixels through page-locked memory, normalised on the device as on the CPU."""
    recipe = tiny()
    dataset, _, _ = open_datasets(recipe)
    arrived = []
    for where in (device, torch.device("cpu")):
        stream = batches(
            dataset,
            recipe.augment,
            recipe.backbone.pixel_stats,
            batch=4,
            start=0,
            total=3,
            seed=0,
            workers=1,
            device=where,
        )
        with_all = list(stream)
        stream.close()
        assert all(item.images.device == where for item in with_all)
        arrived.append(with_all)
    for a, b in zip(*arrived, strict=True):
        assert torch.equal(a.labels.cpu(), b.labels)
        torch.testing.assert_close(a.images.cpu(), b.images, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_memory_stays_flat(precision: str, device: torch.device) -> None:
    """Protects long runs: after 20 steps nothing more is held than after 200."""
    recipe = tiny(f'train.precision="{precision}"')
    with switches(recipe.train, device):
        model = made(recipe, device)
        optimizer, scale = build_optimizer(model, recipe.optim), LossScale.of(recipe.train, device)
        given, held = batch(device), []
        for i in range(200 if device.type == "cuda" else 3):
            training_step(model, optimizer, given, i, SCHEDULE, recipe, scale=scale)
            if device.type == "cuda":
                held.append(torch.cuda.memory_allocated(device))
    if held:
        assert max(held[20:]) <= max(held[:20]) + 2**20
