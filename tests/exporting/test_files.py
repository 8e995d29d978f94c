"""The written files: proven when made, and run by emaseg as the checkpoint is."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError, RecipeError, WeightsError
from emaseg.evaluation.evaluate import evaluate, protocol
from emaseg.events import Evaluated
from emaseg.exported.info import needed_overrides, read_info
from emaseg.exported.runtime import open_exported
from emaseg.exporting.export import Exported, export
from emaseg.exporting.request import make_request
from emaseg.exporting.usage import command
from emaseg.inference.predict import Predictor
from emaseg.inference.tiles import USUAL_PIXEL, measured_need
from emaseg.reference import open_engine, open_model, resolve, with_precision
from tests.exporting.made import FILES, INSIDE, ONE, checkpoint, exported, network, recipe

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", FILES)
def test_the_file_computes_what_the_network_does(name: str, made: Callable[[str], Exported]) -> None:
    """Protects the promise: four sizes (of multiples of 8, odd, portrait, two images), to rounding, all pixels."""
    done = made(name)
    assert done.passed
    assert [(c.batch, c.height, c.width) for c in done.checks] == [
        (1, 256, 320),
        (1, 225, 289),
        (1, 320, 192),
        (2, 200, 264),
    ]
    for check in done.checks:
        assert check.agreement >= 0.9999
        assert (
            check.difference is None if "pixels" in name else check.difference is not None and check.difference < 1e-5
        )
    assert sorted(path.name for path in done.path.parent.glob(f"*{name}*")) == [name]


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file of half precision; the recipe inside says fp32. Nobody writes to it."""
    return exported(recipe("emanet"), tmp_path_factory.mktemp("fp16") / "half.onnx", "onnx", precision="fp16")


def test_the_file_decides_on_its_precision(made: Callable[[str], Exported], fp16: Exported) -> None:
    """Protects scores from a precision that they were not made in: a file's is fixed, whatever its recipe or --precision
    says, and the protocol names it."""
    plain = resolve(str(made("plain.onnx").path))
    assert with_precision(plain, "fp32") == plain
    half = resolve(str(fp16.path))
    assert protocol(half.recipe.inference).endswith("; fp16")
    assert with_precision(half, "fp16") == half
    assert with_precision(half, "auto") == half
    with pytest.raises(RecipeError, match="the precision of an exported file is fixed"):
        with_precision(half, "fp32")


def test_a_precision_that_is_set_must_be_the_files_own(made: Callable[[str], Exported], fp16: Exported) -> None:
    """Protects from scores in another precision than was asked for; the recipe inside says nothing of the file's."""
    half, plain = str(fp16.path), str(made("plain.onnx").path)
    assert read_info(fp16.path).recipe.inference.precision == "fp32"
    for path, own in ((half, "fp16"), (plain, "fp32")):
        assert resolve(path, overrides=[f'inference.precision="{own}"']).recipe == resolve(path).recipe
        assert resolve(path, overrides=["inference.flip=true"]).recipe.inference.precision == own
    for path, sets in (
        (half, 'inference.precision="fp32"'),  # also where the recipe inside says the same
        (half, "inference.precision=bf16"),
        (half, 'inference={precision="fp32"}'),
        (plain, 'inference.precision="fp16"'),
    ):
        with pytest.raises(RecipeError, match="the precision of an exported file is fixed") as caught:
            resolve(path, overrides=[sets])
        assert caught.value.hint.startswith("export it again: emaseg export REF --precision ")


def test_an_exported_file_is_not_compiled(made: Callable[[str], Exported]) -> None:
    """Protects from times that are taken for those of a compiled network: --compile is refused, not ignored."""
    resolved = resolve(str(made("plain.onnx").path))
    with pytest.raises(RecipeError, match="--compile: an exported file is a finished program") as caught:
        open_engine(resolved, torch.device("cpu"), compiled=True)
    assert caught.value.hint == "leave --compile out"


@pytest.mark.parametrize("name", FILES)
def test_emaseg_runs_the_file_as_it_runs_the_checkpoint(
    name: str, made: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Protects predict and eval: the same labels and the same scores, whatever is inside."""
    kind = FILES[name][0]
    device = torch.device("cpu")
    ours = resolve(str(checkpoint(recipe(kind), tmp_path / "own.pt")))
    theirs = resolve(str(made(name).path))
    assert theirs.recipe == ours.recipe
    results = []
    for resolved in (ours, theirs):
        model = open_model(resolved, device)
        dataset = build_dataset(resolved.recipe.data, "eval")
        backbone = resolved.recipe.backbone
        last = list(evaluate(model, dataset, resolved.recipe.inference, backbone.pixel_stats, device))[-1]
        assert isinstance(last, Evaluated)
        labels = Predictor(model, resolved.recipe).predict(dataset.open(1).image()).labels
        results.append((last.scores.pixel_accuracy, labels))
    assert results[0][0] == pytest.approx(results[1][0], abs=2e-4)
    assert (results[0][1] == results[1][1]).mean() >= 0.9995


def test_other_programs_find_all_they_need_inside(made: Callable[[str], Exported]) -> None:
    """Protects the metadata, which ONNX Runtime shows under these names, and who made the file: no path of a machine."""
    import onnxruntime

    path = made("pixels.onnx").path
    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["background", "disc", "square", "triangle", "ring"]
    assert np.array(json.loads(about["palette"])).shape == (5, 3)
    assert json.loads(about["mean"]) == list(recipe("memorynet").backbone.mean)
    assert set(json.loads(about["versions"])) == {"emaseg", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert read_info(path).recipe == recipe("memorynet")
    (image,), (labels,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (labels.name, labels.type, labels.shape) == ("labels", "tensor(uint8)", ["batch", "height", "width"])
    assert json.loads(about["input"])["layout"] == "batch, channel (red, green, blue), height, width"
    assert json.loads(about["input"])["units"] == "0 to 255"
    assert json.loads(about["output"])["units"] == "position in classes"
    assert json.loads(about["resize"]) is None
    here = str(Path(__file__).parents[2]).encode()
    assert here not in path.read_bytes()
    assert here not in made("pixels.pt2").path.read_bytes()


def test_state_is_constant_and_training_is_absent(made: Callable[[str], Exported]) -> None:
    """Protects from a file that learns: bases are weights, nothing is written to, no auxiliary head and no norm."""
    program = torch.export.load(made("pixels.pt2").path)
    assert not program.graph_signature.buffers_to_mutate
    assert "network.attention.bases" in program.state_dict
    assert not any("auxiliary" in name or "running" in name for name in program.state_dict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("norm" in target and "vector_norm" not in target and "linalg" not in target for target in targets)


def test_a_file_says_which_protocols_it_cannot_follow(made: Callable[[str], Exported], tmp_path: Path) -> None:
    """Protects from scores of another protocol: refused, with the settings that make it possible."""
    path = str(made("pixels.pt2").path)
    with pytest.raises(RecipeError, match="cannot follow") as caught:
        resolve(path, overrides=["inference.flip=true", "inference.scales=[0.5,1.0]"])
    assert "--set 'inference.scales=[1.0]' --set inference.flip=false" in caught.value.hint
    with_tta = recipe("emanet", "inference_tta={flip=true}")
    inside = str(exported(with_tta, tmp_path / "tta.pt2", "torch", include=INSIDE, shape="64x80").path)
    assert not resolve(inside).recipe.inference.flip
    with pytest.raises(RecipeError, match="cannot follow") as caught:
        resolve(inside, tta=True)
    assert "leave --tta out" in caught.value.hint
    many = resolve(str(made("plain.pt2").path), overrides=["inference.flip=true", "inference.scales=[0.75,1.0]"])
    assert needed_overrides(many.recipe.inference, ("normalize",)) == ["inference.scales=[1.0]"]
    assert needed_overrides(many.recipe.inference, ()) == []


WINDOWS = ('inference.mode="slide"', "inference.window=[48,40]", "inference.stride=[24,20]")


def test_a_file_for_one_size_takes_no_other_windows_or_scales(made: Callable[[str], Exported], tmp_path: Path) -> None:
    """Protects from a file that is kept and then fails with every image: windows of another size are refused when it is
    exported and when it is named, and so are several scales, with --set or --tta, before anything is loaded."""
    path = str(made(ONE).path)
    for wrong, remedy in (
        (("inference.scales=[0.5,1.0]",), ("inference.scales=[1.0]",)),
        (
            (*WINDOWS[:1], "inference.window=[48,48]", WINDOWS[2]),
            ('inference.mode="whole"', "inference.window=[]", "inference.stride=[]"),
        ),
    ):
        with pytest.raises(RecipeError, match="images of 48 x 40 pixels only: it cannot follow") as caught:
            resolve(path, overrides=wrong)
        options = " ".join(f"--set '{text}'" for text in remedy)
        assert caught.value.hint == f"add {options}, or export it without --shape"
        assert resolve(path, overrides=remedy).recipe.inference.scales == (1.0,)
    slide = recipe("emanet", *WINDOWS).inference
    assert needed_overrides(slide, (), (48, 40)) == []
    assert needed_overrides(replace(slide, scales=(0.5, 1.0)), (), (48, 40)) == ["inference.scales=[1.0]"]
    for include in ("", "normalize"):
        with pytest.raises(RecipeError, match=r"--shape 64x80: the recipe's windows .* are 48x40") as caught:
            exported(recipe("emanet", *WINDOWS), tmp_path / "never.pt2", "torch", shape="64x80", include=include)
        assert caught.value.hint.startswith("--shape 48x40, or --dynamic; or --set inference.mode=whole")
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_one_size_runs_its_windows(tmp_path: Path) -> None:
    """Protects the way that the refusal names: a file for the size of the windows looks through them, as the network does."""
    sliding = recipe("emanet", *WINDOWS)
    done = exported(sliding, tmp_path / "window.pt2", "torch", shape="48x40")
    assert command(done.path, read_info(done.path)).endswith("window.pt2")
    image = build_dataset(sliding.data, "eval").open(0).image()
    own = resolve(str(checkpoint(sliding, tmp_path / "own.pt")))
    file = resolve(str(done.path))
    a, b = (Predictor(open_model(r, torch.device("cpu")), r.recipe).predict(image).labels for r in (own, file))
    assert (a == b).mean() >= 0.9995


def test_the_network_of_a_file_is_fixed(made: Callable[[str], Exported]) -> None:
    """Protects from options that the file cannot obey, and from two recipes for one file."""
    path = str(made("plain.onnx").path)
    with pytest.raises(RecipeError, match="contradicts the exported file"):
        resolve(path, overrides=["model.em_iterations_eval=5"])
    with pytest.raises(RecipeError, match="has its recipe inside"):
        resolve("demo", weights=path)


def test_several_scales_and_windows_run_on_a_file(made: Callable[[str], Exported], tmp_path: Path) -> None:
    """Protects the other protocols: a plain file follows them all, as the network does."""
    protocol = ["inference.scales=[0.75,1.0]", "inference.flip=true"]
    image = build_dataset(recipe("emanet").data, "eval").open(0).image()
    own = resolve(str(checkpoint(recipe("emanet"), tmp_path / "own.pt")), overrides=protocol)
    file = resolve(str(made("plain.onnx").path), overrides=protocol)
    a, b = (Predictor(open_model(r, torch.device("cpu")), r.recipe).predict(image).labels for r in (own, file))
    assert (a == b).mean() >= 0.9995


def test_an_image_that_the_file_does_not_take(made: Callable[[str], Exported]) -> None:
    """Protects from a runtime's own message: sizes are checked first."""
    model = open_exported(made("plain.onnx").path)
    with pytest.raises(DataError, match="from 33 pixels a side, not 64 x 32"):
        model(torch.zeros(1, 3, 32, 64))


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_what_an_image_takes_is_measured_after_a_large_one(made: Callable[[str], Exported]) -> None:
    """Protects the choice of tiles: ONNX Runtime would keep all that it ever took, and a further image then seems to take
    nothing, so that any would fit, or it counts as unknown, so that none would."""
    model = open_exported(made("plain.onnx").path)
    model(torch.zeros(1, 3, 768, 768))
    assert 12 < measured_need(model, torch.device("cpu"), 3) < USUAL_PIXEL / 4


def test_one_size_and_half_precision(tmp_path: Path) -> None:
    """Protects --shape and --precision together; every other size is refused."""
    done = exported(recipe("emanet"), tmp_path / "small.pt2", "torch", precision="fp16", shape="64x96")
    assert done.passed
    assert {(c.height, c.width) for c in done.checks} == {(64, 96)}
    assert sorted(c.batch for c in done.checks) == [1, 1, 2, 3]
    with pytest.raises(DataError, match="96 x 64 pixels, not 64 x 64"):
        open_exported(done.path)(torch.zeros(1, 3, 64, 64))


def test_weights_are_a_checkpoint_without_the_optimizer(tmp_path: Path) -> None:
    """Protects the conversion: bit for bit the same network, its recipe inside."""
    done = exported(recipe("memorynet"), tmp_path / "own.pt", "weights")
    assert done.passed
    assert {check.difference for check in done.checks} == {0.0}
    content = torch.load(done.path, weights_only=True)
    assert content["optimizer"] == {}
    assert resolve(str(done.path)).recipe == recipe("memorynet")


def test_weights_beyond_the_precision_are_refused(tmp_path: Path) -> None:
    """Protects from advice that does not help: the file is well, fp16 is too small for it; nothing is left behind."""
    made = recipe("emanet")
    for precision in ("fp16", "bf16"):
        large = network(made)
        name = next(key for key in large.state_dict() if key.endswith("running_var"))
        large.state_dict()[name].fill_(1e5)
        events = export(large, made, make_request("weights", precision), tmp_path / "half.pt")
        if precision == "bf16":
            assert list(events)
            continue
        with pytest.raises(WeightsError) as caught:
            list(events)
        assert name in caught.value.message
        assert "fp16 holds 6.55e+04" in caught.value.message
        assert str(tmp_path) not in caught.value.message
        assert caught.value.hint == "use --precision bf16 or fp32"
        assert list(tmp_path.iterdir()) == []


def test_8_bits(int8: Exported, made: Callable[[str], Exported]) -> None:
    """Protects int8: it is smaller, close to the network on the images it learned from, and its cost is told."""
    assert int8.passed
    assert int8.size < made("plain.onnx").size
    assert int8.cost is not None
    assert int8.cost.images == 4
    import onnx

    kinds = {node.op_type for node in onnx.load(int8.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert read_info(int8.path).precision == "int8"


def test_8_bits_beside_a_large_tensor_of_full_precision(int8: Exported, tmp_path: Path) -> None:
    """Protects int8 for published EMANets: their bases stay in full precision and take more than 1 kB, and of such tensors
    the quantiser writes where they are, which our reader of strangers' files does not know."""
    images = int8.path.parent / "images"
    done = exported(recipe("emanet", "model.bases=24"), tmp_path / "8.onnx", "onnx", precision="int8", calibrate=images)
    assert done.passed
    assert read_info(done.path).precision == "int8"


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    """Protects from silent damage: logits beyond what half precision holds leave no file, and the report says so."""
    made = recipe("emanet")
    model = network(made)
    with torch.no_grad():
        for parameter in model.get_submodule("classifier").parameters():
            parameter.mul_(1e6)
    *_, done = export(model, made, make_request("torch", "fp16", "64x64"), tmp_path / "half.pt2")
    assert isinstance(done, Exported)
    assert not done.passed
    assert done.checks[0].difference == math.inf
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ odd files
def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with `change` applied to each member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            new.writestr(member, change(member.filename, old.read(member)))
    return target


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'),
        ("models/model.json", b'"guards_code": []', b'"guards_code": ["__import__(\'os\').abort()"]'),
        ("models/model.json", b"torch.ops.aten.conv2d.default", b"os.system"),
        ("models/model.json", b"Symbol('s", b"__import__('os').abort() or Symbol('s"),
        ("models/model.json", b'"name": "image"', b'"name": "image=print(1)"'),
        ("data/sample_inputs/model.pt", b"", b"x"),
    ],
)
def test_a_program_that_could_run_code_is_refused(
    where: str, old: bytes, new: bytes, made: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Protects the machine: PyTorch trusts a .pt2 (pickles, texts that become Python); we do not."""
    source = made("plain.pt2").path
    changed = []

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(where):
            return content
        changed.append(old in content)
        return content.replace(old, new, 1) if old else new

    path = rewritten(source, tmp_path / "odd.pt2", change)
    assert changed == [True]
    with pytest.raises(WeightsError, match="refused"):
        open_exported(path)


@pytest.mark.parametrize("name", ["plain.onnx", "plain.pt2"])
def test_damaged_and_foreign_files(name: str, made: Callable[[str], Exported], tmp_path: Path) -> None:
    """Protects from debris under the right suffix: one clear error, wherever the copy stopped."""
    whole = made(name).path.read_bytes()
    path = tmp_path / name
    for content in (b"", b"<!DOCTYPE html>", bytes(100), whole[: len(whole) // 2], whole[:-3]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            open_exported(path)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    """Protects from guessing: an ONNX file without our description is refused by name."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="not a file of emaseg export"):
        resolve(str(tmp_path / "other.onnx"))
