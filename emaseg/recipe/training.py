"""The [augment], [loss], [optim] and [train] sections.

Room: recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.rule import COUNT, FACTOR, RATE, SCALE, SEED, SIDE, key


# -------------------------------------------------------------------------------------------------- augment
@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Training pipeline: resize, crop, flip, rotate, colour, normalise, pad."""

    resize_long_short: tuple[int, ...] = key(
        "limits (long side, short side) before the random scale; [] keeps the image's own size",
        (),
        low=1,
        lengths=(0, 2),
        ceiling=SIDE,
    )
    keep_ratio: bool = key("keep the aspect ratio inside the limits", True)
    scale: tuple[float, float] = key(
        "random scale is uniform in [low, high)", (1.0, 1.0), above=0, floor=0.01, ceiling=SCALE
    )
    scale_choices: tuple[float, ...] = key(
        "choose the scale from this list instead (EMANet authors)", (), above=0, floor=0.01, ceiling=SCALE, most=100
    )
    interpolation: Literal["pixel", "align_corners"] = key(
        '"pixel": 8-bit bilinear on pixel centres (OpenCV\'s); "align_corners": on the normalised tensor (authors)',
        "pixel",
    )
    crop: tuple[int, int] = key("crop (height, width); smaller images are padded to it", low=1, ceiling=SIDE)
    crop_draws: int = key(
        "most crops that are drawn for an image; the last one is used in any case", 10, low=1, ceiling=1000
    )
    max_class_share: float = key(
        "redraw while one class covers this share of the labelled pixels; 1 = never", 0.75, above=0, high=1
    )
    flip: float = key("probability of a left-right flip", 0.5, low=0, high=1)
    flip_pairs: tuple[tuple[int, int], ...] = key(
        "pairs of classes that swap when flipped (LIP's left and right limbs)", (), low=0, ceiling=255, most=128
    )
    rotation: float = key("probability of a rotation (LIP)", 0.0, low=0, high=1)
    rotation_degrees: int = key("largest rotation angle", 30, low=1, high=180)
    photometric: Literal["none", "bgr_as_rgb", "bgr"] = key(
        'colour jitter: "bgr_as_rgb" hands BGR to the hue step (sssegmentation: opposite hue sign), "bgr" does not '
        "(mmsegmentation)",
        "bgr",
    )
    pad: Literal["centre", "bottom_right"] = key(
        "where padding goes: on all sides (sssegmentation), or below and right", "centre"
    )
    pad_before_crop: bool = key("pad to the size of the crop before cropping (EMANet authors)", False)
    vertical_flip: float = key(
        "probability of a top-bottom flip (seen from above, through a microscope)",
        0.0,
        low=0,
        high=1,
        extra=True,
    )
    quarter_turns: float = key(
        "probability of a turn by 90, 180 or 270 degrees; needs a square crop", 0.0, low=0, high=1, extra=True
    )
    blur: float = key("probability of a Gaussian blur", 0.0, low=0, high=1, extra=True)
    blur_sigma: tuple[float, float] = key(
        "its standard deviation in pixels, uniform in [low, high)", (0.1, 2.0), above=0, high=20, extra=True
    )
    noise: float = key("probability of Gaussian noise", 0.0, low=0, high=1, extra=True)
    noise_levels: tuple[float, float] = key(
        "its standard deviation in levels of 0..255, uniform in [low, high)", (1.0, 10.0), low=0, high=128, extra=True
    )
    jpeg: float = key("probability of JPEG's artefacts", 0.0, low=0, high=1, extra=True)
    jpeg_quality: tuple[int, int] = key("its quality, uniform in [low, high]", (30, 90), low=1, high=100, extra=True)


# ----------------------------------------------------------------------------------------------------- loss
@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross entropy at input resolution, on every head; the keys from class_weights on are for thin and rare classes."""

    reduction: Literal["valid_pixels", "all_pixels"] = key(
        "divide by the labelled pixels (sssegmentation), or by all pixels (mmsegmentation, EMANet authors)",
        "valid_pixels",
    )
    ranks: Literal["by_count", "plain_mean"] = key(
        "mean over the processes: weighted by the labelled pixels that each saw, or plain, in which the pixels of a "
        "process with few of them weigh more (published; the same with all_pixels)",
        "by_count",
    )
    auxiliary_weight: float = key("weight of the auxiliary heads; the main head has 1", 0.4, low=0, ceiling=FACTOR)
    class_weights: tuple[float, ...] = key(
        "factor of each class on the loss of its pixels; [] = 1 for all", (), low=0, ceiling=FACTOR, extra=True
    )
    class_balance: Literal["none", "median_frequency", "inverse_log"] = key(
        "class weights from the training labels: median / own frequency where the class occurs (Eigen, Fergus 2015), "
        "or 1 / log(1.02 + share of the pixels) (ENet, Paszke et al. 2016)",
        "none",
        extra=True,
    )
    label_smoothing: float = key(
        "share of the target that is spread over all classes (Szegedy et al. 2016)", 0.0, low=0, high=0.9, extra=True
    )
    focal_gamma: float = key(
        "focal loss: factor (1 - p)^gamma on each pixel, 2 in the paper (Lin et al. 2017); 0 = off",
        0.0,
        low=0,
        high=10,
        extra=True,
    )
    dice_weight: float = key(
        "weight of a Dice loss added to it (V-Net, Milletari et al. 2016), over the batch; 0 = off",
        0.0,
        low=0,
        ceiling=FACTOR,
        extra=True,
    )
    ohem_threshold: float = key(
        "train pixels whose class has a probability below this, 0.7 in mmsegmentation (OHEM; the EMANet authors' 81.14 on "
        "Cityscapes); 1 = all pixels",
        1.0,
        above=0,
        high=1,
        extra=True,
    )
    ohem_min_kept: int = key(
        "pixels of an image that OHEM keeps in any case, on average over the batch",
        100_000,
        low=1,
        ceiling=COUNT,
        extra=True,
    )


# ---------------------------------------------------------------------------------------------------- optim
@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Parameters with their own factors on learning rate and weight decay; the last match wins."""

    match: Literal["backbone", "norm_weight", "bias"] = key("which parameters; bias is without a ViT's in_proj_bias")
    lr_scale: float = key("factor on the learning rate", 1.0, low=0, ceiling=FACTOR)
    weight_decay_scale: float = key("factor on the weight decay", 1.0, low=0, ceiling=FACTOR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """Optimiser with a polynomial schedule: lr(i) = (lr - min_lr) * (1 - i / iterations)^power + min_lr."""

    kind: Literal["sgd", "adamw"] = key(
        'optimiser; "adamw" has a decoupled weight decay (Loshchilov, Hutter 2019)', "sgd"
    )
    lr: float = key("learning rate of iteration 0", above=0, ceiling=RATE)
    min_lr: float = key("learning rate that the schedule falls to", 0.0, low=0, ceiling=RATE)
    power: float = key("exponent of the schedule; 0 = constant", 0.9, low=0, ceiling=100)
    lr_every: int = key(
        "iterations between changes of the learning rate: 1, or 10 (EMANet authors)", 1, low=1, ceiling=COUNT
    )
    momentum: float = key("SGD momentum", 0.9, low=0, high=1)
    nesterov: bool = key("use Nesterov momentum", False)
    weight_decay: float = key(
        "L2 penalty, on every trained parameter unless a group says otherwise", 0.0, low=0, ceiling=FACTOR
    )
    groups: tuple[Group, ...] = key("parameters with their own factors", (), most=64)
    betas: tuple[float, float] = key(
        "AdamW: decay of the mean of the gradients and of their squares", (0.9, 0.999), low=0, high=0.999999, extra=True
    )
    eps: float = key("AdamW: added to the root of the mean square", 1e-8, above=0, high=1, extra=True)
    warmup: int = key(
        "iterations in which the rate first rises in a line to the schedule's (mmsegmentation); 0 = none",
        0,
        low=0,
        ceiling=COUNT,
        extra=True,
    )
    warmup_ratio: float = key("share of the schedule's rate that a warm-up begins with", 0.1, low=0, high=1, extra=True)
    clip_norm: float = key(
        "largest norm of the gradient of all parameters together; a larger one is scaled down to it; 0 = no limit",
        0.0,
        low=0,
        ceiling=FACTOR,
        extra=True,
    )
    average_decay: float = key(
        "decay, such as 0.999, of a moving average of the weights, which is evaluated and kept in their place "
        "(Tarvainen, Valpola 2017); 0 = off",
        0.0,
        low=0,
        high=0.999999,
        extra=True,
    )


# ---------------------------------------------------------------------------------------------------- train
@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Length, batch, start, machine, checkpoints and logs."""

    epochs: int = key("passes over the training images; 0 = use iterations", 0, low=0)
    iterations: int = key("optimiser steps; 0 = use epochs", 0, low=0)
    batch: int = key("images per optimiser step, over all processes", 16, low=1, ceiling=65536)
    ranks: int = key(
        "number of processes whose plain means (loss.ranks, model.memory_ranks) and epoch length are reproduced, however "
        "many train; 0 = the actual number, with the epoch length of one",
        0,
        low=0,
        ceiling=65536,
        extra=True,
    )
    accumulate: int = key(
        "parts that a batch is computed in, one after the other, to need less memory; norm statistics are each part's",
        1,
        low=1,
        ceiling=65536,
        extra=True,
    )
    recompute: bool = key(
        "compute activations again in the backward pass instead of keeping them: the same result in less memory",
        False,
        extra=True,
    )
    precision: Literal["fp32", "bf16", "fp16"] = key(
        "number format of convolutions and matrix products; parameters, softmax and loss stay fp32", "fp32", extra=True
    )
    channels_last: bool = key(
        "keep the channels of a pixel together in memory: faster on most devices", False, extra=True
    )
    tf32: bool = key(
        "NVIDIA: fp32 products with 10 instead of 23 bits, on tensor cores (PyTorch's TF32)", False, extra=True
    )
    compile: bool = key("compile the network with torch.compile; takes a minute or more, once", False, extra=True)
    deterministic: bool = key(
        "refuse kernels that do not repeat their results to the bit (CUDA); slower", False, extra=True
    )
    init_from: str = key(
        "start from this model: a recipe's name (its released weights, else its newest run), a run folder, a checkpoint "
        'or a weight file; "" = none',
        "",
    )
    workers: int = key(
        "data loading processes of each training process; -1 = as many as help on this machine", -1, low=-1, ceiling=256
    )
    threads: int = key("CPU threads of the network; 0 = one per core", 0, low=0, ceiling=1024)
    seed: int = key("seed of start weights, sample order, augmentation and dropout", 0, low=0, ceiling=SEED)
    evaluate_every: int = key(
        "epochs (or iterations, where those are given) between evaluations; 0 = only at the end",
        0,
        low=0,
        ceiling=COUNT,
    )
    save_seconds: float = key("seconds between checkpoints", 600.0, above=0, ceiling=1e9)
    save_every: int = key(
        "iterations between checkpoints, beside save_seconds; 0 = save_seconds alone",
        0,
        low=0,
        ceiling=COUNT,
        extra=True,
    )
    keep_every: int = key(
        "iterations between checkpoints that are kept, as step_XXXXXXXX.pt; 0 = none", 0, low=0, ceiling=COUNT
    )
    keep_last: int = key("how many of these stay, the newest ones; 0 = all", 0, low=0, ceiling=COUNT, extra=True)
    log_every: int = key("iterations between rows of metrics.csv", 50, low=1, ceiling=COUNT)
    tensorboard: bool = key("draw these rows in TensorBoard, too, in RUN/tensorboard", False, extra=True)
    patience: int = key(
        "evaluations in a row without a better mIoU after which the run ends; 0 = never before its last step",
        0,
        low=0,
        ceiling=COUNT,
        extra=True,
    )
    hours: float = key(
        "time that a run may take: after 20 steps its schedule is shortened to what fits; 0 = no limit",
        0.0,
        low=0,
        ceiling=FACTOR,
        extra=True,
    )
    freeze: Literal["none", "backbone", "backbone_norms"] = key(
        "what keeps its start values, norm statistics included: the backbone, or its norm layers alone (mmsegmentation's "
        "norm_eval, their weights frozen too)",
        "none",
        extra=True,
    )
