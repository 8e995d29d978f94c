"""What an ONNX file may hold: the operators that our export and our quantiser write, their settings, and plain tensors.

Room: exported; never torch, and not onnx or onnxruntime.

Threat: ONNX can hold loops without end, subgraphs, functions, operators of libraries, and tensors in other files. All
that is refused before ONNX Runtime sees a byte. What is not listed here is refused, also what ONNX will add one day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emaseg.exported.protobuf import Fields, Value, message, text
from emaseg.exported.refused import Refused

MOST_NODES = 20_000
LARGEST_NUMBER = 1 << 24  # of a setting or a size: no image has more pixels than this
OPSETS = (18,)

_MODEL: Fields = {
    1: "int",
    2: "bytes",
    3: "bytes",
    4: "bytes",
    5: "int",
    6: "bytes",
    7: "bytes",
    8: "bytes*",
    14: "bytes*",
}
_GRAPH: Fields = {
    1: "bytes*",
    2: "bytes",
    5: "bytes*",
    10: "bytes",
    11: "bytes*",
    12: "bytes*",
    13: "bytes*",
    16: "bytes*",
}
_NODE: Fields = {1: "bytes*", 2: "bytes*", 3: "bytes", 4: "bytes", 5: "bytes*", 6: "bytes", 7: "bytes", 9: "bytes*"}
_ATTRIBUTE: Fields = {1: "bytes", 2: "float", 3: "int", 4: "bytes", 7: "float*", 8: "int*", 13: "bytes", 20: "int"}
_TENSOR: Fields = {
    1: "int*",
    2: "int",
    4: "float*",
    5: "int*",
    7: "int*",
    8: "bytes",
    9: "bytes",
    12: "bytes",
    16: "bytes*",
}
_VALUE: Fields = {1: "bytes", 2: "bytes", 3: "bytes", 4: "bytes*"}
_OPSET: Fields = {1: "bytes", 2: "int"}
_TYPE: Fields = {1: "bytes"}  # a tensor: no sequence, map or optional
_TENSOR_TYPE: Fields = {1: "int", 2: "bytes"}
_SHAPE: Fields = {1: "bytes*"}
_DIMENSION: Fields = {1: "int", 2: "bytes"}

# ONNX's number of an attribute's kind -> the field its value is in
_KINDS = {1: 2, 2: 3, 3: 4, 6: 7, 7: 8}
# ONNX's number of a tensor's type -> (what its raw bytes hold, the field of a list of such values)
_TYPES = {1: ("<f4", 4), 2: ("u1", 5), 3: ("i1", 5), 6: ("<i4", 5), 7: ("<i8", 7), 9: ("u1", 5), 10: ("<f2", 5)}
_FLOATS = (1, 10)
_WHOLE_RANGE = (-(1 << 63), (1 << 63) - 1)  # "from the first", "to the last" of Slice

# operator -> its settings
OPERATORS: Mapping[str, Sequence[str]] = {
    "Add": (),
    "ArgMax": ("axis", "keepdims", "select_last_index"),
    "AveragePool": ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    "Cast": ("to",),
    "Clip": (),
    "Concat": ("axis",),
    "Conv": ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "DequantizeLinear": ("axis",),
    "Div": (),
    "Equal": (),
    "Erf": (),
    "Expand": (),
    "Gather": ("axis",),
    "GatherND": ("batch_dims",),
    "LayerNormalization": ("axis", "epsilon", "stash_type"),
    "LeakyRelu": ("alpha",),
    "LessOrEqual": (),
    "MatMul": (),
    "MaxPool": ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"),
    "Mod": ("fmod",),
    "Mul": (),
    "Neg": (),
    "Pad": ("mode",),
    "QuantizeLinear": (),
    "Range": (),
    "ReduceL1": ("keepdims", "noop_with_empty_axes"),
    "ReduceL2": ("keepdims", "noop_with_empty_axes"),
    "ReduceMean": ("keepdims", "noop_with_empty_axes"),
    "ReduceSum": ("keepdims", "noop_with_empty_axes"),
    "Relu": (),
    "Reshape": ("allowzero",),
    "Resize": (
        "antialias",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "keep_aspect_ratio_policy",
        "mode",
        "nearest_mode",
    ),
    "Shape": ("end", "start"),
    "Slice": (),
    "Softmax": ("axis",),
    "Squeeze": (),
    "Sub": (),
    "Transpose": ("perm",),
    "Unsqueeze": (),
    "Where": (),
}


def check_model(data: memoryview) -> None:
    """
    Args:
        data: the whole file.

    Raises:
        Refused: the file holds anything that `emaseg export` does not write, or weights that are no numbers.
        ValueError: it is damaged.
    """
    model = message(data, _MODEL, "the model")
    opsets = [message(_bytes(item), _OPSET, "an operator set") for item in model[8]]
    versions = [(_text(item[1]), *item[2]) for item in opsets]
    if len(versions) != 1 or versions[0] not in [("", version) for version in OPSETS]:
        raise Refused(f"the operator sets {versions[:3]}")
    if len(model[7]) != 1:
        raise ValueError("it has no graph")
    graph = message(_bytes(model[7][0]), _GRAPH, "the graph")
    if len(graph[1]) > MOST_NODES:
        raise Refused(f"{len(graph[1])} operations")
    for node in graph[1]:
        _check_node(message(_bytes(node), _NODE, "an operation"))
    for value in (*graph[11], *graph[12], *graph[13]):
        _check_value(message(_bytes(value), _VALUE, "a value"))
    wrong = []
    for tensor in graph[5]:
        fields = message(_bytes(tensor), _TENSOR, "a tensor")
        if not _check_tensor(fields):
            wrong.append(_text(fields[8]))
    if wrong:
        raise Refused(not_finite(wrong))


def not_finite(names: Sequence[str]) -> str:
    """That weights are NaN or infinite, and which."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"NaN or infinite weights in {', '.join(name[:80] for name in names[:3])}{more}"


def _check_node(node: Mapping[int, Sequence[Value]]) -> None:
    operator, domain = _text(node[4]), _text(node[7])
    if domain or operator not in OPERATORS:
        raise Refused(f"the operator {(f'{domain}.' if domain else '') + operator!r:.60}")
    seen = set()
    for item in node[5]:
        attribute = message(_bytes(item), _ATTRIBUTE, f"a setting of {operator}")
        name = _text(attribute[1])
        if name in seen or name not in OPERATORS[operator]:
            raise Refused(f"the setting {name!r:.60} of {operator}")
        seen.add(name)
        kind = attribute[20][0] if attribute[20] else 0
        if not isinstance(kind, int) or kind not in _KINDS:
            raise Refused(f"the setting {name} of {operator}, which is not a number or word")
        for field in (2, 3, 4, 7, 8):
            for value in attribute[field]:
                number = isinstance(value, (int, float))
                if field != _KINDS[kind] or (number and not abs(value) <= LARGEST_NUMBER):  # type: ignore[arg-type]
                    raise Refused(f"the setting {name} of {operator}")


def _check_value(value: Mapping[int, Sequence[Value]]) -> None:
    for item in value[2]:
        for tensor in message(_bytes(item), _TYPE, "a type")[1]:
            for shape in message(_bytes(tensor), _TENSOR_TYPE, "a type")[2]:
                for dimension in message(_bytes(shape), _SHAPE, "a shape")[1]:
                    message(_bytes(dimension), _DIMENSION, "a shape")


def _check_tensor(tensor: Mapping[int, Sequence[Value]]) -> bool:
    """Whether the values are finite; all else that is wrong is raised."""
    name, kind = _text(tensor[8]), tensor[2][0] if tensor[2] else 0
    if not isinstance(kind, int) or kind not in _TYPES:
        raise Refused(f"the tensor {name!r:.60} of an unknown type")
    dims = [size for size in tensor[1] if isinstance(size, int)]
    if len(dims) > 8 or any(size < 0 for size in dims):
        raise ValueError(f"the shape of {name!r:.60} is damaged")
    form, listed = _TYPES[kind]
    lists = [field for field in (4, 5, 7) if tensor[field]]
    if tensor[9] and not lists:
        values = np.frombuffer(_bytes(tensor[9][0]), form)
    elif not tensor[9] and lists in ([], [listed]):
        stored = np.array(tensor[listed], np.float64 if listed == 4 else np.int64)
        values = stored.astype("<u2").view(form) if form == "<f2" else stored
    else:
        raise Refused(f"the tensor {name!r:.60} in two forms")
    if math.prod(dims) != values.size:
        raise ValueError(f"the size of {name!r:.60} does not match its shape")
    if kind == 7 and values.size:
        inside = (np.abs(values) <= LARGEST_NUMBER) | np.isin(values, _WHOLE_RANGE)
        if not inside.all():
            raise Refused(f"the sizes {name!r:.60}")
    return kind not in _FLOATS or not values.size or _finite(values)


def _finite(values: npt.NDArray[Any]) -> bool:
    """Least and largest value are numbers; both are NaN where any value is."""
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _bytes(value: Value) -> memoryview:
    assert isinstance(value, memoryview)  # `message` has compared the form
    return value


def _text(values: Sequence[Value]) -> str:
    return text(values[0]) if values else ""
