"""Convolutions and products whose weights lie as oneDNN wants them, with their activation or sum in the same pass.

Room: engine. Legend: B batch, C channels, h w feature grid, N rows of a product.

torch's convolution reorders its weights in every call, and with one thread it sends 1x1 convolutions past oneDNN to a
matrix product that reaches 40 % of its speed on some processors (measured on Zen 5). The operators here are those that
torch's compiler emits for a CPU. They are no public interface: `packing_works` tries each kind of them before they are
used, and where it fails the network runs on torch's public ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of the largest value, in the trial

_WIDE = 1024  # input channels from which on a 3x3 convolution is split (Zen 4: 1.2 to 1.5 times as fast in float32)
_PIECE = 64  # output channels of a part
_PIECE_AMX = 256  # in 16 bits on matrix units (Sapphire Rapids: 1.2 times as fast as whole or in parts of 64)
_LARGE = 1_400_000  # values of a weight; the 3x3 ones above it have one layout at every size
_MOST_SIZES = 1000  # of inputs, that are remembered

Geometry = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups
Activation = tuple[str, tuple[float, ...], str]  # oneDNN's name, its numbers, its algorithm
NONE: Activation = ("none", (), "")
RELU: Activation = ("relu", (), "")
GELU: Activation = ("gelu", (), "none")  # the exact one, by the error function


def leaky_relu(slope: float) -> Activation:
    """ReLU where the slope is 0."""
    return ("leaky_relu", (slope,), "") if slope else RELU


class _Packings:
    """The weight of a convolution in the layouts that its inputs' sizes want.

    oneDNN chooses the blocks of a weight by the size of the image. A weight in other blocks is reordered in every call, by
    a loop so slow that it takes longer than the convolution. So a new size packs the weight again (some milliseconds for a
    whole network) and keeps what is a new layout: there are three at most. The plain weight is not kept beside them: it is
    made from one of them, to the bit, when a new size needs it. Large weights of 3x3, and the parts of a `SplitConv`,
    always lie alike, but not in 16 bits on matrix units.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self._plain: Tensor | None = weight.detach()
        self._geometry = geometry
        piece = weight.shape[0] == _PIECE and weight.shape[1] >= _WIDE
        alike = weight.shape[2:].numel() > 1 and (piece or weight.numel() > _LARGE)
        self._fixed = alike and not _on_matrix_units(weight.dtype)
        self._layouts: dict[bytes, Tensor] = {}
        self._sizes: dict[torch.Size, Tensor] = {}

    def __getitem__(self, size: torch.Size) -> Tensor:
        """The weight for inputs of a size."""
        packed = self._sizes.get(size)
        if packed is None:
            first = next(iter(self._layouts.values()), None)
            packed = self._pack(size) if first is None or not self._fixed else first
            if len(self._sizes) >= _MOST_SIZES:
                self._sizes.clear()
            self._sizes[size] = packed
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """The plain weight: layouts belong to this process, and a copy makes its own."""
        return {**self.__dict__, "_plain": self._unpacked(), "_layouts": {}, "_sizes": {}}

    def _unpacked(self) -> Tensor:
        plain = self._plain
        return next(iter(self._layouts.values())).to_dense() if plain is None else plain

    def _pack(self, size: torch.Size) -> Tensor:
        plain = self._unpacked()
        plain = plain.contiguous(memory_format=torch.channels_last)
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(plain, *self._geometry, list(size))
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        kept = self._layouts.setdefault(layout, packed)  # before the plain one goes: another thread may be copying
        if self._geometry[3] == 1:  # of a grouped one another shape would come back
            self._plain = None
        return kept


class PackedConv(nn.Module):
    """A convolution and its activation in one pass. The weights belong to no parameter: nothing here is trained or moved."""

    def __init__(self, conv: nn.Conv2d, activation: Activation = NONE) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError("only zero padding of a stated width is packed")
        self.geometry: Geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.activation = activation
        self.out_channels = conv.out_channels
        self.weights = _Packings(conv.weight, self.geometry)
        self.bias = [None if conv.bias is None else conv.bias.detach()]  # in a list: no buffer that could be moved

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h', w') in the same memory format. alone: of a norm in training, which is folded here."""
        missing = missing_columns(x, self.geometry[1])
        if missing:
            return widened(self, x, missing, self.geometry[1])
        name, numbers, algorithm = self.activation
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weights[x.shape], *self.bias, *self.geometry, name, list(numbers), algorithm
        )
        return y

    def add_relu(self, x: Tensor, total: Tensor) -> Tensor:
        """relu(convolution + total), written over `total`; the module's own activation is not used."""
        missing = missing_columns(x, self.geometry[1])
        if missing:
            wide = _padded(total, missing // self.geometry[1][1])
            return total.copy_(self.add_relu(_padded(x, missing), wide)[..., : total.shape[3]])
        y: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self.weights[x.shape], *self.bias, *self.geometry, "add", 1.0, "relu", [], ""
        )
        return y


class WideConv(nn.Module):
    """A convolution by torch's own operator that never sees an image too narrow for it (see `missing_columns`)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h', w')."""
        missing = missing_columns(x, self.conv.stride)
        return widened(self.conv, x, missing, self.conv.stride) if missing else self.conv(x)


def missing_columns(x: Tensor, stride: Sequence[int]) -> int:
    """Columns of zeros that a convolution needs to the right of (B, C, h, w) so that its results are right.

    On matrix units oneDNN's convolutions in 16 bits return memory that nobody has written where they step over an image no
    wider than one step (Sapphire Rapids, oneDNN 3.13; torch's own convolution, too). Twice that width is safe.
    """
    step = stride[1]
    steps = 2 - (x.shape[3] - 1) // step if x.shape[3] <= 2 * step else 0
    return step * steps if step > 1 and x.dtype != torch.float32 else 0


def widened(conv: Callable[[Tensor], Tensor], x: Tensor, missing: int, stride: Sequence[int]) -> Tensor:
    """The convolution of `x`, which sees `missing` columns of zeros more: whole steps, whose results are cut off."""
    y = conv(_padded(x, missing))
    return y[..., : y.shape[3] - missing // stride[1]].contiguous(memory_format=torch.channels_last)


def _padded(x: Tensor, columns: int) -> Tensor:
    """With columns of zeros at the right."""
    return F.pad(x, (0, columns)).contiguous(memory_format=torch.channels_last)


class SplitConv(nn.Module):
    """A convolution of very many input channels, a few output channels at a time.

    oneDNN goes through the image row by row and reads all weights for each row. Where they do not fit into the cache, the
    reading is what takes the time. The weights of a few output channels do fit.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation = NONE) -> None:
        super().__init__()
        piece = _piece(conv.weight.dtype)
        self.pieces = nn.ModuleList(
            PackedConv(part(conv, outputs=slice(i, i + piece)), activation) for i in range(0, conv.out_channels, piece)
        )

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h', w') in the same memory format. alone: as for `PackedConv`."""
        return torch.cat([piece(x) for piece in self.pieces], dim=1)

    def add_relu(self, x: Tensor, total: Tensor) -> Tensor:
        """As `PackedConv.add_relu`."""
        return total.add_(self(x)).relu_()


def packed_weight(weight: Tensor) -> Tensor:
    """The (C, C_in) of a product as oneDNN wants it, whatever the number of rows: 1.05 to 1.3 times as fast.

    It stays as it is where MKL's product is quicker than oneDNN's: in float32 without AVX-512 (Zen 3: 1.1 to 1.2 times).
    """
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if weight.dtype == torch.float32 and has_mkl and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return weight.contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def activate_(y: Tensor, activation: Activation) -> Tensor:
    """An activation in a pass of its own, written over `y`."""
    name, numbers, _ = activation
    if name == "gelu":
        torch.ops.aten.gelu_(y)
    elif name != "none":
        F.leaky_relu_(y, *numbers) if numbers else y.relu_()
    return y


class PackedLinear(nn.Module):
    """y = activation(x W^T + b) on the last dimension. oneDNN's GELU takes half as long as the product without AVX-512."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = NONE) -> None:
        super().__init__()
        self.activation = activation
        self.weight = [packed_weight(weight.detach().contiguous())]  # in lists: no buffers that could be moved
        self.bias = [None if bias is None else bias.detach()]

    def __getstate__(self) -> dict[str, Any]:
        """With the plain weight, as for `_Packings`."""
        return {**self.__dict__, "weight": [w.to_dense() if w.is_mkldnn else w for w in self.weight]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "weight": [packed_weight(w) for w in state["weight"]]})  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C)."""
        if not self.weight[0].is_mkldnn:
            return activate_(F.linear(x, *self.weight, *self.bias), self.activation)
        name, numbers, algorithm = self.activation
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, *self.weight, *self.bias, name, list(numbers), algorithm)
        return y


def product(rows: Tensor, weight: Tensor, total: Tensor | None = None) -> Tensor:
    """x W^T (+ total) of (N, C_in) and a (C, C_in) of `packed_weight`. It may be written over `total`."""
    if not weight.is_mkldnn:
        return torch.mm(rows, weight.t()) if total is None else total.addmm_(rows, weight.t())
    if total is None:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return y
    summed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, total, weight, None, "add")
    return summed


@functools.cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor has these operators for `dtype`, and they compute what torch's own do."""
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    try:
        with torch.inference_mode():
            return all(_close(own, reference, dtype) for own, reference in _trials(draw))
    except (AttributeError, RuntimeError, NotImplementedError):  # no such operator, or not for this type
        return False


def _trials(draw: Any) -> list[tuple[Tensor, Tensor]]:
    """Results of each kind of operator, and of torch's public ones in float32."""
    image = draw(1, 32, 9, 13).contiguous(memory_format=torch.channels_last)
    pairs = []
    for kernel, stride, dilation, groups in ((1, 1, 1, 1), (3, 1, 2, 1), (3, 2, 1, 1), (3, 1, 1, 2)):
        with torch.device("meta"):  # nothing is drawn from the generator that a user may have seeded
            conv = nn.Conv2d(32, 48, kernel, stride, kernel // 2 * dilation, dilation, groups)
        conv.weight, conv.bias = nn.Parameter(draw(*conv.weight.shape)), nn.Parameter(draw(48))
        expected = F.conv2d(
            image.float(), conv.weight.float(), conv.bias.float(), conv.stride, conv.padding, conv.dilation, groups
        )
        other = draw(*expected.shape).contiguous(memory_format=torch.channels_last)
        summed = torch.relu(expected + other.float())
        pairs.append((PackedConv(conv, leaky_relu(0.1))(image), F.leaky_relu(expected, 0.1)))
        pairs.append((PackedConv(conv, RELU)(image), torch.relu(expected)))
        pairs.append((PackedConv(conv).add_relu(image, other), summed))
    tokens, weight, bias = draw(2, 7, 32), draw(48, 32), draw(48)
    pairs.append(
        (PackedLinear(weight, bias, GELU)(tokens), F.gelu(F.linear(tokens.float(), weight.float(), bias.float())))
    )
    rows, result = tokens[0], F.linear(tokens[0].float(), weight.float())
    total, packed = draw(7, 48), packed_weight(weight)
    summed = result + total.float()
    pairs.append((product(rows, packed), result))
    pairs.append((product(rows, packed, total), summed))
    return pairs


def _close(own: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    if own.shape != reference.shape or own.dtype != dtype:
        return False
    difference = (own.float() - reference).abs().max()
    return bool(difference <= _TOLERANCE[dtype] * reference.abs().max())


def packed_linear(linear: nn.Linear, activation: Activation = NONE) -> PackedLinear:
    """An `nn.Linear` and its activation."""
    return PackedLinear(linear.weight, linear.bias, activation)


def packed_conv(conv: nn.Conv2d, activation: Activation = NONE) -> PackedConv | SplitConv:
    """A convolution and its activation, in one pass or in several, whichever is faster."""
    wide = conv.in_channels >= _WIDE and conv.weight[0, 0].numel() > 1 and conv.groups == 1
    split = wide and conv.out_channels > _piece(conv.weight.dtype)
    return SplitConv(conv, activation) if split else PackedConv(conv, activation)


def _piece(dtype: torch.dtype) -> int:
    return _PIECE_AMX if _on_matrix_units(dtype) else _PIECE


def _on_matrix_units(dtype: torch.dtype) -> bool:
    return dtype != torch.float32 and has_matrix_units()


def has_matrix_units() -> bool:
    """Whether the processor has AMX, as Intel's for servers have since 2023. PyTorch's question is no public one."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return ask is not None and bool(ask())


def part(conv: nn.Conv2d, *, inputs: slice = slice(None), outputs: slice = slice(None)) -> nn.Conv2d:
    """The convolution of some input channels to some output channels. That of the first input channels has the bias."""
    weight = conv.weight[outputs, inputs].contiguous()
    with torch.device("meta"):  # no weights are drawn
        own = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=False,
        )
    own.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None and not inputs.start:
        own.bias = nn.Parameter(conv.bias[outputs].contiguous(), requires_grad=False)
    return own
