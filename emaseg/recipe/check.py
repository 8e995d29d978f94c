"""Rules between keys: what no single key can say about itself.

Room: recipe. Legend: K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from emaseg.recipe.backbones import HRNetBackbone, ViTBackbone
from emaseg.recipe.channels import channel_problems
from emaseg.recipe.check_training import training_problems
from emaseg.recipe.data import MOST_CLASSES, Data, FolderData, PackedData, VOCData, num_classes
from emaseg.recipe.inference import Inference
from emaseg.recipe.models import MemoryNetModel
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Problem
from emaseg.recipe.training import Augment

BACKSLASHES = (
    "a backslash in double quotes begins an escape, such as \\n for a new line; write a Windows path in single quotes "
    "('C:\\data') or with slashes (\"C:/data\")"
)
LONGEST = 1_000_000_000  # epochs or iterations
MOST_OVERLAP = 16  # windows that cover a pixel, along one side; a published protocol has two
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def check(recipe: Recipe) -> tuple[Problem, ...]:
    """Everything in which the keys of a recipe contradict each other."""
    return tuple(_problems(recipe))


def _problems(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if not _NAME.fullmatch(recipe.name):
        yield Problem("name", "must be letters, digits and _ - + . only: the run folder carries it")
    if train.epochs and train.iterations:
        yield Problem("train.iterations", f"{train.iterations} contradicts epochs = {train.epochs}; one must be 0")
    if not train.epochs and not train.iterations:
        yield Problem("train.epochs", "epochs and iterations are both 0; give one of them")
    for name, length in (("epochs", train.epochs), ("iterations", train.iterations)):
        if length > LONGEST:
            yield Problem(f"train.{name}", f"{length} would never end; at most {LONGEST}")
    yield from training_problems(recipe, num_classes(recipe.data))
    yield from channel_problems(recipe)
    yield from _network(recipe)
    yield from _control_characters(recipe)
    yield from _data(recipe.data)
    yield from _augment(recipe.augment, num_classes(recipe.data))
    yield from _inference(recipe.inference, "inference", num_classes(recipe.data))
    if recipe.inference_tta is not None:
        yield from _inference(recipe.inference_tta, "inference_tta", num_classes(recipe.data))


def _control_characters(recipe: Recipe) -> Iterator[Problem]:
    """Texts that name something hold none; an unescaped backslash of a Windows path leaves them behind."""
    for section in ("backbone", "data", "train"):
        content = getattr(recipe, section)
        for field in fields(content):
            value = getattr(content, field.name)
            # A Windows path has no slash; the name of a folder on other systems may hold such characters.
            several = isinstance(value, tuple) and field.name.endswith(("_images", "_masks"))
            for text in value if several else (value,):
                if isinstance(text, str) and "/" not in text and any(mark in "\b\t\n\f\r" for mark in text):
                    yield Problem(f"{section}.{field.name}", f"holds a control character ({text!r}): {BACKSLASHES}")


def _network(recipe: Recipe) -> Iterator[Problem]:
    """Backbone and heads must fit each other."""
    model, backbone = recipe.model, recipe.backbone
    if isinstance(backbone, ViTBackbone):
        yield from _vit(backbone)
        if not isinstance(model, MemoryNetModel):
            text = f"{backbone.kind} has maps without a norm, which only a MemoryNet adds; no EMANet was built on it"
            yield Problem("backbone.kind", text)
    if isinstance(backbone, HRNetBackbone) and model.auxiliary_channels:
        text = f"{model.auxiliary_channels} has no map to work on: {backbone.kind} gives one; write 0"
        yield Problem("model.auxiliary_channels", text)
    if isinstance(model, MemoryNetModel) and model.memory_loss_weight and num_classes(recipe.data) < 2:
        yield Problem("model.memory_loss_weight", "needs two classes or more to tell apart; write 0")


def _vit(backbone: ViTBackbone) -> Iterator[Problem]:
    if list(backbone.taps) != sorted(set(backbone.taps)) or not backbone.taps:
        yield Problem("backbone.taps", "must name at least one layer, each once, from the first to the last")


def _data(data: Data) -> Iterator[Problem]:
    if isinstance(data, VOCData) and not data.label_folders:
        yield Problem("data.label_folders", "is empty; name at least one folder")
    if isinstance(data, FolderData):
        yield from _folder(data)
    if isinstance(data, PackedData):
        yield from _packed(data)


def _packed(data: PackedData) -> Iterator[Problem]:
    count = len(data.classes)
    if not 1 <= count <= MOST_CLASSES:
        yield Problem("data.classes", f"{count} names; 1 to {MOST_CLASSES}: 254 and 255 are taken")
    if data.palette and len(data.palette) != count:
        yield Problem("data.palette", f"{len(data.palette)} colours for {count} classes; give one each, or none")


def _folder(data: FolderData) -> Iterator[Problem]:
    count = len(data.classes)
    if count == 0:
        yield Problem("data.classes", "is empty; name at least one class")
    if count > MOST_CLASSES:
        yield Problem("data.classes", f"{count} names; at most {MOST_CLASSES}: 254 and 255 are taken")
        return
    if "" in data.classes:
        yield Problem("data.classes", f"class {data.classes.index('')} has an empty name")
    twice = [name for index, name in enumerate(data.classes) if name and name in data.classes[:index]]
    if twice:
        yield Problem("data.classes", f'"{twice[0]}" appears twice')
    if data.values and len(data.values) != count:
        yield Problem("data.values", f"{len(data.values)} values for {count} classes; give one each, or none")
        return
    same = [value for index, value in enumerate(data.values) if value in data.values[:index]]
    if same:
        yield Problem("data.values", f"{same[0]} appears twice; a mask value is one class")
    values = data.values or range(count)
    ignored = sorted(set(data.ignore) & set(values))
    if ignored and len(values) == count <= MOST_CLASSES:
        name = data.classes[values.index(ignored[0])]
        yield Problem("data.ignore", f'{ignored[0]} is also the class "{name}"; a class cannot be ignored')
    if data.palette and len(data.palette) != count:
        yield Problem("data.palette", f"{len(data.palette)} colours for {count} classes; give one each, or none")
    both = [colour for colour in data.ignore_colours if colour in data.palette]
    if both:
        name = (*data.classes, "")[min(data.palette.index(both[0]), count)]
        yield Problem("data.ignore_colours", f'{list(both[0])} is also the colour of class "{name}"')
    yield from _folders(data)
    yield from _holdout(data)


def _holdout(data: FolderData) -> Iterator[Problem]:
    if data.holdout == 1:
        yield Problem("data.holdout", "1 holds every image out and leaves none to train on; 5 is a fifth")
    if data.holdout and data.train_list != data.eval_list:
        yield Problem("data.holdout", "the list files already name the images; write holdout = 0")
    if data.holdout and (data.train_images, data.train_masks) != (data.eval_images, data.eval_masks):
        yield Problem("data.holdout", "divides one folder, but training and evaluation have two; write holdout = 0")
    if data.holdout_group and not data.holdout:
        yield Problem("data.holdout_group", "groups are held out only with holdout; write holdout = 5 for every fifth")
    if data.holdout_group not in ("", "folder") and (reason := _unfit_pattern(data.holdout_group)):
        yield Problem("data.holdout_group", reason)


def _folders(data: FolderData) -> Iterator[Problem]:
    """Several folders need as many masks', and no list file, whose names could be of any of them."""
    for phase, images, masks, listing in (
        ("train", data.train_images, data.train_masks, data.train_list),
        ("eval", data.eval_images, data.eval_masks, data.eval_list),
    ):
        count = len(images) if isinstance(images, tuple) else 1
        others = len(masks) if isinstance(masks, tuple) else 1
        if not count:
            yield Problem(f"data.{phase}_images", "is empty; name at least one folder")
        elif others != count:
            text = f'{others} mask folders for {count} image folders; name one for each, "" where there are no masks'
            yield Problem(f"data.{phase}_masks", text)
        if count > 1 and listing:
            yield Problem(f"data.{phase}_list", "is for one folder; a list of `image mask` lines can name files of all")
        if phase == "train" and data.train_repeat and len(data.train_repeat) != count:
            text = f"{len(data.train_repeat)} numbers for {count} folders; give one for each of train_images, or none"
            yield Problem("data.train_repeat", text)


def _unfit_pattern(pattern: str) -> str:
    """What is wrong with a regular expression, "" = nothing.

    Threat: one from a stranger's checkpoint could search a name for years. Few repetitions, none of a group, cannot.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    # Without escapes and sets of characters, in which a bracket may be escaped, or come first.
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\\\]])*\]", "x", pattern)
    repeats = re.findall(r"[*+{]|(?<!\()\?", re.sub(r"([*+}])\?", r"\1", bare))
    if re.search(r"\)[*+{?]", bare) or len(repeats) > 4:
        return "repeats a group, or more than four parts, which may take for ever on a long name; write it plainer"
    if (bare.count("|") > 3 and (repeats or bare.count("(") > 1)) or re.search(r"\(\?(#|[a-zA-Z]*x)", bare):
        return "has many alternatives, or remarks, which may take for ever on a long name; write it plainer"
    return ""


def _augment(augment: Augment, classes: int) -> Iterator[Problem]:
    low, high = augment.scale
    if low > high:
        yield Problem("augment.scale", f"[{low}, {high}] runs backwards; write [{high}, {low}]")
    if augment.interpolation == "align_corners":  # the image is no longer 8-bit when these would come
        if augment.photometric != "none":
            yield Problem("augment.photometric", 'must be "none" with interpolation = "align_corners"')
        if augment.rotation > 0:
            yield Problem("augment.rotation", 'must be 0 with interpolation = "align_corners"')
        for name, probability in (("blur", augment.blur), ("noise", augment.noise), ("jpeg", augment.jpeg)):
            if probability > 0:
                yield Problem(f"augment.{name}", 'must be 0 with interpolation = "align_corners"')
    for name, bounds in (
        ("blur_sigma", augment.blur_sigma),
        ("noise_levels", augment.noise_levels),
        ("jpeg_quality", augment.jpeg_quality),
    ):
        if bounds[0] > bounds[1]:
            yield Problem(f"augment.{name}", f"{list(bounds)} runs backwards; write {list(bounds[::-1])}")
    if augment.quarter_turns and augment.crop[0] != augment.crop[1]:
        yield Problem("augment.quarter_turns", f"needs a square crop; augment.crop is {list(augment.crop)}")
    yield from _long_short(augment.resize_long_short, "augment.resize_long_short")
    yield from _pairs(augment.flip_pairs, "augment.flip_pairs", classes)


def _inference(inference: Inference, section: str, classes: int) -> Iterator[Problem]:
    window, stride = inference.window, inference.stride
    if not inference.scales:
        yield Problem(f"{section}.scales", "is empty; [1.0] is the image's own scale")
    if inference.mode == "whole":
        for name, value in (("window", window), ("stride", stride)):
            if value:
                yield Problem(f"{section}.{name}", f'is for mode "slide" only; mode is "whole": write {name} = []')
    else:
        for name, value in (("window", window), ("stride", stride)):
            if not value:
                yield Problem(f"{section}.{name}", 'is empty; mode "slide" needs it: [height, width]')
        if window and stride and (stride[0] > window[0] or stride[1] > window[1]):
            text = f"{list(stride)} is larger than window = {list(window)}; pixels would be left out"
            yield Problem(f"{section}.stride", text)
        # Threat: a stride of 1 in an untrusted checkpoint would compute every pixel a quarter of a million times.
        elif window and stride and any(w > MOST_OVERLAP * s for w, s in zip(window, stride, strict=True)):
            least = [-(-side // MOST_OVERLAP) for side in window]
            text = f"{list(stride)} would compute every pixel again and again; at least {least} with window = {list(window)}"
            yield Problem(f"{section}.stride", text)
    yield from _long_short(inference.resize_long_short, f"{section}.resize_long_short")
    yield from _pairs(inference.flip_pairs, f"{section}.flip_pairs", classes)


def _long_short(limits: tuple[int, ...], key: str) -> Iterator[Problem]:
    if limits and limits[0] < limits[1]:
        yield Problem(key, f"{list(limits)}: the long side comes first; write {list(limits[::-1])}")


def _pairs(pairs: tuple[tuple[int, int], ...], key: str, classes: int) -> Iterator[Problem]:
    flat = [index for pair in pairs for index in pair]
    outside = [index for index in flat if index >= classes]
    if outside:
        yield Problem(key, f"there is no class {outside[0]}; the data set has {classes}, counted from 0")
    twice = [index for position, index in enumerate(flat) if index in flat[:position]]
    if twice:
        yield Problem(key, f"class {twice[0]} stands in it twice")
