"""Random numbers, genesis weights, data assignment and splits, slowly and in plain Python
(docs/spec/training.md, model.md, datasets.md). Shares no code with the project.

Run it to write the vectors: `python -m tests.reference.data_ref`.
"""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

import blake3

VECTORS = Path(__file__).parent.parent / "vectors" / "data" / "data.json"
TWO64 = 2**64
MODEL = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "experts": 2,
    "top_k": 1,
    "expert_width": 8,
    "context": 8,
    "init_seed": "vector",
}


def h(name: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest()


def be(value: int) -> bytes:
    return value.to_bytes(8, "big")


def stream(seed: bytes, label: str, *parts: int | bytes, length: int) -> bytes:
    coded = b"".join(be(p) if isinstance(p, int) else p for p in parts)
    key = h("prf", seed + bytes([len(label)]) + label.encode() + coded)
    return blake3.blake3(b"", key=key).digest(length=length)


def words(seed: bytes, label: str, *parts: int | bytes, count: int) -> list[int]:
    data = stream(seed, label, *parts, length=8 * count)
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def below(word: int, bound: int) -> int:
    return word * bound // TWO64


# --- genesis weights -----------------------------------------------------------------


def shard_tensors(m: dict[str, Any]) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    w, e, f = m["width"], m["experts"], m["expert_width"]
    out: list[tuple[str, list[tuple[str, tuple[int, ...]]]]] = [("embed", [("weight", (256, w))])]
    for _ in range(m["layers"]):
        out.append(("attention", [(n, (w, w)) for n in ("query", "key", "value", "output")]))
        norms = [("attention_norm", (w,)), ("expert_norm", (w,))]
        learned = m.get("routing", "top_k") == "top_k"
        router = [("weight", (w, e)), ("bias", (e,))] if learned else []
        out.append(("router", [*router, *norms]))
        experts = m.get("shared_experts", 0) + e
        out += [("expert", [("gate", (w, f)), ("up", (w, f)), ("down", (f, w))])] * experts
    return [*out, ("head", [("weight", (w, 256))]), ("final", [("norm", (w,))])]


def initial_shards(m: dict[str, Any]) -> list[bytes]:
    seed = h("prf", m["init_seed"].encode())
    shards = []
    for i, (shard, tensors) in enumerate(shard_tensors(m)):
        section = b""
        for j, (name, shape) in enumerate(tensors):
            count = shape[0] * (shape[1] if len(shape) > 1 else 1)
            if name.endswith("norm"):
                section += struct.pack("<f", 1.0) * count
                continue
            if name == "bias":
                section += bytes(4 * count)
                continue
            fan_in = 1024 if shard == "embed" else shape[0]
            if name in ("output", "down"):
                fan_in *= 2 * m["layers"]
            scale = Fraction(isqrt(3 * 2**40 // fan_in), 2**20)
            data = stream(seed, "init", i, j, length=4 * count)
            for k in range(count):
                draw = int.from_bytes(data[4 * k : 4 * k + 4], "little") // 256 - 2**23
                section += struct.pack("<f", float(Fraction(draw, 2**23) * scale))
        shards.append(section)
    return shards


# --- data assignment -------------------------------------------------------------------


def grid(size: int, window: int) -> tuple[int, int]:
    page = max(min(4096, size // 16), window)
    return page, size // page


def assigned(seed: bytes, learner: bytes, round_: int, pages: int) -> list[int]:
    drawn = words(seed, "pages", learner, round_, count=pages)
    count = max(1, min(pages // 2, 1024))
    return sorted(sorted(range(pages), key=lambda p: (drawn[p], p))[:count])


def starts(drawn: list[int], choice: list[int], size: int, window: int) -> list[int]:
    page, pages = grid(size, window)
    out = []
    for i in range(0, len(drawn), 2):
        p = choice[below(drawn[i], len(choice))]
        length = size - p * page if p == pages - 1 else page
        out.append(p * page + below(drawn[i + 1], length - window + 1))
    return out


def batch_starts(
    seed: bytes, learner: bytes, round_: int, step: int, size: int, batch: int, window: int
) -> list[int]:
    pages = assigned(seed, learner, round_, grid(size, window)[1])
    drawn = words(seed, "batch", learner, round_, step, count=2 * batch)
    return starts(drawn, pages, size, window)


def jury_starts(
    train_seed: bytes,
    jury_seed: bytes,
    learner: bytes,
    round_: int,
    size: int,
    count: int,
    window: int,
) -> list[int]:
    pages = grid(size, window)[1]
    held = assigned(train_seed, learner, round_, pages)
    free = [p for p in range(pages) if p not in held] or held
    drawn = words(jury_seed, "slices", learner, round_, count=2 * count)
    return sorted(set(starts(drawn, free, size, window)))


def root(leaves: list[bytes]) -> bytes:
    level = [h("batch", b"\x00" + be(i) + leaf) for i, leaf in enumerate(leaves)]
    while len(level) > 1:
        odd = [level[-1]] if len(level) % 2 else []
        pairs = [h("batch", b"\x01" + level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + odd
    return h("batch", b"\x02" + be(len(leaves)) + b"".join(level))


# --- clusters and split ------------------------------------------------------------------


def normal(text: bytes) -> bytes:
    lower = bytes(c + 32 if 65 <= c <= 90 else c for c in text)
    return bytes(c for c in lower if c >= 128 or 97 <= c <= 122 or 48 <= c <= 57)


def signature(text: bytes) -> list[int] | None:
    p = 0x9E3779B97F4A7C15
    constants = words(bytes(32), "minhash", count=64)
    kept = []
    for i in range(len(text) - 15):
        x = 0
        for c in text[i : i + 16]:
            x = (x * p + c) % TWO64
        x ^= x >> 29
        if x >> 62 == 0:
            kept.append(x)
    if not kept:
        return None
    out = []
    for j in range(32):
        mixed = [(x * (constants[j] | 1) + constants[32 + j]) % TWO64 for x in kept]
        out.append(min(x ^ (x >> 32) for x in mixed))
    return out


def clusters(units: list[bytes]) -> list[int]:
    first = list(range(len(units)))
    signatures = [signature(normal(u)) for u in units]
    seen: dict[Any, int] = {}
    for i, unit in enumerate(units):
        s = signatures[i]
        keys: list[Any] = [normal(unit)]
        keys += [(b, tuple(s[b : b + 4])) for b in range(0, 32, 4)] if s is not None else []
        for key in keys:
            j = seen.setdefault(key, i)
            t = signatures[j]
            if s is None or t is None or sum(a == b for a, b in zip(s, t, strict=True)) >= 20:
                low, high = sorted((first[i], first[j]))
                first = [low if f == high else f for f in first]
    return first


def weights(units: list[tuple[int, int]], labels: list[int]) -> dict[int, int]:
    """Bytes of each cluster."""
    out = dict.fromkeys(labels, 0)
    for (a, b), label in zip(units, labels, strict=True):
        out[label] += b - a
    return out


def split(text: bytes, sizes: list[int], seed: bytes) -> tuple[bytes, bytes]:
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    units = list(pairwise(edges))
    labels = clusters([text[a:b] for a, b in units])
    heavy = max(weights(units, labels).values())
    if len(set(labels)) < 32 or heavy * 8 > len(text):
        size = max(256, min(4096, len(text) // 32))
        cut = []
        for a, b in units:
            n = max(1, (b - a + size // 2) // size)
            points = [a + i * size for i in range(n)] + [b]
            cut += pairwise(points)
        units = cut
        labels = clusters([text[a:b] for a, b in units])
        if len(set(labels)) < 2:
            labels = list(range(len(units)))
    order = sorted(set(labels))
    drawn = words(seed, "split", count=len(order))
    weight = weights(units, labels)
    held: list[int] = []
    size = 0
    for i in sorted(range(len(order)), key=lambda i: (drawn[i], i)):
        if 4 * (size + weight[order[i]]) > len(text):
            continue
        held.append(order[i])
        size += weight[order[i]]
        if 16 * size >= len(text):
            break
    if not held:
        held = [min(order, key=lambda k: (weight[k], k))]

    def join(keep: bool) -> bytes:
        out, last = b"", None
        for (a, b), label in zip(units, labels, strict=True):
            if (label in held) == keep:
                out += (b"\0" if last is not None and last != a else b"") + text[a:b]
                last = b
        return out

    return join(False), join(True)


# --- vectors -------------------------------------------------------------------------------


def prose(seed: int, size: int) -> bytes:
    """Words at random, so that texts of different seeds are unlike."""
    drawn = words(be(seed) * 4, "prose", count=size // 4)
    text = b" ".join(b"%x" % (w >> 44) for w in drawn)
    return text[: size - 1] + b"\n"


def vectors() -> dict[str, Any]:
    seed, learner, jury = h("x", b"seed"), h("x", b"learner"), h("x", b"jury")
    window, batch = 65, 4
    assignments = []
    for size in (65, 700, 5000, 70_001):
        train = prose(7, size)
        steps = [batch_starts(seed, learner, 3, s, size, batch, window) for s in range(5)]
        leaves = [b"".join(train[i : i + window] for i in step) for step in steps]
        assignments.append(
            {
                "size": size,
                "grid": grid(size, window),
                "pages": assigned(seed, learner, 3, grid(size, window)[1]),
                "starts": steps,
                "batch_root": root(leaves).hex(),
                "jury": jury_starts(seed, jury, learner, 3, size, 8, window),
            }
        )
    splits = []
    for sizes, copies in (([3000], 0), ([900] * 40, 0), ([700] * 45, 9), ([9000, 300, 40], 0)):
        parts = [prose(100 + i, n) for i, n in enumerate(sizes)]
        for i in range(copies):  # near-duplicates: one word differs
            parts[2 * i + 1] = b"other" + parts[2 * i][5:]
        text = b"".join(parts)
        train, holdout = split(text, [len(p) for p in parts], seed)
        splits.append(
            {
                "sizes": [len(p) for p in parts],
                "copies": copies,
                "clusters": clusters(parts),
                "train": h("x", train).hex(),
                "holdout": h("x", holdout).hex(),
                "holdout_bytes": len(holdout),
            }
        )
    return {
        "seed": seed.hex(),
        "learner": learner.hex(),
        "jury_seed": jury.hex(),
        "words": [str(w) for w in words(seed, "label", 7, learner, count=5)],
        "model": MODEL,
        "shards": [h("x", s).hex() for s in initial_shards(MODEL)],
        "window": window,
        "batch": batch,
        "assignments": assignments,
        "splits": splits,
    }


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
