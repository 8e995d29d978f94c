"""The pickle program of a weight file, looked through before anything obeys it.

Room: weights; never torch.

Threat: a pickle is a program. PyTorch's weights-only reader runs no foreign code, but it still obeys what costs memory
or time without end: arrays of a terabyte, keys that take ages to hash, nesting that overflows the stack. So the program
is followed here first with sizes in place of values, and only the few calls that a table of tensors needs are let pass.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_PROGRAM = 16 << 20  # bytes; a file of 4,000 tensors has about one million
MOST_STEPS = 300_000  # about 45 for one tensor; HRNet with momentum has 150,000
MOST_DEPTH = 64  # values inside values
MOST_PARTS = 4_000_000  # of one value, where what is used twice counts twice

_CALLS = frozenset(
    (
        *("collections OrderedDict", "collections Counter", "torch Size", "torch device"),
        *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    )
)
_TYPES = re.compile(r"torch (float|bfloat|int|uint|bool|complex)\d*")
_STORAGES = re.compile(r"torch(?:\.storage|\.cuda)? ([A-Za-z0-9]+)Storage")
_BYTES = {  # of one element of a storage
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "Untyped": 1,
}
_KNOWN = frozenset(
    (
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    )
)
_PLAIN = "use a file of plain weights"


class RefusedError(Exception):
    """The program is whole, but is not a table of tensors, numbers and text; reason and remedy are in words."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class _UnknownError(Exception):
    """An instruction that no plain weight file has."""


@dataclass(slots=True, eq=False)
class _Value:
    """What is known of a value on the stack.

    depth: how deep it nests. parts: how many it unfolds into. plain: a number, a text or a function's name.
    items: of a tuple. used: it is part of another value, and so may no longer change; that rules out cycles.
    """

    depth: int = 0
    parts: int = 1
    plain: Any = None
    items: tuple[_Value, ...] = ()
    used: bool = False


@dataclass(slots=True)
class _Machine:
    """The stack of a pickle program (None is a mark), and the storages that it names: bytes by key."""

    storages: dict[str, int]
    steps: int = 0
    work: int = 0  # parts of all that is handed to calls
    stack: list[_Value | None] = field(default_factory=list)
    memo: dict[int, _Value] = field(default_factory=dict)

    def top(self) -> _Value:
        value = self.stack[-1]
        if value is None:
            raise ValueError("a mark in the place of a value")
        return value

    def pop(self) -> _Value:
        value = self.top()
        self.stack.pop()
        return value

    def pop_marked(self) -> list[_Value]:
        """The values above the last mark."""
        start = len(self.stack) - 1
        while self.stack[start] is not None:
            start -= 1
            if start < 0:
                raise ValueError("no mark")
        values = [value for value in self.stack[start:] if value is not None]
        del self.stack[start:]
        return values


@dataclass(frozen=True, slots=True)
class Program:
    """What a program needs: the storages it names with their bytes, and where in the data it ends."""

    storages: Mapping[str, int]
    end: int


def check_program(data: bytes, count: int = 1) -> Program:
    """Follow `count` programs that stand one behind the other, without doing anything they say.

    Raises:
        RefusedError: it asks for more than tensors, numbers and text, or for more than a weight file has.
        ValueError: it is damaged.
    """
    stream = io.BytesIO(data)
    storages: dict[str, int] = {}
    steps = 0
    for _ in range(count):
        machine = _Machine(storages, steps)
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                _step(machine, opcode, argument)
        except _UnknownError:
            raise _in_words(data) from None
        except (IndexError, KeyError, OverflowError, UnicodeError) as error:
            raise ValueError("a damaged program") from error
        steps = machine.steps
    return Program(storages, stream.tell())


def _step(machine: _Machine, opcode: Any, argument: Any) -> None:
    name = opcode.name
    machine.steps += 1
    if machine.steps > MOST_STEPS:
        raise RefusedError("it has more entries than any network", _PLAIN)
    if name not in _KNOWN or (name == "GLOBAL" and not _allowed(argument)):
        raise _UnknownError
    stack = machine.stack
    match name:
        case "PROTO":
            pass
        case "BINPUT" | "LONG_BINPUT":
            machine.memo[argument] = machine.top()
        case "BINGET" | "LONG_BINGET":
            stack.append(machine.memo[argument])
        case "MARK":
            stack.append(None)
        case "TUPLE":
            _tuple(machine, machine.pop_marked())
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            _tuple(machine, [machine.pop() for _ in range(int(name[-1]))][::-1])
        case "APPEND" | "BUILD":
            _fill(machine, [machine.pop()])
        case "SETITEM":
            value, key = machine.pop(), machine.pop()
            _fill(machine, [key, value], keys=True)
        case "APPENDS" | "SETITEMS":
            _fill(machine, machine.pop_marked(), keys=name == "SETITEMS")
        case "REDUCE":
            _call(machine)
        case "BINPERSID":
            stack.append(_storage(machine, machine.pop()))
        case "STOP":
            machine.pop()
            if stack:
                raise ValueError("more than one value")
        case _:
            stack.append(_Value(plain=argument))


def _tuple(machine: _Machine, items: list[_Value]) -> None:
    value = _Value(items=tuple(items))
    _adopt(value, items)
    machine.stack.append(value)


def _fill(machine: _Machine, items: list[_Value], *, keys: bool = False) -> None:
    """Items for the container on top of the stack."""
    container = machine.top()
    if container.used or any(item is container for item in items):
        raise RefusedError("a value changes after it was used", _PLAIN)
    if keys and any(key.depth for key in items[::2]):
        raise RefusedError("a key that is neither text nor a number", _PLAIN)
    _adopt(container, items)


def _adopt(value: _Value, items: list[_Value]) -> None:
    """Make `items` parts of a value."""
    for item in items:
        item.used = True
        value.depth = max(value.depth, 1 + item.depth)
        value.parts += item.parts
    if value.depth > MOST_DEPTH or value.parts > MOST_PARTS:
        raise RefusedError("values inside values without end", _PLAIN)


def _call(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.work += arguments.parts
    if machine.work > MOST_PARTS or function.plain not in _CALLS:
        raise RefusedError("it makes more values than any network has", _PLAIN)
    value = _Value()
    _adopt(value, [arguments])
    machine.stack.append(value)


def _storage(machine: _Machine, name: _Value) -> _Value:
    """A storage that lies beside the program; each has one type and one length."""
    words = [item.plain for item in name.items]
    if len(words) < 5 or words[0] != "storage" or not isinstance(words[2], str | int):
        raise RefusedError("it names something outside itself", _PLAIN)
    found = _STORAGES.fullmatch(words[1] if isinstance(words[1], str) else "")
    if found is None or type(words[4]) is not int or words[4] < 0:
        raise RefusedError("a storage without a length", _PLAIN)
    width = _BYTES.get(found[1])
    if width is None:
        raise RefusedError(f"tensors of a special kind (torch.{found[1]}Storage), not plain numbers", _PLAIN)
    key, size = str(words[2]), words[4] * width
    if machine.storages.setdefault(key, size) != size:
        raise RefusedError("a storage of two lengths", _PLAIN)
    name.used = True
    return _Value(depth=1)


def _allowed(name: str) -> bool:
    return name in _CALLS or bool(_TYPES.fullmatch(name) or _STORAGES.fullmatch(name))


def _in_words(data: bytes) -> RefusedError:
    """Why a program has an instruction that no plain weight file has, told from all of it."""
    strings: list[str] = []
    memo: dict[int, str | None] = {}
    top: str | None = None  # the text on top of the stack
    protocol = 0
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if name == "PROTO":
                protocol = max(protocol, int(argument or 0))
            asked = str(argument) if name == "GLOBAL" else " ".join(strings[-2:])
            if name in ("GLOBAL", "STACK_GLOBAL") and not _allowed(asked):
                return _code(asked)
            if name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                return _code("")
            if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = top
            else:
                top = memo.get(int(argument or 0)) if name in ("BINGET", "LONG_BINGET") else None
                top = argument if name.endswith("UNICODE") else top
                strings += [top] if top is not None else []
            if step > MOST_STEPS:
                break
    except (ValueError, IndexError, OverflowError):
        pass  # damaged further on
    if protocol > 2:
        return RefusedError(
            f"it was saved with pickle protocol {protocol}, which PyTorch's safe reader does not know",
            "load it where it was made and save it again with torch.save(content, FILE), whose protocol is 2",
        )
    return _code("")


def _code(name: str) -> RefusedError:
    asked = ascii(name.replace(" ", "."))[1:-1][:80]
    if name.startswith("torch."):
        return RefusedError(f"it holds tensors of a special kind ({asked}), not plain numbers", _PLAIN)
    more = f" (it asks for {asked})" if name else ""
    return RefusedError(f"it holds more than tensors, numbers and text, so loading it could run code{more}", _PLAIN)
