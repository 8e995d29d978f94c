"""From a server to the published logits: downloaded by the command, found by its recipe, loaded strictly, run.

The files hold the golden key lists of the published systems in these systems' own formats. That the released files
themselves look so could not be checked: none was ever downloaded.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.reference import open_model, resolve
from emaseg.weights.download import fetch
from emaseg.weights.released import by_name
from tests.data.made import image, label
from tests.models.test_emanet_variants import AUTHORS
from tests.parity import GOLDEN, filled_file, golden, images, worst
from tests.shared import published_file
from tests.weights.server import Server, entry

main = importlib.import_module("emaseg.cli").main

# recipe -> golden fixture, and the array of its low-resolution logits
MMSEG = {"mmseg_cityscapes_r50_d8_512x1024_80k": ("mmseg/mmseg_r50_512x1024", "logits_low")}
SSSEG = {
    "voc_r50_d8": ("ssseg/emanet_r50d8_voc", "eval_logits"),
    "ade20k_r101_d16": ("ssseg/emanet_r101d16_ade20k", "eval_logits"),
    "memorynet_cityscapes_s101_d8": ("ssseg/memorynet_s101d8_cityscapes", "eval_logits"),
    "memorynet_cocostuff10k_hrnetv2p_w48": ("ssseg/memorynet_hr48_cocostuff10k_norelu", "eval_logits"),
}


def download_and_run(
    name: str, fixture: str, array: str, factory: pytest.TempPathFactory, folder: Path, server: Server
) -> None:
    """Serve, `download-weights`, load by the recipe's name alone, compare the logits, `predict` and `eval` an image."""
    server.files[f"/{by_name(name).file}"] = published_file(factory, fixture, folder).read_bytes()
    assert main(["download-weights", name, "-q"]) == 0
    server.files.clear()

    resolved = resolve(name)
    model = open_model(resolved, torch.device("cpu"))
    meta = GOLDEN / f"{fixture}.meta.json"
    height, width = json.loads(meta.read_text())["hw"] if meta.exists() else (129, 161)
    with torch.inference_mode():
        logits = model(images((1, 3, height, width), 0))
    assert worst(logits, golden(f"{fixture}.npz")[array]) <= 1e-4

    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    small = ["--set", "inference.resize_long_short=[]", "--device", "cpu", "-q"]
    assert main(["predict", str(folder / "photo.png"), "--recipe", name, "--out", str(folder / "out"), *small]) == 0
    with Image.open(folder / "out/photo_mask.png") as mask:
        assert mask.size == (56, 40)

    image(folder / "set/images/a.png", (40, 56))
    label(folder / "set/masks/a.png", [0, 1, 255], (40, 56))
    names = ", ".join(f'"{i}"' for i in range(model.num_classes))
    parts = "".join(f', {part}_images="images", {part}_masks="masks"' for part in ("train", "eval"))
    data = f'data={{kind="folder", root="{(folder / "set").as_posix()}", classes=[{names}]{parts}}}'
    assert main(["eval", name, "--set", data, "--out", str(folder / "score"), *small]) == 0
    assert json.loads((folder / "score/metrics.json").read_text())["images"] == 1


@pytest.mark.parametrize("name", [*MMSEG, *(pytest.param(name, marks=pytest.mark.slow) for name in SSSEG)])
def test_download_to_logits(
    name: str,
    server: Server,
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Protects the whole way: by default with the smallest of the published networks, else with one of each kind."""
    monkeypatch.setenv("EMASEG_MIRROR", server.url(""))
    download_and_run(name, *(MMSEG | SSSEG)[name], tmp_path_factory, tmp_path, server)
    (cache / by_name(name).file).unlink()  # hundreds of MB that no other test needs


@pytest.mark.slow
def test_download_to_logits_of_the_authors(server: Server, cache: Path, tmp_path: Path) -> None:
    """Protects the third format: no row's file is of it, but the authors' own checkpoints are."""
    server.files["/owner/authors.pth"] = filled_file("mmseg/official_r50", tmp_path / "served.pth").read_bytes()
    wanted = entry(server, name="authors", format="authors", megabytes=140)
    *_, note = fetch(wanted)
    assert str(cache / "authors.pth") in str(note)
    with torch.device("meta"):
        model = emaseg.build_model(emaseg.load_recipe("voc_r50_d8", AUTHORS))
    assert emaseg.load_weights(model, cache / "authors.pth") == "authors"
    with torch.inference_mode():
        logits = model.eval()(images((1, 3, 129, 161), 0))
    assert worst(logits, golden("mmseg/official_r50.npz")["logits_low"]) <= 1e-5
