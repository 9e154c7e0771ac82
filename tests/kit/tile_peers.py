"""A `Peers` in memory: holders of tiles with a speed and a character, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chain import limits
from chain.codec import decode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from node.net.info import PeerInfo
from node.services.tile_transfer import TileWant
from node.services.tile_wire import TileRequest
from tests.kit.fast_time import passes
from tiles import merkle

PIECE = 64 * 1024  # bytes told of at a time


@dataclass(frozen=True)
class Tile:
    """One tile and what is asked for it."""

    data: bytes
    want: TileWant
    hashes: tuple[Hash32, ...]


def make_tile(seed: int, size: int = limits.TILE_BYTES, shard: int = 0, tile: int = 0) -> Tile:
    data = random.Random(seed).randbytes(size)
    hashes = merkle.subtile_hashes(data)
    root = Hash32(seed.to_bytes(32, "big"))
    want = TileWant(shard, root, tile, size, merkle.tile_root_of(hashes, size))
    return Tile(data, want, hashes)


@dataclass
class Peer:
    """How one peer answers. `rate`: bytes a second; 0 stalls after `stalls_after` bytes."""

    name: str
    rate: float = 50e6
    delay_s: float = 0.001
    holds: Callable[[TileRequest], bool] = lambda request: True
    spoil: Callable[[bytearray], object] = lambda answer: None  # lies about, cuts or lengthens it
    stalls_after: int | None = None
    dies_after: int | None = None  # bytes of an answer, then the connection is gone
    busy: int = 0  # requests that it refuses first
    sent: int = 0
    asked: int = 0
    running: int = 0
    ranges: list[tuple[int, int, int]] = field(default_factory=list)  # tile, first, end


class MemoryPeers:
    """Peers that hold all tiles given to `hold`."""

    def __init__(self, *peers: Peer) -> None:
        self.by_name = {peer.name: peer for peer in peers}
        self.tiles: dict[tuple[int, Hash32, int], Tile] = {}
        self.reported: list[str] = []
        self.writers: list[tuple[int, int]] = []

    @property
    def names(self) -> list[str]:
        return list(self.by_name)

    def hold(self, *tiles: Tile) -> None:
        for tile in tiles:
            self.tiles[tile.want.shard, tile.want.root, tile.want.tile] = tile

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        raise AssertionError("nobody serves here")

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in self.by_name]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append(peer)

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        raise AssertionError("tiles are fetched, not requested")

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        into: memoryview,
        progress: Callable[[int], object],
        timeout_s: float,
        **_: Any,
    ) -> int:
        other = self.by_name[peer]
        request: TileRequest = decode(TileRequest, data)
        other.asked += 1
        other.running += 1
        try:
            await passes(other.delay_s)
            if other.busy:
                other.busy -= 1
                raise UnreachableError("the peer is too busy for the request")
            return await self._send(other, request, into, progress)
        finally:
            other.running -= 1

    async def _send(
        self, peer: Peer, request: TileRequest, into: memoryview, progress: Callable[[int], object]
    ) -> int:
        answer = self._answer(peer, request)
        peer.ranges.append((request.tile, request.first, request.first + request.count))
        if len(answer) > len(into):
            raise UnreachableError("the peer answered too much")
        for start in range(0, len(answer), PIECE):
            if peer.stalls_after is not None and start >= peer.stalls_after:
                await asyncio.get_running_loop().create_future()
            if peer.dies_after is not None and start >= peer.dies_after:
                raise UnreachableError("the connection was lost")
            piece = answer[start : start + PIECE]
            await passes(len(piece) * peer.running / peer.rate)
            into[start : start + len(piece)] = piece
            peer.sent += len(piece)
            progress(start + len(piece))
        return len(answer)

    def _answer(self, peer: Peer, request: TileRequest) -> bytes:
        tile = self.tiles.get((request.shard, request.root, request.tile))
        if tile is None or not peer.holds(request):
            return b""
        step = limits.SUBTILE_BYTES
        data = tile.data[request.first * step : (request.first + request.count) * step]
        answer = bytearray(b"".join(tile.hashes) if request.hashes else b"")
        answer += data
        peer.spoil(answer)
        return bytes(answer)
