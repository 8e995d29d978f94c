"""Weight files: strict, safe, and plain about what is wrong."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from emaseg.checkpoint import load_backbone, load_weights, read_checkpoint
from emaseg.errors import WeightsError
from emaseg.models import build_model
from emaseg.weights.convert import FORMATS, rename
from emaseg.weights.reading import read_content
from tests.helpers import equal, run, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=2"), out)
    return out / "checkpoints/last.pt"


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_own_checkpoint_round_trip(trained: Path) -> None:
    """Protects our format: the recipe travels inside, loading is exact, also into a model on the meta device."""
    checkpoint = read_checkpoint(trained)
    assert checkpoint.recipe == tiny("train.iterations=2")
    model = build_model(checkpoint.recipe)
    assert load_weights(model, trained) == "emaseg"
    with torch.device("meta"):
        other = build_model(checkpoint.recipe)
    load_weights(other, trained)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert not any(v.is_meta for v in other.state_dict().values())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.eval()(images), other.eval()(images))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    """Protects the machine: a pickle that calls os.system is refused, in both file formats."""
    proof = tmp_path / "proof"
    torch.save({"model": Exploit(proof)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Exploit(proof)}))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(WeightsError):
            read_content(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.", bytes(4096)]
)
def test_not_a_weight_file(tmp_path: Path, content: bytes) -> None:
    """Protects from an HTML page saved as .pth and other debris: one clear error each."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(build_model(tiny()), path)


def test_every_truncation_is_refused(trained: Path, tmp_path: Path) -> None:
    """Protects from a copy that stopped early, wherever it stopped."""
    whole = trained.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(WeightsError):
            read_checkpoint(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weight file"):
        read_content(tmp_path / "nothing.pt")
    with pytest.raises(WeightsError, match="folder"):
        read_content(tmp_path)


def test_another_class_count_says_so(trained: Path) -> None:
    """Protects from a 5-class checkpoint in a 3-class model: counts named, nothing loaded."""
    recipe = tiny('data={kind="folder", root=".", classes=["a","b","c"], train_images="i", train_masks="m", '
                  'eval_images="i", eval_masks="m"}')  # fmt: skip
    model = build_model(recipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match="it has 5 classes, the recipe has 3"):
        load_weights(model, trained)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_network_lists_what_differs(trained: Path) -> None:
    """Protects from a partial load: missing and surplus names are listed."""
    with pytest.raises(WeightsError) as caught:
        load_weights(build_model(tiny("model.auxiliary_channels=0")), trained)
    assert "not in the network: auxiliary.conv.conv.weight" in caught.value.message


def foreign_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors under sssegmentation's names."""
    names = {ours: theirs for theirs, ours in FORMATS["ssseg"][2].items()}
    return {rename(key, names): tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("damage", ["nothing", "missing", "surplus", "shape"])
def test_mutated_foreign_file_is_refused(tmp_path: Path, damage: str) -> None:
    """Protects strictness for the published formats."""
    state = foreign_state(build_model(tiny()))
    if damage == "missing":
        del state["bottleneck.0.weight"]
    elif damage == "surplus":
        state["extra.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["bottleneck.0.weight"] = torch.zeros(2, 2, 3, 3)
    torch.save({"epoch": 1, "model": state}, tmp_path / "weights.pth")
    model = build_model(tiny())
    if damage == "nothing":
        assert load_weights(model, tmp_path / "weights.pth") == "ssseg"
        return
    with pytest.raises(WeightsError, match=r"bottleneck\.conv\.weight|extra\.weight"):
        load_weights(model, tmp_path / "weights.pth")


def test_module_prefix_is_dropped(tmp_path: Path) -> None:
    """Protects files saved from a parallel wrapper."""
    source = build_model(tiny())
    torch.save({"model": {f"module.{k}": v for k, v in foreign_state(source).items()}}, tmp_path / "weights.pth")
    model = build_model(tiny())
    assert load_weights(model, tmp_path / "weights.pth") == "ssseg"
    assert equal(model.state_dict(), source.state_dict())


def test_backbone_file(tmp_path: Path) -> None:
    """Protects the start from ImageNet weights: only the classifier may be left over."""
    recipe = tiny()
    source = build_model(recipe).backbone.state_dict()
    torch.save({"state_dict": {**source, "fc.weight": torch.zeros(1000, 512)}}, tmp_path / "good.pth")
    model = build_model(recipe)
    load_backbone(model.backbone, tmp_path / "good.pth")
    assert all(torch.equal(v, source[k]) for k, v in model.backbone.state_dict().items())
    torch.save({**source, "layer5.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"layer5\.weight"):
        load_backbone(model.backbone, tmp_path / "bad.pth")


def test_file_of_no_known_format(tmp_path: Path) -> None:
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="no known weight format"):
        load_weights(build_model(tiny()), tmp_path / "odd.pth")


def test_checkpoint_is_one_plain_file(trained: Path) -> None:
    """Protects the contract: torch.load(weights_only=True) reads it, and it holds no pickled code."""
    content = torch.load(io.BytesIO(trained.read_bytes()), weights_only=True)
    assert content["format"] == "emaseg/1"
    assert isinstance(content["recipe"], str)
