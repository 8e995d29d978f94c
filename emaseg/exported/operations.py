"""The operations that a .pt2 of `emaseg export` consists of, and the forms in which each of their arguments is written.

Room: exported; never torch.

Found by exporting the eight published networks and small ones of every kind and option, in all precisions, with one
size and with any, and with all that can go inside; a test holds the list against such exports, in both directions.
There is nothing that reads or writes a file, draws random numbers, runs other programs or takes functions as arguments.

Forms are the keys by which torch.export writes an argument ("as_int", a size that depends on the image: "as_sym_int",
...); a tuple is a form with the only values that it may have.
"""

from __future__ import annotations

from collections.abc import Mapping

Form = str | tuple[str, tuple[object, ...]]
Forms = tuple[Form, ...]

_TENSOR: Forms = ("as_tensor",)
_INT: Forms = ("as_int",)
_INTS: Forms = ("as_ints",)
_FLOAT: Forms = ("as_float",)
_SIZE: Forms = ("as_int", "as_sym_int")
_SIZES: Forms = ("as_ints", "as_sym_ints")
_NONE: Form = ("as_none", (True,))
_FALSE: Forms = (("as_bool", (False,)),)
_TRUE: Forms = (("as_bool", (True,)),)
_BOOL: Forms = (("as_bool", (False, True)),)
_TYPE: Forms = (("as_scalar_type", (1, 5, 6, 7, 13)),)  # uint8, int64, float16, float32, bfloat16
_CPU: Forms = (("as_device", ({"type": "cpu", "index": None},)),)
_STRIDED: Forms = (("as_layout", (7,)),)

# What a node's argument may be, by operation and name. In PyTorch the names are part of an operation's definition.
OPERATIONS: Mapping[str, Mapping[str, Forms]] = {
    "_operator.add": {"a": _SIZE, "b": _SIZE},
    "_operator.floordiv": {"a": _SIZE, "b": _SIZE},
    "_operator.mod": {"a": _SIZE, "b": _SIZE},
    "_operator.mul": {"a": _SIZE, "b": _SIZE},
    "_operator.neg": {"a": _SIZE},
    "torch.ops.aten._assert_tensor_metadata.default": {
        "a": _TENSOR,
        "dtype": _TYPE,
        "device": _CPU,
        "layout": _STRIDED,
    },
    "torch.ops.aten.add.Tensor": {"self": _TENSOR, "other": ("as_tensor", "as_float")},
    "torch.ops.aten.add_.Tensor": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.arange.default": {"end": _SIZE, "device": _CPU, "pin_memory": _FALSE},
    "torch.ops.aten.argmax.default": {"self": _TENSOR, "dim": _INT},
    "torch.ops.aten.avg_pool2d.default": {"self": _TENSOR, "kernel_size": _INTS, "stride": _INTS, "padding": _INTS},
    "torch.ops.aten.cat.default": {"tensors": ("as_tensors",), "dim": _INT},
    "torch.ops.aten.clamp.default": {"self": _TENSOR, "min": (_NONE,), "max": _INT},
    "torch.ops.aten.clamp_min.default": {"self": _TENSOR, "min": _FLOAT},
    "torch.ops.aten.contiguous.default": {"self": _TENSOR},
    "torch.ops.aten.conv2d.default": {
        "input": _TENSOR,
        "weight": _TENSOR,
        "bias": _TENSOR,
        "stride": _INTS,
        "padding": _INTS,
        "dilation": _INTS,
        "groups": _INT,
    },
    "torch.ops.aten.div.Tensor": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.eq.Scalar": {"self": _TENSOR, "other": _INT},
    "torch.ops.aten.expand.default": {"self": _TENSOR, "size": _SIZES},
    "torch.ops.aten.expand_as.default": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.feature_dropout.default": {"input": _TENSOR, "p": _FLOAT, "train": _FALSE},
    "torch.ops.aten.flatten.using_ints": {"self": _TENSOR, "start_dim": _INT},
    "torch.ops.aten.gelu.default": {"self": _TENSOR},
    "torch.ops.aten.index.Tensor": {"self": _TENSOR, "indices": ("as_tensors", "as_optional_tensors")},
    "torch.ops.aten.layer_norm.default": {
        "input": _TENSOR,
        "normalized_shape": _INTS,
        "weight": _TENSOR,
        "bias": _TENSOR,
        "eps": _FLOAT,
        "cudnn_enable": _FALSE,
    },
    "torch.ops.aten.leaky_relu_.default": {"self": _TENSOR},
    "torch.ops.aten.linalg_vector_norm.default": {"self": _TENSOR, "ord": _INT, "dim": _INTS, "keepdim": _TRUE},
    "torch.ops.aten.linear.default": {"input": _TENSOR, "weight": _TENSOR, "bias": _TENSOR},
    "torch.ops.aten.matmul.default": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.max_pool2d.default": {"self": _TENSOR, "kernel_size": _INTS, "stride": _INTS, "padding": _INTS},
    "torch.ops.aten.mean.dim": {"self": _TENSOR, "dim": _INTS, "keepdim": _TRUE},
    "torch.ops.aten.movedim.int": {"self": _TENSOR, "source": _INT, "destination": _INT},
    "torch.ops.aten.mul.Tensor": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.pad.default": {"self": _TENSOR, "pad": _SIZES, "mode": (("as_string", ("replicate",)),)},
    "torch.ops.aten.permute.default": {"self": _TENSOR, "dims": _INTS},
    "torch.ops.aten.relu.default": {"self": _TENSOR},
    "torch.ops.aten.relu_.default": {"self": _TENSOR},
    "torch.ops.aten.reshape.default": {"self": _TENSOR, "shape": _SIZES},
    "torch.ops.aten.scaled_dot_product_attention.default": {"query": _TENSOR, "key": _TENSOR, "value": _TENSOR},
    "torch.ops.aten.select.int": {"self": _TENSOR, "dim": _INT, "index": _INT},
    "torch.ops.aten.slice.Tensor": {"self": _TENSOR, "dim": _INT, "start": _INT, "end": _INT},
    "torch.ops.aten.softmax.int": {"self": _TENSOR, "dim": _INT},
    "torch.ops.aten.squeeze.dim": {"self": _TENSOR, "dim": _INT},
    "torch.ops.aten.sub.Tensor": {"self": _TENSOR, "other": _TENSOR},
    "torch.ops.aten.sum.dim_IntList": {"self": _TENSOR, "dim": _INTS},
    "torch.ops.aten.sym_size.int": {"self": _TENSOR, "dim": _INT},
    "torch.ops.aten.t.default": {"self": _TENSOR},
    "torch.ops.aten.threshold.default": {"self": _TENSOR, "threshold": _FLOAT, "value": _FLOAT},
    "torch.ops.aten.to.dtype": {"self": _TENSOR, "dtype": _TYPE},
    "torch.ops.aten.transpose.int": {"self": _TENSOR, "dim0": _INT, "dim1": _INT},
    "torch.ops.aten.unbind.int": {"self": _TENSOR},
    "torch.ops.aten.unsqueeze.default": {"self": _TENSOR, "dim": _INT},
    "torch.ops.aten.upsample_bilinear2d.vec": {
        "input": _TENSOR,
        "output_size": (*_SIZES, _NONE),
        "align_corners": _BOOL,
        "scale_factors": ("as_floats", _NONE),
    },
    "torch.ops.aten.view.default": {"self": _TENSOR, "size": _SIZES},
    "torch.ops.aten.where.self": {"condition": _TENSOR, "self": _TENSOR, "other": _TENSOR},
}

# These write into their first argument. It must be a value that the program has computed: no weight and no input, and
# no view of one. What VIEWS give may be a view of their first argument; everything else is computed anew.
IN_PLACE = (
    "torch.ops.aten.add_.Tensor",
    "torch.ops.aten.leaky_relu_.default",
    "torch.ops.aten.relu_.default",
)
VIEWS = (
    "torch.ops.aten.contiguous.default",
    "torch.ops.aten.expand.default",
    "torch.ops.aten.expand_as.default",
    "torch.ops.aten.feature_dropout.default",
    "torch.ops.aten.flatten.using_ints",
    "torch.ops.aten.movedim.int",
    "torch.ops.aten.pad.default",
    "torch.ops.aten.permute.default",
    "torch.ops.aten.reshape.default",
    "torch.ops.aten.select.int",
    "torch.ops.aten.slice.Tensor",
    "torch.ops.aten.squeeze.dim",
    "torch.ops.aten.t.default",
    "torch.ops.aten.to.dtype",
    "torch.ops.aten.transpose.int",
    "torch.ops.aten.unbind.int",
    "torch.ops.aten.unsqueeze.default",
    "torch.ops.aten.view.default",
)
