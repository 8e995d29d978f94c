"""The recipe: one frozen dataclass for each TOML section, every key with its meaning, unit and limits.

Room: recipe.

A recipe is complete in one file. The keys below and in backbones.py are the only ones; renamed.py has those that once
had another name. reader.py checks names, types and limits, and its messages name file and line. Where published systems
differ, the difference is a named option here.
Sizes are (height, width) unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.backbones import Backbone
from emaseg.recipe.rule import CHANNELS, COUNT, EM_ITERATIONS, FACTOR, IMAGES, RATE, SCALE, SEED, SIDE, key

SCHEMA_VERSION = 1

IGNORE = 255  # the label, everywhere inside the program, of a pixel that is neither trained nor scored


# Keys that nothing reads: they tell people where a row comes from.
DOCUMENTATION = frozenset(
    f"published.{key}" for key in ("checkpoint_mirrors", "hardware", "images_per_second", "log", "memory_gb", "note")
)
# Keys that matter to several processes only; this version trains with one, where both values mean the same.
NOT_YET = frozenset({"model.norm"})


# ---------------------------------------------------------------------------------------------------- model
@dataclass(frozen=True, kw_only=True, slots=True)
class EMANetModel:
    """Expectation-maximization attention network; the options span its three published implementations."""

    kind: Literal["emanet"] = key("network family")
    bases: int = key("number of bases (K of the paper)", 64, low=1, ceiling=4096)
    em_iterations: int = key("EM iterations in training (T of the paper)", 3, low=1, ceiling=EM_ITERATIONS)
    em_iterations_eval: int = key("EM iterations at evaluation and prediction", 3, low=1, ceiling=EM_ITERATIONS)
    attention_channels: int = key("width of the EM attention", 512, low=1, ceiling=CHANNELS)
    bottleneck_channels: int = key(
        "width after the attention: 512 (sssegmentation), 256 (mmseg, authors)", 512, low=1, ceiling=CHANNELS
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
        "batch mean of the bases: L2-normalised before it moves the average (sssegmentation, mmseg), or plain (authors)",
        "normalised",
    )
    attention_epsilon: Literal["clamp", "add"] = key(
        "guard against division by 0: max(x, 1e-12) (sssegmentation, mmseg) or x + 1e-6 (authors)", "clamp"
    )
    align_corners: bool = key(
        "upsample the logits with aligned corners: true for mmseg's 769 crops and the authors", False
    )
    norm: Literal["batch", "sync"] = key(
        '"sync" shares batch statistics between processes on CUDA and is plain batch norm otherwise', "sync"
    )
    norm_momentum: float = key("weight of the new batch statistics: 0.1, or 3e-4 (authors)", 0.1, low=0, high=1)
    norm_epsilon: float = key("added to the variance", 1e-5, above=0, ceiling=1)
    init: Literal["torch", "mmseg", "authors"] = key(
        "random start of the head: torch's defaults (sssegmentation), mmseg's Kaiming, the authors' normal", "torch"
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
        '"sync" shares batch statistics between processes on CUDA and is plain batch norm otherwise', "sync"
    )
    norm_momentum: float = key("weight of the new batch statistics", 0.1, low=0, high=1)
    norm_epsilon: float = key("added to the variance", 1e-5, above=0, ceiling=1)
    init: Literal["torch"] = key("random start of the head", "torch")


Model = EMANetModel | MemoryNetModel


# ----------------------------------------------------------------------------------------------------- data
_ROOT_DOC = "folder of the data set; a relative one is looked for below $EMASEG_DATA (default ./data), then here"


@dataclass(frozen=True, kw_only=True, slots=True)
class VOCData:
    """PASCAL VOC 2012 (+ SBD): JPEGImages, SegmentationClass[Aug], ImageSets/Segmentation."""

    kind: Literal["voc"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_split: str = key("list file below ImageSets/Segmentation", "trainaug")
    eval_split: str = key("list file below ImageSets/Segmentation", "val")
    label_folders: tuple[str, ...] = key(
        "label folders, searched in this order for each image", ("SegmentationClass", "SegmentationClassAug"), most=16
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ADE20KData:
    """ADE20K scene parsing (ADEChallengeData2016), 150 classes."""

    kind: Literal["ade20k"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_split: str = key("train, val or trainval", "train")
    eval_split: str = key("val, train or test (images only)", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesData:
    """Cityscapes: leftImg8bit and gtFine, 19 classes."""

    kind: Literal["cityscapes"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_split: str = key("train, val or trainval", "train")
    eval_split: str = key("val, train or test (images only)", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoStuffData:
    """COCO-Stuff 10k (.mat) or 164k (PNG)."""

    kind: Literal["cocostuff10k", "cocostuff164k"] = key("layout")
    root: str = key(_ROOT_DOC)
    num_classes: Literal[182, 171] = key("182 keeps eleven never annotated ids (sssegmentation); 171 drops them", 171)
    train_split: str = key("train", "train")
    eval_split: str = key("test (10k) or val (164k)", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class LIPData:
    """Look Into Person: 20 classes, single persons."""

    kind: Literal["lip"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_split: str = key("train", "train")
    eval_split: str = key("val or test", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class PascalContextData:
    """PASCAL Context: 59 classes, or 60 with the background."""

    kind: Literal["pascal_context"] = key("layout")
    root: str = key(_ROOT_DOC)
    num_classes: Literal[60, 59] = key("60 counts the background", 60)
    numbering: Literal["detail", "owners"] = key(
        "class order of the label files: sorted raw ids, or VOC's first", "detail"
    )
    train_split: str = key("train", "train")
    eval_split: str = key("val", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoVOCData:
    """COCO instances drawn as VOC's 21 classes, for pre-training."""

    kind: Literal["coco_voc21"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_split: str = key("train", "train")
    eval_split: str = key("val", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderData:
    """Your own images: a folder of images and a folder of masks with the same names."""

    kind: Literal["folder"] = key("layout")
    root: str = key(_ROOT_DOC)
    classes: tuple[str, ...] = key("class names; a mask value is the position in this list, or see values", longest=200)
    train_images: str = key("training images below root")
    train_masks: str = key("their masks below root: PNG, 8-bit grey or palette, or RGB in the palette's colours")
    eval_images: str = key("evaluation images below root")
    eval_masks: str = key("their masks below root")
    train_list: str = key('text file below root with one image name a line; "" = the whole folder', "")
    eval_list: str = key('text file below root with one image name a line; "" = the whole folder', "")
    holdout: int = key(
        "every n-th image, by path, is for evaluation, the others for training; 0 = no", 0, low=0, ceiling=COUNT
    )
    mask_suffix: str = key("added to an image's stem to name its mask", "")
    image_prefix: str | None = key("taken off the front of an image's file name to name its mask", None)
    mask_prefix: str | None = key("put in front of it instead, such as mask_ for image_001.jpg and mask_001.png", None)
    values: tuple[int, ...] = key(
        "mask value of each class, such as [0, 255]; [] = its position", (), low=0, high=65535
    )
    ignore: tuple[int, ...] = key(
        "mask values that are neither trained nor scored", (255,), low=0, high=65535, most=256
    )
    palette: tuple[tuple[int, int, int], ...] = key(
        "a colour for each class; needed for RGB masks", (), low=0, high=255
    )
    ignore_colours: tuple[tuple[int, int, int], ...] = key(
        "RGB masks: colours to ignore", (), low=0, high=255, most=256
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesData:
    """Drawn shapes in random colours: a data set that needs no download; shape tells the class, colour does not."""

    kind: Literal["shapes"] = key("built-in generator")
    size: tuple[int, int] = key("image size", (96, 96), low=16, ceiling=SIDE)
    train_images: int = key("number of training images", 2000, low=1, ceiling=IMAGES)
    eval_images: int = key("number of held-out images", 200, low=1, ceiling=IMAGES)
    seed: int = key("seed of the drawings; training and evaluation never share an image", 0, low=0, ceiling=SEED)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedData:
    """Any data set packed by data_scripts/pack.py: one HDF5 file for each split, for cluster file systems."""

    kind: Literal["packed"] = key("layout")
    root: str = key(_ROOT_DOC)
    train_file: str = key("file of the training split, below root", "train.h5")
    eval_file: str = key("file of the evaluation split, below root", "eval.h5")
    classes: tuple[str, ...] = key("class names, as the packed files have them", longest=200)
    palette: tuple[tuple[int, int, int], ...] = key("a colour for each class; [] = VOC's", (), low=0, high=255)


Data = (
    VOCData
    | ADE20KData
    | CityscapesData
    | CocoStuffData
    | LIPData
    | PascalContextData
    | CocoVOCData
    | FolderData
    | ShapesData
    | PackedData
)


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
    flip: float = key("probability of the left-right mirror image", 0.5, low=0, high=1)
    flip_pairs: tuple[tuple[int, int], ...] = key(
        "pairs of classes that swap when mirrored (LIP's left and right limbs)", (), low=0, ceiling=255, most=128
    )
    rotation: float = key("probability of a rotation (LIP)", 0.0, low=0, high=1)
    rotation_degrees: int = key("largest rotation angle", 30, low=1, high=180)
    photometric: Literal["none", "bgr_as_rgb", "bgr"] = key(
        'colour jitter: "bgr_as_rgb" hands BGR to the hue step (sssegmentation: opposite hue sign), "bgr" does not (mmseg)',
        "bgr",
    )
    pad: Literal["centre", "bottom_right"] = key(
        "where padding goes: on all sides (sssegmentation), or below and right", "centre"
    )
    pad_before_crop: bool = key("pad to the size of the crop before cropping (EMANet authors)", False)


# ----------------------------------------------------------------------------------------------------- loss
@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross entropy at input resolution."""

    reduction: Literal["valid_pixels", "all_pixels"] = key(
        "divide by the labelled pixels (sssegmentation), or by all pixels (mmseg, EMANet authors)", "valid_pixels"
    )
    auxiliary_weight: float = key("weight of the auxiliary heads; the main head has 1", 0.4, low=0, ceiling=FACTOR)


# ---------------------------------------------------------------------------------------------------- optim
@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Parameters with their own factors on learning rate and weight decay; the last match wins."""

    match: Literal["backbone", "norm_weight", "bias"] = key("which parameters")
    lr_scale: float = key("factor on the learning rate", 1.0, low=0, ceiling=FACTOR)
    weight_decay_scale: float = key("factor on the weight decay", 1.0, low=0, ceiling=FACTOR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """SGD with a polynomial schedule: lr(i) = (lr - min_lr) * (1 - i / iterations)^power + min_lr."""

    kind: Literal["sgd"] = key("optimiser", "sgd")
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


# ---------------------------------------------------------------------------------------------------- train
@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Length, batch, start, machine, checkpoints and logs."""

    epochs: int = key("passes over the training images; 0 = use iterations", 0, low=0)
    iterations: int = key("optimiser steps; 0 = use epochs", 0, low=0)
    batch: int = key("images per optimiser step, over all processes", 16, low=1, ceiling=65536)
    init_from: str = key(
        'start from this model: a recipe\'s newest run, a run folder, a checkpoint or a weight file; "" = none', ""
    )
    workers: int = key("data loading processes; -1 = as many as help on this machine", -1, low=-1, ceiling=256)
    threads: int = key("CPU threads of the network; 0 = one per core", 0, low=0, ceiling=1024)
    seed: int = key("seed of start weights, sample order, augmentation and dropout", 0, low=0, ceiling=SEED)
    evaluate_every: int = key(
        "epochs (or iterations, where those are given) between evaluations; 0 = only at the end",
        0,
        low=0,
        ceiling=COUNT,
    )
    save_seconds: float = key("seconds between checkpoints", 600.0, above=0, ceiling=1e9)
    keep_every: int = key(
        "iterations between checkpoints that are kept for good, as step_XXXXXXXX.pt; 0 = none", 0, low=0, ceiling=COUNT
    )
    log_every: int = key("iterations between rows of metrics.csv", 50, low=1, ceiling=COUNT)


# ------------------------------------------------------------------------------------------------ inference
@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """From an image to its label map, at evaluation and prediction."""

    resize_long_short: tuple[int, ...] = key(
        "limits (long side, short side); [] keeps the image's own size", (), low=1, lengths=(0, 2), ceiling=SIDE
    )
    keep_ratio: bool = key("keep the aspect ratio inside the limits", True)
    pad: Literal["none", "8k+1"] = key('"8k+1" pads below and right to multiples of 8 plus 1 (EMANet authors)', "none")
    mode: Literal["whole", "slide"] = key("the whole image at once, or a sliding window", "whole")
    window: tuple[int, ...] = key("window (height, width) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    stride: tuple[int, ...] = key("window step (down, right) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    scales: tuple[float, ...] = key(
        "scales whose results are averaged", (1.0,), above=0, floor=0.01, ceiling=SCALE, most=32
    )
    scale_source: Literal["tensor", "image"] = key(
        "rescale the normalised tensor by the factor (sssegmentation), or the original image again (mmseg)", "tensor"
    )
    flip: bool = key("average with the mirrored image", False)
    flip_pairs: tuple[tuple[int, int], ...] = key(
        "pairs of classes that swap when mirrored", (), low=0, ceiling=255, most=128
    )
    average: Literal["logits", "probs_before_resize", "probs_after_resize"] = key(
        "what is averaged; the softmax comes before resizing (sssegmentation) or after it (mmseg)", "logits"
    )
    logits_path: Literal["direct", "via_input"] = key(
        "resize logits to the original size directly (sssegmentation), or via the input size (mmseg, authors)", "direct"
    )


# ------------------------------------------------------------------------------------------------ published
@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the published table says of this row; scores in percent."""

    table: str = key("document and row")
    miou: float | None = key("mIoU, single scale", None, low=0, high=100)
    miou_ms_flip: float | None = key("mIoU, several scales and mirrored", None, low=0, high=100)
    miou_flip: float | None = key("mIoU, mirrored", None, low=0, high=100)
    miou_other: float | None = key("mIoU whose protocol the table does not state", None, low=0, high=100)
    checkpoint: str = key("URL of the released weights", "")
    checkpoint_mirrors: tuple[str, ...] = key("the same weights under newer names", (), most=16)
    log: str = key("URL of the training log", "")
    memory_gb: float | None = key("training memory of one GPU", None, low=0, ceiling=FACTOR)
    images_per_second: float | None = key("inference speed", None, low=0, ceiling=FACTOR)
    hardware: str = key("hardware that those two were measured on", "")
    note: str = key("anything else that a reader should know", "")


# --------------------------------------------------------------------------------------------------- recipe
@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One run: everything that decides its result."""

    schema: Literal[1] = key("version of this format", SCHEMA_VERSION)
    name: str = key("short name; the run folder carries it", longest=100)
    title: str = key("one line for people", "", longest=1000)
    model: Model = key("the network")
    backbone: Backbone = key("its feature extractor")
    data: Data = key("images and labels")
    augment: Augment = key("training pipeline")
    loss: Loss = key("training loss", Loss())
    optim: Optim = key("optimiser and schedule")
    train: Train = key("length, batch, checkpoints")
    inference: Inference = key("evaluation and prediction", Inference())
    inference_tta: Inference | None = key("protocol of eval --tta: several scales, mirroring", None)
    published: Published | None = key("the results-table row this recipe mirrors", None)
