"""MemoryNet's parts alone: the class memory and its gradient, the attention, the shortcuts that change no value."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import emaseg
from emaseg.models.aspp import ASPP
from emaseg.models.layers import ConvNormAct, Norm, Step
from emaseg.models.memory import ClassMemory, memory_momentum
from emaseg.models.memory_update import updated_memory
from emaseg.models.memorynet import MemoryNet, UpsamplingHead
from emaseg.models.pixel_attention import PixelAttention
from emaseg.recipe.models import MemoryNetModel
from emaseg.weights.convert import FORMATS, rename
from tests.helpers import tiny
from tests.parity import GOLDEN, fill, golden, worst

NAMES = FORMATS["ssseg_memorynet"][2]


def small(*overrides: str, classes: int = 5) -> MemoryNet:
    """A MemoryNet with 16 channels on the 14-layer ResNet."""
    names = ", ".join(f'"{i}"' for i in range(classes))
    data = f'data={{kind="folder", root=".", classes=[{names}], train_images="a", train_masks="b", eval_images="a", '
    model = 'model={kind="memorynet", channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.01, '
    torch.manual_seed(0)
    network = emaseg.build_model(
        tiny(data + 'eval_masks="b"}', model + "aspp_dilations=[1, 2], memory_loss_weight=1.0}", *overrides)
    )
    assert isinstance(network, MemoryNet)
    return network


def batch(classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, 33, 40), generator=generator)
    labels[0, :4] = 255
    return torch.randn(2, 3, 33, 40, generator=generator), labels


# ------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("hard", [False, True])
def test_memory_head_fixture(hard: bool) -> None:
    """Protects the published reading of the memory, both attentions and both joins, soft and by arg max."""
    unit = golden("ssseg/unit.npz")
    keys = json.loads((GOLDEN / "ssseg/unit.meta.json").read_text())["memfwd_keys"]
    model = small(f"model.memory_hard={str(hard).lower()}", classes=9).eval()
    state = {}
    for key, shape in keys:
        kind = "int64" if key.endswith("num_batches_tracked") else "float32"
        state[rename(f"memory_module.{key}", NAMES)] = fill(f"memory_module.{key}", tuple(shape), kind)
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    assert not any(key.startswith(("memory_", "context_", "memory.features")) for key in loaded.missing_keys)
    pixels, context, logits = (torch.from_numpy(unit[k]) for k in ("mem/feats", "mem/feats2", "memfwd/preds"))
    with torch.inference_mode():
        out = model._join(pixels, model.memory(logits), context)
    assert worst(out, unit[f"memfwd/out_hard{int(hard)}"]) <= 1e-5


@pytest.mark.parametrize("gradient", ["current", "updated"])
def test_gradient_of_the_class_probabilities(gradient: str) -> None:
    """Protects both meanings of the backward pass: the values read are the old memory's in either."""
    torch.manual_seed(0)
    memory = ClassMemory(4, 6, gradient=gradient).double()  # type: ignore[arg-type]
    memory.features.normal_()
    before = memory.features[:, 0].clone()
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    pixels, labels = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (2, 9, 15))
    read, local = memory.read_and_update(logits, pixels, labels, 0.5)
    assert torch.allclose(read, torch.einsum("bkhw,kc->bchw", logits.softmax(1), before))
    weights = torch.randn_like(read)
    (own,) = torch.autograd.grad((read * weights).sum(), logits)
    seen = local if gradient == "updated" else before
    (expected,) = torch.autograd.grad((torch.einsum("bkhw,kc->bchw", logits.softmax(1), seen) * weights).sum(), logits)
    assert torch.allclose(own, expected, atol=1e-12)
    assert not torch.allclose(local[:3], before[:3])
    assert torch.equal(local[3], before[3])
    assert torch.equal(memory.features[:, 0], local)
    expected_memory, _ = updated_memory(
        before, pixels, labels, momentum=0.5, strategy="cosine_similarity", ranks="by_count"
    )
    assert torch.equal(local, expected_memory)


def test_hard_reading_stops_the_gradient() -> None:
    """Protects the published one-hot reading: a row a pixel, nothing flows back to the coarse prediction."""
    memory = ClassMemory(3, 2, hard=True)
    memory.features.copy_(torch.arange(6.0).view(3, 1, 2))
    logits = torch.tensor([0.0, 5.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).requires_grad_()
    read = memory(logits)
    assert not read.requires_grad
    assert torch.equal(read, torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2))


def test_under_autocast_the_memory_stays_exact() -> None:
    """16-bit features and logits: the memory keeps its own precision, and what is read has the logits'."""
    model = small().train()
    x, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.training_step(x, labels, Step(0, 2, 0.01))
        torch.stack(list(losses.values())).sum().backward()
    assert model.memory.features.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------------------ the momentum
def test_momentum_follows_the_learning_rate() -> None:
    """Protects the published schedule, its start at exactly 1 in two data sets, and rates above it from exploding."""
    model = MemoryNetModel(kind="memorynet", memory_base_lr=0.01)
    assert memory_momentum(model, 0.01) == pytest.approx(0.9)
    assert memory_momentum(model, 0.005) == pytest.approx(0.45)
    assert memory_momentum(model, 1.0) == 1.0
    assert memory_momentum(MemoryNetModel(kind="memorynet", memory_base_lr=0.009), 0.01) == 1.0
    fixed = MemoryNetModel(kind="memorynet", memory_base_lr=0.01, memory_momentum_follows_lr=False)
    assert memory_momentum(fixed, 1e-6) == 0.9


# ------------------------------------------------------------------------------------------------- the report
def test_age_counts_steps_since_a_class_was_seen() -> None:
    """Protects the report's ages: 0 when seen, one more each step after, unknown until the first time."""
    memory = ClassMemory(4, 2)
    pixels, logits = torch.randn(1, 2, 2, 2), torch.zeros(1, 4, 2, 2)
    for classes, expected in (((0, 255), [0, -1, -1, -1]), ((1, 3), [1, 0, -1, 0]), ((3, 3), [2, 1, -1, 0])):
        labels = torch.tensor(classes).repeat(2, 1)[None]
        memory.read_and_update(logits, pixels, labels, 0.9)
        assert memory.age.tolist() == expected


def test_report() -> None:
    """Protects `eval`'s account: classes without a feature are named, lengths and ages are right, JSON is strict."""
    memory, names = ClassMemory(4, 2), ("sky", "road", "car", "tree")
    fresh = memory.report(names)
    assert fresh.name == "memory"
    assert fresh.content["never_written"] == list(names)
    assert fresh.content["row_length"] is None
    assert fresh.content["age"] is None
    memory.features[:3, 0] = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]])
    memory.age.copy_(torch.tensor([7, 0, 2, -1]))
    report = memory.report(names)
    assert report.content["never_written"] == ["tree"]
    assert report.content["row_length"] == {"min": 1.0, "median": 2.0, "max": 5.0}
    assert report.content["age"] == {"min": 0, "median": 2, "max": 7}
    assert report.content["per_class"][0] == {"name": "sky", "row_length": 5.0, "age": 7}
    text = " ".join(" ".join(line) for line in report.lines)
    assert "3 of 4 classes written; never: tree" in text
    assert "longest 7 (sky)" in text
    memory.features[0, 0, 0] = math.nan
    json.dumps(memory.report(names).content, allow_nan=False)
    assert "not finite" in " ".join(value for _, value in memory.report(names).lines)


# ---------------------------------------------------------------------------------------------------- attention
def test_attention_is_the_explicit_formula() -> None:
    """Protects scale, softmax axis and the roles of the two maps."""
    torch.manual_seed(0)
    attention = PixelAttention(6, 4, Norm()).double().eval()
    queries, source = torch.randn(2, 2, 6, 3, 5, dtype=torch.float64)
    q, k, v = (
        part(x).flatten(2)
        for part, x in ((attention.query, queries), (attention.key, source), (attention.value, source))
    )
    weights = torch.softmax(q.transpose(1, 2) @ k / 4**0.5, dim=2)
    expected = attention.out((v @ weights.transpose(1, 2)).view(2, 4, 3, 5))
    assert torch.allclose(attention(queries, source), expected, atol=1e-12)


def test_attention_stores_no_map_of_all_pairs() -> None:
    """Protects memory: nothing kept for the backward pass grows with the square of the pixels."""
    attention = PixelAttention(8, 8, Norm())
    x = torch.randn(1, 8, 40, 40, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(x, x)
    assert max(kept) <= 8 * 1600


# ------------------------------------------------------------------------------------------- equal by construction
def test_downsampling_counts_its_batch_four_times() -> None:
    """Protects the published running statistics: one move here equals their four."""
    torch.manual_seed(0)
    layer = small("model.downsample=true").downsample
    assert layer is not None
    once = layer.double().train()
    four = copy.deepcopy(once)
    four.norm.momentum = 0.1
    x = torch.randn(2, once.conv.in_channels, 8, 8, dtype=torch.float64)
    outputs = [four(x) for _ in range(4)]
    assert torch.equal(once(x), outputs[-1])
    assert outputs[-1].shape[2:] == (4, 4)
    assert torch.allclose(once.norm.running_mean, four.norm.running_mean, rtol=0, atol=1e-14)
    assert torch.allclose(once.norm.running_var, four.norm.running_var, rtol=0, atol=1e-14)


def test_upsampling_head_is_the_published_order() -> None:
    """Enlarging the logits equals enlarging the features, dropout included."""
    torch.manual_seed(0)
    head = UpsamplingHead(6, 8, 3, 0.5, Norm(), leak=0.0).double().train()
    published = nn.Sequential(
        head.conv1, nn.Upsample(scale_factor=4), head.conv2, nn.Upsample(scale_factor=4), head.dropout, head.classifier
    )
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    torch.manual_seed(1)
    ours = head(x)
    torch.manual_seed(1)
    theirs = published(x)
    assert ours.shape == (2, 3, 48, 64)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_context_reaches_as_far_as_its_dilations() -> None:
    """Protects the branches: dilation 1 is one pixel, d is d pixels each way, and the image mean reaches everything."""
    context = ASPP(2, 4, (1, 3), Norm()).eval()
    assert [branch.conv.kernel_size for branch in context.branches] == [(1, 1), (3, 3)]
    x = torch.zeros(1, 2, 15, 15)
    y = x.clone()
    y[0, :, 7, 7] = 1
    reach = (context.branches[1](y) - context.branches[1](x)).abs().sum(dim=(0, 1)) > 0
    rows = reach.nonzero()
    assert set(map(tuple, rows.tolist())) <= {(7 + a, 7 + b) for a in (-3, 0, 3) for b in (-3, 0, 3)}
    assert len(rows) > 1
    assert ((context(y) - context(x)).abs().sum(dim=(0, 1)) > 0).float().mean() > 0.9


def test_leaky_activation_is_the_heads_alone() -> None:
    """Protects LIP's two ResNet rows: slope 0.01 in every layer of the head, ReLU in the backbone."""
    model = small('model.activation="leaky_relu"')
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ConvNormAct)}
    assert len(layers) > 15
    assert all(layer.leak == 0.01 for name, layer in layers.items() if not name.startswith("backbone."))
    x = torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    layer = ConvNormAct(1, 1, 1, Norm(), leak=0.01).eval()
    assert torch.allclose(layer(x), F.leaky_relu(layer.norm(layer.conv(x)), 0.01))


# -------------------------------------------------------------------------------------------------- the whole step
def test_losses_of_a_step() -> None:
    """Protects when the memory loss starts, its weight, and that it teaches the final head alone."""
    model = small("model.memory_loss_weight=0.5").train()
    x, labels = batch()
    assert model.loss_names == ("main", "coarse", "auxiliary", "memory")
    first = model.training_step(x, labels, Step(4, 1, 0.01))
    assert tuple(first) == ("main", "coarse", "auxiliary")
    second = model.training_step(x, labels, Step(5, 2, 0.01))
    assert tuple(second) == model.loss_names
    assert 0 < second["memory"].item() < 0.5 * 4 * math.log(5)
    model.zero_grad()
    second["memory"].backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"final"}
    assert small("model.memory_loss_weight=0.0").loss_names == ("main", "coarse", "auxiliary")


def test_memory_is_a_class_mean_after_its_first_step() -> None:
    """Protects the start: every class of the batch gets its pixels' mean, every other stays empty; none in eval."""
    model = small().train()
    x, labels = batch(classes=3)
    model.training_step(x, labels, Step(0, 1, 0.01))
    model.eval()
    written = model.memory.features.abs().sum(dim=(1, 2)) > 0
    assert written.tolist() == [True, True, True, False, False]
    before = copy.deepcopy(model.state_dict())
    model(x)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_unlabelled_batch_changes_no_memory() -> None:
    """Protects from a batch of ignored pixels: no NaN anywhere."""
    model = small().train()
    x, labels = batch()
    losses = model.training_step(x, torch.full_like(labels, 255), Step(0, 2, 0.01))
    assert not model.memory.features.any()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_batch_of_one_is_refused() -> None:
    """Protects the context's image mean: its norm would see one value."""
    model = small()
    assert model.norm_values(1, 512, 512) == 1
    assert model.norm_values(2, 512, 512) == 2


@pytest.mark.slow
def test_a_step_never_waits_for_the_device() -> None:
    """Protects speed: the whole step runs on tensors without values, so nothing in it can ask for one."""
    with FakeTensorMode():
        model = small().train()
        x, labels = torch.empty(2, 3, 33, 40), torch.empty(2, 33, 40, dtype=torch.int64)
        losses = model.training_step(x, labels, Step(0, 2, 0.01))
        torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_memory_loss_keeps_the_statistics_of_the_pixels() -> None:
    """Protects evaluation: apart, the running statistics are those of a step without that loss; shared (published) the
    rows move them too. The loss itself and its gradient are the same."""
    images, labels = batch()
    statistics, losses = {}, {}
    for name, epoch in (("apart", 2), ("shared", 2), ("without", 1)):
        way = "apart" if name == "without" else name
        torch.manual_seed(0)
        model = small(f'model.memory_loss_statistics="{way}"', "model.dropout=0.0").train()
        losses[name] = model.training_step(images, labels, Step(0, epoch, 0.01))
        statistics[name] = model.final.conv.norm.running_mean
        assert model.final.conv.norm.momentum == 0.1
    assert torch.equal(statistics["apart"], statistics["without"])
    assert not torch.equal(statistics["shared"], statistics["without"])
    assert torch.equal(losses["apart"]["memory"], losses["shared"]["memory"])
