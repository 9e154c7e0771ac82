"""Server-sent events: what becomes final, told as it happens (docs/spec/api.md, "Events").

Each client has a bounded queue. Who does not keep up is disconnected and comes back by itself
(the browser's EventSource does), instead of holding memory or a block's commit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from chain.codec import decode
from chain.errors import BlyanError
from chain.execute import Executed
from chain.signed import signed
from chain.state import Event
from chain.transactions import Transaction
from chain.types import Block, TxId
from node.api.errors import BusyError
from node.query import Query
from node.query.plain import INVALID, address, kind_name
from node.seam import NodeSeam

MAX_CLIENTS = 64  # streams open at a time
MAX_QUEUED = 512  # events that wait for one client; a full block of news fits
MAX_TXS_TOLD = 100  # transactions told one by one for a block
KEEPALIVE_S = 15.0
RETRY_MS = 2000  # a client's pause before it connects again
_END = b""


class EventHub:
    """Turns final blocks into events and hands them to every client. All on the main loop."""

    def __init__(self, node: NodeSeam, query: Query) -> None:
        self._node, self._query = node, query
        self._clients: set[asyncio.Queue[bytes]] = set()
        self._peers: tuple[str, ...] = ()
        self._closed = False
        self.dropped_total = 0
        node.chain.finalized(self._finalized)

    @property
    def clients(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """End every stream, so that none of them holds up the server's stop."""
        self._closed = True
        for queue in list(self._clients):
            self._drop(queue)

    def publish(self, name: str, data: dict[str, Any]) -> None:
        """Send an event to whoever listens; it never waits."""
        if not self._clients:
            return
        frame = _frame(name, data)
        for queue in list(self._clients):
            try:
                queue.put_nowait(frame)
            except asyncio.QueueFull:
                self.dropped_total += 1
                self._drop(queue)

    async def stream(self) -> AsyncIterator[bytes]:
        """One client's stream, from the tip on. BusyError if there are too many."""
        if self._closed or len(self._clients) >= MAX_CLIENTS:
            raise BusyError(f"{MAX_CLIENTS} event streams are open, the limit; close one")
        queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        self._clients.add(queue)
        return self._frames(queue)

    async def _frames(self, queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            rows = self._query.blocks(limit=1)["blocks"]
            yield _frame("block", rows[0])
            while True:
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        frame = await queue.get()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if frame == _END:
                    return
                yield frame
        finally:
            self._clients.discard(queue)

    def _drop(self, queue: asyncio.Queue[bytes]) -> None:
        self._clients.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(_END)

    # --- what happened ---------------------------------------------------------------

    def _finalized(self, block: Block, done: Executed) -> None:
        if not self._clients:
            return
        header = block.header
        self.publish("block", self._query.blocks(before=header.height + 1, limit=1)["blocks"][0])
        for raw, receipt in list(zip(block.txs, done.receipts, strict=True))[:MAX_TXS_TOLD]:
            self.publish(
                "tx",
                {
                    "id": receipt.tx_id.hex(),
                    "height": header.height,
                    "code": receipt.code,
                    **_sender_and_kind(receipt.tx_id, raw),
                },
            )
        for event in done.events:
            self._tell(event, header.height)
        connected = tuple(p.peer_id for p in self._node.net.peers() if p.connected)
        if connected != self._peers:
            self._peers = connected
            self.publish("peers", {"count": len(connected), "peers": list(connected)})

    def _tell(self, event: Event, height: int) -> None:
        if event.kind == "phase":
            self.publish("phase", {"height": height, **event.data})
            return
        data = {k: v for k, v in event.data.items() if k != "tiles"}
        self.publish(
            "round", {"what": event.kind, "key": event.key.hex(), "height": height, **data}
        )


def _sender_and_kind(tx_id: TxId, raw: bytes) -> dict[str, str | None]:
    try:
        tx: Transaction = signed.get(tx_id) or decode(Transaction, raw)
    except BlyanError:
        return {"kind": INVALID, "sender": None}
    return {"kind": kind_name(type(tx.payload)), "sender": address(tx.sender)}


def _frame(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
