"""How an exported file is used: emaseg's own command, and a short Python program that needs no emaseg.

Room: exporting; never torch. Legend: H W photo, h w what the network sees, K classes.

The program does what `emaseg predict` does with the file, step by step: the photo upright and on white, brought to the
recipe's size without smoothing, normalised, run whole or by windows, and the logits brought to the photo's size before
the class is chosen. tests/exporting/test_snippet.py compares both, pixel by pixel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

from emaseg.exported.info import INPUT, SUFFIXES, FileInfo, needed_overrides, supported_protocol
from emaseg.recipe.channels import is_rgb8, ranges
from emaseg.recipe.data import num_classes
from emaseg.recipe.inference import Inference
from emaseg.words import quoted, quoted_path

_ONNX = """
    import json, sys
    import numpy as np, onnxruntime
    from PIL import Image, ImageOps

    session = onnxruntime.InferenceSession({path!r})
    about = session.get_modelmeta().custom_metadata_map  # classes, palette, mean, std, resize, recipe ...


    def run(x):
        return session.run(None, {{{input!r}: np.ascontiguousarray(x[None])}})[0][0]
"""
_TORCH = """
    import json, sys
    import numpy as np, torch
    from PIL import Image, ImageOps

    program = torch.export.load({path!r}, extra_files=(extra := {{"emaseg.json": ""}})).module()
    about = json.loads(extra["emaseg.json"])  # classes, palette, mean, std, resize, recipe ...


    @torch.inference_mode()
    def run(x):
        return program(torch.from_numpy(np.ascontiguousarray(x[None])))[0].numpy()
"""

_CENTRES = "np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)"
_PLACES = '''
    def places(old, new{corners}):
        """For each new pixel the two old ones beside it and the weight of the second: bilinear, without smoothing."""
        at = {at}
        first = at.astype(int)
        return first, np.minimum(first + 1, old - 1), (at - first).astype(np.float32)
'''

_SCALED = '''
    def scaled(x, height, width):
        """The photo at another size, in whole numbers as OpenCV does it: (3, H, W) -> (3, height, width)."""
        (y0, y1, y), (x0, x1, x_) = places(x.shape[1], height), places(x.shape[2], width)
        y, x_ = np.rint(2048 * y[:, None]).astype(int), np.rint(2048 * x_).astype(int)
        x = (x[:, :, x0] * (2048 - x_) + x[:, :, x1] * x_) >> 4
        x = (x[:, y0] * (2048 - y) >> 16) + (x[:, y1] * y >> 16)
        return ((x + 2) >> 2).astype(np.uint8)
'''

_RESIZED = '''
    def resized(a, height, width, rows=slice(None){corners}):
        """(..., h, w) -> (..., height, width), or some of its rows."""
        y0, y1, y = (part[rows] for part in places(a.shape[-2], height{pass_on}))
        x0, x1, x = places(a.shape[-1], width{pass_on})
        a = a[..., y0, :] * (1 - y[:, None]) + a[..., y1, :] * y[:, None]
        return a[..., x0] * (1 - x) + a[..., x1] * x
'''

_SOFTMAX = """
    def softmax(a):
        a = np.exp(a - a.max(0))
        return a / a.sum(0)
"""

_SPANS = '''
    def spans(length, window, stride):
        """Where the windows along one side begin and end; the last is moved back inside."""
        ends = [min(i * stride + window, length) for i in range(max(length - window + stride - 1, 0) // stride + 1)]
        return [(max(end - window, 0), end) for end in ends]
'''

_PHOTO = """
    with Image.open(name) as file:
        photo = ImageOps.exif_transpose(file)
    if photo.mode.startswith("I"):  # 16 bits
        photo = Image.fromarray(((np.asarray(photo).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    x = np.asarray(photo.convert("RGB")).transpose(2, 0, 1)
    height, width = x.shape[1:]
"""

_GREY = """
    with Image.open(name) as file:
        x = np.asarray(ImageOps.exif_transpose(file))[None]  # an .npy file: np.load("image.npy")[None]
    height, width = x.shape[1:]
"""

_BANDS = """
    x = tifffile.imread(name)  # an .npy file: np.load(name)
    x = x if x.shape[0] == {channels} else x.transpose(2, 0, 1)  # {channels} channels, height, width
    height, width = x.shape[1:]
"""

_MAPPED = """
    low, high = np.array(json.loads(about["range"]), np.float32).T[:, :, None, None]  # they become 0 and 255
    x = ((x.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
"""

_SCALED_FLOATS = '''
    def scaled(x, height, width):
        """The image at another size: (C, H, W) -> (C, height, width)."""
        (y0, y1, y), (x0, x1, x_) = places(x.shape[1], height), places(x.shape[2], width)
        x = x[:, :, x0] * (1 - x_) + x[:, :, x1] * x_
        return x[:, y0] * (1 - y[:, None]) + x[:, y1] * y[:, None]
'''

_NORMALISE = """
    mean, std = (np.array(json.loads(about[key]))[:, None, None] for key in ("mean", "std"))
    x = ((x - mean) / std).astype(np.float32)
"""

_SLIDE = """
    total, cover = 0, np.zeros(x.shape[1:], np.float32)
    for top, bottom in spans(x.shape[1], {window[0]}, {stride[0]}):
        for left, right in spans(x.shape[2], {window[1]}, {stride[1]}):
            part = {part}
            whole = np.zeros((len(part), *cover.shape), np.float32)
            whole[:, top:bottom, left:right] = part
            total = total + whole
            cover[top:bottom, left:right] += 1
    logits = total / cover
"""

_DECIDE = """
    bands = np.array_split(np.arange(height), height // 32 + 1)  # the whole would be {classes} numbers for each pixel
    labels = np.concatenate([resized(logits, height, width, rows{corners}).argmax(0) for rows in bands]).astype(np.uint8)
"""

_NEAREST = """
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip((height, width), labels.shape))
    labels = labels[rows][:, columns]
"""

_SAVE = """
    mask = Image.fromarray(labels)
    mask.putpalette(np.array(json.loads(about["palette"]), np.uint8).tobytes())
    mask.save("mask.png")
    print("mask.png")
"""


def command(path: Path, info: FileInfo) -> str:
    """The `emaseg predict` that runs the file, with the settings its protocol needs."""
    extra = [f" --set {quoted(text)}" for text in needed_overrides(info.recipe.inference, info.include, info.shape)]
    return f"emaseg predict {_file(info)} --weights {quoted_path(path)}{''.join(extra)}"


def install(path: Path, info: FileInfo) -> str:
    """The command that installs what the program of `snippet` imports."""
    bands = " tifffile imagecodecs" if _is_bands(info) else ""
    return f"pip install {'torch' if _is_torch(path) else 'onnxruntime'} numpy 'pillow>=10.1'{bands}"


def snippet(path: Path, info: FileInfo) -> str:
    """Python that labels the image it is given (else photo.jpg) as `command` does, with onnxruntime (or torch), numpy and
    pillow alone; images of other channels are read with tifffile."""
    inference = supported_protocol(info.recipe.inference, info.include, info.shape)
    one = replace(inference, scales=(1.0,), flip=False)
    opening = _TORCH if _is_torch(path) else _ONNX
    opening = opening.replace("from PIL", "import tifffile\n    from PIL") if _is_bands(info) else opening
    parts = [f"# {install(path, info)}", _block(opening.format(path=str(path), input=INPUT)), *_functions(info, one)]
    named = f'name = sys.argv[1] if sys.argv[1:] else "{_file(info)}"\n'
    body = [named, *_read(info), *_seen(info, one)]
    if one != inference:
        body.append("# at one scale: emaseg predict averages over scales or flipped images, as the recipe says\n")
    body += _labels(info, one) if info.output == "labels" else _logits(info, one)
    return "\n".join(parts) + "\n\n" + "".join(body) + _block(_SAVE).rstrip("\n")


def _is_bands(info: FileInfo) -> bool:
    """Whether an image has channels that pillow does not read."""
    return not is_rgb8(info.recipe) and info.recipe.backbone.in_channels != 1


def _file(info: FileInfo) -> str:
    if is_rgb8(info.recipe):
        return "photo.jpg"
    return "photo.tif" if _is_bands(info) else "photo.png"


def _read(info: FileInfo) -> list[str]:
    """From the file to x: (C, H, W) on 0..255."""
    if is_rgb8(info.recipe):
        return [_block(_PHOTO)]
    read = _BANDS.format(channels=info.recipe.backbone.in_channels) if _is_bands(info) else _GREY
    return [_block(read), *([_block(_MAPPED)] if ranges(info.recipe.data) else [])]


def _block(text: str) -> str:
    return dedent(text).strip("\n") + "\n"


def _is_torch(path: Path) -> bool:
    return path.suffix.lower() == SUFFIXES["torch"]


def _functions(info: FileInfo, inference: Inference) -> list[str]:
    """The functions that the rest calls, each with two empty lines in front."""
    labels, corners = info.output == "labels", _corners(info)
    needed = []
    if not labels or _resizes(info, inference):
        at = f"np.arange(new) * ((old - 1) / max(new - 1, 1)) if corners else {_CENTRES}" if corners else _CENTRES
        words = {"corners": ", corners=False", "pass_on": ", corners"} if corners else {"corners": "", "pass_on": ""}
        needed.append(_PLACES.format(at=at, corners=words["corners"]))
        floats = bool(ranges(info.recipe.data))
        needed += [_SCALED_FLOATS if floats else _SCALED] if _resizes(info, inference) else []
        needed += [] if labels else [_RESIZED.format(**words)]
    if not labels and inference.average == "probs_before_resize":
        needed.append(_SOFTMAX)
    if inference.mode == "slide":
        needed.append(_SPANS)
    return [f"\n{_block(text)}" for text in needed]


def _corners(info: FileInfo) -> bool:
    return info.align_corners and info.output != "labels"


def _resizes(info: FileInfo, inference: Inference) -> bool:
    return bool(inference.resize_long_short) or info.fixed_size(inference) is not None


def _seen(info: FileInfo, inference: Inference) -> list[str]:
    """The photo as the recipe's protocol shows it to the network."""
    lines = []
    fixed, limits = info.fixed_size(inference), inference.resize_long_short
    if fixed:
        lines = [f"h, w = {fixed[0]}, {fixed[1]}  # the only size that the file takes"]
    elif limits and inference.keep_ratio:
        lines = [
            f"scale = min({max(limits)} / max(height, width), {min(limits)} / min(height, width))  # the recipe's size",
            "h, w = (max(1, int(side * scale + 0.5)) for side in (height, width))",
        ]
    elif limits:
        long, short = max(limits), min(limits)
        lines = [f"h, w = ({long}, {short}) if height > width else ({short}, {long})  # the recipe's size"]
    if lines:
        lines.append("if (h, w) != (height, width):")
        lines.append("    x = scaled(x, h, w)")
    text = "".join(f"{line}\n" for line in lines)
    if "normalize" not in info.include:
        text += _block(_NORMALISE)
    if inference.pad == "8k+1":
        text += "h, w = x.shape[1:]\nx = np.pad(x, ((0, 0), (0, -(h - 1) % 8), (0, -(w - 1) % 8)))\n"
    return [text]


def _labels(info: FileInfo, inference: Inference) -> list[str]:
    return ["labels = run(x)\n", *([_block(_NEAREST)] * _resizes(info, inference))]


def _logits(info: FileInfo, inference: Inference) -> list[str]:
    """From x to labels where the file gives logits."""
    corners = ", corners=True" if _corners(info) else ""
    chances = inference.average == "probs_before_resize"
    decide = _block(_DECIDE.format(classes=num_classes(info.recipe.data), corners=corners))
    if inference.mode == "slide":
        part = f"resized(run(x[:, top:bottom, left:right]), bottom - top, right - left{corners})"
        part = f"softmax({part})" if chances else part
        return [_block(_SLIDE.format(window=inference.window, stride=inference.stride, part=part)), decide]
    lines = ["logits = softmax(run(x))" if chances else "logits = run(x)"]
    cut = inference.pad == "8k+1"
    if cut or (inference.logits_path == "via_input" and _resizes(info, inference)):
        lines.append(f"logits = resized(logits, *x.shape[1:]{corners}){'[:, :h, :w]' if cut else ''}")
    return ["".join(f"{line}\n" for line in lines), decide]
