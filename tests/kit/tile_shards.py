"""Shards of random bytes, and a store of them, for tests of the store."""

from __future__ import annotations

import numpy as np

from chain import limits
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore

TILE = limits.TILE_BYTES
SPEC = ShardSpec(0, "s", "dense", (TensorSpec("w", "U8", (2 * TILE + 300_000,)),))
EMPTY = ShardSpec(1, "none", "dense", (TensorSpec("n", "F32", (0, 4)),))
SMALL = ShardSpec(2, "small", "sparse", (TensorSpec("w", "F32", (9000,)),))
SPECS = (SPEC, EMPTY, SMALL)


def random(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, "u1").tobytes()


def root_of(data: bytes) -> Hash32:
    """The root of a shard with these bytes."""
    return merkle.shard_root(merkle.tile_roots(data), len(data))


def put(store: TileStore, seed: int, shard: int = 0) -> tuple[bytes, Hash32]:
    """A whole version of random bytes, in the store."""
    data = random(SPECS[shard].data_bytes, seed)
    store.put_shard(shard, data, root_of(data))
    return data, root_of(data)


def change(
    store: TileStore, data: bytes, root: Hash32, tile: int, seed: int
) -> tuple[bytes, Hash32]:
    """A version with one tile replaced."""
    start, end = SPEC.tile_range(tile)
    new = random(end - start, seed)
    return data[:start] + new + data[end:], store.apply(0, root, {tile: new})
