"""Aggregation straight from its definition (docs/spec/aggregation.md), with fractions.

Shares no code with `tiles.gram`, `tiles.weights` and `tiles.aggregate`. Run it to write the
vectors: `python -m tests.reference.aggregate_ref`.
"""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from math import isqrt
from pathlib import Path
from typing import Any

from tests.reference.merkle_ref import h, noise, root, u64

VECTORS = Path(__file__).parent.parent / "vectors" / "tiles" / "aggregation.json"
SUBTILE = 65536
ONE = 2**30
MOMENTUM_PPM = 300_000


def lower_median(values: list[int]) -> int:
    return sorted(values)[(len(values) - 1) // 2]


def shrink(length: int, bound: int) -> int:
    return ONE if length <= bound else bound * ONE // length


def weights(gram: list[list[int]]) -> list[int]:
    n = len(gram)
    norm = [isqrt(max(gram[i][i], 0)) for i in range(n)]
    live = [i for i in range(n) if norm[i]]
    if not live:
        return [0] * n
    m = len(live)
    scale = [shrink(norm[i], lower_median([norm[j] for j in live])) for i in live]
    inner = [[scale[a] * scale[b] * gram[live[a]][live[b]] for b in range(m)] for a in range(m)]
    groups, width = [[a] for a in range(m)], 1
    if m >= 5:
        width = m - (m - 1) // 3
        cut = max(max(inner[a][a] for a in range(m)).bit_length() - 40, 0)
        inner = [[min(max(v // 2**cut, -(2**40)), 2**40) for v in row] for row in inner]
        groups = []
        for a in range(m):
            i = live[a]
            turn = [gram[i][j] * 2**40 // (norm[i] * norm[j]) for j in live]  # the cosine
            turn = [min(max(v, -(2**40)), 2**40) for v in turn]
            groups.append(sorted(range(m), key=lambda b, turn=turn: (-turn[b], b))[:width])
        inner = [[sum(inner[x][y] for x in p for y in q) for q in groups] for p in groups]
    share = [0] * m
    for _ in range(3):
        length = []
        for a in range(m):
            # |z_a - v|**2 in units of 2**-60
            mine = inner[a][a] * ONE * ONE
            both = sum(share[b] * inner[a][b] for b in range(m)) * ONE
            centre = sum(share[b] * share[c] * inner[b][c] for b in range(m) for c in range(m))
            length.append(isqrt(max(mine - 2 * both + centre, 0)))
        pull = [shrink(x, lower_median(length)) for x in length]
        share = [(share[a] * (m * ONE - sum(pull)) + pull[a] * ONE) // (m * ONE) for a in range(m)]
    result = [0] * n
    for a in range(m):
        total = sum(share[b] for b in range(m) if a in groups[b])
        result[live[a]] = scale[a] * total // (width * 2**40)
    return result


def as_fp32(exact: Fraction) -> float:
    """The nearest fp32, ties to even, of a number in fp32's range."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    below = size.numerator.bit_length() - size.denominator.bit_length() - 25
    exponent = max(-149, below)  # of the last bit; a start that is never too high
    while size / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    ulp = Fraction(2) ** exponent
    rounded = float(round(size / ulp) * ulp)  # exact: at most 24 bits and one carry
    return rounded if exact > 0 else -rounded


def way(base: float, previous: float) -> int:
    """How far an element went in the last round, in units of 2^-28."""
    new, old = (round(Fraction(v) * 2**28) for v in (base, previous))
    return min(max(new - old, 1 - 2**28), 2**28 - 1)


def new_value(
    base: float, xs: list[int], ws: list[int], previous: float | None = None, share: int = 0
) -> float:
    total = sum(w * x for w, x in zip(ws, xs, strict=True))
    if previous is not None:
        total += share * way(base, previous)
    return as_fp32(Fraction(base) + Fraction(total, 2**48)) if total else base


def gram_parts(deltas: list[list[int]]) -> list[list[list[int]]]:
    """[subtile][i][j]"""
    cuts = range(0, len(deltas[0]), SUBTILE)
    rows = [[d[c : c + SUBTILE] for d in deltas] for c in cuts]
    return [
        [[sum(a * b for a, b in zip(x, y, strict=True)) for y in row] for x in row] for row in rows
    ]


def gram_root(parts: list[list[list[int]]], n: int) -> bytes:
    leaves = []
    for i in range(n):
        for j in range(i + 1):
            values = b"".join(p[i][j].to_bytes(16, "big", signed=True) for p in parts)
            leaves.append(h("gram-leaf", u64(i) + u64(j) + values))
    return root("list", leaves, 0)


def delta_of(label: str, count: int, spread: int) -> list[int]:
    raw = noise(label, 4 * count)
    numbers = struct.unpack(f"<{count}i", raw)
    return [0 if n % 16 else n >> spread for n in numbers]


def previous_of(values: list[float]) -> list[float]:
    """What the version before held: a little less, now and then the same, or far away."""
    near = [as_fp32(Fraction(v) * 65 / 64) for v in values]
    return [v if k % 5 == 0 else -3.5 if k % 17 == 0 else near[k] for k, v in enumerate(values)]


def vectors() -> list[dict[str, Any]]:
    made = []
    for n, elements in (
        (1, 50),
        (2, 66000),
        (3, 700),
        (4, 500),
        (5, 500),
        (7, 800),
        (8, 900),
        (12, 300),
    ):
        deltas = [delta_of(f"delta {n} {i}", elements, 8 + i % 3) for i in range(n)]
        if n == 7:  # two that pull the others' mean back, and are shorter than they
            deltas[5] = deltas[6] = [-sum(v) // 8 for v in zip(*deltas[:5], strict=True)]
        if n == 8:
            deltas[2] = [-8 * v for v in deltas[1]]  # a flipped sign, eight times as long
            deltas[5] = [0] * elements
        base = struct.unpack(f"<{elements}h", noise(f"base {n}", 2 * elements))
        values = [b * 2.0**-17 for b in base]
        parts = gram_parts(deltas)
        gram = [[sum(p[i][j] for p in parts) for j in range(n)] for i in range(n)]
        ws = weights(gram)
        new = [new_value(b, [d[k] for d in deltas], ws) for k, b in enumerate(values)]
        before = previous_of(values)
        share = MOMENTUM_PPM * 2**20 // 10**6
        gone = [
            new_value(b, [d[k] for d in deltas], ws, before[k], share) for k, b in enumerate(values)
        ]
        made.append(
            {
                "deltas": n,
                "elements": elements,
                "gram": [str(gram[i][j]) for i in range(n) for j in range(i + 1)],
                "gram_root": gram_root(parts, n).hex(),
                "weights": ws,
                "tile_hash": h("test", struct.pack(f"<{elements}f", *new)).hex(),
                "momentum_ppm": MOMENTUM_PPM,
                "momentum_hash": h("test", struct.pack(f"<{elements}f", *gone)).hex(),
            }
        )
    return made


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
