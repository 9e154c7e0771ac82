"""Fuzzing the two parsers of safetensors headers: of our own shard files, and of checkpoints.

A case is a valid header, spoiled. What our parser accepts must be sound by the rules written
here once more, must mean the same to the parser of checkpoints, and must open in the
`safetensors` package.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import safetensors

from chain.errors import BlyanError
from tests.attacks.mutation import anything, number, spoil_bytes
from tiles.layout import TensorSpec
from tiles.shardfile import TensorRange, build_header, parse_header
from tiles.source import SourceParser

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32}
BITS |= {"I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8}
NAMES = ("w", "layers.0.experts.1.w1.weight", "가중치", "a\nb", "x" * 200, "", "e\u0301", "😀.bias")
MOST_DATA = 1 << 16  # bytes of a data section that is really made


class HeaderTarget:
    name = "header"
    size = 0

    def run(self, random: Random) -> str:
        """One case: what became of it. Raises AssertionError where a parser is wrong."""
        prefix, file_bytes = spoiled(random, *valid(random))
        try:
            tensors, start = parse_header(prefix, file_bytes)
        except BlyanError:
            tensors = None
        try:
            source = SourceParser().parse("x", io.BytesIO(prefix).read, file_bytes)
        except BlyanError:
            source = None
        if source is not None:
            found = [TensorRange(p.spec, p.start, p.end) for p in source.tensors]
            check(found, source.data_start, file_bytes, prefix)
        if tensors is None:
            return "refused" if source is None else "refused by the stricter"
        check(tensors, start, file_bytes, prefix)
        assert source is not None, "the parser of checkpoints refuses a sound file"
        assert sorted(found, key=str) == sorted(tensors, key=str)
        if file_bytes - start <= MOST_DATA:
            safetensors.deserialize(prefix[:start] + bytes(file_bytes - start))
        return "accepted"


def valid(random: Random) -> tuple[dict[str, Any], int, bytes]:
    """The entries of a sound header, the size of its data section, and its bytes."""
    tensors = []
    for name in random.sample(NAMES, random.randrange(1, 5)):
        shape = tuple(random.choice((0, 1, 2, 3, 8, 64)) for _ in range(random.randrange(4)))
        if name:
            tensors.append(TensorSpec(name, random.choice(list(BITS)), shape))
    raw = build_header(tuple(tensors), {"format": "pt", "shard": "layers.0.experts.1"})
    return json.loads(raw[8:]), sum(t.data_bytes for t in tensors), raw


def spoiled(random: Random, entries: dict[str, Any], size: int, raw: bytes) -> tuple[bytes, int]:
    """The beginning of a file and the size that the file system tells of it."""
    kind = random.randrange(10)
    if kind < 5:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            spoil_entries(random, entries)
        raw = as_file(random, entries)
    if kind >= 4:
        text = raw[8:].rstrip() if random.random() < 0.8 else raw[8:]
        text = spoil_bytes(random, text, random.choice((1, 1, 2, 5)))
        raw = len(text).to_bytes(8, "little") + text
    file_bytes = len(raw) + size
    if kind == 9:
        raw = spoil_bytes(random, raw[:8], 1) + raw[8:]
    if random.random() < 0.1:
        file_bytes = max(0, number(random, file_bytes))
    return raw, file_bytes


def spoil_entries(random: Random, entries: dict[str, Any]) -> None:
    """One lie in the header's own terms."""
    name = random.choice(list(entries))
    entry = entries[name]
    match random.randrange(8):
        case 0:
            entries[name] = anything(random)
        case 1:
            del entries[name]
            entries[random.choice((*NAMES, "__metadata__"))] = entry
        case 2:
            entries[random.choice((*NAMES, "__metadata__"))] = entry
        case _ if isinstance(entry, dict) and entry:
            key = random.choice(list(entry))
            value = entry[key]
            if isinstance(value, list) and value and random.random() < 0.8:
                value = list(value)
                at = random.randrange(len(value))
                old = value[at] if type(value[at]) is int else 0
                value[at] = random.choice((number(random, old), anything(random)))
                if random.random() < 0.2:
                    value.insert(at, value[at])
                entry[key] = value
            elif key == "dtype" and random.random() < 0.7:
                entry[key] = random.choice([*BITS, "f32", "F4", "F6_E2M3", "F128", ""])
            else:
                entry[random.choice((key, "dtype", "shape", "data_offsets", "more"))] = anything(
                    random
                )


def as_file(random: Random, entries: dict[str, Any]) -> bytes:
    text = json.dumps(
        entries,
        ensure_ascii=random.random() < 0.5,
        separators=random.choice(((",", ":"), (", ", ": "), (" ,\n", ":\t"))),
    )
    if random.random() < 0.15:  # a name, or a key, twice
        at = text.find(',"')
        text = text[:at] + "," + text[1:at] + text[at:] if at > 0 else text
    raw = text.encode(errors="surrogatepass") + b" " * random.choice((0, 0, 1, 100))
    return len(raw).to_bytes(8, "little") + raw


def check(tensors: Sequence[TensorRange], start: int, file_bytes: int, prefix: bytes) -> None:
    """What must hold of whatever was accepted, without a look at how it was parsed."""
    length = int.from_bytes(prefix[:8], "little")
    assert start == 8 + length <= len(prefix)
    at = 0
    for tensor in tensors:
        bits = BITS.get(tensor.spec.dtype)
        count = 1
        for n in tensor.spec.shape:
            assert type(n) is int
            assert n >= 0
            count *= n
        assert tensor.start == at
        assert bits is None or (tensor.end - at) * 8 == count * bits
        at = tensor.end
    assert start + at == file_bytes
    names = [t.spec.name for t in tensors]
    assert len(set(names)) == len(names)
    objects: list[list[tuple[str, Any]]] = []  # the whole header comes last
    json.loads(prefix[8:start], object_pairs_hook=objects.append)
    assert sorted(n for n, _ in objects[-1] if n != "__metadata__") == sorted(names)
