"""Presence: bitmaps in one form only, cheap when nothing changes, and liars lose points."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.codec import decode, encode
from chain.errors import DecodeError, UnreachableError
from chain.hashes import Hash32
from chain.types import ShardIndex
from node.net.info import PeerInfo
from node.services import presence as module
from node.services.presence import (
    Holdings,
    Presence,
    PresenceAnswer,
    PresenceRequest,
    ShardPresence,
    ShardVersionRef,
    describe,
    read,
)
from tests.kit.waiting import reached
from tiles.layout import ShardSpec, TensorSpec

ROOT, OTHER = Hash32(bytes([7]) * 32), Hash32(bytes([8]) * 32)
TILES = 11
SPEC = ShardSpec(0, "s", "dense", (TensorSpec("t", "F32", (TILES * 1024 * 1024,)),))


class Wire:
    """Peers without sockets: each name has a presence service, or a liar."""

    def __init__(self) -> None:
        self.servers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.reported: list[tuple[str, str, float]] = []
        self.sent: list[int] = []
        self.got: list[int] = []

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.handler = handler

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in self.servers]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append((peer, reason, weight))

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        self.sent.append(len(data))
        answer = await self.servers[peer]("asker", data)
        self.got.append(len(answer))
        return answer


class Store:
    def __init__(self) -> None:
        self.held: dict[tuple[int, Hash32], list[bool]] = {}

    def presence(self, shard: int, root: Hash32) -> Sequence[bool]:
        return tuple(self.held.get((shard, root), ()))


class Node:
    def __init__(self, specs: tuple[ShardSpec, ...] = (SPEC,)) -> None:
        self.wire, self.store = Wire(), Store()
        self.urgent: list[tuple[int, Hash32]] = []
        self.quiet: list[tuple[int, Hash32]] = [(0, ROOT)]
        self.presence = Presence(
            self.wire,  # type: ignore[arg-type]
            self.store,  # type: ignore[arg-type]
            specs,
            lambda: (self.urgent, self.quiet),
        )


def pair() -> tuple[Node, Node]:
    asker, holder = Node(), Node()
    asker.wire.servers["holder"] = holder.wire.handler
    return asker, holder


@given(st.lists(st.booleans(), max_size=64))
def test_any_presence_has_one_form(held: list[bool]) -> None:
    bits = read(describe(held), len(held))
    assert [bool(bits >> i & 1) for i in range(len(held))] == held


@pytest.mark.parametrize(
    "said",
    [
        ShardPresence(3, b""),
        ShardPresence(0, bytes(2)),
        ShardPresence(TILES, b"\xff\x07"),
        ShardPresence(2, b"\x01\x00"),
        ShardPresence(1, b"\x01"),
        ShardPresence(1, b"\x00\x08"),
        ShardPresence(2, b"\x01\x00\x01"),
        ShardPresence(TILES + 1, b""),
    ],
)
def test_other_forms_are_refused(said: ShardPresence) -> None:
    with pytest.raises(DecodeError):
        read(said, TILES)


def test_what_a_peer_holds_is_learned_and_again_when_it_changes() -> None:
    async def scenario() -> None:
        asker, holder = pair()
        held = holder.store.held[0, ROOT] = [i == 3 for i in range(TILES)]
        await asker.presence.ask("holder")
        holdings = asker.presence.holdings
        assert holdings.holders(0, ROOT, 3) == ["holder"]
        assert holdings.holds("holder", 0, ROOT, 4) is False
        assert holdings.holds("holder", 0, OTHER, 3) is None
        await asker.presence.ask("holder")
        assert asker.wire.got[1] < 20  # nothing new: a token and no bitmap
        held[4] = True
        await asker.presence.ask("holder")
        assert holdings.holders(0, ROOT, 4) == ["holder"]
        asker.presence.forget("holder")
        assert holdings.holders(0, ROOT, 4) == []

    asyncio.run(scenario())


def test_one_that_claims_and_does_not_serve_is_corrected_and_loses_points() -> None:
    async def scenario() -> None:
        asker, holder = pair()
        holder.store.held[0, ROOT] = [True] * TILES
        await asker.presence.ask("holder")
        asker.presence.missed("holder", 0, ROOT, 5)
        asker.presence.missed("holder", 0, ROOT, 5)  # now it is known not to
        asker.presence.missed("other", 0, ROOT, 5)  # never said anything
        assert [r[0] for r in asker.wire.reported] == ["holder"]
        assert asker.presence.holdings.holds("holder", 0, ROOT, 5) is False
        assert asker.presence.holdings.holds("holder", 0, ROOT, 6) is True
        assert asker.presence.false_claims == 1

    asyncio.run(scenario())


def test_one_that_drops_many_tiles_at_a_time_is_charged_once() -> None:
    """A node that makes room is no liar: a shard of 20 tiles would have had it thrown out."""

    async def scenario() -> None:
        asker, holder = pair()
        holder.store.held[0, ROOT] = [True] * TILES
        await asker.presence.ask("holder")
        for tile in range(TILES):
            asker.presence.missed("holder", 0, ROOT, tile)
        assert asker.presence.false_claims == TILES
        assert [r[2] for r in asker.wire.reported] == [module.POINTS_FALSE]
        assert asker.presence.holdings.holders(0, ROOT, 3) == []

    asyncio.run(scenario())


def test_one_that_is_slow_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)

    async def never(peer: str, data: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def scenario() -> None:
        asker, holder = pair()
        asker.wire.servers = {"slow": never, **asker.wire.servers}
        holder.store.held[0, ROOT] = [True] * TILES
        async with asyncio.timeout(60):
            await asker.presence.ask_all()
        assert asker.presence.holdings.holders(0, ROOT, 0) == ["holder"]

    asyncio.run(scenario())


def test_what_comes_after_a_peer_has_gone_is_not_kept() -> None:
    async def scenario() -> None:
        asker, holder = pair()
        holder.store.held[0, ROOT] = [True] * TILES

        async def parting(peer: str, data: bytes) -> bytes:
            answer = await holder.wire.handler(peer, data)
            asker.presence.forget("holder")
            return answer

        asker.wire.servers["holder"] = parting
        await asker.presence.ask("holder")
        assert asker.presence.holdings.holders(0, ROOT, 0) == []

    asyncio.run(scenario())


LIES: dict[str, bytes] = {
    "garbage": b"\xff\xff",
    "too few shards": encode(PresenceAnswer(5, ())),
    "too many shards": encode(PresenceAnswer(5, (ShardPresence(0, b""),) * 2)),
    "no token": encode(PresenceAnswer(0, (ShardPresence(0, b""),))),
    "a bitmap of another size": encode(PresenceAnswer(5, (ShardPresence(1, b"\x01"),))),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_answers_that_are_none_cost_points_and_teach_nothing(lie: bytes) -> None:
    async def scenario() -> None:
        asker = Node()

        async def answer(peer: str, data: bytes) -> bytes:
            return lie

        asker.wire.servers["liar"] = answer
        await asker.presence.ask("liar")
        assert [r[2] for r in asker.wire.reported] == [module.POINTS_GARBAGE]
        assert asker.presence.holdings.holds("liar", 0, ROOT, 0) is None

    asyncio.run(scenario())


def test_hostile_questions_are_refused_and_floods_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = Node()
        impossible = encode(PresenceRequest(0, (ShardVersionRef(ShardIndex(9), ROOT),)))
        for data in (b"", b"\xc1", impossible):
            with pytest.raises(DecodeError):
                await node.wire.handler("hostile", data)
        assert len(node.wire.reported) == 3
        honest = encode(PresenceRequest(0, (ShardVersionRef(ShardIndex(0), ROOT),)))
        refused = 0
        for _ in range(int(module.ASK_BURST) + 10):
            try:
                await node.wire.handler("flood", honest)
            except UnreachableError:
                refused += 1
        assert refused == 10
        answer: PresenceAnswer = decode(PresenceAnswer, await node.wire.handler("one", honest))
        assert answer.shards == (ShardPresence(0, b""),)

    monkeypatch.setattr(module, "ASK_RATE", 0.0)
    asyncio.run(scenario())


def test_large_models_are_asked_about_in_turns_and_what_is_missing_always() -> None:
    """1,000 shards: each look is the urgent ones and one batch; four looks have seen them all."""
    specs = tuple(
        ShardSpec(i, f"s{i}", "dense", (TensorSpec("t", "F32", (4,)),)) for i in range(1000)
    )

    async def scenario() -> None:
        asker, holder = Node(specs), Node(specs)
        asker.wire.servers["holder"] = holder.wire.handler
        for i in range(1000):
            holder.store.held[i, ROOT] = [True]
        asker.urgent = [(i, ROOT) for i in range(3)]
        asker.quiet = [(i, ROOT) for i in range(3, 1000)]
        await asker.presence.ask("holder")
        known = [len(asker.presence.holdings.holders(i, ROOT, 0)) for i in range(1000)]
        assert all(known[:3])
        assert sum(known) <= 3 + module.MAX_ASKED
        for _ in range(3):
            await asker.presence.ask("holder")
        assert all(asker.presence.holdings.holders(i, ROOT, 0) for i in range(1000))
        assert max(asker.wire.sent) <= module.MAX_REQUEST_BYTES
        assert max(asker.wire.got) <= module.MAX_ANSWER_BYTES

    asyncio.run(scenario())


def test_the_loop_asks_who_comes_and_forgets_who_goes() -> None:
    async def scenario() -> None:
        asker, holder = pair()
        holder.store.held[0, ROOT] = [True] * TILES
        holdings = asker.presence.holdings
        task = asyncio.create_task(asker.presence.run())
        await reached(lambda: bool(holdings.holders(0, ROOT, 0)), 120, "the holder is known")
        asker.wire.servers["silent"] = unreachable
        asker.wire.servers.pop("holder")
        asker.presence.wake()
        await reached(lambda: not holdings.holders(0, ROOT, 0), 120, "the holder is forgotten")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not asker.wire.reported

    async def unreachable(peer: str, data: bytes) -> bytes:
        raise UnreachableError("gone")

    asyncio.run(asyncio.wait_for(scenario(), 120))


@given(
    st.lists(st.integers(0, 2**12 - 1), max_size=6), st.integers(0, 2**12 - 1), st.integers(1, 4)
)
def test_counting_holders_is_counting(others: list[int], own: int, count: int) -> None:
    holdings = Holdings()
    for i, bits in enumerate(others):
        holdings.learn(f"peer {i}", 0, ROOT, bits)
    holdings.learn("of another version", 0, OTHER, 2**12 - 1)
    found = holdings.at_least(0, ROOT, count, own)
    for tile in range(12):
        held = sum(bits >> tile & 1 for bits in (own, *others))
        assert bool(found >> tile & 1) == (held >= count)
