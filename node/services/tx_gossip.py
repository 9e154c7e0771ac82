"""Transactions between nodes: those of a moment travel as one message (docs/spec/blocks.md).
Between validators they take lanes of their own (`node.services.tx_lanes`), for all others gossip.

Whoever sends what is wrong for every node is charged. What only this node's state refuses is
nobody's fault, but costs as much to judge: each peer has a budget for what is of no use here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping

import msgpack

from chain import limits
from chain.errors import BlyanError, DecodeError, TxError
from chain.types import TxId
from node.mempool import Mempool
from node.net.port import Network
from node.services.large_txs import ANNOUNCED_BYTES, LargeTxs
from node.services.large_txs import TOPIC as LARGE_TOPIC
from node.services.tx_lanes import PAUSE_S, Lanes, take_batch
from node.tx_batch import SLICE_TXS, parse_batch

TX_TOPIC = "blyan/tx/1"
MAX_OUTGOING = 4096  # waiting to be sent; the oldest goes first, its sender says it again
USELESS_BURST = 4096.0  # refused or known transactions of one peer that are judged at once
USELESS_PER_S = 256.0  # and in the long run; an honest peer's are a few after each block
LARGE_COST = 16.0  # what one of them costs that is an opening of custody: a quarter of a MiB
MAX_PEERS = 256  # peers whose budget is remembered
# Wrong whatever the state is. (Not `bad_signer`: a node key may just have been replaced.)
_WRONG_FOR_ALL = frozenset(("bad_signature", "wrong_chain"))


class Budget:
    """What each peer has left: a bucket that fills with time."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # peer -> left, as of

    def has(self, peer: str, now: float) -> bool:
        return self._of(peer, now) >= 1

    def take(self, peer: str, now: float, cost: float = 1) -> None:
        self._left[peer] = (self._of(peer, now) - cost, now)
        self._left.move_to_end(peer)
        if len(self._left) > MAX_PEERS:
            self._left.popitem(last=False)

    def _of(self, peer: str, now: float) -> float:
        left, since = self._left.get(peer, (USELESS_BURST, now))
        return min(USELESS_BURST, left + (now - since) * USELESS_PER_S)


class TxGossip:
    """`announce` is the mempool's way out; `wake` is called for each transaction that is new;
    `members`: the other validators' peer ids, empty for a node that is none; `is_final`: whether a
    block has it."""

    def __init__(
        self,
        net: Network,
        pool: Mempool,
        members: Callable[[], Collection[str]],
        wake: Callable[[], None],
        is_final: Callable[[TxId], bool] = lambda tx_id: False,
    ) -> None:
        def is_known(tx_id: TxId) -> bool:
            return pool.status(tx_id) is not None or is_final(tx_id)

        self._net, self._pool, self._wake = net, pool, wake
        self._lanes = Lanes(net, members, self._hand_over, self._send)
        self._large = LargeTxs(net, pool.get, is_known, self._fetched)
        self._outgoing: deque[bytes] = deque(maxlen=MAX_OUTGOING)
        self._waiting = asyncio.Event()
        self._turn = asyncio.Lock()  # one message is judged at a time
        self._budget = Budget()
        self._submitting = False
        self._new: list[bytes] = []  # taken from the message that is judged now
        self.refused_total = 0
        self.ignored_total = 0
        net.subscribe(TX_TOPIC, self.judge)
        net.subscribe(LARGE_TOPIC, self._large.judge)

    def announce(self, raw: bytes) -> None:
        if self._submitting:
            self._new.append(raw)  # passed on with the message that brought it
        elif not self._lanes.send(raw):
            self._send(raw)
        self._wake()

    def _send(self, raw: bytes) -> None:
        if len(raw) > ANNOUNCED_BYTES:
            self._large.announce(raw)
        else:
            self._outgoing.append(raw)
        self._waiting.set()

    async def run(self) -> None:
        """Until cancelled: gossip what was announced and has no lane."""
        try:
            while True:
                await self._waiting.wait()
                await asyncio.sleep(PAUSE_S)
                self._waiting.clear()
                while self._outgoing:
                    batch = msgpack.packb(take_batch(self._outgoing))
                    with contextlib.suppress(BlyanError):  # said again while it waits
                        await self._net.publish(TX_TOPIC, batch)
                await self._large.publish()
        finally:
            self._lanes.close()
            self._large.close()

    def metrics(self) -> Mapping[str, int]:
        return {
            "txs_refused_from_peers": self.refused_total,
            "txs_ignored_from_peers": self.ignored_total,
            **self._lanes.metrics(),
            **self._large.metrics(),
        }

    async def judge(self, peer: str, data: bytes) -> bool | None:
        """A message of a peer. None: not all of it is of use here; what is, goes on by itself."""
        return await self._judge(peer, data, self._send, most_bytes=ANNOUNCED_BYTES)

    async def _hand_over(self, peer: str, data: bytes) -> bool | None:
        """The same from a validator, which sends it to the others itself."""
        return await self._judge(peer, data, lambda raw: None)

    async def _fetched(self, peer: str, raw: bytes) -> bool | None:
        """A large one that we have asked for."""
        async with self._turn:
            self._new = []
            verdict = await self._take(peer, [raw])
            for new in self._new:
                self._send(new)
            return verdict

    async def _judge(
        self,
        peer: str,
        data: bytes,
        pass_on: Callable[[bytes], None],
        most_bytes: int = limits.MAX_OPENING_TX_BYTES,
    ) -> bool | None:
        try:
            batch = parse_batch(data) if self._budget.has(peer, time.monotonic()) else None
        except DecodeError:
            self.refused_total += 1
            return False
        if batch is None:
            self.ignored_total += 1
            return None
        if any(len(raw) > most_bytes for raw in batch):  # goes no further that way
            self.ignored_total += 1
            self._budget.take(peer, time.monotonic(), LARGE_COST)
            return None
        async with self._turn:
            self._new = []
            verdict = await self._take(peer, batch)
            if verdict is not True:
                for raw in self._new:
                    pass_on(raw)
            return verdict

    async def _take(self, peer: str, batch: list[bytes]) -> bool | None:
        all_fine = True
        for index, raw in enumerate(batch, 1):
            if index % SLICE_TXS == 0:
                await asyncio.sleep(0)
            taken = len(self._new)
            try:
                self._submit(raw)
            except TxError as error:
                if error.code in _WRONG_FOR_ALL:
                    self.refused_total += 1
                    return False
                all_fine = False
            except DecodeError:
                self.refused_total += 1
                return False
            if len(self._new) == taken:
                large = len(raw) > limits.MAX_TX_BYTES
                self._budget.take(peer, time.monotonic(), LARGE_COST if large else 1)
                if not self._budget.has(peer, time.monotonic()):
                    self.ignored_total += 1
                    return None
        return True if all_fine else None

    def _submit(self, raw: bytes) -> None:
        self._submitting = True
        try:
            self._pool.submit(raw, local=False)
        finally:
            self._submitting = False
