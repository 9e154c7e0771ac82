"""Nodes that share one chain and keep its model between them: real stores, tile services and
placement; the network is in memory or real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from chain import records as r
from chain.errors import UnreachableError
from chain.hashes import Hash32
from node.genesis import build_genesis
from node.net.info import PeerInfo
from node.net.requests import parts_of
from node.services.placement import Placement
from node.services.placement_plan import Tile
from node.services.tile_cache import TileCache
from node.services.tiles import TileService, chain_roots
from tests.kit.local_chain import TINY, LocalChain
from tiles.store import TileStore
from tiles.store.disk import Disk
from wallet.keys import Keys

MODEL = TINY | {"layers": 4, "experts": 4}  # 27 shards of one small tile each
FREE = 1 << 40


class MemoryNet:
    """One node's network port without sockets."""

    def __init__(self, world: dict[str, MemoryNet], name: str) -> None:
        self.world, self.peer_id = world, name
        self.handlers: dict[str, Any] = {}
        self.links: set[str] = set()
        self.provided: set[bytes] = set()
        self.reported: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self._listeners: list[Callable[[str, bool], object]] = []
        world[name] = self

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.handlers[protocol] = handler

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in sorted(self.links)]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append((peer, reason))

    def on_peer(self, handler: Callable[[str, bool], object]) -> None:
        self._listeners.append(handler)

    def connect(self, *others: MemoryNet) -> None:
        for other in others:
            for one, two in ((self, other), (other, self)):
                if two.peer_id not in one.links and one is not two:
                    one.links.add(two.peer_id)
                    one.tell(two.peer_id, True)

    def leave(self) -> None:
        """The node is gone, for everyone."""
        del self.world[self.peer_id]
        for other in list(self.world.values()):
            if self.peer_id in other.links:
                other.links.discard(self.peer_id)
                other.tell(self.peer_id, False)

    def tell(self, peer: str, connected: bool) -> None:
        for listener in self._listeners:
            listener(peer, connected)

    def provide(self, key: bytes) -> bool:
        self.provided.add(key)
        return True

    def withdraw(self, key: bytes) -> None:
        self.provided.discard(key)

    async def providers(self, key: bytes) -> list[str]:
        return [n.peer_id for n in self.world.values() if key in n.provided and n is not self]

    async def reach(self, peer: str, addresses: Sequence[str] = ()) -> None:
        self.asked.append((peer, "reach"))
        if peer not in self.world:
            raise UnreachableError(f"no address of {peer} is known")
        self.connect(self.world[peer])

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        self.asked.append((peer, protocol))
        if peer not in self.links or protocol not in self.world[peer].handlers:
            raise UnreachableError(f"not connected to {peer}")
        answer = await self.world[peer].handlers[protocol](self.peer_id, data)
        return b"".join(parts_of(answer))

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        into: memoryview,
        progress: Callable[[int], object] | None = None,
        **_: Any,
    ) -> int:
        answer = await self.request(peer, protocol, data)
        into[: len(answer)] = answer
        if progress is not None:
            progress(len(answer))
        return len(answer)


class QuickDisk(Disk):
    """Waits for nothing: crashes are tested elsewhere."""

    def sync(self, fd: int) -> None:
        """Not to the platter."""

    def sync_folder(self, path: Path) -> None:
        """Not to the platter."""


class PlacementNode:
    """One node. `net`: its port; `disk`: of its store."""

    def __init__(
        self,
        town: Town,
        keys: Keys,
        net: Any,
        *,
        capacity_tiles: int,
        quota_bytes: int = 0,
        disk: Disk | None = None,
    ) -> None:
        self.town, self.keys, self.net = town, keys, net
        self.free_bytes = FREE
        directory = town.directory / f"tiles-{len(town.nodes)}"
        quota = quota_bytes or None
        store = TileStore(directory, town.specs, disk=disk or QuickDisk(), quota_bytes=quota)
        roots = chain_roots(town.chain.store, town.specs, town.genesis_roots)
        self.tiles = TileService(store, town.specs, net, roots)
        self.cache = TileCache(
            store,
            town.specs,
            quota_bytes=quota_bytes,
            free_bytes=lambda: self.free_bytes,
            clock=town.clock,
        )
        self.placement = Placement(
            town.chain.genesis,
            keys.account.public,
            town.chain.chain,
            town.chain.store,
            self.tiles,
            net,
            self.cache,
            capacity_tiles=capacity_tiles,
            grace_s=town.grace_s,
            clock=town.clock,
        )
        town.nodes.append(self)

    def seed(self) -> None:
        """Give it the model of genesis, as a node has that was there from the beginning."""
        for spec, data in zip(self.town.specs, self.town.shards, strict=True):
            self.tiles.put_shard(spec.index, data, self.town.root(spec.index))

    def held(self) -> set[Tile]:
        root = self.town.root
        return {t for t in self.town.model if self.tiles.store.has_tile(t[0], root(t[0]), t[1])}

    async def plan(self) -> None:
        """Look at who is there and plan, as `run` does again and again."""
        await self.placement._replan()
        await self.placement._provide()

    async def hold(self) -> None:
        """What the duty does."""
        await self.placement.hold(self.town.chain.state, lambda shard, root, tiles: None)

    async def close(self) -> None:
        await self.tiles.close()
        self.tiles.store.close()


class Town:
    """The chain and its nodes. Time stands still but for `pass_time` unless it is real."""

    def __init__(
        self,
        directory: Path,
        *,
        validators: int = 5,
        grace_s: float = 60.0,
        clock: Callable[[], float] | None = None,
        **params: Any,
    ) -> None:
        self.directory, self.grace_s = directory, grace_s
        self.now = 1000.0
        self.clock = clock or (lambda: self.now)
        self.chain = LocalChain(directory, validators=validators, model=MODEL, **params)
        start = build_genesis(self.chain.genesis)
        self.specs, self.shards = start.specs, start.shards
        self.genesis_roots = [s.tile_roots for s in start.rooted]
        self.model: list[Tile] = [(s.index, t) for s in self.specs for t in range(s.tile_count)]
        self.nodes: list[PlacementNode] = []
        self.world: dict[str, MemoryNet] = {}

    async def __aenter__(self) -> Town:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            await node.close()
        self.chain.store.close()

    def memory_node(self, number: int, **options: Any) -> PlacementNode:
        """Validator `number`, connected to nobody."""
        keys = self.chain.validators[number]
        name = self.chain.genesis.validators[number].node_id
        return PlacementNode(self, keys, MemoryNet(self.world, name), **options)

    def connect_all(self) -> None:
        for net in list(self.world.values()):
            net.connect(*self.world.values())

    def root(self, shard: int) -> Hash32:
        return self.chain.state.need(r.ShardRecord, r.shard_key(shard)).root

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    async def settle(self, *nodes: PlacementNode) -> None:
        """Everyone plans and fetches what it lacks."""
        for node in nodes:
            await node.plan()
        await asyncio.gather(*(node.hold() for node in nodes))
        for node in nodes:
            await node.placement.presence.ask_all()
            await node.plan()

    def holders(self, *nodes: PlacementNode) -> list[int]:
        """How many of these nodes hold each tile."""
        held = [node.held() for node in nodes]
        return [sum(tile in tiles for tiles in held) for tile in self.model]
