"""Elections by the book: waits as high-precision decimals, leaders by a list of every grain.

Shares no code with `consensus.election`. Run it to write the vectors:
`python -m tests.reference.election`.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import blake3

VECTORS = Path(__file__).parent.parent / "vectors" / "election" / "election.json"
getcontext().prec = 80


def h(name: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest()


def wait(digest: bytes, weight: int) -> Decimal:
    x = int.from_bytes(digest[:16], "big")
    u = Decimal(2 * x + 1) / Decimal(2**129)
    return -(u.ln() / Decimal(2).ln()) / weight


def ranks(seed: bytes, subject: bytes, candidates: dict[bytes, int]) -> list[bytes]:
    waits = {a: wait(h("rank", seed + a + subject), w) for a, w in candidates.items() if w}
    return sorted(waits, key=lambda a: waits[a])


def draw(seed: bytes, candidates: dict[bytes, int], size: int) -> list[bytes]:
    waits = {a: wait(h("committee", seed + a), w) for a, w in candidates.items() if w}
    return sorted(waits, key=lambda a: waits[a])[:size]


def leader(epoch_seed: bytes, view: int, stakes: list[int]) -> int:
    owners = [i for i, stake in enumerate(stakes) for _ in range(stake)]
    number = int.from_bytes(h("leader", epoch_seed + view.to_bytes(8, "big")), "big")
    return owners[number % len(owners)]


def vectors() -> list[dict[str, Any]]:
    cases = []
    for n in (1, 2, 4, 7, 25):
        seed = hashlib.sha256(b"seed %d" % n).digest()
        accounts = [hashlib.sha256(b"account %d" % i).digest() for i in range(n)]
        weights = [(i * i * 37 + 10 * i + 1) % 1000 * (i != 3) for i in range(n)]
        candidates = dict(zip(accounts, weights, strict=True))
        subjects = [bytes(4) + i.to_bytes(4, "big") for i in range(4)]
        cases.append(
            {
                "seed": seed.hex(),
                "candidates": [[a.hex(), w] for a, w in candidates.items()],
                "ranks": {s.hex(): [a.hex() for a in ranks(seed, s, candidates)] for s in subjects},
                "committee_of_5": [a.hex() for a in draw(seed, candidates, 5)],
                "leaders": [leader(seed, view, weights) for view in range(16)],
            }
        )
    return cases


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
