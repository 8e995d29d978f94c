"""The [backbone] section: one frozen dataclass for each kind of feature extractor.

Room: recipe. Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from emaseg.recipe.rule import key

MOST_CHANNELS = 64  # of an image

_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_CHANNELS_DOC = (
    "channels of an image: 3 is RGB, 1 is grey, 4 and more are TIFF or .npy images (data.kind folder or packed); start "
    "weights of another count are adapted: each new filter is the mean of the file's over its channels, and where the "
    "first three are RGB they keep their own; all are scaled by 3 / in_channels"
)
_MEAN_DOC = "mean of each channel on 0..255 that the weights expect, RGB first"
_STD_DOC = "standard deviation of each channel on 0..255 that the weights expect"
_WEIGHTS_DOC = 'start weights: a file, a URL or released name looked up in the cache, or "none" (random)'


@dataclass(frozen=True, slots=True)
class PixelStats:
    """Mean and standard deviation of each of the C channels, on 0..255, by which a network's images are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class _HasMeanAndStd(Protocol):
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class _Normalised:
    """What every kind of backbone has beside its keys."""

    __slots__ = ()

    @property
    def pixel_stats(self: _HasMeanAndStd) -> PixelStats:
        """The section's keys `mean` and `std` as one value."""
        return PixelStats(self.mean, self.std)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetBackbone(_Normalised):
    """Dilated ResNet with bottleneck blocks."""

    kind: Literal["resnet50", "resnet101", "resnet152", "resnet14"] = key("depth; resnet14 is for the demo")
    output_stride: Literal[8, 16, 32] = key("input pixels per cell of the last stage")
    stem_channels: tuple[int, ...] = key(
        "widths of the three 3x3 stem convolutions: [32, 32, 64] (v1c), [64, 64, 128] (EMANet authors); "
        "[] is ResNet's single 7x7",
        (32, 32, 64),
        low=1,
        lengths=(0, 3),
        ceiling=1024,
    )
    width: int = key(
        "channels of the first stage's 3x3 convolutions; 64 is the published network", 64, low=4, ceiling=512
    )
    multi_grid: tuple[int, ...] = key(
        "factors on the dilation of the last stage's blocks, the first excepted: [1, 2, 4] (EMANet authors); [] = none",
        (),
        low=1,
        lengths=(0, 3),
        ceiling=64,
    )
    weights: str = key(_WEIGHTS_DOC)
    in_channels: int = key(_CHANNELS_DOC, 3, low=1, high=MOST_CHANNELS, extra=True)
    mean: tuple[float, ...] = key(_MEAN_DOC, _MEAN, floor=-1000, ceiling=1000, most=MOST_CHANNELS)
    std: tuple[float, ...] = key(_STD_DOC, _STD, above=0, floor=0.001, ceiling=1000, most=MOST_CHANNELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNeStBackbone(_Normalised):
    """ResNeSt-101: split attention, deep stem 64-64-128."""

    kind: Literal["resnest101"] = key("depth")
    output_stride: Literal[8, 16, 32] = key("input pixels per cell of the last stage")
    stem_channels: tuple[int, ...] = key(
        "widths of the three stem convolutions", (64, 64, 128), low=1, lengths=(3,), ceiling=1024
    )
    weights: str = key(_WEIGHTS_DOC)
    in_channels: int = key(_CHANNELS_DOC, 3, low=1, high=MOST_CHANNELS, extra=True)
    mean: tuple[float, ...] = key(_MEAN_DOC, _MEAN, floor=-1000, ceiling=1000, most=MOST_CHANNELS)
    std: tuple[float, ...] = key(_STD_DOC, _STD, above=0, floor=0.001, ceiling=1000, most=MOST_CHANNELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class HRNetBackbone(_Normalised):
    """HRNetV2p-W48: four resolutions, concatenated at stride 4."""

    kind: Literal["hrnetv2_w48"] = key("width")
    output_stride: Literal[4] = key("input pixels per cell of the output", 4)
    stem_relu: bool = key("ReLU after the stem's first norm; false in every released MemoryNet checkpoint", True)
    weights: str = key(_WEIGHTS_DOC)
    in_channels: int = key(_CHANNELS_DOC, 3, low=1, high=MOST_CHANNELS, extra=True)
    mean: tuple[float, ...] = key(_MEAN_DOC, _MEAN, floor=-1000, ceiling=1000, most=MOST_CHANNELS)
    std: tuple[float, ...] = key(_STD_DOC, _STD, above=0, floor=0.001, ceiling=1000, most=MOST_CHANNELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTBackbone(_Normalised):
    """ViT-Large/16, taps after four layers."""

    kind: Literal["vit_large_p16_384"] = key("size")
    output_stride: Literal[16] = key("patch side", 16)
    image_size: tuple[int, int] = key(
        "input size whose whole patches the position embedding holds", (512, 512), low=16, ceiling=4096
    )
    taps: tuple[int, ...] = key(
        "layers (from 0) whose outputs the heads read", (9, 14, 19, 23), low=0, high=23, most=24
    )
    weights: str = key(_WEIGHTS_DOC)
    in_channels: int = key(_CHANNELS_DOC, 3, low=1, high=MOST_CHANNELS, extra=True)
    mean: tuple[float, ...] = key(_MEAN_DOC, _MEAN, floor=-1000, ceiling=1000, most=MOST_CHANNELS)
    std: tuple[float, ...] = key(_STD_DOC, _STD, above=0, floor=0.001, ceiling=1000, most=MOST_CHANNELS)


Backbone = ResNetBackbone | ResNeStBackbone | HRNetBackbone | ViTBackbone
