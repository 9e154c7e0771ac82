"""Proofs of more than one leaf, sharing their nodes (docs/spec/tiles.md, "Ranges and sets").

A **range** is a run of subtiles of a tile, or of tiles of a shard. A **set** is any subtiles of
any tiles and shards, under one model root. What they hold is fixed by what they show: the missing
nodes of `tiles.hash_tree`, for a set those of its tiles, then of their shard, shard by shard, and
those of the model's tree at the end. So every range and every set has one encoding, and a proof
with a node too many or too few, or with entries out of order or named twice, is refused.

Functions that verify raise VerifyError; what they are given may be hostile. Lengths are checked
before anything is hashed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from chain import limits
from chain.codec import U32, U64, Bytes, Seq, wire
from chain.errors import VerifyError
from chain.hashes import MODEL, SHARD, TILE_NODE, Hash32
from tiles.hash_tree import HASH_BYTES, MissingNodes, climb_set, levels_of, missing_nodes
from tiles.hash_tree import siblings_most as siblings
from tiles.layout import SUBTILES_PER_TILE, subtile_count
from tiles.merkle import Buffer, shard_root, subtile_hash, subtiles, tile_root_of

# The missing nodes of a run lie left of its first leaf and right of its last: twice one path.
_TILE_NODES = 2 * siblings(SUBTILES_PER_TILE) * HASH_BYTES
_SHARD_NODES = 2 * siblings(limits.MAX_TILES_PER_SHARD) * HASH_BYTES
_SET_NODES = limits.MAX_SET_NODES_BYTES


@wire(104)
@dataclass(frozen=True, slots=True)
class SubtileRange:
    """Shows subtiles [first, first + count) of a tile of `tile_bytes` bytes under its root."""

    first: U32
    count: U32
    tile_bytes: U32
    nodes: Annotated[bytes, Bytes(_TILE_NODES)]


@wire(105)
@dataclass(frozen=True, slots=True)
class TileRange:
    """Shows the roots of tiles [first, first + count) under that of a shard of `shard_bytes`."""

    first: U32
    count: U32
    shard_bytes: U64
    nodes: Annotated[bytes, Bytes(_SHARD_NODES)]


@wire(106)
@dataclass(frozen=True, slots=True)
class ShardSubtiles:
    """Which subtiles of a shard a set shows, ascending, by their place in the data section:
    subtile s of tile t is 16·t + s."""

    index: U32
    shard_bytes: U64
    subtiles: Annotated[tuple[U32, ...], Seq(limits.MAX_PROOF_SUBTILES)]


@wire(107)
@dataclass(frozen=True, slots=True)
class SubtileSet:
    """Shows a set of subtiles under the root of a model of `shard_count` shards; `shards` ascend.

    `nodes`: shard by shard the missing nodes of its tiles and then its own, then the model's.
    """

    shard_count: U32
    shards: Annotated[tuple[ShardSubtiles, ...], Seq(limits.MAX_PROOF_SUBTILES)]
    nodes: Annotated[bytes, Bytes(_SET_NODES)]

    @property
    def count(self) -> int:
        """Subtiles in the set."""
        return sum(len(shard.subtiles) for shard in self.shards)


# --- a run of subtiles ---------------------------------------------------------------------


def prove_subtile_range(
    hashes: Sequence[Hash32], tile_bytes: int, first: int, count: int
) -> SubtileRange:
    """Proof of subtiles [first, first + count) of the tile with these subtile hashes."""
    tile_root_of(hashes, tile_bytes)  # refuses a wrong number of hashes
    levels = levels_of(TILE_NODE, b"".join(hashes))
    nodes = missing_nodes(levels, range(first, first + count))
    return SubtileRange(first, count, tile_bytes, nodes)


def verify_subtile_range(root: Hash32, proof: SubtileRange, data: Buffer) -> None:
    """Check the bytes of a run of subtiles, back to back, against their tile's root."""
    if not 0 < proof.tile_bytes <= limits.TILE_BYTES:
        raise VerifyError(f"a tile of {proof.tile_bytes} bytes cannot exist")
    count = subtile_count(proof.tile_bytes)
    run = _run(proof.first, proof.count, count)
    step = limits.SUBTILE_BYTES
    expected = min(proof.count * step, proof.tile_bytes - proof.first * step)
    if len(data) != expected:
        raise VerifyError(f"{proof.count} subtiles in {len(data)} bytes, expected {expected}")
    parts = zip(run, subtiles(data), strict=True)
    hashes = [subtile_hash(i, part) for i, part in parts]
    missing = MissingNodes(proof.nodes)
    found = climb_set(TILE_NODE, run, hashes, count, proof.tile_bytes, missing)
    missing.end()
    if found != root:
        raise VerifyError(
            f"subtiles from {proof.first} on are not those under tile root {root.hex()}"
        )


def _run(first: int, count: int, among: int) -> range:
    if not 0 < count <= among or first > among - count:
        raise VerifyError(f"a run of {count} entries from {first} on, among {among}")
    return range(first, first + count)


# --- a run of tiles --------------------------------------------------------------------------


def prove_tile_range(
    roots: Sequence[Hash32], shard_bytes: int, first: int, count: int
) -> TileRange:
    """Proof of the roots of tiles [first, first + count) of the shard with these tile roots."""
    shard_root(roots, shard_bytes)  # refuses a wrong number of roots
    nodes = missing_nodes(levels_of(SHARD, b"".join(roots)), range(first, first + count))
    return TileRange(first, count, shard_bytes, nodes)


def verify_tile_range(root: Hash32, proof: TileRange, tiles: Sequence[Hash32]) -> None:
    """Check the roots of a run of tiles against their shard's root."""
    count = _tile_count(proof.shard_bytes)
    run = _run(proof.first, proof.count, count)
    missing = MissingNodes(proof.nodes)
    found = climb_set(SHARD, run, tiles, count, proof.shard_bytes, missing)
    missing.end()
    if found != root:
        raise VerifyError(f"tiles from {proof.first} on are not those under root {root.hex()}")


def _tile_count(shard_bytes: int) -> int:
    count = -(-shard_bytes // limits.TILE_BYTES)
    if not 0 < count <= limits.MAX_TILES_PER_SHARD:
        raise VerifyError(f"a shard of {shard_bytes} bytes has no tiles to show")
    return count


# --- a set of subtiles -------------------------------------------------------------------------


def subtile_lengths(proof: SubtileSet) -> Iterator[int]:
    """Bytes of each subtile that the set shows, in its order. Raises VerifyError where a place
    lies outside its shard, or they are too many."""
    if proof.count > limits.MAX_PROOF_SUBTILES:
        raise VerifyError(f"a set of {proof.count} subtiles, at most {limits.MAX_PROOF_SUBTILES}")
    for shard in proof.shards:
        for place in shard.subtiles:
            left = shard.shard_bytes - place * limits.SUBTILE_BYTES
            if left <= 0:
                raise VerifyError(f"shard {shard.index} has no subtile {place}")
            yield min(limits.SUBTILE_BYTES, left)


def verify_subtile_set(root: Hash32, proof: SubtileSet, data: Sequence[Buffer]) -> None:
    """Check the bytes of a set of subtiles, in the proof's order, against a model root."""
    expected = list(subtile_lengths(proof))
    if [len(part) for part in data] != expected:
        raise VerifyError(f"{len(data)} subtiles, expected {len(expected)} of the right lengths")
    places = (p % SUBTILES_PER_TILE for shard in proof.shards for p in shard.subtiles)
    hashes = [subtile_hash(at, part) for at, part in zip(places, data, strict=True)]
    if subtile_set_root(proof, hashes) != root:
        raise VerifyError(f"the subtiles are not those under model root {root.hex()}")


def subtile_set_root(proof: SubtileSet, hashes: Sequence[Hash32]) -> Hash32:
    """The model root that a set leads to with these subtile hashes: for whoever hashed the
    subtiles as they came. Raises VerifyError on a wrong shape."""
    if len(hashes) != proof.count:
        raise VerifyError(f"{len(hashes)} subtile hashes, expected {proof.count}")
    missing = MissingNodes(proof.nodes)
    roots, at = [], 0
    for shard in proof.shards:
        end = at + len(shard.subtiles)
        roots.append(_shard_climb(shard, hashes[at:end], missing))
        at = end
    indices = [shard.index for shard in proof.shards]
    found = climb_set(MODEL, indices, roots, proof.shard_count, 0, missing)
    missing.end()
    return found


def _shard_climb(shard: ShardSubtiles, hashes: Sequence[Hash32], missing: MissingNodes) -> Hash32:
    count = _tile_count(shard.shard_bytes)
    if not shard.subtiles:
        raise VerifyError(f"shard {shard.index} is named, but none of its subtiles")
    tiles, roots, at = [], [], 0
    for tile, group in groupby(shard.subtiles, lambda place: place // SUBTILES_PER_TILE):
        places = [place % SUBTILES_PER_TILE for place in group]
        size = min(limits.TILE_BYTES, shard.shard_bytes - tile * limits.TILE_BYTES)
        if size <= 0:
            raise VerifyError(f"shard {shard.index} has no tile {tile}")
        leaves = hashes[at : at + len(places)]
        at += len(places)
        tiles.append(tile)
        roots.append(climb_set(TILE_NODE, places, leaves, subtile_count(size), size, missing))
    return climb_set(SHARD, tiles, roots, count, shard.shard_bytes, missing)
