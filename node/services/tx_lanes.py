"""Transactions from validator to validator: over links, without gossip (docs/spec/blocks.md).

One gossip message costs every node some 2 ms, a request over a link a tenth of that. Validators are
who puts transactions into blocks, and each has a link with each other, so between them gossip is
left for what lies beyond: a member that is not reached, and neighbours that are no members.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgpack

from chain.errors import BlyanError, UnreachableError
from node.net.port import PeerHandler
from node.net.requests import RequestHandler

log = logging.getLogger("blyan.txs")
PROTOCOL = "/blyan/txs/1"
PAUSE_S = 0.02  # transactions that come within it travel together
TIMEOUT_S = 20.0
MAX_WAITING = 4096  # of one lane; the oldest goes first, its sender says it again
CONCURRENT = 128  # batches here at a time, each waiting for its turn
BATCH_BYTES, MAX_BATCH_TXS = 256 * 1024, 1024
MAX_BYTES = 512 * 1024  # of a message: a batch, or a transaction that is larger by itself
WRONG_WEIGHT = 20.0  # violation points of whoever sends what is wrong for every node

Judge = Callable[[str, bytes], Awaitable[bool | None]]


class LaneNet(Protocol):
    """What lanes need of the network port."""

    def on_peer(self, handler: PeerHandler) -> None: ...

    def report(self, peer: str, reason: str, weight: float) -> None: ...

    def serve(
        self, protocol: str, handler: RequestHandler, *, most: int, concurrent: int = 8
    ) -> None: ...

    async def request(
        self, peer: str, protocol: str, data: bytes, *, timeout_s: float, most: int
    ) -> bytes: ...


class Lanes:
    """One lane to each connected member. `members()`: the other validators' peer ids, empty for a
    node that is none; `judge`: takes a batch, as gossip does; `gossip`: takes what a lane did not
    carry."""

    def __init__(
        self,
        net: LaneNet,
        members: Callable[[], Collection[str]],
        judge: Judge,
        gossip: Callable[[bytes], None],
    ) -> None:
        self._net, self._members, self._judge, self._gossip = net, members, judge, gossip
        self._connected: set[str] = set()
        self._lanes: dict[str, _Lane] = {}
        self.sent_total = self.failed_total = 0
        net.on_peer(self._peer_changed)
        net.serve(PROTOCOL, self._serve, most=MAX_BYTES, concurrent=CONCURRENT)

    def send(self, raw: bytes) -> bool:
        """Give a transaction to every connected member. False: somebody is beyond these, so gossip
        has to carry it as well. Not because one is slow: under load that would add to it."""
        members = self._members()
        reached = [name for name in members if name in self._connected]
        for name in reached:
            self._lane(name).push(raw)
        return bool(reached) and len(reached) == len(members) == len(self._connected)

    def metrics(self) -> Mapping[str, int]:
        return {"tx_batches_sent": self.sent_total, "tx_batches_failed": self.failed_total}

    def close(self) -> None:
        """End what is under way."""
        for lane in self._lanes.values():
            lane.close()

    def _lane(self, name: str) -> _Lane:
        if name not in self._lanes:
            self._lanes[name] = _Lane(lambda batch: self._carry(name, batch))
        return self._lanes[name]

    async def _carry(self, name: str, batch: Sequence[bytes]) -> None:
        """One that refuses gets it by gossip; one that is slow would be no quicker with that."""
        began = time.monotonic()
        try:
            await self._net.request(
                name, PROTOCOL, msgpack.packb(batch), timeout_s=TIMEOUT_S, most=64
            )
            self.sent_total += 1
        except UnreachableError as error:
            self.failed_total += 1
            if time.monotonic() - began >= TIMEOUT_S:
                log.debug("%s is too slow for transactions: %s", name, error)
                return
            log.debug("%s does not take transactions, they are gossiped: %s", name, error)
            for raw in batch:
                self._gossip(raw)

    def _peer_changed(self, peer: str, connected: bool) -> None:
        if connected:
            self._connected.add(peer)
            return
        self._connected.discard(peer)
        lane = self._lanes.pop(peer, None)
        if lane is not None:
            lane.close()
            for raw in lane.waiting:
                self._gossip(raw)

    async def _serve(self, peer: str, data: bytes) -> bytes:
        if peer not in self._members():
            raise BlyanError("only validators hand transactions over directly; gossip them")
        verdict = await self._judge(peer, data)
        if verdict is False:
            self._net.report(peer, "transactions that no node takes", WRONG_WEIGHT)
            raise BlyanError("not transactions of this chain")
        return b""


class _Lane:
    """What waits for one member; a batch at a time is on its way."""

    def __init__(self, carry: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        self._carry = carry
        self.waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._task: asyncio.Task[None] | None = None

    def push(self, raw: bytes) -> None:
        self.waiting.append(raw)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(PAUSE_S)
        while self.waiting:
            await self._carry(take_batch(self.waiting))


def take_batch(waiting: deque[bytes]) -> list[bytes]:
    """The first that fit one message, each once; at least one if any waits."""
    batch: dict[bytes, None] = {}
    size = 0
    while waiting and len(batch) < MAX_BATCH_TXS:
        if batch and size + len(waiting[0]) > BATCH_BYTES:
            break
        raw = waiting.popleft()
        batch[raw] = None
        size += len(raw) + 8
    return list(batch)
