"""The first recipe for a folder: everything that was found and chosen, as TOML with its reasons beside it.

Room: starter. Legend: H W image height and width.

What cannot be found is chosen so that it trains on this machine: on a CPU small crops and hundreds of steps, on a GPU
the published sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emaseg.data.checks import spread
from emaseg.data.files.bands import Bands, pixels_size
from emaseg.data.files.images import images_apart
from emaseg.data.sets.doubts import file_doubts
from emaseg.data.sets.folder import usable, walk
from emaseg.data.sets.names import stem_of
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.shared_images import shared_images
from emaseg.errors import DataError
from emaseg.recipe import (
    Augment,
    EMANetModel,
    FolderData,
    Inference,
    Optim,
    Recipe,
    ResNetBackbone,
    Train,
    load_recipe,
    parse_recipe,
    recipe_to_toml,
)
from emaseg.recipe.channels import is_rgb8
from emaseg.starter.channels import Measured, measured
from emaseg.starter.kinds import any_layout, named_layout
from emaseg.starter.layout import Layout
from emaseg.starter.names import find_names
from emaseg.starter.naming import Place, pictures_of_masks
from emaseg.starter.thin import LEAST, thinnest
from emaseg.starter.values import Classes, Held, are_colours, class_shares, classes_of, read_masks, remark
from emaseg.threads import Reading
from emaseg.words import printable, quoted_path

_SIZES_READ = 200  # headers read for the median image size
_LISTED = 60  # classes that get a line of their own in the comments
_RARE = 0.05  # of the pixels: below this a class gets help
_DICE = (
    "The Dice loss counts each class as a whole, whatever its size; 0 = off. Instead or beside it:",
    'class_balance = "inverse_log" weighs the pixels of rare classes, ohem_threshold = 0.7 picks the hard ones.',
)
_FEW_ALONE = 0.05  # images without a mask, by those with one, that are left out; more are a mistake in the names
_MOST_OF_ALL = Augment(crop=(1, 1)).max_class_share  # a class with more would have nearly every crop refused


@dataclass(frozen=True, slots=True)
class Started:
    """A recipe, its TOML text with comments, and what people should know: how it was found, one sentence each."""

    recipe: Recipe
    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the sizes depend on. memory_gb: of the GPU; 0 = train on the CPU."""

    memory_gb: float = 0.0

    @property
    def gpu(self) -> bool:
        return self.memory_gb > 0


def start_recipe(
    folder: Path, look: Callable[[], Machine], name: str = "", file: str = "", images: str = "", masks: str = ""
) -> Generator[Reading, None, Started]:
    """A complete recipe for the images and masks in `folder`.

    Args:
        look: finds out what there is to train on. That imports torch, so the folder is looked at before.
        name: the recipe's; "" = the folder's.
        file: what the commands in its comments call its file; "" = NAME.toml.
        images, masks: the two folders, below `folder` or from here; "" = they are looked for.

    Raises:
        DataError: there is no such folder, its arrangement is not recognised, or its masks cannot be used.
        RecipeError: `name` cannot be one.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}", "name the folder that holds the images and the masks")
    layout = with_few_left_out(named_layout(folder, images, masks) if images else any_layout(folder))
    machine = look()
    train, evaluation = paired_files(layout)
    files = sorted({mask for dataset in (train, evaluation) for _, mask in dataset.items})
    held = yield from read_masks(files)
    known = _camvid(layout, held)
    folders = name_folders(layout)
    names, remarks = (None, ()) if known else find_names(layout.root, folders, coloured=held.colours)
    if held.equal and not (names and are_colours(held, names)):
        held = held.as_numbers()
        names, remarks = find_names(layout.root, folders, coloured=False)
    classes = known or classes_of(held, names)
    classes = replace(classes, reasons=(*classes.reasons, *remarks))
    _check_background(layout, classes)
    shares = class_shares(held, classes)
    share = max(shares)
    largest = classes.names[shares.index(share)]
    if share > _MOST_OF_ALL:
        reason = (
            f"{largest} covers {share:.1%} of the pixels: judge by the IoU of each class, not by the pixel accuracy."
        )
        classes = replace(classes, reasons=(*classes.reasons, reason))
    rare = _rare(classes.names, shares)
    thin = thinnest(files, classes, held.colours)
    paths = [image for image, _ in train.items]
    kind = measured(paths)
    bands = kind.bands if kind else None
    size = _median([pixels_size(paths[index], bands=bands) for index in spread(len(paths), _SIZES_READ)])
    data = _data(layout, classes)
    recipe = _recipe(name or _name_of(folder), data, len(train), size, machine, thin[1] if thin else None)
    if kind:
        recipe = _with_channels(recipe, kind)
        classes = replace(classes, reasons=(*classes.reasons, f"{kind.words}."))
    if thin and _sizes(size, machine, None) != _sizes(size, machine, thin[1]):
        kept = "shrunk less than usual" if recipe.augment.resize_long_short else "not shrunk"
        classes = replace(
            classes,
            reasons=(*classes.reasons, f"{thin[0]} is {thin[1]:.1f} pixels wide on average: images are {kept}."),
        )
    if share > _MOST_OF_ALL:
        recipe = replace(recipe, augment=replace(recipe.augment, max_class_share=1.0))
    if rare:
        recipe = replace(recipe, loss=replace(recipe.loss, dice_weight=1.0))
    named = quoted_path(file or f"{recipe.name}.toml")
    text = _text(recipe, named, layout, classes, size, (len(train), len(evaluation)), machine, rare)
    checked = parse_recipe(text, "emaseg init").recipe
    helped = [f"{rare}: a Dice loss is added (loss.dice_weight)."] if rare else []
    first = f"{layout.root}: {layout.words}; {len(train):,} images to train on, {len(evaluation):,} to evaluate"
    summary = f"{len(classes.names)} classes in {len(files):,} masks: {_few(classes.names)}"
    doubts = _doubts(train, evaluation, bands)
    return Started(checked, text, (first, *layout.notes, summary, *classes.reasons, *helped, *doubts))


def _rare(names: Sequence[str], shares: Sequence[float]) -> str:
    """The classes that a mean over pixels hardly sees, in words; "" where there is none."""
    rare = [(share, name) for name, share in zip(names, shares, strict=True) if 0 < share < _RARE]
    if not rare:
        return ""
    share, name = min(rare)
    more = f", and {len(rare) - 1} more classes below {_RARE:.0%}" if len(rare) > 1 else ""
    return f"{printable(name)} covers {share:.1%} of the pixels{more}"


def _check_background(layout: Layout, classes: Classes) -> None:
    """Stop where images without masks would be taken for a class that is no background.

    Raises:
        DataError: the first class has a value or colour of its own.
    """
    first = classes.palette[0] if classes.palette and not classes.values else (classes.values or (0,))[0]
    nothing = [place.images for place in layout.more if not place.masks]
    if nothing and first not in (0, (0, 0, 0)):
        raise DataError(
            f"{layout.root / nothing[0]}: images without masks would be all {classes.names[0]}, the first class, whose "
            f"{'value' if isinstance(first, int) else 'colour'} is {first}, no background's",
            "give them masks, or move the folder away",
        )


def name_folders(layout: Layout) -> tuple[Path, ...]:
    """Where a file of class names may lie besides the root: in the folders of images and masks, and above them."""
    found = (layout.train, layout.eval, *layout.more)
    places = [folder for place in found for folder in (place.images, place.masks)]
    folders = [folder for place in places for folder in (Path(place), *Path(place).parents)]
    return tuple(layout.root / folder for folder in dict.fromkeys(folders))


def _with_channels(recipe: Recipe, kind: Measured) -> Recipe:
    """The recipe for images of this kind; jitter of colours is defined on 8-bit RGB."""
    channels = kind.bands.channels
    assert isinstance(recipe.data, FolderData)  # which `_data` made
    return replace(
        recipe,
        backbone=replace(recipe.backbone, in_channels=channels, mean=kind.mean, std=kind.std),
        data=replace(recipe.data, range=kind.bands.ranges),
        augment=replace(recipe.augment, photometric="none"),
    )


def _doubts(train: PairedFiles, evaluation: PairedFiles, bands: Bands | None) -> list[str]:
    """What check-data and the start of training will warn of, by a look at the files."""
    items = tuple(sorted({*train.items, *evaluation.items}))
    everything = replace(train, items=items, bands=bands, left=tuple(dict.fromkeys((*train.left, *evaluation.left))))
    shared = shared_images(train, evaluation)
    found = [*file_doubts(everything, spread(len(items), _SIZES_READ)), *([shared] if shared is not None else [])]
    return [f"warning: {doubt.message}; {doubt.hint}" for doubt in found]


def with_few_left_out(layout: Layout) -> Layout:
    """The layout that leaves images without a mask out, where those are few; the others train without them."""
    data = _data(layout, Classes(("a", "b")))
    if not any(problems for _, problems in (usable(data, "train"), usable(data, "eval"))):
        return layout
    found = [usable(replace(data, unmasked="leave_out"), phase) for phase in ("train", "eval")]
    paired = len({image for dataset, _ in found for image, _ in dataset.items})
    places = {place for place in (layout.train, layout.eval, *layout.more) if place.masks}
    lone = sum(len(_images(layout, place)) for place in places) - paired
    drawn = sum(len(_drawn(layout, place)) for place in places)  # pictures of masks, which are to be left out
    listed = layout.train.listing or layout.eval.listing
    few = not listed and 0 < lone <= drawn + max(1, _FEW_ALONE * paired)
    return replace(layout, unmasked="leave_out") if few and not any(problems for _, problems in found) else layout


def _images(layout: Layout, place: Place) -> list[str]:
    """The images of a place, without the masks that lie among them."""
    names = walk(layout.root / place.images, layout.root / place.masks)
    masks = [name for name in names if layout.naming.is_mask(name)] if place.images == place.masks else []
    return images_apart(names, without=masks)[0]


def _drawn(layout: Layout, place: Place) -> set[str]:
    """The pictures of masks, without extensions, that lie among the images of a place."""
    if place.images != place.masks:
        return set()
    return pictures_of_masks([stem_of(name) for name in walk(layout.root / place.images, None)])


def paired_files(layout: Layout) -> tuple[PairedFiles, PairedFiles]:
    """The data of both phases, as the recipe will read them; the masks are not opened.

    Raises:
        DataError: an image lacks its mask, a mask its image.
    """
    data = _data(layout, Classes(("a", "b")))
    found = []
    for dataset, problems in (usable(data, "train"), usable(data, "eval")):
        if problems:
            raise problems[0]
        found.append(dataset)
    return found[0], found[1]


def _data(layout: Layout, classes: Classes) -> FolderData:
    train: tuple[Place, ...] = (layout.train, *layout.more)
    evaluation = (layout.eval, *layout.more) if layout.holdout else (layout.eval,)
    return FolderData(
        kind="folder",
        root=str(layout.root),
        classes=classes.names,
        train_images=_one_or_more([place.images for place in train]),
        train_masks=_one_or_more([place.masks for place in train]),
        eval_images=_one_or_more([place.images for place in evaluation]),
        eval_masks=_one_or_more([place.masks for place in evaluation]),
        train_list=layout.train.listing,
        eval_list=layout.eval.listing,
        holdout=layout.holdout,
        holdout_group=layout.group,
        unmasked=layout.unmasked,
        mask_suffix=layout.naming.suffix,
        image_suffix=layout.naming.image_suffix,
        image_prefix=layout.naming.image_prefix or None,
        mask_prefix=layout.naming.mask_prefix or None,
        values=classes.values,
        ignore=classes.ignore,
        palette=classes.palette,
        ignore_colours=classes.ignore_colours,
    )


def _one_or_more(folders: Sequence[str]) -> str | tuple[str, ...]:
    return folders[0] if len(folders) == 1 else tuple(folders)


def _camvid(layout: Layout, held: Held) -> Classes | None:
    """CamVid as the SegNet authors distribute it names no classes; its shipped recipe does."""
    if layout.train.masks.rpartition("/")[2] != "trainannot" or held.colours or set(held.pixels) != set(range(12)):
        return None
    data = load_recipe("camvid_r50_d16").data
    if not isinstance(data, FolderData):
        return None
    return Classes(
        data.classes,
        ignore=data.ignore,
        palette=data.palette,
        remarks=tuple(remark(held, i, f"value {i}") for i in range(len(data.classes))),
        reasons=("train/ + trainannot/ with the values 0..11: this is CamVid, whose 11 is void.",),
    )


# ------------------------------------------------------------------------------------------------------- choices
def _median(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = np.median(np.array(sizes), axis=0).astype(int).tolist()
    return height, width


def _recipe(
    name: str, data: FolderData, images: int, size: tuple[int, int], machine: Machine, thin: float | None
) -> Recipe:
    resize, crop = _sizes(size, machine, thin)
    batch = min(images, 16 if machine.memory_gb >= 16 else 8)
    per_epoch = max(1, images // batch)
    fewest, most, passes = (500, 20_000, 200) if machine.gpu else (200, 1_000, 60)
    iterations = min(most, max(fewest, passes * per_epoch))
    lr = 0.02 if batch >= 8 else 0.01
    return Recipe(
        name=name,
        title=f"EMANet R-50-D16 on {data.root.rstrip('/').rpartition('/')[2] or data.root}, from nothing",
        model=EMANetModel(kind="emanet"),
        backbone=ResNetBackbone(kind="resnet50", output_stride=16, weights="none"),
        data=data,
        augment=Augment(
            resize_long_short=resize,
            scale=(0.5, 2.0) if machine.gpu else (0.75, 1.5),
            crop=crop,
            photometric="bgr" if machine.gpu else "none",
        ),
        optim=Optim(lr=lr, min_lr=lr / 100, weight_decay=0.0005),
        train=Train(
            iterations=iterations,
            batch=batch,
            evaluate_every=max(1, iterations // (10 if machine.gpu else 4)),
            save_seconds=600.0 if machine.gpu else 120.0,
            log_every=max(1, min(50, iterations // 40)),
        ),
        inference=Inference(resize_long_short=resize),
    )


def _sizes(size: tuple[int, int], machine: Machine, thin: float | None) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Limits (long, short) to resize to, () = keep, and the crop (height, width); multiples of 8.

    thin: mean width of the thinnest class, of which shrinking must leave something.
    """
    limit = 512 if machine.gpu else 240
    factor = min(1.0, limit / min(size))
    if thin is not None and thin * factor < LEAST:
        factor = min(1.0, LEAST / thin)
        limit = _eights(factor * min(size))
    height, width = size[0] * factor, size[1] * factor
    resize = () if factor == 1 else (-int(-max(height, width) // 8) * 8, limit)
    if machine.gpu:
        return resize, (_eights(min(512, height)), _eights(min(512, width)))
    return resize, (_eights(min(256, 0.8 * height)), _eights(min(256, 0.8 * width)))


def _eights(side: float) -> int:
    return max(32, int(side) // 8 * 8)


def _name_of(folder: Path) -> str:
    """The folder's name with what a recipe's name may hold."""
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", folder.resolve().name).strip("_.+-")
    return name or "mine"


# ---------------------------------------------------------------------------------------------------------- text
def _text(
    recipe: Recipe,
    file: str,
    layout: Layout,
    classes: Classes,
    size: tuple[int, int],
    images: tuple[int, int],
    machine: Machine,
    rare: str,
) -> str:
    comments = _comments(recipe, layout, classes, size, images[0], machine)
    comments["loss.dice_weight"] = [f"{rare}: the cross entropy, a mean over pixels, hardly sees so few.", *_DICE]
    commands = (
        (f"emaseg check-data {file}", "all images and masks, every problem with its remedy"),
        (f"emaseg train {file} --dry-run", "one step measured, memory and time forecast"),
        (f"emaseg train {file}", ""),
    )
    width = len(commands[1][0])
    lines = [
        _comment(
            f"{recipe.title.replace(', from nothing', '')}: written by `emaseg init`; every value is yours to change."
        ),
        "#",
        *(_comment(f"  {command:<{width}}   {what}") for command, what in commands),
        "#",
        _comment(f"Found: {layout.words}."),
        _comment(
            f"{images[0]:,} training and {images[1]:,} evaluation images; "
            f"the median is {size[0]} x {size[1]} (height x width)."
        ),
        "",
    ]
    section = ""
    for line in recipe_to_toml(recipe).split("\n")[:-1]:
        if line.startswith("["):
            section = line.strip("[]") + "."
        key = section + line.partition(" =")[0]
        lines += [_comment(text) for text in comments.get(key, ())]
        lines.append(line)
    return "\n".join([*lines, ""])


def _comment(text: str) -> str:
    """The only way into a comment: names of classes and folders stand in it, and a line break would end it."""
    return f"# {printable(text)}".rstrip()


def _comments(
    recipe: Recipe, layout: Layout, classes: Classes, size: tuple[int, int], images: int, machine: Machine
) -> dict[str, list[str]]:
    """What stands above a key, by its dotted name."""
    train, augment = recipe.train, recipe.augment
    where = f"a GPU with {machine.memory_gb:.0f} GB" if machine.gpu else "a CPU"
    epochs = train.iterations * train.batch / images
    comments = {
        "backbone.weights": [
            'random start weights. "resnet50_v1c" instead fetches ImageNet weights once: better and sooner;',
            "or start from a whole network, see train.init_from",
        ],
        "backbone.mean": ["of each channel, measured on some of the training images"] if not is_rgb8(recipe) else [],
        "data.classes": _class_lines(classes),
        "data.train_images": [*layout.notes],
        "augment.crop": [f"multiples of 8, from the median image of {size[0]} x {size[1]}, for {where}"],
        "optim.lr": ["for random start weights; halve it when starting from trained ones"],
        "train.iterations": [f"about {epochs:.0f} passes over the {images:,} training images; more is better"],
        "train.batch": [f"for {where}; halve it when memory runs out"],
        "train.init_from": [
            'to fine-tune instead: "voc_r50_d16", a released network (after emaseg download-weights voc_r50_d16), a',
            "recipe that was trained here, a run folder or a weight file",
        ],
    }
    if augment.resize_long_short:
        comments["augment.resize_long_short"] = [
            "limits (long side, short side) to shrink to; [] trains at full size, slower"
        ]
        comments["inference.resize_long_short"] = ["as in training; the result always has the image's own size"]
    if augment.max_class_share == 1:
        comments["augment.max_class_share"] = ["1 accepts every crop; a lower limit would refuse nearly all of them"]
    if layout.holdout:
        comments["data.holdout"] = [f"of {layout.holdout} images one is for evaluation"]
    return comments


def _class_lines(classes: Classes) -> list[str]:
    lines = [*classes.reasons]
    if len(classes.names) <= _LISTED:
        names = [printable(name) for name in classes.names]
        width = max(map(len, names))
        rows = zip(names, classes.remarks, strict=True)
        lines += [f"  {index:>3}  {name:<{width}}  {remark}" for index, (name, remark) in enumerate(rows)]
    return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
