"""The delta payload straight from its definition (docs/spec/delta.md), element by element.

Shares no code with `tiles.delta` and `tiles.sections`. Run it to write the vectors:
`python -m tests.reference.delta_ref`.
"""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgpack

from tests.reference.merkle_ref import h, noise, root, u64

VECTORS = Path(__file__).parent.parent / "vectors" / "tiles" / "delta.json"
CHUNK, SECTION = 4096, 65536
INT8, LOW_RANK = 0x2000, 0x3000  # what stands in place of a density; LOW_RANK plus the rank


def units(values: list[float]) -> list[int]:
    """Nearest multiples of 2**-28, ties to even."""
    return [round(Fraction(v) * 2**28) for v in values]


def bit_string(bits: str) -> bytes:
    """Bits, most significant first, padded with zeros to whole bytes."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def scaled(value: int, bits: int) -> tuple[int, int]:
    exponent = max(value.bit_length() - bits, 0)
    mantissa = (value + (2**exponent // 2)) // 2**exponent
    return min(mantissa, 2**bits - 1), exponent


def quantize_chunk(chunk: list[int], density: int) -> tuple[dict[int, tuple[bool, int]], bytes]:
    """Kept positions with (class, value), and the chunk's four bytes of centroids."""
    order = sorted(range(len(chunk)), key=lambda i: (-abs(chunk[i]), i))
    kept = sorted(i for i in order[:density] if chunk[i] != 0)
    if not kept:
        return {}, bytes(4)
    sizes = [abs(chunk[i]) for i in kept]
    split = sum(sizes) // len(sizes)
    for _ in range(3):
        high = [s > split for s in sizes]
        lows = [s for s in sizes if s <= split]
        highs = [s for s in sizes if s > split]
        low_mean = sum(lows) // len(lows)
        high_mean = sum(highs) // len(highs) if highs else low_mean
        split = (low_mean + high_mean) // 2
    low, top = scaled(low_mean, 8), scaled(high_mean, 8)
    values = {}
    for i, is_high in zip(kept, high, strict=True):
        is_high = is_high and low != top
        mantissa, exponent = top if is_high else low
        size = mantissa * 2**exponent
        values[i] = (is_high, size if chunk[i] > 0 else -size)
    return values, bytes([*low, *top])


def sparse_section(part: list[int], density: int) -> tuple[list[int], bytes]:
    decoded, table, entries = [0] * len(part), b"", []
    for start in range(0, len(part), CHUNK):
        values, centroids = quantize_chunk(part[start : start + CHUNK], density)
        table += centroids
        for i, (is_high, value) in values.items():
            decoded[start + i] = value
            entries.append((start + i, is_high, value))
    k = (len(part) // len(entries)).bit_length() - 1 if entries else 0
    signs, classes, rest, unary, previous = "", "", "", "", -1
    for at, is_high, value in entries:
        gap = at - previous - 1
        signs += "1" if value < 0 else "0"
        classes += "1" if is_high else "0"
        rest += f"{gap % 2**k:0{k}b}" if k else ""
        unary += "0" * (gap // 2**k) + "1"
        previous = at
    head = len(entries).to_bytes(4, "big") + table
    return decoded, head + b"".join(bit_string(s) for s in (signs, classes, rest, unary))


def full_section(part: list[int], bits: int, form: str) -> tuple[list[int], bytes]:
    decoded, exponents, mantissas = [], b"", b""
    for start in range(0, len(part), CHUNK):
        chunk = part[start : start + CHUNK]
        exponent = max(max(abs(v) for v in chunk).bit_length() - bits, 0)
        exponents += bytes([exponent])
        for value in chunk:
            mantissa = min((abs(value) + 2**exponent // 2) // 2**exponent, 2**bits - 1)
            mantissa = -mantissa if value < 0 else mantissa
            mantissas += struct.pack(form, mantissa)
            decoded.append(mantissa * 2**exponent)
    return decoded, exponents + mantissas


def dense_section(part: list[int]) -> tuple[list[int], bytes]:
    return full_section(part, 15, ">h")


def rounded(value: int, shift: int) -> int:
    """value / 2**shift to the nearest, halves away from zero."""
    size = (abs(value) + 2**shift // 2) // 2**shift
    return -size if value < 0 else size


def fitted(vector: list[int], bits: int) -> list[int]:
    shift = max(max(abs(x) for x in vector).bit_length() - bits, 0)
    return [rounded(x, shift) for x in vector]


def dot(one: list[int], other: list[int]) -> int:
    return sum(x * y for x, y in zip(one, other, strict=True))


def low_rank_section(part: list[int], rank: int) -> tuple[list[int], bytes]:
    padded = part + [0] * (-len(part) % 256)
    matrix = [padded[i : i + 256] for i in range(0, len(padded), 256)]
    rows, count = len(matrix), min(rank, len(matrix))
    shift = max(max(abs(x) for x in padded).bit_length() - 20, 0)
    rest = [[rounded(x, shift) for x in row] for row in matrix]
    found: list[tuple[list[int], list[int]]] = []
    exponent = 0
    while len(found) < count:
        columns = [list(c) for c in zip(*rest, strict=True)]
        start = max(rest, key=lambda row: sum(abs(x) for x in row))  # the first of the largest
        if not any(start):
            break
        line = fitted(start, 15)
        for _ in range(2):
            column = fitted([dot(row, line) for row in rest], 15)
            line = fitted([dot(c, column) for c in columns], 15)
        column = fitted([dot(row, line) for row in rest], 15)
        best = max(abs(dot(c, column)) for c in columns)
        peak = (max(abs(x) for x in column) * best // dot(column, column)).bit_length()
        if not found:
            exponent = max(peak - 14, 0)
        bits = min(max((peak - exponent + 1) // 2, 1), 7)
        u = [max(1 - 2**bits, min(x, 2**bits - 1)) for x in fitted(column, bits)]
        norm = dot(u, u) * 2**exponent
        v = []
        for c in columns:
            size = min((2 * abs(dot(c, u)) + norm) // (2 * norm), 127)
            v.append(-size if dot(c, u) < 0 else size)
        if not any(v):
            break
        rest = [
            [x - a * b * 2**exponent for x, b in zip(row, v, strict=True)]
            for row, a in zip(rest, u, strict=True)
        ]
        if next(x for x in u if x) < 0:
            u, v = [-x for x in u], [-x for x in v]
        found.append((u, v))
    exponent += shift
    while exponent and max((abs(x) for u, _ in found for x in u), default=0) < 64:
        found = [([2 * x for x in u], v) for u, v in found]
        exponent -= 1
    found.sort(reverse=True)
    most = 2**28 - 16
    product = [
        sum(u[i] * v[j] for u, v in found) * 2**exponent for i in range(rows) for j in range(256)
    ]
    decoded = [max(-most, min(x, most)) for x in product[: len(part)]]
    raw = b"".join(struct.pack(f"{rows + 256}b", *u, *v) for u, v in found)
    return decoded, bytes([exponent]) + raw + bytes((count - len(found)) * (rows + 256))


def section_of(part: list[int], coding: str, density: int) -> tuple[list[int], bytes]:
    """Decoded units and bytes of one subtile of a shard."""
    if coding == "dense":
        return dense_section(part)
    if density == INT8:
        return full_section(part, 7, ">b")
    if density > LOW_RANK:
        return low_rank_section(part, density - LOW_RANK)
    return sparse_section(part, density)


def payload(
    base_root: bytes, density: int, shards: list[tuple[int, str, list[float]]]
) -> tuple[bytes, bytes, list[list[int]]]:
    """(payload, payload root, decoded units) of shards (index, coding, values) in order."""
    entries, sections, leaves, decoded = [], [], [], []
    for index, coding, values in shards:
        whole, lengths, got = units(values), [], []
        for number, start in enumerate(range(0, len(whole), SECTION)):
            part = whole[start : start + SECTION]
            out, raw = section_of(part, coding, density)
            got += out
            lengths.append(len(raw))
            sections.append(raw)
            leaves.append(h("payload-section", u64(index) + u64(number) + raw))
        decoded.append(got)
        entries.append([101, index, lengths])
    header = msgpack.packb([102, base_root, density, entries])
    raw = len(header).to_bytes(4, "big") + header + b"".join(sections)
    return raw, root("list", [h("payload", header), *leaves], 0), decoded


def values_of(label: str, count: int, spread: int) -> list[float]:
    """fp32 values that any implementation can make: signed 16-bit noise times 2**-spread, with
    every seventh chunk of 64 zero, as unused rows are."""
    raw = noise(label, 2 * count)
    numbers = struct.unpack(f"<{count}h", raw)
    return [0.0 if i // 64 % 7 == 3 else n * 2.0**-spread for i, n in enumerate(numbers)]


CASES = [
    {"label": "one value", "coding": "sparse", "elements": 1, "density": 64, "spread": 20},
    {"label": "a short chunk", "coding": "sparse", "elements": 100, "density": 8, "spread": 22},
    {"label": "two chunks", "coding": "sparse", "elements": 5000, "density": 64, "spread": 24},
    {"label": "everything", "coding": "sparse", "elements": 4100, "density": 4096, "spread": 16},
    {"label": "tiny values", "coding": "sparse", "elements": 4096, "density": 32, "spread": 40},
    {"label": "zeros", "coding": "sparse", "elements": 4097, "density": 64, "spread": 60},
    {"label": "two subtiles", "coding": "sparse", "elements": 66000, "density": 16, "spread": 22},
    {"label": "far apart", "coding": "sparse", "elements": 66000, "density": 3, "spread": 22},
    {"label": "dense", "coding": "dense", "elements": 4200, "density": 64, "spread": 16},
    {"label": "dense, fine", "coding": "dense", "elements": 300, "density": 64, "spread": 30},
    {"label": "int8", "coding": "sparse", "elements": 66000, "density": INT8, "spread": 16},
    {"label": "int8, fine", "coding": "sparse", "elements": 300, "density": INT8, "spread": 36},
    {"label": "dense, int8", "coding": "dense", "elements": 30, "density": INT8, "spread": 20},
    {"label": "rank 1", "coding": "sparse", "elements": 9, "density": LOW_RANK + 1, "spread": 20},
    {
        "label": "rank 2",
        "coding": "sparse",
        "elements": 66000,
        "density": LOW_RANK + 2,
        "spread": 22,
    },
    {
        "label": "rank 5",
        "coding": "sparse",
        "elements": 5000,
        "density": LOW_RANK + 5,
        "spread": 16,
    },
    {
        "label": "rank 3, fine",
        "coding": "sparse",
        "elements": 900,
        "density": LOW_RANK + 3,
        "spread": 38,
    },
    {
        "label": "rank 4, zeros",
        "coding": "sparse",
        "elements": 900,
        "density": LOW_RANK + 4,
        "spread": 60,
    },
]


def vectors() -> list[dict[str, Any]]:
    made = []
    for case in CASES:
        values = values_of(case["label"], case["elements"], case["spread"])
        base = noise(case["label"], 32)
        raw, payload_root, decoded = payload(base, case["density"], [(3, case["coding"], values)])
        packed = struct.pack(f"<{len(decoded[0])}i", *decoded[0])
        more = {
            "base_root": base.hex(),
            "payload_root": payload_root.hex(),
            "payload": raw.hex() if len(raw) < 4000 else "",
            "payload_hash": h("test", raw).hex(),
            "units_hash": h("test", packed).hex(),
        }
        made.append(case | more)
    return made


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
