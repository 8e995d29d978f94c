"""A fourth band that knows more than the colours: CamVid with a made band, from TIFF files to an exported network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.recipe import load_recipe
from tests.bands.made import as_tiff
from tests.data.made import real
from tests.helpers import emaseg

SIZE = (160, 120)  # width, height: a third of CamVid's
NOISE = 40.0  # levels of 0..255, where neighbouring classes are 23 apart
STEPS = 200
RECIPE = """
schema = 1
name = "{name}"
[model]
kind = "emanet"
bases = 16
attention_channels = 64
bottleneck_channels = 64
decoder_channels = 64
auxiliary_channels = 0
[backbone]
kind = "resnet14"
output_stride = 16
width = 16
stem_channels = [16, 16, 32]
weights = "none"
in_channels = {channels}
mean = {mean}
std = {std}
[data]
kind = "folder"
root = {root}
classes = {classes}
train_images = "train{channels}"
train_masks = "trainannot"
eval_images = "val{channels}"
eval_masks = "valannot"
ignore = [11]
range = [[0, 10000]]
[augment]
crop = [96, 128]
scale = [0.75, 1.5]
photometric = "none"
[optim]
lr = 0.05
weight_decay = 0.0005
[train]
iterations = {steps}
batch = 8
workers = 0
log_every = 20
[inference]
"""


def make_bands(root: Path) -> None:
    """CamVid's images as 16-bit TIFF files of three and of four bands, the last one the class with noise."""
    source, rng = real("camvid"), np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in (f"{split}3", f"{split}4", f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for path in sorted((source / split).glob("*.jpg")):
            colours = Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BOX)
            mask = Image.open(source / f"{split}annot" / f"{path.stem}.png").resize(SIZE, Image.Resampling.NEAREST)
            mask.save(root / f"{split}annot" / f"{path.stem}.png")
            labels = np.asarray(mask)
            band = 23.0 * (labels * 7 % 12) + rng.normal(0, NOISE, labels.shape)  # no order that a road and a car share
            levels = np.dstack([np.asarray(colours), band]).clip(0, 255)
            values = np.rint(levels * (10000 / 255)).astype(np.uint16)
            as_tiff(root / f"{split}3" / path.stem, values[..., :3])
            as_tiff(root / f"{split}4" / path.stem, values)


@pytest.mark.slow
@pytest.mark.realdata
def test_an_informative_band_raises_the_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the whole way of a fourth band: it reaches the network, the export and the prediction, and it counts."""
    pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    make_bands(tmp_path)
    classes = load_recipe("camvid_r50_d16").data.classes  # type: ignore[union-attr]
    scores = {}
    for channels in (3, 4):
        values = {"mean": [103.0] * channels, "std": [72.0] * channels, "classes": list(classes), "root": str(tmp_path)}
        texts = {key: json.dumps(value) for key, value in values.items()}
        file = tmp_path / f"bands{channels}.toml"
        file.write_text(RECIPE.format(name=file.stem, channels=channels, steps=STEPS, **texts))
        code, out, err = emaseg(capsys, "train", file)
        assert code == 0, err
        (run,) = (tmp_path / "runs" / file.stem).iterdir()
        code, out, err = emaseg(capsys, "eval", run, "--json")
        assert code == 0, err
        scores[channels] = json.loads(out)["miou"]
    with capsys.disabled():
        print(f"mIoU with 3 bands {scores[3]:.4f}, with 4 bands {scores[4]:.4f}")
    assert scores[4] > scores[3] + 0.05

    exported = tmp_path / "bands4.onnx"
    code, _, err = emaseg(capsys, "export", run, "--format", "onnx", "--out", exported)
    assert code == 0, err
    photos = sorted((tmp_path / "val4").iterdir())[:3]
    for weights, out_folder in ((run, "own"), (exported, "exported")):
        code, _, err = emaseg(capsys, "predict", *photos, "--weights", weights, "--out", out_folder)
        assert code == 0, err
    for photo in photos:
        one, other = (np.asarray(Image.open(tmp_path / f / f"{photo.stem}_mask.png")) for f in ("own", "exported"))
        assert one.shape == (SIZE[1], SIZE[0])
        assert np.mean(one == other) > 0.999
