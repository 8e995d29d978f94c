"""The lists of operations are exact: all that is exported is listed, and all that is listed is exported by something."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import emaseg
from emaseg.engine import slim
from emaseg.exported.check_onnx import OPERATORS, check_model
from emaseg.exported.check_pt2 import check_texts
from emaseg.exported.operations import IN_PLACE, OPERATIONS, VIEWS
from emaseg.exported.pt2_archive import PROGRAM, content, read_directory
from emaseg.exporting.export import DTYPES
from emaseg.exporting.network import InferenceNetwork
from emaseg.exporting.program import program_of, write_onnx, write_pt2
from emaseg.models import build_model
from emaseg.models.backbones import HRNet, ResNeSt, ViT
from emaseg.models.layers import Norm
from tests.benchmarks.bench_export import MODELS
from tests.exporting.made import MEMORYNET, network, recipe, settle

pytestmark = pytest.mark.usefixtures("one_thread")

INSIDE = ("normalize", "argmax")
TEXTS = {"versions": '{"emaseg": "0"}'}


class Backbones(nn.Module):
    """The backbones that the tiny recipe lacks, each with a map or two."""

    align_corners = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(
            [
                HRNet(stem_relu=False, width=4, modules=(1, 1, 1), blocks=1, norm=Norm()),
                ResNeSt((1, 1, 1, 1), output_stride=8, stem_channels=(8, 8, 16), width=8, norm=Norm()),
                ViT(image_size=(32, 32), taps=(0,), width=16, depth=1, heads=2, hidden=16),
            ]
        )
        self.norm = nn.LayerNorm(16)
        self.backbone = self.parts[0]  # it says how many channels the images have
        settle(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = []
        for part in self.parts:
            means.append(part(images)[-1].mean(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True))
        return torch.cat(means, dim=1)


def small() -> Iterator[ExportedProgram]:
    """Programs of small networks that together have every option which changes operations."""
    odd = MEMORYNET[:-1] + ', activation="leaky_relu", memory_hard=true, downsample=true}'
    emanet = ('model.attention_epsilon="add"', "model.align_corners=true")
    for made, options, include, dtype in (
        ("memorynet", (f"{odd}",), INSIDE, torch.float16),
        ("memorynet", (), (), torch.bfloat16),
        ("emanet", emanet, INSIDE, torch.float32),
        ("emanet", (), (), torch.float32),
    ):
        wanted = recipe(made, *options)
        yield program(network(wanted), include, dtype, wanted.backbone.mean, None)
    yield program(Backbones().eval(), (), torch.float32, (0.0, 0.0, 0.0), None)


def program(
    model: nn.Module,
    include: tuple[str, ...],
    dtype: torch.dtype,
    mean: tuple[float, ...],
    shape: tuple[int, int] | None,
) -> ExportedProgram:
    slim(model)  # type: ignore[arg-type]
    return program_of(InferenceNetwork(model, include, mean, (1.0, 1.0, 1.0), dtype).eval(), shape)  # type: ignore[arg-type]


def used(program: ExportedProgram, path: Path) -> set[tuple[str, str]]:
    """Operations and the names of their arguments in the file of a program, which passes every check."""
    path.unlink(missing_ok=True)
    write_pt2(program, path, TEXTS)
    with path.open("rb") as file:
        members = read_directory(file)
        check_texts({n: content(file, m) for n, m in members.items() if n.endswith(".json")}, members)
    with zipfile.ZipFile(path) as archive:
        nodes = json.loads(archive.read(f"{archive.namelist()[0].partition('/')[0]}/{PROGRAM}"))["graph_module"][
            "graph"
        ]["nodes"]
    return {(node["target"], item["name"]) for node in nodes for item in node["inputs"]}


def listed() -> set[tuple[str, str]]:
    return {(target, name) for target, names in OPERATIONS.items() for name in names}


def test_lists_agree() -> None:
    """Protects the two short lists from names that the long one does not have."""
    assert set(IN_PLACE) == {name for name in OPERATIONS if name.split(".")[-2].endswith("_")}
    assert set(VIEWS) < set(OPERATIONS)


@pytest.mark.slow
def test_operations_of_a_program(tmp_path: Path) -> None:
    """Protects both ways: an operation that an export needs is never refused, and one that none needs is."""
    found = set().union(*(used(program, tmp_path / "export.pt2") for program in small()))
    assert found == listed()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_operations_of_the_published_networks(name: str, tmp_path: Path) -> None:
    """Protects the real networks: every precision, one size and any, everything inside and nothing."""
    row, overrides, _ = MODELS[name]
    published = emaseg.load_recipe(row, overrides)
    for include, precision, shape in (((), "fp32", None), (INSIDE, "fp16", None), (INSIDE, "bf16", (128, 160))):
        model = build_model(published).eval()
        made = program(model, include, DTYPES[precision], published.backbone.mean, shape)
        assert used(made, tmp_path / "export.pt2") <= listed()
        if precision != "bf16":
            write_onnx(made, tmp_path / "export.onnx", "labels" if include else "logits", TEXTS, shape)
            check_model(memoryview((tmp_path / "export.onnx").read_bytes()))


@pytest.mark.slow
def test_operators_of_a_model(tmp_path: Path) -> None:
    """Protects both ways, as above, for ONNX; the quantiser's two operators are in the test of 8 bits."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    found = set()
    for number, made in enumerate(small()):
        if number == 1:
            continue  # ONNX has no bfloat16
        path = tmp_path / f"{number}.onnx"
        write_onnx(made, path, "out", TEXTS, None)
        check_model(memoryview(path.read_bytes()))
        for node in onnx.load(path).graph.node:
            found |= {(node.op_type, attribute.name) for attribute in node.attribute} | {(node.op_type, "")}
    quantised = {("QuantizeLinear", ""), ("DequantizeLinear", ""), ("DequantizeLinear", "axis")}
    assert found | quantised == {(name, part) for name, parts in OPERATORS.items() for part in (*parts, "")}
