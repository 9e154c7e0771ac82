"""Room for tiles: what is here for use only goes, least recently used first, when the operator's
quota or the disk is full; what custody needs stays (docs/spec/placement.md, "Room").
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from chain.errors import QuotaError
from chain.hashes import Hash32
from node.services.placement_plan import Cached, Tile, evict
from tiles.layout import ShardSpec

log = logging.getLogger("blyan.placement")

RESERVE_BYTES = 256 * 1024 * 1024  # of the disk: the chain must go on when tiles have no room
REMEMBERED = 131_072  # uses: versions without end are used, and only a full disk asks which
WHOLE = -1  # in place of a tile: all of a version


class RoomStore(Protocol):
    """The part of `tiles.store.TileStore` that eviction needs."""

    @property
    def used_bytes(self) -> int: ...

    def versions(self, shard: int) -> tuple[Hash32, ...]: ...

    def partial_versions(self, shard: int) -> tuple[Hash32, ...]: ...

    def presence(self, shard: int, shard_root: Hash32) -> tuple[bool, ...]: ...

    def drop(self, shard: int, shard_root: Hash32) -> None: ...

    def drop_tile(self, shard: int, shard_root: Hash32, tile: int) -> None: ...


class TileCache:
    """Makes room in the store. `make_room` may be called from any thread."""

    def __init__(
        self,
        store: RoomStore,
        specs: Sequence[ShardSpec],
        *,
        quota_bytes: int,
        free_bytes: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        """`quota_bytes`: 0 for as much as the disk has; `free_bytes`: what it has left."""
        self.pinned: Collection[Tile] | None = None  # what must stay, in any version; None: all
        self.shed: Callable[[], bool] = lambda: False  # drops old versions; whether it dropped any
        self.quota_bytes, self.evicted = quota_bytes, 0
        self.full: str | None = None  # why there is no room, while there is none
        self._store, self._specs = store, tuple(specs)
        self._free_bytes, self._clock = free_bytes, clock
        self._used = OrderedDict[tuple[int, Hash32, int], float]()
        self._lock = threading.Lock()

    def touch(self, shard: int, root: Hash32, tile: int = WHOLE) -> None:
        """It was used now."""
        key = shard, root, tile
        self._used.pop(key, None)  # so that the order is that of the last use
        self._used[key] = self._clock()
        if len(self._used) > REMEMBERED:
            self._used.popitem(last=False)

    def room(self) -> int:
        """Bytes that may still be written: less than nothing if too much is here already."""
        on_disk = self._free_bytes() - RESERVE_BYTES
        if not self.quota_bytes:
            return on_disk
        return min(on_disk, self.quota_bytes - self._store.used_bytes)

    def make_room(self, need_bytes: int) -> None:
        """Drop cached tiles, and then old versions, until `need_bytes` fit. QuotaError if they
        cannot. What a dropped tile gives back shows only then: another version may have shared it.
        """
        with self._lock:
            short = need_bytes - self.room()
            while short > 0:
                chosen = evict(self._cached(), short)
                self._drop(chosen)
                self.evicted += len(chosen)
                if not chosen and not self.shed():
                    raise self._refused()
                short = need_bytes - self.room()
            self.note_room()

    def note_full(self, error: QuotaError) -> None:
        """The store refused a tile. Said once, until there is room again."""
        if self.full is None:
            self.full = str(error)
            log.warning(
                "no more tiles are fetched, everything else goes on: %s. Raise store_quota in the "
                "configuration, or free some space; it is looked at again every minute",
                error,
            )

    def note_room(self) -> None:
        if self.full is not None:
            log.info("there is room for tiles again")
            self.full = None

    def _drop(self, chosen: Sequence[Cached]) -> None:
        """Versions as a whole where nothing of them is left, else tile by tile."""
        versions: dict[tuple[int, Hash32], list[int]] = {}
        for entry in chosen:
            versions.setdefault((entry.shard, entry.root), []).append(entry.tile)
            self._used.pop((entry.shard, entry.root, entry.tile), None)
        for (shard, root), tiles in versions.items():
            if len(tiles) == sum(self._store.presence(shard, root)):
                self._store.drop(shard, root)
                continue
            for tile in tiles:
                self._store.drop_tile(shard, root, tile)

    def _refused(self) -> QuotaError:
        used, free = self._store.used_bytes, self._free_bytes()
        if self.quota_bytes and self.quota_bytes - used < free - RESERVE_BYTES:
            return QuotaError(
                f"tiles take {used} bytes here, and store_quota allows {self.quota_bytes}"
            )
        return QuotaError(
            f"the disk has {free} bytes left, and {RESERVE_BYTES} are kept for the chain"
        )

    def _cached(self) -> list[Cached]:
        """Every tile that is here and need not be. Versions share tiles, so what must stay in one
        stays in all."""
        pinned = self.pinned
        if pinned is None:
            return []
        found = []
        kept = OrderedDict[tuple[int, Hash32, int], float]()
        for spec in self._specs:
            shard = spec.index
            for root in (*self._store.versions(shard), *self._store.partial_versions(shard)):
                whole = self._used.get((shard, root, WHOLE), 0.0)
                kept[shard, root, WHOLE] = whole
                for tile, is_held in enumerate(self._store.presence(shard, root)):
                    if is_held and (shard, tile) not in pinned:
                        used = max(whole, self._used.get((shard, root, tile), 0.0))
                        kept[shard, root, tile] = used
                        found.append(Cached(shard, root, tile, spec.tile_bytes(tile), used))
        self._used = kept  # forget what is no longer here
        return found
