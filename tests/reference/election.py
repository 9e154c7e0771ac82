"""Elections by the book: waits as high-precision decimals, leaders by a list of every grain,
claims in a dictionary of slots, tiles that choose one after another.

Shares no code with the product. Run it to write the vectors: `python -m tests.reference.election`.
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


def h(name: str, data: bytes, length: int = 32) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest(length=length)


def wait(digest: bytes, weight: int) -> Decimal:
    x = int.from_bytes(digest[:16], "big")
    u = Decimal(2 * x + 1) / Decimal(2**129)
    return -(u.ln() / Decimal(2).ln()) / weight


# --- custodians ---------------------------------------------------------------------------


def claims(
    seed: bytes, candidates: dict[bytes, int], scale: int | None = None
) -> dict[int, list[tuple[bytes, int]]]:
    """By slot: who claims it, and how many of its 1024 cells."""
    bits = sum(candidates.values()).bit_length() if scale is None else scale
    found: dict[int, list[tuple[bytes, int]]] = {}
    for account, weight in candidates.items():
        cells = weight * 2**27 // 2**bits
        places = h("claim", seed + account, 4 * -(-cells // 1024))
        for at in range(0, len(places), 4):
            slot = int.from_bytes(places[at : at + 4], "little") // 1024
            found.setdefault(slot, []).append((account, min(cells, 1024)))
            cells -= 1024
    return found


def ranks(
    seed: bytes, subject: bytes, candidates: dict[bytes, int], scale: int | None = None
) -> list[bytes]:
    table = claims(seed, candidates, scale)
    return order(seed, subject, candidates, table)


def order(
    seed: bytes,
    subject: bytes,
    candidates: dict[bytes, int],
    table: dict[int, list[tuple[bytes, int]]],
) -> list[bytes]:
    def digest(account: bytes) -> bytes:
        return h("rank", seed + account + subject)

    first: dict[bytes, int] = {}
    row = h("probe", seed + subject, 8 + 4 * 4096)[8:]
    for number in range(4096):
        word = int.from_bytes(row[4 * number : 4 * number + 4], "little")
        for account, height in table.get(word // 1024, []):
            if word % 1024 < height:
                first.setdefault(account, number)
    met = sorted(first, key=lambda a: (first[a], digest(a)))
    rest = [a for a, w in candidates.items() if w and a not in first]
    return met + sorted(rest, key=lambda a: wait(digest(a), candidates[a]))


def lot(seed: bytes, subject: bytes) -> int:
    return int.from_bytes(h("probe", seed + subject)[:8], "little")


def bounded(
    seed: bytes,
    subjects: list[bytes],
    candidates: dict[bytes, int],
    room: dict[bytes, int],
    depth: int,
) -> dict[bytes, list[bytes]]:
    """Tiles in the order of their lots; each takes the first of its order that have room left."""
    found, _ = choose(seed, subjects, candidates, room, depth)
    return {s: found[s] for s in subjects}


def choose(
    seed: bytes,
    subjects: list[bytes],
    candidates: dict[bytes, int],
    room: dict[bytes, int],
    depth: int,
) -> tuple[dict[bytes, list[bytes]], dict[bytes, list[bytes]]]:
    """(who keeps each tile, each candidate's list of tiles that it refused)"""
    table, left = claims(seed, candidates), dict(room)
    found: dict[bytes, list[bytes]] = {}
    refused: dict[bytes, list[bytes]] = {}
    for subject in sorted(subjects, key=lambda s: (lot(seed, s), s)):
        found[subject] = []
        for account in order(seed, subject, candidates, table)[:32]:
            if len(found[subject]) == depth:
                break
            if left[account] > 0:
                left[account] -= 1
                found[subject].append(account)
            else:
                refused.setdefault(account, []).append(subject)
    return found, refused


def custody_orders(
    seed: bytes,
    subjects: list[bytes],
    candidates: dict[bytes, int],
    room: dict[bytes, int],
    depth: int,
) -> tuple[dict[bytes, list[bytes]], dict[bytes, bytes]]:
    """(every tile's whole order, those with room before the full; what each full one refused
    first)"""
    table = claims(seed, candidates)
    _, refused = choose(seed, subjects, candidates, room, depth)
    orders = {}
    for subject in subjects:
        plain, place = order(seed, subject, candidates, table), (lot(seed, subject), subject)
        full = [
            a for a in plain[:32] if any((lot(seed, s), s) <= place for s in refused.get(a, []))
        ]
        orders[subject] = [a for a in plain[:32] if a not in full] + full + plain[32:]
    return orders, {a: listed[0] for a, listed in refused.items()}


# --- committees and leaders --------------------------------------------------------------


def draw(
    seed: bytes,
    candidates: dict[bytes, int],
    size: int,
    judged: tuple[bytes, ...] = (),
    context: str = "committee",
) -> list[bytes]:
    able = {a: w for a, w in candidates.items() if w and a not in judged}
    waits = {a: wait(h(context, seed + a), w) for a, w in able.items()}
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
        subjects = [bytes(4) + i.to_bytes(4, "big") for i in range(24)]
        table = claims(seed, candidates)
        room = {a: 2 + 72 // n if i % 3 else 40 // n for i, a in enumerate(accounts)}
        kept = bounded(seed, subjects, candidates, room, 3)
        orders, full = custody_orders(seed, subjects, candidates, room, 3)
        cases.append(
            {
                "seed": seed.hex(),
                "candidates": [[a.hex(), w] for a, w in candidates.items()],
                "ranks": {
                    s.hex(): [a.hex() for a in order(seed, s, candidates, table)]
                    for s in subjects[:6]
                },
                "capacities": [room[a] for a in accounts],
                "bounded": {s.hex(): [a.hex() for a in kept[s]] for s in subjects},
                "orders": {s.hex(): [a.hex() for a in orders[s]] for s in subjects},
                "cutoffs": {a.hex(): s.hex() for a, s in sorted(full.items())},
                "committee_of_5": [a.hex() for a in draw(seed, candidates, 5)],
                "watchers": [a.hex() for a in draw(seed, candidates, 3, (accounts[0],), "watcher")],
                "leaders": [leader(seed, view, weights) for view in range(16)],
            }
        )
    return cases


if __name__ == "__main__":
    VECTORS.parent.mkdir(parents=True, exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
