"""Every EMANet row of mmsegmentation and the paper as a network, and the paper's own count of its size (table 1)."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import emaseg
from emaseg.models.emanet import EMANet
from emaseg.recipe.data import num_classes
from tests.models.test_emanet_variants import AUTHORS, MMSEG
from tests.parity import keys_of

NOT_LEARNED = ("running_mean", "running_var", "num_batches_tracked", ".bases", ".mu")

# System, and the fixture with its ResNet-50's published tensors: (key list, classes, classifiers, width before them).
SYSTEMS = {
    "mmseg": ("mmseg/mmseg_r50_512x1024", 19, 2, 256),
    "paper": ("mmseg/official_r50", 21, 1, 256),
}
ROWS = (
    *(f"mmseg_cityscapes_{depth}_d8_{crop}_80k" for depth in ("r50", "r101") for crop in ("512x1024", "769x769")),
    "paper_voc_val_r101_emanet512",
    *(f"paper_voc_test_{depth}{stage}" for depth in ("r101", "r152") for stage in ("_coco", "_trainaug", "")),
    "paper_pascal_context_r50",
    "paper_pascal_context_r101",
    "paper_coco_stuff_r101",
)

# Table 1 of the paper: attention channels -> (billions of multiply-adds, parameters) over the bare ResNet-101.
TABLE_1 = {512: (43.1, "10.0"), 256: (21.1, "4.87")}
TABLE_1_BARE = (190.6, "42.6")


def on_meta(row: str, *overrides: str) -> EMANet:
    with torch.device("meta"):
        return emaseg.build_model(emaseg.load_recipe(row, overrides)).eval()


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@cache
def torchvision_size(kind: str) -> int:
    with torch.device("meta"):
        return size(getattr(torchvision.models, kind)(weights=None))


def millions(count: int, like: str) -> str:
    """A count in millions with as many decimals as `like` has."""
    return f"{count / 1e6:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("row", ROWS)
def test_every_row_builds(row: str) -> None:
    """Protects every row: its size follows from the published ResNet-50's tensors, and logits have the right shape.

    A deeper backbone adds what it adds in torchvision, a class a row and a bias to each classifier.
    """
    recipe = emaseg.load_recipe(row)
    fixture, known_classes, classifiers, width = SYSTEMS[row.partition("_")[0]]
    known = sum(math.prod(shape) for key, shape, _ in keys_of(fixture) if not key.endswith(NOT_LEARNED))
    deeper = torchvision_size(recipe.backbone.kind) - torchvision_size("resnet50")
    classes = num_classes(recipe.data)
    model = on_meta(row)
    assert size(model) == known + deeper + classifiers * (width + 1) * (classes - known_classes)
    logits = model(torch.empty(1, 3, 129, 161, device="meta"))
    assert logits.shape == (1, classes, 17, 21)


def test_the_rows_are_the_networks_of_the_parity_tests() -> None:
    """Protects from rows that drift away from what is held against the published systems' logits and gradients."""
    row, held = emaseg.load_recipe(ROWS[0]), emaseg.load_recipe("cityscapes_r50_d8", MMSEG)
    assert (row.model, row.backbone, row.loss, row.optim) == (held.model, held.backbone, held.loss, held.optim)

    unused = ("model.decoder_channels=512", "loss.auxiliary_weight=0.4")
    row = emaseg.load_recipe("paper_pascal_context_r50", unused)
    held = emaseg.load_recipe("voc_r50_d8", (*AUTHORS, f'backbone.weights="{row.backbone.weights}"'))
    assert (row.model, row.backbone, row.loss) == (held.model, held.backbone, held.loss)
    assert (row.optim.lr, row.optim.weight_decay, row.optim.groups) == (
        held.optim.lr,
        held.optim.weight_decay,
        held.optim.groups,
    )


@pytest.mark.parametrize("channels", TABLE_1)
def test_the_papers_parameter_count(channels: int) -> None:
    """Protects what EMANet(256) and EMANet(512) mean: the width of the attention.

    The paper counts +10.0 M and +4.87 M over the bare ResNet-101. That is the 3x3 reduction and the EMA unit with its
    bases (9,996,800 and 4,867,328), to the last digit given. It leaves out the 3x3 bottleneck and the classifier that
    follow, which add 1,185,557 and 595,733 to the network; and it counts the bases, which are no parameters here.
    The bare network is the authors' with their wide stem: torchvision's with its 7x7 has 42.5 M, not 42.6 M.
    """
    model = on_meta(f"paper_voc_val_r101_emanet{channels}")
    attention = (model.reduce, model.project, model.expand)
    counted = sum(size(module) for module in attention) + model.attention.bases.numel()
    assert millions(counted, TABLE_1[channels][1]) == TABLE_1[channels][1]
    left_out = size(model.bottleneck) + size(model.classifier)
    assert left_out == {512: 1_185_557, 256: 595_733}[channels]
    assert size(model) - size(model.backbone) == counted - model.attention.bases.numel() + left_out
    assert millions(size(model.backbone), TABLE_1_BARE[1]) == TABLE_1_BARE[1]
    assert millions(torchvision_size("resnet101") - 2049 * 1000, TABLE_1_BARE[1]) == "42.5"


@pytest.mark.parametrize("channels", TABLE_1)
def test_the_papers_cost(channels: int) -> None:
    """Protects the output stride of evaluation: the paper's FLOPs are those at 8, for one image of 513 x 513.

    They are multiply-adds. Ours are those of convolutions and products alone, hence up to 1 % fewer; at stride 16 the
    backbone would have a third of them.
    """
    model = on_meta(f"paper_voc_val_r101_emanet{channels}")
    with FlopCounterMode(display=False, depth=2) as counter:
        model(torch.empty(1, 3, 513, 513, device="meta"))
    cost = {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}
    attention = sum(cost[f"EMANet.{part}"] for part in ("reduce", "project", "attention", "expand"))
    assert cost["EMANet.backbone"] == pytest.approx(TABLE_1_BARE[0], rel=0.01)
    assert attention == pytest.approx(TABLE_1[channels][0], rel=0.01)


@pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="PyTorch 2.8 imports its compiler for any meta tensor")
def test_building_on_meta_imports_no_compiler() -> None:
    """Protects the quick commands: random numbers on the meta device would make torch import its compiler, for
    seconds, to compute nothing."""
    program = (
        "import sys, torch, emaseg\n"
        "names = ('voc_r50_d8', 'mmseg_cityscapes_r50_d8_512x1024_80k', 'paper_voc_val_r101_emanet512')\n"
        "names += ('memorynet_cityscapes_s101_d8', 'memorynet_lip_hrnetv2p_w48', 'memorynet_ade20k_vit_large')\n"
        "with torch.device('meta'):\n"
        "    for name in names:\n"
        "        emaseg.build_model(emaseg.load_recipe(name))\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torchvision'))][:3])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
