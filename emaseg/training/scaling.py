"""What several processes will gain, before anybody has several: the forecast of `train --dry-run --nproc N`.

Room: training.

What ranks send each other in a step follows from the network alone (`messages`):
    gradient    once all trained parameters, summed in pieces of 25 MiB while the backward pass goes on; with
                train.accumulate that of the last part
    norms       of each batch norm with C channels, with model.norm = "sync": 2 C + 1 values gathered in the forward pass,
                2 C summed in the backward pass; nothing can be computed meanwhile
    bases       EMANet: C x M values summed
    memory      MemoryNet: K x (C + 1) values summed, or K x C with memory_ranks = "plain_mean"; and K for the ages
    losses      of each head one count of pixels ("by_count", "valid_pixels"), all losses once, four integers to agree;
                with train.accumulate the counts of all parts once
With train.accumulate norms, bases, memory and counts of the heads are sent for each part.

Formula. R ranks, a connection of B bytes/s in which a message takes L seconds from one rank to the next. n bytes take
    summed      2 (R - 1) / R n / B + 2 ceil(log2 R) L       (ring for the bytes, tree for the time)
    gathered    (R - 1) n / B + ceil(log2 R) L               (n bytes of each rank)
The measured step of t seconds becomes t + the time of all messages that are waited for + what of the gradient's time is
not hidden behind the backward pass, which is 2/3 of a step, or of its last part; its last piece never is. Efficiency is t
divided by that: R ranks do R times the work in 1 / efficiency of the time. Every rank keeps the crops that it was
measured with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch.nn.modules.batchnorm import _BatchNorm

from emaseg.models import Network
from emaseg.models.em_attention import EMAttention
from emaseg.models.memory import ClassMemory
from emaseg.models.memorynet import MemoryNet
from emaseg.recipe import Recipe

RANKS = (2, 8, 64)
_BACKWARD = 2 / 3  # of a step
_PIECE = 25 << 20  # bytes: DistributedDataParallel's bucket_cap_mb
_CONTROL = 4 * 8  # four integers


@dataclass(frozen=True, slots=True)
class Message:
    """Something that ranks wait for in every step. size: bytes of one rank."""

    part: Literal["norms", "bases", "memory", "losses"]
    size: int
    gathered: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a rank sends in a step. gradient: bytes. parts: of the batch; the gradient is sent with the last."""

    messages: tuple[Message, ...]
    gradient: int
    parts: int = 1

    @property
    def waited(self) -> int:
        """Bytes of all messages that are waited for."""
        return sum(message.size for message in self.messages)


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between ranks: bytes a second in one direction, and seconds that any message takes."""

    name: str
    bandwidth: float
    latency: float


LINKS = (
    Link("NVLink", 200e9, 8e-6),  # between GPUs of one machine; the latency is that of starting NCCL's kernel
    Link("100 Gb/s", 11e9, 15e-6),  # InfiniBand or RoCE
    Link("10 Gb/s", 1.1e9, 50e-6),  # Ethernet
)


def traffic(model: Network, recipe: Recipe) -> Traffic:
    """What each rank sends in a training step of this network."""
    gradient = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Traffic(tuple(_messages(model, recipe)), gradient, recipe.train.accumulate)


def _messages(model: Network, recipe: Recipe) -> Iterator[Message]:
    passes = recipe.train.accumulate
    for module in model.modules():
        for _ in range(passes):
            if isinstance(module, _BatchNorm) and module.training and recipe.model.norm == "sync":
                size = next(module.parameters()).element_size()
                forwards = 2 if recipe.train.recompute else 1
                for _ in range(forwards):
                    yield Message("norms", (2 * module.num_features + 1) * size, gathered=True)
                yield Message("norms", 2 * module.num_features * size)
            elif isinstance(module, EMAttention):
                yield Message("bases", module.bases.numel() * module.bases.element_size())
            elif isinstance(module, ClassMemory):
                classes, _, channels = module.features.shape
                width = channels + 1 if module.ranks == "by_count" else channels
                yield Message("memory", classes * width * module.features.element_size())
                yield Message("memory", classes * 4)
    if isinstance(model, MemoryNet) and model.config.memory_loss_weight and model.config.memory_ranks == "plain_mean":
        channels = model.final.conv.norm.num_features  # the rows pass the final head, too
        for _ in range(passes):
            yield Message("norms", (2 * channels + 1) * 4, gathered=True)
            yield Message("norms", 2 * channels * 4)
    counted = recipe.loss.ranks == "by_count" and recipe.loss.reduction == "valid_pixels"
    for _ in range(passes * len(model.pixel_losses) if counted else 0):
        yield Message("losses", 8)
    if counted and passes > 1:
        yield Message("losses", 8 * passes)
    yield Message("losses", (8 if counted else 4) * (len(model.loss_names) + 1))  # divided by a count in 64 bits
    yield Message("losses", _CONTROL)


def efficiency(seconds: float, sent: Traffic, ranks: int, link: Link) -> float:
    """Share of a rank's time that is not spent on waiting for others, 0 to 1. seconds: of the measured step."""
    waited = sum(_time(message.size, ranks, link, gathered=message.gathered) for message in sent.messages)
    pieces = max(1, -(-sent.gradient // _PIECE))
    total = sum(_time(sent.gradient / pieces, ranks, link) for _ in range(pieces))
    exposed = max(_time(sent.gradient / pieces, ranks, link), total - _BACKWARD * seconds / sent.parts)
    return seconds / (seconds + waited + exposed)


def _time(size: float, ranks: int, link: Link, *, gathered: bool = False) -> float:
    hops = math.ceil(math.log2(ranks))
    if gathered:
        return (ranks - 1) * size / link.bandwidth + hops * link.latency
    return 2 * (ranks - 1) / ranks * size / link.bandwidth + 2 * hops * link.latency


def scaling_lines(seconds: float, sent: Traffic) -> Iterator[tuple[str, str]]:
    """The forecast as label and value pairs. seconds: of the measured step, with one rank's crops."""
    counts = [f"{sum(m.part == part for m in sent.messages)} {part}" for part in ("norms", "bases", "memory", "losses")]
    shown = ", ".join(text for text in counts if not text.startswith("0 "))
    yield (
        "ranks send",
        f"{sent.gradient / 2**20:.1f} MiB of gradient, {sent.waited / 2**10:.0f} KiB in {len(sent.messages)} messages",
    )
    yield "messages", shown
    for link in LINKS:
        shares = ", ".join(f"{efficiency(seconds, sent, ranks, link):.0%} on {ranks}" for ranks in RANKS)
        yield f"over {link.name}", f"{shares} ranks"
