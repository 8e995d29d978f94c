"""Small networks with settled norms, as if trained, and what exporting one gives."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.exporting.export import Exported, export
from emaseg.exporting.request import make_request
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe
from tests.helpers import tiny

SIZE = "data.size=[64,80]"
MEMORYNET = (
    'model={kind="memorynet", channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.05, '
    "aspp_dilations=[1, 2]}"
)
INSIDE = "normalize,argmax"
FILES = {
    "plain.onnx": ("emanet", "onnx", ""),
    "pixels.pt2": ("emanet", "torch", INSIDE),
    "pixels.onnx": ("memorynet", "onnx", INSIDE),
    "plain.pt2": ("memorynet", "torch", ""),
}
ONE = "one size.pt2"  # of ONE_SIZE: PyTorch loads it in a fifth of the time
ONE_SIZE = "40x48"


def recipe(kind: str, *overrides: str) -> Recipe:
    """The tiny recipe as "emanet" or "memorynet"."""
    return tiny(SIZE, *([MEMORYNET] if kind == "memorynet" else []), *overrides)


def network(recipe: Recipe, seed: int = 0) -> Network:
    """Random weights, norms and memory that are neither 0 nor 1; in eval mode."""
    torch.manual_seed(seed)
    model = build_model(recipe).eval()
    settle(model)
    return model


def settle(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "memory.features")):
            tensor.normal_(0, 0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


def checkpoint(recipe: Recipe, path: Path) -> Path:
    """A checkpoint of `network(recipe)`."""
    save_checkpoint(path, Checkpoint(network(recipe).state_dict(), {}, 0, 0, {}, {}, {}, recipe))
    return path


def exported(recipe: Recipe, path: Path, format_: str, **options: object) -> Exported:
    """`network(recipe)` exported as `path`."""
    request = make_request(format_, **options)  # type: ignore[arg-type]
    *_, done = export(network(recipe), recipe, request, path)
    assert isinstance(done, Exported)
    return done
