"""Tiles for peers: verified when they enter this process, sent without a copy.

A tile is read once from disk and checked against its hashes; what was asked for a second time of
late is kept in memory within a bound. A damaged tile is never sent: it becomes missing in the
store, and whoever owns this is told, so that it is fetched again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

from chain import limits
from chain.errors import DecodeError, InputError, StorageError, VerifyError
from chain.hashes import Hash32
from node.net.priority import Priority
from node.net.requests import Buffer
from node.services.peers import Peers
from node.services.tile_wire import MAX_REQUEST_BYTES, PROTOCOL, TileRequest, read_request
from tiles.layout import ShardSpec, subtile_count
from tiles.store import TileStore

log = logging.getLogger("blyan.tiles")

CACHE_BYTES = 32 * 1024 * 1024  # verified tiles in memory: eight
SEEN_TILES = 256  # tiles asked for of late, so that only the second request fills the cache
CONCURRENT = 16  # answers at a time, one peer half of them: 64 MiB in memory at most
POINTS_IMPOSSIBLE = 10.0  # a request that nobody can mean

Damaged = Callable[[int, Hash32, int], None]


class TileServer:
    """Answers TileRequests from the store. `damaged(shard, root, tile)` hears of bad tiles."""

    def __init__(
        self, store: TileStore, specs: Sequence[ShardSpec], net: Peers, damaged: Damaged
    ) -> None:
        self._store, self._specs, self._net = store, specs, net
        self._damaged = damaged
        self._cache: OrderedDict[Hash32, bytes] = OrderedDict()  # by tile root
        self._cached_bytes = 0
        self._seen: OrderedDict[Hash32, None] = OrderedDict()
        self.served = self.served_bytes = 0
        net.serve(
            PROTOCOL,
            self._serve,
            most=MAX_REQUEST_BYTES,
            concurrent=CONCURRENT,
            priority=Priority.BULK,
        )

    async def _serve(self, peer: str, data: bytes) -> Sequence[Buffer]:
        try:
            request = read_request(data, self._specs)
        except (DecodeError, VerifyError) as error:
            self._net.report(
                peer, f"asked for a tile that cannot exist: {error}", POINTS_IMPOSSIBLE
            )
            return ()
        shard, root, tile = request.shard, request.root, request.tile
        if not self._store.has_tile(shard, root, tile):
            return ()
        try:
            parts = await self._parts(request)
        except InputError:  # dropped meanwhile
            return ()
        except StorageError as error:
            log.warning("a held tile is damaged and is not served: %s", error)
            self._damaged(shard, root, tile)
            return ()
        self.served += 1
        self.served_bytes += sum(len(part) for part in parts)
        return parts

    async def _parts(self, request: TileRequest) -> list[Buffer]:
        shard, root, tile = request.shard, request.root, request.tile
        parts: list[Buffer] = []
        if request.hashes:
            parts.append(b"".join(self._store.subtile_hashes(shard, root, tile)))
        if not request.count:
            return parts
        name = self._store.tile_roots(shard, root)[tile]
        subtiles = subtile_count(self._specs[shard].tile_bytes(tile))
        first, count = request.first, request.count
        held = self._cache.get(name)
        if held is not None:
            self._cache.move_to_end(name)
        elif self._is_wanted(name):
            held = await asyncio.to_thread(self._store.read_tile, shard, root, tile)
            self._keep(name, held)
        elif count == subtiles:
            held = await asyncio.to_thread(self._store.read_tile, shard, root, tile)
        else:
            read = self._store.read_subtiles
            parts.append(await asyncio.to_thread(read, shard, root, tile, first, count))
            return parts
        step = limits.SUBTILE_BYTES
        parts.append(memoryview(held)[first * step : (first + count) * step])
        return parts

    def _is_wanted(self, name: Hash32) -> bool:
        """Whether a tile was asked for before, of late."""
        known = name in self._seen
        self._seen[name] = None
        self._seen.move_to_end(name)
        if len(self._seen) > SEEN_TILES:
            self._seen.popitem(last=False)
        return known

    def _keep(self, name: Hash32, data: bytes) -> None:
        if name in self._cache:  # two requests read it at the same time
            return
        self._cache[name] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])
