"""Large transactions: announced, fetched from who told, once; and what liars get out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import msgpack
import pytest

from chain import limits
from chain.errors import BlyanError, DecodeError, UnreachableError
from chain.hashes import TX
from chain.transactions import JoinRound
from chain.types import TxId
from node.mempool import Mempool
from node.services import large_txs, tx_gossip
from node.services.large_txs import (
    ANNOUNCED_BYTES,
    LIE_POINTS,
    MAX_ANNOUNCED,
    MAX_WANTED,
    MAX_WANTED_OF_PEER,
    PER_PEER,
    PROTOCOL,
    SLOW_POINTS,
    TOPIC,
    Allowance,
    LargeTxs,
    parse,
)
from node.services.tx_gossip import LARGE_COST, TX_TOPIC, USELESS_BURST, TxGossip
from tests.kit.net import stations
from tests.kit.pools import Pooled

SIZE = 100_000


def raw_of(number: int, size: int = SIZE) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def id_of(raw: bytes) -> TxId:
    return TxId(TX.hash(raw))


def told(*raws: bytes) -> bytes:
    data: bytes = msgpack.packb([[id_of(raw), len(raw)] for raw in raws])
    return data


class Net:
    """One peer's network; `answers` are what others say when they are asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.reports: list[tuple[str, float]] = []
        self.published: list[bytes] = []
        self.handler: Any = None

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reports.append((peer, weight))

    def serve(self, protocol: str, handler: Any, *, most: int, concurrent: int = 8) -> None:
        assert (protocol, most) == (PROTOCOL, 32)
        self.handler = handler

    async def request(
        self, peer: str, protocol: str, data: bytes, *, timeout_s: float, most: int
    ) -> bytes:
        assert (protocol, most) == (PROTOCOL, limits.MAX_OPENING_TX_BYTES)
        self.asked.append((peer, data))
        return await self.answers[peer](data)

    async def publish(self, topic: str, data: bytes) -> None:
        assert topic == TOPIC
        self.published.append(data)


class Site:
    def __init__(self, verdict: bool | None = True) -> None:
        self.net, self.held = Net(), dict[TxId, bytes]()
        self.verdict, self.known = verdict, set[TxId]()
        self.large = LargeTxs(
            self.net, self.held.get, lambda i: i in self.held or i in self.known, self.take
        )

    async def take(self, peer: str, raw: bytes) -> bool | None:
        if self.verdict:
            self.held[id_of(raw)] = raw
            self.large.announce(raw)
        return self.verdict

    def answers(self, peer: str, answer: bytes | BlyanError) -> None:
        async def say(_: bytes) -> bytes:
            await asyncio.sleep(0)
            if isinstance(answer, BlyanError):
                raise answer
            return answer

        self.net.answers[peer] = say

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


def run(act: Callable[[], Any]) -> None:
    asyncio.run(act())


def test_what_is_told_is_fetched_once_and_told_on() -> None:
    async def act() -> None:
        site, raw = Site(), raw_of(1)
        for peer in ("a", "b", "c"):
            site.answers(peer, raw)
            assert await site.large.judge(peer, told(raw)) is None  # not here: goes no further
        await site.settle()
        assert site.net.asked == [("a", id_of(raw))]
        assert site.held == {id_of(raw): raw}
        assert await site.large.judge("c", told(raw)) is True  # it is: may go on
        await site.large.publish()
        assert site.net.published == [told(raw)]
        assert site.net.reports == []
        assert site.large.metrics() == {
            "large_txs_fetched": 1,
            "large_txs_failed": 0,
            "large_txs_lies": 0,
        }

    run(act)


def test_who_does_not_answer_is_followed_by_the_next_who_told() -> None:
    async def act() -> None:
        site, raw = Site(), raw_of(1)
        site.answers("gone", UnreachableError("not connected"))
        site.answers("empty", b"")
        site.answers("liar", raw_of(2))
        site.answers("good", raw)
        for peer in ("gone", "empty", "liar", "good"):
            await site.large.judge(peer, told(raw))
        await site.settle()
        assert [peer for peer, _ in site.net.asked] == ["gone", "empty", "liar", "good"]
        assert site.held == {id_of(raw): raw}
        assert site.net.reports == [("liar", LIE_POINTS)]

    run(act)


def test_who_keeps_us_waiting_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        site = Site()
        monkeypatch.setattr(large_txs, "TIMEOUT_S", 0.0)
        site.answers("slow", UnreachableError("too slow"))
        await site.large.judge("slow", told(raw_of(1)))
        await site.settle()
        assert site.net.reports == [("slow", SLOW_POINTS)]

    run(act)


def test_what_no_node_takes_is_charged_and_another_size_is_another_thing() -> None:
    async def act() -> None:
        site, raw = Site(verdict=False), raw_of(1)
        site.answers("a", raw)
        await site.large.judge("a", msgpack.packb([[id_of(raw), SIZE + 4]]))
        await site.settle()
        await site.large.judge("a", told(raw))
        await site.settle()
        assert site.net.reports == [("a", LIE_POINTS)] * 2

    run(act)


def test_one_peer_cannot_have_us_fetch_without_end() -> None:
    async def act() -> None:
        site = Site(verdict=None)  # of no use here, every one
        raws = [raw_of(n, 200_000) for n in range(200)]
        by_id = {id_of(raw): raw for raw in raws}

        async def answer(data: bytes) -> bytes:
            await asyncio.sleep(0)
            return by_id[TxId(data)]

        site.net.answers["a"] = answer
        for raw in raws:
            await site.large.judge("a", told(raw))
            await site.settle()
        assert len(site.net.asked) <= Allowance.AT_ONCE // 200_000 + 5
        assert len(site.large._wanted) == 0

    run(act)


def test_what_is_wanted_is_bounded() -> None:
    async def act() -> None:
        site = Site()
        gate = asyncio.Event()

        async def hang(_: bytes) -> bytes:
            await gate.wait()
            return b""

        for number in range(40):
            peer = f"peer {number}"
            site.net.answers[peer] = hang
            raws = [raw_of(1000 * number + n, 40_000) for n in range(MAX_ANNOUNCED)]
            assert await site.large.judge(peer, told(*raws)) is None
            of_peer = [w for w in site.large._wanted.values() if w.asked == peer or w.tellers]
            assert len(of_peer) <= MAX_WANTED_OF_PEER * (number + 1)
        assert len(site.large._wanted) <= MAX_WANTED
        await site.settle()
        assert len(site.net.asked) <= large_txs.CONCURRENT
        assert max(site.large._busy.values()) <= PER_PEER
        site.large.close()
        gate.set()
        await site.settle()
        assert site.large._busy.total() == 0

    run(act)


def test_only_what_waits_and_is_large_is_handed_out_and_each_has_its_share() -> None:
    async def act() -> None:
        site = Site()
        raw, small = raw_of(1, 260_000), raw_of(2, 1000)
        site.held = {id_of(raw): raw, id_of(small): small}
        site.large._get = site.held.get
        assert await site.net.handler("a", id_of(raw)) == raw
        assert await site.net.handler("a", id_of(small)) == b""
        assert await site.net.handler("a", bytes(32)) == b""
        with pytest.raises(DecodeError):
            await site.net.handler("a", b"short")
        for _ in range(Allowance.AT_ONCE // len(raw) - 1):
            await site.net.handler("a", id_of(raw))
        with pytest.raises(BlyanError, match="your share"):
            await site.net.handler("a", id_of(raw))
        assert await site.net.handler("b", id_of(raw)) == raw

    run(act)


def test_a_share_comes_back_with_time() -> None:
    share = Allowance()
    assert share.take("a", Allowance.AT_ONCE, 0.0)
    assert not share.take("a", 1000, 0.0)
    assert share.take("a", Allowance.PER_S, 1.0)
    assert not share.take("a", Allowance.PER_S, 1.5)
    for number in range(2 * Allowance.MAX_PEERS):
        share.take(f"peer {number}", 1, 2.0)
    assert len(share._left) == Allowance.MAX_PEERS


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xc1", b"\x90", msgpack.packb({}), msgpack.packb([1]), msgpack.packb([[b"a"]])),
        msgpack.packb([[bytes(31), SIZE]]),
        msgpack.packb([[bytes(32), ANNOUNCED_BYTES]]),
        msgpack.packb([[bytes(32), limits.MAX_OPENING_TX_BYTES + 1]]),
        msgpack.packb([[bytes(32), True]]),
        msgpack.packb([[bytes(32), 1e5]]),
        msgpack.packb([[bytes(32), SIZE, 0]]),
        msgpack.packb([[bytes(32), SIZE]] * 2),
        msgpack.packb([[n.to_bytes(32, "big"), SIZE] for n in range(MAX_ANNOUNCED + 1)]),
        msgpack.packb([[bytes(32), SIZE]]) + b"\x00",
    ],
)
def test_what_is_no_announcement_is_refused(data: bytes) -> None:
    async def act() -> None:
        with pytest.raises(DecodeError):
            parse(data)
        site = Site()
        assert await site.large.judge("a", data) is False
        assert not site.large._wanted

    run(act)


# --- between whole nodes ------------------------------------------------------------------------


class Peer:
    """A node's gossip in a row of nodes: each reaches its neighbours only."""

    def __init__(self, name: str, row: dict[str, Peer]) -> None:
        self.name, self.row = name, row
        self.pooled = Pooled(2)
        self.judges: dict[str, Any] = {}
        self.handlers: dict[str, Any] = {}
        self.received: list[tuple[str, int]] = []  # (what, bytes)
        self.neighbours: list[str] = []
        self.gossip = TxGossip(self, self.pooled.pool, set, lambda: None)  # type: ignore[arg-type]
        self.pool: Mempool = self.pooled.pool
        self.pool._announce = self.gossip.announce
        row[name] = self

    def subscribe(self, topic: str, judge: Any) -> None:
        self.judges[topic] = judge

    def on_peer(self, handler: Any) -> None: ...

    def report(self, peer: str, reason: str, weight: float) -> None:
        raise AssertionError(f"{self.name} charges {peer}: {reason}")

    def serve(self, protocol: str, handler: Any, *, most: int, concurrent: int = 8) -> None:
        self.handlers[protocol] = handler

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        if peer not in self.neighbours:
            raise UnreachableError("not connected")
        answer = await self.row[peer].handlers[protocol](self.name, data)
        self.received.append((protocol, len(answer)))
        return bytes(answer)

    async def publish(self, topic: str, data: bytes) -> None:
        await self.spread(topic, data, {self.name})

    async def spread(self, topic: str, data: bytes, seen: set[str]) -> None:
        """As gossip does: on from whoever accepts it."""
        for name in self.neighbours:
            if name not in seen:
                seen.add(name)
                peer = self.row[name]
                peer.received.append((topic, len(data)))
                if await peer.judges[topic](self.name, data) is True:
                    await peer.spread(topic, data, seen)


def test_it_reaches_all_over_neighbours_that_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tx_gossip, "PAUSE_S", 0.0)

    async def act() -> None:
        row: dict[str, Peer] = {}
        peers = [Peer(f"peer {n}", row) for n in range(5)]
        for one, other in pairwise(peers):
            one.neighbours.append(other.name)
            other.neighbours.append(one.name)
        first = peers[0].pooled
        large = first.raw(first.keys[0], 0, fee=10**5, payload=JoinRound(0, tuple(range(20_000))))
        small = first.raw(first.keys[1], 0)
        assert ANNOUNCED_BYTES < len(large) <= limits.MAX_TX_BYTES
        tasks = [asyncio.create_task(p.gossip.run()) for p in peers]
        peers[0].pool.submit(large, local=False)
        peers[0].pool.submit(small, local=False)
        for _ in range(2000):
            await asyncio.sleep(0)
            if all(p.pool.size == 2 for p in peers):
                break
        for peer in peers[1:]:
            assert peer.pool.get(id_of(large)) == large
            assert peer.pool.get(id_of(small)) == small
            fetched = [size for what, size in peer.received if what == PROTOCOL]
            assert fetched == [len(large)]
            assert sum(n for what, n in peer.received if what in (TOPIC, TX_TOPIC)) < 1500
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(act)


def test_a_large_one_in_ordinary_gossip_goes_no_further() -> None:
    async def act() -> None:
        peer = Peer("a", {})
        first = peer.pooled
        large = first.raw(first.keys[0], 0, fee=10**5, payload=JoinRound(0, tuple(range(20_000))))
        message = msgpack.packb([large])
        for _ in range(int(USELESS_BURST / LARGE_COST) + 8):
            assert await peer.gossip.judge("b", message) is None
        assert peer.pool.size == 0
        assert not peer.gossip._budget.has("b", time.monotonic() - 1)  # nor is it for nothing

    run(act)


def test_over_real_networks() -> None:
    """Announced by gossip, fetched over links."""

    async def act() -> None:
        async with stations("a", "b", "c", link_port=0) as made:
            sites = [Pooled(1) for _ in made]
            gossips = []
            for station, site in zip(made, sites, strict=True):
                gossip = TxGossip(station.net, site.pool, set, station.ring)
                site.pool._announce = gossip.announce
                gossips.append(gossip)
            for station in made:
                await station.until_linked(*(o for o in made if o is not station))
            tasks = [asyncio.create_task(gossip.run()) for gossip in gossips]
            first = sites[0]
            large = first.raw(
                first.keys[0], 0, fee=10**5, payload=JoinRound(0, tuple(range(20_000)))
            )
            first.pool.submit(large, local=False)
            for station, site in zip(made, sites, strict=True):
                # Said again, as the pool does: not every subscription need be known yet.
                first.pool.reannounce(id_of(large))
                await station.until(lambda site=site: site.pool.size == 1)  # type: ignore[misc]
                assert site.pool.get(id_of(large)) == large
            for gossip in gossips[1:]:
                assert gossip.metrics()["large_txs_fetched"] == 1
                assert gossip.metrics()["large_txs_lies"] == 0
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(act)
