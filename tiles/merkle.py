"""The 8-ary Merkle trees over subtiles, tiles and shards, and over plain lists of hashes
(docs/spec/tiles.md).

    subtile hash = H_subtile(index, length, bytes)

Nodes and roots above the leaves are those of `tiles.hash_tree`. One context c for each kind of
tree: tile (leaves are subtile hashes, size in bytes), shard (leaves are tile roots, size in
bytes), model (leaves are shard roots, size 0) and list (any hashes, size 0). So no node can stand
for a leaf, for a node of another level or place, or for a tree of another length. Proofs here show
one leaf; ranges and sets are in `tiles.multiproof`.

Functions that verify return nothing and raise VerifyError; what they are given may be hostile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import U32, U64, Seq, wire
from chain.errors import InputError, VerifyError, invariant
from chain.hashes import LIST, MODEL, SHARD, SUBTILE, TILE_NODE, WIDE_BYTES, Hash32
from tiles.hash_tree import climb, root_of, siblings_most, siblings_of
from tiles.layout import SUBTILES_PER_TILE, subtile_count

Buffer = bytes | bytearray | memoryview

_TILE_SIBLINGS = siblings_most(limits.TILE_BYTES // limits.SUBTILE_BYTES)
_SHARD_SIBLINGS = siblings_most(limits.MAX_TILES_PER_SHARD)
_MODEL_SIBLINGS = siblings_most(limits.MAX_SHARDS)
_LIST_SIBLINGS = siblings_most(limits.MAX_LIST_LEAVES)


# --- proofs ----------------------------------------------------------------------


@wire(96)
@dataclass(frozen=True, slots=True)
class SubtileProof:
    """Shows subtile `index` of a tile of `tile_bytes` bytes under the tile's root.

    `siblings`: level by level from the leaves, the node's other children in order.
    """

    index: U32
    tile_bytes: U32
    siblings: Annotated[tuple[Hash32, ...], Seq(_TILE_SIBLINGS)]


@wire(97)
@dataclass(frozen=True, slots=True)
class TileProof:
    """Shows the root of tile `index` under the root of a shard of `shard_bytes` bytes."""

    index: U32
    shard_bytes: U64
    siblings: Annotated[tuple[Hash32, ...], Seq(_SHARD_SIBLINGS)]


@wire(98)
@dataclass(frozen=True, slots=True)
class ShardProof:
    """Shows the root of shard `index` under the root of a model of `shard_count` shards."""

    index: U32
    shard_count: U32
    siblings: Annotated[tuple[Hash32, ...], Seq(_MODEL_SIBLINGS)]


@wire(99)
@dataclass(frozen=True, slots=True)
class MerkleProof:
    """Shows entry `index` of a list of `count` hashes under the list's root."""

    index: U64
    count: U64
    siblings: Annotated[tuple[Hash32, ...], Seq(_LIST_SIBLINGS)]


@wire(100)
@dataclass(frozen=True, slots=True)
class SubtilePath:
    """Shows one subtile under a model root; the roots between follow from the siblings."""

    subtile: SubtileProof
    tile: TileProof
    shard: ShardProof


# --- subtiles and tiles ------------------------------------------------------------


def subtile_hash(index: int, data: Buffer) -> Hash32:
    """Leaf hash of subtile `index` of its tile; 1 to SUBTILE_BYTES bytes."""
    return SUBTILE.hash_behind(_prefix(index, len(data)), data)


def _prefix(index: int, size_bytes: int) -> bytes:
    return (index << 64 | size_bytes).to_bytes(16, "big")


_PREFIXES = [_prefix(i, limits.SUBTILE_BYTES) for i in range(SUBTILES_PER_TILE)]
_HEAD_BYTES = WIDE_BYTES - len(_PREFIXES[0])


def subtiles(data: Buffer) -> Iterator[memoryview]:
    """The subtiles of a tile in order, without a copy; the last may be shorter."""
    view = memoryview(data)
    invariant(view.itemsize == 1, "tile data must be a view of bytes")
    for start in range(0, len(view), limits.SUBTILE_BYTES):
        yield view[start : start + limits.SUBTILE_BYTES]


def subtile_hashes(data: Buffer) -> tuple[Hash32, ...]:
    """Leaf hashes of one tile's bytes: what a receiver asks for first, to check a stream by."""
    view = memoryview(data)
    if not 0 < len(view) <= limits.TILE_BYTES:
        raise InputError(f"a tile of {len(view)} bytes, expected 1 to {limits.TILE_BYTES}")
    invariant(view.itemsize == 1, "tile data must be a view of bytes")
    hashes, whole = [], len(view) // limits.SUBTILE_BYTES
    for i in range(whole):  # `subtile_hash`, without its calls: they cost a tenth of the hashing
        start = i * limits.SUBTILE_BYTES
        middle, end = start + _HEAD_BYTES, start + limits.SUBTILE_BYTES
        hasher = SUBTILE.fresh().update(_PREFIXES[i] + view[start:middle])
        hashes.append(Hash32(hasher.update(view[middle:end]).digest()))
    if rest := view[whole * limits.SUBTILE_BYTES :]:
        hashes.append(subtile_hash(whole, rest))
    return tuple(hashes)


def tile_root_of(hashes: Sequence[Hash32], tile_bytes: int) -> Hash32:
    """Root of a tile from its subtile hashes. Raises VerifyError if their number is wrong."""
    if not 0 < tile_bytes <= limits.TILE_BYTES or len(hashes) != subtile_count(tile_bytes):
        raise VerifyError(f"{len(hashes)} subtile hashes do not make a tile of {tile_bytes} bytes")
    return root_of(TILE_NODE, hashes, tile_bytes)


def tile_root(data: Buffer) -> Hash32:
    """Root of one tile's bytes."""
    return tile_root_of(subtile_hashes(data), len(data))


def prove_subtile(data: Buffer, index: int) -> SubtileProof:
    """Proof of subtile `index` of the tile with these bytes."""
    return prove_subtile_of(subtile_hashes(data), len(data), index)


def prove_subtile_of(hashes: Sequence[Hash32], tile_bytes: int, index: int) -> SubtileProof:
    """Proof of subtile `index` of the tile with these subtile hashes; nothing else is hashed."""
    tile_root_of(hashes, tile_bytes)  # refuses a wrong number of hashes
    return SubtileProof(index, tile_bytes, siblings_of(TILE_NODE, hashes, index))


def verify_subtile(root: Hash32, proof: SubtileProof, data: Buffer) -> None:
    """Check the bytes of one subtile against its tile's root."""
    if _subtile_climb(proof, data) != root:
        raise VerifyError(f"subtile {proof.index} is not the one under tile root {root.hex()}")


def _subtile_climb(proof: SubtileProof, data: Buffer) -> Hash32:
    if not 0 < proof.tile_bytes <= limits.TILE_BYTES:
        raise VerifyError(f"a tile of {proof.tile_bytes} bytes cannot exist")
    count = subtile_count(proof.tile_bytes)
    start = proof.index * limits.SUBTILE_BYTES
    expected = min(limits.SUBTILE_BYTES, proof.tile_bytes - start)
    if len(data) != expected:
        raise VerifyError(f"subtile {proof.index}: {len(data)} bytes where {expected} belong")
    leaf = subtile_hash(proof.index, data)
    return climb(TILE_NODE, leaf, proof.index, count, proof.tile_bytes, proof.siblings)


# --- shards and models -------------------------------------------------------------


def tile_roots(shard_data: Buffer) -> tuple[Hash32, ...]:
    """Roots of all tiles of a shard's data section."""
    view = memoryview(shard_data)
    step = limits.TILE_BYTES
    return tuple(tile_root(view[i : i + step]) for i in range(0, len(view), step))


def shard_root(roots: Sequence[Hash32], data_bytes: int) -> Hash32:
    """Root of a shard from its tile roots and the size of its data section, which may be 0."""
    if data_bytes < 0 or len(roots) != -(-data_bytes // limits.TILE_BYTES):
        raise VerifyError(f"{len(roots)} tile roots do not make a shard of {data_bytes} bytes")
    return root_of(SHARD, roots, data_bytes)


def prove_tile(roots: Sequence[Hash32], data_bytes: int, index: int) -> TileProof:
    """Proof of tile `index` of the shard with these tile roots."""
    shard_root(roots, data_bytes)  # refuses a wrong number of roots
    return TileProof(index, data_bytes, siblings_of(SHARD, roots, index))


def verify_tile(root: Hash32, proof: TileProof, tile: Hash32) -> None:
    """Check a tile root against its shard's root."""
    if _tile_climb(proof, tile) != root:
        raise VerifyError(f"tile {proof.index} is not the one under shard root {root.hex()}")


def _tile_climb(proof: TileProof, tile: Hash32) -> Hash32:
    count = -(-proof.shard_bytes // limits.TILE_BYTES)
    if not 0 < count <= limits.MAX_TILES_PER_SHARD:
        raise VerifyError(f"a shard of {proof.shard_bytes} bytes cannot exist")
    return climb(SHARD, tile, proof.index, count, proof.shard_bytes, proof.siblings)


def model_root(roots: Sequence[Hash32]) -> Hash32:
    """Root of a model from its shard roots in order of shard index."""
    if not 0 < len(roots) <= limits.MAX_SHARDS:
        raise InputError(f"a model of {len(roots)} shards, expected 1 to {limits.MAX_SHARDS}")
    return root_of(MODEL, roots, 0)


def prove_shard(roots: Sequence[Hash32], index: int) -> ShardProof:
    """Proof of shard `index` of the model with these shard roots."""
    return ShardProof(index, len(roots), siblings_of(MODEL, roots, index))


def verify_shard(root: Hash32, proof: ShardProof, shard: Hash32) -> None:
    """Check a shard root against its model's root."""
    if climb(MODEL, shard, proof.index, proof.shard_count, 0, proof.siblings) != root:
        raise VerifyError(f"shard {proof.index} is not the one under model root {root.hex()}")


def verify_path(root: Hash32, path: SubtilePath, data: Buffer) -> None:
    """Check the bytes of one subtile against a model root."""
    tile = _subtile_climb(path.subtile, data)
    start = path.tile.index * limits.TILE_BYTES
    if path.subtile.tile_bytes != min(limits.TILE_BYTES, path.tile.shard_bytes - start):
        raise VerifyError(f"tile {path.tile.index} has not the length its shard gives it")
    verify_shard(root, path.shard, _tile_climb(path.tile, tile))


# --- lists -------------------------------------------------------------------------


def merkle_root(leaves: Sequence[Hash32], most: int = limits.MAX_LIST_LEAVES) -> Hash32:
    """Root of a list of at most `most` hashes; the empty list has one too."""
    if len(leaves) > most:
        raise InputError(f"a list of {len(leaves)} hashes, at most {most} are allowed")
    return root_of(LIST, leaves, 0)


def merkle_proof(leaves: Sequence[Hash32], index: int) -> MerkleProof:
    """Proof of entry `index` of a list."""
    return MerkleProof(index, len(leaves), siblings_of(LIST, leaves, index))


def verify_merkle(root: Hash32, proof: MerkleProof, leaf: Hash32) -> None:
    """Check one entry of a list against the list's root."""
    if proof.count > limits.MAX_LIST_LEAVES:
        raise VerifyError(f"a list of {proof.count} hashes cannot exist")
    if climb(LIST, leaf, proof.index, proof.count, 0, proof.siblings) != root:
        raise VerifyError(f"entry {proof.index} is not the one under list root {root.hex()}")
