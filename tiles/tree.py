"""The trees of one shard version, from its subtile hashes up (docs/spec/tiles.md).

A ShardTree is a value: what changes gives a new one that shares the rest. A write re-hashes the
subtiles that it touches and the nodes on their paths, nothing else; proofs need no data. It holds
32 bytes a subtile, 1/8192 of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from chain import limits
from chain.errors import InputError, VerifyError, invariant
from chain.hashes import MODEL, SHARD, TILE_NODE, Hash32
from tiles import merkle
from tiles.hash_tree import (
    HASH_BYTES,
    hash_at,
    levels_of,
    levels_with,
    missing_nodes,
    root_over,
    split,
)
from tiles.layout import SUBTILES_PER_TILE, subtile_count
from tiles.merkle import Buffer, ShardProof, SubtilePath, SubtileProof, TileProof
from tiles.multiproof import ShardSubtiles, SubtileRange, SubtileSet, TileRange

Place = tuple[int, int]  # tile of the shard, subtile of the tile


@dataclass(frozen=True, slots=True)
class ShardTree:
    """The hashes of one shard version. Made by `of_data`, `of_hashes`, `of_roots` and the methods
    that give a changed one.

    `data_bytes`: size of the data section, 0 for a shard of no tiles.
    `hashes`: for each tile its subtile hashes back to back; empty where they are not known, as in
    a version of which only some tiles are held.
    `levels`: of the shard's tree, the tile roots first.
    """

    data_bytes: int
    hashes: tuple[bytes, ...]
    levels: tuple[bytes, ...]
    root: Hash32

    @classmethod
    def of_data(cls, data: Buffer) -> ShardTree:
        """The tree of a whole data section."""
        view = memoryview(data)
        starts = range(0, len(view), limits.TILE_BYTES)
        tiles = (view[at : at + limits.TILE_BYTES] for at in starts)
        return cls.of_hashes(len(view), [merkle.subtile_hashes(tile) for tile in tiles])

    @classmethod
    def of_hashes(cls, data_bytes: int, hashes: Sequence[Sequence[Hash32]]) -> ShardTree:
        """The tree over the subtile hashes of each tile. Raises VerifyError on a wrong number."""
        count = -(-data_bytes // limits.TILE_BYTES)
        sizes = [tile_bytes(data_bytes, tile) for tile in range(count)]
        roots = [merkle.tile_root_of(h, n) for h, n in zip(hashes, sizes, strict=False)]
        if len(hashes) != count:
            merkle.shard_root(roots, data_bytes)  # refuses them, saying how many
        return cls._over(data_bytes, tuple(b"".join(h) for h in hashes), b"".join(roots))

    @classmethod
    def of_roots(
        cls,
        data_bytes: int,
        roots: Sequence[Hash32],
        hashes: Mapping[int, Sequence[Hash32]] | None = None,
    ) -> ShardTree:
        """The tree over all tile roots, knowing the subtile hashes of some tiles or of none.

        Raises VerifyError where numbers do not fit, or hashes do not lead to their tile's root.
        """
        merkle.shard_root(roots, data_bytes)
        bare = cls._over(data_bytes, (b"",) * len(roots), b"".join(roots))
        full = bare.with_tiles(hashes or {})
        if full.root != bare.root:
            wrong = next(t for t in sorted(hashes or {}) if full.tile_root(t) != roots[t])
            raise VerifyError(f"the subtile hashes of tile {wrong} are not its root's")
        return full

    @classmethod
    def _over(cls, data_bytes: int, hashes: tuple[bytes, ...], roots: bytes) -> ShardTree:
        levels = levels_of(SHARD, roots)
        root = root_over(SHARD, len(hashes), data_bytes, levels[-1])
        return cls(data_bytes, hashes, tuple(levels), root)

    # --- what it says ---------------------------------------------------------------------

    @property
    def tile_count(self) -> int:
        return len(self.hashes)

    @property
    def tile_roots(self) -> tuple[Hash32, ...]:
        """Roots of all tiles, in order."""
        return split(self.levels[0])

    def tile_root(self, tile: int) -> Hash32:
        self._check_tile(tile)
        return hash_at(self.levels[0], tile)

    def knows(self, tile: int) -> bool:
        """Whether the subtile hashes of a tile are known, not just its root."""
        self._check_tile(tile)
        return bool(self.hashes[tile])

    def subtile_hashes(self, tile: int) -> tuple[Hash32, ...]:
        """Subtile hashes of one tile. Raises InputError if they are not known."""
        if not self.knows(tile):
            raise InputError(f"the subtile hashes of tile {tile} are not known")
        return split(self.hashes[tile])

    def changed_since(self, base: ShardTree) -> Iterator[int]:
        """Tiles whose roots differ from those of `base`, a tree of the same size."""
        invariant(self.data_bytes == base.data_bytes, "trees of different shards")
        ours, theirs = self.levels[0], base.levels[0]
        return (t for t in range(self.tile_count) if hash_at(ours, t) != hash_at(theirs, t))

    # --- changes ------------------------------------------------------------------------------

    def updated(self, subtiles: Mapping[Place, Buffer]) -> ShardTree:
        """The tree after these subtiles were written: each is hashed, and the nodes on its path.

        Raises InputError if a subtile does not exist or has another length, or the other hashes
        of its tile are not known.
        """
        for place, data in subtiles.items():
            if len(data) != (expected := self._subtile_bytes(place)):
                raise InputError(
                    f"subtile {place[1]} of tile {place[0]}: {len(data)} bytes, expected {expected}"
                )
        return self.with_subtiles(
            {place: merkle.subtile_hash(place[1], data) for place, data in subtiles.items()}
        )

    def with_subtiles(self, changed: Mapping[Place, Hash32]) -> ShardTree:
        """`updated`, for whoever hashed the subtiles already."""
        tiles: dict[int, bytes] = {}
        for tile, places in groupby(sorted(changed), lambda place: place[0]):
            self.subtile_hashes(tile)  # must be known
            hashes = bytearray(self.hashes[tile])
            for place in places:
                self._subtile_bytes(place)  # must exist
                start = place[1] * HASH_BYTES
                hashes[start : start + HASH_BYTES] = changed[place]
            tiles[tile] = bytes(hashes)
        return self._replaced(tiles)

    def with_tiles(self, changed: Mapping[int, Sequence[Hash32]]) -> ShardTree:
        """The tree after these whole tiles were written, given their subtile hashes."""
        tiles: dict[int, bytes] = {}
        for tile in sorted(changed):
            self._check_tile(tile)
            merkle.tile_root_of(changed[tile], tile_bytes(self.data_bytes, tile))
            tiles[tile] = b"".join(changed[tile])
        return self._replaced(tiles)

    def _replaced(self, tiles: Mapping[int, bytes]) -> ShardTree:
        """The tree with other subtile hashes for some tiles (in ascending order)."""
        if not tiles:
            return self
        hashes, roots = list(self.hashes), bytearray(self.levels[0])
        for tile, of_tile in tiles.items():
            hashes[tile] = of_tile
            size = tile_bytes(self.data_bytes, tile)
            top = levels_of(TILE_NODE, of_tile)[-1]
            root = root_over(TILE_NODE, subtile_count(size), size, top)
            roots[tile * HASH_BYTES : (tile + 1) * HASH_BYTES] = root
        levels = levels_with(SHARD, [bytes(roots), *self.levels[1:]], list(tiles))
        root = root_over(SHARD, self.tile_count, self.data_bytes, levels[-1])
        return ShardTree(self.data_bytes, tuple(hashes), tuple(levels), root)

    # --- proofs ----------------------------------------------------------------------------------

    def prove_subtile(self, place: Place) -> SubtileProof:
        """Proof of one subtile under its tile's root."""
        hashes = self.subtile_hashes(place[0])
        return merkle.prove_subtile_of(hashes, tile_bytes(self.data_bytes, place[0]), place[1])

    def prove_tile(self, tile: int) -> TileProof:
        """Proof of a tile root under the shard root."""
        self._check_tile(tile)
        return TileProof(tile, self.data_bytes, split(missing_nodes(self.levels, (tile,))))

    def path(self, place: Place, shard: ShardProof) -> SubtilePath:
        """Proof of one subtile under the model root that `shard` shows this shard's root under."""
        return SubtilePath(self.prove_subtile(place), self.prove_tile(place[0]), shard)

    def prove_subtile_range(self, tile: int, first: int, count: int) -> SubtileRange:
        """Proof of subtiles [first, first + count) of a tile under its root."""
        levels = levels_of(TILE_NODE, b"".join(self.subtile_hashes(tile)))
        nodes = missing_nodes(levels, range(first, first + count))
        return SubtileRange(first, count, tile_bytes(self.data_bytes, tile), nodes)

    def prove_tile_range(self, first: int, count: int) -> TileRange:
        """Proof of the roots of tiles [first, first + count) under the shard root."""
        nodes = missing_nodes(self.levels, range(first, first + count))
        return TileRange(first, count, self.data_bytes, nodes)

    def missing_nodes(self, places: Sequence[Place]) -> bytes:
        """Missing nodes of some subtiles (ascending): those of their tiles, then the shard's."""
        nodes, tiles = [], []
        for tile, group in groupby(places, lambda place: place[0]):
            levels = levels_of(TILE_NODE, b"".join(self.subtile_hashes(tile)))
            nodes.append(missing_nodes(levels, [place[1] for place in group]))
            tiles.append(tile)
        return b"".join((*nodes, missing_nodes(self.levels, tiles)))

    def _check_tile(self, tile: int) -> None:
        if not 0 <= tile < self.tile_count:
            raise InputError(f"no tile {tile} in a shard of {self.tile_count}")

    def _subtile_bytes(self, place: Place) -> int:
        """Bytes of a subtile. Raises InputError if there is none."""
        tile, subtile = place
        self._check_tile(tile)
        left = tile_bytes(self.data_bytes, tile) - subtile * limits.SUBTILE_BYTES
        if subtile < 0 or left <= 0:
            raise InputError(f"tile {tile} has no subtile {subtile}")
        return min(limits.SUBTILE_BYTES, left)


def tile_bytes(data_bytes: int, tile: int) -> int:
    """Bytes of a tile of a shard with a data section of `data_bytes`."""
    return min(limits.TILE_BYTES, data_bytes - tile * limits.TILE_BYTES)


def prove_subtile_set(
    shard_roots: Sequence[Hash32],
    trees: Mapping[int, ShardTree],
    places: Mapping[int, Sequence[Place]],
) -> SubtileSet:
    """Proof of a set of subtiles, by shard index, under the root of the model with these roots.

    `trees`: of the shards named. Raises InputError for an empty set, one of more than
    MAX_PROOF_SUBTILES, or a subtile that does not exist or whose hash is not known.
    """
    total = sum(len(of_shard) for of_shard in places.values())
    if not 0 < total <= limits.MAX_PROOF_SUBTILES:
        raise InputError(f"a set of {total} subtiles, expected 1 to {limits.MAX_PROOF_SUBTILES}")
    shards, nodes = [], []
    for index in sorted(places):
        tree, of_shard = trees[index], sorted(places[index])
        invariant(tree.root == shard_roots[index], "a tree of another version")
        nodes.append(tree.missing_nodes(of_shard))
        numbers = tuple(SUBTILES_PER_TILE * tile + subtile for tile, subtile in of_shard)
        shards.append(ShardSubtiles(index, tree.data_bytes, numbers))
    nodes.append(missing_nodes(levels_of(MODEL, b"".join(shard_roots)), sorted(places)))
    joined = b"".join(nodes)
    if len(joined) > limits.MAX_SET_NODES_BYTES:
        raise InputError(
            f"{total} subtiles so far apart need {len(joined) // HASH_BYTES} hashes, more than "
            f"{limits.MAX_SET_NODES_BYTES // HASH_BYTES}: prove them in two sets"
        )
    return SubtileSet(len(shard_roots), tuple(shards), joined)
