"""What cannot be exported is refused at once, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from emaseg.errors import DataError, RecipeError, SystemFault, UserError
from emaseg.exported.extra import check_extra, check_torch
from emaseg.exporting.quantise import calibration_images
from emaseg.exporting.request import Request, make_request, snippet_target, target
from emaseg.exporting.verify import SIZES, probes
from tests.helpers import needs_programs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format_": "onxx"}, 'did you mean "onnx"?'),
        ({"format_": "torch", "precision": "fp8"}, "none of fp32, fp16, bf16, int8"),
        ({"format_": "torch", "include": "normalise"}, 'did you mean "normalize"?'),
        ({"format_": "torch", "precision": "int8"}, "possible are fp32, fp16, bf16"),
        ({"format_": "onnx", "precision": "bf16"}, "no bfloat16 convolution"),
        ({"format_": "weights", "precision": "int8"}, "--format onnx"),
        ({"format_": "weights", "shape": "64x64"}, "no program"),
        ({"format_": "weights", "include": "argmax"}, "no program"),
        ({"format_": "torch", "shape": "64x64", "dynamic": True}, "one size, or any size"),
        ({"format_": "onnx", "precision": "int8"}, "--calibrate DIR"),
        ({"format_": "onnx", "calibrate": Path("x")}, "for --precision int8 only"),
        ({"format_": "torch", "shape": "big"}, "HEIGHTxWIDTH"),
        ({"format_": "torch", "shape": "0x512"}, "33 to 8192"),
        ({"format_": "torch", "shape": "512x99999"}, "33 to 8192"),
        ({"format_": "torch", "shape": "-64x64"}, "HEIGHTxWIDTH"),
    ],
)
def test_refusals_name_the_reason(options: dict[str, object], words: str) -> None:
    """Protects from work that ends in nothing: exit code 2, before anything is read."""
    with pytest.raises(RecipeError) as caught:
        make_request(**options)  # type: ignore[arg-type]
    assert words in f"{caught.value.message} {caught.value.hint}"


@needs_programs(any_size=False)
def test_what_can_be_asked_for() -> None:
    """Protects the words of the command line: order and repetition of --include mean nothing."""
    made = make_request("torch", "fp16", "64X96", include="argmax, normalize,argmax")
    assert made == Request("torch", "fp16", (64, 96), ("normalize", "argmax"))
    assert make_request("weights", "bf16").suffix == ".pt"


def test_a_missing_package_is_named_with_its_remedy() -> None:
    """Protects a plain installation: it says what to install, with the exit code of the environment."""
    with pytest.raises(SystemFault, match="no_such_package") as caught:
        check_extra(("numpy", "no_such_package"))
    assert caught.value.hint.startswith("pip install onnx onnxscript onnxruntime; or")


def test_an_old_torch_is_named_with_what_it_can_do() -> None:
    """Protects people with an older PyTorch from its own error about guards of sizes, and from a refusal of what works:
    before 2.13 one size can be exported."""
    for installed in ("2.13.0", "2.15.0+cu132", "3.0", "unknown"):
        check_torch("torch", any_size=True, installed=installed)
    check_torch("onnx", any_size=False, installed="2.8.0")
    check_torch("torch", any_size=False, installed="2.9.1")
    with pytest.raises(SystemFault, match=r"any size needs PyTorch 2\.13 or newer; this is 2\.12\.1\+cpu") as caught:
        check_torch("onnx", any_size=True, installed="2.12.1+cpu")
    assert "--shape" in caught.value.hint
    assert "--format weights" in caught.value.hint
    for any_size in (False, True):
        with pytest.raises(SystemFault, match=r"--format torch needs PyTorch 2\.9 or newer; this is 2\.8\.0") as caught:
            check_torch("torch", any_size=any_size, installed="2.8.0")
        assert "--format onnx with --shape" in caught.value.hint


@needs_programs(any_size=False)
def test_the_target_is_checked_before_the_work(tmp_path: Path) -> None:
    """Protects other files, and the user's time: nothing is overwritten, a folder that cannot be written to is told."""
    made = make_request("torch")
    assert target(made, tmp_path / "new" / "a.pt2", "x") == tmp_path / "new" / "a.pt2"
    assert target(made, None, "voc") == Path("voc.pt2")
    (tmp_path / "there.pt2").touch()
    (tmp_path / "file").touch()
    for out, code in ((tmp_path / "there.pt2", 2), (tmp_path / "a.onnx", 2), (tmp_path / "file" / "a.pt2", 4)):
        with pytest.raises(UserError) as caught:
            target(made, out, "x")
        assert caught.value.exit_code == code
    assert {path.name for path in tmp_path.iterdir()} == {"there.pt2", "file", "new"}


@needs_programs(any_size=False)
def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a crash, and says the name that was meant: people name a folder for the result, or the one here."""
    monkeypatch.chdir(tmp_path)
    made = make_request("torch")
    (tmp_path / "new.pt2").mkdir()
    for out, meant in ((".", "voc.pt2"), ("", "voc.pt2"), ("..", "../voc.pt2"), ("new.pt2", "new.pt2/voc.pt2")):
        with pytest.raises(RecipeError, match="a folder, not a file") as caught:
            target(made, Path(out), "voc")
        assert caught.value.hint == f"use {Path(meant)}"
    with pytest.raises(RecipeError, match="a folder, not a file") as caught:
        snippet_target(made, Path(), Path("voc.pt2"))
    assert caught.value.hint == "use run_model.py"


@needs_programs(any_size=False)
def test_the_program_does_not_replace_the_file_that_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the exported model: --snippet with the name of --out, however it is written, would be written over it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    made = make_request("torch")
    for out, place in (("m.pt2", "m.pt2"), ("m.pt2", "here/../m.pt2"), ("here/m.pt2", str(tmp_path / "link/m.pt2"))):
        with pytest.raises(RecipeError, match="is the exported file itself") as caught:
            snippet_target(made, Path(place), Path(out))
        assert "run_model.py" in caught.value.hint
    assert snippet_target(made, Path("m.py"), Path("m.pt2")) == Path("m.py")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    """Protects from a crash, and from work whose result could have no name: systems limit the length of names."""
    made, long = Request("torch"), "x" * 300
    for out in (tmp_path / f"{long}.pt2", tmp_path / long / "a.pt2", tmp_path / "new" / f"{long}.pt2"):
        with pytest.raises(SystemFault, match="too long"):
            target(made, out, "x")
    with pytest.raises(SystemFault, match="too long"):
        snippet_target(made, tmp_path / f"{long}.py", Path("m.pt2"))
    with pytest.raises(DataError, match="no such folder"):
        calibration_images(tmp_path / long)


def test_ranges_are_not_learned_from_hidden_files(tmp_path: Path) -> None:
    """Protects 8 bits from what is no photograph: thumbnails, what macOS packs beside; a named folder is meant."""
    for name in ("photos/a.png", "photos/sub/b.png", "photos/.thumbnails/c.png", "photos/__MACOSX/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "photos/._a.jpg").write_bytes(b"\0\5\x16\7")
    assert len(calibration_images(tmp_path / "photos")) == 2
    assert len(calibration_images(tmp_path / "photos/.thumbnails")) == 1


@pytest.mark.parametrize(
    ("shape", "batches"), [((40, 48), [1, 1, 2, 3]), ((256, 512), [1, 1, 2, 3]), ((512, 1024), [1, 2])]
)
def test_what_a_file_for_one_size_is_checked_with(shape: tuple[int, int], batches: list[int]) -> None:
    """Protects from an export whose check takes minutes and gigabytes: of a large size fewer images and fewer at once, yet
    several at once, and no fewer pixels than a file for any size is checked with."""
    made = probes(Request("torch", shape=shape))
    assert [len(probe) for probe in made] == batches
    assert {image.shape for probe in made for image in probe} == {(*shape, 3)}
    if batches == [1, 2]:
        assert sum(batches) * shape[0] * shape[1] >= sum(batch * height * width for batch, height, width in SIZES)
