"""The tile trees straight from their definition (docs/spec/tiles.md), one recursive function.

Shares no code with `tiles.merkle`. Run it to write the vectors:
`python -m tests.reference.merkle_ref`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blake3

VECTORS = Path(__file__).parent.parent / "vectors" / "tiles" / "merkle.json"
TILE, SUBTILE = 4 * 1024 * 1024, 256 * 1024


def h(name: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="blyan/1/" + name).digest()


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def noise(label: str, length: int) -> bytes:
    """Test data that any implementation can make: BLAKE3's extendable output of a label."""
    return blake3.blake3(label.encode()).digest(length=length)


def depth(count: int) -> int:
    return next(d for d in range(30) if 8**d >= count)


def node(name: str, leaves: list[bytes], level: int, position: int) -> bytes:
    if level == 0:
        return leaves[position]
    span = 8 ** (level - 1)
    places = range(8 * position, 8 * position + 8)
    children = [node(name, leaves, level - 1, p) for p in places if p * span < len(leaves)]
    return h(name, bytes([level]) + u64(position) + b"".join(children))


def root(name: str, leaves: list[bytes], size: int) -> bytes:
    top = node(name, leaves, depth(len(leaves)), 0) if leaves else b""
    return h(name, b"\xff" + u64(len(leaves)) + u64(size) + top)


def proof(name: str, leaves: list[bytes], index: int) -> list[bytes]:
    siblings = []
    for level in range(depth(len(leaves))):
        mine = index // 8**level
        first = mine - mine % 8
        others = [p for p in range(first, first + 8) if p != mine and p * 8**level < len(leaves)]
        siblings += [node(name, leaves, level, p) for p in others]
    return siblings


def subtile(index: int, data: bytes) -> bytes:
    return h("subtile", u64(index) + u64(len(data)) + data)


def subtile_leaves(data: bytes) -> list[bytes]:
    cuts = range(0, len(data), SUBTILE)
    return [subtile(i, data[at : at + SUBTILE]) for i, at in enumerate(cuts)]


def tile_root(data: bytes) -> bytes:
    return root("tile-node", subtile_leaves(data), len(data))


def tile_roots(data: bytes) -> list[bytes]:
    return [tile_root(data[at : at + TILE]) for at in range(0, len(data), TILE)]


def shard_root(data: bytes) -> bytes:
    return root("shard", tile_roots(data), len(data))


def hexes(items: list[bytes]) -> list[str]:
    return [item.hex() for item in items]


def vectors() -> dict[str, Any]:
    shards = []
    for size in (1, 4, SUBTILE - 1, SUBTILE, SUBTILE + 1, 9 * SUBTILE + 4, TILE, TILE + 4096):
        label = f"shard of {size}"
        data = noise(label, size)
        tile = data[:TILE]
        last = (len(tile) - 1) // SUBTILE
        shards.append(
            {
                "label": label,
                "bytes": size,
                "tile_roots": hexes(tile_roots(data)),
                "shard_root": shard_root(data).hex(),
                "last_subtile": last,
                "subtile_hash": subtile_leaves(tile)[last].hex(),
                "subtile_siblings": hexes(proof("tile-node", subtile_leaves(tile), last)),
            }
        )
    lists = []
    for count in (0, 1, 2, 8, 9, 64, 65, 100):
        leaves = [noise(f"leaf {i}", 32) for i in range(count)]
        index = count * 5 // 7
        lists.append(
            {
                "count": count,
                "list_root": root("list", leaves, 0).hex(),
                "model_root": root("model", leaves, 0).hex() if count else "",
                "index": index,
                "siblings": hexes(proof("list", leaves, index)) if count else [],
            }
        )
    return {"shards": shards, "lists": lists}


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
