"""Files that are no weight files are called what they are, wherever weights may be named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.errors import WeightsError
from emaseg.inference.predict import Predictor
from emaseg.reference import open_network, resolve
from emaseg.weights.init_from import init_from_file
from emaseg.weights.kind import check_kind


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("JPEG", "a JPEG image"),
        ("PNG", "a PNG image"),
        ("WEBP", "a WebP image"),
        ("TIFF", "a TIFF image"),
        ("GIF", "a GIF image"),
        ("BMP", "a BMP image"),
    ],
)
def test_an_image_is_called_an_image(tmp_path: Path, kind: str, words: str) -> None:
    """Protects who mixed up IMAGE and --weights from a warning about code in a photograph."""
    path = tmp_path / "photo"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, format=kind)
    for find in (
        lambda: resolve(str(path)),
        lambda: open_network(resolve("demo", weights=str(path))),
        lambda: init_from_file(str(path)),
        lambda: Predictor.from_weights(path),
    ):
        with pytest.raises(WeightsError) as caught:
            find()
        assert caught.value.message == f"{path}: {words}, not a weight file"
        assert "run folder" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"%PDF-1.7", "a PDF document"),
        (b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', "a safetensors file"),
        (b"milk, eggs, bread", "not a weight file"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    """Protects from a warning about code where a download, a text or another program's format is the matter."""
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        resolve(str(path))
    assert "could run code" not in caught.value.message


def test_weight_files_pass(tmp_path: Path) -> None:
    """Protects both layouts of torch.save."""
    for new in (True, False):
        torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        check_kind(tmp_path / "a.pth")


def test_a_real_pickle_is_still_refused_for_its_code(tmp_path: Path) -> None:
    """Protects the machine, and that the reader learns why."""
    proof = tmp_path / "proof"
    for protocol in (2, 4):
        (tmp_path / "a.pt").write_bytes(pickle.dumps(Harmful(proof), protocol))
        with pytest.raises(WeightsError, match="could run code"):
            resolve(str(tmp_path / "a.pt"))
    assert not proof.exists()
