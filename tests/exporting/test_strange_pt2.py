"""A .pt2 that a stranger made: refused before PyTorch sees it, whatever it holds beside what `emaseg export` writes."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emaseg.errors import WeightsError
from emaseg.exported.info import read_info
from emaseg.exported.pt2_archive import DIGEST, PROGRAM, WEIGHTS, WEIGHTS_TABLE
from emaseg.exported.runtime import open_exported
from emaseg.exporting.export import Exported
from tests.exporting.made import ONE

pytestmark = pytest.mark.usefixtures("one_thread")

Members = dict[str, bytes]
Make = Callable[[str], Exported]
IMAGES = torch.zeros(1, 3, 40, 48)


class Marker:
    """A pickle of this creates a folder when it is loaded: what a real attack would do with os.system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.mkdir, (str(self.path),)


def members(path: Path) -> Members:
    """The members of an archive, without its folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(content: Members, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"export/{name}"), data)
    return path


def program(content: Members) -> Any:
    return json.loads(content[PROGRAM])


def changed(content: Members, program: Any) -> Members:
    """With another program, and without the digest, which a stranger would leave out."""
    new = {**content, PROGRAM: json.dumps(program).encode()}
    new.pop(DIGEST, None)
    return new


def refused(path: Path, words: str = "refused|damaged") -> None:
    with pytest.raises(WeightsError, match=words) as caught:
        open_exported(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


# ---------------------------------------------------------------------------------------------- the two known attacks
def two_directories(good: Members, bad: Members) -> bytes:
    """An archive whose last directory lists `good`, and whose end points to one of `bad` as well."""
    body = bytearray()

    def directory(content: Members) -> bytes:
        """Append the members' bytes to the body; return what lists them."""
        entries = b""
        for name, data in content.items():
            path = f"export/{name}".encode()
            fields = (20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(path))
            entries += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *fields, 0, 0, 0, 0, 0, len(body)) + path
            body.extend(struct.pack("<4s5H3L2H", b"PK\3\4", *fields, 0) + path + data)
        return entries

    def end64(entries: bytes, count: int) -> bytes:
        start = len(body)
        return entries + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), start)

    first, second = directory(good), directory(bad)
    tail = end64(second, len(bad))
    place = len(body) + len(tail) - 56
    body.extend(tail)
    body.extend(end64(first, len(good)))
    body.extend(struct.pack("<4sLQL", b"PK\6\7", 0, place, 1))
    body.extend(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return bytes(body)


def test_two_directories(made: Make, tmp_path: Path) -> None:
    """Protects the machine: Python's reader finds a good program, PyTorch's another, with a pickle that runs."""
    good = members(made("plain.pt2").path)
    table = json.loads(good[WEIGHTS_TABLE])
    next(iter(table["config"].values()))["use_pickle"] = True
    marker = tmp_path / "marker"
    bad = {**good, WEIGHTS_TABLE: json.dumps(table).encode(), f"{WEIGHTS}weight_0": pickle.dumps(Marker(marker))}
    path = tmp_path / "two.pt2"
    path.write_bytes(two_directories(good, bad))
    assert members(path)[WEIGHTS_TABLE] == good[WEIGHTS_TABLE]
    with pytest.raises(WeightsError, match="two directories"):
        read_info(path)
    refused(path, "two directories")
    assert not marker.exists()
    reader = torch._C.PyTorchFileReader(str(path))
    assert reader.get_record(WEIGHTS_TABLE) == bad[WEIGHTS_TABLE]  # what `torch.export.load` would have read
    pickle.loads(reader.get_record(f"{WEIGHTS}weight_0"))  # and done
    assert marker.exists()


def value(name: str, kind: int, size: int) -> dict[str, Any]:
    return {
        "dtype": kind,
        "sizes": [{"as_int": size}],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def node(target: str, output: str, **arguments: Any) -> dict[str, Any]:
    inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()]
    outputs = [{"as_tensor": {"name": output}}]
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": {}, "name": output}


def test_a_file_of_the_user_is_not_written_to(made: Make, tmp_path: Path) -> None:
    """Protects the user's files: an operation of PyTorch's own library maps one into memory, another fills it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    content = members(made(ONE).path)
    new = program(content)
    graph = new["graph_module"]["graph"]
    mapped = {"filename": {"as_string": str(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
    kind = {"as_scalar_type": 1}
    open_ = node("torch.ops.aten.from_file.default", "victim", **mapped, dtype=kind)
    open_["inputs"][-1]["kind"] = 2
    fill = node("torch.ops.aten.fill_.Scalar", "filled", self={"as_tensor": {"name": "victim"}}, value={"as_int": 0})
    graph["nodes"][:0] = [open_, fill]
    graph["tensor_values"] |= {"victim": value("victim", 1, 8), "filled": value("filled", 1, 8)}
    path = packed(changed(content, new), tmp_path / "fill.pt2")
    refused(path, "the operation 'torch.ops.aten.from_file.default'")
    assert victim.read_bytes() == b"precious"
    torch.export.load(path).module()(IMAGES)  # what PyTorch alone does
    assert victim.read_bytes() == bytes(8)


def test_memory_without_limit(made: Make, tmp_path: Path) -> None:
    """Protects memory: a size that is computed or written down is tried without memory first."""
    content = members(made("plain.pt2").path)
    new = program(content)
    expand = first(new, "torch.ops.aten.expand.default")
    sizes = next(item for item in expand["inputs"] if item["name"] == "size")
    sizes["arg"] = {"as_ints": [1 << 24, *(-1 for _ in range(3))]}
    model = open_exported(packed(changed(content, new), tmp_path / "large.pt2"))
    with pytest.raises(WeightsError, match=r"large\.pt2: its program fails \(a tensor of \d+ values"):
        model(IMAGES)


# -------------------------------------------------------------------------------------------------- other programs
Edit = Callable[[Any], None]


def graph_of(new: Any) -> Any:
    return new["graph_module"]["graph"]


def first(new: Any, target: str) -> Any:
    return next(node for node in graph_of(new)["nodes"] if node["target"] == target)


def on_a_weight(new: Any) -> None:
    """The first weight loses its negative values; each run would give another result."""
    name = graph_of(new)["inputs"][0]["as_tensor"]["name"]
    graph_of(new)["nodes"].insert(0, node("torch.ops.aten.relu_.default", "odd", self={"as_tensor": {"name": name}}))


def on_a_view(new: Any) -> None:
    """The same by another name."""
    name = graph_of(new)["inputs"][0]["as_tensor"]["name"]
    view = node("torch.ops.aten.unsqueeze.default", "odd", self={"as_tensor": {"name": name}}, dim={"as_int": 0})
    graph_of(new)["nodes"][:0] = [
        view,
        node("torch.ops.aten.relu_.default", "odder", self={"as_tensor": {"name": "odd"}}),
    ]


def expression(text: str) -> Edit:
    def edit(new: Any) -> None:
        sizes = graph_of(new)["sym_int_values"]
        next(iter(sizes.values()))["as_expr"]["expr_str"] = text

    return edit


def target(text: str) -> Edit:
    return lambda new: first(new, "torch.ops.aten.matmul.default").update(target=text)


def argument(operation: str, name: str, given: Any) -> Edit:
    def edit(new: Any) -> None:
        inputs = first(new, f"torch.ops.aten.{operation}")["inputs"]
        next(item for item in inputs if item["name"] == name)["arg"] = given

    return edit


def extra(key: str, content: Any) -> Edit:
    return lambda new: new["graph_module"].update({key: content})


def spec(text: str) -> Edit:
    return lambda new: new["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=text)


EDITS: dict[str, Edit] = {
    "a higher-order operation": target("torch.ops.higher_order.while_loop"),
    "an operation of another library": target("torch.ops.prims.mul.default"),
    "a Python function": target("builtins.eval"),
    "random numbers": target("torch.ops.aten.rand_like.default"),
    "a repetition": target("torch.ops.aten.repeat.default"),
    "dropout that drops": argument("feature_dropout.default", "train", {"as_bool": True}),
    "another device": lambda new: next(iter(graph_of(new)["tensor_values"].values())).update(
        device={"type": "meta", "index": None}
    ),
    "a subgraph": argument("matmul.default", "other", {"as_graph": {"name": "g", "graph": {}}}),
    "a custom object": argument("matmul.default", "other", {"as_custom_obj": {"name": "o", "class_fqn": "x"}}),
    "an operation as argument": argument("matmul.default", "other", {"as_operator": "torch.ops.aten.fill_.Scalar"}),
    "a huge number": argument("softmax.int", "dim", {"as_int": 1 << 62}),
    "an infinite number": argument("feature_dropout.default", "p", {"as_float": 1e999}),
    "a weight that is written to": on_a_weight,
    "a view of a weight that is written to": on_a_view,
    "code as a size": expression("__import__('os').system('true')"),
    "an attribute as a size": expression("Integer(1).__class__"),
    "a power tower as a size": expression("Pow(Integer(9), Pow(Integer(9), Integer(999)))"),
    "a deep size": expression("Add(" * 900 + "Integer(1)" + ")" * 900),
    "a lambda as a size": expression("Add(lambda: 1)"),
    "guards": lambda new: new.update(guards_code=["1/0"]),
    "custom objects": lambda new: graph_of(new).update(custom_obj_values={"a": {"name": "a", "class_fqn": "b"}}),
    "metadata that names types": lambda new: graph_of(new)["nodes"][0].update(metadata={"nn_module_stack": "a,b,os"}),
    "named tuples": extra("treespec_namedtuple_fields", {"os.path": {"fields": ["a"]}}),
    "an input of another type": spec('[1, {"type": "torch.os._wrap_close", "context": "null", "children_spec": []}]'),
    "a name that is code": lambda new: graph_of(new)["nodes"][0].update(name="a=1;b"),
    "two values of one name": lambda new: graph_of(new)["nodes"].insert(1, graph_of(new)["nodes"][0]),
    "a deep nest": lambda new: new.update(schema_version=[[[[]]]]),
    "an unknown key": lambda new: new.update(init_code="x"),
    "no operations": lambda new: graph_of(new).update(nodes=[]),
    "no graph": lambda new: new.update(graph_module=None),
    "outputs that are mutated buffers": lambda new: new["graph_module"]["signature"].update(
        output_specs=[{"buffer_mutation": {"arg": {"name": "image"}, "buffer_name": "shift"}}]
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_other_programs(name: str, made: Make, tmp_path: Path) -> None:
    """Protects from all that a program of PyTorch's can hold and ours does not: named, exit code 3."""
    content = members(made("plain.pt2").path)
    new = program(content)
    EDITS[name](new)
    assert new != program(content)
    refused(packed(changed(content, new), tmp_path / "odd.pt2"))


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a key twice": lambda raw: raw.replace(b'"use_pickle": false', b'"use_pickle": true, "use_pickle": false', 1),
    "NaN": lambda raw: raw.replace(b'"layout": 7', b'"layout": NaN', 1),
    "Infinity": lambda raw: raw.replace(b'"layout": 7', b'"layout": Infinity', 1),
    "a number without end": lambda raw: raw.replace(b'"layout": 7', b'"layout": ' + b"7" * 100_000, 1),
    "nesting": lambda raw: raw.replace(b'"layout": 7', b'"layout": ' + b"[" * 50_000 + b"]" * 50_000, 1),
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "two texts": lambda raw: raw + raw,
    "a shape beyond its file": lambda raw: raw.replace(
        b'"sizes": [{"as_int": 8}', b'"sizes": [{"as_int": 800000000}', 1
    ),
    "a stride beyond its file": lambda raw: raw.replace(
        b'"strides": [{"as_int": 27}', b'"strides": [{"as_int": 99}', 1
    ),
    "a weight of another folder": lambda raw: raw.replace(b'"weight_0"', b'"../weights/weight_0"', 1),
    "a weight called otherwise": lambda raw: raw.replace(b'"network.', b'"__class__.', 1),
    "a weight that is used twice": lambda raw: raw.replace(b'"weight_1"', b'"weight_0"', 1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_other_texts(name: str, made: Make, tmp_path: Path) -> None:
    """Protects from a JSON text that two readers understand differently, or that exhausts one."""
    content = members(made("plain.pt2").path)
    content.pop(DIGEST)
    raw = TEXTS[name](content[WEIGHTS_TABLE])
    assert raw != content[WEIGHTS_TABLE]
    refused(packed({**content, WEIGHTS_TABLE: raw}, tmp_path / "odd.pt2"))


def test_a_weight_without_bytes(made: Make, tmp_path: Path) -> None:
    """Protects memory: PyTorch makes up zeros of any size for a file that is empty."""
    content = members(made("plain.pt2").path)
    table = json.loads(content[WEIGHTS_TABLE])
    next(iter(table["config"].values()))["tensor_meta"]["sizes"][0] = {"as_int": 1 << 35}
    new = {**content, WEIGHTS_TABLE: json.dumps(table).encode(), f"{WEIGHTS}weight_0": b""}
    refused(packed(new, tmp_path / "empty.pt2"), "0 bytes for the shape")


# ------------------------------------------------------------------------------------------------------- archives
@pytest.mark.parametrize(
    "name",
    [
        "data/weights/Weight_0",
        "extra/../../x",
        "models/other.json",
        "data/aotinductor/a/b.so",
        "data/constants/custom_obj_0",
        "data/weights/weight_٣",
        "data/weights/model.pt",
    ],
)
def test_other_members(name: str, made: Make, tmp_path: Path) -> None:
    """Protects from members that PyTorch unpickles, compiles or writes: other names are refused, in any spelling."""
    content = members(made("plain.pt2").path)
    refused(packed({**content, name: b"x"}, tmp_path / "odd.pt2"), "member")


def test_other_archives(made: Make, tmp_path: Path) -> None:
    """Protects the one reading of an archive: comments, two folders, packed, doubled or overlapping members."""
    content = members(made("plain.pt2").path)
    path = tmp_path / "odd.pt2"
    with zipfile.ZipFile(packed(content, path), "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)
    refused(path)
    with zipfile.ZipFile(packed(content, path), "a") as archive:
        archive.writestr("other/archive_format", b"pt2")
    refused(path)
    with zipfile.ZipFile(packed(content, path), "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("export/byteorder", b"big")
    refused(path, "two members")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(f"export/{name}", data)
    refused(path, "packed")
    raw = bytearray(packed(content, path).read_bytes())
    raw[raw.index(b"export/data") : raw.index(b"export/data") + 6] = b"EXPORT"
    path.write_bytes(raw)
    refused(path, "two names")
    raw = bytearray(packed(content, path).read_bytes())
    places = [i for i in range(len(raw)) if raw.startswith(b"PK\1\2", i)]
    raw[places[1] + 42 : places[1] + 46] = raw[places[0] + 42 : places[0] + 46]
    path.write_bytes(raw)
    refused(path)


def test_every_changed_byte_is_noticed(made: Make, tmp_path: Path) -> None:
    """Protects results: bytes of weights that are changed, with the archive's checksums made right again."""
    content = members(made(ONE).path)
    name = f"{WEIGHTS}weight_30"
    new = bytearray(content[name])
    new[7] ^= 1
    path = packed({**content, name: bytes(new)}, tmp_path / "changed.pt2")
    refused(path, "has been changed")
    whole = bytearray(made(ONE).path.read_bytes())
    whole[whole.index(content[name]) + 7] ^= 1
    path.write_bytes(whole)
    refused(path, "checksum of data/weights/weight_30")
    table = content[WEIGHTS_TABLE].replace(b"{", b"{ ", 1)
    refused(packed({**content, WEIGHTS_TABLE: table}, path), "has been changed")


def test_weights_that_are_no_numbers(made: Make, tmp_path: Path) -> None:
    """Protects from "background 100 %": NaN or infinite weights are named."""
    content = members(made(ONE).path)
    content.pop(DIGEST)
    for number, odd in enumerate((np.nan, np.inf, -np.inf)):
        values = np.frombuffer(content[f"{WEIGHTS}weight_{2 * number}"], np.float32).copy()
        values[5] = odd
        content[f"{WEIGHTS}weight_{2 * number}"] = values.tobytes()
    first = r"NaN or infinite weights in network\.backbone\.stem\.0\.weight, network\.backbone\.stem\.3\.weight, "
    refused(packed(content, tmp_path / "odd.pt2"), first)


def test_files_of_earlier_versions(made: Make, tmp_path: Path) -> None:
    """Protects what exists: a file without a digest gives the same results."""
    content = members(made(ONE).path)
    content.pop(DIGEST)
    path = packed(content, tmp_path / "old.pt2")
    images = torch.rand(1, 3, 40, 48)
    assert torch.equal(open_exported(path)(images), open_exported(made(ONE).path)(images))
    assert read_info(path) == read_info(made(ONE).path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Protects from waiting for ever: what is no file is not opened."""
    import os

    os.mkfifo(tmp_path / "pipe.pt2")
    refused(tmp_path / "pipe.pt2", "not a file")
