"""How a step computes: half precision, a batch in parts, layouts; what stays equal to the plain float32 step does so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emaseg.data.pipeline.transforms import Batch
from emaseg.device import slow_precision
from emaseg.errors import Diverged, RecipeError
from emaseg.events import Note, Stepped, TrainEvent
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe
from emaseg.schedule import Schedule
from emaseg.training.compute import MOST_SKIPPED, LossScale, evaluating, notes_on, place, switches
from emaseg.training.optim import build_optimizer, load_optimizer
from emaseg.training.step import StepResult, check_batch, less_memory, training_step
from emaseg.training.train import train
from tests.helpers import equal, run, tiny
from tests.models.test_every_network import NETWORKS

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WITHOUT_DROPOUT = "model.dropout=0.0"
MEMORYNET = NETWORKS["memorynet"][0].replace("{", "{dropout=0.0, ", 1)


def made(recipe: Recipe, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = build_model(recipe)
    place(model, recipe.train, CPU)
    return model


def batch(count: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (count, 32, 32), generator=rng)
    labels[0, :30] = 255  # the parts of the batch have different numbers of labelled pixels
    return Batch(torch.randn(count, 3, 32, 32, generator=rng), labels, tuple("abcdefgh"[:count]))


def steps(recipe: Recipe, count: int = 1, seed: int = 0) -> tuple[Network, list[StepResult]]:
    """The network after some steps on the same batch, and what they gave."""
    model = made(recipe, seed)
    optimizer, scale = build_optimizer(model, recipe.optim), LossScale.of(recipe.train, CPU)
    schedule = Schedule(total=100, per_epoch=1, every=0, scored=True)
    return model, [
        training_step(model, optimizer, batch(), step, schedule, recipe, scale=scale) for step in range(count)
    ]


def gradients(model: Network) -> dict[str, torch.Tensor]:
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------------------------- a batch in parts
@pytest.mark.parametrize("reduction", ["valid_pixels", "all_pixels"])
@pytest.mark.parametrize("weights", ["", "loss.class_weights=[1.0, 2.0, 0.5, 1.0, 3.0]"])
def test_parts_add_up_to_the_batch(reduction: str, weights: str) -> None:
    """Protects train.accumulate: with norms that do not look at the batch, losses and gradients are the batch's."""
    options = [WITHOUT_DROPOUT, f'loss.reduction="{reduction}"', *([weights] if weights else [])]
    seen = []
    for parts in (1, 2, 4):
        recipe = tiny(*options, f"train.accumulate={parts}")
        model = made(recipe).eval()  # stored statistics
        schedule = Schedule(total=100, per_epoch=1, every=0, scored=True)
        result = training_step(model, build_optimizer(model, recipe.optim), batch(), 0, schedule, recipe)
        seen.append((result.losses, gradients(model)))
    for losses, found in seen[1:]:
        assert losses == pytest.approx(seen[0][0], rel=1e-5)
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, seen[0][1][key], rtol=1e-3, atol=1e-6)


def test_the_memory_loss_counts_once() -> None:
    """Protects train.accumulate with a loss that is no mean over pixels: half of it from each of two parts."""
    whole, halves = (
        steps(tiny(MEMORYNET, "train.iterations=100", f"train.accumulate={parts}"), 3)[1] for parts in (1, 2)
    )
    assert "memory" in whole[-1].losses
    assert halves[-1].losses["memory"] == pytest.approx(whole[-1].losses["memory"], rel=0.2)


def test_parts_must_divide_the_batch_and_be_large_enough() -> None:
    """Protects from a batch that loses images, and from a norm of one value."""
    with pytest.raises(RecipeError, match="the nearest that does is 2"):
        tiny("train.accumulate=3")
    recipe = tiny("train.accumulate=4", "augment.crop=[8, 8]", "data.size=[16, 16]")
    with pytest.raises(RecipeError, match="parts of 1 images") as caught:
        check_batch(build_model(recipe), recipe)
    assert "train.accumulate=2" in caught.value.hint


def test_what_parts_change_is_said_in_one_line() -> None:
    """Protects people who think that accumulation is free."""
    (note,) = notes_on(tiny("train.accumulate=2", "loss.dice_weight=1.0"), CPU)
    assert "batch norm statistics, EM bases, class memory, Dice loss" in note.text


@pytest.mark.parametrize(("works", "lines"), [(False, 1), (True, 0)])
def test_a_precision_that_takes_longer_is_told(works: bool, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects people whose processor has no bf16 from choosing it for speed: it takes many times as long there."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: works, raising=False)
    assert len(slow_precision("bf16", CPU)) == lines
    assert slow_precision("bf16", torch.device("cuda")) == slow_precision("fp32", CPU) == []
    assert sum(note.warning for note in notes_on(tiny('train.precision="bf16"'), CPU)) == lines


# ------------------------------------------------------------------------------------------------ half precision
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("network", ["emanet of sssegmentation", "memorynet", "memorynet of lip"])
def test_half_precision_is_near_single(precision: str, network: str) -> None:
    """Protects a run in 16 bits: losses within its rounding; parameters, bases, memory, losses are float32.

    The loss on a memory that was updated from a few pixels depends on every rounding before: for one network it is 1 to
    8 % off after one update, up or down, on any processor, and 22 % after two. So its mean over some networks must be
    near. All other losses of the first are 1 % off at most.
    """
    options = (*NETWORKS[network], "train.iterations=100")
    off: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(4):
        _, single = steps(tiny(*options), 3, seed)
        model, half = steps(tiny(*options, f'train.precision="{precision}"'), 3, seed)
        assert half[-1].finite or precision == "fp16"  # whose first scale may be too large
        for number, (a, b) in enumerate(zip(single, half, strict=True)):
            assert a.losses.keys() == b.losses.keys()
            for name in a.losses:
                if name == "memory":
                    off[number].append(b.losses[name] / a.losses[name] - 1)
                elif seed == 0:
                    assert b.losses[name] == pytest.approx(a.losses[name], rel=0.02), (number, name)
            assert b.losses != a.losses
    if network != "emanet of sssegmentation":
        assert abs(sum(off[1]) / 4) <= 0.05
        assert abs(sum(off[2]) / 4) <= 0.2
    assert {x.dtype for x in (*model.parameters(), *model.buffers())} <= {torch.float32, torch.int64}
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}


def test_an_overflow_leaves_no_trace() -> None:
    """Protects a run in fp16: the step is left out whole, norm statistics and bases included, and the scale is halved."""
    recipe = tiny('train.precision="fp16"')
    model = made(recipe)
    optimizer, scale = build_optimizer(model, recipe.optim), LossScale.of(recipe.train, CPU)
    assert scale is not None
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = replace(batch(), images=batch().images * 1e6)
    schedule = Schedule(total=100, per_epoch=1, every=0, scored=True)
    result = training_step(model, optimizer, wrong, 0, schedule, recipe, scale=scale)
    assert not result.finite
    assert equal(before, dict(model.state_dict()))
    assert (scale.skipped, scale.in_a_row, scale.scaler.get_scale()) == (1, 1, 2.0**15)
    assert training_step(model, optimizer, batch(), 1, schedule, recipe, scale=scale).finite
    assert (scale.skipped, scale.in_a_row) == (1, 0)
    again = LossScale.of(recipe.train, CPU)
    assert again is not None
    again.restore(scale.state())
    assert again.state() == scale.state()


def test_a_run_in_fp16_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Protects --resume: the loss scale and its counters are in the checkpoint."""
    recipe = tiny('train.precision="fp16"', "train.iterations=4", "train.evaluate_every=0")
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "cut", stop_after=2)
    run(recipe, tmp_path / "cut", resume=True)
    whole, cut = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["scaler"]["_growth_tracker"] == 4
    assert equal(whole["scaler"], cut["scaler"])
    assert equal(whole["model"], cut["model"])


def test_overflows_are_skipped_and_counted_up_to_a_limit(tmp_path: Path) -> None:
    """Protects from a run that trains nothing for days: each overflow is said, many in a row are a divergence."""
    recipe = tiny('train.precision="fp16"', "train.iterations=40", "backbone.std=[0.001, 0.001, 0.001]")
    events: list[TrainEvent] = []
    with pytest.raises(Diverged):
        events.extend(train(recipe, tmp_path / "run"))  # those before the error stay
    skipped = [event for event in events if isinstance(event, Note) and "float16 overflowed" in event.text]
    assert len(skipped) == MOST_SKIPPED - 1
    assert sum(isinstance(event, Stepped) for event in events) == MOST_SKIPPED - 1


def test_a_run_that_only_overflowed_so_far_goes_on(tmp_path: Path) -> None:
    """Protects exit code 75: what was stopped before the first whole step has no momentum yet, and is resumed all the same."""
    recipe = tiny('train.precision="fp16"', "train.iterations=40", "backbone.std=[0.001, 0.001, 0.001]")
    run(recipe, tmp_path / "run", stop_after=2)
    events = run(recipe, tmp_path / "run", resume=True, stop_after=3)
    assert [event.step for event in events if isinstance(event, Stepped)] == [3]


# --------------------------------------------------------------------------------------------------- the rest
def test_channels_last_changes_the_layout_alone() -> None:
    """Protects train.channels_last: the same numbers up to rounding, in another order in memory."""
    plain, (a,) = steps(tiny(WITHOUT_DROPOUT))
    model, (b,) = steps(tiny(WITHOUT_DROPOUT, "train.channels_last=true"))
    weight = model.get_parameter("reduce.conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert b.losses == pytest.approx(a.losses, rel=1e-5)
    torch.testing.assert_close(weight, plain.get_parameter("reduce.conv.weight"), rtol=1e-3, atol=1e-5)


def test_switches_are_set_and_taken_back() -> None:
    """Protects whoever calls the engine from Python: PyTorch's process-wide settings are what they were."""
    with switches(tiny("train.deterministic=true").train, CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_recompute_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """Protects the remedy for missing memory: the run goes on with it, to the same bits."""
    recipe = tiny("train.iterations=4", "train.evaluate_every=0")
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "cut", stop_after=2)
    run(replace(recipe, train=replace(recipe.train, recompute=True)), tmp_path / "cut", resume=True)
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"] for name in ("whole", "cut")
    )
    assert equal(whole, cut)


def test_compile_and_recompute_exclude_each_other() -> None:
    """Protects from a combination that would silently compile nothing."""
    with pytest.raises(RecipeError, match="cannot be combined with recompute"):
        tiny("train.compile=true", "train.recompute=true")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_network_learns_what_an_eager_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects train.compile: losses and weights of three steps are the eager network's within float32's rounding."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    model, found = steps(tiny(WITHOUT_DROPOUT, "train.compile=true"), 3)
    assert graphs["unique_graphs"] > before
    eager, expected = steps(tiny(WITHOUT_DROPOUT), 3)
    for a, b in zip(found, expected, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-5)


def test_fused_kernels_are_the_devices_choice() -> None:
    """Protects a checkpoint of a GPU on a CPU: it goes on with the kernels that the CPU has always had."""
    recipe = tiny()
    model = made(recipe)
    optimizer = build_optimizer(model, recipe.optim)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True
    load_optimizer(optimizer, state)
    assert {group["fused"] for group in optimizer.param_groups} == {None}


def test_a_state_goes_on_with_this_devices_kernels() -> None:
    """Protects AdamW from a count of steps on another device than its kernel: PyTorch puts it where the groups say that it
    belongs, so they must say this device's before."""
    recipe = tiny('optim.kind="adamw"')
    model = made(recipe)
    optimizer = build_optimizer(model, recipe.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state, told = optimizer.state_dict(), []
    for group in optimizer.param_groups:
        group["fused"] = True  # as on CUDA

    def load(loaded: dict[str, Any]) -> None:
        told.extend(group["fused"] for group in loaded["param_groups"])
        type(optimizer).load_state_dict(optimizer, loaded)

    optimizer.load_state_dict = load  # type: ignore[method-assign, assignment]
    load_optimizer(optimizer, state)
    assert told == [True] * len(optimizer.param_groups)
    assert all(group["fused"] is None for group in state["param_groups"])  # what was saved is left alone


def test_an_evaluation_tries_no_kernels() -> None:
    """Protects evaluations of images of many sizes on CUDA: trying cuDNN's kernels anew for each takes longer than it saves."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    try:
        for value in (True, False):
            cudnn.benchmark = value
            with evaluating(tiny().train, CPU):
                assert not cudnn.benchmark
            assert cudnn.benchmark == value
    finally:
        cudnn.benchmark = before


def test_an_evaluation_in_training_is_in_whole_float32() -> None:
    """Protects the scores of a run with train.tf32: they are those of `emaseg eval`, which has TF32 off."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    train, device = tiny("train.tf32=true").train, torch.device("cuda")  # settings only: nothing is computed there
    with switches(train, device):
        with evaluating(train, device):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)


def test_ways_out_of_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the message: what changes nothing comes first, and only what the recipe does not have yet.
    A number of parts is one that so many processes can make, and what a resume refuses is for a new run."""
    model = build_model(tiny())
    assert less_memory(tiny(), model).startswith(
        "use --set train.recompute=true, which gives the same result, or for a new run --set train.accumulate=2"
    )
    parts = tiny("train.recompute=true", "train.accumulate=2")
    assert less_memory(parts, model).startswith("use for a new run --set train.accumulate=4")
    small = tiny("train.recompute=true", "augment.crop=[8, 8]", "data.size=[16, 16]", "train.batch=15")
    assert less_memory(small, build_model(small)).startswith("use for a new run --set train.accumulate=3")
    small = tiny("train.recompute=true", "augment.crop=[8, 8]", "data.size=[16, 16]", "train.batch=12")
    monkeypatch.setattr("emaseg.training.step.world_size", lambda: 2)
    assert less_memory(small, build_model(small)).startswith("use for a new run --set train.accumulate=2")
    assert less_memory(parts, model).startswith("use for a new run a smaller batch")


def test_the_next_smaller_number_of_parts_is_one_that_runs() -> None:
    """Protects from advice that the next command refuses."""
    small = ("augment.crop=[8, 8]", "data.size=[16, 16]", "train.batch=12")
    recipe = tiny("train.accumulate=12", *small)
    with pytest.raises(RecipeError) as caught:
        check_batch(build_model(recipe), recipe)
    assert "train.accumulate=6" in caught.value.hint
    check_batch(build_model(recipe), tiny("train.accumulate=6", *small))
    odd = tiny("train.accumulate=15", *small, "train.batch=15")
    with pytest.raises(RecipeError) as caught:
        check_batch(build_model(odd), odd)
    assert "train.accumulate=5" in caught.value.hint
