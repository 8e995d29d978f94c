"""What a network attends to, made visible: the bases of EMANet (the paper's figure 5), the class memory of MemoryNet.

Room: inference. Legend: H W image, h w feature grid, N = h*w pixels, M bases, T iterations, K classes.

The network sees the whole image once, prepared as its recipe says, whatever windows, scales or mirroring its protocol
adds: maps of several views would have no common meaning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from emaseg.data.dataset import Pixels
from emaseg.data.label_sets import LabelSet
from emaseg.data.pipeline.transforms import eval_image
from emaseg.engine import Engine
from emaseg.errors import RecipeError
from emaseg.inference.attention_sheet import sheet
from emaseg.models.em_attention import EMAttention, e_step, m_step
from emaseg.models.memory import ClassMemory
from emaseg.recipe import Inference, PixelStats

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_CHANGED, _SAME = np.array((209, 73, 91), np.uint8), np.array((222, 226, 230), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMaps:
    """How much each of M parts is responsible for each cell of the feature grid; over the parts they sum to 1.

    values: (T, M, h, w) float32; T iterations for bases, 1 for the memory. names: M, for people. kind: "bases", or
    "memory", whose parts are the classes and whose values are the weights by which a pixel reads their rows.
    """

    values: Float32
    names: tuple[str, ...]
    kind: str

    @property
    def shares(self) -> Float32:
        """(M,) each part's share of all responsibility, at the last iteration."""
        mean: Float32 = self.values[-1].mean(axis=(1, 2))
        return mean

    def most_used(self, count: int) -> list[int]:
        """The parts with the largest shares."""
        return [int(index) for index in np.argsort(-self.shares, kind="stable")[:count]]

    def chosen(self, choice: int | Sequence[int]) -> list[int]:
        """The `choice` most used parts, or those that are listed.

        Raises:
            RecipeError: there is no such part.
        """
        if isinstance(choice, int):
            if choice < 1:
                raise RecipeError(f"{self.kind}: {choice} of them cannot be shown", "show at least 1")
            return self.most_used(choice)
        for index in choice:
            if not 0 <= index < len(self.names):
                last = len(self.names) - 1
                raise RecipeError(f"{self.kind}: there is no number {index}", f"they are counted from 0 to {last}")
        return list(choice)


@torch.inference_mode()
def attention_maps(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    classes: Sequence[str],
    iterations: int | None = None,
) -> AttentionMaps:
    """The maps of one image.

    Args:
        model: an EMANet or a MemoryNet in eval mode, on `device`.
        image: (H, W, C) on 0..255.
        classes: K names.
        iterations: T; None = as many as the network runs here. EMANet only.

    Raises:
        RecipeError: the network is of another kind, such as an exported file, whose inside cannot be seen; or less than
            one iteration.
    """
    if iterations is not None and iterations < 1:
        raise RecipeError(f"iterations: {iterations} of them show nothing", "give at least 1")
    part = next((part for part in model.modules() if isinstance(part, EMAttention | ClassMemory)), None)
    if part is None:
        raise RecipeError(
            "--bases: the inside of an exported file cannot be seen", "name the run or the checkpoint it was made from"
        )
    prepared = eval_image(image, inference, stats).to(device)
    with _opened(model) as run, _seen(part) as seen:
        run(prepared)
    (given,) = seen
    if isinstance(part, EMAttention):
        values = _responsibilities(part, given, iterations or part.iterations_eval)
        return AttentionMaps(values.cpu().numpy(), tuple(f"base {m}" for m in range(values.shape[1])), "bases")
    weights = torch.softmax(given.float(), dim=1)  # a hard memory reads the row of the largest alone
    return AttentionMaps(weights.cpu().numpy(), tuple(classes), "memory")


def attention_picture(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    labels: LabelSet,
    choice: int | Sequence[int],
    iterations: int | None = None,
) -> Image.Image:
    """The maps of the `choice` most used parts, or of those listed, as one picture.

    For a class memory it also shows the labels with it, with nothing in its place, and where they differ.

    Raises:
        RecipeError: as `attention_maps`, or there is no such part.
    """
    maps = attention_maps(model, image, inference, stats, device, labels.classes, iterations)
    rows = [(m, maps.names[m], f"{100 * maps.shares[m]:.1f} % of all") for m in maps.chosen(choice)]
    if maps.kind == "bases":
        return sheet(image, maps.values, rows, [f"iteration {t + 1}" for t in range(len(maps.values))])
    own, without = _without_memory(model, image, inference, stats, device)
    changed = own != without
    extra = [
        ("with memory", labels.palette[own]),
        ("without", labels.palette[without]),
        (f"{100 * changed.mean():.1f} % changed", np.where(changed[..., None], _CHANGED, _SAME)),
    ]
    return sheet(image, maps.values, rows, ["weight in the memory"], extra)


def _responsibilities(attention: EMAttention, features: Tensor, iterations: int) -> Tensor:
    """(T, M, h, w): the E step of each iteration (equation 11), by the steps that the network itself takes."""
    height, width = features.shape[-2:]
    bases = attention.bases
    pixels = features.to(bases.dtype).flatten(2)  # (1, C, N)
    found = []
    for _ in range(iterations):
        responsibilities = e_step(pixels, bases)  # (1, N, M)
        found.append(responsibilities[0].t().reshape(-1, height, width).float())
        bases = m_step(pixels, responsibilities, add_epsilon=attention.add_epsilon)
    return torch.stack(found)


@contextlib.contextmanager
def _opened(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The network's pass, whose parts may be given hooks: other threads wait, and nothing compiled passes by the hooks."""
    if isinstance(model, Engine):
        with model.lock:
            yield model.eager
    else:
        yield model


@contextlib.contextmanager
def _seen(part: nn.Module) -> Iterator[list[Tensor]]:
    """What a part of the network is given while the block runs."""
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0])

    handle = part.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _without_memory(
    model: nn.Module, image: Pixels, inference: Inference, stats: PixelStats, device: torch.device | str
) -> tuple[UInt8, UInt8]:
    """The labels (h, w) on the feature grid with the class memory, and with nothing in its place."""
    (memory,) = (part for part in model.modules() if isinstance(part, ClassMemory))
    prepared = eval_image(image, inference, stats).to(device)
    with torch.inference_mode(), _opened(model) as run:
        own = run(prepared)[0].argmax(0)
        handle = memory.register_forward_hook(lambda _module, _given, read: torch.zeros_like(read))
        try:
            without = run(prepared)[0].argmax(0)
        finally:
            handle.remove()
    return own.to(torch.uint8).cpu().numpy(), without.to(torch.uint8).cpu().numpy()
