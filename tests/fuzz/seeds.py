"""The valid files: made at start by our own code, small, from fixed random numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe, parse_recipe
from emaseg.weights.convert import FORMATS, rename
from tests.data.pipeline_golden import sample_image
from tests.data.sets.test_cocostuff import tree_10k
from tests.data.sets.test_packed import CLASSES, files, packed_file
from tests.data.sets.test_sbd import tree
from tests.helpers import TINY, run

SHAPES = '[data]\nkind = "shapes"\nsize = [32, 32]\ntrain_images = 20\neval_images = 4\n'
DATA = {
    "packed": f'[data]\nkind = "packed"\nroot = "."\nclasses = {list(CLASSES)}\n'.replace("'", '"'),
    "folder": (
        '[data]\nkind = "folder"\nroot = "."\nclasses = ["ground", "crack", "leaf"]\ntrain_images = "image"\n'
        'train_masks = "mask"\neval_images = "image"\neval_masks = "mask"\n'
    ),
    "voc": '[data]\nkind = "voc"\nroot = "VOCdevkit/VOC2012"\n',
    "coco": '[data]\nkind = "cocostuff10k"\nroot = "."\n',
}


def make_apart(seeds: Path, *, exports: bool, trained: bool) -> None:
    """As `make`, in a process of its own: training and exporting start threads, and whoever has some cannot fork well.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    pid = os.fork()
    if pid == 0:
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                make(seeds, exports=exports, trained=trained)
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the valid files cannot be made")


def make(seeds: Path, *, exports: bool, trained: bool) -> None:
    """Everything that targets.py reads, below `seeds`; exported files, which take half a minute, and a run's folder if wanted."""
    seeds.mkdir(parents=True, exist_ok=True)
    recipe = small()
    (seeds / "tiny.toml").write_text(TINY)
    for name, text in DATA.items():
        (seeds / f"{name}.toml").write_text(TINY.replace(SHAPES, text).replace("batch = 4", "batch = 2"))
    _pictures(seeds)
    model = _network(recipe)
    save_checkpoint(seeds / "weights.pt", Checkpoint(model.state_dict(), {}, 0, 0, {}, {}, {}, recipe))
    _foreign(model, seeds / "foreign.pth")
    if exports:
        from tests.exporting.made import exported  # takes seconds to import

        exported(recipe, seeds / "weights.pt2", "torch")
        if _has_onnx():
            exported(recipe, seeds / "weights.onnx", "onnx")
    packed = seeds / "packed"
    packed.mkdir()
    packed_file(files(seeds / "files", 3), packed / "train.h5")
    packed_file(files(seeds / "files", 3, seed=1), packed / "eval.h5")
    tree(seeds / "voc", "../benchmark_RELEASE/dataset")
    (seeds / "coco").mkdir()
    tree_10k(seeds / "coco")
    _folder(seeds / "folder")
    if trained:
        run(
            parse_recipe(
                TINY, "tiny.toml", ("train.iterations=2", "train.log_every=1", "train.evaluate_every=100")
            ).recipe,
            seeds / "run",
            stop_after=1,
        )


def small() -> Recipe:
    return parse_recipe(TINY, "tiny.toml").recipe


def _has_onnx() -> bool:
    return all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))


def _pictures(seeds: Path) -> None:
    """One picture in several formats."""
    picture = Image.fromarray(sample_image(40, 56))
    picture.save(seeds / "photo.png")
    picture.save(seeds / "photo.jpg", quality=80)
    picture.save(seeds / "progressive.jpg", quality=80, progressive=True)
    picture.convert("P").save(seeds / "palette.png")


def _network(recipe: Recipe) -> Network:
    """Random weights; norms as if trained."""
    torch.manual_seed(0)
    model = build_model(recipe).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
    return model


def _foreign(model: Network, path: Path) -> None:
    """As sssegmentation saves a network, under its names for the parts."""
    names = {ours: theirs for theirs, ours in FORMATS["ssseg"][2].items()}
    state = model.state_dict()
    torch.save({"epoch": 1, "model": {rename(name, names): tensor for name, tensor in state.items()}}, path)


def _folder(root: Path) -> None:
    """A data set of three pictures with masks."""
    rng = np.random.default_rng(0)
    for name in "abc":
        for part, picture in (
            ("image", Image.fromarray(sample_image(16, 20))),
            ("mask", Image.fromarray(rng.integers(0, 3, (16, 20), np.uint8))),
        ):
            (root / part).mkdir(parents=True, exist_ok=True)
            picture.save(root / part / f"{name}.png")
