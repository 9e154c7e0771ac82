"""Links between real networks on loopback: both event loops, fallback, redialling, priorities."""

import asyncio
import gc
import hashlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from chain.errors import UnreachableError
from node.net.identity import Address, PortInUseError
from node.net.links import address, limits
from node.net.links.links import _Peer as Peer
from node.net.port import Network
from node.net.priority import Priority
from tests.kit.net import Station, exchange, stations

MIB = 1 << 20
TILE = b"".join(hashlib.sha256(i.to_bytes(4)).digest() for i in range(4 * MIB // 32))
Run = Callable[[Coroutine[Any, Any, None]], None]


async def echo(peer: str, data: bytes) -> bytes:
    return data


async def tile(peer: str, data: bytes) -> list[memoryview]:
    whole = memoryview(TILE)
    return [whole[i : i + 262_144] for i in range(0, len(TILE), 262_144)]


def linked(station: Station) -> list[Any]:
    """All connections of a station's links."""
    links = station.net._asking.links
    return [c for peer in links._peers.values() for c in peer.connections]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_requests_and_transfers_over_a_link(run: Run):
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            for station in (a, b):
                station.net.serve("/test/echo/1", echo, most=MIB, priority=Priority.VOTE)
                station.net.serve("/test/tile/1", tile, most=10, priority=Priority.BULK)
            await a.until_linked(b)
            await b.until_linked(a)
            before = (a.net.metrics()["requests_sent"], b.net.metrics()["requests_sent"])
            for one, other in ((a, b), (b, a)):
                for data in (b"", b"x", TILE[:MIB]):
                    found = await one.net.request(
                        other.id, "/test/echo/1", data, timeout_s=60, most=MIB
                    )
                    assert found == data
                buffer, told = bytearray(len(TILE) + 9), []
                size = await one.net.fetch(
                    other.id,
                    "/test/tile/1",
                    b"",
                    into=memoryview(buffer),
                    progress=told.append,
                    timeout_s=60,
                )
                assert (size, bytes(buffer)) == (len(TILE), TILE + bytes(9))
                assert told[-1] == size
                assert max(b - a for a, b in pairwise(told)) <= 65536
            assert (a.net.metrics()["requests_sent"], b.net.metrics()["requests_sent"]) == before
            info = {i.peer_id: i for i in a.net.link_info()}[b.id]
            assert info.up
            assert info.dialled_by in ("us", "peer")
            assert info.rtt_ms is not None
            assert info.bytes_in > len(TILE)
            assert info.bytes_out > len(TILE)
            counted = a.net.metrics()
            assert counted["tls_up"] == 1
            assert counted["tls_requests_sent"] == counted["tls_requests_served"] == 4
            await exchange(a, b)

    run(scenario())


def test_failures_over_a_link_have_the_same_reasons():
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            stuck, cancelled = asyncio.Event(), asyncio.Event()

            async def refuse(peer: str, data: bytes) -> bytes:
                if data == b"known":
                    raise UnreachableError("no such block")
                if data == b"bug":
                    raise KeyError("secret")
                if data == b"slow":
                    try:
                        await stuck.wait()
                    except asyncio.CancelledError:
                        cancelled.set()
                        raise
                return bytes(1000)

            b.net.serve("/test/refuse/1", refuse, most=10, concurrent=2)
            await a.until_linked(b)

            async def ask(data: bytes, timeout_s: float = 10, most: int = 2000) -> bytes:
                return await a.net.request(
                    b.id, "/test/refuse/1", data, timeout_s=timeout_s, most=most
                )

            assert await ask(b"") == bytes(1000)
            with pytest.raises(UnreachableError, match="no such block"):
                await ask(b"known")
            with pytest.raises(UnreachableError, match="internal error") as caught:
                await ask(b"bug")
            assert "secret" not in str(caught.value)
            with pytest.raises(UnreachableError, match="unknown protocol"):
                await a.net.request(b.id, "/test/unknown/1", b"", timeout_s=60, most=1)
            first = asyncio.create_task(ask(b"slow"))
            service = b.net._state.services["/test/refuse/1"]
            await b.until(lambda: service.running == 1)
            with pytest.raises(UnreachableError, match="too busy"):
                await ask(b"second")  # one peer gets half of the slots
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await asyncio.wait_for(cancelled.wait(), 60)
            await b.until(lambda: service.running == 0)
            with pytest.raises(UnreachableError, match="did not answer"):
                await ask(b"slow", timeout_s=0.2)
            await b.until(lambda: service.running == 0)
            assert await ask(b"") == bytes(1000)
            assert {p.violations for p in a.net.peers() + b.net.peers()} == {0.0}
            with pytest.raises(UnreachableError, match="too much"):
                await ask(b"", most=999)  # it sends more than was asked for
            await a.until(lambda: a.net.peers()[0].violations > 0)

    asyncio.run(scenario())


def test_peers_without_links_are_asked_over_libp2p():
    """An old node, or one whose operator switched links off."""

    async def scenario():
        new, old = Station("a", link_port=0), Station("b")
        try:
            await new.net.start()
            await old.net.start()
            old.net.serve("/test/tile/1", tile, most=10)
            await new.net.dial(old.address)
            buffer = bytearray(len(TILE))
            into = memoryview(buffer)
            await new.net.fetch(old.id, "/test/tile/1", b"", into=into, timeout_s=60)
            assert buffer == TILE
            assert [i.up for i in new.net.link_info()] == [False]
            assert new.net.metrics()["tls_fallbacks"] == 1
            assert old.net.link_info() == []
        finally:
            await asyncio.gather(new.net.stop(), old.net.stop())

    asyncio.run(scenario())


@pytest.mark.parametrize("hidden", [0, 1])
def test_whoever_can_dial_does(hidden, monkeypatch):
    """One side is behind NAT: nobody reaches its port, but it reaches the other."""
    monkeypatch.setattr(limits, "YIELD_S", 0.05)

    async def scenario():
        pair = sorted((Station("a", link_port=0), Station("b", link_port=0)), key=lambda s: s.id)
        try:
            for station in pair:
                await station.net.start()
            inner, outer = pair[hidden], pair[1 - hidden]
            inner.net._asking.links._tell = lambda: address.tell([], 0)
            await inner.net.dial(outer.address)
            await inner.until_linked(outer)
            await outer.until_linked(inner)
            assert inner.net.link_info()[0].dialled_by == "us"
            outer.net.serve("/test/echo/1", echo, most=9)
            inner.net.serve("/test/echo/1", echo, most=9)
            for one, other in ((inner, outer), (outer, inner)):
                assert await one.net.request(
                    other.id, "/test/echo/1", b"x", timeout_s=60, most=9
                ) == b"x"  # fmt: skip
                assert one.net.metrics()["tls_requests_sent"] == 1
        finally:
            await asyncio.gather(*(station.net.stop() for station in pair))

    asyncio.run(scenario())


def test_addresses_told_anew_do_not_have_us_dial_at_once(monkeypatch):
    """Else a peer that tells others all the time would have us knock at anybody's door."""
    monkeypatch.setattr(limits, "YIELD_S", 0.0)

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        async with stations("victim", link_port=0) as (victim,):
            liar = Station("liar")
            await liar.net.start()
            try:
                await liar.net.dial(victim.address)
                await victim.until_connected(liar)
                for i in range(100):
                    place = Address("ip4", "127.0.0.1", port)
                    told = address.tell([place] if i % 2 else [], port - i // 2)
                    await liar.net.request(
                        victim.id, address.PROTOCOL, told, timeout_s=60, most=address.MAX_BYTES
                    )
                assert victim.net.metrics().get("tls_dials", 0) <= 10
            finally:
                await liar.net.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "place",
    ["/dns4/a..b/tcp/9", f"/dns4/{'a' * 64}.example/tcp/9"],
    ids=["an empty label", "a long label"],
)
def test_places_that_are_none_are_passed_over(place):
    async def scenario():
        async with stations("node", link_port=0) as (node,):
            links = node.net._asking.links
            assert not await links._dial_any(Peer("somebody", addresses=[Address.parse(place)]))
            with pytest.raises(OSError, match=r"leads to ::ffff:127\.0\.0\.1"):
                await links._dial(Address.parse("/ip6/::ffff:127.0.0.1/tcp/9"))

    asyncio.run(scenario())


@pytest.mark.parametrize("is_known", [True, False])
def test_hosts_of_connected_peers_find_room_among_strangers(is_known):
    async def scenario():
        async with stations("node", link_port=0) as (node,):
            links = node.net._asking.links
            for i in range(limits.HALF_OPEN_UNKNOWN):
                assert links._may_knock(f"192.0.2.{i}")
                links._strangers[f"192.0.2.{i}"] += 1
            if is_known:
                node.net._state.hosts["somebody"] = "198.51.100.1"
            assert links._may_knock("198.51.100.1") is is_known

    asyncio.run(scenario())


def test_simultaneous_dials_leave_one_link(monkeypatch):
    monkeypatch.setattr(limits, "YIELD_S", 0.0)

    async def scenario():
        one, other = pair = [Station("a", link_port=0), Station("b", link_port=0)]
        try:
            for station in pair:
                await station.net.start()
            gate, waiting = asyncio.Event(), []

            def held(dial: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
                async def late(*args: Any) -> Any:
                    connection = await dial(*args)
                    waiting.append(connection)
                    if len(waiting) == 2:
                        gate.set()
                    await gate.wait()
                    return connection

                return late

            for station in pair:  # neither takes its link before both have dialled
                links = station.net._asking.links
                links._dial = held(links._dial)
                links._admit = after(gate, links._admit)
            await one.net.dial(other.address)
            await one.until_linked(other)
            await other.until_linked(one)
            for station in pair:
                await station.until(lambda s=station: len(linked(s)) == 1)
            first, second = linked(one)[0], linked(other)[0]
            assert first.dialled is not second.dialled, "two ends of one connection"
            assert first.dialled is (one.id < other.id), "the smaller peer id's stays"
            other.net.serve("/test/echo/1", echo, most=9)
            assert await one.net.request(
                other.id, "/test/echo/1", b"x", timeout_s=60, most=9
            ) == b"x"  # fmt: skip
        finally:
            await asyncio.gather(*(station.net.stop() for station in pair))

    asyncio.run(scenario())


def after(gate: asyncio.Event, fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def late(*args: Any) -> Any:
        await gate.wait()
        return await fn(*args)

    return late


def test_a_lost_link_fails_what_is_under_way_and_is_dialled_again():
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            stuck = asyncio.Event()

            async def wait(peer: str, data: bytes) -> bytes:
                await stuck.wait()
                return b"late"

            b.net.serve("/test/wait/1", wait, most=9)
            await a.until_linked(b)
            await b.until_linked(a)
            waiting = asyncio.create_task(
                a.net.request(b.id, "/test/wait/1", b"", timeout_s=60, most=9)
            )
            await b.until(lambda: b.net._state.services["/test/wait/1"].running == 1)
            (old,) = linked(b)
            old.close("the cable was cut, for the test")
            with pytest.raises(UnreachableError, match="broke"):
                await waiting
            await b.until(lambda: b.net._state.services["/test/wait/1"].running == 0)
            # At least one more: dials from both sides may each have been a link for a moment.
            await a.until(lambda: a.net.metrics().get("tls_links", 0) >= 2)
            await a.until_linked(b)
            stuck.set()
            assert await a.net.request(b.id, "/test/wait/1", b"", timeout_s=60, most=9) == b"late"
            assert {p.violations for p in a.net.peers() + b.net.peers()} == {0.0}

    asyncio.run(scenario())


def test_a_link_lives_as_long_as_the_connection_of_libp2p():
    async def scenario():
        async with stations("a", "b", "c", link_port=0) as (a, b, c):
            for one, other in ((a, b), (b, a), (a, c), (c, a)):
                await one.until_linked(other)
            a.net.report(b.id, "for the test", 100)  # libp2p refuses it, so links do
            await a.until(lambda: b.id not in {i.peer_id for i in a.net.link_info()})
            await b.until(lambda: a.id not in {i.peer_id for i in b.net.link_info() if i.up})
            await c.net.stop()
            await a.until(lambda: a.net.link_info() == [])

    asyncio.run(scenario())


def test_links_come_back_after_the_trio_thread_was_restarted():
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            await a.until_linked(b)

            async def fail() -> None:
                raise RuntimeError("the thread dies, for the test")

            a.net._bridge.to_trio(a.net._host.nursery.start_soon, fail)
            await a.until(lambda: a.net.metrics().get("restarts") == 1)
            await a.until_connected(b)
            await a.until_linked(b)
            await b.until_linked(a)

    asyncio.run(scenario())


def test_nodes_of_another_network_have_no_link_but_libp2p_works():
    async def scenario():
        one = Station("a", link_port=0, chain_id=bytes([1]) * 32)
        other = Station("b", link_port=0, chain_id=bytes([2]) * 32)
        try:
            for station in (one, other):
                await station.net.start()
            other.net.serve("/test/echo/1", echo, most=9)
            await one.net.dial(other.address)
            dials = lambda: sum(s.net.metrics().get("tls_dials", 0) for s in (one, other))  # noqa: E731
            await one.until(lambda: dials() >= 2)
            assert await one.net.request(
                other.id, "/test/echo/1", b"x", timeout_s=60, most=9
            ) == b"x"  # fmt: skip
            assert not any(i.up for s in (one, other) for i in s.net.link_info())
            assert {p.violations for p in one.net.peers()} == {0.0}, "nobody is to blame"
        finally:
            await asyncio.gather(one.net.stop(), other.net.stop())

    asyncio.run(scenario())


def test_a_link_port_in_use_is_named():
    async def scenario():
        async with stations("a", link_port=0) as (a,):
            port = a.net._asking.links.port
            second = Network(bytes(32), link_port=port)
            with pytest.raises(PortInUseError, match=str(port)) as caught:
                await second.start()
            assert caught.value.exit_code == 1
            await second.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_vote_passes_a_saturated_stream_of_tiles_and_the_loop_turns(run: Run):
    """Both ends share one process, so 'how much came between' is exact. The tiles that arrive
    between asking and the vote's arrival are those that were on their way, at most a window a
    stream; hundreds of megabytes more wait."""

    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            a.net.serve("/test/tile/1", tile, most=10, priority=Priority.BULK)
            between: list[int] = []

            async def vote(peer: str, data: bytes) -> bytes:
                between.append(link.bytes_in - int.from_bytes(data))
                return b"ok"

            b.net.serve("/test/vote/1", vote, most=8, priority=Priority.VOTE)
            await a.until_linked(b)
            await b.until_linked(a)
            (link,) = linked(b)
            turns = 0

            async def bulk() -> None:
                into = memoryview(bytearray(len(TILE)))
                while len(between) < 30:
                    await b.net.fetch(a.id, "/test/tile/1", b"", into=into, timeout_s=60)

            async def count_turns() -> None:
                nonlocal turns
                while len(between) < 30:
                    await asyncio.sleep(0)
                    turns += 1

            tasks = [asyncio.create_task(w()) for w in (bulk, bulk, bulk, bulk, count_turns)]
            for _ in range(30):
                await b.until(lambda at=link.bytes_in: link.bytes_in > at + MIB)
                data = link.bytes_in.to_bytes(8)
                await a.net.request(
                    b.id, "/test/vote/1", data, timeout_s=60, most=2, priority=Priority.VOTE
                )
            await asyncio.gather(*tasks)
            assert sorted(between)[27] <= 4 * limits.WINDOW_BYTES + MIB // 2, between
            assert link.bytes_in / turns <= 512 * 1024, "bytes in one turn of the loop"

    run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_stopping_in_the_midst_of_transfers(run: Run):
    async def scenario():
        async with stations("a", "b", link_port=0) as (a, b):
            b.net.serve("/test/tile/1", tile, most=10, concurrent=16)
            await a.until_linked(b)
            began = asyncio.Event()
            into = memoryview(bytearray(len(TILE)))
            fetching = [
                asyncio.create_task(
                    a.net.fetch(
                        b.id,
                        "/test/tile/1",
                        b"",
                        into=into,
                        progress=lambda n: began.set(),
                        timeout_s=60,
                    )
                )
                for _ in range(4)
            ]
            await began.wait()
            await b.net.stop()
            ended = await asyncio.gather(*fetching, return_exceptions=True)
            assert all(isinstance(e, int | UnreachableError) for e in ended)

    run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_stops_before_it_began_leaves_nothing_behind(run: Run):
    """No socket that is open, and no coroutine that nobody awaits: both are warnings."""

    async def scenario():
        async with stations("a", dial=False, link_port=0) as (a,):
            links = a.net._asking.links
            links.peer_up("gone at once")
            links.peer_down("gone at once")
            with socket.create_connection(("127.0.0.1", links.port), timeout=60) as knocking:
                links._accept(links._listener)
                assert links._strangers.total() == 1
                await links.stop()
                assert knocking.recv(1) == b""
            assert not links._strangers
        gc.collect()

    run(scenario())
