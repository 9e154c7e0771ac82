"""Lanes: what goes to validators directly, and when gossip has to carry it all the same."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from chain.errors import BlyanError, UnreachableError
from node.services import tx_lanes
from node.services.tx_lanes import BATCH_BYTES, MAX_BATCH_TXS, MAX_WAITING, Lanes, take_batch


class Net:
    """Peers that are there or not; `taken` is what they got."""

    def __init__(self) -> None:
        self.taken: dict[str, list[list[bytes]]] = {}
        self.broken: set[str] = set()
        self.reports: list[tuple[str, float]] = []
        self.peer: Callable[[str, bool], object] = lambda peer, up: None
        self.handler: Any = None
        self.gate: asyncio.Event | None = None

    def on_peer(self, handler: Callable[[str, bool], object]) -> None:
        self.peer = handler

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reports.append((peer, weight))

    def serve(self, protocol: str, handler: Any, *, most: int, concurrent: int = 8) -> None:
        assert protocol == tx_lanes.PROTOCOL
        self.handler = handler

    async def request(
        self, peer: str, protocol: str, data: bytes, *, timeout_s: float, most: int
    ) -> bytes:
        if self.gate is not None:
            await self.gate.wait()
        if peer in self.broken:
            raise UnreachableError("no answer")
        self.taken.setdefault(peer, []).append(msgpack.unpackb(data))
        return b""


class Site:
    def __init__(self, members: set[str], verdict: bool | None = True) -> None:
        self.net, self.members, self.gossiped = Net(), members, list[bytes]()
        self.judged: list[tuple[str, bytes]] = []

        async def judge(peer: str, data: bytes) -> bool | None:
            self.judged.append((peer, data))
            return verdict

        self.lanes = Lanes(self.net, lambda: self.members, judge, self.gossiped.append)

    def connect(self, *names: str) -> None:
        for name in names:
            self.net.peer(name, True)

    async def settle(self) -> None:
        """Until every lane is empty."""
        tasks = [lane._task for lane in self.lanes._lanes.values() if lane._task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tx_lanes, "PAUSE_S", 0.0)


def run(act: Callable[[], Any]) -> None:
    asyncio.run(act())


def test_in_a_full_mesh_nothing_is_gossiped() -> None:
    async def act() -> None:
        site = Site({"a", "b"})
        site.connect("a", "b")
        assert all([site.lanes.send(b"1"), site.lanes.send(b"2")])
        await site.settle()
        assert site.net.taken == {"a": [[b"1", b"2"]], "b": [[b"1", b"2"]]}
        assert site.gossiped == []
        assert site.lanes.metrics() == {"tx_batches_sent": 2, "tx_batches_failed": 0}

    run(act)


@pytest.mark.parametrize(
    ("members", "connected"),
    [
        ({"a", "b"}, ("a",)),  # a validator that is not reached
        ({"a"}, ("a", "follower")),  # a neighbour that is none
        (set(), ("a", "b")),  # we are none ourselves
        ({"a"}, ()),
    ],
)
def test_gossip_has_what_is_beyond_the_mesh(members: set[str], connected: tuple[str, ...]) -> None:
    async def act() -> None:
        site = Site(members)
        site.connect(*connected)
        assert not site.lanes.send(b"1")
        await site.settle()
        assert set(site.net.taken) == members & set(connected)  # those that are reached have it

    run(act)


def test_what_a_lane_does_not_carry_is_gossiped() -> None:
    async def act() -> None:
        site = Site({"a", "b"})
        site.connect("a", "b")
        site.net.broken = {"b"}
        assert site.lanes.send(b"1")
        await site.settle()
        assert site.gossiped == [b"1"]
        assert site.net.taken == {"a": [[b"1"]]}

    run(act)


def test_what_waits_for_a_peer_that_goes_is_gossiped() -> None:
    async def act() -> None:
        site = Site({"a"})
        site.connect("a")
        site.net.gate = asyncio.Event()
        assert site.lanes.send(b"1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert site.lanes.send(b"2")  # while the first is on its way
        site.net.peer("a", False)
        assert b"2" in site.gossiped
        assert not site.lanes.send(b"3")

    run(act)


def test_a_slow_peer_costs_bounded_memory_and_no_gossip() -> None:
    async def act() -> None:
        site = Site({"slow"})
        site.connect("slow")
        site.net.gate = asyncio.Event()
        names = [n.to_bytes(4, "big") for n in range(MAX_WAITING + 2)]
        assert all(site.lanes.send(name) for name in names)
        site.net.gate.set()
        await site.settle()
        assert [raw for batch in site.net.taken["slow"] for raw in batch] == names[2:]
        assert site.gossiped == []

    run(act)


def test_what_a_peer_is_too_slow_for_is_not_gossiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that cannot keep up would be asked for more."""

    async def act() -> None:
        site = Site({"a"})
        site.connect("a")
        site.net.broken = {"a"}
        monkeypatch.setattr(tx_lanes, "TIMEOUT_S", 0.0)
        assert site.lanes.send(b"1")
        await site.settle()
        assert site.gossiped == []
        assert site.lanes.metrics() == {"tx_batches_sent": 0, "tx_batches_failed": 1}

    run(act)


def test_only_validators_hand_over() -> None:
    async def act() -> None:
        site = Site({"a"})
        with pytest.raises(BlyanError, match="only validators"):
            await site.net.handler("stranger", msgpack.packb([b"1"]))
        assert site.judged == []
        assert await site.net.handler("a", msgpack.packb([b"1"])) == b""
        assert site.judged == [("a", msgpack.packb([b"1"]))]
        assert site.net.reports == []

    run(act)


def test_what_is_wrong_for_all_is_charged() -> None:
    async def act() -> None:
        site = Site({"a"}, verdict=False)
        with pytest.raises(BlyanError, match="not transactions"):
            await site.net.handler("a", b"\x91\x01")
        assert site.net.reports == [("a", tx_lanes.WRONG_WEIGHT)]

    run(act)


def test_a_batch_has_each_once_and_fits_a_message() -> None:
    waiting = deque([b"1", b"2", b"1"])
    assert take_batch(waiting) == [b"1", b"2"]
    assert not waiting
    waiting = deque(n.to_bytes(4, "big") for n in range(MAX_BATCH_TXS + 1))
    assert len(take_batch(waiting)) == MAX_BATCH_TXS
    large = bytes(BATCH_BYTES)
    waiting = deque([large, b"1"])
    assert take_batch(waiting) == [large]  # one that is too large goes alone
    assert take_batch(waiting) == [b"1"]
    assert take_batch(waiting) == []
