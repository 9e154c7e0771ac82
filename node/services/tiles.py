"""The model's tiles at a node: what the chain names, held here or fetched tile by tile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from chain import limits
from chain import records as r
from chain.errors import StorageError, UnreachableError, VerifyError
from chain.hashes import Hash32
from chain.store import ChainStore
from node.services.peers import Peers
from tiles import merkle
from tiles.layout import ShardSpec
from tiles.store import TileStore

log = logging.getLogger("blyan.tiles")
PROTOCOL = "/blyan/tile/1"
FETCH_TIMEOUT_S = 30.0


class TileService:
    """Tile bytes by (shard, shard root, tile). A request is shard (4 bytes), root, tile (4)."""

    def __init__(
        self,
        store: TileStore,
        specs: tuple[ShardSpec, ...],
        net: Peers,
        chain_store: ChainStore,
        genesis_roots: Sequence[tuple[Hash32, ...]],
    ) -> None:
        self.store, self.specs = store, specs
        self._net, self._chain_store = net, chain_store
        self._genesis_roots = tuple(genesis_roots)
        self.fetched = self.lies = self.damaged = 0
        net.serve(PROTOCOL, self._serve, most=40, concurrent=4)

    def put_shard(self, index: int, data: bytes, root: Hash32) -> None:
        self.store.put_shard(index, data, root)

    async def model(self, roots: Sequence[Hash32]) -> list[bytes]:
        """Data sections of all shards at these shard roots."""
        return [await self.shard(i, root) for i, root in enumerate(roots)]

    async def shard(self, index: int, root: Hash32) -> bytes:
        """One shard version, from here or from peers, every tile verified."""
        if index >= len(self.specs):
            raise VerifyError(f"the model has no shard {index}")
        for _ in range(self.specs[index].tile_count + 1):  # each try mends at least one tile
            if root not in self.store.versions(index):
                await self._complete(index, root)
            try:
                return await asyncio.to_thread(self.store.read_shard, index, root)
            except StorageError as error:
                self.damaged += 1
                log.warning("%s; fetching it from a peer", error)
        raise StorageError(
            f"shard {self.specs[index].name} is damaged again and again: check the disk"
        )

    def tile_roots(self, index: int, root: Hash32) -> tuple[Hash32, ...]:
        """The tile roots under a shard root that was ever on this chain."""
        size = self.specs[index].data_bytes
        if merkle.shard_root(self._genesis_roots[index], size) == root:
            return self._genesis_roots[index]
        for event in self._chain_store.history("shard", r.shard_key(index)):
            if event.data["root"] == root.hex():
                return tuple(Hash32(bytes.fromhex(t)) for t in event.data["tiles"])
        raise VerifyError(f"shard {index} never had the root {root.hex()} on this chain")

    async def _complete(self, index: int, root: Hash32) -> None:
        roots = self.tile_roots(index, root)
        missing = await asyncio.to_thread(self.store.begin, index, root, roots)
        for tile in missing:
            await self._fetch(index, root, tile)

    async def _fetch(self, index: int, root: Hash32, tile: int) -> None:
        request = index.to_bytes(4, "big") + root + tile.to_bytes(4, "big")
        peers = [p.peer_id for p in self._net.peers() if p.connected]
        for peer in peers:
            try:
                data = await self._net.request(
                    peer, PROTOCOL, request, timeout_s=FETCH_TIMEOUT_S, most=limits.TILE_BYTES
                )
            except UnreachableError as error:
                log.debug("%s did not serve a tile: %s", peer, error)
                continue
            if not data:
                continue
            try:
                await asyncio.to_thread(self.store.put_tile, index, root, tile, data)
            except VerifyError as error:
                self.lies += 1
                self._net.report(peer, f"served a wrong tile: {error}", 50)
                continue
            self.fetched += 1
            return
        raise UnreachableError(
            f"none of {len(peers)} connected peers has tile {tile} of shard {index} "
            f"at {root.hex()}; try again later"
        )

    async def _serve(self, peer: str, request: bytes) -> bytes:
        if len(request) != 40:
            self._net.report(peer, "a tile request is 40 bytes", 10)
            return b""
        index = int.from_bytes(request[:4], "big")
        root, tile = Hash32(request[4:36]), int.from_bytes(request[36:], "big")
        if index >= len(self.specs) or tile >= self.specs[index].tile_count:
            self._net.report(peer, "asked for a tile that cannot exist", 10)
            return b""
        if not self.store.has_tile(index, root, tile):
            return b""
        try:
            return await asyncio.to_thread(self.store.read_tile, index, root, tile)
        except StorageError as error:
            log.warning("a held tile is damaged and is not served: %s", error)
            return b""
