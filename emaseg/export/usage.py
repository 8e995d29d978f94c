"""How an exported file is used: emaseg's own command, and a few lines of Python that need no emaseg.

Room: export; never torch.
"""

from __future__ import annotations

from pathlib import Path

from emaseg.exported.info import INPUT, SUFFIXES, FileInfo, needed_overrides
from emaseg.words import quoted, quoted_path


def command(path: Path, info: FileInfo) -> str:
    """The `emaseg predict` that runs the file, with the settings its protocol needs."""
    extra = [f" --set {quoted(text)}" for text in needed_overrides(info.recipe.inference, info.include)]
    return f"emaseg predict photo.jpg --weights {quoted_path(path)}{''.join(extra)}"


def snippet(path: Path, info: FileInfo) -> str:
    """Python that labels photo.jpg with onnxruntime (or torch), numpy and pillow alone."""
    torch = path.suffix.lower() == SUFFIXES["torch"]
    return "\n".join([*_opening(path, torch), *_image(info), *_run(torch, info), *_saving(info)])


def _opening(path: Path, torch: bool) -> list[str]:
    if torch:
        opened = [f'program = torch.export.load({str(path)!r}, extra_files=(extra := {{"emaseg.json": ""}})).module()']
        about = 'about = json.loads(extra["emaseg.json"])'
        return ["import json", "import numpy as np, torch", "from PIL import Image", "", *opened, about]
    return [
        "import json",
        "import numpy as np, onnxruntime",
        "from PIL import Image",
        "",
        f"session = onnxruntime.InferenceSession({str(path)!r})",
        "about = session.get_modelmeta().custom_metadata_map  # classes, palette, mean, std, recipe ...",
    ]


def _image(info: FileInfo) -> list[str]:
    size = "" if info.shape is None else f".resize(({info.shape[1]}, {info.shape[0]}))"
    lines = [f'photo = Image.open("photo.jpg").convert("RGB"){size}', *_fitted(info), "x = np.asarray(seen)"]
    if "normalize" not in info.include:
        lines.append('x = ((x - json.loads(about["mean"])) / json.loads(about["std"])).astype(np.float32)')
    return [*lines, "x = np.ascontiguousarray(x.transpose(2, 0, 1)[None])"]


def _fitted(info: FileInfo) -> list[str]:
    """The photo as the recipe's protocol shows it to the network."""
    limits = info.recipe.inference.resize_long_short
    if not limits or info.shape is not None or info.output == "labels" or not info.recipe.inference.keep_ratio:
        return ["seen = photo"]
    return [
        f"scale = min({limits[0]} / max(photo.size), {limits[1]} / min(photo.size))",
        "seen = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BILINEAR)",
    ]


def _run(torch: bool, info: FileInfo) -> list[str]:
    result = "program(torch.from_numpy(x))[0].numpy()" if torch else f'session.run(None, {{"{INPUT}": x}})[0][0]'
    if info.output == "labels":
        return [f"labels = {result}"]
    return [
        *(["# nearly: this network aligns corners, Pillow does not; --include argmax is exact"] * info.align_corners),
        f"logits = {result}",
        "logits = [Image.fromarray(a).resize(photo.size, Image.Resampling.BILINEAR) for a in logits]",
        "labels = np.stack([np.asarray(a) for a in logits]).argmax(0).astype(np.uint8)",
    ]


def _saving(info: FileInfo) -> list[str]:
    return [
        "mask = Image.fromarray(labels)",
        'mask.putpalette(np.array(json.loads(about["palette"]), np.uint8).tobytes())',
        'mask.save("mask.png")',
    ]
