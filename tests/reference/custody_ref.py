"""Custody by the book: which subtiles a seed names, by shuffling a list of all of them, and what a
custodian commits to.

Shares no code with `chain.custody`. Run it to write the vectors:
`python -m tests.reference.custody_ref`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import blake3

VECTORS = Path(__file__).parent.parent / "vectors" / "custody" / "custody.json"
SUBTILE, TILE, NAMED = 2**18, 2**22, 16
MODELS = ([1], [SUBTILE, SUBTILE + 1, 5], [3 * TILE + 17, 1, TILE, 40 * SUBTILE - 1])


def h(name: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest()


def commitment(account: bytes, seed: bytes, position: int, subtile: bytes) -> bytes:
    key = h("custody", account + seed + position.to_bytes(8, "big"))
    return blake3.blake3(subtile, key=key).digest()


def words(seed: bytes, count: int) -> list[int]:
    key = h("prf", seed + bytes([7]) + b"custody")
    stream = blake3.blake3(b"", key=key).digest(length=8 * count)
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(count)]


def places(seed: bytes, shard_bytes: list[int]) -> list[list[int]]:
    """[shard, tile, subtile] of each named place."""
    every = [
        [shard, start // TILE, start % TILE // SUBTILE]
        for shard, size in enumerate(shard_bytes)
        for start in range(0, size, SUBTILE)
    ]
    count = min(NAMED, len(every))
    for i, word in enumerate(words(seed, count)):
        j = i + word * (len(every) - i) // 2**64
        every[i], every[j] = every[j], every[i]
    return every[:count]


def vectors() -> dict[str, Any]:
    commitments = []
    for i, size in enumerate((1, 63, 1024, 5000)):
        account, seed = (hashlib.sha256(b"%s %d" % (n, i)).digest() for n in (b"account", b"seed"))
        subtile = bytes((7 * k + i) % 251 for k in range(size))
        made = commitment(account, seed, i * i, subtile)
        commitments.append([account.hex(), seed.hex(), i * i, subtile.hex(), made.hex()])
    draws = []
    for i, model in enumerate(MODELS):
        seed = hashlib.sha256(b"draw %d" % i).digest()
        draws.append({"seed": seed.hex(), "shard_bytes": model, "places": places(seed, model)})
    return {
        "commitments": commitments,  # account, seed, position, subtile, commitment
        "draws": draws,
    }


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
