"""Tiles that need nobody else: those of genesis, which follow from the model's seed, and those that
steps lead to from them (docs/spec/versions.md, "Rebuild")."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from chain.errors import StorageError, invariant
from chain.hashes import Hash32
from node.services.versions import ShardVersion, VersionHistory
from tiles import merkle
from tiles.store import TileStore

log = logging.getLogger("blyan.versions")

RootsOf = Callable[[int, Hash32], Sequence[Hash32]]  # tile roots of a version of the chain
GenesisShard = Callable[[int], bytes]  # the data section of a shard's first version


class Rebuild:
    """Makes tiles that the store has not; for any thread. Keeps the last genesis shard made."""

    def __init__(
        self,
        store: TileStore,
        history: VersionHistory,
        roots_of: RootsOf,
        genesis_shard: GenesisShard,
    ) -> None:
        self._store, self._history = store, history
        self._roots_of, self._make = roots_of, genesis_shard
        self._lock = threading.Lock()
        self._last: tuple[int, bytes] | None = None
        self.rebuilt = 0

    def tile(self, shard: int, root: Hash32, tile: int) -> bytes | None:
        """A tile of a version, verified; None if it can only come from peers.

        Raises VerifyError for a root that the shard never had.
        """
        wanted = self._roots_of(shard, root)[tile]
        data = self._from_genesis(shard, tile, wanted) or self._by_steps(shard, root, tile)
        if data is not None:
            self.rebuilt += 1
        return data

    def _from_genesis(self, shard: int, tile: int, wanted: Hash32) -> bytes | None:
        if self._history.genesis(shard).tile_roots[tile] != wanted:
            return None
        with self._lock:
            if self._last is None or self._last[0] != shard:
                self._last = shard, self._make(shard)
            data = self._last[1]
        part = data[slice(*self._history.specs[shard].tile_range(tile))]
        invariant(merkle.tile_root(part) == wanted, "genesis weights are not what they were")
        return part

    def _by_steps(self, shard: int, root: Hash32, tile: int) -> bytes | None:
        """Steps that are here may start from a genesis tile that is not."""
        store = self._store
        if not store.has_tile(shard, root, tile):
            if not store.has_steps(shard, root) or not self._steps_from_genesis(shard, root, tile):
                return None
            genesis = self._history.genesis(shard)
            data = self._from_genesis(shard, tile, genesis.tile_roots[tile])
            if data is not None:
                store.begin(shard, genesis.root, genesis.tile_roots)
                store.put_tile(shard, genesis.root, tile, data)
        try:
            return store.read_tile(shard, root, tile) if store.has_tile(shard, root, tile) else None
        except StorageError as error:
            log.warning("%s", error)
            return None

    def _steps_from_genesis(self, shard: int, root: Hash32, tile: int) -> bool:
        """Whether every version that changed the tile, up to this one, has its steps here."""
        after: ShardVersion | None = None
        for version in self._history.line(shard):
            changed = after is not None and after.tile_roots[tile] != version.tile_roots[tile]
            if after is not None and changed and not self._store.has_steps(shard, after.root):
                return False
            if after is not None or version.root == root:
                after = version
        return after is not None
