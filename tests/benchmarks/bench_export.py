"""Which published network exports to which format, each proven on four sizes: the table in README.md beside it.

    python -m tests.benchmarks.bench_export [MODEL ...]

Weights are the parity tests' (deterministic, in the published systems' own files), read as a user's foreign file would
be. Every cell is one `export`: the size of the file, the largest difference of a logit as a share of their range, and
the least share of pixels that agree; **fails**: it was not within tolerance, and a user would be left without the file; or
it is refused, for a reason given below the table. Prints a row as soon as it is known. Needs 8 GB for ViT-L.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

import emaseg
from emaseg.errors import UserError
from emaseg.exporting.export import Exported, export
from emaseg.exporting.request import make_request
from emaseg.recipe import Recipe
from emaseg.reference import Resolved, open_network
from emaseg.words import size
from tests.models.test_emanet_variants import AUTHORS
from tests.parity import filled_file

THREADS = 2
INSIDE = "normalize,argmax"
MODELS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # name: (recipe, overrides, the fixture with its tensors)
    "EMANet R-50-D8": ("voc_r50_d8", (), "ssseg/emanet_r50d8_voc"),
    "EMANet R-101-D16": ("ade20k_r101_d16", (), "ssseg/emanet_r101d16_ade20k"),
    "EMANet R-50-D8, mmsegmentation": ("mmseg_cityscapes_r50_d8_512x1024_80k", (), "mmseg/mmseg_r50_512x1024"),
    "EMANet R-50, authors": ("voc_r50_d8", AUTHORS, "mmseg/official_r50"),
    "MemoryNet R-50-D8": ("memorynet_ade20k_r50_d8", (), "ssseg/memorynet_r50d8_ade20k"),
    "MemoryNet S-101-D8": ("memorynet_cityscapes_s101_d8", (), "ssseg/memorynet_s101d8_cityscapes"),
    "MemoryNet HRNet-W48": ("memorynet_cocostuff10k_hrnetv2p_w48", (), "ssseg/memorynet_hr48_cocostuff10k_norelu"),
    "MemoryNet ViT-L": ("memorynet_ade20k_vit_large", (), "ssseg/memorynet_vitl_ade20k"),
}
CELLS: dict[str, dict[str, str]] = {
    "`.pt2` fp32": {"format_": "torch"},
    "`.pt2` uint8 to ids": {"format_": "torch", "include": INSIDE},
    "`.pt2` bf16": {"format_": "torch", "precision": "bf16"},
    "`.pt2` int8": {"format_": "torch", "precision": "int8"},
    "ONNX fp32": {"format_": "onnx"},
    "ONNX uint8 to ids": {"format_": "onnx", "include": INSIDE},
    "ONNX fp16": {"format_": "onnx", "precision": "fp16"},
    "ONNX bf16": {"format_": "onnx", "precision": "bf16"},
    "weights": {"format_": "weights"},
}


def cell(recipe: Recipe, weights: Path, options: dict[str, str], folder: Path, notes: list[str]) -> str:
    """What became of one export, for people; why a format is refused goes into the notes below the table."""
    try:
        request = make_request(**options)  # type: ignore[arg-type]
    except UserError as error:
        reason = error.message.partition(": ")[2].partition(";")[0]
        if reason not in notes:
            notes.append(reason)
        return f"refused ({notes.index(reason) + 1})"
    network = open_network(Resolved(recipe, weights, None, recipe))
    path = folder / f"exported{request.suffix}"
    *_, done = export(network, recipe, request, path)
    assert isinstance(done, Exported)
    path.unlink(missing_ok=True)
    least = min(check.agreement for check in done.checks)
    largest = max((c.difference for c in done.checks if c.difference is not None), default=None)
    logits = "" if largest is None else f"{largest:.0e}, "
    return f"{size(done.size)}: {logits}{100 * least:.2f}%{'' if done.passed else ' **fails**'}"


def main(names: list[str]) -> None:
    torch.set_num_threads(THREADS)
    print(f"| network | {' | '.join(CELLS)} |")
    print(f"| --- |{' --- |' * len(CELLS)}", flush=True)
    notes: list[str] = []
    for name in names or MODELS:
        row, overrides, fixture = MODELS[name]
        recipe = emaseg.load_recipe(row, overrides)
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            weights = filled_file(fixture, Path(folder) / "weights.pth")
            for title, options in CELLS.items():
                began = time.perf_counter()
                cells.append(cell(recipe, weights, options, Path(folder), notes))
                print(f"  {name}, {title}: {cells[-1]}  ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()
    for number, note in enumerate(notes, 1):
        print(f"({number}) {note[0].upper()}{note[1:]}.")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
