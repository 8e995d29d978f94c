"""The [model] section: the options of each network family.

Room: recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.rule import CHANNELS, COUNT, EM_ITERATIONS, FACTOR, RATE, key


@dataclass(frozen=True, kw_only=True, slots=True)
class EMANetModel:
    """Expectation-maximization attention network; the options span its three published implementations."""

    kind: Literal["emanet"] = key("network family")
    bases: int = key("number of bases (K of the paper)", 64, low=1, ceiling=4096)
    em_iterations: int = key("EM iterations in training (T of the paper)", 3, low=1, ceiling=EM_ITERATIONS)
    em_iterations_eval: int = key("EM iterations at evaluation and prediction", 3, low=1, ceiling=EM_ITERATIONS)
    attention_channels: int = key("width of the EM attention", 512, low=1, ceiling=CHANNELS)
    bottleneck_channels: int = key(
        "width after the attention: 512 (sssegmentation), 256 (mmsegmentation, authors)", 512, low=1, ceiling=CHANNELS
    )
    concat_input: bool = key(
        "join the attention with the backbone's last stage (neither in the paper nor in the authors' code)", True
    )
    decoder_channels: int = key(
        "width of the convolution after the join; unused without it", 512, low=1, ceiling=CHANNELS
    )
    auxiliary_channels: int = key(
        "width of the training-only head on stage 3; 0 = none (authors)", 512, low=0, ceiling=CHANNELS
    )
    dropout: float = key("channel dropout before the classifiers", 0.1, low=0, high=0.999)
    bases_momentum: float = key(
        "weight of the NEW bases in their moving average (paper: 1 - alpha)", 0.1, low=0, high=1
    )
    bases_average: Literal["normalised", "plain"] = key(
        "batch mean of the bases: L2-normalised before it moves the average (sssegmentation, "
        "mmsegmentation), or plain (authors)",
        "normalised",
    )
    attention_epsilon: Literal["clamp", "add"] = key(
        "guard against division by 0: max(x, 1e-12) (sssegmentation, mmsegmentation) or x + 1e-6 (authors)", "clamp"
    )
    align_corners: bool = key(
        "upsample the logits with aligned corners: true for mmsegmentation's 769 crops and the authors", False
    )
    norm: Literal["batch", "sync"] = key(
        'batch statistics of several processes: "sync" = of the whole batch (published), "batch" = each its own', "sync"
    )
    norm_momentum: float = key("weight of the new batch statistics: 0.1, or 3e-4 (authors)", 0.1, low=0, high=1)
    norm_epsilon: float = key("added to the variance", 1e-5, above=0, ceiling=1)
    init: Literal["torch", "mmseg", "authors"] = key(
        "random start of the head: torch's defaults (sssegmentation), mmsegmentation's Kaiming, the authors' normal",
        "torch",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNetModel:
    """MCIBI: DeepLabV3 context with a data-set level feature memory."""

    kind: Literal["memorynet"] = key("network family")
    channels: int = key("width of the context, memory and decoder features", 512, low=1, ceiling=CHANNELS)
    attention_channels: int = key("width of the attention's queries and keys", 256, low=1, ceiling=CHANNELS)
    aspp_dilations: tuple[int, ...] = key(
        "dilations of the context's four branches", (1, 12, 24, 36), low=1, ceiling=1024, most=24
    )
    downsample: bool = key("halve the backbone's resolution first (HRNet on Cityscapes and LIP)", False)
    activation: Literal["relu", "leaky_relu"] = key("head activation; leaky_relu in LIP's R-50 and R-101 rows", "relu")
    auxiliary_channels: int = key("width of the training-only heads; 0 = none (HRNet)", 512, low=0, ceiling=CHANNELS)
    coarse_weight: float = key(
        "weight of the loss of the coarse prediction, which reads the memory", 0.4, low=0, ceiling=FACTOR
    )
    dropout: float = key("channel dropout before the classifiers", 0.1, low=0, high=0.999)
    memory_hard: bool = key("read the memory by arg max instead of softmax", False)
    memory_strategy: Literal["cosine_similarity", "mean"] = key(
        "weights of a class's pixels in their mean", "cosine_similarity"
    )
    memory_momentum: float = key(
        "weight of the new features in their moving average, at memory_base_lr", 0.9, low=0, high=1
    )
    memory_base_lr: float = key(
        "learning rate at which memory_momentum holds; COCO-Stuff, Cityscapes: 0.9 lr", above=0, ceiling=RATE
    )
    memory_momentum_follows_lr: bool = key("scale the momentum with the learning rate", True)
    memory_loss_weight: float = key(
        "weight of the loss that classifies the memory's features; 0 = none", 0.0, low=0, ceiling=FACTOR
    )
    memory_loss_from_epoch: int = key("first epoch (from 1) with that loss", 2, low=1, ceiling=COUNT)
    memory_loss_statistics: Literal["apart", "shared"] = key(
        'running statistics of batch norm: "apart" = that loss leaves them alone, "shared" = it moves them too (published)',
        "apart",
    )
    memory_gradient: Literal["current", "updated"] = key(
        "memory in the gradient of the class probabilities: the one that was read, or the updated one (published)",
        "current",
    )
    memory_ranks: Literal["by_count", "plain_mean"] = key(
        "mean over the processes: weighted by the pixels that each saw, or plain, which dilutes rare classes (published)",
        "by_count",
    )
    align_corners: bool = key("upsample the logits with aligned corners", False)
    norm: Literal["batch", "sync"] = key(
        'batch statistics of several processes: "sync" = of the whole batch (published), "batch" = each its own', "sync"
    )
    norm_momentum: float = key("weight of the new batch statistics", 0.1, low=0, high=1)
    norm_epsilon: float = key("added to the variance", 1e-5, above=0, ceiling=1)
    init: Literal["torch"] = key("random start of the head", "torch")


Model = EMANetModel | MemoryNetModel
