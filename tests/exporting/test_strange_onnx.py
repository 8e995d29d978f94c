"""An ONNX file that a stranger made: refused before ONNX Runtime sees it, or before a result becomes a mask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emaseg.errors import WeightsError
from emaseg.exported.info import read_info
from emaseg.exported.protobuf import message, varint, walk, written
from emaseg.exported.runtime import open_exported
from emaseg.exporting.export import Exported
from emaseg.exporting.program import seal

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[str], Exported]
Model = Any
CLASSES = 5
SHAPE = ["b", 3, "h", "w"]


def refused(path: Path, words: str = "refused|damaged") -> None:
    with pytest.raises(WeightsError, match=words) as caught:
        open_exported(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def load(made: Make, name: str = "plain.onnx") -> Model:
    """The model, without its digest, which a stranger would leave out."""
    model = onnx.load(made(name).path)
    kept = [entry for entry in model.metadata_props if entry.key != "sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def saved(model: Model, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# ------------------------------------------------------------------------------------------------- what it may hold
def loop(model: Model) -> None:
    """A loop without end beside the network."""
    ends = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("go", 9), ("on", 9))]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", ends[:2], ends[2:])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.insert(0, helper.make_node("Loop", ["", "true"], [], body=body))


def hidden_branch(model: Model) -> None:
    """A graph as a setting of an operator that takes none."""
    body = helper.make_graph([helper.make_node("Relu", ["image"], ["x"])], "body", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", body))


def function(model: Model) -> None:
    """An operator of the name Relu, made of others."""
    made = helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], model.opset_import)
    model.functions.append(made)


def library(model: Model) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def domain(model: Model) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").domain = "com.microsoft"


def elsewhere(model: Model) -> None:
    """A weight in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def sparse(model: Model) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("p", TensorProto.INT64, [1], [1 << 40])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [1 << 41]))


def texts(model: Model) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.STRING, [1], [b"x"]))


def operator(name: str) -> Callable[[Model], None]:
    return lambda model: setattr(next(n for n in model.graph.node if n.op_type == "Relu"), "op_type", name)


def size(value: int) -> Callable[[Model], None]:
    def edit(model: Model) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.INT64)
        tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.int64), tensor.name))

    return edit


def shape(model: Model) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def sequence(model: Model) -> None:
    model.graph.value_info.append(
        helper.make_value_info("s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))
    )


EDITS: dict[str, Callable[[Model], None]] = {
    "a loop": loop,
    "a subgraph": hidden_branch,
    "a function": function,
    "a library of operators": library,
    "an operator of a library": domain,
    "an operator that draws": operator("RandomNormalLike"),
    "an operator that calls Python": operator("PyOp"),
    "an operator that makes constants": operator("ConstantOfShape"),
    "a weight in another file": elsewhere,
    "a sparse weight": sparse,
    "texts": texts,
    "a size without limit": size(1 << 40),
    "a shape beyond its bytes": shape,
    "a sequence": sequence,
    "training": lambda model: model.training_info.add(),
    "another operator set": lambda model: setattr(model.opset_import[0], "version", 999),
    "a setting without limit": lambda model: next(
        a for n in model.graph.node for a in n.attribute if a.name == "pads"
    ).ints.append(1 << 50),
    "two texts of one name": lambda model: model.metadata_props.add(key="recipe", value="x"),
}


@pytest.mark.parametrize("name", EDITS)
def test_other_models(name: str, made: Make, tmp_path: Path) -> None:
    """Protects from all that ONNX can hold and our files do not: refused before ONNX Runtime opens the file."""
    model = load(made)
    EDITS[name](model)
    refused(saved(model, tmp_path / "odd.onnx"))


def test_a_model_in_two_parts(made: Make, tmp_path: Path) -> None:
    """Protects from fields that one reader joins and another replaces: a second graph, a second operator name."""
    whole = load(made).SerializeToString()
    more = onnx.GraphProto(node=[helper.make_node("Loop", [], [])])
    path = tmp_path / "odd.onnx"
    for tail in (written(7, more.SerializeToString()), written(25, b""), b"\x3b\x3c", b"\x38\x01", b"\x3a\x85\x00"):
        path.write_bytes(whole + tail)
        refused(path)


# --------------------------------------------------------------------------------------------------------- contents
def test_every_changed_byte_is_noticed(made: Make, tmp_path: Path) -> None:
    """Protects results: any byte of the file, not only of its weights; and bytes that are added or lost."""
    whole = made("plain.onnx").path.read_bytes()
    path = tmp_path / "changed.onnx"
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 25):
        new = bytearray(whole)
        new[place] ^= 1 << int(random.integers(8))
        path.write_bytes(new)
        refused(path)
    path.write_bytes(whole + written(14, written(1, b"more") + written(2, b"x")))
    refused(path, "has been changed")
    seal(path)
    refused(path)  # two digests


def test_weights_that_are_no_numbers(made: Make, tmp_path: Path) -> None:
    """Protects from "background 100 %": NaN or infinite weights are named."""
    model = load(made)
    names = []
    for number, odd in ((0, np.nan), (1, np.inf)):
        tensor = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims)][number]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = odd
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        names.append(tensor.name)
    refused(saved(model, tmp_path / "odd.onnx"), f"NaN or infinite weights in {names[0]}, {names[1]}")


def test_files_of_earlier_versions(made: Make, tmp_path: Path) -> None:
    """Protects what exists: a file without a digest gives the same results."""
    path = saved(load(made), tmp_path / "old.onnx")
    images = torch.rand(1, 3, 40, 48)
    assert torch.equal(open_exported(path)(images), open_exported(made("plain.onnx").path)(images))
    assert read_info(path) == read_info(made("plain.onnx").path)


# ---------------------------------------------------------------------------------------------------------- outputs
Value = tuple[str, int, Sequence[int | str]]


def small(
    made: Make,
    path: Path,
    inside: bool,
    nodes: Sequence[Any],
    ends: tuple[Value, Value],
    constants: Mapping[str, Any],
) -> Path:
    """A model of a few operations that says of itself what a good file says."""
    source = made("pixels.onnx" if inside else "plain.onnx").path
    values = [helper.make_tensor_value_info(name, kind, list(shape)) for name, kind, shape in ends]
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.extend(e for e in onnx.load(source).metadata_props if e.key != "sha256")
    return saved(model, path)


PIXELS: Value = ("image", TensorProto.UINT8, SHAPE)
FLOATS: Value = ("image", TensorProto.FLOAT, SHAPE)
LABELS: Value = ("labels", TensorProto.UINT8, ["b", "h", "w"])
LOGITS: Value = ("logits", TensorProto.FLOAT, ["b", CLASSES, "x", "y"])
KERNEL = {"k": np.ones((CLASSES, 3, 1, 1), np.float32)}
RED = helper.make_node("Gather", ["image", "zero"], ["labels"], axis=1)
ZERO = {"zero": np.array(0)}
CONV = helper.make_node("Conv", ["image", "k"], ["logits"])

ENDS: dict[str, tuple[bool, Any, tuple[Value, Value], Mapping[str, Any]]] = {
    "floats for pixels": (True, RED, (FLOATS, ("labels", TensorProto.FLOAT, ["b", "h", "w"])), ZERO),
    "an input of another name": (
        True,
        helper.make_node("Gather", ["picture", "zero"], ["labels"], axis=1),
        (("picture", TensorProto.UINT8, SHAPE), LABELS),
        ZERO,
    ),
    "four channels": (True, RED, (("image", TensorProto.UINT8, ["b", 4, "h", "w"]), LABELS), ZERO),
    "one image only": (True, RED, (("image", TensorProto.UINT8, [1, 3, "h", "w"]), LABELS), ZERO),
    "one size only": (True, RED, (("image", TensorProto.UINT8, ["b", 3, 64, 64]), LABELS), ZERO),
    "labels as whole numbers": (
        True,
        helper.make_node("ArgMax", ["image"], ["labels"], axis=1, keepdims=0),
        (PIXELS, ("labels", TensorProto.INT64, ["b", "h", "w"])),
        {},
    ),
    "labels of four dimensions": (
        True,
        helper.make_node("Slice", ["image", "a", "z"], ["labels"]),
        (PIXELS, ("labels", TensorProto.UINT8, SHAPE)),
        {"a": np.array([0]), "z": np.array([9])},
    ),
    "logits for labels": (False, CONV, (FLOATS, LOGITS), {**KERNEL, "inside": True}),
    "labels by another name": (
        True,
        helper.make_node("Gather", ["image", "zero"], ["classes"], axis=1),
        (PIXELS, ("classes", TensorProto.UINT8, ["b", "h", "w"])),
        ZERO,
    ),
    "a class too many": (
        False,
        CONV,
        (FLOATS, ("logits", TensorProto.FLOAT, ["b", CLASSES + 1, "x", "y"])),
        {"k": np.ones((CLASSES + 1, 3, 1, 1), np.float32)},
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_other_ends(name: str, made: Make, tmp_path: Path) -> None:
    """Protects from inputs and outputs that are not what the description promises: told before the first image."""
    inside, node, ends, constants = ENDS[name]
    constants = dict(constants)
    inside = bool(constants.pop("inside", inside))
    refused(small(made, tmp_path / "odd.onnx", inside, [node], ends, constants), "where its description says")


def test_two_outputs(made: Make, tmp_path: Path) -> None:
    """Protects from an output more than there should be."""
    model = load(made)
    inner = next(node for node in model.graph.node if node.op_type == "Relu").output[0]
    model.graph.output.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))
    refused(saved(model, tmp_path / "odd.onnx"), "where its description says")


RESULTS: dict[str, tuple[bool, list[Any], tuple[Value, Value], Mapping[str, Any], str]] = {
    "class ids beyond the classes": (True, [RED], (PIXELS, LABELS), ZERO, "class 200, where there are 5 classes"),
    "labels of another size": (
        True,
        [RED, helper.make_node("Slice", ["labels", "a", "z", "a"], ["labels2"])],
        (PIXELS, LABELS),
        {**ZERO, "a": np.array([1]), "z": np.array([9])},
        r"the shape \(1, 8, 48\)",
    ),
    "NaN": (
        False,
        [
            helper.make_node("Conv", ["image", "k"], ["c"]),
            helper.make_node("Sub", ["c", "c"], ["n"]),
            helper.make_node("Div", ["n", "n"], ["logits"]),
        ],
        (FLOATS, LOGITS),
        KERNEL,
        "NaN or infinite logits",
    ),
    "infinity": (
        False,
        [
            helper.make_node("Conv", ["image", "k"], ["c"]),
            helper.make_node("Sub", ["c", "c"], ["n"]),
            helper.make_node("Div", ["one", "n"], ["logits"]),
        ],
        (FLOATS, LOGITS),
        {**KERNEL, "one": np.float32(1)},
        "NaN or infinite logits",
    ),
    "more cells than pixels": (
        False,
        [helper.make_node("Conv", ["image", "k"], ["logits"], pads=[99, 99, 99, 99])],
        (FLOATS, LOGITS),
        KERNEL,
        "the shape",
    ),
    "images that are joined": (
        False,
        [CONV, helper.make_node("Concat", ["logits", "logits"], ["two"], axis=0)],
        (FLOATS, LOGITS),
        KERNEL,
        r"the shape \(2, 5, 40, 48\)",
    ),
    "a shape that does not fit": (
        False,
        [CONV, helper.make_node("Add", ["logits", "odd"], ["sum"])],
        (FLOATS, LOGITS),
        {**KERNEL, "odd": np.ones((1, 1, 1, 7), np.float32)},
        "its program fails",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_other_results(name: str, made: Make, tmp_path: Path) -> None:
    """Protects masks and scores: a result of another size, of classes that there are not, or of no numbers."""
    inside, nodes, ends, constants, words = RESULTS[name]
    last = nodes[-1].output[0]
    ends = (ends[0], (ends[1][0], *ends[1][1:]))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    if last not in ("labels", "logits"):  # the name of the last result is the output's
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [{ends[1][0]: "inner", last: ends[1][0]}.get(n, n) for n in names]
    model = open_exported(small(made, tmp_path / "odd.onnx", inside, nodes, ends, constants))
    backbone = model.info.recipe.backbone
    images = (200 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    with pytest.raises(WeightsError, match=words) as caught:
        model(images.view(1, 3, 1, 1).expand(1, 3, 40, 48))
    assert str(tmp_path / "odd.onnx") in caught.value.message


LIMITED = """
import sys
from pathlib import Path
import torch
from emaseg.exported import run_onnx
from emaseg.exported.runtime import open_exported

run_onnx.room = lambda device, most: 64 << 20
network = open_exported(Path(sys.argv[1]))
try:
    print(tuple(network(torch.ones(1, 3, 40, 48)).shape))
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(("copies", "words"), [(10, "(1, 5, 40, 48)"), (10_000, "Available memory")])
def test_memory_without_limit(copies: int, words: str, made: Make, tmp_path: Path) -> None:
    """Protects the machine: a file of a few hundred bytes makes its images as many as it likes. What is granted and then
    used would end this process or another; in a process of its own, since a limit may stand for all files of one."""
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"]),
        helper.make_node("Expand", ["c", "shape"], ["many"]),
        helper.make_node("ReduceMean", ["many", "axis"], ["one"], keepdims=1),
        helper.make_node("Add", ["c", "one"], ["logits"]),
    ]
    constants = {**KERNEL, "shape": np.array([copies, 1, 1, 1]), "axis": np.array([0])}
    path = small(made, tmp_path / "many.onnx", False, nodes, (FLOATS, LOGITS), constants)
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert words in done.stdout


# -------------------------------------------------------------------------------------------------------- the reader
@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x00\x00",
        b"\x0b",
        b"\x0a\x05abc",
        b"\x08\x80\x00",
        b"\x88\x00\x01",
        b"\x08" + b"\xff" * 9 + b"\x7f",
        b"\x0d\0",
    ],
)
def test_messages_that_are_none(data: bytes) -> None:
    """Protects the reader: numbers longer than they need be, groups, lengths beyond the end."""
    with pytest.raises(ValueError, match=r"protocol-buffer|too early"):
        list(walk(memoryview(data)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x72\0" * 2000, "more than 1000 parts"),  # empty texts
        (b"\x08\1" * 2000, "more than 1000 parts"),
        (bytes(1000), "not a protocol-buffer message"),
    ],
)
def test_a_file_of_many_small_parts_is_not_read_to_its_end(content: bytes, words: str, tmp_path: Path) -> None:
    """Protects memory and time: a part has two bytes, and a file of a gigabyte compresses to nothing."""
    path = tmp_path / "many.onnx"
    path.write_bytes(content)
    for read in (read_info, open_exported):
        with pytest.raises(WeightsError, match=words):
            read(path)
    with pytest.raises(ValueError, match="more than 100,000 times"):
        message(memoryview(b"\x0a\0" * 100_001), {1: "bytes*"}, "the graph")


def test_what_is_written_is_read() -> None:
    """Protects the field that is appended: lengths of one and of several bytes."""
    for length in (0, 1, 127, 128, 70_000):
        assert message(memoryview(written(14, bytes(length))), {14: "bytes"}, "it")[14] == [bytes(length)]
    assert varint(memoryview(b"\xff" * 9 + b"\x01"), 0) == ((1 << 64) - 1, 10)
