"""The engine computes what the network computes: every kind of network, every backbone, every size, each precision."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from emaseg.device import full_float32
from emaseg.engine import Precision, check_precision, engine_lines, packed, prepare
from emaseg.engine.fused import pack
from emaseg.engine.packed import RELU, PackedConv, SplitConv, packed_conv, packing_works, part
from emaseg.engine.slim import fold_norms
from emaseg.errors import SystemFault, WeightsError
from emaseg.models import Network, build_model
from emaseg.models.em_attention import EMAttention
from tests.exporting.made import checkpoint, recipe, settle
from tests.helpers import emaseg, tiny
from tests.models.test_backbones import SMALL as BACKBONES
from tests.models.test_every_network import NETWORKS

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = ((1, 3, 65, 97), (2, 3, 40, 56), (1, 3, 33, 33), (1, 3, 65, 97))
TOLERANCE = 1e-4  # of the range of the logits: what an engine in float32 may differ from its network


def network(name: str) -> Network:
    """One of NETWORKS, in eval mode, with norms and a memory as if trained."""
    torch.manual_seed(0)
    model = build_model(tiny(*NETWORKS[name])).eval()
    settle(model)
    return model


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(own: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest, as a share of the reference's range."""
    assert own.shape == reference.shape
    return float((own.float() - reference).abs().max() / (reference.max() - reference.min()))


# -------------------------------------------------------------------------------------------------- the same result
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "torch's own"])
def test_an_engine_computes_its_network(name: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects every score and mask: at every size, a batch and a size that comes back included, packed or not."""
    if not packs:
        monkeypatch.setattr("emaseg.engine.stages.packing_works", lambda dtype: False)
    model = network(name)
    with torch.inference_mode():
        expected = [model(images(*size)) for size in SIZES]
        engine = prepare(model)
        assert engine.packed == packs
        assert all(
            difference(engine(images(*size)), logits) <= TOLERANCE for size, logits in zip(SIZES, expected, strict=True)
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_a_packed_backbone_gives_its_maps(name: str) -> None:
    """Protects the blocks of each backbone: all maps, those of earlier stages too, which sums in place could spoil."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval().requires_grad_(False)
    settle(backbone)
    x = images(1, 3, 72, 88).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = backbone(x)
        fold_norms(backbone)
        pack(backbone)
        found = backbone(x)
    assert any(isinstance(module, PackedConv) for module in backbone.modules())
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= TOLERANCE


@pytest.mark.parametrize(("channels", "dilation"), [(96, 1), (130, 2)])
def test_wide_convolutions_are_split_over_their_outputs(channels: int, dilation: int) -> None:
    """Protects a 3x3 convolution of 1024 channels: its parts, the last one smaller, are the whole; plain weights are dropped."""
    conv = nn.Conv2d(1024, channels, 3, padding=dilation, dilation=dilation).requires_grad_(False)
    conv.weight.mul_(10)  # a result that is not the bias alone
    x = images(1, 1024, 5, 7).contiguous(memory_format=torch.channels_last)
    whole = packed_conv(conv, RELU)
    assert isinstance(whole, SplitConv)
    halves = [packed_conv(part(conv, inputs=span)) for span in (slice(0, 500), slice(500, None))]
    with torch.inference_mode():
        torch.testing.assert_close(whole(x), torch.relu(conv(x)), rtol=1e-4, atol=1e-4)
        y = sum(
            half(piece.contiguous(memory_format=torch.channels_last))
            for half, piece in zip(halves, (x[:, :500], x[:, 500:]), strict=True)
        )
        torch.testing.assert_close(y, conv(x), rtol=1e-4, atol=1e-4)
    first = whole.pieces[0]
    assert isinstance(first, PackedConv)
    assert first.weights._plain is None
    assert not isinstance(packed_conv(nn.Conv2d(1024, 96, 1)), SplitConv)


@pytest.mark.parametrize(("units", "parts"), [(True, 2), (False, 5)])
def test_parts_are_larger_on_matrix_units(units: bool, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the speed of 16 bits: there, larger parts are quicker, and a layout that is right for one size is not for all."""
    if not packing_works(torch.bfloat16):
        pytest.skip("this processor has no bf16 convolutions")
    monkeypatch.setattr(packed, "has_matrix_units", lambda: units)
    conv = nn.Conv2d(1024, 320, 3, padding=1).requires_grad_(False)
    x = images(1, 1024, 5, 7).contiguous(memory_format=torch.channels_last)
    layer = packed_conv(conv.bfloat16())
    assert isinstance(layer, SplitConv)
    assert len(layer.pieces) == parts
    with torch.inference_mode():
        torch.testing.assert_close(layer(x.bfloat16()), conv(x.bfloat16()), rtol=0.02, atol=0.02)
    first = layer.pieces[0]
    assert isinstance(first, PackedConv)
    assert first.weights._fixed != units
    whole = packed_conv(conv.float())
    assert isinstance(whole, SplitConv)
    assert len(whole.pieces) == 5


def test_layouts_are_kept_and_few() -> None:
    """Protects folders of photographs of many sizes: a weight is kept in each layout once, however many sizes there are."""
    conv = nn.Conv2d(256, 512, 1)
    layer = PackedConv(conv)
    with torch.inference_mode():
        for side in range(1, 40, 3):
            x = images(1, 256, side, side + 1).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)
    assert 1 <= len(layer.weights._layouts) <= 4
    assert layer.weights._plain is None  # it is made from one of them when a size needs it
    assert len(layer.weights._sizes) == 13


# ------------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("name", ["emanet of mmsegmentation", "memorynet", "memorynet, hard", "memorynet of hrnet"])
def test_bf16_is_near_and_iterates_in_float32(name: str) -> None:
    """Protects low precision: logits are float32 and near, and EM iterations see float32 only."""
    if not packing_works(torch.bfloat16):
        pytest.skip("this processor has no bf16 convolutions")
    model, x = network(name), images(1, 3, 65, 97)
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, EMAttention):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    bases = {key: value.clone() for key, value in model.state_dict().items() if key.endswith((".bases", ".features"))}
    engine = prepare(model, "bf16", probe=x)
    assert engine(x).dtype == torch.float32
    assert set(seen) <= {torch.float32}
    assert engine.agreement is not None
    assert 0 < engine.agreement.difference < 0.05
    assert engine.agreement.labels > 0.9
    kept = dict(engine.named_buffers())
    assert all(
        any(key.endswith(last.rpartition(".")[2]) and torch.equal(kept[key], value) for key in kept)
        for last, value in bases.items()
    )
    assert "bf16" in engine_lines(engine)[0]


def test_float32_on_a_gpu_is_float32() -> None:
    """Protects agreement between machines: PyTorch's convolutions drop bits on a GPU unless told otherwise."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with full_float32(torch.device("cuda", 1)):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
        with full_float32(torch.device("cpu")):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_float32_lasts_until_the_last_thread_is_done() -> None:
    """Protects two threads on a GPU: the one that ends first must not turn TF32 on for the other, or off for good."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = True
        first, second = full_float32(torch.device("cuda")), full_float32(torch.device("cuda"))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not cudnn.allow_tf32
        second.__exit__(None, None, None)
        assert cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_engine_on_a_gpu_agrees_with_the_cpu() -> None:
    """Protects the same thing end to end: rounding, and nothing that TF32 would leave."""
    x = images(1, 3, 129, 161)
    own, other = (
        prepare(network("emanet of mmsegmentation")),
        prepare(network("emanet of mmsegmentation"), "fp32", "cuda"),
    )
    with torch.inference_mode():
        assert difference(other(x.cuda()).cpu(), own(x)) < TOLERANCE
    assert "TF32 off" in engine_lines(other)[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_network_is_kept_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects --compile: the same labels, and a second process that compiles nothing, as all is in the cache folder."""
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(recipe("emanet"), tmp_path / "model.pt")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save("photo.png")
    assert emaseg(capsys, "predict", "photo.png", "--weights", weights, "--out", "plain")[0] == 0
    command = [sys.executable, "-m", "emaseg.cli", "predict", "photo.png", "--weights", str(weights), "--compile", "-v"]
    surroundings = {**os.environ, "EMASEG_CACHE": str(tmp_path / "cache")}
    surroundings.pop("TORCHINDUCTOR_CACHE_DIR", None)
    libraries = []
    for out in ("first", "second"):
        done = subprocess.run([*command, "--out", out], env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "fp32, compiled" in done.stderr
        own, plain = (np.array(Image.open(f"{folder}/photo_mask.png")) for folder in (out, "plain"))
        assert (own == plain).mean() > 0.999
        libraries.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.so")})
    assert libraries[0]
    assert libraries[0] == libraries[1]


def test_what_a_processor_lacks_is_said() -> None:
    """Protects users of fp16 on a CPU without it: an error with a remedy instead of an hour of emulation."""
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this processor has fp16")
    with pytest.raises(SystemFault, match="fp16"):
        prepare(network("memorynet"), "fp16")


def test_a_pytorch_without_onednn_has_no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    with pytest.raises(SystemFault, match="fp16"):
        check_precision("fp16", torch.device("cpu"))


# -------------------------------------------------------------------------------------------------------- the trial
def test_a_wrong_kernel_is_found_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from another torch whose internal operators compute something else, or are gone."""
    packing_works.cache_clear()
    try:
        assert packing_works(torch.float32)
        packing_works.cache_clear()
        right = PackedConv.add_relu
        monkeypatch.setattr(PackedConv, "add_relu", lambda self, x, total: right(self, x, total) * 1.01)
        assert not packing_works(torch.float32)
        packing_works.cache_clear()
        monkeypatch.setattr(PackedConv, "add_relu", lambda self, x, total: torch.ops.mkldnn.no_such_operator(x))
        assert not packing_works(torch.float32)
    finally:
        packing_works.cache_clear()


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("fp16", "use --precision bf16 or fp32"),
        ("bf16", "use --precision fp32"),
        ("fp32", "training has diverged, or the file is damaged: use an earlier checkpoint"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_beyond_all_bounds_are_said(
    precision: Precision, remedy: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a mask from an overflow, of which the arg max would be the first class everywhere."""
    monkeypatch.setattr("emaseg.engine.stages.check_precision", lambda *_: None)
    monkeypatch.setattr("emaseg.engine.stages.packing_works", lambda dtype: False)
    engine = prepare(network("memorynet"), precision)
    engine.network.register_forward_hook(lambda *_: torch.full((1, 2, 4, 4), value))
    with pytest.raises(WeightsError, match=f"NaN or infinite logits in {precision}") as caught:
        engine(images(1, 3, 32, 32))
    assert caught.value.hint == remedy


def test_a_trial_draws_nothing_from_the_users_generator() -> None:
    """Protects a seeded script: its numbers do not depend on whether an engine was made before."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    packing_works.cache_clear()
    packing_works(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_used_engine_can_be_copied(name: str) -> None:
    """Protects a program that copies its predictor: weights in oneDNN's own layouts have no storage to copy."""
    engine = prepare(network(name))
    image = images(1, 3, 65, 97)
    with torch.inference_mode():
        expected = engine(image)
        assert difference(copy.deepcopy(engine)(image), expected) <= TOLERANCE


def test_a_training_network_is_refused() -> None:
    """Batch statistics would be folded into the weights."""
    with pytest.raises(ValueError, match="training mode"):
        prepare(network("memorynet").train())  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- the commands
@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return checkpoint(recipe("emanet"), tmp_path / "model.pt")


def test_predict_and_eval_take_a_precision(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects --precision: the recipe's key and the option mean the same, -v tells the loss, the protocol names it."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save("photo.png")
    code, _, err = emaseg(capsys, "predict", "photo.png", "--weights", weights, "--precision", "bf16", "-v")
    assert code == 0
    assert "bf16" in err
    assert "keep their class" in err
    option = Path("predictions/photo_mask.png").read_bytes()
    again = ("predict", "photo.png", "--weights", weights, "--set", 'inference.precision="bf16"')
    assert emaseg(capsys, *again)[0] == 0
    assert Path("predictions/photo_mask.png").read_bytes() == option
    code, out, _ = emaseg(capsys, "eval", weights, "--precision", "bf16", "--out", "scores")
    assert code == 0
    assert "; bf16" in out


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_an_unknown_precision_is_a_usage_error(command: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, before any work, with the nearest name."""
    arguments = ("no_such_photo.png", "--weights", weights) if command == "predict" else (weights,)
    code, _, err = emaseg(capsys, command, *arguments, "--precision", "fp61")
    assert code == 2
    assert '"fp16"' in err


def test_a_published_score_is_not_compared_with_bf16() -> None:
    """Protects the comparison with the tables: their scores are fp32."""
    from emaseg.evaluation.evaluate import compare_with_published, protocol
    from emaseg.recipe import load_recipe

    row = load_recipe("voc_r50_d8")
    low = dataclasses.replace(row, inference=dataclasses.replace(row.inference, precision="bf16"))
    assert compare_with_published(row, row).miou is not None
    assert "inference.precision" in compare_with_published(low, row).reason
    assert protocol(low.inference).endswith("; bf16")
