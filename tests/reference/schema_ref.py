"""A second decoder of every wire type, which knows the product by its vector files alone.

It reads the schemas as `tests/vectors/codec/` gives them (docs/spec/encoding.md), not the classes,
and goes through the bytes once, refusing whatever is wrong where it stands. With `chain.codec` it
shares nothing: no class, no limit, no MessagePack.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

VECTORS = Path(__file__).parent.parent / "vectors" / "codec"
MAX_DEPTH = 12
MAX_MESSAGE_BYTES = 2 * 1024 * 1024 + 256 * 1024
Kind = tuple[Any, ...]
Take = Callable[[bytes, int], tuple[Any, int]]  # the value at an offset, and where it ends


# By the bytes of a number: what needs so many, and not fewer.
UNSIGNED_FROM = {1: 1 << 7, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}
SIGNED_BELOW = {1: -32, 2: -(1 << 7), 4: -(1 << 15), 8: -(1 << 31)}


class Refused(Exception):
    """Bytes that are no value of the type."""


class Schema:
    """All types by name: `fields[name]` is [(field, kind)], `tags[name]` its tag."""

    def __init__(self, directory: Path = VECTORS) -> None:
        self.tags: dict[str, int] = {}
        self.modules: dict[str, str] = {}
        self.fields: dict[str, list[tuple[str, Kind]]] = {}
        written: dict[str, dict[str, str]] = {}
        for path in sorted(directory.glob("*.json")):
            for case in json.loads(path.read_text()):
                self.tags[case["type"]] = case["tag"]
                self.modules[case["type"]] = path.stem
                written[case["type"]] = case["fields"]
        for name, fields in written.items():
            self.fields[name] = [(field, self._kind(text)) for field, text in fields.items()]
        self._takers: dict[Kind, Take] = {}

    def decode(self, name: str, data: bytes, most: int = MAX_MESSAGE_BYTES) -> list[Any]:
        """The value as nested lists, or Refused."""
        if len(data) > most:
            raise Refused("too long")
        plain, end = self.taker(("struct", name))(data, 0)
        if end != len(data):
            raise Refused("bytes after the end")
        found: list[Any] = plain
        return found

    def _kind(self, text: str) -> Kind:
        """uint64, int64, bytes[32], bytes[0..8], text[9], array[K; 9], option[K], A, A | B."""
        head, _, rest = text.partition("[")
        inner = rest[:-1]
        if not rest:
            names = tuple(text.split(" | "))
            if text.startswith(("uint", "int")) and text not in self.tags:
                return (text.rstrip("0123456789"), int(text.lstrip("uint")))
            if not set(names) <= set(self.tags):
                raise ValueError(f"no such type: {text}")
            return ("union", names) if len(names) > 1 else ("struct", text)
        if head == "bytes":
            low, _, high = inner.rpartition("..")
            return ("bytes", int(low or high), int(high))
        if head == "text":
            return ("text", int(inner))
        if head == "option":
            return ("option", self._kind(inner))
        if head != "array":
            raise ValueError(f"no such kind: {text}")
        item, _, most = inner.rpartition("; ")
        return ("seq", self._kind(item), int(most))

    # --- decoding ----------------------------------------------------------------------------

    def taker(self, kind: Kind) -> Take:
        if kind not in self._takers:
            made = getattr(self, f"_take_{kind[0]}")
            self._takers[kind] = made(*kind[1:])
        return self._takers[kind]

    def _take_uint(self, bits: int) -> Take:
        def take(data: bytes, at: int) -> tuple[int, int]:
            first = byte(data, at)
            if first < 128:
                return first, at + 1
            if not 0xCC <= first <= 0xCF:
                raise Refused("no unsigned integer")
            size = 1 << (first - 0xCC)
            value = int.from_bytes(cut(data, at + 1, size), "big")
            if value < UNSIGNED_FROM[size]:
                raise Refused("a shorter form holds it")
            if value >> bits:
                raise Refused("too large")
            return value, at + 1 + size

        return take

    def _take_int(self, bits: int) -> Take:
        unsigned = self._take_uint(bits - 1)

        def take(data: bytes, at: int) -> tuple[int, int]:
            first = byte(data, at)
            if first >= 0xE0:
                return first - 256, at + 1
            size = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}.get(first)
            if size is None:
                return unsigned(data, at)
            value = int.from_bytes(cut(data, at + 1, size), "big", signed=True)
            if value >= SIGNED_BELOW[size]:
                raise Refused("a shorter form holds it")
            if value < -(1 << bits - 1):
                raise Refused("too small")
            return value, at + 1 + size

        return take

    def _take_bytes(self, least: int, most: int) -> Take:
        def take(data: bytes, at: int) -> tuple[bytes, int]:
            size, at = length(data, at, BYTES)
            if not least <= size <= most:
                raise Refused("of another length")
            return cut(data, at, size), at + size

        return take

    def _take_text(self, most: int) -> Take:
        def take(data: bytes, at: int) -> tuple[str, int]:
            size, at = length(data, at, TEXT, 0xA0, 32)
            if size > most:
                raise Refused("too long")
            try:
                value = cut(data, at, size).decode("utf-8")
            except UnicodeDecodeError:
                raise Refused("not UTF-8") from None
            if value and (min(value) < " " or "\x7f" in value):
                raise Refused("a control character")
            return value, at + size

        return take

    def _take_seq(self, item: Kind, most: int) -> Take:
        def take(data: bytes, at: int) -> tuple[list[Any], int]:
            count, at = count_of(data, at)
            if count > most:
                raise Refused("too many items")
            one, found = self.taker(item), []
            for _ in range(count):
                value, at = one(data, at)
                found.append(value)
            return found, at

        return take

    def _take_option(self, inner: Kind) -> Take:
        return self._take_seq(inner, 1)

    def _take_struct(self, name: str) -> Take:
        tag, size, number = self.tags[name], len(self.fields[name]) + 1, self._take_uint(64)

        def take(data: bytes, at: int) -> tuple[list[Any], int]:
            count, at = count_of(data, at)
            found, at = number(data, at)
            if (count, found) != (size, tag):
                raise Refused("another type")
            values: list[Any] = [tag]
            for _, kind in self.fields[name]:
                value, at = self.taker(kind)(data, at)
                values.append(value)
            return values, at

        return take

    def _take_union(self, *names: Any) -> Take:
        members, number = {self.tags[name]: name for name in names[0]}, self._take_uint(64)

        def take(data: bytes, at: int) -> tuple[list[Any], int]:
            _, inside = count_of(data, at)
            tag, _ = number(data, inside)
            if tag not in members:
                raise Refused("not one of the allowed types")
            found: tuple[list[Any], int] = self.taker(("struct", members[tag]))(data, at)
            return found

        return take

    # --- values ------------------------------------------------------------------------------

    def plain(self, kind: Kind, value: Any) -> Any:
        """An object of the product, read by the names of its fields, as nested lists."""
        match kind:
            case ("struct", name):
                fields = ((k, getattr(value, field)) for field, k in self.fields[name])
                return [self.tags[name], *(self.plain(k, v) for k, v in fields)]
            case ("union", _):
                return self.plain(("struct", type(value).__name__), value)
            case ("seq", item, _):
                return [self.plain(item, v) for v in value]
            case ("option", inner):
                return [] if value is None else [self.plain(inner, value)]
        return value

    def example(self, kind: Kind, random: Random, room: int = 4) -> Any:
        """A valid plain value; sequences are short, but now and then as long as they may be."""
        match kind:
            case ("uint", bits):
                return random.getrandbits(random.choice((1, 7, 8, bits, bits)) % (bits + 1))
            case ("int", bits):
                value = random.getrandbits(random.choice((1, 5, 8, bits - 1, bits - 1)) % bits)
                return random.choice((value, -value - 1))
            case ("bytes", least, most):
                room_left = min(most - least, random.choice((0, 1, 33, 300)))
                return random.randbytes(least + random.randint(0, room_left))
            case ("text", most):
                size = random.choice((0, 1, 31, 32, most // 4))
                return "".join(random.choices("aZ9/é数🙂 ", k=min(size, most // 4)))
            case ("seq", item, most):
                sizes = (0, 1, 2, 3) if room < 4 else (0, 1, 2, 3, 15, 16, 17)
                count = min(most, random.choice(sizes))
                if most <= 512 and item[0] not in ("struct", "union") and random.random() < 0.02:
                    count = most
                inner = 0 if room <= 0 else count
                return [self.example(item, random, room - 1) for _ in range(inner)]
            case ("option", inner):
                return [self.example(inner, random, room - 1)] if random.random() < 0.6 else []
            case ("union", names):
                return self.example(("struct", random.choice(names)), random, room - 1)
        fields = self.fields[kind[1]]
        return [self.tags[kind[1]], *(self.example(k, random, room - 1) for _, k in fields)]


def byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise Refused("cut short")
    return data[at]


def cut(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Refused("cut short")
    return data[at : at + size]


Forms = dict[int, tuple[int, int]]  # first byte: bytes of the length, the least that needs so many
BYTES: Forms = {0xC4: (1, 0), 0xC5: (2, 1 << 8), 0xC6: (4, 1 << 16)}
TEXT: Forms = {0xD9: (1, 32), 0xDA: (2, 1 << 8), 0xDB: (4, 1 << 16)}
ARRAY: Forms = {0xDC: (2, 16), 0xDD: (4, 1 << 16)}


def length(data: bytes, at: int, forms: Forms, fixed: int = 0, short: int = 0) -> tuple[int, int]:
    """The length at `at`, in its shortest form, and where what it measures begins. Below `short`
    it is in the first byte itself, counted from `fixed`."""
    first = byte(data, at)
    if fixed <= first < fixed + short:
        return first - fixed, at + 1
    if first not in forms:
        raise Refused("of another kind")
    width, least = forms[first]
    size = int.from_bytes(cut(data, at + 1, width), "big")
    if size < least:
        raise Refused("a shorter form holds it")
    return size, at + 1 + width


def count_of(data: bytes, at: int) -> tuple[int, int]:
    return length(data, at, ARRAY, 0x90, 16)
