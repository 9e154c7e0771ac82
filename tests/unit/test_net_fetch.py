"""`Network.fetch`: answers written into the asker's buffer as they arrive."""

import asyncio

import pytest

from chain.errors import BlyanError, UnreachableError, VerifyError
from node.net.port import Network
from node.net.priority import Priority
from tests.kit.net import exchange, stations

PROTOCOL = "/test/parts/1"
PARTS = [bytes([i]) * (100_000 * i) for i in range(6)]  # one is empty
WHOLE = b"".join(PARTS)


async def serve_parts(peer: str, data: bytes) -> list[bytes]:
    if data == b"refuse":
        raise BlyanError("no such tile")
    return PARTS


def test_parts_arrive_in_place_and_progress_is_told():
    async def scenario():
        async with stations("a", "b") as (a, b):
            b.net.serve(PROTOCOL, serve_parts, most=10, priority=Priority.BULK)
            buffer = bytearray(len(WHOLE) + 10)
            told = []

            def progress(count: int) -> None:
                assert buffer[:count] == WHOLE[:count]
                told.append(count)

            size = await a.net.fetch(
                b.id, PROTOCOL, b"", into=memoryview(buffer), progress=progress, timeout_s=60
            )
            assert size == len(WHOLE)
            assert bytes(buffer) == WHOLE + bytes(10)
            assert told == sorted(set(told))
            assert told[-1] == size
            assert len(told) > 1
            most = len(WHOLE)
            assert await a.net.request(b.id, PROTOCOL, b"", timeout_s=60, most=most) == WHOLE, (
                "parts are one answer"
            )

    asyncio.run(scenario())


def test_an_exception_of_progress_ends_the_transfer():
    async def scenario():
        async with stations("a", "b") as (a, b):
            b.net.serve(PROTOCOL, serve_parts, most=10)

            def progress(count: int) -> None:
                raise VerifyError("a bad subtile")

            with pytest.raises(VerifyError, match="a bad subtile"):
                await a.net.fetch(
                    b.id,
                    PROTOCOL,
                    b"",
                    into=memoryview(bytearray(len(WHOLE))),
                    progress=progress,
                    timeout_s=60,
                )
            await exchange(a, b)

    asyncio.run(scenario())


def test_what_does_not_fit_or_is_refused():
    async def scenario():
        async with stations("a", "b") as (a, b):
            b.net.serve(PROTOCOL, serve_parts, most=10)

            async def fetch(net: Network, data: bytes, room: int) -> int:
                into = memoryview(bytearray(room))
                return await net.fetch(b.id, PROTOCOL, data, into=into, timeout_s=60)

            with pytest.raises(UnreachableError, match="no such tile"):
                await fetch(a.net, b"refuse", len(WHOLE))
            with pytest.raises(UnreachableError, match="too much"):
                await fetch(a.net, b"", len(WHOLE) - 1)
            assert a.net.peers()[0].violations > 0

    asyncio.run(scenario())
