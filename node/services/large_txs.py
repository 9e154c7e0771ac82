"""Large transactions between nodes: announced by gossip, fetched over links (docs/spec/mempool.md).

Gossip brings each node a message once from every neighbour: of a quarter of a MiB that is too much.
So only id and size are told, and who lacks it asks whoever told. A node tells of what it holds and
of nothing else, so whoever tells can hand it out; an announcement of what is not here goes no
further until it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgpack

from chain import limits
from chain.errors import BlyanError, DecodeError, UnreachableError
from chain.hashes import TX
from chain.types import TxId
from node.net.requests import RequestHandler

log = logging.getLogger("blyan.txs")
TOPIC = "blyan/large-tx/1"
PROTOCOL = "/blyan/large-tx/1"
ANNOUNCED_BYTES = 32 * 1024  # what is larger is not gossiped, but announced
MAX_ANNOUNCED = 64  # in one message
MAX_WANTED, MAX_WANTED_OF_PEER = 64, 8  # not here yet; whoever holds one tells of it again
MAX_TELLERS = 4  # remembered for one: if the first does not answer, the next is asked
CONCURRENT, PER_PEER = 16, 2  # fetches under way: a few silent peers do not take all
TIMEOUT_S = 10.0
SLOW_POINTS = 10.0  # no answer by then: it held one of our places
SERVED_AT_ONCE = 8  # requests of others
LIE_POINTS = 40.0  # bytes that are not what was announced: no honest node tells of such
MAX_OUTGOING = 256  # announcements that wait to be gossiped


class Net(Protocol):
    """What this needs of the network port."""

    def report(self, peer: str, reason: str, weight: float) -> None: ...

    def serve(
        self, protocol: str, handler: RequestHandler, *, most: int, concurrent: int = 8
    ) -> None: ...

    async def request(
        self, peer: str, protocol: str, data: bytes, *, timeout_s: float, most: int
    ) -> bytes: ...

    async def publish(self, topic: str, data: bytes) -> None: ...


@dataclass(slots=True, eq=False)
class _Wanted:
    tx_id: TxId
    size: int
    tellers: OrderedDict[str, None] = field(default_factory=OrderedDict)  # not asked yet
    asked: str = ""  # the peer whose answer is awaited
    task: asyncio.Task[None] | None = None


class Allowance:
    """Bytes that each peer may have of us, or make us fetch: a bucket that fills with time."""

    AT_ONCE, PER_S, MAX_PEERS = 4 * 1024 * 1024, 512 * 1024, 256

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # peer -> left, as of

    def take(self, peer: str, size: int, now: float) -> bool:
        left, since = self._left.get(peer, (float(self.AT_ONCE), now))
        left = min(self.AT_ONCE, left + (now - since) * self.PER_S)
        if left < size:
            return False
        self._left[peer] = left - size, now
        self._left.move_to_end(peer)
        if len(self._left) > self.MAX_PEERS:
            self._left.popitem(last=False)
        return True


class LargeTxs:
    """`get`: a transaction that waits here; `is_known`: it waits here, or was refused, or is in a
    block, so nobody need be asked; `take(peer, raw)`: judges one that was fetched."""

    def __init__(
        self,
        net: Net,
        get: Callable[[TxId], bytes | None],
        is_known: Callable[[TxId], bool],
        take: Callable[[str, bytes], Awaitable[bool | None]],
    ) -> None:
        self._net, self._get, self._is_known, self._take = net, get, is_known, take
        self._outgoing: OrderedDict[TxId, int] = OrderedDict()
        self._wanted: OrderedDict[TxId, _Wanted] = OrderedDict()
        self._busy: Counter[str] = Counter()  # fetches under way by peer
        self._given, self._fetches = Allowance(), Allowance()
        self.fetched_total = self.failed_total = self.lies_total = 0
        net.serve(PROTOCOL, self._serve, most=32, concurrent=SERVED_AT_ONCE)

    def metrics(self) -> Mapping[str, int]:
        return {
            "large_txs_fetched": self.fetched_total,
            "large_txs_failed": self.failed_total,
            "large_txs_lies": self.lies_total,
        }

    def close(self) -> None:
        """End what is under way."""
        for wanted in self._wanted.values():
            if wanted.task is not None:
                wanted.task.cancel()
        self._wanted.clear()

    # --- telling ----------------------------------------------------------------------------

    def announce(self, raw: bytes) -> None:
        """Tell of one that waits here, with the next `publish`."""
        self._outgoing[TxId(TX.hash(raw))] = len(raw)
        while len(self._outgoing) > MAX_OUTGOING:
            self._outgoing.popitem(last=False)

    async def publish(self) -> None:
        while self._outgoing:
            some = list(self._outgoing.items())[:MAX_ANNOUNCED]
            for tx_id, _ in some:
                del self._outgoing[tx_id]
            with contextlib.suppress(BlyanError):  # said again while it waits
                await self._net.publish(TOPIC, msgpack.packb([[t, size] for t, size in some]))

    async def _serve(self, peer: str, data: bytes) -> bytes:
        if len(data) != 32:
            raise DecodeError("a transaction's id has 32 bytes")
        raw = self._get(TxId(data))
        if raw is None or len(raw) <= ANNOUNCED_BYTES:
            return b""
        if not self._given.take(peer, len(raw), time.monotonic()):
            raise BlyanError("you have had your share of large transactions; ask again later")
        return raw

    # --- hearing ----------------------------------------------------------------------------

    async def judge(self, peer: str, data: bytes) -> bool | None:
        """An announcement, as gossip's judges answer: True, all of it is here, so it may go on;
        None, some is not, and will be told when it is."""
        try:
            told = parse(data)
        except DecodeError:
            return False
        unknown = [(tx_id, size) for tx_id, size in told if not self._is_known(tx_id)]
        for tx_id, size in unknown:
            self._want(peer, tx_id, size)
        self._go_on()
        here = not unknown and all(self._get(tx_id) is not None for tx_id, _ in told)
        return True if here else None

    def _want(self, peer: str, tx_id: TxId, size: int) -> None:
        wanted = self._wanted.get(tx_id)
        if wanted is None:
            of_peer = sum(peer in w.tellers or w.asked == peer for w in self._wanted.values())
            if len(self._wanted) >= MAX_WANTED or of_peer >= MAX_WANTED_OF_PEER:
                return
            wanted = self._wanted[tx_id] = _Wanted(tx_id, size)
        if size == wanted.size and peer != wanted.asked and len(wanted.tellers) < MAX_TELLERS:
            wanted.tellers[peer] = None

    def _go_on(self) -> None:
        """Begin what may begin: the first wanted first, each from the first who told of it."""
        for wanted in list(self._wanted.values()):
            if self._busy.total() >= CONCURRENT:
                return
            if wanted.task is None:
                self._begin(wanted)

    def _begin(self, wanted: _Wanted) -> None:
        for peer in list(wanted.tellers):
            if self._busy[peer] >= PER_PEER:
                continue
            del wanted.tellers[peer]
            if self._fetches.take(peer, wanted.size, time.monotonic()):
                wanted.asked = peer
                self._busy[peer] += 1
                wanted.task = asyncio.get_running_loop().create_task(self._fetch(wanted, peer))
                return
        if not wanted.tellers:  # who told of it has had us fetch enough; it will be told again
            del self._wanted[wanted.tx_id]

    async def _fetch(self, wanted: _Wanted, peer: str) -> None:
        taken = False
        try:
            taken = self._is_known(wanted.tx_id) or await self._ask(wanted, peer)
        finally:
            self._busy[peer] -= 1
            if not self._busy[peer]:
                del self._busy[peer]
            wanted.task, wanted.asked = None, ""
            if taken or not wanted.tellers:
                self._wanted.pop(wanted.tx_id, None)
        self._go_on()

    async def _ask(self, wanted: _Wanted, peer: str) -> bool:
        """Whether the peer has answered with it."""
        began = time.monotonic()
        try:
            raw = await self._net.request(
                peer, PROTOCOL, wanted.tx_id, timeout_s=TIMEOUT_S, most=limits.MAX_OPENING_TX_BYTES
            )
        except UnreachableError as error:
            self.failed_total += 1
            log.debug("%s does not hand out a large transaction: %s", peer, error)
            if time.monotonic() - began >= TIMEOUT_S:
                self._net.report(peer, "no answer to what it announced", SLOW_POINTS)
            return False
        if not raw:
            self.failed_total += 1  # a block has it by now, or the peer has dropped it
            return False
        if len(raw) != wanted.size or TxId(TX.hash(raw)) != wanted.tx_id:
            self.lies_total += 1
            self._net.report(peer, "not the transaction that was announced", LIE_POINTS)
            return False
        self.fetched_total += 1
        if await self._take(peer, raw) is False:
            self._net.report(peer, "a transaction that no node takes", LIE_POINTS)
        return True


def parse(data: bytes) -> list[tuple[TxId, int]]:
    """Raises DecodeError unless it is a list of different ids with sizes that are announced."""
    try:
        found = msgpack.unpackb(
            data,
            max_bin_len=32,
            max_array_len=MAX_ANNOUNCED,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"no announcement: {error}") from None
    if not isinstance(found, list) or not found:
        raise DecodeError("an announcement is a list")
    told: dict[TxId, int] = {}
    for pair in found:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DecodeError("an announcement has pairs of id and size")
        tx_id, size = pair
        if not isinstance(tx_id, bytes) or len(tx_id) != 32 or type(size) is not int:
            raise DecodeError("an announcement has pairs of id and size")
        if not ANNOUNCED_BYTES < size <= limits.MAX_OPENING_TX_BYTES:
            raise DecodeError(f"{size} bytes are not announced")
        told[TxId(tx_id)] = size
    if len(told) != len(found):
        raise DecodeError("the same transaction twice in one announcement")
    return list(told.items())
