"""Protocol-buffer messages, read field by field, strictly and within bounds.

Room: exported; never torch, and not onnx, which running a file does not need.

Threat: a field that is given twice, with another wire type, or that this reader does not know is read by one program
in one way and by the next in another. So a message has the fields that are listed, each in its own form, once unless it
is a list; anything else is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

Fields = Mapping[int, str]  # number -> "int", "float" or "bytes"; with a * it may come several times
Value = int | float | memoryview

LARGEST = 2**31 - 1  # bytes of a message, and so of an ONNX file

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INT64 = 1 << 63
_MOST = 100_000  # messages in a list: an empty one has two bytes, and takes a hundred times as much in memory


def message(data: memoryview, fields: Fields, what: str) -> dict[int, list[Value]]:
    """The values of a message's fields, by number; every listed number is there, [] where the message lacks it.

    Raises:
        ValueError: the bytes are no such message, or it holds other fields, or one of them twice.
    """
    found: dict[int, list[Value]] = {number: [] for number in fields}
    for number, value, _, _ in walk(data):
        form = fields.get(number)
        if form is None:
            raise ValueError(f"{what}: has the unknown field {number}")
        if number in found and found[number] and not form.endswith("*"):
            raise ValueError(f"{what}: has field {number} twice")
        if form.startswith("int") and isinstance(value, memoryview) and form.endswith("*"):
            found[number] += packed(value)
            continue
        if not isinstance(value, {"int": int, "float": float, "bytes": memoryview}[form.rstrip("*")]):
            if form == "float*" and isinstance(value, memoryview) and len(value) % 4 == 0:
                found[number] += struct.unpack(f"<{len(value) // 4}f", value)
                continue
            raise ValueError(f"{what}: has field {number} in another form")
        if form == "bytes*" and len(found[number]) >= _MOST:
            raise ValueError(f"{what}: has field {number} more than {_MOST:,} times")
        found[number].append(value)
    return found


def walk(data: memoryview) -> Iterator[tuple[int, Value, int, int]]:
    """Number and value of each field, and where the field begins and ends.

    Raises:
        ValueError: this is no message.
    """
    at = 0
    while at < len(data):
        begin = at
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError("not a protocol-buffer message")
        value: Value
        if kind == _VARINT:
            whole, at = varint(data, at)
            value = whole - 2 * _INT64 if whole >= _INT64 else whole
        elif kind == _BYTES:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind == _FIXED32:
            value, at = _float(data[at : at + 4]), at + 4
        else:
            raise ValueError("not a protocol-buffer message")
        if at > len(data):
            raise ValueError("it ends too early")
        yield number, value, begin, at


def packed(data: memoryview) -> list[int]:
    """A list of whole numbers in one field."""
    values, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        values.append(value - 2 * _INT64 if value >= _INT64 else value)
    return values


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, below 2^64 and written no longer than it must be, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2 * _INT64 or (byte == 0 and shift):
                break
            return value, at
    raise ValueError("not a protocol-buffer message")


def written(number: int, content: bytes) -> bytes:
    """A field of bytes, as it stands in a message."""
    return _written_varint(number << 3 | _BYTES) + _written_varint(len(content)) + content


def text(value: Value) -> str:
    """
    Raises:
        ValueError: the bytes are no UTF-8.
    """
    return bytes(value).decode() if isinstance(value, memoryview) else ""


def _written_varint(value: int) -> bytes:
    done = bytearray()
    while value > 127:
        done.append(value & 127 | 128)
        value >>= 7
    return bytes([*done, value])


def _float(data: memoryview) -> float:
    if len(data) < 4:
        raise ValueError("it ends too early")
    (value,) = struct.unpack("<f", data)
    return float(value)
