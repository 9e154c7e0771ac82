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


def hexes(items: list[bytes]) -> list[str]:
    return [item.hex() for item in items]


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


def missing(name: str, leaves: list[bytes], wanted: set[int]) -> list[bytes]:
    """What a verifier lacks who knows the wanted leaves: level by level, in order."""
    nodes = []
    for level in range(depth(len(leaves))):
        known = {i // 8**level for i in wanted}
        places = [p for k in sorted({k // 8 for k in known}) for p in range(8 * k, 8 * k + 8)]
        lacking = [p for p in places if p not in known and p * 8**level < len(leaves)]
        nodes += [node(name, leaves, level, p) for p in lacking]
    return nodes


def proof(name: str, leaves: list[bytes], index: int) -> list[bytes]:
    return missing(name, leaves, {index})


def subtile(index: int, data: bytes) -> bytes:
    return h("subtile", u64(index) + u64(len(data)) + data)


def subtile_leaves(data: bytes) -> list[bytes]:
    cuts = range(0, len(data), SUBTILE)
    return [subtile(i, data[at : at + SUBTILE]) for i, at in enumerate(cuts)]


def tile_roots(data: bytes) -> list[bytes]:
    tiles = (data[at : at + TILE] for at in range(0, len(data), TILE))
    return [root("tile-node", subtile_leaves(tile), len(tile)) for tile in tiles]


def shard_root(data: bytes) -> bytes:
    return root("shard", tile_roots(data), len(data))


def set_nodes(shards: list[bytes], wanted: dict[int, list[int]]) -> list[bytes]:
    """Missing nodes of a set: for each shard the places (16 a tile) of its subtiles."""
    nodes = []
    for index, places in sorted(wanted.items()):
        for t in sorted({p // 16 for p in places}):
            leaves = subtile_leaves(shards[index][t * TILE : (t + 1) * TILE])
            nodes += missing("tile-node", leaves, {p % 16 for p in places if p // 16 == t})
        nodes += missing("shard", tile_roots(shards[index]), {p // 16 for p in places})
    return nodes + missing("model", [shard_root(s) for s in shards], set(wanted))


def shard_vector(size: int) -> dict[str, Any]:
    data = noise(f"shard of {size}", size)
    made: dict[str, Any] = {"bytes": size, "tile_roots": hexes(tile_roots(data))}
    made["shard_root"] = shard_root(data).hex()
    if size:
        leaves = subtile_leaves(data[:TILE])
        run = range(len(leaves) // 3, len(leaves) * 5 // 6 + 1)
        made["last_subtile"] = len(leaves) - 1
        made["subtile_hash"] = leaves[-1].hex()
        made["subtile_siblings"] = hexes(proof("tile-node", leaves, len(leaves) - 1))
        made["range"] = [run[0], len(run)]
        made["range_nodes"] = hexes(missing("tile-node", leaves, set(run)))
    return made


def list_vector(count: int) -> dict[str, Any]:
    leaves, index = [noise(f"leaf {i}", 32) for i in range(count)], count * 5 // 7
    made: dict[str, Any] = {"count": count, "list_root": root("list", leaves, 0).hex()}
    if count:
        run = range(count // 3, count * 5 // 6 + 1)
        made |= {"model_root": root("model", leaves, 0).hex(), "index": index}
        made["siblings"] = hexes(proof("list", leaves, index))
        made["shard_bytes"] = count * TILE - 7
        made["shard_root"] = root("shard", leaves, count * TILE - 7).hex()
        made["tile_range"] = [run[0], len(run)]
        made["tile_range_nodes"] = hexes(missing("shard", leaves, set(run)))
    return made


def set_vector(wanted: dict[int, list[int]]) -> dict[str, Any]:
    sizes = [TILE + 3 * SUBTILE + 8, 0, 5 * SUBTILE, *[1] * 7, 2 * TILE]
    shards = [noise(f"set {i}", size) for i, size in enumerate(sizes)]
    top, nodes = root("model", [shard_root(s) for s in shards], 0), set_nodes(shards, wanted)
    places = [[i, wanted[i]] for i in sorted(wanted)]
    return {"sizes": sizes, "places": places, "root": top.hex(), "nodes": hexes(nodes)}


def vectors() -> dict[str, Any]:
    sizes = (0, 1, 4, SUBTILE - 1, SUBTILE, SUBTILE + 1, 9 * SUBTILE + 4, TILE, TILE + 4096)
    every = {0: [*range(20)], 2: [*range(5)], **{i: [0] for i in range(3, 10)}, 10: [*range(32)]}
    some = [{0: [18]}, {2: [0, 4], 10: [0, 1, 2, 15, 31]}, every]
    return {
        "shards": [shard_vector(size) for size in sizes],
        "lists": [list_vector(count) for count in (0, 1, 2, 8, 9, 64, 65, 100)],
        "sets": [set_vector(wanted) for wanted in some],
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
