"""Damage to any bytes: what disks, networks and the first hour of an attacker do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

Mutator = Callable[[random.Random, bytes], tuple[bytes, str]]  # the damaged bytes, and what was done in words

EXTREMES = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def flip_bits(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """1 to 200 bits anywhere."""
    count = rng.choice((1, 1, 1, 2, 8, 200))
    changed = bytearray(data)
    places = [rng.randrange(8 * len(data)) for _ in range(count)]
    for place in places:
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed), f"flip {count} bits, first in byte {places[0] // 8}"


def set_byte(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Some bytes, mostly one, near the beginning more often."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
        changed[place] = rng.choice((0, 255, 10, rng.randrange(256)))
    return bytes(changed), f"set a byte at {place}"


def truncate(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Cut anywhere; often close to one of the ends, or to nothing."""
    size = rng.choice((0, 1, rng.randrange(len(data)), max(0, len(data) - rng.randrange(1, 64)), len(data) // 2))
    return data[:size], f"cut to {size} bytes"


def insert(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Noise, zeros or one byte many times."""
    place, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 16, 1000))
    new = rng.choice((rng.randbytes(size), bytes(size), rng.randbytes(1) * size))
    return data[:place] + new + data[place:], f"insert {size} bytes at {place}"


def blocks(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Remove, zero, repeat or swap blocks."""
    size = rng.choice((1, 4, 64, 512, 4096))
    a, b = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    what = rng.choice(("remove", "zero", "repeat", "swap"))
    if what == "remove":
        return data[:a] + data[a + size :], f"remove {size} bytes at {a}"
    if what == "zero":
        return data[:a] + bytes(len(data[a : a + size])) + data[a + size :], f"zero {size} bytes at {a}"
    if what == "repeat":
        return data[: a + size] + data[a:], f"repeat {size} bytes at {a}"
    changed = bytearray(data)
    changed[a : a + size], changed[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(changed), f"swap {size} bytes at {a} and {b}"


def integers(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A field of 1, 2, 4 or 8 bytes becomes an extreme, or its neighbour by one."""
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, len(data) - size))
    order = rng.choice(("little", "big"))
    old = int.from_bytes(data[place : place + size], order)  # type: ignore[arg-type]
    value = rng.choice((*EXTREMES, old + 1, old - 1, old * 2)) % 256**size
    return data[:place] + value.to_bytes(size, order) + data[place + size :], f"{value} at {place} in {size} bytes"  # type: ignore[arg-type]


def doubles(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Infinite, not a number or huge where a float may lie."""
    place = rng.randrange(max(1, len(data) // 4)) * 4
    value = rng.choice((float("nan"), float("inf"), -1e38, 1e-40))
    return data[:place] + struct.pack("<f", value) + data[place + 4 :], f"float {value} at {place}"


def splice(others: Sequence[bytes]) -> Mutator:
    """The beginning of one file and the end of another."""

    def joined(rng: random.Random, data: bytes) -> tuple[bytes, str]:
        other = rng.choice(others)
        a, b = rng.randrange(len(data)), rng.randrange(max(1, len(other)))
        return data[:a] + other[b:], f"the first {a} bytes and another file from {b} on"

    return joined


PLAIN: tuple[Mutator, ...] = (flip_bits, set_byte, truncate, insert, blocks, integers, doubles)
