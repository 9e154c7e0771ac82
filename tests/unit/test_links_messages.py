"""Consensus messages over links between real networks on loopback, and without one."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from node.net import limits as net_limits
from node.net.priority import Priority
from tests.kit.net import stations

MIB = 1 << 20
TILE = b"".join(hashlib.sha256(i.to_bytes(4)).digest() for i in range(4 * MIB // 32))
Run = Callable[[Coroutine[Any, Any, None]], None]


async def tile(peer: str, data: bytes) -> bytes:
    return TILE


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_messages_go_over_the_link_and_without_one_over_libp2p(run: Run):
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            await a.until_linked(b)
            await b.until_linked(a)
            sent = [b"vote", TILE[:65528], TILE[: 2 * MIB], b"another"]
            for data in sent:
                assert a.net.send(b.id, data)
            await b.until(lambda: len(b.messages) == len(sent))
            assert b.messages == [(a.id, data) for data in sent]
            assert a.net.metrics()["tls_messages_sent"] == len(sent)
            assert not a.net.send(b.id, bytes(net_limits.MAX_FRAME_BYTES + 1))
            for peer in a.net._asking.links._peers.values():
                peer.current.close("the test")
            assert a.net.send(b.id, b"over libp2p")
            await b.until(lambda: (a.id, b"over libp2p") in b.messages)
            assert a.net.metrics()["tls_messages_sent"] == len(sent)

    run(scenario())


def test_a_message_overtakes_the_tiles_on_its_way():
    """Megabytes are under way from a to b; a vote that a sends then arrives before them."""
    order: list[str] = []

    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            a.net.serve("/test/tile/1", tile, most=10, concurrent=32, priority=Priority.BULK)
            await b.until_linked(a)
            await a.until_linked(b)
            b.net.on_message(lambda peer, data: order.append("vote"))

            async def fetch() -> None:
                buffer = memoryview(bytearray(len(TILE)))
                await b.net.fetch(
                    a.id, "/test/tile/1", b"", into=buffer, progress=begun, timeout_s=60
                )
                order.append("tile")

            def begun(count: int) -> None:
                if "asked" not in order:
                    order.append("asked")
                    a.net.send(b.id, b"vote")

            await asyncio.gather(*(fetch() for _ in range(8)))
            await b.until(lambda: "vote" in order)

    asyncio.run(scenario())
    assert order[:2] == ["asked", "vote"]
