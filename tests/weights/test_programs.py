"""Pickle programs that would cost memory, time or the stack if they were obeyed: refused after a look, with the reason."""

from __future__ import annotations

import collections
import pickle
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import load_weights
from emaseg.errors import WeightsError
from emaseg.models import build_model
from emaseg.weights.program import MOST_STEPS, RefusedError, check_program
from emaseg.weights.reading import read_content
from tests.helpers import tiny
from tests.weights.test_hostile import archive, calling, foreign, tensor, value


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    before = time.process_time()
    yield
    assert time.process_time() - before < 5  # a second where nothing else runs


def table(inside: bytes) -> bytes:
    return b"\x80\x02}" + value("model") + inside + b"s."


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def doubled(times: int) -> bytes:
    """A tuple of two of the tuple before, again and again: a few bytes that unfold into 2 ** times parts."""
    return b")" + b"".join(put(i) + get(i) + b"\x86" for i in range(times))


LIST = b"]" + put(0) + b"(" + b"K\x01" * 5000 + b"e"
ORDERED = b"ccollections\nOrderedDict\n"
STORAGE = b"(" + value("storage") + b"ctorch\nFloatStorage\n" + value("0") + value("cpu")

PROGRAMS = {
    "tuples that unfold": table(doubled(200)),
    "a key that takes ages to hash": b"\x80\x02}" + doubled(60) + b"K\x01s.",
    "a key that overflows the stack": b"\x80\x02})" + b"\x85" * 400_000 + b"K\x01s.",
    "tuples in tuples": table(b")" + b"\x85" * 400_000),
    "a list in itself": table(b"]" + put(0) + get(0) + b"a"),
    "a tuple around a list that grows": table(b"]" + put(0) + b"\x85" + put(1) + b"0" + get(0) + b"K\x01a"),
    "a list that grows after it was used": table(b"]" + put(0) + b"\x85" + get(0) + b"K\x01a\x86"),
    "one table made of another, again and again": table(b"(" + LIST + (ORDERED + get(0) + b"\x85R") * 20_000 + b"t"),
    "a million steps": table(b"(" + b"N" * (MOST_STEPS + 1) + b"t"),
    "a storage of two lengths": table(STORAGE + b"K\x03tQ" + STORAGE + b"K\x04tQ\x86"),
    "a storage below zero": table(STORAGE + b"J\xff\xff\xff\xfftQ"),
    "a storage of text length": table(STORAGE + value("3") + b"tQ"),
    "a storage of another kind": table(STORAGE.replace(b"FloatStorage", b"QInt8Storage") + b"K\x03tQ"),
    "something that is no storage": table(b"(" + value("module") + value("os") + b"tQ"),
    "a number as function": table(b"K\x01)R"),
    "a storage as function": table(b"ctorch\nFloatStorage\nK\x01\x85R"),
    "a bytearray": calling("builtins", "bytearray", 2**34),
    "a set": calling("builtins", "set", [1]),
    "a tensor of any size": calling("torch", "Tensor", 2**34),
    "text that grows": calling("_codecs", "encode", "x" * 1000, "utf-32"),
    "two values": b"\x80\x02}}.",
    "no value": b"\x80\x02.",
    "no mark": b"\x80\x02K\x01t.",
    "what was never put": b"\x80\x02h\x07.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc",
    "an unknown instruction": b"\x80\x02\xff.",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_bounds_is_refused(tmp_path: Path, name: str) -> None:
    """Protects memory, time and the stack from programs that run no code and would still never end."""
    with pytest.raises((RefusedError, ValueError)):
        check_program(PROGRAMS[name])
    (tmp_path / "weights.pth").write_bytes(archive(PROGRAMS[name], {"data/0": bytes(12)}))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        read_content(tmp_path / "weights.pth")


STRIDED = {
    "a terabyte by a stride of 0": (1, (2**40,), (0,)),
    "more than numbers can say": (1, (2**32, 2**32), (0, 0)),
    "twice what is there": (3, (2, 3), (0, 1)),
    "below the start": (3, (3,), (-1,)),
    "beyond the end": (3, (4,), (1,)),
    "too long a step": (3, (2,), (3,)),
}


@pytest.mark.parametrize("name", STRIDED)
def test_a_tensor_that_is_more_than_its_numbers_is_refused(tmp_path: Path, name: str) -> None:
    """Protects from twelve bytes that unfold into a terabyte as soon as somebody copies them."""
    numel, size, stride = STRIDED[name]
    (tmp_path / "weights.pth").write_bytes(archive(tensor(numel, size, stride), {"data/0": bytes(4 * numel)}))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        read_content(tmp_path / "weights.pth")


def test_views_that_an_optimiser_or_a_transposed_layer_has_are_fine(tmp_path: Path) -> None:
    """Protects from refusing honest layouts: turned, sliced, shared, empty, parameters, all number types."""
    base = torch.arange(12.0).view(3, 4)
    content = {
        "turned": base.T,
        "sliced": base[1:, ::2],
        "shared": base,
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(base.clone()),
        "last": base.clone().view(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "ordered": collections.OrderedDict(a=1, b=(2.5, None, [True, "x"])),
        "counter": collections.Counter("aab"),
        **{str(kind): torch.ones(2).to(kind) for kind in (torch.half, torch.bfloat16, torch.int8, torch.bool)},
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        again = read_content(tmp_path / "a.pth")
        assert list(again) == list(content)
        for key, thing in content.items():
            same = torch.equal(again[key], thing) if isinstance(thing, torch.Tensor) else again[key] == thing
            assert same, key


@pytest.mark.parametrize("layout", ["zip", "plain"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_later_pickle_protocol_is_called_what_it_is(tmp_path: Path, protocol: int, layout: str) -> None:
    """Protects an honest file from being called an attack: the protocol is named, and how to save it again; but code
    in such a file is still called code."""
    model = build_model(tiny())
    torch.save(
        foreign(model), tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=layout == "zip"
    )
    with pytest.raises(WeightsError, match=rf"saved with pickle protocol {protocol}") as caught:
        load_weights(model, tmp_path / "a.pth")
    assert "torch.save(content, FILE)" in caught.value.hint
    program = pickle.dumps({"model": pickle.loads}, protocol)
    (tmp_path / "b.pth").write_bytes(archive(program) if layout == "zip" else program)
    with pytest.raises(WeightsError, match=r"could run code \(it asks for _pickle\.loads\)"):
        load_weights(model, tmp_path / "b.pth")


def test_many_and_enormous_keys(tmp_path: Path) -> None:
    """Protects from 300,000 additional keys, and the terminal from names of a megabyte or with escapes."""
    model = build_model(tiny())
    content = foreign(model)
    torch.save({**content, "more": {f"k{i}": i for i in range(300_000)}}, tmp_path / "many.pth")
    with pytest.raises(WeightsError, match="more entries than any network"):
        load_weights(model, tmp_path / "many.pth")
    for name in ("x" * 1_000_000, "\x1b[2J\nforged line", "\x9b31m"):
        content["model"] = {**foreign(model)["model"], f"decoder.4.{name}": torch.zeros(1)}
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "odd.pth")
        assert len(caught.value.message) < 1000
        assert "\x1b" not in caught.value.message
        assert "\x9b" not in caught.value.message
        assert "\nforged" not in caught.value.message


def test_a_storage_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    """Protects the old layout, which takes memory for what is claimed before it reads: the sum must be the file's."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "b.pth").write_bytes(data.replace(b"K\x03", b"J\xff\xff\xff\x7f", 1))
    (tmp_path / "c.pth").write_bytes(data + b"x")
    for name in ("b.pth", "c.pth"):
        with pytest.raises(WeightsError, match="not as many numbers as its tensors claim"):
            read_content(tmp_path / name)
