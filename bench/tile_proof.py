"""Rows of `bench.tiles` about proofs."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from bench.measure import Row, Sizes, at_most, in_turns, quantile
from bench.tile_store import noise
from chain import limits
from chain.codec import decode, encode
from chain.hashes import Hash32
from tiles import merkle

TILES, TILES_PER_SHARD = 1 << 20, 4096  # shards of 16 GiB: the deepest trees


def proof(sizes: Sizes) -> Iterator[Row]:
    """One subtile under the root of a model of 2**20 tiles: the proof's size, its decoding, its
    verification with the subtile's bytes and without. Floor: BLAKE3 of these bytes alone."""
    data = bytes(noise(limits.TILE_BYTES))
    tiles = [Hash32(i.to_bytes(32, "big")) for i in range(TILES_PER_SHARD)]
    tiles[2345] = merkle.tile_root(data)
    size = TILES_PER_SHARD * limits.TILE_BYTES
    shards = [Hash32((i + 1).to_bytes(32, "little")) for i in range(TILES // TILES_PER_SHARD)]
    shards[123] = merkle.shard_root(tiles, size)
    root = merkle.model_root(shards)
    path = merkle.SubtilePath(
        merkle.prove_subtile(data, 5),
        merkle.prove_tile(tiles, size, 2345),
        merkle.prove_shard(shards, 123),
    )
    part = data[5 * limits.SUBTILE_BYTES : 6 * limits.SUBTILE_BYTES]
    raw = encode(path)
    taken = in_turns(
        sizes.samples * 10,
        lambda: merkle.verify_path(root, path, part),
        lambda: blake3(part).digest(),
        lambda: decode(merkle.SubtilePath, raw),
    )
    verify, floor, parse = (quantile(t, 0.5) * 1e6 for t in taken)
    yield at_most("proof_bytes", len(raw), "bytes", 2500)
    yield at_most("proof_verify", verify, "µs", 50.0, floor)
    yield at_most("proof_climb", verify - floor, "µs", None)
    yield at_most("proof_decode", parse, "µs", None)
