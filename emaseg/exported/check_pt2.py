"""What the texts in a .pt2 may say: the operations of `export.operations`, plain tensors, names and sizes.

Room: exported; never torch.

Threat: PyTorch trusts a .pt2. Its loader unpickles, evaluates expressions and guards as Python, imports what a type is
called, and calls any operation by name, also those that write files. So each text is parsed once, here; the result is
held against what `emaseg export` writes, key by key; and PyTorch is given what was checked, written anew, never the
text of the file.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from emaseg.exported.operations import IN_PLACE, OPERATIONS, VIEWS, Forms
from emaseg.exported.pt2_archive import (
    CONSTANTS_TABLE,
    PROGRAM,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_TABLE,
    read_json,
)
from emaseg.exported.refused import Refused
from emaseg.zip_archive import Member

MOST_NODES = 20_000
LARGEST_NUMBER = 1 << 24  # of an argument: no image has more pixels than this
LARGEST_SIZE = 1 << 40  # of a tensor that PyTorch is told about
ITEM_SIZES = {
    1: 1,
    5: 8,
    6: 2,
    7: 4,
    12: 1,
    13: 2,
}  # bytes of torch.export's dtypes: uint8 int64 float16 float32 bool bf16

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,400}", re.ASCII)
_PATH = re.compile(r"(network(\.([a-z][a-z0-9_]*|\d{1,4})){0,16}|shift|factor)", re.ASCII)  # of a module or a weight
_VERSION = re.compile(r"[\w.+-]{1,60}", re.ASCII)
_EXPRESSION = re.compile(r"[\w\s'(),=\-]{1,4000}", re.ASCII)
_SYMBOL = re.compile(r"[su]\d{1,6}", re.ASCII)
_WEIGHT = re.compile(r"weight_\d{1,6}", re.ASCII)
_FUNCTIONS = ("Add", "Mul", "Max", "Min", "FloorDiv", "PythonMod", "Mod")
_EMPTY: tuple[object, ...] = (None, False, [], {}, "")
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_ARGUMENTS = {
    "type": "builtins.tuple",
    "context": "null",
    "children_spec": [
        {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]},
        {"type": "builtins.dict", "context": "[]", "children_spec": []},
    ],
}
_FAR = (1 << 63) - 1  # "to the last" of a slice


def check_weights(table: Any, members: Mapping[str, Member]) -> dict[str, str]:
    """
    Args:
        table: the text of WEIGHTS_TABLE.

    Returns:
        The file in which each weight's bytes are, by the weight's name.

    Raises:
        Refused: something that is no plain tensor on the CPU, or that does not lie within its file.
    """
    files = {}
    for name, entry in _keys(_keys(table, WEIGHTS_TABLE, ("config",))["config"], "the weights", ()).items():
        where = f"the weight {name[:80]!r}"
        entry = _keys(entry, where, ("path_name", "is_param", "use_pickle", "tensor_meta"))
        if not _PATH.fullmatch(name) or not _is(_WEIGHT, entry["path_name"]):
            raise Refused(where)
        if entry["use_pickle"] is not False or not isinstance(entry["is_param"], bool):
            raise Refused(f"{where} as a pickle")
        sizes, strides, offset, kind = _tensor(entry["tensor_meta"], where)
        member = members.get(WEIGHTS + entry["path_name"])
        if member is None:
            raise ValueError(f"{where} is missing")
        numbers = (*sizes, *strides, offset)
        if any(not isinstance(n, int) or n < 0 for n in numbers) or 0 in sizes or kind == 12:
            raise Refused(f"{where}: its shape")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        stored, rest = divmod(member.size, ITEM_SIZES[kind])
        if rest or last >= stored or math.prod(sizes) > stored:
            raise Refused(f"{where}: {member.size} bytes for the shape {sizes}")
        files[name] = entry["path_name"]
    return files


def check_texts(texts: Mapping[str, bytes], members: Mapping[str, Member]) -> tuple[dict[str, bytes], dict[str, str]]:
    """
    Args:
        texts: the bytes of the members that are texts.

    Returns:
        The texts that PyTorch is to read, written anew; and the file of each weight, by the weight's name.

    Raises:
        Refused: they say anything that `emaseg export` does not write.
        ValueError: they are damaged.
    """
    if members[SAMPLES].size:
        raise Refused("sample inputs")
    weights, constants, program = (read_json(texts[name], name) for name in (WEIGHTS_TABLE, CONSTANTS_TABLE, PROGRAM))
    if constants != {"config": {}}:
        raise Refused("constants")
    files = check_weights(weights, members)
    unused = {f"{WEIGHTS}{file}" for file in files.values()} ^ {
        n for n in members if _WEIGHT.fullmatch(n.removeprefix(WEIGHTS))
    }
    if unused:
        raise Refused(f"the unused member {min(unused)}")
    _Program(files).check(program)
    values = {WEIGHTS_TABLE: weights, CONSTANTS_TABLE: constants, PROGRAM: program}
    return {name: json.dumps(value, allow_nan=False).encode() for name, value in values.items()}, files


class _Program:
    """The checks of one program.

    known: names of tensors and of whole numbers that are there already. owned: tensors the program has computed.
    """

    def __init__(self, weights: Collection[str]) -> None:
        self.weights = weights
        self.known: set[str] = set()
        self.owned: set[str] = set()
        self.expressions: set[str] = set()

    def check(self, program: Any) -> None:
        required = (
            "graph_module",
            "opset_version",
            "range_constraints",
            "schema_version",
            "verifiers",
            "torch_version",
        )
        program = _keys(program, "the program", required, ("guards_code",))
        if program.get("guards_code") not in (None, []):
            raise Refused("guards_code")
        if program["verifiers"] not in (["TRAINING"], ["ATEN"]) or not _is(_VERSION, program["torch_version"]):
            raise Refused("the program's versions")
        for key, parts in (("opset_version", ("aten",)), ("schema_version", ("major", "minor"))):
            _whole([_keys(program[key], key, parts)[part] for part in parts], key)
        for name, limits in _keys(program["range_constraints"], "range_constraints", ()).items():
            limits = _keys(limits, "range_constraints", ("min_val", "max_val"))
            _whole([value for value in limits.values() if value is not None], "range_constraints", LARGEST_SIZE)
            _name(name)
        module = _keys(program["graph_module"], "the module", ("graph", "signature", "module_call_graph"))
        inputs = self.signature(module["signature"])
        self.graph(module["graph"], inputs)
        self.calls(module["module_call_graph"])

    def signature(self, signature: Any) -> list[str]:
        """The names of the inputs: weights, and the image as the last."""
        signature = _keys(signature, "the signature", ("input_specs", "output_specs"))
        names, held = [], []
        for entry in _list(signature["input_specs"], "the inputs"):
            ((kind, spec),) = _one(entry, "an input").items()
            if kind in ("parameter", "buffer"):
                keys = ("arg", f"{kind}_name") if kind == "parameter" else ("arg", "buffer_name", "persistent")
                spec = _keys(spec, "an input", keys)
                held.append(spec[f"{kind}_name"])
                names.append(_name(_keys(spec["arg"], "an input", ("name",))["name"]))
            elif kind == "user_input":
                argument = _one(_keys(spec, "an input", ("arg",))["arg"], "an input")
                names.append(_name(_keys(argument.get("as_tensor"), "an input", ("name",))["name"]))
            else:
                raise Refused(f"the input {kind!r:.60}")
        if any(not isinstance(name, str) or name not in self.weights for name in held) or len(held) != len(names) - 1:
            raise Refused("inputs other than the weights and one image")
        outputs = _list(signature["output_specs"], "the outputs", 1)
        output = _keys(_one(outputs[0] if outputs else None, "an output").get("user_output"), "an output", ("arg",))
        self.output = _one(output["arg"], "an output")
        return names

    def graph(self, graph: Any, inputs: Sequence[str]) -> None:
        required = ("inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values")
        graph = _keys(graph, "the graph", required, ("is_single_tensor_return",))
        if graph["is_single_tensor_return"] is not False or graph["sym_bool_values"] != {}:
            raise Refused("a graph of another kind")
        if graph["inputs"] != [{"as_tensor": {"name": name}} for name in inputs] or graph["outputs"] != [self.output]:
            raise Refused("inputs or outputs that are not the signature's")
        for name in inputs:
            self.define(name)
        for node in _list(graph["nodes"], "the operations", MOST_NODES):
            self.node(node)
        for name, value in _keys(graph["tensor_values"], "tensor_values", ()).items():
            sizes, strides, offset, _ = _tensor(value, "a value")
            self.sizes((*sizes, *strides, offset))
            _name(name)
        for name, value in _keys(graph["sym_int_values"], "sym_int_values", ()).items():
            self.sizes([value])
            _name(name)
        self.tensor(_keys(self.output.get("as_tensor"), "the output", ("name",)))

    def calls(self, calls: Any) -> None:
        """Which module is made of which: only the outermost one says what it is called with."""
        for call in _list(calls, "the modules", MOST_NODES):
            call = _keys(call, "a module", ("fqn", "signature"))
            path, signature = call["fqn"], call["signature"]
            if signature is None and _is(_PATH, path):
                continue
            if path != "" or signature is None:
                raise Refused(f"the module {path!r:.60}")
            signature = _keys(
                signature, "a module", ("inputs", "outputs", "in_spec", "out_spec"), ("forward_arg_names",)
            )
            for spec, shape in (("in_spec", _ARGUMENTS), ("out_spec", _LEAF)):
                tree = signature[spec]
                if not isinstance(tree, str) or read_json(tree.encode(), spec) != [1, shape]:
                    raise Refused(f"another {spec}")
            if (
                signature["inputs"]
                or signature["outputs"]
                or signature.get("forward_arg_names") not in (None, ["image"])
            ):
                raise Refused("a module's arguments")

    def node(self, node: Any) -> None:
        node = _keys(
            node, "an operation", ("target", "inputs", "outputs", "metadata"), ("name", "is_hop_single_tensor_return")
        )
        target = node["target"]
        if not isinstance(target, str) or target not in OPERATIONS:
            raise Refused(f"the operation {target!r:.100}")
        if node["metadata"] or node.get("is_hop_single_tensor_return") is not None:
            raise Refused(f"{target} with metadata")
        if node.get("name") is not None:
            _name(node["name"])
        known = OPERATIONS[target]
        given: dict[str, Any] = {}
        for item in _list(node["inputs"], target, len(known)):
            item = _keys(item, target, ("name", "arg"), ("kind",))
            name = item["name"]
            if not isinstance(name, str) or name not in known or name in given or item.get("kind") not in (None, 1, 2):
                raise Refused(f"the argument {name!r:.60} of {target}")
            given[name] = item["arg"]
            self.argument(_one(item["arg"], f"{name} of {target}"), known[name], f"{name} of {target}")
        first = given.get("self")
        source = first["as_tensor"]["name"] if first is not None and "as_tensor" in first else None
        if target in IN_PLACE and source not in self.owned:
            raise Refused(f"{target} on a weight or an input")
        for name in self.outputs(node["outputs"], target):
            if target not in VIEWS or source in self.owned:
                self.owned.add(name)

    def outputs(self, outputs: Any, target: str) -> list[str]:
        """The names of the tensors that an operation gives."""
        tensors: list[str] = []
        for output in _list(outputs, target, 1):
            ((kind, value),) = _one(output, target).items()
            if kind == "as_sym_int":
                self.define(_keys(value, target, ("as_name",))["as_name"])
            elif kind in ("as_tensor", "as_tensors"):
                for item in [value] if kind == "as_tensor" else _list(value, target, 64):
                    tensors.append(self.define(_keys(item, target, ("name",))["name"]))
            else:
                raise Refused(f"what {target} gives")
        return tensors

    def argument(self, argument: Mapping[str, Any], forms: Forms, where: str) -> None:
        ((kind, value),) = argument.items()
        if kind not in [form if isinstance(form, str) else form[0] for form in forms]:
            raise Refused(f"{where} as {kind!r:.40}")
        literals = [form[1] for form in forms if not isinstance(form, str) and form[0] == kind]
        if literals:
            if not any(value == allowed and type(value) is type(allowed) for allowed in literals[0]):
                raise Refused(f"{where} with the value {value!r:.40}")
        elif kind == "as_tensor":
            self.tensor(value)
        elif kind == "as_tensors":
            for item in _list(value, where, 64):
                self.tensor(item)
        elif kind == "as_optional_tensors":
            for item in _list(value, where, 64):
                if item != {"as_none": True}:
                    self.tensor(_one(item, where).get("as_tensor"))
        elif kind in ("as_int", "as_ints"):
            _whole([value] if kind == "as_int" else _list(value, where, 8), where)
        elif kind in ("as_float", "as_floats"):
            for number in [value] if kind == "as_float" else _list(value, where, 8):
                if type(number) is not float or not abs(number) <= LARGEST_NUMBER:
                    raise Refused(f"{where} with the value {number!r:.40}")
        else:
            for item in [value] if kind == "as_sym_int" else _list(value, where, 8):
                ((form, inner),) = _one(item, where).items()
                if form == "as_int":
                    _whole([inner], where)
                elif form != "as_name" or not isinstance(inner, str) or inner not in self.known:
                    raise Refused(f"{where} as {form!r:.40}")

    def define(self, value: Any) -> str:
        name = _name(value)
        if name in self.known:
            raise Refused(f"two values {name:.60}")
        self.known.add(name)
        return name

    def tensor(self, value: Any) -> None:
        name = _keys(value, "a tensor", ("name",))["name"]
        if not isinstance(name, str) or name not in self.known:
            raise Refused(f"the tensor {name!r:.60}, which is not there")

    def sizes(self, sizes: Sequence[Any]) -> None:
        """Whole numbers, or expressions that give some."""
        for size in sizes:
            if isinstance(size, int):
                continue
            expression = _keys(size, "a size", ("as_expr",))["as_expr"]
            expression = _keys(expression, "a size", ("expr_str",), ("hint",))
            hint = expression.get("hint")
            if hint is not None:
                _whole([_keys(hint, "a size", ("as_int",))["as_int"]], "a size", LARGEST_SIZE)
            text = expression["expr_str"]
            if not _is(_EXPRESSION, text):
                raise Refused(f"the size {text!r:.60}")
            if text not in self.expressions:
                _check_expression(text)
                self.expressions.add(text)


def _check_expression(text: str) -> None:
    """
    Raises:
        Refused: it is more than sums, products, quotients and extremes of an image's sizes; PyTorch evaluates it.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused(f"the size {text[:60]!r}") from None
    pending: list[ast.expr] = [tree]
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise Refused(f"the size {text[:60]!r}")
        named = {word.arg: word.value for word in node.keywords}
        plain = all(isinstance(v, ast.Constant) and v.value is True for v in named.values())
        if node.func.id == "Symbol" and len(node.args) == 1 and plain and set(named) <= {"positive", "integer"}:
            (name,) = node.args
            good = isinstance(name, ast.Constant) and _is(_SYMBOL, name.value)
        elif node.func.id == "Integer" and len(node.args) == 1 and not named:
            good = _number(node.args[0])
        else:
            good = node.func.id in _FUNCTIONS and not named
            pending += node.args
        if not good:
            raise Refused(f"the size {text[:60]!r}")


def _number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value <= LARGEST_SIZE


def _tensor(value: Any, where: str) -> tuple[list[Any], list[Any], Any, int]:
    """Sizes, strides, offset (whole numbers, or expressions as they stand) and dtype of a tensor."""
    required = ("dtype", "sizes", "requires_grad", "device", "strides", "storage_offset", "layout")
    value = _keys(value, where, required)
    kind = value["dtype"]
    plain = value["device"] == {"type": "cpu", "index": None} and value["layout"] == 7
    if type(kind) is not int or kind not in ITEM_SIZES or value["requires_grad"] is not False or not plain:
        raise Refused(f"{where}: no plain tensor on the CPU")
    sizes, strides = (_list(value[key], where, 8) for key in ("sizes", "strides"))
    if len(sizes) != len(strides):
        raise Refused(f"{where}: its shape")
    numbers = [_one(item, where) for item in (*sizes, *strides, value["storage_offset"])]
    _whole([item["as_int"] for item in numbers if "as_int" in item], where, LARGEST_SIZE)
    found = [item.get("as_int", item) for item in numbers]
    count = len(sizes)
    return found[:count], found[count:-1], found[-1], kind


def _keys(value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with these keys, and no others that say anything; with any keys where none is named.

    Raises:
        Refused: it is none.
    """
    if not isinstance(value, dict):
        raise Refused(f"{where}: no object")
    missing = [key for key in required if key not in value]
    odd = [key for key in value if required and key not in (*required, *optional) and value[key] not in _EMPTY]
    if missing or odd:
        raise Refused(f"{where}: {f'no {missing[0]}' if missing else f'the key {odd[0]!r:.60}'}")
    return value


def _one(value: Any, where: str) -> dict[str, Any]:
    """A JSON object with one key."""
    if not isinstance(value, dict) or len(value) != 1:
        raise Refused(f"{where}: not one thing")
    return value


def _list(value: Any, where: str, most: int = MOST_NODES) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise Refused(f"{where}: no list of up to {most}")
    return value


def _whole(values: Sequence[Any], where: str, most: int = LARGEST_NUMBER) -> None:
    for value in values:
        if type(value) is not int or not (abs(value) <= most or value == _FAR):
            raise Refused(f"{where} with the value {value!r:.40}")


def _name(value: Any) -> str:
    """A name that may become a variable of Python code."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or keyword.iskeyword(value) or value.startswith("__"):
        raise Refused(f"the name {value!r:.60}")
    name: str = value
    return name


def _is(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
