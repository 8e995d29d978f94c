"""What is damaged, and the cheapest real command that reads the whole of it."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import PLAIN, splice
from tests.fuzz.shapes import STRUCTURE


@dataclass(frozen=True, slots=True)
class Target:
    """Files of one kind.

    file: the valid one, below the seeds. tree: the folder of it that the command needs whole, linked into the case's;
    "" = the file alone. shape: of shapes.STRUCTURE. command: from the seeds and the file's place in the case's folder.
    digest: the mark of the format's digest. While a damaged file still holds it, a command that succeeds must give what
    the valid file gives. A file that was written anew without a digest is another file, and an honest one.
    """

    file: str
    shape: str
    command: Callable[[Path, Path], list[object]]
    tree: str = ""
    digest: bytes = b""
    slow: bool = False  # to make or to read


def _predict(seeds: Path, mutant: Path) -> list[object]:
    return ["predict", seeds / "photo.png", "--weights", mutant, "--out", "out", "--device", "cpu"]


def _predict_foreign(seeds: Path, mutant: Path) -> list[object]:
    return [*_predict(seeds, mutant), "--recipe", seeds / "tiny.toml"]


def _predict_image(seeds: Path, mutant: Path) -> list[object]:
    return ["predict", mutant, "--weights", seeds / "weights.pt", "--out", "out", "--device", "cpu"]


def _check(recipe: str) -> Callable[[Path, Path], list[object]]:
    return lambda seeds, mutant: ["check-data", seeds / f"{recipe}.toml", "--json", *_root(recipe)]


def _root(recipe: str) -> list[object]:
    below = {"voc": "voc/VOCdevkit/VOC2012"}.get(recipe, recipe)
    return ["--set", f'data.root="{below}"']


def _resume(seeds: Path, mutant: Path) -> list[object]:
    changes = [
        *("--set", "train.iterations=2"),
        *("--set", "train.log_every=1"),
        *("--set", "train.evaluate_every=100"),
    ]
    return ["train", seeds / "tiny.toml", "--out", "run", "--resume", "--device", "cpu", *changes]


def _check_recipe(seeds: Path, mutant: Path) -> list[object]:
    return ["check-data", mutant, "--sample", "1", "--json"]


def _dry_run(seeds: Path, mutant: Path) -> list[object]:
    return ["train", mutant, "--dry-run", "--device", "cpu"]


TARGETS: dict[str, Target] = {
    "checkpoint": Target("weights.pt", "zip", _predict, digest=b"emaseg sha256 "),
    "foreign": Target("foreign.pth", "zip", _predict_foreign),
    "program": Target("weights.pt2", "zip", _predict, digest=b"emaseg.sha256", slow=True),
    "onnx": Target("weights.onnx", "", _predict, digest=b"sha256", slow=True),
    "packed": Target("packed/train.h5", "", _check("packed"), tree="packed", digest=b"emaseg packed 2"),
    "sbd": Target("voc/VOCdevkit/benchmark_RELEASE/dataset/cls/c.mat", "", _check("voc"), tree="voc"),
    "cocostuff": Target("coco/annotations/COCO_train2014_000000000009.mat", "", _check("coco"), tree="coco"),
    "recipe": Target("tiny.toml", "toml", _check_recipe),
    "dry-run": Target("tiny.toml", "toml", _dry_run, slow=True),
    "mask": Target("folder/mask/a.png", "png", _check("folder"), tree="folder"),
    "png": Target("photo.png", "png", _predict_image),
    "palette": Target("palette.png", "png", _predict_image),
    "jpeg": Target("photo.jpg", "", _predict_image),
    "progressive": Target("progressive.jpg", "", _predict_image),
    "metrics": Target("run/metrics.csv", "csv", _resume, tree="run"),
    "environment": Target("run/env.json", "json", _resume, tree="run"),
    "last": Target("run/checkpoints/last.pt", "zip", _resume, tree="run", digest=b"emaseg sha256 "),
}


def damaged(name: str, number: int, seed: int, seeds: Path) -> tuple[bytes, str]:
    """The file of one case, and what was done to it: a function of target, number and seed, given the seed files.

    Number 0 is the valid file. Most get one kind of damage, some two or three.
    """
    target = TARGETS[name]
    data = (seeds / target.file).read_bytes()
    if number == 0:
        return data, "the valid file"
    rng = random.Random(f"{seed}/{name}/{number}")
    others = [path.read_bytes() for path in sorted(seeds.glob("photo.*")) + sorted(seeds.glob("*.p*"))]
    special = STRUCTURE[target.shape]
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutate = rng.choice(special) if special and rng.random() < 0.5 else rng.choice((*PLAIN, splice(others)))
        if not data:
            break
        try:
            data, how = mutate(rng, data)
        except Exception:  # noqa: BLE001  (damaged before: its structure is no longer to be read)
            data, how = rng.choice(PLAIN)(rng, data)
        done.append(how)
    return data, "; ".join(done)


def lay_out(name: str, data: bytes, seeds: Path, folder: Path) -> list[str]:
    """Put the file and what belongs to it into the case's folder, which is the current one; the command's arguments."""
    target = TARGETS[name]
    if target.tree:
        shutil.copytree(seeds / target.tree, folder / target.tree, copy_function=_link)
    mutant = folder / target.file
    mutant.unlink(missing_ok=True)
    mutant.parent.mkdir(parents=True, exist_ok=True)
    mutant.write_bytes(data)
    return [str(argument) for argument in target.command(seeds, mutant)]


def _link(source: str, place: str) -> None:
    """Small files are copied: a run's are added to in place."""
    if source.endswith((".csv", ".txt", ".json", ".toml")):
        shutil.copyfile(source, place)
    else:
        os.link(source, place)


def result(name: str, folder: Path, out: str) -> str:
    """What stands for the result of a command that succeeded: its masks, a run's weights, or its report."""
    masks = sorted((folder / "out").glob("*_mask.png"))
    run = folder / "run" / "metrics.csv"
    if masks:
        content = b"".join(path.read_bytes() for path in masks)
    elif name == "last" and run.is_file():
        with run.open(newline="") as file:
            rows = [{**row, "images_per_second": ""} for row in csv.DictReader(file)]
        content = repr(rows).encode()
    else:
        content = out.encode()
    return hashlib.sha256(content).hexdigest()
