"""Tiles for peers: verified when they enter this process, sent without a copy.

A tile is read once from disk and checked against its hashes; what was asked for a second time of
late is kept in memory within a bound. A damaged tile is never sent: it becomes missing in the
store, and whoever owns this is told, so that it is fetched again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chain import limits
from chain.errors import DecodeError, InputError, StorageError, VerifyError
from chain.hashes import Hash32
from node.net.priority import Priority
from node.net.requests import Buffer
from node.services.peers import Peers
from node.services.threads import Workers
from node.services.tile_wire import MAX_REQUEST_BYTES, PROTOCOL, TileRequest, read_request
from tiles.layout import ShardSpec, subtile_count
from tiles.store import TileStore

log = logging.getLogger("blyan.tiles")

CACHE_BYTES = 32 * 1024 * 1024  # verified tiles in memory: eight
SEEN_TILES = 256  # tiles asked for of late, so that only the second request fills the cache
READING = 4  # answers at a time that are read from the disk: this process has other threads to do
MAKING = 2  # answers at a time that have to be made by steps: each costs up to half a second
CONCURRENT = 16  # answers at a time, one peer half of them: 64 MiB in memory at most
POINTS_IMPOSSIBLE = 10.0  # a request that nobody can mean

Damaged = Callable[[int, Hash32, int], None]


@dataclass(frozen=True, slots=True)
class _Held:
    """Verified subtiles of a tile from subtile `first`, and the hashes of all of them."""

    hashes: bytes
    data: bytes
    first: int


class TileServer:
    """Answers TileRequests from the store. `damaged(shard, root, tile)` hears of bad tiles."""

    def __init__(
        self, store: TileStore, specs: Sequence[ShardSpec], net: Peers, damaged: Damaged
    ) -> None:
        self._store, self._specs, self._net = store, specs, net
        self._damaged = damaged
        self._cache: OrderedDict[Hash32, _Held] = OrderedDict()  # whole tiles by their root
        self._cached_bytes = 0
        self._seen: OrderedDict[Hash32, None] = OrderedDict()
        self._reading, self._making = Workers(READING), Workers(MAKING)
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
        try:
            parts = await self._parts(request)
        except InputError:  # not held, or dropped meanwhile
            return ()
        except StorageError as error:
            log.warning("a held tile is damaged and is not served: %s", error)
            self._damaged(request.shard, request.root, request.tile)
            return ()
        self.served += 1
        self.served_bytes += sum(len(part) for part in parts)
        return parts

    async def _parts(self, request: TileRequest) -> list[Buffer]:
        name = self._store.tile_roots(request.shard, request.root)[request.tile]
        held = self._cache.get(name)
        if held is not None:
            self._cache.move_to_end(name)
        else:
            wanted = request.count > 0 and self._is_wanted(name)
            thin = self._store.is_thin(request.shard, request.root)
            workers = self._making if thin else self._reading
            held = await workers.run(self._read, request, wanted)
            if wanted:
                self._keep(name, held)
        parts: list[Buffer] = [held.hashes] if request.hashes else []
        if request.count:
            start = (request.first - held.first) * limits.SUBTILE_BYTES
            end = start + request.count * limits.SUBTILE_BYTES
            parts.append(memoryview(held.data)[start:end])
        return parts

    def _read(self, request: TileRequest, is_whole: bool) -> _Held:
        """What a request needs, or all of its tile, checked; in a thread, since a tile of an old
        version may have to be made first."""
        place = request.shard, request.root, request.tile
        hashes = b""
        if request.hashes or is_whole:
            hashes = b"".join(self._store.subtile_hashes(*place))
        subtiles = subtile_count(self._specs[request.shard].tile_bytes(request.tile))
        if is_whole or request.count == subtiles:
            return _Held(hashes, self._store.read_tile(*place), 0)
        if not request.count:
            return _Held(hashes, b"", 0)
        data = self._store.read_subtiles(*place, request.first, request.count)
        return _Held(hashes, data, request.first)

    def _is_wanted(self, name: Hash32) -> bool:
        """Whether a tile was asked for before, of late."""
        known = name in self._seen
        self._seen[name] = None
        self._seen.move_to_end(name)
        if len(self._seen) > SEEN_TILES:
            self._seen.popitem(last=False)
        return known

    def _keep(self, name: Hash32, held: _Held) -> None:
        if name in self._cache:  # two requests read it at the same time
            return
        self._cache[name] = held
        self._cached_bytes += len(held.data)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1].data)
