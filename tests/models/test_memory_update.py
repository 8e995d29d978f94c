"""The feature memory's update on the grid equals the published rule on upsampled features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.models.memory_update import Ranks, Strategy, updated_memory
from tests.parity import golden

STRATEGIES: tuple[Strategy, ...] = ("cosine_similarity", "mean")


def direct(
    memory: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, momentum: float, strategy: Strategy
) -> torch.Tensor:
    """The published rule, written as it is stated."""
    result = memory.clone()
    full = F.interpolate(features, size=labels.shape[1:], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    for c in range(len(memory)):
        pixels = full[labels == c]
        if not len(pixels):
            continue
        row = memory[c]
        if not row.any():
            result[c] = pixels.mean(dim=0)
            continue
        weights = torch.ones(len(pixels), 1).to(memory)
        if strategy == "cosine_similarity":
            weights = 1 - F.cosine_similarity(pixels, row[None])[:, None]
        new = (weights / weights.sum() * pixels).sum(dim=0)
        result[c] = (1 - momentum) * row + momentum * new
    return result


def update(
    memory: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    momentum: float,
    strategy: Strategy,
    ranks: Ranks = "by_count",
) -> torch.Tensor:
    local, shared = updated_memory(memory, features, labels, momentum=momentum, strategy=strategy, ranks=ranks)
    assert local is shared
    return local


def batch(
    size: tuple[int, int], grid: tuple[int, int], images: int = 2, classes: int = 5, channels: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random memory, features and labels: some pixels ignored, one memory row zero, class 0 in one pixel only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, classes + 1, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[labels == classes] = 255
    labels[0, size[0] // 2, -1] = 0
    memory = torch.randn(classes, channels, dtype=torch.float64, generator=generator)
    memory[classes // 2] = 0
    return memory, torch.randn(images, channels, *grid, dtype=torch.float64, generator=generator) + 0.3, labels


edge = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(edge, edge),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(4, 70),
    st.sampled_from(STRATEGIES),
    st.sampled_from([1.0, 0.9, 0.037]),
)
def test_equals_the_direct_rule(
    size: tuple[int, int],
    grid: tuple[int, int],
    images: int,
    classes: int,
    channels: int,
    strategy: Strategy,
    momentum: float,
) -> None:
    """Protects the formulas: labels larger and smaller than the grid, odd sizes, one-pixel classes, zero rows."""
    memory, features, labels = batch(size, grid, images, classes, channels, seed=size[0] + 50 * grid[1])
    before = memory.clone(), features.clone(), labels.clone()
    expected = direct(memory, features, labels, momentum, strategy)
    own = update(memory, features, labels, momentum, strategy)
    assert (own - expected).abs().max() <= 1e-12
    assert torch.equal(update(memory, features, labels.to(torch.uint8), momentum, strategy), own)
    channels_last = features.to(memory_format=torch.channels_last)
    assert (update(memory, channels_last, labels, momentum, strategy) - own).abs().max() <= 1e-12
    absent = torch.tensor([not (labels == c).any() for c in range(classes)])
    assert torch.equal(own[absent], memory[absent])
    assert all(torch.equal(a, b) for a, b in zip((memory, features, labels), before, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parity_with_sssegmentation(strategy: Strategy) -> None:
    """Protects the published memory through three updates: first visits, a decayed momentum, an absent class."""
    unit = {k: torch.from_numpy(v) for k, v in golden("ssseg/unit.npz").items() if k.startswith("mem/")}
    first = unit["mem/feats"], unit["mem/labels"].where(unit["mem/labels"] >= 0, 255)
    second = unit["mem/feats2"], unit["mem/labels2"].where(unit["mem/labels2"] >= 0, 255)
    memory = torch.zeros(9, 16)
    for batch_of, momentum, name in (
        (first, 0.9, "after_init"),
        (second, 0.9 / 0.01 * 0.005, "after_second_lr0.005"),
        (first, 0.9, "after_third_noadjust"),
    ):
        memory = update(memory, *batch_of, momentum, strategy)
        assert (memory - unit[f"mem/{strategy}/{name}"][:, 0]).abs().max() <= 5e-5
    assert not memory[8].any()
    if strategy == "cosine_similarity":
        memory = update(unit["mem/normal_before"][:, 0], *first, 0.9 / 0.01 * 0.0025, strategy)
        assert (memory - unit["mem/normal_after_lr0.0025"][:, 0]).abs().max() <= 5e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_single_precision(strategy: Strategy) -> None:
    """Protects float32 training: the sums of many pixels keep their digits."""
    memory, features, labels = batch((96, 131), (12, 17), channels=64)
    expected = direct(memory, features, labels, 0.9, strategy)
    own = update(memory.float(), features.float(), labels, 0.9, strategy)
    assert own.dtype == torch.float32
    assert (own - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("ranks", ["by_count", "plain_mean"])
def test_a_batch_without_labels_changes_nothing(ranks: Ranks) -> None:
    """Protects the memory from a batch in which every pixel is ignored."""
    memory, features, labels = batch((20, 30), (5, 7))
    assert torch.equal(update(memory, features, torch.full_like(labels, 255), 0.9, "mean", ranks), memory)
    assert torch.equal(update(memory, features, torch.full_like(labels, 255), 0.9, "cosine_similarity", ranks), memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_along_the_row_get_equal_weights(dtype: torch.dtype) -> None:
    """Protects a class from becoming NaN when its pixels equal the row: the published weights are 0/0 there."""
    row = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=dtype)  # of length 5: its cosine with itself is exactly 1
    memory = torch.stack([row, -row])
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    same = row[None, :, None, None].expand(1, -1, 3, 3)
    assert torch.allclose(update(memory, same, labels, 0.5, "cosine_similarity"), memory, rtol=1e-6)
    twice = update(memory, 2 * same, labels, 0.5, "cosine_similarity")
    assert torch.allclose(twice[0], 1.5 * row, rtol=1e-6)
    assert torch.equal(twice[1], memory[1])


def test_zero_features_are_harmless() -> None:
    """Protects against a length of 0: dead channels give a plain mean of zeros, not NaN."""
    memory, features, labels = batch((20, 30), (5, 7))
    own = update(memory, torch.zeros_like(features), labels, 0.5, "cosine_similarity")
    assert torch.allclose(own, direct(memory, torch.zeros_like(features), labels, 0.5, "cosine_similarity"))


def test_no_gradient_and_no_low_precision() -> None:
    """Protects the rule from autograd and autocast: the memory is a constant, computed in the memory's precision."""
    memory, features, labels = (x.float() if x.is_floating_point() else x for x in batch((20, 30), (5, 7)))
    expected = update(memory, features, labels, 0.9, "cosine_similarity")
    with torch.autocast("cpu", torch.bfloat16):
        own = update(memory, features.requires_grad_(), labels, 0.9, "cosine_similarity")
    assert not own.requires_grad
    assert torch.equal(own, expected)


def recorded(run: Callable[[], object]) -> tuple[set[str], int]:
    """Names of torch's operations in `run`, and the most bytes that one of them allocates."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    assert profile.function_events is not None
    events = [(event.name, event.self_cpu_memory_usage) for event in profile.function_events]
    return {name for name, _ in events}, max(size for _, size in events)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_waits_for_the_device_and_no_upsampled_features(strategy: Strategy) -> None:
    """Protects speed on accelerators and lean training: no value read by the host, no shape that depends on one."""
    memory, features, labels = batch((40, 60), (5, 7), classes=5, channels=32)
    waiting = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "index", "masked_select", "_unique2")}
    upsampled = features[:, :, 0, 0].numel() * labels[0].numel() * features.element_size()
    names, most = recorded(lambda: direct(memory, features, labels, 0.9, strategy))
    assert names & waiting
    assert most >= upsampled
    names, most = recorded(lambda: update(memory, features, labels, 0.9, strategy))
    assert "aten::index_add_" in names
    assert not names & waiting
    assert most <= labels[0].numel() * features.element_size()


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    memory, features, labels = batch((23, 31), (5, 7), images=4)
    part = slice(2 * rank, 2 * rank + 2)
    results = {}
    for strategy in STRATEGIES:
        for ranks in ("by_count", "plain_mean"):
            results[f"{strategy}/{ranks}"] = updated_memory(
                memory, features[part], labels[part], momentum=0.7, strategy=strategy, ranks=ranks
            )
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """Protects runs on several processes: "by_count" is one process, "plain_mean" the mean of two separate updates."""
    mp.start_processes(rank_main, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    memory, features, labels = batch((23, 31), (5, 7), images=4)
    for strategy in STRATEGIES:
        whole = direct(memory, features, labels, 0.7, strategy)
        halves = [direct(memory, features[i : i + 2], labels[i : i + 2], 0.7, strategy) for i in (0, 2)]
        for result, half in zip((first, second), halves, strict=True):
            local, shared = result[f"{strategy}/by_count"]
            assert torch.equal(local, shared)
            assert (local - whole).abs().max() <= 1e-12
            local, shared = result[f"{strategy}/plain_mean"]
            assert (local - half).abs().max() <= 1e-12
            assert (shared - (halves[0] + halves[1]) / 2).abs().max() <= 1e-12
        for ranks in ("by_count", "plain_mean"):
            assert torch.equal(first[f"{strategy}/{ranks}"][1], second[f"{strategy}/{ranks}"][1])
