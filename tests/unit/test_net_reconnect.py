"""Peers that vanish, freeze and come back, and a trio thread that dies."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from chain.address import peer_id_of
from chain.errors import UnreachableError
from node.net import limits
from tests.kit.net import Station, exchange, stations

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import asyncio, sys
from node.net import limits
from node.net.port import Network
limits.PING_INTERVAL_S, limits.SILENCE_S = 0.5, 2.0
async def main():
    net = Network(bytes(31) + b"c")
    await net.start()
    print(net.addresses()[0], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await net.stop()
asyncio.run(main())
"""


def test_a_peer_that_restarts_is_redialled():
    async def scenario():
        async with stations("a", "b") as (a, b):
            address = b.address.rsplit("/p2p/", 1)[0]
            await a.until(lambda: b.address in a.net.peers()[0].addresses)
            await b.net.stop()
            await a.until(lambda: (b.id, False) in a.changes)
            again = Station("b", listen=address)
            await again.net.start()
            try:
                await a.until(lambda: again.id in a.connected, 30.0)
                await exchange(a, again)
            finally:
                await again.net.stop()

    asyncio.run(scenario())


def test_dial_keeps_wanting_a_peer_that_is_not_there_yet(monkeypatch):
    monkeypatch.setattr(limits, "DIAL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "STREAM_TIMEOUT_S", 0.3)

    async def scenario():
        async with stations("a", "b", dial=False) as (a, b):
            await b.net.stop()
            with pytest.raises(UnreachableError, match="tried again"):
                await a.net.dial(b.address)
            assert [p.peer_id for p in a.net.peers()] == [b.id]
            again = Station("b", listen=b.address.rsplit("/p2p/", 1)[0])
            monkeypatch.undo()
            await again.net.start()
            try:
                await a.until(lambda: b.id in a.connected, 30.0)
            finally:
                await again.net.stop()
            await a.until(lambda: b.id not in a.connected)
            await a.net.forget(b.id)
            assert a.net.peers() == []

    asyncio.run(scenario())


def test_a_frozen_peer_is_noticed_and_taken_back(monkeypatch):
    monkeypatch.setattr(limits, "PING_INTERVAL_S", 0.5)
    monkeypatch.setattr(limits, "SILENCE_S", 2.0)

    async def scenario():
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        try:
            address = (await asyncio.wait_for(child.stdout.readline(), 60)).decode().strip()
            async with stations("a") as (a,):
                frozen = await a.net.dial(address)
                child.send_signal(signal.SIGSTOP)
                await a.until(lambda: (frozen, False) in a.changes, 30.0)
                assert not a.net.send(frozen, b"vote")
                child.send_signal(signal.SIGCONT)
                await a.until(lambda: frozen in a.connected, 30.0)
        finally:
            child.send_signal(signal.SIGCONT)
            child.stdin.close()
            await asyncio.wait_for(child.wait(), 60)

    asyncio.run(scenario())


def _raise(*_: object) -> None:
    raise RuntimeError("the thread dies, for the test")


async def _fail() -> None:
    _raise()


@pytest.mark.parametrize("how", ["task", "internal"])
def test_the_trio_thread_is_restarted_as_it_was(how, caplog):
    """An exception in a task ends the run in order; one in a trio callback is an internal
    error after which nothing is cleaned up."""

    async def scenario():
        async with stations("a", "b", "c") as (a, b, c):
            await exchange(a, b)
            before = a.address

            async def echo(peer: str, data: bytes) -> bytes:
                return data

            a.net.serve("/test/echo/1", echo, most=10)
            a.changes.clear()
            if how == "task":
                a.net._bridge.to_trio(a.net._host.nursery.start_soon, _fail)
            else:
                a.net._bridge._token.run_sync_soon(_raise)
            await a.until(lambda: a.net.metrics().get("restarts") == 1)
            await a.until_connected(b, c)
            assert a.address == before
            assert {(b.id, False), (c.id, False)} <= set(a.changes)
            await exchange(a, b)
            await exchange(c, a)
            assert await b.net.request(a.id, "/test/echo/1", b"x", timeout_s=60, most=1) == b"x"

    asyncio.run(scenario())
    assert "restarting" in caplog.text


def test_calls_under_way_fail_when_the_thread_dies():
    async def scenario():
        async with stations("a") as (a,):
            nobody = "/ip4/127.0.0.1/tcp/1/p2p/" + peer_id_of(bytes(32))
            waiting = asyncio.create_task(a.net.dial(nobody))
            await a.until(lambda: len(a.net.peers()) == 1)
            a.net._bridge.to_trio(a.net._host.nursery.start_soon, _fail)
            with pytest.raises(UnreachableError):
                await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())
