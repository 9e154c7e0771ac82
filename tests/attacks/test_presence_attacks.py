"""Hostile peers of the presence protocol, over real connections: floods, garbage, false claims."""

from __future__ import annotations

import asyncio

import pytest

from chain.codec import decode, encode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.types import ShardIndex
from node.services import presence as module
from node.services.presence import (
    PROTOCOL,
    Presence,
    PresenceAnswer,
    PresenceRequest,
    ShardPresence,
    ShardVersionRef,
)
from tests.kit.net import Station, stations
from tiles.layout import ShardSpec, TensorSpec

ROOT = Hash32(bytes([7]) * 32)
TILES = 300
SPEC = ShardSpec(0, "s", "dense", (TensorSpec("t", "F32", (TILES * 1024 * 1024,)),))
QUESTION = encode(PresenceRequest(0, (ShardVersionRef(ShardIndex(0), ROOT),)))


class Store:
    def presence(self, shard: int, root: Hash32) -> tuple[bool, ...]:
        return tuple(i % 3 == 0 for i in range(TILES))


def serving(station: Station) -> Presence:
    """A station's presence service; it is interested in the one shard."""
    return Presence(
        station.net,
        Store(),  # type: ignore[arg-type]
        [SPEC],
        lambda: ([], [(0, ROOT)]),
    )


async def ask(asker: Station, asked: Station, data: bytes = QUESTION) -> bytes:
    return await asker.net.request(asked.id, PROTOCOL, data, timeout_s=60, most=200_000)


def test_a_flood_of_questions_ends_in_refusal_and_serves_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ASK_RATE", 0.1)
    monkeypatch.setattr(module, "ASK_BURST", 20.0)

    async def scenario() -> None:
        async with stations("victim", "flood", "honest") as (victim, flood, honest):
            service = serving(victim)
            answered = refused = 0
            for _ in range(200):
                try:
                    await ask(flood, victim)
                    answered += 1
                except UnreachableError:
                    refused += 1
                if flood.id not in victim.connected:
                    break
            assert answered == 20
            assert service.refused >= 40  # two points each until it is thrown out
            await victim.until(lambda: flood.id not in victim.connected)
            answer: PresenceAnswer = decode(PresenceAnswer, await ask(honest, victim))
            assert answer.shards[0].held == 100

    asyncio.run(scenario())


def test_garbage_and_impossible_questions_cost_the_asker() -> None:
    async def scenario() -> None:
        async with stations("victim", "liar", "honest") as (victim, liar, honest):
            serving(victim)
            impossible = encode(PresenceRequest(0, (ShardVersionRef(ShardIndex(1), ROOT),)))
            for data in (b"\xff" * 100, encode(PresenceAnswer(1, ())), impossible):
                with pytest.raises(UnreachableError):
                    await ask(liar, victim, data)
            await victim.until(lambda: liar.id not in victim.connected)
            assert await ask(honest, victim)

    asyncio.run(scenario())


def test_one_that_claims_everything_is_believed_until_it_must_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim costs others one question a tile, and itself its place."""
    monkeypatch.setattr(module, "FALSE_S", 0.0)

    async def scenario() -> None:
        async with stations("victim", "liar") as (victim, liar):
            service = serving(victim)

            async def claim(peer: str, data: bytes) -> bytes:
                return encode(PresenceAnswer(1, (ShardPresence(TILES, b""),)))

            liar.net.serve(PROTOCOL, claim, most=module.MAX_REQUEST_BYTES)
            await service.ask(liar.id)
            assert service.holdings.holders(0, ROOT, 5) == [liar.id]
            for tile in range(40):  # as the fetcher reports each empty answer
                service.missed(liar.id, 0, ROOT, tile)
            await victim.until(lambda: liar.id not in victim.connected)
            assert service.false_claims == 40

    asyncio.run(scenario())


def test_an_answer_that_is_too_large_or_endless_ends_the_question() -> None:
    async def scenario() -> None:
        async with stations("victim", "liar") as (victim, liar):
            service = serving(victim)

            async def endless(peer: str, data: bytes) -> bytes:
                return bytes(4 * module.MAX_ANSWER_BYTES)

            liar.net.serve(PROTOCOL, endless, most=module.MAX_REQUEST_BYTES)
            await service.ask(liar.id)
            assert service.holdings.holds(liar.id, 0, ROOT, 0) is None
            info = {p.peer_id: p for p in victim.net.peers()}.get(liar.id)
            assert info is None or info.violations > 0

    asyncio.run(scenario())
