"""What every network and every backbone promises, tried on small ones. A new one adds one line to NETWORKS or to
BACKBONES and has passed when all of this passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import emaseg.models
from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from tests.helpers import tiny
from tests.models.test_backbones import SMALL as BACKBONES
from tests.parity import no_dropout

pytestmark = pytest.mark.usefixtures("one_thread")

MEMORYNET = (
    'kind="memorynet", channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.05, '
    "aspp_dilations=[1, 2, 3], memory_loss_weight=1.0"
)
# What is changed of the tiny recipe of tests/helpers.py.
NETWORKS: dict[str, tuple[str, ...]] = {
    "emanet of sssegmentation": (),
    "emanet of mmsegmentation": ('model.init="mmseg"', 'loss.reduction="all_pixels"', "model.align_corners=true"),
    "emanet of the authors": (
        "model.concat_input=false",
        "model.auxiliary_channels=0",
        'model.bases_average="plain"',
        'model.attention_epsilon="add"',
        "model.align_corners=true",
        'model.init="authors"',
        'loss.reduction="all_pixels"',
    ),
    "emanet with a 7x7 stem": ("backbone.stem_channels=[]", "backbone.output_stride=16"),
    "memorynet": (f"model={{{MEMORYNET}}}",),
    "memorynet as published": (f'model={{{MEMORYNET}, memory_gradient="updated", memory_loss_statistics="shared"}}',),
    "memorynet of hrnet": (f"model={{{MEMORYNET}, downsample=true}}",),
    "memorynet of lip": (f'model={{{MEMORYNET}, activation="leaky_relu"}}',),
    "memorynet, hard": (f'model={{{MEMORYNET}, memory_hard=true, memory_strategy="mean"}}',),
}
# Modules whose effect on the loss is partly a constant for autograd: EM attention and memory are read without gradient.
BEFORE_CONSTANTS = ("backbone.", "reduce.", "downsample.")
# A bias in front of a norm, which takes it away again: published in ResNeSt, its exact gradient is 0.
WITHOUT_EFFECT = ("conv2.fc1.bias",)
STEP = 1e-9  # of the numerical slope: so short that as good as no ReLU changes its side
EVERY = [*NETWORKS, *BACKBONES]
LATE = Step(step=100, epoch=9, lr=0.02)  # every loss has begun


def build(name: str) -> nn.Module:
    return build_model(tiny(*NETWORKS[name])) if name in NETWORKS else BACKBONES[name]()


def seeded(name: str, seed: int = 0) -> nn.Module:
    """In double precision, without dropout; its memory, where it has one, holds something of every class."""
    torch.manual_seed(seed)
    module = no_dropout(build(name)).double()
    for key, value in module.named_buffers():
        if key == "memory.features":
            value.normal_()
    return module


def batch(network: nn.Module, size: tuple[int, int] = (40, 56), count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) and labels (B, H, W), some of them ignored."""
    rng = torch.Generator().manual_seed(1)
    classes = network.num_classes if isinstance(network, Network) else 2
    labels = torch.randint(0, classes, (count, *size), generator=rng)
    labels[:, :3] = 255
    return torch.randn(count, 3, *size, generator=rng, dtype=torch.float64), labels


def outputs(module: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The logits of a network, the maps of a backbone."""
    found = module(images)
    return found if isinstance(found, tuple) else (found,)


def total_loss(module: nn.Module, step: Step = LATE) -> torch.Tensor:
    """Of a network, the sum of its losses; of a backbone, a sum of its maps with fixed random weights."""
    images, labels = batch(module)
    if isinstance(module, Network):
        return torch.stack(list(module.training_step(images, labels, step).values())).sum()
    rng = torch.Generator().manual_seed(2)
    weighted = [(x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in module(images)]
    return torch.stack(weighted).sum()


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def network(name: str) -> Network:
    module = seeded(name)
    assert isinstance(module, Network)
    return module


# ------------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (97, 17)])
def test_size_of_the_logits(name: str, size: tuple[int, int]) -> None:
    """Protects protocols and exports: (B, K, ceil(H / stride), ceil(W / stride)) at any size."""
    model = network(name).eval()
    stride = model.backbone.output_stride * (2 if getattr(model, "downsample", None) else 1)
    with torch.inference_mode():
        logits = model(batch(model, size, 2)[0])
    assert logits.shape == (2, model.num_classes, -(-size[0] // stride), -(-size[1] // stride))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_the_announced_ones(name: str) -> None:
    """Protects metrics.csv: names and order, each a finite scalar; before its epoch a loss is left out, not renamed."""
    model = network(name).train()
    images, labels = batch(model)
    late = model.training_step(images, labels, LATE)
    early = model.training_step(images, labels, Step(step=0, epoch=1, lr=0.02))
    assert tuple(late) == model.loss_names
    assert tuple(early) == tuple(n for n in model.loss_names if n in early)
    assert "main" in early
    assert all(value.shape == () and torch.isfinite(value) for value in (*late.values(), *early.values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_belongs_to_a_class_is_announced(name: str) -> None:
    """Protects fine-tuning with other classes: exactly the announced entries change their shape, in its first place."""
    with torch.device("meta"):
        few, many = (build_model(tiny(*NETWORKS[name], f"data={folder(k)}")).state_dict() for k in (3, 7))
        announced = build_model(tiny(*NETWORKS[name])).per_class
    assert few.keys() == many.keys()
    changed = {key for key in few if few[key].shape != many[key].shape}
    assert changed == {key for key in few if any(key == n or key.startswith(f"{n}.") for n in announced)}
    assert all((len(few[key]), len(many[key])) == (3, 7) for key in changed)


def folder(classes: int) -> str:
    """A data section with so many classes; nothing of it is read."""
    names = ", ".join(f'"c{i}"' for i in range(classes))
    return (
        f'{{kind="folder", root=".", classes=[{names}], train_images="a", train_masks="b", eval_images="a", '
        'eval_masks="b"}'
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_losses_slopes(name: str) -> None:
    """Protects the backward pass: along a random direction, in double precision, the losses change as it says."""
    model = network(name).train()
    left_out = BEFORE_CONSTANTS + (("coarse.",) if name == "memorynet as published" else ())
    chosen = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(left_out)]
    start = state_of(model)
    total_loss(model).backward()
    torch.manual_seed(3)
    direction = [torch.randn_like(p) for p in chosen]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(chosen, direction, strict=True) if p.grad is not None)
    around = []
    for sign in (1, -1):
        model.load_state_dict(start)  # a step moves bases, memory and running statistics
        with torch.no_grad():
            for p, d in zip(chosen, direction, strict=True):
                p.add_(d, alpha=sign * STEP)
            around.append(float(total_loss(model)))
    assert slope == pytest.approx((around[0] - around[1]) / (2 * STEP), rel=1e-3)


# ------------------------------------------------------------------------------------ networks and backbones
@pytest.mark.parametrize("name", EVERY)
def test_building_on_meta_needs_no_memory(name: str) -> None:
    """Protects plans, exports and loading: the same entries and shapes, without one value."""
    with torch.device("meta"):
        empty = build(name)
    tensors = (*empty.parameters(), *empty.buffers())
    assert all(value.is_meta for value in tensors)
    shapes = {key: (value.shape, value.dtype) for key, value in empty.state_dict().items()}
    assert shapes == {key: (value.shape, value.dtype) for key, value in build(name).state_dict().items()}


@pytest.mark.parametrize("name", EVERY)
def test_the_state_is_the_whole_network(name: str) -> None:
    """Protects checkpoints: strictly loaded into a network of another start, it gives the same bits."""
    one, other = seeded(name, 0).eval(), seeded(name, 1).eval()
    images, _ = batch(one)
    with torch.inference_mode():
        before = outputs(other, images)
        other.load_state_dict(state_of(one), strict=True)
        wanted, found = outputs(one, images), outputs(other, images)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wanted, before, strict=True))
    assert same(state_of(one), state_of(other))


@pytest.mark.parametrize("name", EVERY)
def test_every_trainable_parameter_has_a_gradient(name: str) -> None:
    """Protects training: in double precision each gradient is finite and not zero; what is frozen gets none."""
    module = seeded(name).train()
    total_loss(module).backward()
    for key, p in module.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, key
            assert torch.isfinite(p.grad).all(), key
            assert float(p.grad.norm()) > 1e-9 or key.endswith(WITHOUT_EFFECT), key
        else:
            assert p.grad is None, key


@pytest.mark.parametrize("name", EVERY)
def test_a_training_step_is_a_function_of_state_and_seed(name: str) -> None:
    """Protects resuming: the same state, batch and seed give the same losses, gradients and state, dropout included."""
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        module = build(name).double().train()
        torch.manual_seed(5)
        loss = total_loss(module)
        loss.backward()
        gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        seen.append({"loss": loss.detach(), **gradients, **{f"state {k}": v for k, v in state_of(module).items()}})
    assert same(*seen)


@pytest.mark.parametrize("name", EVERY)
def test_recomputed_activations_change_no_bit(name: str) -> None:
    """Protects train.recompute: losses, gradients, norm statistics, bases and memory are the plain step's, dropout too."""
    seen = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = build(name).train()
        if recompute:
            module.recompute = True
            if isinstance(module, Network):
                module.recompute_activations()
        torch.manual_seed(5)
        loss = total_loss(module.double())
        kept = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), kept)
        gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        seen.append({"loss": loss.detach(), **gradients, **{f"state {k}": v for k, v in state_of(module).items()}})
    assert same(*seen)


@pytest.mark.parametrize("name", EVERY)
def test_recomputing_keeps_less(name: str) -> None:
    """Protects the memory that train.recompute is there for: fewer values wait for the backward pass."""
    kept = []
    for recompute in (False, True):
        module = seeded(name).train()
        if isinstance(module, Network) and recompute:
            module.recompute_activations()
        module.recompute = recompute
        sizes: dict[int, int] = {}

        def note(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            total_loss(module)
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_is_a_function_of_each_image(name: str) -> None:
    """Protects evaluation: the same image gives the same result, alone or in a batch; neither it nor the state moves."""
    module = seeded(name).eval()
    before = state_of(module)
    images, _ = batch(module)
    kept = images.clone()
    with torch.inference_mode():
        first, again, alone = outputs(module, images), outputs(module, images), outputs(module, images[1:2])
    assert torch.equal(images, kept)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for a, b in zip(first, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-9, atol=1e-9)
    assert same(before, state_of(module))


# ------------------------------------------------------------------------------------------------- sources
WITHOUT_A_PAPER = {"__init__.py", "network.py", "layers.py", "sync_norm.py"}  # interfaces, and parts that others name


def test_every_model_file_names_its_source() -> None:
    """Protects the next reader: the paper with its address; of a published network, the code that was compared with."""
    top = Path(emaseg.models.__file__).parent
    for path in top.rglob("*.py"):
        if path.name in WITHOUT_A_PAPER:
            continue
        text = path.read_text()
        assert re.search(r"^ *Paper: .+, https://arxiv\.org/abs/\d{4}\.\d{5}\.$", text, re.MULTILINE), path.name
        if path.name != "extractor.py":
            assert re.search(r"^Reference: .+ at [0-9a-f]{7,}", text, re.MULTILINE), path.name
