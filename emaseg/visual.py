"""Pictures for people: a label map as a PNG, a photograph in class colours with its legend, a sheet of samples.

Room: visual. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from emaseg.lettering import Font, lettered, plain_font
from emaseg.words import printable

UInt8 = npt.NDArray[np.uint8]
Pixels = UInt8 | npt.NDArray[np.float32]
Colour = tuple[int, int, int]
# Swatch (None = the ignore hatch), name, remark in a lighter tone, and what stands for a name that no font has.
Entry = tuple[Colour | None, str, str, str]

IGNORE_COLOUR: Colour = (224, 224, 192)  # PASCAL VOC's border colour
PAPER: Colour = (250, 250, 248)
INK: Colour = (32, 34, 38)
SOFT_INK: Colour = (128, 132, 138)
HAIRLINE: Colour = (214, 214, 210)

_STRETCHED = (2, 98)  # percentiles that become black and white where an image has more than 8 bits
_LOOKED_AT = 1 << 18  # values that they are taken from

_BAND = 512  # rows that are painted at once
_COUNTED = 1 << 22  # labels that are counted at once

TINT = 140  # of 255: opacity of a class colour over the photograph
SHADE = 90  # the same for black classes (background): darkens what is not an object
MIN_SHARE = 0.005  # classes that cover less are left out of the legend


# -------------------------------------------------------------------------------------------------- label maps
def palette_png(labels: UInt8, palette: UInt8) -> Image.Image:
    """Labels (H, W) uint8 as a mode P picture: the indices are the class ids, the colours are for the viewer.

    palette: (K, 3) uint8 RGB. Index 255 (ignore) gets PASCAL VOC's border colour, other spare indices are black.
    """
    picture = Image.fromarray(labels)
    picture.putpalette(_table(palette).tobytes())
    return picture


def label_counts(labels: UInt8) -> npt.NDArray[np.int64]:
    """How many pixels have each label, (256,). By parts: counting makes eight bytes of each label."""
    flat, counts = labels.reshape(-1), np.zeros(256, np.int64)
    for start in range(0, flat.size, _COUNTED):
        counts += np.bincount(flat[start : start + _COUNTED], minlength=256)
    return counts


def _table(palette: UInt8) -> UInt8:
    """(256, 3): all 256 entries are written, so that the file has 8 bits a pixel whatever K is."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[255] = IGNORE_COLOUR
    table[: len(palette)] = palette
    return table


# ------------------------------------------------------------------------------------------------- photographs
def as_picture(image: Pixels) -> UInt8:
    """(H, W, 3) uint8 of an image (H, W, C) on 0..255, for people: its first three channels, or of one or two the first
    as grey. Float32, which sensors fill with dark values, is stretched from its 2nd to its 98th percentile."""
    shown = image if image.shape[2] == 3 else image[..., :3] if image.shape[2] > 3 else image[..., :1].repeat(3, axis=2)
    if shown.dtype != np.uint8:
        step = max(1, shown[..., 0].size // _LOOKED_AT)
        black, white = np.percentile(shown.reshape(-1, 3)[::step].astype(np.float32), _STRETCHED).tolist()
        shown = np.rint((shown - black) * (255 / max(white - black, 1e-6))).clip(0, 255).astype(np.uint8)
    return np.asarray(shown, np.uint8, order="C")


# ----------------------------------------------------------------------------------------------------- overlay
def overlay(image: Pixels, labels: UInt8, palette: UInt8, classes: Sequence[str]) -> Image.Image:
    """The photograph in class colours, regions outlined, with a legend of the classes present below it.

    Args:
        image: (H, W, C), shown as as_picture does. labels: (H, W) uint8.
        palette: (K, 3) uint8 RGB. classes: K names.

    Returns:
        An RGB picture of width W and of height H plus the legend.
    """
    image = as_picture(image)
    height, width = labels.shape
    legend = _legend(_present(labels, palette, classes), width, _font_size(width))
    whole = Image.new("RGB", (width, height + legend.height), PAPER)
    thickness = round(max(labels.shape) / 900)
    for top in range(0, height, _BAND):  # what is painted with takes several times the room of what is painted
        whole.paste(_painted(image, labels, palette, (top, min(top + _BAND, height)), thickness), (0, top))
    whole.paste(legend, (0, height))
    return whole


def _painted(image: UInt8, labels: UInt8, palette: UInt8, rows: tuple[int, int], thickness: int) -> Image.Image:
    """Rows of the photograph, tinted by class, black classes shaded, ignored pixels left alone, a bright line between
    regions; thickness: of that line, in pixels beyond the first."""
    above, below = min(1, rows[0]), min(thickness, len(labels) - rows[1])  # neighbours that the line depends on
    outline = _outline(labels[rows[0] - above : rows[1] + below], thickness)[above : above + rows[1] - rows[0]]
    image, labels = image[rows[0] : rows[1]], labels[rows[0] : rows[1]]
    opacity = np.full(256, TINT, dtype=np.uint8)
    opacity[: len(palette)][palette.max(axis=1) == 0] = SHADE
    opacity[255] = 0
    photo = Image.fromarray(image)
    tinted = Image.composite(palette_png(labels, palette).convert("RGB"), photo, Image.fromarray(opacity[labels]))
    white = Image.new("RGB", photo.size, (255, 255, 255))
    return Image.composite(white, tinted, Image.fromarray(outline))


def tinted(image: UInt8, labels: UInt8, palette: UInt8) -> Image.Image:
    """The photograph as `overlay` paints it, without a legend; shapes as there."""
    return _painted(image, labels, palette, (0, len(labels)), round(max(labels.shape) / 900))


def _outline(labels: UInt8, thickness: int, strength: int = 190) -> UInt8:
    """Where neighbouring labels differ, as a mask of 0 or `strength`; wider on larger pictures."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    for _ in range(thickness):
        edge[:, :-1] |= edge[:, 1:]
        edge[:-1] |= edge[1:]
    return edge.astype(np.uint8) * np.uint8(strength)


def _present(labels: UInt8, palette: UInt8, classes: Sequence[str]) -> list[Entry]:
    """Legend entries of the classes in `labels`, the largest first, without those that hardly show."""
    shares = label_counts(labels)[: len(classes)] / labels.size
    order = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    shown = [k for k in order if shares[k] >= MIN_SHARE] or order[:1]
    return [(_colour(palette[k]), classes[k], _percent(float(shares[k])), f"class {k}") for k in shown]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------------------- sheet
CELL = 360  # width of a column, and the largest height of a row
GAP = 12


def sheet(rows: Sequence[tuple[UInt8, UInt8, UInt8]], palette: UInt8, classes: Sequence[str]) -> Image.Image:
    """A page of samples: image, truth and prediction side by side, a row each, and one legend for all.

    Args:
        rows: (image (H, W, 3), truth (H, W), prediction (H, W)), all uint8; sizes may differ between rows.
        palette: (K, 3) uint8 RGB. classes: K names.

    Returns:
        An RGB picture. Every picture fits a column; ignored pixels (255) are hatched.
    """
    font = plain_font(19)
    width = 3 * CELL + 4 * GAP
    bands = [_sheet_row(row, palette) for row in rows]
    entries = _sheet_entries(rows, palette, classes)
    legend = _legend(entries, width, 17) if entries else Image.new("RGB", (width, GAP), PAPER)
    title = 19 + 2 * GAP
    page = Image.new("RGB", (width, title + sum(b.height + GAP for b in bands) + legend.height), PAPER)
    draw = ImageDraw.Draw(page)
    for column, text in enumerate(("image", "truth", "prediction")):
        draw.text((GAP + column * (CELL + GAP) + CELL / 2, title / 2), text, INK, font, anchor="mm")
    y = title
    for band in bands:
        page.paste(band, (0, y))
        y += band.height + GAP
    page.paste(legend, (0, y))
    return page


COLUMNS = 4  # of a contact sheet
CAPTION = 20  # height of the line below a picture


def contact_sheet(
    pictures: Sequence[tuple[Image.Image, str]], palette: UInt8, classes: Sequence[str], width: int
) -> Image.Image:
    """Pictures of at most `width` pixels in columns, each with its name below, and one legend of all classes.

    palette: (K, 3) uint8 RGB. classes: K names.
    """
    whole, shown = COLUMNS * (width + GAP) + GAP, 0
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    heights = [max(one.height for one, _ in row) + CAPTION + GAP for row in rows]
    legend = _legend([(_colour(palette[k]), name, "", f"class {k}") for k, name in enumerate(classes)], whole, 15)
    page = Image.new("RGB", (whole, GAP + sum(heights) + legend.height), PAPER)
    draw, y = ImageDraw.Draw(page), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (one, name) in enumerate(row):
            x = GAP + column * (width + GAP)
            page.paste(one, (x, y))
            shown += 1
            caption, font = lettered(printable(name), 13, f"image {shown}")
            draw.text((x, y + one.height + 3), _shortened(caption, width, font), SOFT_INK, font)
        y += height
    page.paste(legend, (0, y))
    return page


def _sheet_row(row: tuple[UInt8, UInt8, UInt8], palette: UInt8) -> Image.Image:
    """One sample, scaled to fit CELL x CELL and centred in its columns."""
    image, truth, prediction = row
    height, width = truth.shape
    factor = CELL / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    cells = [
        Image.fromarray(image).resize(size, Image.Resampling.LANCZOS),
        *(_flat(labels, palette, size) for labels in (truth, prediction)),
    ]
    band = Image.new("RGB", (3 * CELL + 4 * GAP, size[1]), PAPER)
    for column, cell in enumerate(cells):
        band.paste(cell, (GAP + column * (CELL + GAP) + (CELL - size[0]) // 2, 0))
    return band


def _flat(labels: UInt8, palette: UInt8, size: tuple[int, int]) -> Image.Image:
    """A label map in its colours at `size`; ignored pixels hatched."""
    small = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    ids = np.asarray(small)
    colours = palette_png(ids, palette).convert("RGB")
    return Image.composite(_hatch(size), colours, Image.fromarray((ids == 255).astype(np.uint8) * np.uint8(255)))


def _sheet_entries(rows: Sequence[tuple[UInt8, UInt8, UInt8]], palette: UInt8, classes: Sequence[str]) -> list[Entry]:
    """Every class in any truth or prediction, in the order of the class list; the hatch last."""
    counts = np.zeros(256, dtype=np.int64)
    for _, truth, prediction in rows:
        counts += np.bincount(truth.reshape(-1), minlength=256) + np.bincount(prediction.reshape(-1), minlength=256)
    entries: list[Entry] = [
        (_colour(palette[k]), name, "", f"class {k}") for k, name in enumerate(classes) if counts[k]
    ]
    return [*entries, (None, "ignored", "", "")] if counts[255] else entries


def _hatch(size: tuple[int, int]) -> Image.Image:
    """Fine diagonal lines, (width, height): plainly not a class colour."""
    y, x = np.ogrid[: size[1], : size[0]]
    line = (x + y) % 6 < 1
    return Image.fromarray(np.where(line[..., None], np.uint8(190), np.uint8(255)).repeat(3, axis=2))


# ------------------------------------------------------------------------------------------------------ legend
def _legend(entries: Sequence[Entry], width: int, size: int) -> Image.Image:
    """Swatches with names, in lines that fit `width`."""
    font = plain_font(size)
    pad, swatch, space = max(4, round(0.7 * size)), round(1.05 * size), round(0.45 * size)
    line_height = round(1.75 * size)
    room = max(1, width - 2 * pad - swatch - space)
    placed: list[tuple[int, int, Colour | None, str, Font, str]] = []
    x, y = pad, pad
    for colour, whole, remark, instead in entries:
        name, own = lettered(printable(whole), size, instead)
        name = _shortened(name, room - _text_width(font, f" {remark}") if remark else room, own)
        item = swatch + space + _text_width(own, name) + (space + _text_width(font, remark) if remark else 0)
        if x > pad and x + item > width - pad:
            x, y = pad, y + line_height
        placed.append((x, y, colour, name, own, remark))
        x += item + round(1.3 * size)
    strip = Image.new("RGB", (width, y + line_height + pad - (line_height - swatch) // 2), PAPER)
    draw = ImageDraw.Draw(strip)
    for left, top, colour, name, own, remark in placed:
        strip.paste(_swatch(colour, swatch), (left, top))
        middle = top + swatch / 2
        left += swatch + space
        draw.text((left, middle), name, INK, own, anchor="lm")
        draw.text((left + _text_width(own, name) + space, middle), remark, SOFT_INK, font, anchor="lm")
    return strip


def _swatch(colour: Colour | None, side: int) -> Image.Image:
    """A rounded square with a hairline around it; drawn large and scaled down for smooth corners."""
    zoom = 4
    big = side * zoom
    fill = _hatch((side, side)).resize((big, big), Image.Resampling.NEAREST) if colour is None else None
    shape = Image.new("L", (big, big), 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, big - 1, big - 1), big // 4, 255)
    inner = Image.new("L", (big, big), 0)
    ImageDraw.Draw(inner).rounded_rectangle((zoom, zoom, big - 1 - zoom, big - 1 - zoom), big // 4 - zoom, 255)
    square = Image.new("RGB", (big, big), PAPER)
    square.paste(HAIRLINE, (0, 0), shape)
    square.paste(fill if fill is not None else colour or PAPER, (0, 0), inner)
    return square.resize((side, side), Image.Resampling.LANCZOS)


def _shortened(text: str, room: float, font: Font) -> str:
    """`text`, cut with dots if it is wider than `room` pixels."""
    if _text_width(font, text) <= room:
        return text
    while len(text) > 1 and _text_width(font, text + "...") > room:
        text = text[:-1]
    return text + "..."


def _text_width(font: Font, text: str) -> int:
    return round(font.getlength(text))


def _font_size(width: int) -> int:
    """Readable at the picture's own size: about 1/36 of its width, 11 pixels at least."""
    return min(72, max(11, round(width / 36)))


def _colour(rgb: UInt8) -> Colour:
    return int(rgb[0]), int(rgb[1]), int(rgb[2])
