"""The canonical codec, slow and obvious: MessagePack by hand, schemas read off the annotations.

Shares no code with `chain.codec`; of the product it reads only the struct classes and the marks on
their fields. Run it to write one vector file for each module with wire types:
`python -m tests.reference.codec_ref`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
import struct
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors" / "codec"
PACKAGES = ("chain", "tiles", "consensus", "wallet", "learning", "corpus", "node")
MAX_DEPTH = 12
# The named types and their wire forms, as docs/spec/encoding.md lists them.
NAMED = {
    **dict.fromkeys(("Height", "View", "Epoch", "Stake", "Grains", "TimeMs"), ("uint", 64)),
    **dict.fromkeys(("ShardIndex", "TileIndex"), ("uint", 32)),
    **dict.fromkeys(("Hash32", "PubKey", "ChainId", "TxId", "BlobId"), ("bytes", 32, 32)),
    "Signature": ("bytes", 64, 64),
}


class Refused(Exception):
    """Bytes that are not canonical, or not of the expected type."""


# --- schemas: ("uint", bits) ("int", bits) ("bytes", least, most) ("text", most)
#     ("seq", item, most) ("option", item) ("struct", class) ("union", classes)


def modules() -> list[str]:
    """Every module of the product that declares a wire type."""
    found = []
    for package in PACKAGES:
        paths = sorted((ROOT / package).rglob("*.py"))
        found += [p for p in paths if re.search(r"^@wire\(\d+\)", p.read_text(), re.MULTILINE)]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found)


def structs(module: str) -> dict[int, type]:
    """The wire types of a module by tag, the tag read from its source text."""
    loaded = importlib.import_module(module)
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    pairs = re.findall(r"^@wire\((\d+)\)\n(?:@.*\n)*class (\w+)", source, re.MULTILINE)
    return {int(tag): getattr(loaded, name) for tag, name in pairs}


def all_structs() -> dict[type, int]:
    return {cls: tag for module in modules() for tag, cls in structs(module).items()}


class Reference:
    """The reference codec over a fixed set of structs."""

    def __init__(self) -> None:
        self.tags = all_structs()
        self._fields: dict[type, list[tuple[str, tuple[Any, ...]]]] = {}

    def kind(self, hint: Any) -> tuple[Any, ...]:
        if hint in self.tags:
            return ("struct", hint)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            rest = [self.kind(a) for a in args if a is not type(None)]
            whole = rest[0] if len(rest) == 1 else ("union", tuple(k[1] for k in rest))
            return ("option", whole) if type(None) in args else whole
        if origin is typing.Annotated:
            mark = args[1]
            match type(mark).__name__:
                case "UInt":
                    return ("uint", mark.bits)
                case "SInt":
                    return ("int", mark.bits)
                case "Bytes":
                    return ("bytes", mark.least, mark.most)
                case "Text":
                    return ("text", mark.most)
                case "Seq":
                    return ("seq", self.kind(typing.get_args(args[0])[0]), mark.most)
        if (name := getattr(hint, "__name__", "")) in NAMED:
            return NAMED[name]
        raise TypeError(f"the reference knows no wire form of {hint}")

    def fields(self, cls: type) -> list[tuple[str, tuple[Any, ...]]]:
        if cls not in self._fields:
            hints = typing.get_type_hints(cls, include_extras=True)
            names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
            self._fields[cls] = [(name, self.kind(hints[name])) for name in names]
        return self._fields[cls]

    def plain(self, value: Any) -> Any:
        """A struct object as nested lists, integers, bytes and strings."""
        return self._plain(("struct", type(value)), value)

    def _plain(self, kind: tuple[Any, ...], value: Any) -> Any:
        match kind[0]:
            case "struct" | "union":
                cls = type(value)
                fields = self.fields(cls)
                return [self.tags[cls], *(self._plain(k, getattr(value, n)) for n, k in fields)]
            case "seq":
                return [self._plain(kind[1], item) for item in value]
            case "option":
                return [] if value is None else [self._plain(kind[1], value)]
        return value

    def build(self, kind: tuple[Any, ...], plain: Any) -> Any:
        """The object of a plain value that `check` lets pass."""
        match kind[0]:
            case "struct":
                fields = self.fields(kind[1])
                return kind[1](
                    *(self.build(k, p) for (_, k), p in zip(fields, plain[1:], strict=True))
                )
            case "union":
                cls = next(c for c in kind[1] if self.tags[c] == plain[0])
                return self.build(("struct", cls), plain)
            case "seq":
                return tuple(self.build(kind[1], item) for item in plain)
            case "option":
                return self.build(kind[1], plain[0]) if plain else None
        return plain

    def accepts(self, cls: type, data: bytes) -> bool:
        try:
            self.check(("struct", cls), parse(data))
        except Refused:
            return False
        return True

    def check(self, kind: tuple[Any, ...], plain: Any, depth: int = MAX_DEPTH) -> None:
        def must(condition: bool) -> None:
            if not condition:
                raise Refused(f"{plain!r} is no {kind}")

        must(depth >= 0)
        match kind:
            case ("uint", bits):
                must(isinstance(plain, int) and 0 <= plain <= 2**bits - 1)
            case ("int", bits):
                must(isinstance(plain, int) and -(2**bits) <= 2 * plain < 2**bits)
            case ("bytes", least, most):
                must(isinstance(plain, bytes) and least <= len(plain) <= most)
            case ("text", most):
                must(isinstance(plain, str) and len(plain.encode()) <= most)
                must(all(ord(c) >= 32 and ord(c) != 127 for c in plain))
            case ("struct", cls):
                fields = self.fields(cls)
                must(isinstance(plain, list) and len(plain) == 1 + len(fields))
                must(plain[0] == self.tags[cls])
                for (_, field), value in zip(fields, plain[1:], strict=True):
                    self.check(field, value, depth - 1)
            case ("union", classes):
                must(isinstance(plain, list) and len(plain) > 0)
                by_tag = {self.tags[cls]: cls for cls in classes}
                must(isinstance(plain[0], int) and plain[0] in by_tag)
                self.check(("struct", by_tag[plain[0]]), plain, depth)
            case ("seq", item, most):
                must(isinstance(plain, list) and len(plain) <= most)
                for value in plain:
                    self.check(item, value, depth - 1)
            case ("option", item):
                must(isinstance(plain, list) and len(plain) <= 1)
                for value in plain:
                    self.check(item, value, depth - 1)


# --- MessagePack by hand -----------------------------------------------------------


class Raw(bytes):
    """Bytes to be put into an encoding as they are; how bad encodings are made."""


def pack(plain: Any) -> bytes:
    """The shortest MessagePack of integers, bytes, strings and lists."""
    match plain:
        case Raw():
            return bytes(plain)
        case int():
            return pack_int(plain)
        case bytes():
            return head(plain, (None, 0xC4, 0xC5, 0xC6)) + plain
        case str():
            data = plain.encode()
            return head(data, (0xA0, 0xD9, 0xDA, 0xDB), 32) + data
        case list():
            return head(plain, (0x90, None, 0xDC, 0xDD), 16) + b"".join(map(pack, plain))
    raise TypeError(f"{type(plain)} has no encoding")


def pack_int(n: int) -> bytes:
    if -32 <= n < 128:
        return struct.pack("b", n) if n < 0 else bytes([n])
    for code, form in (
        ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
        if n >= 0
        else ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    ):
        try:
            return bytes([code]) + struct.pack(form, n)
        except struct.error:
            continue
    raise TypeError("an integer of more than 64 bits has no encoding")


def head(items: Any, codes: tuple[int | None, ...], short: int = 0) -> bytes:
    """The type and length in front of `items`; `codes` are the fix, 8, 16 and 32-bit forms."""
    fix, *sized = codes
    size = len(items)
    if fix is not None and size < short:
        return bytes([fix | size])
    for code, form, limit in zip(
        sized, (">B", ">H", ">I"), (1 << 8, 1 << 16, 1 << 32), strict=True
    ):
        if code is not None and size < limit:
            return bytes([code]) + struct.pack(form, size)
    raise TypeError("too long")


def parse(data: bytes) -> Any:
    """The plain value whose shortest encoding is exactly `data`, or Refused."""
    plain, rest = _take(data, 0)
    if rest:
        raise Refused("bytes after the end")
    if pack(plain) != data:
        raise Refused("not the shortest form")
    return plain


def _take(data: bytes, depth: int) -> tuple[Any, bytes]:
    if not data or depth > 2 * MAX_DEPTH:
        raise Refused("cut short, or nested too deep")
    first, rest = data[0], data[1:]
    ints = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    ints |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if first < 0x80 or first >= 0xE0:
        return (first if first < 0x80 else first - 256), rest
    if first in ints:
        size = struct.calcsize(ints[first])
        return struct.unpack(ints[first], _cut(rest, size))[0], rest[size:]
    if first & 0xF0 == 0x90:
        return _take_items(rest, first & 15, depth)
    if first & 0xE0 == 0xA0:
        return _text(_cut(rest, first & 31)), rest[first & 31 :]
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}.get(first)
    if width is None:
        raise Refused("nil, a boolean, a float, a map or an extension")
    size, rest = int.from_bytes(_cut(rest, width), "big"), rest[width:]
    if first in (0xDC, 0xDD):
        return _take_items(rest, size, depth)
    body = _cut(rest, size)
    return (body if first < 0xD0 else _text(body)), rest[size:]


def _take_items(data: bytes, count: int, depth: int) -> tuple[list[Any], bytes]:
    items = []
    if count > len(data):
        raise Refused("more items than bytes")
    for _ in range(count):
        item, data = _take(data, depth + 1)
        items.append(item)
    return items, data


def _cut(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise Refused("cut short")
    return data[:size]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None


# --- examples ------------------------------------------------------------------------


class Draw:
    """Numbers from SHA-256 in counter mode: the same on every machine for ever."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def below(self, n: int) -> int:
        self.count += 1
        digest = hashlib.sha512(f"{self.name}/{self.count}".encode()).digest()
        return int.from_bytes(digest, "big") % n


TEXTS = ("", "a", "tile 7", "/ip4/127.0.0.1/tcp/9000", "größer", "数据 🙂", "x" * 32, "y" * 31)


def example(ref: Reference, kind: tuple[Any, ...], style: str, draw: Draw, room: int = 4) -> Any:
    """A plain value of a kind: `least`, `most` (lengths stay small all the same) or `random`."""
    pick = {"least": lambda n: 0, "most": lambda n: n - 1, "random": draw.below}[style]

    def inner(of: tuple[Any, ...]) -> Any:
        return example(ref, of, style, draw, room - 1)

    match kind:
        case ("uint", bits):
            sizes = [b for b in (0, 6, 7, 8, 15, 16, 31, 32, 63, 64) if b <= bits]
            top = 2 ** (sizes[pick(len(sizes))] if style == "random" else bits)
            return pick(top)
        case ("int", bits):
            return pick(2**bits) - 2 ** (bits - 1) if style != "random" else draw.below(400) - 200
        case ("bytes", least, most):
            size = least + pick(min(most - least, 40) + 1)
            return bytes(draw.below(256) if style == "random" else pick(256) for _ in range(size))
        case ("text", most):
            fitting = [t for t in TEXTS if len(t.encode()) <= most]
            return fitting[pick(len(fitting))]
        case ("seq", item, most):
            return [inner(item) for _ in range(pick(min(most, 3) + 1) if room > 0 else 0)]
        case ("option", item):
            return [inner(item)] if pick(2) else []
        case ("union", classes):
            return inner(("struct", classes[pick(len(classes))]))
        case ("struct", cls):
            return [ref.tags[cls], *(inner(k) for _, k in ref.fields(cls))]
    raise TypeError(kind)


def rejects(ref: Reference, cls: type, good: list[Any]) -> list[tuple[str, bytes]]:
    """Encodings near a good one that every decoder must refuse, and why."""
    data = pack(good)
    found = [
        ("a byte after the end", data + b"\x00"),
        ("the last byte missing", data[:-1]),
        ("another tag", pack([good[0] ^ 1, *good[1:]])),
        ("one field too many", pack([*good, 0])),
        ("array length in 32 bits", b"\xdd" + struct.pack(">I", len(good)) + _body(good)),
        ("tag in 8 bits, or in 16", pack([Raw(_longer_int(good[0])), *good[1:]])),
        ("a map", b"\x80"),
        ("nil", b"\xc0"),
    ]
    if len(good) > 1:
        found.append(("a field missing", pack(good[:-1])))
    for i, (name, kind) in enumerate(ref.fields(cls), 1):
        for why, bad in _bad_values(kind, good[i]):
            found.append((f"{name}: {why}", pack([*good[:i], bad, *good[i + 1 :]])))
    return found


def _body(items: list[Any]) -> bytes:
    return b"".join(map(pack, items))


def _longer_int(n: int) -> bytes:
    return bytes([0xCC, n]) if n < 128 else b"\xcd" + struct.pack(">H", n)


def _bad_values(kind: tuple[Any, ...], value: Any) -> list[tuple[str, Any]]:
    nil = ("nil", Raw(b"\xc0"))
    match kind:
        case ("uint" | "int", bits):
            bad = [
                ("not the shortest form", Raw(b"\xcf" + struct.pack(">Q", 5))),
                ("a float", Raw(b"\xca" + struct.pack(">f", 1.0))),
                ("a boolean", Raw(b"\xc3")),
            ]
            if kind[0] == "uint":
                bad.append(("negative", -1))
            if bits < 64:
                bad.append(("too large", 2**bits))
            return bad
        case ("bytes", least, most):
            bad = [("text", "x" * len(value)), ("length in 32 bits", _long_bytes(value))]
            if most <= 128:
                bad.append(("too long", bytes(most + 1)))
            if least:
                bad.append(("too short", bytes(least - 1)))
            return bad
        case ("text", most):
            return [
                ("bytes", b"x"),
                ("too long", "x" * (most + 1)),
                ("a control character", "a\nb"),
                ("not UTF-8", Raw(b"\xa1\xff")),
                ("a surrogate", Raw(b"\xa3\xed\xa0\x80")),
                ("length in 8 bits", Raw(b"\xd9\x01x")),
            ]
        case ("seq", _, most):
            longer = Raw(b"\xdd" + struct.pack(">I", len(value)) + _body(value))
            bad = [("length in 32 bits", longer), nil, ("a map", Raw(b"\x80"))]
            if value and most <= 64:
                bad.append(("too many items", [value[0]] * (most + 1)))
            return bad
        case ("option", _):
            return [nil, ("two items", [*value, *value] if value else [0, 0]), ("a number", 0)]
    return [nil, ("an empty array", []), ("a number", 0)]


def _long_bytes(value: bytes) -> Raw:
    return Raw(b"\xc6" + struct.pack(">I", len(value)) + value)


# --- files ---------------------------------------------------------------------------


def describe(kind: tuple[Any, ...]) -> str:
    match kind:
        case ("uint" | "int", bits):
            return f"{kind[0]}{bits}"
        case ("bytes", least, most):
            return f"bytes[{least}]" if least == most else f"bytes[{least}..{most}]"
        case ("text", most):
            return f"text[{most}]"
        case ("seq", item, most):
            return f"array[{describe(item)}; {most}]"
        case ("option", item):
            return f"option[{describe(item)}]"
        case ("union", classes):
            return " | ".join(c.__name__ for c in classes)
    name: str = kind[1].__name__
    return name


def splice(good: bytes, bad: bytes) -> list[Any]:
    """[at, cut, put]: `bad` is `good` with `cut` bytes at `at` replaced by `put` (hex)."""
    at = 0
    while at < min(len(good), len(bad)) and good[at] == bad[at]:
        at += 1
    end = 0
    while end < min(len(good), len(bad)) - at and good[-1 - end] == bad[-1 - end]:
        end += 1
    return [at, len(good) - end - at, bad[at : len(bad) - end].hex()]


def vectors(ref: Reference, module: str) -> list[dict[str, Any]]:
    cases = []
    for tag, cls in sorted(structs(module).items()):
        draw = Draw(cls.__name__)
        styles = ("least", "most", "random", "random")
        made = [example(ref, ("struct", cls), style, draw) for style in styles]
        base = pack(made[0])
        cases.append(
            {
                "type": cls.__name__,
                "tag": tag,
                "fields": {name: describe(kind) for name, kind in ref.fields(cls)},
                "examples": sorted({pack(plain).hex(): None for plain in made}, key=len),
                "base": base.hex(),
                "rejects": [[why, *splice(base, bad)] for why, bad in rejects(ref, cls, made[0])],
            }
        )
    return cases


def path_of(module: str) -> Path:
    return VECTORS / f"{module}.json"


def text_of(cases: list[dict[str, Any]]) -> str:
    """One line a reject, so that a change of format shows as few changed lines."""
    text = json.dumps(cases, indent=1, ensure_ascii=False)
    return (
        re.sub(r"\[\s+(\"[^\"]*\"),\s+(\d+),\s+(\d+),\s+(\"\w*\")\s+\]", r"[\1, \2, \3, \4]", text)
        + "\n"
    )


def main() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    ref = Reference()
    names = modules()
    for stale in set(VECTORS.glob("*.json")) - {path_of(m) for m in names}:
        stale.unlink()
    for module in names:
        path_of(module).write_text(text_of(vectors(ref, module)))


if __name__ == "__main__":
    main()
