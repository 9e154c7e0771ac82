"""Nodes of one process that sync from one another, without sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chain.codec import decode
from chain.errors import BlyanError, UnreachableError
from chain.store import ChainStore
from node.genesis import build_genesis
from node.net.info import PeerInfo
from node.net.requests import RequestHandler
from node.services.chain import ChainService
from node.services.snapshot_entry import SnapshotEntry, adopt
from node.services.snapshot_serve import SnapshotServer
from node.services.snapshot_wire import SnapshotRequest
from node.services.sync import SyncService
from node.services.sync_wire import PROTOCOL as BLOCKS
from node.services.sync_wire import SyncRequest
from tests.kit.local_chain import LocalChain

Spoil = Callable[[str, bytes, bytes], Awaitable[bytes]]


class SyncPort:
    """The part of the network port that syncing uses, between services of one process. `spoil`
    makes a lie, or a delay, of an answer: (protocol, request, answer) → answer."""

    def __init__(self, name: str, others: dict[str, SyncPort]) -> None:
        self.name, self._others = name, others
        self.handlers: dict[str, RequestHandler] = {}
        self.spoil: Spoil | None = None
        self.hears: set[str] | None = None  # of whom it knows; all if None
        self.reported: list[str] = []
        self.asked: Counter[type] = Counter()  # requests that it has answered, by their type
        others[name] = self

    def serve(self, protocol: str, handler: RequestHandler, **_: Any) -> None:
        self.handlers[protocol] = handler

    def subscribe(self, topic: str, handler: Any) -> None: ...

    def on_peer(self, handler: Any) -> None: ...

    def peers(self) -> list[PeerInfo]:
        known = sorted(self._others if self.hears is None else self.hears)
        return [PeerInfo(n, (), True, None, 0.0, "out") for n in known if n != self.name]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append(peer)

    async def request(self, peer: str, protocol: str, data: bytes, **options: Any) -> bytes:
        other = self._others[peer]
        kind = SyncRequest if protocol == BLOCKS else SnapshotRequest
        other.asked[type(decode(kind, data))] += 1
        if sum(other.asked.values()) > 20_000:
            raise AssertionError("asked too often: a loop")
        await asyncio.sleep(0)
        try:
            raw = await other.handlers[protocol](self.name, data)
            assert isinstance(raw, bytes)
            if other.spoil is not None:
                async with asyncio.timeout(options["timeout_s"]):
                    raw = await other.spoil(protocol, data, raw)
        except (BlyanError, TimeoutError) as error:
            raise UnreachableError(f"{peer}: {error}") from None
        if len(raw) > options["most"]:
            raise UnreachableError("too much")
        return raw


class SyncNode:
    """What of a node takes and gives blocks and snapshots, on a chain of its own."""

    def __init__(
        self,
        directory: Path,
        source: LocalChain,
        port: SyncPort,
        *,
        mode: str = "auto",
        trust: str = "",
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.source, self.port = directory, source, port
        self.mode, self.trust = mode, trust
        self._start = build_genesis(source.genesis)
        self._now_ms = now_ms or (lambda: source.chain.tip.time_ms + 1)
        self.open()

    def open(self) -> None:
        """As a start of the node does."""
        self.adopted = adopt(self.directory / "sync", self.directory / "chain.db")
        self.store = ChainStore(self.directory / "chain.db")
        self.chain = ChainService(self._start, self.store, self.source.rules)
        net: Any = self.port
        self.server = SnapshotServer(self.chain, net)
        self.entered = False
        self.entry = SnapshotEntry(
            self.chain, net, self.directory / "sync", self._now_ms, self.trust
        )
        self.sync = SyncService(
            self.chain, net, self.entry, mode=self.mode, on_entered=self._entered
        )

    def _entered(self) -> None:
        self.entered = True

    def close(self) -> None:
        self.store.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def catch_up(self) -> None:
        """Once, and again from a snapshot if one was taken."""
        asyncio.run(self.sync._catch_up())
        if self.entered:
            self.reopen()
            asyncio.run(self.sync._catch_up())


def serve_chain(source: LocalChain, name: str, others: dict[str, SyncPort]) -> SyncPort:
    """A peer that has all of `source`, and offers its newest snapshots."""
    port = SyncPort(name, others)
    net: Any = port
    SyncService(source.chain, net)
    SnapshotServer(source.chain, net)
    return port
