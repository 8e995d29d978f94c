"""The [data] section: one dataclass for each layout of a data set, and how many classes each has.

Room: recipe. Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.rule import COUNT, IMAGES, SEED, SIDE, key

MOST_CLASSES = 254  # labels are 8 bits: 255 means ignore, and 254 a value that is none
IGNORE = 255  # the label, everywhere inside the program, of a pixel that is neither trained nor scored

Range = tuple[float, float]
_RANGE_DOC = (
    "[low, high] of the values in the images' files that count as black and white, such as [[0, 10000]]: one pair for all "
    "channels or one for each. They become 0 and 255, on which mean and std are, without rounding; values outside are cut "
    "off. Needed for more than 8 bits; [] = 8 bits"
)
_SEVERAL = "; several folders as an array"
_LIST = (
    "text file below root with one image name a line, or `image mask` a line, or CSV with the columns image and mask; an "
    "image without a mask there is all of the first class"
)
_ROOT_DOC = "folder of the data set; a relative one is looked for below $EMASEG_DATA (default ./data), then here"
# K of the data sets that always have the same classes.
_CLASSES = {"ade20k": 150, "cityscapes": 19, "lip": 20, "voc": 21, "coco_voc21": 21, "shapes": 5}


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
    """Your own images: a folder of images and a folder of masks with the same names, or several of both."""

    kind: Literal["folder"] = key("layout")
    root: str = key(_ROOT_DOC)
    classes: tuple[str, ...] = key("class names; a mask value is the position in this list, or see values", longest=200)
    train_images: str | tuple[str, ...] = key(f"training images below root{_SEVERAL}", most=1000)
    train_masks: str | tuple[str, ...] = key(
        "their masks below root: PNG, 8-bit grey or palette, or RGB in the palette's colours; of several folders in the "
        'same order, "" = no masks: all pixels are of the first class',
        most=1000,
    )
    eval_images: str | tuple[str, ...] = key(f"evaluation images below root{_SEVERAL}", most=1000)
    eval_masks: str | tuple[str, ...] = key("their masks below root, as train_masks", most=1000)
    train_list: str = key(f'{_LIST}; "" = the whole folder', "")
    eval_list: str = key(f'{_LIST}; "" = the whole folder', "")
    train_repeat: tuple[int, ...] = key(
        "how many times an epoch draws each image of each training folder, such as [1, 4]; [] = once",
        (),
        low=1,
        high=1000,
        most=1000,
        extra=True,
    )
    holdout: int = key(
        "every n-th image, by path, is for evaluation, the others for training; 0 = no", 0, low=0, ceiling=COUNT
    )
    holdout_group: str = key(
        'hold out every n-th group instead, and no group in both phases: "folder" = images of one sub-folder, else a '
        'regular expression whose first group (or match) names the group, such as ^(.*)_[0-9]+$; "" = no groups',
        "",
        longest=200,
        extra=True,
    )
    unmasked: Literal["refuse", "background", "leave_out"] = key(
        "images without a mask: refuse them, take all their pixels for the first class, or leave them out with a warning",
        "refuse",
        extra=True,
    )
    mask_suffix: str = key("added to an image's stem to name its mask", "")
    image_suffix: str = key(
        "taken off the end of an image's stem before, such as sat (with mask_suffix mask) for 1_sat.jpg and 1_mask.png",
        "",
        extra=True,
    )
    image_prefix: str | None = key("taken off the front of an image's file name to name its mask", None)
    mask_prefix: str | None = key("put in front of it instead, such as mask_ for image_001.jpg and mask_001.png", None)
    range: tuple[Range, ...] = key(_RANGE_DOC, (), floor=-1e9, ceiling=1e9, most=64, extra=True)
    values: tuple[int, ...] = key(
        "mask value of each class, such as [0, 255]; [] = its position", (), low=0, high=65535
    )
    ignore: tuple[int, ...] = key(
        "mask values that are neither trained nor scored", (255,), low=0, high=65535, most=256
    )
    palette: tuple[tuple[int, int, int], ...] = key(
        "a colour for each class; needed for RGB masks, and palette masks must not contradict it", (), low=0, high=255
    )
    ignore_colours: tuple[tuple[int, int, int], ...] = key(
        "colours to ignore in RGB masks; palette masks must not contradict them", (), low=0, high=255, most=256
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
    range: tuple[Range, ...] = key(_RANGE_DOC, (), floor=-1e9, ceiling=1e9, most=64, extra=True)
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


def num_classes(data: Data) -> int:
    """K of a data section; the background counts where it is a class."""
    match data:
        case FolderData() | PackedData():
            return len(data.classes)
        case CocoStuffData() | PascalContextData():
            return data.num_classes
        case _:
            return _CLASSES[data.kind]
