"""Random starts of the heads: what sssegmentation, mmsegmentation and the EMANet authors state, and torch's own.

The backbones' start does not depend on model.init and has its tests beside each backbone.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from emaseg.models import Network, build_model
from emaseg.models.emanet import EMANet
from emaseg.models.memorynet import MemoryNet
from tests.helpers import tiny

WIDE = tuple(f"model.{key}_channels=48" for key in ("attention", "bottleneck", "decoder", "auxiliary"))
MEMORYNET = (
    'model={kind="memorynet", channels=48, attention_channels=48, auxiliary_channels=48, memory_base_lr=0.05, '
    "aspp_dilations=[1, 2]}"
)
CLASSIFIERS = ("classifier", "auxiliary.classifier")


def emanet(init: str, *overrides: str) -> EMANet:
    torch.manual_seed(0)
    model = build_model(tiny(*WIDE, f'model.init="{init}"', *overrides))
    assert isinstance(model, EMANet)
    return model


def memorynet() -> MemoryNet:
    torch.manual_seed(0)
    model = build_model(tiny(MEMORYNET))
    assert isinstance(model, MemoryNet)
    return model


def head(model: Network, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """Modules of a kind outside the backbone, by name."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, kind) and not n.startswith("backbone.")}
    assert found
    return found


def is_uniform(values: torch.Tensor, bound: float) -> bool:
    """Whether values look drawn from [-bound, bound]: none beyond, deviation bound / sqrt(3), the edges reached."""
    flat = values.detach().flatten()
    if float(flat.abs().max()) > bound:
        return False
    if flat.numel() < 100:  # too few for more than: not all the same
        return float(flat.abs().max()) > 0.3 * bound
    return float(flat.std()) == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(2 * flat.numel()))


def is_normal(values: torch.Tensor, deviation: float) -> bool:
    """Whether values look drawn from N(0, deviation): mean, deviation, and tails that a uniform draw does not have."""
    flat = values.detach().flatten()
    many = math.sqrt(flat.numel())
    return (
        abs(float(flat.mean())) < 4 * deviation / many
        and float(flat.std()) == pytest.approx(deviation, rel=4 / (math.sqrt(2) * many))
        and float(flat.abs().max()) > 2.2 * deviation
    )


def is_torchs(conv: nn.Conv2d) -> bool:
    """torch's default: weights and biases uniform within 1 / sqrt(fan-in)."""
    bound = 1 / math.sqrt(conv.weight[0].numel())
    return is_uniform(conv.weight, bound) and (conv.bias is None or is_uniform(conv.bias, bound))


@pytest.mark.parametrize("init", ["torch", "mmseg", "authors"])
def test_bases_are_normal_directions_of_unit_length(init: str) -> None:
    """Protects what all three state: N(0, sqrt(2 / bases)), then each base of length 1 over the channels."""
    bases = emanet(init, "model.bases=64").attention.bases
    assert bases.shape == (1, 48, 64)
    torch.testing.assert_close(bases.norm(dim=1), torch.ones(1, 64))
    assert is_normal(bases, 1 / math.sqrt(48))
    together = (bases[0].T @ bases[0]).fill_diagonal_(0)
    assert float(together.std()) == pytest.approx(1 / math.sqrt(48), rel=0.1)  # as random directions lie


@pytest.mark.parametrize("init", ["torch", "mmseg", "authors"])
def test_the_projection_is_frozen_at_its_start(init: str) -> None:
    """Protects the published frozen convolution: it starts like the rule says, and no seed gives the same one twice."""
    one = emanet(init).project
    torch.manual_seed(1)
    other = build_model(tiny(*WIDE, f'model.init="{init}"')).get_submodule("project")
    assert not any(p.requires_grad for p in one.parameters())
    assert not torch.equal(one.weight, other.get_parameter("weight"))


def test_sssegmentation_states_nothing_so_torchs_default_stays() -> None:
    """Protects init = "torch": every convolution of the head, with its bias, the frozen one and the classifiers too."""
    convs = head(emanet("torch"), nn.Conv2d)
    assert {name for name, conv in convs.items() if not is_torchs(conv)} == set()
    assert {name for name, conv in convs.items() if conv.bias is not None} == {"project", *CLASSIFIERS}


def test_mmsegmentation() -> None:
    """Protects init = "mmseg": Kaiming normal over the outputs, classifiers N(0, 0.01), every bias 0."""
    convs = head(emanet("mmseg"), nn.Conv2d)
    for name, conv in convs.items():
        outputs = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert is_normal(conv.weight, 0.01 if name in CLASSIFIERS else math.sqrt(2 / outputs)), name
        assert conv.bias is None or not conv.bias.any(), name
    assert {*CLASSIFIERS, "project", "reduce.conv", "fuse.conv"} <= convs.keys()


def test_the_authors() -> None:
    """Protects init = "authors": the attention's two 1x1 convolutions N(0, sqrt(2 / outputs)), torch's default else;
    the frozen one's bias keeps that default too."""
    model = emanet("authors", "model.concat_input=false", "model.auxiliary_channels=0")
    convs = head(model, nn.Conv2d)
    for name in ("project", "expand.conv"):
        assert is_normal(convs.pop(name).weight, math.sqrt(2 / 48)), name
    assert model.project.bias is not None
    assert is_uniform(model.project.bias, 1 / math.sqrt(48))
    assert {name for name, conv in convs.items() if not is_torchs(conv)} == set()
    assert convs.keys() == {"reduce.conv", "bottleneck.conv", "classifier"}


def test_memorynet() -> None:
    """Protects its only start: torch's default in every convolution, an empty memory of one feature for each class."""
    model = memorynet()
    assert {name for name, conv in head(model, nn.Conv2d).items() if not is_torchs(conv)} == set()
    assert model.memory.features.shape == (model.num_classes, 1, 48)
    assert not model.memory.features.any()
    assert (model.memory.age == -1).all()
    assert not any(name.startswith("memory.") for name, _ in model.named_parameters())


@pytest.mark.parametrize("init", ["torch", "mmseg", "authors", "memorynet"])
def test_norms_start_as_the_identity(init: str) -> None:
    """Protects all of them: weight 1, bias 0, mean 0, variance 1, in the backbone too."""
    model = memorynet() if init == "memorynet" else emanet(init)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 15
    for m in norms:
        assert m.running_mean is not None
        assert m.running_var is not None
        assert (m.weight == 1).all()
        assert not m.bias.any()
        assert not m.running_mean.any()
        assert (m.running_var == 1).all()
