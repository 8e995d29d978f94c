"""The engine: a trained network made ready to be run as fast as this machine can, and nothing else any more.

Room: engine. Legend: B batch, H W image, h w feature grid, K classes.

The stages, in `prepare`'s order:
    1  drop      auxiliary heads and whatever else a forward pass never calls                                 slim.py
    2  fold      each norm into the convolution before it                                                     slim.py
    3  cast      the weights to the chosen precision; EM iterations, class memory and classifiers stay float32
    4  lay out   channels last; on a CPU packed once for oneDNN, with ReLU, sums and shortcuts fused   packed.py, fused.py
       and wide 3x3 convolutions with fewer products                                                   winograd.py
    5  compile   only where it is asked for: torch.compile, whose result is kept in the cache folder
predict, eval, bench and export use these. Training evaluates on the network itself, which it goes on training.

In float32 the result differs from the network's by rounding: at most 1e-4 of the range of the logits (tested on every
golden network and protocol). That holds on a GPU, too: TF32 is off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from emaseg.device import full_float32, has_bf16
from emaseg.engine.fused import pack
from emaseg.engine.packed import WideConv, packing_works
from emaseg.engine.slim import slim
from emaseg.engine.winograd import WinogradConv
from emaseg.errors import SystemFault, WeightsError
from emaseg.free_memory import trim
from emaseg.models import Network, Report
from emaseg.models.em_attention import EMAttention
from emaseg.models.memory import ClassMemory
from emaseg.resources import cache_folder
from emaseg.words import first_line, quoted_path

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Pixels of an image from which on Winograd's weights are made for each convolution anew: that takes 2 % of the pass, and
# they are not beside the largest maps.
_LARGE = 4_500_000
_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # the variable by which PyTorch is told where compiled networks are kept


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the engine's result on one image is to the network's own in float32.

    difference: the largest of a logit, as a share of their range. labels: the share of cells with the same class, 0..1.
    """

    difference: float
    labels: float


class Engine(nn.Module):
    """A prepared network: normalised images in, logits out, in eval mode for good. Of several threads one computes at a time.

    Attributes:
        num_classes: K. align_corners: how its logits are resized.
        precision: what it computes in. device: where it was prepared for. packed: whether oneDNN's own layouts are used.
        compiled: whether it runs stage 5. lock: held while it computes; who looks inside holds it, too.
        agreement: with the network before, on the probe image; None where there was none.
    """

    def __init__(
        self, network: Network, precision: Precision, device: torch.device, *, packed: bool, compiled: bool
    ) -> None:
        super().__init__()
        self.num_classes = network.num_classes
        self.align_corners = network.align_corners
        self.precision = precision
        self.device = device
        self.packed = packed
        self.agreement: Agreement | None = None
        self.network = network
        self.compiled = compiled
        self.lock = threading.RLock()
        self._largest = 0  # values of an input, so far
        self._run = torch.compile(network) if compiled else network
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock: a copy has one of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "lock": threading.RLock()})  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised RGB -> logits (B, K, h, w) float32.

        Raises:
            SystemFault: the network cannot be compiled here.
            WeightsError: its values become NaN or infinite; most often as they do not fit into 16 bits.
        """
        return self._computed(images, self._run)

    def eager(self, images: Tensor) -> Tensor:
        """The same without stage 5, whose result passes by the hooks of the network's parts."""
        return self._computed(images, self.network)

    def _computed(self, images: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        x = images.to(DTYPES[self.precision], memory_format=torch.channels_last)
        try:
            with self.lock, full_float32(images.device):
                self._make_room(images)
                logits = run(x)
        except Exception as error:
            if self.compiled and _is_of_compiler(error):
                raise SystemFault(
                    f"--compile: PyTorch cannot compile this network here ({first_line(error)})",
                    "it needs a C++ compiler, on a GPU Triton; if a compilation was interrupted before, delete "
                    f"{quoted_path(os.environ[_CACHE])}; or leave --compile out",
                ) from error
            raise
        self._check_finite(logits)
        return logits.float()

    def _check_finite(self, logits: Tensor) -> None:
        """Of NaN the arg max would be the first class."""
        lying = logits if logits.is_contiguous() else logits.permute(0, 2, 3, 1)  # as the values lie it is quick
        least, largest = torch.aminmax(lying)  # NaN where there is one
        if not bool(torch.isfinite(least) & torch.isfinite(largest)):
            remedy = {"fp16": "use --precision bf16 or fp32", "bf16": "use --precision fp32"}
            hint = remedy.get(
                self.precision, "training has diverged, or the file is damaged: use an earlier checkpoint"
            )
            raise WeightsError(f"the network gives NaN or infinite logits in {self.precision}", hint)

    def _make_room(self, images: Tensor) -> None:
        """Give back what images of this size do not need."""
        is_large = images.shape[2:].numel() > _LARGE
        for conv in self._winograd():
            conv.hold_weights(not is_large)
        if is_large or images.numel() > self._largest:
            self._largest = max(self._largest, images.numel())
            trim()  # blocks of other sizes are of no use, and would stay beside those of this one

    def bytes_to_come(self) -> int:
        """What the first large image adds to the weights for good."""
        return sum(conv.bytes_to_come() for conv in self._winograd())

    def save_memory(self) -> None:
        """Leave out what is quicker with weights that are not there yet."""
        for conv in self._winograd():
            conv.keep_to_what_is_there()

    def _winograd(self) -> Iterator[WinogradConv]:
        return (module for module in self.modules() if isinstance(module, WinogradConv))

    def report(self, classes: Sequence[str]) -> Report | None:
        """As the network's."""
        return self.network.report(classes)


def prepare(
    network: Network,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    *,
    compiled: bool = False,
    probe: Tensor | None = None,
) -> Engine:
    """The engine of a network, which is used up: its memory becomes the engine's.

    Args:
        network: on the CPU, in eval mode.
        device: where the engine is to run.
        compiled: stage 5, at the first image; then the weights are not packed, as the compiler does that itself.
        probe: a normalised image (1, 3, H, W) on which the engine is compared with the network.

    Raises:
        SystemFault: the device does not compute in this precision.
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() first")
    where = torch.device(device)
    check_precision(precision, where)
    before = None if probe is None else _logits(network, probe)
    classifiers = network.per_class
    slim(network)
    _cast(network, DTYPES[precision], classifiers)
    if compiled:
        # PyTorch's own place is a temporary folder. It reads the variable when it compiles.
        os.environ.setdefault(_CACHE, str(cache_folder() / "compiled"))
    packed = where.type == "cpu" and not compiled and packing_works(DTYPES[precision])
    if packed:
        pack(network)
    else:
        if where.type == "cpu":
            _widen(network, DTYPES[precision])
        network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    engine = Engine(network, precision, where, packed=packed, compiled=compiled)
    if before is not None and probe is not None:
        engine.agreement = _agreement(before, _logits(engine, probe.to(where)).cpu())
    return engine


def engine_lines(model: nn.Module) -> list[str]:
    """What is to be told of an engine; nothing of another module."""
    if not isinstance(model, Engine):
        return []
    kernels = "packed for oneDNN" if model.packed else "compiled" if model.compiled else "torch's own kernels"
    exact = ", TF32 off" if model.precision == "fp32" and model.device.type == "cuda" else ""
    lines = [f"network: {model.precision}{exact}, {kernels}"]
    if model.agreement is not None:
        lines.append(
            f"on a part of the first image: logits differ from the plain network's in fp32 by at most "
            f"{100 * model.agreement.difference:.2g} % of their range; {100 * model.agreement.labels:.2f} % of the cells "
            "keep their class"
        )
    return lines


def _is_of_compiler(error: Exception) -> bool:
    """Whether torch.compile failed, not what it compiled. Its classes have no public base."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def check_precision(precision: Precision, device: torch.device) -> None:
    """
    Raises:
        SystemFault: the device does not compute in this precision.
    """
    fp16_works = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)  # not there without oneDNN
    if precision == "fp16" and device.type == "cpu" and not (fp16_works and fp16_works()):
        raise SystemFault("--precision fp16: this processor has no instructions for it", "use bf16, or a GPU")
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise SystemFault(f"--precision bf16: {device} has no instructions for it", "use fp16")


# --------------------------------------------------------------------------------------------- stage 3: precision
class _Float32(nn.Module):
    """A part that computes in float32 whatever surrounds it.

    EM iterations normalise what they iterate on and lose the bases' direction in 8 bits; a memory's rows are averages over a
    training run; and classes whose logits agree in 8 bits would be chosen by their number.

    Args:
        result: the type of what it gives to the parts around it.
    """

    def __init__(self, part: nn.Module, result: torch.dtype) -> None:
        super().__init__()
        self.part = part
        self.result = result

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = self.part(x.float())
        return (y[0].to(self.result), *y[1:]) if isinstance(y, tuple) else y.to(self.result)

    def report(self, classes: Sequence[str]) -> Report:
        """Of the class memory, for which a MemoryNet asks."""
        return self.part.report(classes)  # type: ignore[operator, no-any-return]


def stays_float32(module: nn.Module) -> bool:
    """Whether a part computes in float32 whatever surrounds it, for the reasons that `_Float32` gives."""
    return isinstance(module, EMAttention | ClassMemory)


def _cast(network: Network, dtype: torch.dtype, classifiers: Sequence[str]) -> None:
    """Weights and buffers to `dtype`, but those of the parts that stay in float32, the modules `classifiers` among them."""
    if dtype == torch.float32:
        return
    for name, module in list(network.named_modules()):
        keep = stays_float32(module)
        if keep or (name in classifiers and isinstance(module, nn.Conv2d)):
            parent = network.get_submodule(name.rpartition(".")[0])
            parent.add_module(name.rpartition(".")[2], _Float32(module, dtype if keep else torch.float32))
    _cast_below(network, dtype)


def _cast_below(module: nn.Module, dtype: torch.dtype) -> None:
    if isinstance(module, _Float32):
        return
    for child in module.children():
        _cast_below(child, dtype)
    module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False)  # type: ignore[no-untyped-call]


def _widen(network: Network, dtype: torch.dtype) -> None:
    """Convolutions in 16 bits that go in steps no longer see an image narrower than they can take."""
    if dtype == torch.float32:
        return
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and module.weight.dtype == dtype and module.stride[1] > 1:
            parent = network.get_submodule(name.rpartition(".")[0])
            parent.add_module(name.rpartition(".")[2], WideConv(module))


# ------------------------------------------------------------------------------------------------- the comparison
@torch.inference_mode()
def _logits(model: nn.Module, image: Tensor) -> Tensor:
    logits: Tensor = model(image)
    return logits.float()


def _agreement(reference: Tensor, own: Tensor) -> Agreement:
    """Of two (1, K, h, w)."""
    span = float(reference.max() - reference.min()) or 1.0
    same = (reference.argmax(1) == own.argmax(1)).float().mean()
    return Agreement(float((reference - own).abs().max()) / span, float(same))
