"""Networks for tests: started together, waited for by events, always stopped."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from chain.errors import UnreachableError
from node.net.port import Network
from tests.kit.waiting import TIMEOUT_S


class Station:
    """One network with everything it saw, and a bell that rings at each event."""

    def __init__(self, name: str, *, listen: str = "/ip4/127.0.0.1/tcp/0", **options: Any) -> None:
        """`options`: of `Network`, such as `link_port`."""
        seed = hashlib.sha256(name.encode()).digest()
        self.net = Network(seed, listen=listen, **options)
        self.gossip: list[tuple[str, bytes]] = []
        self.messages: list[tuple[str, bytes]] = []
        self.changes: list[tuple[str, bool]] = []
        self.judge: Callable[[str, bytes], bool] = lambda peer, data: True
        self._bell = asyncio.Event()
        self.net.on_message(self._on_message)
        self.net.on_peer(self._on_peer)
        self.net.subscribe("news", self._on_gossip)

    @property
    def id(self) -> str:
        return self.net.peer_id

    @property
    def address(self) -> str:
        return self.net.addresses()[0]

    def ring(self) -> None:
        self._bell.set()

    def _on_message(self, peer: str, data: bytes) -> None:
        self.messages.append((peer, data))
        self.ring()

    def _on_peer(self, peer: str, connected: bool) -> None:
        self.changes.append((peer, connected))
        self.ring()

    async def _on_gossip(self, peer: str, data: bytes) -> bool:
        self.gossip.append((peer, data))
        self.ring()
        return self.judge(peer, data)

    @property
    def connected(self) -> set[str]:
        return {p.peer_id for p in self.net.peers() if p.connected}

    async def until(self, holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait for a condition: looked at after every event here, and 20 times a second for
        what has no event (counters)."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._bell.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._bell.wait(), 0.05)
        except TimeoutError:
            raise AssertionError(
                f"not within {timeout_s} s; {self.net.metrics()} {self.net.peers()}"
            ) from None

    async def until_gossip(self, data: bytes) -> None:
        await self.until(lambda: any(d == data for _, d in self.gossip))

    async def until_linked(self, *others: Station) -> None:
        """Until there is a link, beside libp2p's connection, with each of these."""
        names = {o.id for o in others}
        await self.until(lambda: names <= {i.peer_id for i in self.net.link_info() if i.up})

    async def until_connected(self, *others: Station) -> None:
        await self.until(lambda: {o.id for o in others} <= self.connected)


@contextlib.asynccontextmanager
async def stations(*names: str, dial: bool = True, **options: Any) -> AsyncIterator[list[Station]]:
    """Started networks; with `dial` each later one dials the first and all are connected."""
    made = [Station(name, **options) for name in names]
    try:
        for station in made:
            await station.net.start()
        if dial:
            for station in made[1:]:
                with contextlib.suppress(UnreachableError):  # too busy: it stays wanted
                    await station.net.dial(made[0].address)
            for station in made:
                await station.until_connected(*(o for o in made if o is not station))
        yield made
    finally:
        await asyncio.gather(*(station.net.stop() for station in made))


async def exchange(one: Station, other: Station) -> None:
    """Both are alive and talk: a message each way, a request, and gossip both ways."""
    tag = f"{len(one.messages)}-{len(other.messages)}-{len(one.gossip)}".encode()
    await one.until_connected(other)
    await other.until_connected(one)
    for sender, receiver in ((one, other), (other, one)):
        data = tag + sender.id.encode()
        assert sender.net.send(receiver.id, data)
        await receiver.until(lambda r=receiver, s=sender, d=data: (s.id, d) in r.messages)
        await sender.net.publish("news", data)
        await receiver.until_gossip(data)
