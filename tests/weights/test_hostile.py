"""Files that mean harm, and files with something wrong: refused in plain words, nothing run, no memory taken."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import emaseg
from emaseg.checkpoint import load_backbone, load_state, load_weights
from emaseg.errors import WeightsError
from emaseg.models import Network, build_model
from emaseg.weights.convert import FORMATS
from emaseg.weights.fits import describe, fitting_recipes
from emaseg.weights.reading import read_content
from tests.helpers import tiny

MOST_MEMORY = 200 << 20  # bytes that refusing any of these files may cost


@pytest.fixture(scope="module")
def model() -> Network:
    return build_model(tiny())


@pytest.fixture(autouse=True)
def frugal() -> Iterator[None]:
    """No file here is worth memory: the peak of the process must not rise."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MOST_MEMORY


# ------------------------------------------------------------------------------------------------------------ harm
def archive(program: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file as torch.save lays it out, around any pickle program."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, content in {
            "data.pkl": program,
            "version": b"3\n",
            "byteorder": b"little",
            **(records or {}),
        }.items():
            zipped.writestr(f"archive/{name}", content)
    return file.getvalue()


def value(thing: Any) -> bytes:
    """The part of a program that puts `thing` on the stack."""
    return pickle.dumps(thing, 2)[2:-1]


def calling(module: str, name: str, *arguments: Any) -> bytes:
    """A program that calls module.name(*arguments) and puts the result into a table."""
    called = f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(value, arguments)) + b"tR"
    return b"\x80\x02}" + value("model") + called + b"s."


def tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """A program that makes a table of one tensor of these claims, as torch.save writes it."""
    storage = b"(" + value("storage") + b"ctorch\nFloatStorage\n" + value(key) + value("cpu") + value(numel) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + value(0) + value(size) + value(stride) + value(False) + hooks
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return b"\x80\x02}" + value("model") + b"}" + value("backbone_net.weight") + made + b"ss."


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        member = tarfile.TarInfo("../../escaped")
        packed.addfile(member, io.BytesIO(b""))
    return file.getvalue()


def hostile(proof: Path) -> dict[str, bytes]:
    """Programs that would create `proof`, or eat the machine, if they were obeyed."""
    touch = f"touch {proof}"
    inner = calling("os", "system", touch)
    return {
        "os.system": calling("os", "system", touch),
        "posix.system": calling("posix", "system", touch),
        "eval": calling("builtins", "eval", f"open({str(proof)!r}, 'w').close()"),
        "exec": calling("builtins", "exec", f"open({str(proof)!r}, 'w').close()"),
        "Popen": calling("subprocess", "Popen", ["touch", str(proof)]),
        "a pickle in a pickle": calling("pickle", "loads", inner),
        "torch.load itself": calling("torch", "load", str(proof)),
        "runpy": calling("runpy", "_run_code", f"open({str(proof)!r}, 'w').close()", {}),
        "an attribute of an attribute": b"\x80\x04\x8c\x02os\x8c\x06system\x93X%b%s\x85R."
        % (len(touch).to_bytes(4, "little"), touch.encode()),
        "the old way to call": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "an object with a state": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sb.",
        "an array of a terabyte": calling("builtins", "bytearray", 2**40),
        "a number of a terabyte": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".",
        "an extension code": b"\x80\x02\x82\x01.",
        "nothing on the stack": b"\x80\x02s.",
        "a loop of memos": b"\x80\x02]q\x00h\x00a}X\x05\x00\x00\x00modelh\x00s.",
        "lists in lists": b"\x80\x02}X\x05\x00\x00\x00model" + b"]" * 50_000 + b"a" * 49_999 + b"s.",
    }


NAMES = list(hostile(Path("proof")))
ARMED = [*NAMES[:6], "an attribute of an attribute", "the old way to call"]


@pytest.mark.parametrize("name", ARMED)
def test_the_programs_are_armed(tmp_path: Path, name: str) -> None:
    """Protects the next test from proving nothing: an unguarded unpickler obeys these."""
    proof = tmp_path / "proof"
    loaded = pickle.loads(hostile(proof)[name])
    if isinstance(loaded, dict) and isinstance(process := loaded.get("model"), subprocess.Popen):
        process.wait()
    assert proof.exists()


def test_the_tensor_program_is_a_tensor(tmp_path: Path) -> None:
    """Protects the claims below from being refused for a slip of the pen: the honest one loads."""
    (tmp_path / "weights.pth").write_bytes(archive(tensor(3, (3,), (1,)), {"data/0": bytes(12)}))
    content = read_content(tmp_path / "weights.pth")
    assert torch.equal(content["model"]["backbone_net.weight"], torch.zeros(3))


@pytest.mark.parametrize("layout", ["zip", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_a_program_in_a_file_is_never_obeyed(tmp_path: Path, model: Network, name: str, layout: str) -> None:
    """Protects the machine, in both file layouts: refused, and what the program wanted has not happened."""
    proof = tmp_path / "proof"
    program = hostile(proof)[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(archive(program) if layout == "zip" else program)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(model, path)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_backbone(model.backbone, path)
    assert not proof.exists()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a tensor of four terabytes": lambda: archive(tensor(2**40, (2**40,), (1,)), {"data/0": bytes(4)}),
    "a view of four terabytes": lambda: archive(tensor(1, (2**20, 2**20), (0, 0)), {"data/0": bytes(4)}),
    "a tensor before its storage": lambda: archive(tensor(1, (4,), (-1,)), {"data/0": bytes(4)}),
    "a storage elsewhere": lambda: archive(tensor(1, (1,), (1,), key="../../../../etc/hostname"), {"data/0": bytes(4)}),
    "a storage that is not there": lambda: archive(tensor(1, (1,), (1,)), {"data/1": bytes(4)}),
    "64 MB in 64 kB": lambda: archive(b"\x80\x02N" + bytes(64 << 20), compression=zipfile.ZIP_DEFLATED),
    "names that climb": lambda: archive(b"\x80\x02}.", {"../../escaped": b"x"}),
    "the tar layout of old": tar,
    "a script module": lambda: archive(b"\x80\x02}.", {"constants.pkl": b"\x80\x02).", "code/a.py": b"x"}),
    "an archive in an archive": lambda: archive(archive(calling("os", "system", "true"))),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_file_that_claims_too_much_is_refused(tmp_path: Path, model: Network, name: str) -> None:
    """Protects memory and disk: sizes, places and layouts that a file only claims."""
    path = tmp_path / "weights.pth"
    path.write_bytes(ARCHIVES[name]())
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]
    assert not (tmp_path.parent / "escaped").exists()


# ------------------------------------------------------------------------------------------------- something wrong
def foreign(model: Network) -> dict[str, Any]:
    """A small network's weights under the names of sssegmentation, with an optimiser's state as released files have."""
    names = {ours: theirs for theirs, ours in FORMATS["ssseg"][2].items()}
    state = {}
    for key, value in model.state_dict().items():
        ours = max((prefix for prefix in names if key.startswith(prefix)), key=len)
        state[names[ours] + key.removeprefix(ours)] = value.clone()
    return {"epoch": 60, "model": state, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}


CONV = "bottleneck.0.weight"


def without(content: dict[str, Any]) -> None:
    del content["model"][CONV]


def replaced(value: Callable[[torch.Tensor], Any], key: str = CONV) -> Callable[[dict[str, Any]], None]:
    def mutate(content: dict[str, Any]) -> None:
        content["model"][key] = value(content["model"][key])

    return mutate


def renamed(rename: Callable[[str], Any]) -> Callable[[dict[str, Any]], None]:
    def mutate(content: dict[str, Any]) -> None:
        content["model"] = {rename(key): value for key, value in content["model"].items()}

    return mutate


def instead(value: Any) -> Callable[[dict[str, Any]], None]:
    def mutate(content: dict[str, Any]) -> None:
        content["model"] = value

    return mutate


MUTATIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "one missing": without,
    "one too many": lambda content: content["model"].update({"extra.weight": torch.zeros(1)}),
    "turned": replaced(lambda t: t.flatten(1).T.contiguous()),
    "one row less": replaced(lambda t: t[1:]),
    "another class count": replaced(lambda t: t[:3], "decoder.4.weight"),
    "no dimensions": replaced(lambda t: torch.tensor(1.0)),
    "empty": replaced(lambda t: torch.zeros(0)),
    "integers": replaced(lambda t: t.to(torch.int32)),
    "truth values": replaced(lambda t: t > 0),
    "complex": replaced(lambda t: t.to(torch.complex64)),
    "sparse": replaced(lambda t: t.to_sparse()),
    "without content": replaced(lambda t: t.to("meta")),
    "floats that count": replaced(lambda t: t.float(), "decoder.1.num_batches_tracked"),
    "a list": replaced(lambda t: t.tolist()),
    "None": replaced(lambda t: None),
    "a table": replaced(lambda t: {"weight": t}),
    "huge by a trick": replaced(lambda t: torch.zeros(1).expand(2**20, 2**20)),
    "names in capitals": renamed(str.upper),
    "two prefixes": renamed(lambda key: f"module.module.{key}"),
    "numbers for names": renamed(hash),
    "a list of tensors": instead([torch.zeros(1)]),
    "nothing": instead(None),
    "an empty table": instead({}),
    "another table": instead({"a": torch.zeros(1)}),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_checkpoint_is_refused_whole(tmp_path: Path, model: Network, name: str) -> None:
    """Protects strictness: one thing wrong anywhere, and nothing at all is loaded."""
    content = foreign(build_model(tiny("train.seed=1")))
    MUTATIONS[name](content)
    torch.save(content, tmp_path / "weights.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: dict(reversed(state.items())),
    ],
    ids=["plain", "module.", "float64", "another order"],
)
def test_the_harmless_differences_are_accepted(
    tmp_path: Path, legacy: bool, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Protects old and wrapped files: both layouts, a parallel wrapper's prefix, precision, order, optimiser state."""
    source, model = build_model(tiny()), build_model(tiny("train.seed=1"))
    content = foreign(source)
    content["model"] = change(content["model"])
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    assert load_weights(model, tmp_path / "weights.pth") == "ssseg"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", [{}, {"model": None}, {"model": [1]}, {"model": {"a": "b"}}])
def test_our_own_format_without_its_weights(tmp_path: Path, model: Network, content: dict[str, Any]) -> None:
    """Protects from a bug report for a damaged checkpoint of ours."""
    torch.save({"format": "emaseg/1", **content}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="without a table of tensors"):
        load_weights(model, tmp_path / "weights.pt")


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_file_is_refused(tmp_path: Path, model: Network, where: float, legacy: bool) -> None:
    torch.save(foreign(model), tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    size = (tmp_path / "weights.pth").stat().st_size
    os.truncate(tmp_path / "weights.pth", int(where * size))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(model, tmp_path / "weights.pth")


# ------------------------------------------------------------------------------------------------- what would fit
def state_of(name: str) -> dict[str, torch.Tensor]:
    """Names and shapes of a recipe's network, without memory."""
    with torch.device("meta"):
        return dict(build_model(emaseg.load_recipe(name)).state_dict())


def test_the_error_names_both_networks_and_the_recipes_that_fit() -> None:
    """Protects the user with the wrong recipe: what the file is, what was built, and what to type instead."""
    with torch.device("meta"):
        model = build_model(emaseg.load_recipe("voc_r50_d8"))
    with pytest.raises(WeightsError) as caught:
        load_state(model, state_of("ade20k_r101_d8"), "weights.pth")
    assert (
        "the file: EMANet, ResNet-101, 150 classes; the recipe: EMANet, ResNet-50, 21 classes" in caught.value.message
    )
    assert caught.value.hint == "these weights fit: ade20k_r101_d16, ade20k_r101_d8"


@pytest.mark.parametrize(
    ("name", "words", "others"),
    [
        ("cityscapes_r50_d8", "EMANet, ResNet-50, 19 classes", ["cityscapes_r50_d16", "cityscapes_r50_d8"]),
        (
            "mmseg_cityscapes_r50_d8_769x769_80k",
            "EMANet, ResNet-50, 19 classes",
            ["mmseg_cityscapes_r50_d8_512x1024_80k", "mmseg_cityscapes_r50_d8_769x769_80k"],
        ),
        ("memorynet_lip_s101_d8", "MemoryNet, ResNeSt-101, 20 classes", ["memorynet_lip_s101_d8"]),
        ("memorynet_ade20k_vit_large", "MemoryNet, ViT, 150 classes", ["memorynet_ade20k_vit_large"]),
    ],
)
def test_weights_fit_their_own_recipes_and_no_others(name: str, words: str, others: list[str]) -> None:
    """Protects the advice: same network at another stride or crop fits, the same task by another system does not."""
    state = state_of(name)
    assert describe(state) == words
    assert fitting_recipes(state) == others


def test_nothing_is_said_to_fit_what_nothing_fits(model: Network) -> None:
    assert fitting_recipes({"weight": torch.zeros(1)}) == []
    assert fitting_recipes({**state_of("voc_r50_d8"), "extra": torch.zeros(1)}) == []
    assert describe({"weight": torch.zeros(1)}) == ""
