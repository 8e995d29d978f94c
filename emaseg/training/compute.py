"""How a step computes: number formats, memory layout, compiled or not. What it computes is the recipe's business elsewhere.

Room: training.

Half precision is autocast: parameters, their gradients and the optimiser stay float32, convolutions and matrix products
run in 16 bits. EM iterations, class memory, softmax and loss are float32 in any case; the networks see to that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from emaseg.device import full_float32, has_bf16, slow_precision
from emaseg.errors import SystemFault
from emaseg.events import Note
from emaseg.models import Network
from emaseg.recipe import Recipe
from emaseg.recipe.training import Train

MOST_SKIPPED = 20  # steps in a row; the scale is then a millionth of what it was, so the scale is not the cause
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats its results only with a workspace of fixed size


def place(model: Network, train: Train, device: torch.device) -> None:
    """Bring a network to its device, in the layout that the recipe wants, ready for its first training step.

    Raises:
        SystemFault: the device cannot compute in that precision.
    """
    check_precision(train, device)
    model.to(device).train()
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    if train.recompute:
        model.recompute_activations()
    if train.compile:
        for part in model.parts():
            part.compile()


def check_precision(train: Train, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU that has to emulate it.

    Raises:
        SystemFault: names what the device has.
    """
    if train.precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        name = torch.cuda.get_device_name(device)
        raise SystemFault(f"{device} ({name}) cannot compute in bfloat16", "--set train.precision=fp16")


def to_layout(images: torch.Tensor, train: Train) -> torch.Tensor:
    """Images (B, 3, H, W) in the layout of the network."""
    return images.contiguous(memory_format=torch.channels_last) if train.channels_last else images


def autocast(train: Train, device: torch.device) -> torch.autocast:
    """The block in which a step's forward pass runs; without effect in fp32."""
    dtype = _DTYPES[train.precision]
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def evaluating(train: Train, device: torch.device) -> Iterator[None]:
    """The block of an evaluation between steps. It computes in whole float32, whatever the recipe's precisions and
    train.tf32 are. Images have many sizes, and for each a compiled network would be compiled again, and cuDNN would try
    all its kernels for every convolution."""
    cudnn = torch.backends.cudnn
    benchmark = cudnn.benchmark
    cudnn.benchmark = False
    try:
        eager = torch.compiler.set_stance("force_eager") if train.compile else contextlib.nullcontext()
        with eager, full_float32(device):
            yield
    finally:
        cudnn.benchmark = benchmark


@contextlib.contextmanager
def switches(train: Train, device: torch.device) -> Iterator[None]:
    """Within the block, PyTorch's process-wide settings are the recipe's; then they are what they were.

    TF32 is off unless asked for, also in convolutions, where PyTorch has it on.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    precisions = matmul.allow_tf32, cudnn.allow_tf32
    workspace = os.environ.get(_CUBLAS)
    try:
        if device.type == "cuda":
            matmul.allow_tf32 = cudnn.allow_tf32 = train.tf32
            cudnn.benchmark = not train.deterministic  # all crops have one size
        if train.deterministic:
            os.environ.setdefault(_CUBLAS, ":4096:8")
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic = True
        yield
    except RuntimeError as error:
        if not (train.deterministic and "deterministic" in str(error)):
            raise
        hint = "--set train.deterministic=false"
        if _CUBLAS in str(error):  # cuBLAS was used before, and read it then
            hint = f"set the variable {_CUBLAS}=:4096:8 before the program starts; or {hint}"
        raise SystemFault(f"{device}: {str(error).splitlines()[0]}", hint) from error
    finally:
        if device.type == "cuda":
            matmul.allow_tf32, cudnn.allow_tf32 = precisions
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(_CUBLAS, None)


@dataclass(slots=True)
class LossScale:
    """The factor that keeps small float16 gradients from vanishing, and the steps whose gradient it made overflow.

    Such a step is left out and the factor halved; after many good steps it is doubled.
    """

    scaler: torch.amp.GradScaler
    skipped: int = 0  # steps of the run
    in_a_row: int = 0

    @classmethod
    def of(cls, train: Train, device: torch.device) -> LossScale | None:
        """That of a new run; None where the recipe's precision needs none."""
        return cls(torch.amp.GradScaler(device.type)) if train.precision == "fp16" else None

    def update(self, finite: bool) -> None:
        """After the gradient of a step was unscaled and looked at."""
        self.scaler.update()
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite

    def told(self, step: int) -> Note:
        """What is said of a step that was left out."""
        scale = self.scaler.get_scale()
        return Note(
            f"step {step}: float16 overflowed, so it was skipped ({self.skipped} so far); loss scale {scale:g} now"
        )

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of it."""
        return {**self.scaler.state_dict(), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint's `state`; {}, of a run in another precision, changes nothing."""
        if state:
            own = self.scaler.state_dict()
            self.scaler.load_state_dict({key: type(own[key])(state[key]) for key in own})
            self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


def notes_on(recipe: Recipe, device: torch.device) -> list[Note]:
    """Lines on what differs from plain float32 steps on the whole batch."""
    train, loss, notes = recipe.train, recipe.loss, []
    if train.precision != "fp32":
        notes.append(Note(f"precision {train.precision}: parameters, softmax and loss stay float32"))
    notes += [Note(text, warning=True) for text in slow_precision(train.precision, device)]
    if train.precision == "fp16" and device.type == "cpu":
        notes.append(Note("float16 is slow on most CPUs; bf16 is what they are built for", warning=True))
    if device.type == "cuda" and train.precision == "fp32":
        text = "on (train.tf32): 10 bits of a float32's 23" if train.tf32 else "off; faster: --set train.tf32=true"
        notes.append(Note(f"TF32, float32 products with fewer bits: {text}"))
    if train.accumulate > 1:
        apart = [
            "batch norm statistics, EM bases, class memory",
            *(["Dice loss"] if loss.dice_weight else []),
            *(["hard pixels"] if loss.ohem_threshold < 1 else []),
        ]
        size = train.batch // train.accumulate
        text = f"batch in {train.accumulate} parts of {size}: losses and gradients add up to those of the whole; not equal to it: "
        notes.append(Note(text + ", ".join(apart)))
    return notes
