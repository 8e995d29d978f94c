"""Reading a mask file as train ids, and saying precisely what is wrong with one that holds anything else.

Room: data/files. Legend: H W image height and width, K classes.

A mask is an image whose stored value is the class (mask_values.py). An RGB mask is read by the colours that were
declared; where none were, three equal channels are a class number. A MATLAB file (.mat) is read where a data set
publishes such labels.
A LabelRule says what each stored value means; it is the one place where raw values become train ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.dataset import LabelError, UInt8
from emaseg.data.files import png
from emaseg.data.files.decoders import numbers_decoder
from emaseg.data.files.images import MAX_PIXELS, file_bytes
from emaseg.data.files.mask_values import Colour, mask_values, packed, unpacked
from emaseg.data.files.mat import read_mat
from emaseg.data.files.smooth import Blend, find_blend
from emaseg.errors import RecipeError
from emaseg.recipe.data import IGNORE, MOST_CLASSES
from emaseg.words import Lines, counted

ILLEGAL = 254  # lut entry of a raw value that a mask must not hold; never leaves this file
MAX_CLASSES = MOST_CLASSES  # train ids 0..253: 254 and 255 are taken

SHARP_EDGES = (
    "export the masks again without smoothing (anti-aliasing), as PNG, and resize them by nearest neighbour only"
)


@dataclass(frozen=True, slots=True)
class LabelRule:
    """What the values of a mask file mean.

    classes: K names; the train id is the position. lut: 256 bytes or more, raw value -> train id, 255 (ignore) or
    ILLEGAL; what lies beyond it is illegal too.
    palette: a colour for each class, for RGB masks; () refuses them. ignore_colours: of RGB masks, those to ignore. A
    palette mask is read by its numbers, and refused where its colours are these ones at the numbers of other classes.
    layout: name of a published data set whose values are fixed; "" when the recipe's [data] declares them.
    empty_ok: accept a mask in which every pixel is ignored.
    mat: .mat files: the variable, then the fields that lead to the label map; () refuses such files.
    """

    classes: tuple[str, ...]
    lut: bytes
    palette: tuple[Colour, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()
    layout: str = ""
    empty_ok: bool = False
    mat: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def words(self) -> str:
        """For messages: `0..20 are classes, 255 is ignored`."""
        legal = _ranges([raw for raw, meaning in enumerate(self.lut) if meaning < ILLEGAL])
        ignored = _ranges([raw for raw, meaning in enumerate(self.lut) if meaning == IGNORE])
        return f"{legal} are classes, {ignored + ' is ignored' if ignored else 'nothing is ignored'}"


def index_rule(
    classes: tuple[str, ...],
    ignore: tuple[int, ...] = (IGNORE,),
    *,
    values: tuple[int, ...] = (),
    palette: tuple[Colour, ...] = (),
    ignore_colours: tuple[Colour, ...] = (),
    layout: str = "",
) -> LabelRule:
    """The rule of masks whose value is the class: 0..K-1 are train ids, the values of `ignore` are not labels.

    values: K raw values where they are not 0..K-1.

    Raises:
        RecipeError: no classes or more than 254, or a palette that does not give every class one colour.
    """
    count = len(classes)
    if not 1 <= count <= MAX_CLASSES:
        raise RecipeError(f"data.classes names {count} classes; 1 to {MAX_CLASSES} fit into an 8-bit mask")
    if palette and len(palette) != count:
        raise RecipeError(
            f"data.palette has {len(palette)} colours for {count} classes",
            "give one colour for each name in data.classes",
        )
    if values and len(values) != count:
        raise RecipeError(f"data.values has {len(values)} values for {count} classes", "give one for each class")
    train_id = dict(zip(values or range(count), range(count), strict=True))
    length = max(255, *values, *ignore, 0) + 1  # 16-bit masks hold values beyond 255
    lut = bytes(IGNORE if raw in ignore else train_id.get(raw, ILLEGAL) for raw in range(length))
    return LabelRule(classes, lut, palette, ignore_colours, layout)


def read_label(path: Path, rule: LabelRule, content: bytes | None = None) -> UInt8:
    """Read a mask file as (H, W) uint8 train ids, 255 = ignore.

    content: the file's bytes where they are not at `path`, which then only names them.

    Raises:
        DataError: missing, damaged, of a kind that cannot hold classes, with a value or a colour that `rule` does not
            know, or (unless rule.empty_ok) without a single labelled pixel. Names file, values, pixel counts, remedy.
    """
    if rule.mat and path.suffix.lower() == ".mat":
        label = apply_rule(read_mat(path, *rule.mat, content=content), path, rule)
    else:
        label = _from_picture(path, rule, content)
    if not rule.empty_ok and label.min() == IGNORE:
        raise _all_ignored(path, rule)
    return label


def _from_picture(path: Path, rule: LabelRule, content: bytes | None) -> UInt8:
    source = (file_bytes(path) or path) if content is None else content
    named = rule.palette and not rule.layout  # the colours of classes; of a published layout the numbers count
    if isinstance(source, bytes) and (raw := _numbers(source)) is not None:
        if named:
            _check_palette(raw, png.palette(source), path, rule)
        return apply_rule(raw, path, rule)
    stored = mask_values(source, path)
    if not stored.coloured:
        if named:
            _check_palette(stored.values, stored.palette, path, rule)
        return apply_rule(stored.values, path, rule)
    if not rule.palette and not rule.layout and stored.equal:  # class numbers saved as RGB
        return apply_rule((stored.values & 255).astype(np.uint8), path, rule)
    return _from_colours(stored.values, path, rule)


def _numbers(content: bytes) -> UInt8 | None:
    """(H, W) stored values of an ordinary PNG of one channel, without Pillow: what _indices gives for it.

    Rows that are stored as they are need unfolding only. Others are OpenCV's, if it is there, which refuses a file that
    lacks rows. None: Pillow's, and so are the messages.
    """
    header = png.read_header(content)
    if not header or header.kind == png.RGB or header.size[0] * header.size[1] > MAX_PIXELS:
        return None
    if png.looks_plain(content, header):
        rows = png.unfolded(content, header)
        if rows is None:
            return None
        table = np.frombuffer(rows, np.uint8).reshape(header.size[0], 1 + header.size[1])
        if not table[:, 0].any():
            return table[:, 1:].copy()
    decode = numbers_decoder()
    return decode(png.bare(content, header)) if decode and not header.unusual else None


def apply_rule(raw: npt.NDArray[np.generic], path: Path, rule: LabelRule) -> UInt8:
    """(H, W) stored values as uint8 train ids. path: what messages call them.

    Raises:
        DataError: a value that `rule` does not know.
    """
    lut = np.frombuffer(rule.lut, dtype=np.uint8)
    if raw.dtype == np.uint8 and (run := _run(rule.lut)):
        first, count = run
        label: UInt8 = raw.astype(np.uint8, copy=False) - np.uint8(first)
        if (label + np.uint8(1)).max() > count:
            raise _illegal_values(raw, path, rule)
        return label
    if raw.dtype == np.uint8:
        label = np.frombuffer(bytearray(raw.tobytes().translate(rule.lut[:256])), np.uint8).reshape(raw.shape)
    elif raw.min() >= 0 and raw.max() < len(lut):
        label = lut[raw.astype(np.intp)]
    else:
        raise _illegal_values(raw, path, rule)
    if (label == ILLEGAL).any():
        raise _illegal_values(raw, path, rule)
    return label


@functools.lru_cache
def _run(lut: bytes) -> tuple[int, int] | None:
    """(first, count) where classes 0..count-1 are the raw values from `first` on, the value before it (255 before 0) is
    ignored and no other is legal: most rules, and a subtraction is several times faster than a table. Else None."""
    first = lut[:256].find(0)
    turned = lut[first - 1 : 256] + lut[: first - 1] if first else lut[255:256] + lut[:255]
    count = turned.find(ILLEGAL) - 1
    expected = bytes((IGNORE, *range(count), *(ILLEGAL,) * (255 - count)))
    return (first, count) if first >= 0 and count > 0 and turned == expected else None


# ------------------------------------------------------------------------------------------------- RGB masks
def _from_colours(codes: npt.NDArray[np.uint32], path: Path, rule: LabelRule) -> UInt8:
    """Train ids of an (H, W) mask of colours 0xRRGGBB, each of which must be declared."""
    if not rule.palette:
        raise _undeclared_colours(codes, path, rule)
    colours = rule.palette + rule.ignore_colours
    if len(set(colours)) != len(colours):
        twice = next(colour for place, colour in enumerate(colours) if colour in colours[:place])
        raise LabelError(
            f"{path}: an RGB mask, but colour {list(twice)} is declared twice, so it does not name one class",
            "make the colours of data.palette and data.ignore_colours different, or convert the masks to indices",
            "colours",
        )
    known = np.array([packed(colour) for colour in colours], dtype=np.uint32)
    ids = np.array([*range(len(rule.palette)), *[IGNORE] * len(rule.ignore_colours)], dtype=np.uint8)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, codes, sorter=order), len(known) - 1)]
    unknown = known[place] != codes
    if unknown.any():
        raise _unknown_colours(codes, unknown, path, rule)
    label: UInt8 = ids[place]
    return label


def same_order(palette: Sequence[Colour], rule: LabelRule) -> bool:
    """Whether the colours of a palette mask are those of data.palette, each at the number of its class."""
    ids = {raw: meaning for raw, meaning in enumerate(rule.lut[: len(palette)]) if meaning < ILLEGAL}
    return len(ids) > 0 and all(palette[raw] == rule.palette[train_id] for raw, train_id in ids.items())


def _check_palette(values: npt.NDArray[np.generic], palette: Sequence[Colour], path: Path, rule: LabelRule) -> None:
    """Stop at a palette mask with the colours of data.palette at the numbers of other classes.

    A palette is judged as a whole, for a few of its colours may be declared by chance: PASCAL VOC's colour map holds
    most that anyone chooses. It speaks of the classes where all of its colours are declared, or where the numbers of
    the classes have just their colours; others say nothing.

    Raises:
        LabelError: a number means one class and its colour another.
    """
    if not palette or values.dtype != np.uint8 or same_order(palette, rule):
        return
    meant: dict[Colour, set[int]] = {}
    for colour, train_id in [*zip(rule.palette, range(len(rule.palette)), strict=True), *_ignored(rule)]:
        meant.setdefault(colour, set()).add(train_id)
    used = [raw for raw, count in enumerate(Image.fromarray(values).histogram()) if count and raw != IGNORE]
    shown = [raw for raw in used if raw < len(palette) and palette[raw] in meant]
    core = set(_without_padding(palette))
    known = shown == used and len(core) > 0 and meant.keys() >= core
    classes = [palette[raw] for raw, meaning in enumerate(rule.lut[: len(palette)]) if meaning < ILLEGAL]
    wrong = [raw for raw in shown if rule.lut[raw] not in meant[palette[raw]]]
    if not wrong or not (known or sorted(classes) == sorted(rule.palette)):
        return
    first = wrong[0]
    number, other = (_called(train_id, rule) for train_id in (rule.lut[first], min(meant[palette[first]])))
    raise LabelError(
        f"{path}: a palette mask in which {first} is {list(palette[first])}: by its number {number}, by its colour in "
        f"data.palette {other}",
        "if the colours are the classes, list data.classes with data.palette in the order of the masks' numbers, as "
        "`emaseg init FOLDER` writes them, or, only if the palettes of the masks differ among themselves, have them numbered "
        "alike by `emaseg convert FOLDER --out DIR`; if the numbers are, give data.palette the colours in their order",
        "colours",
    )


def _without_padding(palette: Sequence[Colour]) -> Sequence[Colour]:
    """The palette up to the colour that is repeated at its end; all of it where none is, nothing of a single colour."""
    size = len(palette)
    while size and palette[size - 1] == palette[-1]:
        size -= 1
    return palette if size >= len(palette) - 1 else palette[:size]


def _ignored(rule: LabelRule) -> list[tuple[Colour, int]]:
    return [(colour, IGNORE) for colour in rule.ignore_colours]


def _called(meaning: int, rule: LabelRule) -> str:
    """What the lut says, in words."""
    return "ignored" if meaning == IGNORE else "no class" if meaning == ILLEGAL else f'"{rule.classes[meaning]}"'


# ---------------------------------------------------------------------------------------------------- errors
def _illegal_values(raw: npt.NDArray[np.generic], path: Path, rule: LabelRule) -> LabelError:
    values, counts = np.unique(raw, return_counts=True)
    present = [int(value) for value in values]
    bad = {
        value: int(count)
        for value, count in zip(present, counts, strict=True)
        if not 0 <= value < len(rule.lut) or rule.lut[value] == ILLEGAL
    }
    listed = ", ".join(f"{value} ({counted(count, 'pixel')})" for value, count in list(bad.items())[:5])
    more = f" and {len(bad) - 5} more values" if len(bad) > 5 else ""
    blend = None if rule.layout else find_blend(raw)
    cause, hint = _smooth(blend, rule) if blend else _likely_cause(present, list(bad), rule)
    return LabelError(f"{path}: the mask holds {listed}{more}, but {rule.words}{cause and ': ' + cause}", hint)


def _smooth(blend: Blend, rule: LabelRule) -> tuple[str, str]:
    """Words for smooth edges, and the remedy, which is not to be found in the recipe."""
    cause = f"smooth edges: {blend.share:.1%} of the pixels hold {len(blend.values)} values between those of their neighbours"
    return cause, SHARP_EDGES


def _likely_cause(present: list[int], bad: list[int], rule: LabelRule) -> tuple[str, str]:
    """What probably happened to a mask with the values `present`, and the remedy."""
    count = rule.num_classes
    if rule.layout:
        return "", f"these are not {rule.layout}'s original label files; check the label folder"
    if bad[0] < 0:
        return "", "a recipe takes values from 0 to 65535: save the pixels below 0 as 255, with data.ignore = [255]"
    white = max(present)
    if present in ([0, white], [white]) and white in (255, 65535) and count >= 2:
        return (
            f"a binary mask (0 and {white})?",
            f"save the second class as 1, or set data.values = [0, {white}]; if {white} is unlabelled, data.ignore",
        )
    if bad == [255]:
        return "", "if 255 marks unlabelled pixels, set data.ignore = [255]"
    if bad == [1] and present[-1] == 1 and rule.lut[255] < ILLEGAL:
        return "is it a mask of 1 bit, whose 1 is 255 in the others?", "save it with 8 bits, and 1 as 255"
    if bad == [count] and 0 not in present:
        return "are the classes counted from 1?", "subtract 1 from the masks, or name value 0 first in data.classes"
    steps = {value % 17 for value in present if value != 255}
    if steps == {0} and len(present) > 2:
        return "multiples of 17: a 4-bit grey PNG, or a mask stretched for viewing?", "save the plain class numbers"
    if max(bad) < count + 3:
        return "", "name the missing classes in data.classes, or list the values in data.ignore"
    if len(present) > max(32, count):
        return "is this a photograph, or a mask that was resized smoothly?", "resize masks by nearest neighbour only"
    return "", "correct the masks, name the missing classes in data.classes, or list the values in data.ignore"


def _undeclared_colours(codes: npt.NDArray[np.uint32], path: Path, rule: LabelRule) -> LabelError:
    if rule.layout:
        return LabelError(
            f"{path}: a three-channel mask; {rule.layout}'s label files hold one channel of class numbers",
            "use the original files, not their coloured pictures",
            "colours",
        )
    blend = find_blend(codes, coloured=True)
    if blend:
        cause, hint = _smooth(blend, rule)
        return LabelError(f"{path}: a three-channel mask with {cause}", hint, "colours")
    return LabelError(
        f"{path}: a three-channel mask, and the recipe declares no colours",
        "declare data.palette (a colour for each class), or convert the masks to class numbers",
        "colours",
    )


def _unknown_colours(
    codes: npt.NDArray[np.uint32], unknown: npt.NDArray[np.bool_], path: Path, rule: LabelRule
) -> LabelError:
    values, counts = np.unique(codes[unknown], return_counts=True)
    lines = []
    for place in np.argsort(-counts)[:5]:
        code = int(values[place])
        colour = unpacked(code)
        near = _nearest_class(colour, rule.palette)
        lines.append(
            f"  {list(colour)} ({counted(int(counts[place]), 'pixel')}); "
            f'nearest: {list(rule.palette[near])}, "{rule.classes[near]}"'
        )
    blend = find_blend(codes, coloured=True)
    if blend:
        cause, hint = _smooth(blend, rule)
        lines.append(f"  {cause}")
    elif len(values) > 32:
        hint = "so many colours come from smooth edges or JPEG: export the masks again, as PNG without smoothing"
    else:
        hint = "correct data.palette, or list the colours in data.ignore_colours"
    colours = "a colour" if len(values) == 1 else f"{len(values)} colours"
    message = f"{path}: the mask holds {colours} that data.palette does not declare:"
    return LabelError(Lines(message, *lines), hint, "colours")


def _nearest_class(colour: Colour, palette: tuple[Colour, ...]) -> int:
    distance = np.square(np.array(palette, dtype=np.int64) - np.array(colour)).sum(axis=1)
    return int(distance.argmin())


def _all_ignored(path: Path, rule: LabelRule) -> LabelError:
    remedy = "" if rule.layout else "check data.ignore, or "
    return LabelError(
        f"{path}: every pixel of the mask is ignored ({rule.words}): nothing can be learnt or scored here",
        f"{remedy}take the image out of the list",
        "ignored",
    )


def _ranges(values: list[int]) -> str:
    """`0..20 and 255` from an ascending list."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return " and ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
